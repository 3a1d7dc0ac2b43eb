"""SRV, A and AAAA look-ups. "There is none" and "it cannot be known" are not the same.

Addresses are remembered here, where connections ask for them, and only in memory: they do not live
long. SRV records are remembered with the rest of the discovery (`resolver.py`).
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from invite_client.clock import SystemClock
from invite_client.interfaces import Clock
from invite_client.net.hosts import HOSTS_FILE, Address, Hosts
from invite_client.net.proxies import is_onion
from invite_client.policy import DnsPolicy
from invite_client.single_flight import SingleFlight
from invite_client.spec.srv import SrvRecord

if TYPE_CHECKING:
    from invite_client.net.answers import Answer, Kind
    from invite_client.net.questions import Asking, NameServers

__all__ = ["Address", "Dns", "DnsAbsentError", "DnsFailedError", "SrvRecords"]


class DnsAbsentError(OSError):
    """The name, or the kind of record, does not exist."""

    def __init__(self, message: str, ttl: float = 0.0) -> None:
        super().__init__(message)
        self.ttl = ttl


class DnsFailedError(OSError):
    """No name server gave an answer: nothing is known."""


@dataclass(frozen=True, slots=True)
class SrvRecords:
    """What a zone says; no records at all if it says that there are none."""

    records: tuple[SrvRecord, ...]
    ttl: float
    """Seconds for which the answer may be kept."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of the addresses of one host."""

    addresses: tuple[Address, ...]
    why_none: DnsAbsentError | DnsFailedError | None
    """Set where there are none."""
    fresh_until: float
    usable_until: float
    """Until then they serve if no name server answers. Both are seconds of the monotonic clock."""


class Dns:
    """Asks the name servers of a `DnsPolicy`."""

    def __init__(
        self, policy: DnsPolicy, hosts: Path = HOSTS_FILE, *, clock: Clock | None = None
    ) -> None:
        self._policy = policy
        self._clock: Clock = clock or SystemClock()
        self._hosts = Hosts(hosts, self._clock)
        self._servers: NameServers | None = None
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._flights: SingleFlight[str, _Known] = SingleFlight()

    async def srv(self, service: str, hostname: str) -> SrvRecords:
        """Return the SRV records of ``service.hostname``. Raises `DnsFailedError`."""
        try:
            with self._begin(f"{service}.{hostname}", "SRV") as asking:
                answer = await asking.answer()
        except DnsAbsentError as absent:
            ttl = self._kept_for(absent.ttl, self._policy.maximum_negative_ttl)
            return SrvRecords((), ttl)
        records = [record for record in answer.records if isinstance(record, SrvRecord)]
        # Of too many, those that would be tried first.
        first = heapq.nsmallest(self._policy.records, records, key=lambda r: r.priority)
        ttl = self._kept_for(answer.ttl, self._policy.maximum_ttl)
        return SrvRecords(tuple(first), ttl)

    async def addresses(self, hostname: str) -> list[Address]:
        """Return the addresses of a host: remembered, or asked for once for all who want them.

        Raises `DnsAbsentError` if there are none, `DnsFailedError` if that cannot be known.
        """
        name = hostname.lower().removesuffix(".")
        known = self._known.get(name)
        if known is None or known.fresh_until <= self._clock.monotonic():
            known = await self._flights.do(name, lambda: self._look_up(name))
        if known.why_none is not None:
            raise copy(known.why_none)  # one for each who asks
        return list(known.addresses)

    def forget(self, hostname: str) -> None:
        """Ask anew for the addresses of a host, the next time: no connection came about."""
        self._known.pop(hostname.lower().removesuffix("."), None)

    async def _look_up(self, name: str) -> _Known:
        try:
            known = await self._ask_addresses(name)
        except DnsFailedError as failure:
            before, now = self._known.get(name), self._clock.monotonic()
            if before is not None and before.addresses and now < before.usable_until:
                # RFC 8767: the last answer is better than none. And the name servers get a rest.
                fresh = min(now + self._policy.minimum_ttl, before.usable_until)
                known = replace(before, fresh_until=fresh)
            else:
                known = self._make_known([], self._policy.failure_ttl, failure)
        self._known[name] = known
        self._known.move_to_end(name)
        while len(self._known) > self._policy.remembered_hosts:
            self._known.popitem(last=False)
        return known

    async def _ask_addresses(self, name: str) -> _Known:
        """Ask for A and AAAA side by side. Each answer counts on its own."""
        local = self._hosts.addresses(name)  # which no name server knows
        if local:
            return self._make_known(list(local), self._policy.minimum_ttl)
        answers: Sequence[Answer | BaseException]
        try:
            with self._begin(name, "AAAA") as six, self._begin(name, "A") as four:
                answers = await asyncio.gather(six.answer(), four.answer(), return_exceptions=True)
        except DnsAbsentError as no_name:
            answers = [no_name]
        found: list[Address] = []
        ttls: list[float] = []
        absence: DnsAbsentError | None = None
        failure: BaseException | None = None
        for answer in answers:
            match answer:
                case DnsAbsentError():
                    absence = answer
                    ttls.append(self._kept_for(answer.ttl, self._policy.maximum_negative_ttl))
                case BaseException():
                    failure = answer
                case _:
                    found += [r for r in answer.records if not isinstance(r, SrvRecord)]
                    ttls.append(self._kept_for(answer.ttl, self._policy.maximum_ttl))
        if failure is not None:
            if not found:
                raise failure
            # Half an answer does; the other half is asked for again soon.
            ttls = [self._policy.minimum_ttl]
        return self._make_known(found[: self._policy.records], min(ttls), absence)

    def _make_known(
        self,
        addresses: list[Address],
        ttl: float,
        why_none: DnsAbsentError | DnsFailedError | None = None,
    ) -> _Known:
        fresh = self._clock.monotonic() + ttl
        usable = fresh + self._policy.stale
        # Copied: what was raised holds on to everything that it passed through.
        return _Known(tuple(addresses), None if addresses else copy(why_none), fresh, usable)

    def _kept_for(self, ttl: float, maximum: float) -> float:
        return min(max(ttl, self._policy.minimum_ttl), maximum)

    def _begin(self, name: str, kind: Kind) -> Asking:
        if is_onion(name):
            raise DnsAbsentError(f"{kind} {name}: names of Tor are not in DNS", math.inf)
        if self._servers is None:
            try:
                from invite_client.net.questions import NameServers  # noqa: PLC0415

                self._servers = NameServers(self._policy)
            except OSError as error:  # also to import takes a descriptor
                raise DnsFailedError(f"{kind} {name}: {error.strerror or error}") from error
        return self._servers.begin(name, kind)
