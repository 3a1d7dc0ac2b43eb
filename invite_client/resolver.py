"""Resolved servers: remembered, shared between callers, discovered, looked up ahead.

What is remembered are the answers to the two questions of the discovery, each with its own times.
The walk over them (`spec.discovery.discover`) costs nothing and is done anew for every caller, so
precedence is never cached; only where it would be taken over the very same answers, it is left out.
And while an answer is on its way, what is needed if it turns out to say "no" is looked up already:
by the same walk, on that assumption. For who is about to send, even the connection is opened.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from itertools import count
from typing import Any, Protocol, Self, TypeAlias

from invite_client.errors import InviteError, UnreachableError
from invite_client.interfaces import Clock, Lookups, Store, Stored
from invite_client.policy import CachePolicy
from invite_client.single_flight import SingleFlight
from invite_client.spec.discovery import (
    SERVICES,
    ResolvedServer,
    SrvAnswer,
    TraceStep,
    WellKnownAnswer,
    discover,
)
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.srv import SrvRecord
from invite_client.spec.well_known import failure_lifetime

__all__ = ["Addresses", "CachingResolver", "Connections", "Opening", "about_to_send"]

_WELL_KNOWN, _SRV = "well-known", "srv"
_FIRST_SERVICE, _SECOND_SERVICE = SERVICES


def _draw(most: int) -> int:
    return random.randint(0, most)  # noqa: S311  # shares of load, no secret


class Addresses(Protocol):
    """Who remembers the addresses of hosts for the connections: `net.dns.Dns`."""

    async def addresses(self, hostname: str) -> object:
        """Look up the addresses of a host once for all who ask, unless they are known.

        Raises `OSError`.
        """
        ...

    def forget(self, hostname: str) -> None:
        """Look them up anew, the next time."""
        ...


class Opening(Protocol):
    """A connection that is on its way: `net.ahead.Opening`."""

    async def give_up(self) -> None:
        """Close it, unless a request has taken it."""
        ...


class Connections(Protocol):
    """Who opens connections ahead of the requests: `net.http.HttpTransport`."""

    def open_ahead(self, server: ResolvedServer) -> Opening | None:
        """Begin to connect to the first target, if it pays. Sends nothing, fails for nobody.

        The next request there takes the connection over, as far as it has come. One that is
        neither taken nor given up is closed after a while.
        """
        ...


_MOST_RESTED = 1000
"""Walks that are remembered: a busy server's peers; one costs about two kilobytes."""
_MOST_RECORDS = 1000
"""SRV records that are read out of a store: to put them in order takes time that grows with the
square of their number, 0.1 s by then. Far fewer are put there (`dns.records`)."""

_Answer: TypeAlias = tuple[str, str, Stored | None]
"""What the store had, fresh, for a kind and a key; None if it had nothing."""

_sends_in_haste: ContextVar[Callable[[], bool] | None] = ContextVar("_sends_in_haste", default=None)


class about_to_send:  # noqa: N801  # it reads like a function
    """Tells the resolver that what is resolved in this block is sent a request at once.

    Key rings resolve too, and have it from the context: their Protocol is no place for this.
    """

    def __init__(self, in_haste: Callable[[], bool]) -> None:
        """`in_haste`: whether round trips are felt. While not, nothing is done that may be in vain."""
        self._in_haste = in_haste

    def __enter__(self) -> None:
        self._token = _sends_in_haste.set(self._in_haste)

    def __exit__(self, *_: object) -> None:
        _sends_in_haste.reset(self._token)


@dataclass(frozen=True, slots=True)
class _Rested:
    """A walk that had to ask nobody, and the answers that it rests on."""

    server: ResolvedServer
    answers: tuple[_Answer, ...]


class CachingResolver:
    """The `interfaces.Resolver` of real use."""

    def __init__(
        self,
        lookups: Lookups,
        store: Store,
        policy: CachePolicy,
        clock: Clock,
        *,
        chance: Callable[[int], int] = _draw,
        addresses: Addresses | None = None,
        connections: Connections | None = None,
    ) -> None:
        """Look nothing up yet.

        `addresses`, where given, are looked up ahead too, and forgotten with the rest;
        `connections` are opened ahead for who is `about_to_send`.
        """
        self._remembered = _RememberedLookups(lookups, store, policy, clock, chance)
        self._addresses = addresses
        self._connections = connections
        self._chance = chance
        self._rested: OrderedDict[str, _Rested] = OrderedDict()

    async def resolve(
        self, name: ServerName, trace: list[TraceStep] | None = None
    ) -> ResolvedServer:
        """Return where to connect; see `interfaces.Resolver.resolve`.

        Steps that are taken are also added to `trace`, for a caller that gives up waiting.
        """
        # The same answers lead to the same server, unless a weight decides.
        rested = self._rested.get(str(name))
        if rested is not None and await self._remembered.still_has(rested.answers):
            if trace is not None:
                trace += rested.server.trace
            return rested.server

        draws = _Draws(self._chance)
        async with _LookingAhead(
            self._remembered, self._addresses, self._connections, draws, _sends_in_haste.get()
        ) as lookups:
            server = await discover(name, lookups, draws.again(), trace)
            await lookups.settle(server)
        asked_nobody = all(stored is not None for _, _, stored in lookups.answers)
        if asked_nobody and len(server.targets) == 1:
            self._rested[str(name)] = _Rested(server, tuple(lookups.answers))
            if len(self._rested) > _MOST_RESTED:
                self._rested.popitem(last=False)
        return server

    async def forget(self, name: ServerName) -> None:
        """Look everything up anew the next time: connecting by what is remembered failed."""
        hosts = await self._remembered.forget(name)
        if self._addresses is not None:
            for host in hosts:
                self._addresses.forget(host)

    async def aclose(self) -> None:
        """End what runs in the background."""
        await self._remembered.aclose()


class _LookingAhead:
    """The look-ups of one `resolve`: while an answer is awaited, the next question is asked already.

    All that is learned is remembered, and whoever needs it joins in; so that nothing is looked up
    twice, and nothing is decided but by the walk itself.
    """

    def __init__(
        self,
        remembered: _RememberedLookups,
        addresses: Addresses | None,
        connections: Connections | None,
        draws: _Draws,
        in_haste: Callable[[], bool] | None,
    ) -> None:
        """`in_haste` is None if nothing is about to be sent."""
        self._remembered = remembered
        self._addresses = addresses
        self._connections = connections
        self._draws = draws
        self._in_haste = in_haste
        self._guess: asyncio.Task[None] | None = None
        self._guessed: ResolvedServer | None = None
        self._opening: Opening | None = None
        self._found: ResolvedServer | None = None
        self._ahead: list[asyncio.Task[None]] = []
        self._guess_is_right = False
        self.answers: list[_Answer] = []
        """What the walk rests on."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        begun = [*self._ahead, *filter(None, [self._guess])]
        if not begun:  # mostly, everything is known
            return
        try:
            await _end(begun)
            if self._found and self._guessed and _is_same_way(self._found, self._guessed):
                self._opening = None  # it is the request's
        finally:
            await self._give_up_opening()

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        answer = await self._remembered.well_known(
            hostname, self.answers, lambda: self._begin_guess(hostname)
        )
        self._guess_is_right = answer.delegated is None
        if not self._guess_is_right:
            self._connections = None
            await self._give_up_opening()
        return answer

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        def meanwhile() -> None:
            if service == _FIRST_SERVICE:
                ask_second = partial(self._remembered.srv, _SECOND_SERVICE, hostname, [])
                self._ahead.append(asyncio.create_task(_quietly(ask_second)))

        return await self._remembered.srv(service, hostname, self.answers, meanwhile)

    async def settle(self, server: ResolvedServer) -> None:
        """Let a guess that is right find the addresses that a connection needs next."""
        if self._guess is not None and self._guess_is_right and not self._guess.done():
            await _quietly(partial(self._look_up_addresses, server))
        self._found = server

    def _begin_guess(self, hostname: str) -> None:
        if self._in_haste is not None and not self._in_haste():
            return
        self._guess = asyncio.create_task(_quietly(partial(self._follow_guess, hostname)))

    async def _follow_guess(self, hostname: str) -> None:
        """Walk on the assumption that there is no well-known file."""
        await asyncio.sleep(0)  # the file, which all waits for, is asked for first
        name = parse_server_name(hostname)
        server = await discover(name, _NoWellKnown(self), self._draws.again())
        await self._look_up_addresses(server)
        # Asked once more: others may have begun meanwhile.
        if self._connections is not None and self._in_haste is not None and self._in_haste():
            self._guessed = server
            self._opening = self._connections.open_ahead(server)

    async def _give_up_opening(self) -> None:
        opening, self._opening = self._opening, None
        if opening is not None:
            await opening.give_up()

    async def _look_up_addresses(self, server: ResolvedServer) -> None:
        target = server.targets[0].host
        if self._addresses is not None and not _is_literal(target):
            await self._addresses.addresses(target)


class _Draws:
    """Chance that is the same for the guess and for the walk: both are to choose one target."""

    def __init__(self, chance: Callable[[int], int]) -> None:
        self._chance = chance
        self._drawn: dict[tuple[int, int], int] = {}

    def again(self) -> Callable[[int], int]:
        """Return what draws, from the first draw on, what was drawn before."""
        numbers = count()

        def draw(most: int) -> int:
            drawing = next(numbers), most  # the same records ask for the same
            if drawing not in self._drawn:
                self._drawn[drawing] = self._chance(most)
            return self._drawn[drawing]

        return draw


class _NoWellKnown:
    """Look-ups on the assumption that there is no well-known file."""

    def __init__(self, lookups: _LookingAhead) -> None:
        self.srv = lookups.srv

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        return WellKnownAnswer(None, f"{hostname} is assumed to have none")


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
        self._refreshes: dict[str, asyncio.Task[None]] = {}

    # --- .well-known ----------------------------------------------------------------------------

    async def still_has(self, answers: Iterable[_Answer]) -> bool:
        """Whether the store has these answers as before, and they are fresh."""
        now = self._clock.time()
        for kind, key, before in answers:
            stored = await self._store.get(kind, key)
            if stored is None or not (stored is before or stored == before):
                return False
            if not self._is_fresh(stored, now):
                return False
        return True

    async def well_known(
        self, hostname: str, answers: list[_Answer], meanwhile: Callable[[], None]
    ) -> WellKnownAnswer:
        """Return the answer; call `meanwhile` before waiting for one that is not known at all."""
        stored = await self._store.get(_WELL_KNOWN, hostname)
        remembered = _read_well_known(stored)
        now = self._clock.time()
        if stored is not None and remembered is not None:
            if self._is_fresh(stored, now):
                answers.append((_WELL_KNOWN, hostname, stored))
                return remembered
            if (
                remembered.delegated is not None
                and self._is_fresh(stored, now - self._policy.stale)
                and self._is_usable(stored, now)
            ):
                self._refresh(hostname, stored)
                answers.append((_WELL_KNOWN, hostname, None))
                return remembered
        if remembered is None or remembered.delegated is None:
            meanwhile()
        answers.append((_WELL_KNOWN, hostname, None))
        ask = partial(self._ask_well_known, hostname, stored)
        return await self._well_knowns.do(hostname, ask)

    async def _ask_well_known(self, hostname: str, before: Stored | None) -> WellKnownAnswer:
        remembered = _read_well_known(before)
        answer = await self._lookups.well_known(hostname)
        now = self._clock.time()
        if answer.delegated is not None:
            value = {"delegated": str(answer.delegated), "reason": "", "failures": 0}
            fresh = now + self._lifetime(answer.fresh_until - now)
            usable = fresh + self._policy.remember_valid
            await self._store.put(_WELL_KNOWN, hostname, Stored(value, fresh, usable))
            return answer

        # "Servers are encouraged to exponentially back off for repeated failures."
        still_usable = before is not None and self._is_usable(before, now)
        failures = 1 + (_failures(before) if still_usable else 0)
        fresh = now + failure_lifetime(failures, self._policy) * self._jitter()
        usable = fresh + self._policy.failure_maximum
        delegated = None
        if before and remembered and remembered.delegated and still_usable and not answer.absent:
            # It was valid recently: a web server that restarts must not send federation elsewhere.
            delegated = remembered.delegated
            usable = before.usable_until
            fresh = min(fresh, usable)
            answer = WellKnownAnswer(delegated, answer.reason, answer.seconds, fresh)
        value = {
            "delegated": None if delegated is None else str(delegated),
            "reason": answer.reason,
            "failures": failures,
        }
        await self._store.put(_WELL_KNOWN, hostname, Stored(value, fresh, usable))
        return answer

    def _refresh(self, hostname: str, stored: Stored) -> None:
        """Ask again in the background, unless that is under way."""
        if hostname not in self._refreshes:
            ask = partial(self._ask_well_known, hostname, stored)
            task = asyncio.create_task(_quietly(lambda: self._well_knowns.do(hostname, ask)))
            self._refreshes[hostname] = task
            task.add_done_callback(lambda _: self._refreshes.pop(hostname))

    # --- SRV ------------------------------------------------------------------------------------

    async def srv(
        self,
        service: str,
        hostname: str,
        answers: list[_Answer],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> SrvAnswer:
        """Return the answer; call `meanwhile` before waiting for one."""
        key = f"{service}.{hostname}"
        stored = await self._store.get(_SRV, key)
        remembered = _read_srv(stored)
        if stored is not None and self._is_fresh(stored, self._clock.time()) and remembered:
            answers.append((_SRV, key, stored))
            return remembered
        answers.append((_SRV, key, None))
        meanwhile()
        try:
            return await self._srvs.do(key, lambda: self._ask_srv(service, hostname))
        except UnreachableError:
            # DNS failed, which is not an answer; the last answer is better than none.
            if stored is not None and self._is_usable(stored, self._clock.time()) and remembered:
                return remembered
            raise

    async def _ask_srv(self, service: str, hostname: str) -> SrvAnswer:
        answer = await self._lookups.srv(service, hostname)
        now = self._clock.time()
        records = [[r.priority, r.weight, r.port, r.target] for r in answer.records]
        fresh = now + self._lifetime(answer.fresh_until - now)
        usable = fresh + self._policy.remember_valid
        await self._store.put(_SRV, f"{service}.{hostname}", Stored(records, fresh, usable))
        return answer

    # --- Both -----------------------------------------------------------------------------------

    async def forget(self, name: ServerName) -> set[str]:
        """Let what is remembered of `name` be fresh no longer; return the hosts that it led to.

        It may still serve as a last resort.
        """
        hosts = {name.host}
        if name.ip is None and name.port is None:
            stored = await self._store.get(_WELL_KNOWN, name.host)
            remembered = _read_well_known(stored)
            if stored is not None and remembered is not None and remembered.delegated is not None:
                hosts.add(remembered.delegated.host)
                # A failure keeps its time: else each attempt would ask for the file again.
                if not _failures(stored):
                    await self._expire(_WELL_KNOWN, name.host, stored)
        for host in tuple(hosts):
            for service in SERVICES:
                key = f"{service}.{host}"
                stored = await self._store.get(_SRV, key)
                srv = _read_srv(stored)
                if stored is not None and srv is not None:
                    hosts |= {record.target.lower() for record in srv.records}
                    await self._expire(_SRV, key, stored)
        return hosts

    async def _expire(self, kind: str, key: str, stored: Stored) -> None:
        await self._store.put(kind, key, Stored(stored.value, 0.0, stored.usable_until))

    async def aclose(self) -> None:
        await _end(self._refreshes.values())
        await self._well_knowns.aclose()
        await self._srvs.aclose()

    # --- Times ----------------------------------------------------------------------------------

    def _is_fresh(self, stored: Stored, now: float) -> bool:
        return stored.is_fresh(now, self._policy.maximum)

    def _is_usable(self, stored: Stored, now: float) -> bool:
        return stored.is_usable(now, self._policy.maximum + self._policy.remember_valid)

    def _lifetime(self, asked: float) -> float:
        """How long an answer is kept, whatever whoever brought it says."""
        return min(asked, self._policy.maximum) * self._jitter()

    def _jitter(self) -> float:
        """A factor that keeps what was learned together from expiring together."""
        return 1 - self._policy.jitter * self._chance(1000) / 1000


async def _quietly(ask: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Ask what nobody waits for yet: it fails for nobody."""
    with suppress(InviteError, OSError):
        await ask()


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    ending = [task for task in tasks if task.cancel()]
    if ending:  # not those that have ended by themselves
        await asyncio.gather(*ending, return_exceptions=True)


def _is_same_way(server: ResolvedServer, guessed: ResolvedServer) -> bool:
    """Whether a request to `server` goes by the connection to the one that was guessed."""
    return (server.targets[0], server.tls_name) == (guessed.targets[0], guessed.tls_name)


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


# --- What the store holds, if it is what we put there: a store is not believed blindly ------------


def _read_well_known(stored: Stored | None) -> WellKnownAnswer | None:
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
    if len(stored.value) > _MOST_RECORDS:
        return None
    records: list[SrvRecord] = []
    for entry in stored.value:
        match entry:
            case [int(priority), int(weight), int(port), str(target)] if all(
                0 <= number <= 0xFFFF for number in (priority, weight, port)
            ):
                records.append(SrvRecord(priority, weight, port, target))
            case _:
                return None
    return SrvAnswer(tuple(records), 0.0, stored.fresh_until)
