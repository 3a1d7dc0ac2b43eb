"""Other servers' signing keys: stored, fetched once for all who ask, checked.

Server-Server API § Retrieving server keys.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from invite_client.errors import (
    Attempt,
    InviteError,
    MalformedReplyError,
    Stage,
    UnreachableError,
)
from invite_client.interfaces import AttemptLog, Clock, Resolver, Store, Stored, Transport
from invite_client.policy import Notary, Policy
from invite_client.single_flight import SingleFlight
from invite_client.spec import canonical_json
from invite_client.spec.server_keys import (
    SERVER_KEYS_REQUEST,
    ServerKeys,
    check_server_keys,
    notary_request,
    read_notary_reply,
    read_server_keys,
)
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.signatures import VerifyKey

__all__ = ["FetchingKeyRing"]

_KIND = "keys"
_NAMED_KEYS = 100
"""Key IDs of one server that are looked for, named to a notary and remembered as not found, at most.
It has one or two; one that claims to have signed with very many must not make us send each notary
megabytes, or remember nothing but its own."""
_NAMED_KEY_LENGTH = 255
"""Characters of a key ID that is looked for, as of any other ID; most have some ten."""
_HEAVY = 16 * 1024
"""Bytes that keys may cost, about, to be kept like any others: some fifty old keys. Most cost one or
two thousand. A server may publish 256 KiB of empty lists, which cost 5 MiB: with as many servers as
are kept, that would be all memory there is."""
_HEAVY_SERVERS = 20
"""Servers whose keys cost more that are kept, in memory only."""
_OBJECT = 64
"""Bytes that Python needs for a small object, about."""

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What a fetch brought, for all who waited for it."""

    keys: ServerKeys
    attempts: tuple[Attempt, ...]


class FetchingKeyRing:
    """Fetches keys from the servers themselves and keeps them in a store.

    What comes out of the store is checked again, signatures included: a store is a memory, not an
    authority. What has been checked once is kept at hand.
    """

    def __init__(
        self, transport: Transport, resolver: Resolver, store: Store, policy: Policy, clock: Clock
    ) -> None:
        """Fetch nothing yet. Raises `InvalidInviteError` or `ValueError` for a malformed notary."""
        self._transport = transport
        self._resolver = resolver
        self._store = store
        self._policy = policy
        self._clock = clock
        self._fetches: SingleFlight[str, _Fetched] = SingleFlight()
        self._notaries = [_read_notary(notary) for notary in policy.keys.notaries]
        # All are bounded, oldest out first. Times are those of the monotonic clock: of the last
        # fetch; of one that failed; of those that did not bring certain keys, by their IDs.
        self._checked: OrderedDict[str, ServerKeys] = OrderedDict()
        self._heavy: OrderedDict[str, None] = OrderedDict()
        self._fetched: OrderedDict[str, float] = OrderedDict()
        self._failed: OrderedDict[str, tuple[float, InviteError]] = OrderedDict()
        self._missed: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()
        # By server, the key IDs of each caller that waits for a fetch.
        self._wanted: dict[str, list[tuple[str, ...]]] = {}
        self._is_closed = False

    def are_at_hand(self, name: ServerName) -> bool:
        """Whether `prefetch` would find nothing to do, as far as can be known without asking."""
        keys = self._checked.get(str(name))
        return keys is not None and not self._is_outdated(keys)

    async def prefetch(self, name: ServerName) -> None:
        """Obtain the keys of `name`, unless they are here. Run beside the request; never raises."""
        with suppress(InviteError):
            keys = await self._load(name)
            if (keys is None or self._is_outdated(keys)) and self._failure(name) is None:
                # A failure here is not remembered: whoever really needs the keys tries once more.
                await self._fetches.do(str(name), lambda: self._fetch_now(name))

    async def verify_keys(
        self,
        name: ServerName,
        key_ids: Collection[str],
        valid_at: int | None,
        log: AttemptLog,
    ) -> ServerKeys:
        """Return the checked keys of `name`; see `interfaces.KeyRing.verify_keys`."""
        keys = await self._load(name)
        if keys is not None and not self._is_outdated(keys):
            missing = _missing(keys, key_ids, valid_at)
            if not missing or self._were_missed(name, missing):
                return keys
        # None yet, or past their time, or the server may have made a new one since.
        try:
            if str(name) in self._fetches:
                # What is under way began before the keys were seen: they may be newer still, and a
                # notary that was not asked for them has perhaps not asked the server.
                joined = await self._join(name, key_ids, log)
                if joined is not None and not _missing(joined, key_ids, valid_at):
                    return joined
                keys = joined or keys
            fetched = await self._fetch(name, key_ids, log)
        except InviteError:
            # Old keys still verify what was signed while they were valid.
            if (
                keys is not None
                and self._now() < self._usable_until(keys) * 1000
                and any(keys.verify_key(key_id, valid_at) for key_id in key_ids)
            ):
                return keys
            raise
        # A policy server's key is never published: without this memory every invite to its server
        # would fetch all keys again.
        missing = _missing(fetched, key_ids, valid_at)
        if missing:
            self._note_missed(name, missing)
        return fetched

    async def server_keys(self, name: ServerName) -> ServerKeys:
        """Return the checked keys of `name`, fetched now."""
        self._failed.pop(str(name), None)
        return await self._fetch(name, (), [])

    async def aclose(self) -> None:
        """End what runs in the background."""
        self._is_closed = True
        await self._fetches.aclose()

    # --- Memory ---------------------------------------------------------------------------------

    async def _load(self, name: ServerName) -> ServerKeys | None:
        keys = self._checked.get(str(name))
        if keys is not None:
            return keys
        stored = await self._store.get(_KIND, str(name))
        if str(name) in self._checked:
            return self._checked[str(name)]  # fetched meanwhile
        # Kept until the end of the responses' validity, and as long again: see `_usable_until`.
        longest = 2 * self._policy.keys.maximum_validity
        if stored is None or not stored.is_usable(self._clock.time(), longest):
            return None
        try:
            keys = check_server_keys(
                stored.value["response"],
                str(name),
                fetched_at=self._past(stored.value["fetched_at"]),
                maximum_validity=self._policy.keys.maximum_validity,
            )
        except (InviteError, LookupError, TypeError, ValueError, RecursionError):
            await self._store.delete(_KIND, str(name))
            return None
        self._keep(keys, is_heavy=_is_heavy(keys))
        return keys

    def _usable_until(self, keys: ServerKeys) -> float:
        """Seconds since the epoch until which old keys are of use: until their time, and once more.

        In room versions 1 to 4, which ignore validity, a key would else be good for ever.
        """
        return keys.valid_until_ts / 1000 + self._policy.keys.maximum_validity

    def _keep(self, keys: ServerKeys, *, is_heavy: bool) -> None:
        self._remember(self._checked, keys.server_name, keys)
        self._heavy.pop(keys.server_name, None)
        if is_heavy:
            self._heavy[keys.server_name] = None
            if len(self._heavy) > _HEAVY_SERVERS:
                self._checked.pop(self._heavy.popitem(last=False)[0], None)

    def _past(self, milliseconds: object) -> int:
        """When something was fetched: a time in the future would make it valid for longer."""
        if type(milliseconds) is not int or milliseconds > self._now():
            raise ValueError
        return milliseconds

    def _is_outdated(self, keys: ServerKeys) -> bool:
        """Whether the keys are past their time; also if the clock went back since their fetch."""
        if keys.fetched_at <= self._now() < keys.valid_until_ts:
            return False
        # A server with a wrong clock publishes what is past already: no use in asking on and on.
        return not self._is_recent(self._fetched.get(keys.server_name))

    def _failure(self, name: ServerName) -> InviteError | None:
        """The failure of a recent fetch, for one more caller."""
        when, error = self._failed.get(str(name), (None, None))
        if when is None or error is None or not self._is_recent(when):
            return None
        error = copy(error)
        wait = max(self._policy.keys.failure_memory, error.retry_after or 0.0)
        error.retry_after = when + wait - self._clock.monotonic()
        return error

    def _is_recent(self, when: float | None) -> bool:
        memory = self._policy.keys.failure_memory
        return when is not None and self._clock.monotonic() - when < memory

    def _were_missed(self, name: ServerName, key_ids: Collection[str]) -> bool:
        """Whether a recent fetch did not bring any of these, as far as they are looked for."""
        missed: Mapping[str, float] = self._missed.get(str(name), {})
        return all(self._is_recent(missed.get(key_id)) for key_id in _looked_for(key_ids))

    def _note_missed(self, name: ServerName, key_ids: Collection[str]) -> None:
        missed = self._missed.get(str(name), OrderedDict())
        for key_id in _looked_for(key_ids):
            _remember(missed, key_id, self._clock.monotonic(), _NAMED_KEYS)
        self._remember(self._missed, str(name), missed)

    def _remember(self, memory: OrderedDict[str, V], name: str, value: V) -> None:
        _remember(memory, name, value, self._policy.limits.cached_servers)

    # --- Fetching -------------------------------------------------------------------------------

    async def _fetch(
        self, name: ServerName, key_ids: Collection[str], log: AttemptLog
    ) -> ServerKeys:
        try:
            return await self._fetch_once(name, key_ids, log)
        except InviteError as error:
            if self._failure(name) is None:
                self._remember(self._failed, str(name), (self._clock.monotonic(), copy(error)))
            raise

    async def _join(
        self, name: ServerName, key_ids: Collection[str], log: AttemptLog
    ) -> ServerKeys | None:
        """Wait for the fetch that is under way; None if it failed and another one may not."""
        if not self._notaries or not key_ids:
            return await self._fetch(name, key_ids, log)
        try:
            return await self._fetch_once(name, key_ids, log)
        except InviteError:
            if self._is_closed:
                raise
            return None

    async def _fetch_once(
        self, name: ServerName, key_ids: Collection[str], log: AttemptLog
    ) -> ServerKeys:
        failure = self._failure(name)
        if failure is not None:
            raise failure
        wanted, ours = self._wanted.setdefault(str(name), []), tuple(key_ids)
        wanted.append(ours)
        try:
            fetched = await self._fetches.do(str(name), lambda: self._fetch_now(name))
        except InviteError as error:
            # The attempts of one fetch belong to all who waited for it.
            _append(log, error.attempts)
            raise
        finally:
            wanted.remove(ours)
            if not wanted:
                del self._wanted[str(name)]
        _append(log, fetched.attempts)
        return fetched.keys

    def _key_ids(self, name: ServerName) -> list[str]:
        """The keys that somebody waits for now: a prefetch does not know them when it begins."""
        wanted = self._wanted.get(str(name), ())
        return _looked_for(dict.fromkeys(key_id for key_ids in wanted for key_id in key_ids))

    async def _fetch_now(self, name: ServerName) -> _Fetched:
        log: list[Attempt] = []
        try:
            keys = await self._hedged(name, log)
        except InviteError as error:
            error.attempts = tuple(log)
            raise
        value = {"response": dict(keys.response), "fetched_at": keys.fetched_at}
        stored = Stored(value, keys.valid_until_ts / 1000, self._usable_until(keys))
        is_heavy = _is_heavy(keys)
        if is_heavy:
            await self._store.delete(_KIND, str(name))  # which are older
        else:
            await self._store.put(_KIND, str(name), stored)
        # Only now: whoever has the keys may leave, and end this while the store is still at work.
        self._keep(keys, is_heavy=is_heavy)
        self._remember(self._fetched, str(name), self._clock.monotonic())
        return _Fetched(keys, tuple(log))

    async def _hedged(self, name: ServerName, log: AttemptLog) -> ServerKeys:
        """Ask the server; if it fails or is slow, ask the notaries too.

        The first good answer wins: any by the server itself, and one by a notary if it is valid now
        and has the keys that are wanted. What else the notaries know is better than nothing.
        """
        if not self._notaries:
            return await self._ask_server(name, log)
        own = asyncio.create_task(self._ask_server(name, log))
        asked: set[asyncio.Task[ServerKeys]] = {own}
        try:
            await asyncio.wait(asked, timeout=self._policy.keys.hedge_after)
            if not own.done() or own.exception() is not None:
                asked |= {
                    asyncio.create_task(self._ask_notary(name, notary, pinned, log))
                    for notary, pinned in self._notaries
                }
            second_best: list[ServerKeys] = []
            waiting = asked
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task is not own):
                    with suppress(InviteError):
                        keys = task.result()
                        if task is own or self._satisfies(keys, self._key_ids(name)):
                            return keys
                        second_best.append(keys)
            if second_best:
                return max(second_best, key=_published_until)
            # Everybody failed. What the server itself has to say of it says most.
            return own.result()
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def _satisfies(self, keys: ServerKeys, key_ids: Collection[str]) -> bool:
        return keys.valid_until_ts > self._now() and all(key_id in keys.keys for key_id in key_ids)

    async def _ask_server(self, name: ServerName, log: AttemptLog) -> ServerKeys:
        server = await self._resolver.resolve(name)
        try:
            reply = await self._transport.exchange(
                server, SERVER_KEYS_REQUEST, limit=self._policy.limits.key_bytes, log=log
            )
            return read_server_keys(
                reply,
                str(name),
                fetched_at=self._now(),
                maximum_validity=self._policy.keys.maximum_validity,
            )
        except (UnreachableError, MalformedReplyError):
            # What was remembered led nowhere, or not to a homeserver.
            await self._resolver.forget(name)
            raise

    async def _ask_notary(
        self,
        name: ServerName,
        notary: ServerName,
        pinned: Collection[VerifyKey],
        log: AttemptLog,
    ) -> ServerKeys:
        server = await self._resolver.resolve(notary)
        named = self._key_ids(name)
        request = notary_request(str(name), named, minimum_valid_until=self._now())
        reply = await self._transport.exchange(
            server, request, limit=self._policy.limits.key_bytes, log=log
        )
        keys = read_notary_reply(
            reply,
            str(name),
            notary=str(notary),
            notary_keys=pinned,
            fetched_at=self._now(),
            maximum_validity=self._policy.keys.maximum_validity,
        )
        known = await self._load(name)
        if known is not None and _published_until(keys) < _published_until(known):
            # What a server has withdrawn since must not come back by way of a notary.
            raise MalformedReplyError(
                f"the notary {notary} knows only older keys", stage=Stage.KEYS
            )
        return keys

    def _now(self) -> int:
        return int(self._clock.time() * 1000)


def _missing(keys: ServerKeys, key_ids: Collection[str], valid_at: int | None) -> list[str]:
    return [key_id for key_id in key_ids if keys.verify_key(key_id, valid_at) is None]


def _is_heavy(keys: ServerKeys) -> bool:
    """Whether it costs much memory to keep these keys, with the response that they come from."""
    try:
        text = canonical_json.encode(dict(keys.response), checked=True)
    except (RecursionError, TypeError, ValueError):
        return True  # what is not signed has not been looked at
    objects = sum(map(text.count, (b",", b"[", b"{")))
    return len(text) + _OBJECT * objects > _HEAVY


def _looked_for(key_ids: Iterable[str]) -> list[str]:
    """Of the key IDs that a server claims to have signed with, those that it may have."""
    likely = (key_id for key_id in key_ids if len(key_id) <= _NAMED_KEY_LENGTH)
    return list(islice(likely, _NAMED_KEYS))


def _remember(memory: OrderedDict[str, V], key: str, value: V, most: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > most:
        memory.popitem(last=False)


def _published_until(keys: ServerKeys) -> int:
    """The `valid_until_ts` that the server itself has signed: a newer response has a later one."""
    return int(keys.response["valid_until_ts"])


def _append(log: AttemptLog, attempts: Collection[Attempt]) -> None:
    for attempt in attempts:
        log.append(attempt)


def _read_notary(notary: Notary) -> tuple[ServerName, list[VerifyKey]]:
    pinned = [VerifyKey.from_base64(key_id, text) for key_id, text in notary.verify_keys.items()]
    return parse_server_name(notary.server_name), pinned
