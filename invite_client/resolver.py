"""Resolved servers: remembered, shared between callers, discovered.

What is remembered are the answers to the two questions of the discovery, each with its own times.
The walk over them (`spec.discovery.discover`) costs nothing and is done anew for every caller, so
precedence is never cached.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from invite_client.errors import InviteError, UnreachableError
from invite_client.interfaces import Clock, Lookups, Store, Stored
from invite_client.policy import CachePolicy
from invite_client.single_flight import SingleFlight
from invite_client.spec.discovery import ResolvedServer, SrvAnswer, WellKnownAnswer, discover
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.srv import SrvRecord
from invite_client.spec.well_known import failure_lifetime

__all__ = ["CachingResolver"]

_WELL_KNOWN, _SRV = "well-known", "srv"
_SERVICES = ("_matrix-fed._tcp", "_matrix._tcp")


def _draw(most: int) -> int:
    return random.randint(0, most)  # noqa: S311  # shares of load, no secret


class CachingResolver:
    """The `interfaces.Resolver` of real use."""

    def __init__(
        self,
        lookups: Lookups,
        store: Store,
        policy: CachePolicy,
        clock: Clock,
        chance: Callable[[int], int] = _draw,
    ) -> None:
        self._remembered = _RememberedLookups(lookups, store, policy, clock, chance)
        self._chance = chance

    async def resolve(self, name: ServerName) -> ResolvedServer:
        """Return where to connect. Raises `UnreachableError`."""
        return await discover(name, self._remembered, self._chance)

    async def forget(self, name: ServerName) -> None:
        """Drop what is remembered of `name`: connecting by it failed."""
        await self._remembered.forget(name)

    async def aclose(self) -> None:
        """End what runs in the background."""
        await self._remembered.aclose()


class _RememberedLookups:
    """Answers from the store where they are fresh, else from `lookups`, asked once for all."""

    def __init__(
        self,
        lookups: Lookups,
        store: Store,
        policy: CachePolicy,
        clock: Clock,
        chance: Callable[[int], int],
    ) -> None:
        self._lookups = lookups
        self._store = store
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._well_knowns: SingleFlight[str, WellKnownAnswer] = SingleFlight()
        self._srvs: SingleFlight[str, SrvAnswer] = SingleFlight()
        self._refreshes: set[asyncio.Task[None]] = set()

    # --- .well-known ----------------------------------------------------------------------------

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        stored = await self._store.get(_WELL_KNOWN, hostname)
        remembered = _read_well_known(stored)
        now = self._clock.time()
        if stored is not None and remembered is not None:
            if now < stored.fresh_until:
                return remembered
            if remembered.delegated is not None and now < stored.fresh_until + self._policy.stale:
                self._refresh(hostname)
                return remembered
        return await self._well_knowns.do(hostname, lambda: self._ask_well_known(hostname))

    async def _ask_well_known(self, hostname: str) -> WellKnownAnswer:
        answer = await self._lookups.well_known(hostname)
        now = self._clock.time()
        if answer.delegated is not None:
            fresh = now + (answer.fresh_until - now) * self._jitter()
            value = {"delegated": str(answer.delegated), "reason": "", "failures": 0}
            usable = answer.fresh_until + self._policy.remember_valid
            await self._store.put(_WELL_KNOWN, hostname, Stored(value, fresh, usable))
            return answer

        # A failure. "Servers are encouraged to exponentially back off for repeated failures."
        stored = await self._store.get(_WELL_KNOWN, hostname)
        before = _read_well_known(stored)
        failures = _failures(stored) + 1
        fresh = now + failure_lifetime(failures, self._policy) * self._jitter()
        value = {"delegated": None, "reason": answer.reason, "failures": failures}
        usable = fresh + self._policy.failure_maximum
        if stored and before and before.delegated is not None and now < stored.usable_until:
            # It was valid recently: a web server that restarts must not send federation elsewhere.
            value["delegated"] = str(before.delegated)
            usable = stored.usable_until
            answer = WellKnownAnswer(before.delegated, answer.reason, answer.seconds, fresh)
        await self._store.put(_WELL_KNOWN, hostname, Stored(value, fresh, usable))
        return answer

    def _refresh(self, hostname: str) -> None:
        async def refresh() -> None:
            await self._well_knowns.do(hostname, lambda: self._ask_well_known(hostname))

        task = asyncio.create_task(refresh())
        self._refreshes.add(task)
        task.add_done_callback(self._refreshes.discard)

    # --- SRV ------------------------------------------------------------------------------------

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        key = f"{service}.{hostname}"
        stored = await self._store.get(_SRV, key)
        remembered = _read_srv(stored)
        now = self._clock.time()
        if stored is not None and remembered is not None and now < stored.fresh_until:
            return remembered
        try:
            return await self._srvs.do(key, lambda: self._ask_srv(service, hostname))
        except UnreachableError:
            # DNS failed, which is not an answer; the last answer is better than none.
            if stored is not None and remembered is not None and now < stored.usable_until:
                return remembered
            raise

    async def _ask_srv(self, service: str, hostname: str) -> SrvAnswer:
        answer = await self._lookups.srv(service, hostname)
        now = self._clock.time()
        fresh = now + (answer.fresh_until - now) * self._jitter()
        records = [[r.priority, r.weight, r.port, r.target] for r in answer.records]
        usable = answer.fresh_until + self._policy.remember_valid
        await self._store.put(_SRV, f"{service}.{hostname}", Stored(records, fresh, usable))
        return answer

    # --- Both -----------------------------------------------------------------------------------

    async def forget(self, name: ServerName) -> None:
        hosts = {name.host}
        stored = await self._store.get(_WELL_KNOWN, name.host)
        remembered = _read_well_known(stored)
        if remembered is not None and remembered.delegated is not None:
            # A failure stays: to forget it would be to ask for the file again at every attempt.
            hosts.add(remembered.delegated.host)
            await self._store.delete(_WELL_KNOWN, name.host)
        for host in hosts:
            for service in _SERVICES:
                await self._store.delete(_SRV, f"{service}.{host}")

    async def aclose(self) -> None:
        for task in tuple(self._refreshes):
            task.cancel()
        await asyncio.gather(*self._refreshes, return_exceptions=True)
        await self._well_knowns.aclose()
        await self._srvs.aclose()

    def _jitter(self) -> float:
        """A factor that keeps what was learned together from expiring together."""
        return 1 - self._policy.jitter * self._chance(1000) / 1000


def _read_well_known(stored: Stored | None) -> WellKnownAnswer | None:
    """What the store holds, if it is what we put there: a store is not believed blindly."""
    match stored:
        case Stored({"delegated": None, "reason": str(reason)}):
            return WellKnownAnswer(None, f"{reason} (remembered)", 0.0, stored.fresh_until)
        case Stored({"delegated": str(delegated)}):
            try:
                name = parse_server_name(delegated)
            except InviteError:
                return None
            return WellKnownAnswer(name, "remembered", 0.0, stored.fresh_until)
    return None


def _failures(stored: Stored | None) -> int:
    match stored:
        case Stored({"failures": int(failures)}):
            return max(0, failures)
    return 0


def _read_srv(stored: Stored | None) -> SrvAnswer | None:
    if stored is None or not isinstance(stored.value, list):
        return None
    records: list[SrvRecord] = []
    for entry in stored.value:
        match entry:
            case [int(priority), int(weight), int(port), str(target)]:
                records.append(SrvRecord(priority, weight, port, target))
            case _:
                return None
    return SrvAnswer(tuple(records), 0.0, stored.fresh_until)
