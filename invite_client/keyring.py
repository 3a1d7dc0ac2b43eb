"""Other servers' signing keys: stored, fetched once for all who ask, checked.

Server-Server API § Retrieving server keys.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from contextlib import suppress
from copy import copy
from typing import TypeVar

from invite_client.errors import InviteError
from invite_client.interfaces import AttemptLog, Clock, Resolver, Store, Stored, Transport
from invite_client.policy import Notary, Policy
from invite_client.single_flight import SingleFlight
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

K = TypeVar("K")
V = TypeVar("V")


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
        self._fetches: SingleFlight[str, ServerKeys] = SingleFlight()
        self._notaries = [_read_notary(notary) for notary in policy.keys.notaries]
        # All three are bounded, oldest out first: checked keys; failed fetches, with their time;
        # key IDs that a fetch has not brought, with its time.
        self._checked: OrderedDict[str, ServerKeys] = OrderedDict()
        self._failures: OrderedDict[str, tuple[float, InviteError]] = OrderedDict()
        self._missed: OrderedDict[tuple[str, str], float] = OrderedDict()

    async def prefetch(self, name: ServerName) -> None:
        """Obtain the keys of `name`, unless they are here. Run beside the request; never raises."""
        with suppress(InviteError):
            keys = await self._load(name)
            if keys is None or self._is_stale(keys):
                # A failure here is not remembered: whoever really needs the keys tries once more.
                await self._fetches.do(str(name), lambda: self._fetch_now(name, (), []))

    async def verify_keys(
        self,
        name: ServerName,
        key_ids: Collection[str],
        valid_at: int | None,
        log: AttemptLog,
    ) -> ServerKeys:
        """Return the checked keys of `name`; see `interfaces.KeyRing.verify_keys`."""
        keys = await self._load(name)
        if keys is not None and not self._is_stale(keys):
            wanted = [
                key_id
                for key_id in key_ids
                if keys.verify_key(key_id, valid_at) is None and not self._was_missed(name, key_id)
            ]
            if not wanted:
                return keys
        # None yet, or past their time, or the server may have made a new one since.
        try:
            fetched = await self._fetch(name, key_ids, log)
        except InviteError:
            # Old keys still verify what was signed while they were valid.
            if keys is not None and any(keys.verify_key(key_id, valid_at) for key_id in key_ids):
                return keys
            raise
        # A policy server's key is never published: without this memory every invite to its server
        # would fetch all keys again.
        for key_id in key_ids:
            if key_id not in fetched.keys:
                self._remember(self._missed, (str(name), key_id), self._clock.monotonic())
        return fetched

    async def server_keys(self, name: ServerName) -> ServerKeys:
        """Return the checked keys of `name`, fetched now."""
        self._failures.pop(str(name), None)
        return await self._fetch(name, (), [])

    async def aclose(self) -> None:
        """End what runs in the background."""
        await self._fetches.aclose()

    # --- Memory ---------------------------------------------------------------------------------

    async def _load(self, name: ServerName) -> ServerKeys | None:
        keys = self._checked.get(str(name))
        if keys is not None:
            return keys
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
        self._remember(self._checked, str(name), keys)
        return keys

    def _is_stale(self, keys: ServerKeys) -> bool:
        return keys.valid_until_ts <= self._clock.time() * 1000

    def _was_missed(self, name: ServerName, key_id: str) -> bool:
        when = self._missed.get((str(name), key_id))
        memory = self._policy.keys.failure_memory
        return when is not None and self._clock.monotonic() - when < memory

    def _remember(self, memory: OrderedDict[K, V], key: K, value: V) -> None:
        memory[key] = value
        memory.move_to_end(key)
        while len(memory) > self._policy.limits.cached_servers:
            memory.popitem(last=False)

    # --- Fetching -------------------------------------------------------------------------------

    async def _fetch(
        self, name: ServerName, key_ids: Collection[str], log: AttemptLog
    ) -> ServerKeys:
        failed = self._failures.get(str(name))
        if failed is not None:
            when, error = failed
            if self._clock.monotonic() - when < self._policy.keys.failure_memory:
                raise copy(error)
            del self._failures[str(name)]
        try:
            return await self._fetches.do(str(name), lambda: self._fetch_now(name, key_ids, log))
        except InviteError as error:
            self._remember(self._failures, str(name), (self._clock.monotonic(), copy(error)))
            raise copy(error) from error

    async def _fetch_now(
        self, name: ServerName, key_ids: Collection[str], log: AttemptLog
    ) -> ServerKeys:
        keys = await self._hedged(name, key_ids, log)
        self._remember(self._checked, str(name), keys)
        value = {"response": dict(keys.response), "fetched_at": keys.fetched_at}
        # Old keys are of use for as long as a response can be: until its time, and once more.
        fresh = keys.valid_until_ts / 1000
        usable = fresh + self._policy.keys.maximum_validity
        await self._store.put(_KIND, str(name), Stored(value, fresh, usable))
        return keys

    async def _hedged(
        self, name: ServerName, key_ids: Collection[str], log: AttemptLog
    ) -> ServerKeys:
        """Ask the server; if it fails or is slow, ask the notaries too. The first good answer wins."""
        own = asyncio.create_task(self._ask_server(name, log))
        asked: set[asyncio.Task[ServerKeys]] = {own}
        try:
            if self._notaries:
                await asyncio.wait(asked, timeout=self._policy.keys.hedge_after)
                if not own.done() or own.exception() is not None:
                    asked |= {
                        asyncio.create_task(self._ask_notary(name, key_ids, notary, pinned, log))
                        for notary, pinned in self._notaries
                    }
            for answer in asyncio.as_completed(asked):
                with suppress(InviteError):
                    return await answer
            # Everybody failed. What the server itself has to say of it says most.
            return own.result()
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _ask_server(self, name: ServerName, log: AttemptLog) -> ServerKeys:
        server = await self._resolver.resolve(name)
        reply = await self._transport.exchange(
            server, SERVER_KEYS_REQUEST, limit=self._policy.limits.key_bytes, log=log
        )
        return read_server_keys(
            reply,
            str(name),
            fetched_at=self._now(),
            maximum_validity=self._policy.keys.maximum_validity,
        )

    async def _ask_notary(
        self,
        name: ServerName,
        key_ids: Collection[str],
        notary: ServerName,
        pinned: Collection[VerifyKey],
        log: AttemptLog,
    ) -> ServerKeys:
        server = await self._resolver.resolve(notary)
        request = notary_request(str(name), key_ids, minimum_valid_until=self._now())
        reply = await self._transport.exchange(
            server, request, limit=self._policy.limits.key_bytes, log=log
        )
        return read_notary_reply(
            reply,
            str(name),
            notary=str(notary),
            notary_keys=pinned,
            fetched_at=self._now(),
            maximum_validity=self._policy.keys.maximum_validity,
        )

    def _now(self) -> int:
        return int(self._clock.time() * 1000)


def _read_notary(notary: Notary) -> tuple[ServerName, list[VerifyKey]]:
    pinned = [VerifyKey.from_base64(key_id, text) for key_id, text in notary.verify_keys.items()]
    return parse_server_name(notary.server_name), pinned


def _milliseconds(value: object) -> int:
    if type(value) is not int:
        raise TypeError
    return value
