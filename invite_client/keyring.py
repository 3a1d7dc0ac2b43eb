"""Other servers' signing keys: stored, fetched once for all who ask, checked.

Server-Server API § Retrieving server keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from copy import copy
from typing import TypeVar

from invite_client.errors import InviteError
from invite_client.interfaces import AttemptLog, Clock, Resolver, Store, Stored, Transport
from invite_client.policy import Policy
from invite_client.single_flight import SingleFlight
from invite_client.spec.server_keys import (
    SERVER_KEYS_REQUEST,
    ServerKeys,
    check_server_keys,
    read_server_keys,
)
from invite_client.spec.server_names import ServerName

__all__ = ["FetchingKeyRing"]

_KIND = "keys"

K = TypeVar("K")
V = TypeVar("V")


class FetchingKeyRing:
    """Fetches keys from the servers themselves and keeps them in a store.

    What comes out of the store is checked again, signatures included: a store is a memory, not an
    authority.
    """

    def __init__(
        self, transport: Transport, resolver: Resolver, store: Store, policy: Policy, clock: Clock
    ) -> None:
        self._transport = transport
        self._resolver = resolver
        self._store = store
        self._policy = policy
        self._clock = clock
        self._fetches: SingleFlight[str, ServerKeys] = SingleFlight()
        # Time of, and reason for, failed fetches and fruitless refetches. Bounded, oldest out first.
        self._failures: OrderedDict[str, tuple[float, InviteError]] = OrderedDict()
        self._missed: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def prefetch(self, name: ServerName) -> None:
        """Obtain the keys of `name`, unless they are here. Run beside the request; never raises."""
        with suppress(InviteError):
            if await self._load(name) is None:
                # A failure here is not remembered: whoever really needs the keys tries once more.
                await self._fetches.do(str(name), lambda: self._fetch_now(name, []))

    async def verify_keys(
        self,
        name: ServerName,
        key_ids: Collection[str],
        valid_at: int | None,
        log: AttemptLog,
    ) -> ServerKeys:
        """Return the checked keys of `name`; see `interfaces.KeyRing.verify_keys`."""
        keys = await self._load(name)
        if keys is None:
            keys = await self._fetch(name, log)
            self._note_missing(name, keys, key_ids)
            return keys

        wanted = [
            key_id
            for key_id in key_ids
            if keys.verify_key(key_id, valid_at) is None and not self._was_missed(name, key_id)
        ]
        if not wanted:
            return keys
        # A key that the stored response lacks: the server may have made a new one since.
        try:
            keys = await self._fetch(name, log)
        except InviteError:
            if any(keys.verify_key(key_id, valid_at) for key_id in key_ids):
                return keys
            raise
        self._note_missing(name, keys, key_ids)
        return keys

    async def server_keys(self, name: ServerName) -> ServerKeys:
        """Return the checked keys of `name`, fetched now."""
        self._failures.pop(str(name), None)
        return await self._fetch(name, [])

    async def aclose(self) -> None:
        """End what runs in the background."""
        await self._fetches.aclose()

    async def _load(self, name: ServerName) -> ServerKeys | None:
        stored = await self._store.get(_KIND, str(name))
        if stored is None or stored.usable_until <= self._clock.time():
            return None
        try:
            keys = check_server_keys(
                stored.value["response"],
                str(name),
                fetched_at=_milliseconds(stored.value["fetched_at"]),
                maximum_validity=self._policy.keys.maximum_validity,
            )
        except (InviteError, LookupError, TypeError):
            await self._store.delete(_KIND, str(name))
            return None
        return keys if self._clock.time() * 1000 < keys.valid_until_ts else None

    async def _fetch(self, name: ServerName, log: AttemptLog) -> ServerKeys:
        failed = self._failures.get(str(name))
        if failed is not None:
            when, error = failed
            if self._clock.monotonic() - when < self._policy.keys.failure_memory:
                raise copy(error)
            del self._failures[str(name)]
        try:
            return await self._fetches.do(str(name), lambda: self._fetch_now(name, log))
        except InviteError as error:
            self._remember(self._failures, str(name), (self._clock.monotonic(), copy(error)))
            raise copy(error) from error

    async def _fetch_now(self, name: ServerName, log: AttemptLog) -> ServerKeys:
        server = await self._resolver.resolve(name)
        reply = await self._transport.exchange(
            server, SERVER_KEYS_REQUEST, limit=self._policy.limits.key_bytes, log=log
        )
        keys = read_server_keys(
            reply,
            str(name),
            fetched_at=int(self._clock.time() * 1000),
            maximum_validity=self._policy.keys.maximum_validity,
        )
        until = keys.valid_until_ts / 1000
        await self._store.put(
            _KIND,
            str(name),
            Stored({"response": dict(keys.response), "fetched_at": keys.fetched_at}, until, until),
        )
        return keys

    def _note_missing(self, name: ServerName, keys: ServerKeys, key_ids: Collection[str]) -> None:
        # A policy server's key is never published: without this memory every invite to its server
        # would fetch all keys again.
        for key_id in key_ids:
            if key_id not in keys.keys:
                self._remember(self._missed, (str(name), key_id), self._clock.monotonic())

    def _was_missed(self, name: ServerName, key_id: str) -> bool:
        when = self._missed.get((str(name), key_id))
        memory = self._policy.keys.failure_memory
        return when is not None and self._clock.monotonic() - when < memory

    def _remember(self, memory: OrderedDict[K, V], key: K, value: V) -> None:
        memory[key] = value
        memory.move_to_end(key)
        while len(memory) > self._policy.limits.cached_servers:
            memory.popitem(last=False)


def _milliseconds(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    return value
