"""Other homeservers: where they are, and their signing keys.

What can be asked of anybody's server without a name and a key of our own; `InviteClient` builds on
it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from copy import copy
from types import TracebackType
from typing import TYPE_CHECKING, Self

from invite_client.clock import SystemClock
from invite_client.deadlines import TimeLimit
from invite_client.errors import (
    ForbiddenByPolicyError,
    InviteError,
    Stage,
    UnreachableError,
)
from invite_client.guards import GuardedKeyRing, GuardedResolver, GuardedTransport
from invite_client.interfaces import Clock, KeyRing, Resolver, Store, Transport
from invite_client.keyring import FetchingKeyRing
from invite_client.policy import Policy
from invite_client.spec.discovery import ResolvedServer, TraceStep
from invite_client.spec.server_keys import ServerKeys
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.stores.guarded import GuardedStore
from invite_client.stores.memory import MemoryStore

if TYPE_CHECKING:
    from invite_client.resolver import CachingResolver

__all__ = ["FederationClient"]


class FederationClient:
    """Finds other homeservers and their keys. Needs no name and no key of ours.

        async with FederationClient() as federation:
            server = await federation.resolve("matrix.org")

    It belongs to the event loop in which it is entered. What it makes it closes; what it is given
    stays open.
    """

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        transport: Transport | None = None,
        resolver: Resolver | None = None,
        keyring: KeyRing | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare a client. Opens nothing."""
        self.policy: Policy = policy or Policy()
        self._clock: Clock = clock or SystemClock()
        self._owned: list[Callable[[], Awaitable[None]]] = []
        self._is_closed = False
        self._time = TimeLimit(self.policy.timeouts.total, "timeouts.total")
        self._loop: asyncio.AbstractEventLoop | None = None
        servers = self.policy.servers
        self._blocked = _places(servers.blocked)
        self._allowed = None if servers.allowed is None else _places(servers.allowed)
        # Our own resolver tells its steps as it takes them; a host's need not.
        self._walker: CachingResolver | None = None
        # And our own key ring knows what it has.
        self._own_keys: FetchingKeyRing | None = None

        # Not `or`: a store that is empty may be false.
        if store is None:
            store = MemoryStore(self.policy.limits.cached_servers)
        elif type(store) is not MemoryStore:  # who derives from it may do anything
            store = GuardedStore(store, self.policy.cache.store_patience)
        self._store = store
        self._transport = self._own_transport() if transport is None else transport
        self._resolver = (
            self._own_resolver(store) if resolver is None else GuardedResolver(resolver)
        )
        if transport is not None:
            self._transport = GuardedTransport(transport)
        self._keyring = self._own_keyring(store) if keyring is None else GuardedKeyRing(keyring)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close what this client made, for good."""
        self._is_closed = True
        async with contextlib.AsyncExitStack() as stack:
            for close in self._owned:
                stack.push_async_callback(close)
            self._owned = []

    async def resolve(self, server_name: str) -> ResolvedServer:
        """Find a homeserver: where to connect, and the trace of every step (§ Server discovery).

        Returns within `policy.timeouts.total` seconds. Raises `InvalidInviteError` for a name
        outside the grammar, else `InviteError`.
        """
        trace: list[TraceStep] = []

        def too_late(message: str) -> InviteError:
            error = _not_found_in_time(message)
            error.trace = tuple(trace)
            return error

        with _without_invite():
            name = self._checked(server_name)
            async with self._time.within(too_late):
                if self._walker is None:
                    return await self._resolver.resolve(name)
                return await self._walker.resolve(name, trace)

    async def server_keys(self, server_name: str) -> ServerKeys:
        """Fetch the signing keys of a homeserver, checked (§ Retrieving server keys).

        Returns within `policy.timeouts.total` seconds. Raises `InvalidInviteError` for a name
        outside the grammar, else `InviteError`.
        """
        with _without_invite():
            name = self._checked(server_name)
            async with self._time.within(_not_found_in_time):
                return await self._keyring.server_keys(name)

    def _checked(self, server_name: str) -> ServerName:
        name = parse_server_name(server_name)
        self._check_usable()
        self._check_server_policy(name)
        return name

    def _check_usable(self) -> None:
        if self._is_closed:
            raise RuntimeError("the client is used after it was closed")
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            # By a connection of another loop a request would go out, and its answer be lost.
            raise RuntimeError("the client belongs to another event loop; make one for each")

    def _check_server_policy(self, name: ServerName) -> None:
        if not self._blocked and self._allowed is None:
            return
        place = name.place
        if place in self._blocked:
            raise ForbiddenByPolicyError(
                f"{name} is in the list of blocked servers (servers.blocked)",
                setting="servers.blocked",
                destination=str(name),
            )
        if self._allowed is not None and place not in self._allowed:
            raise ForbiddenByPolicyError(
                f"{name} is not in the list of allowed servers (servers.allowed)",
                setting="servers.allowed",
                destination=str(name),
            )

    # --- What is made where nothing was given ---------------------------------------------------

    def _own_transport(self) -> Transport:
        # Imported here, so that who brings a transport does not pay for aiohttp.
        from invite_client.net.http import HttpTransport  # noqa: PLC0415

        transport = HttpTransport(self.policy)
        self._owned.append(transport.aclose)
        return transport

    def _own_resolver(self, store: Store) -> Resolver:
        from invite_client.net.http import HttpTransport  # noqa: PLC0415
        from invite_client.net.lookups import NetworkLookups  # noqa: PLC0415
        from invite_client.resolver import CachingResolver  # noqa: PLC0415

        transport = self._transport
        if not isinstance(transport, HttpTransport):
            # A host's own transport speaks to homeservers; well-known files are on web servers.
            transport = HttpTransport(self.policy)
            self._owned.append(transport.aclose)
        resolver = CachingResolver(
            NetworkLookups(transport, self.policy, self._clock),
            store,
            self.policy.cache,
            self._clock,
            # Of use only to the transport that looked them up, or opened them.
            addresses=transport.dns if transport is self._transport else None,
            connections=transport if transport is self._transport else None,
        )
        self._owned.append(resolver.aclose)
        self._walker = resolver
        return resolver

    def _own_keyring(self, store: Store) -> KeyRing:
        keyring = FetchingKeyRing(self._transport, self._resolver, store, self.policy, self._clock)
        self._owned.append(keyring.aclose)
        self._own_keys = keyring
        return keyring


def _places(names: Iterable[str]) -> frozenset[tuple[str, int | None]]:
    """Where the names of a list lead."""
    return frozenset(parse_server_name(name).place for name in names)


def _not_found_in_time(message: str) -> UnreachableError:
    return UnreachableError(message, stage=Stage.CONNECT, retryable=True)


@contextlib.contextmanager
def _without_invite() -> Iterator[None]:
    """Let what is raised say nothing of an invite: there is none."""
    try:
        yield
    except InviteError as error:
        # The error itself may be shared with somebody who sends one.
        ours = copy(error)
        ours.about_invite = False
        raise ours.with_traceback(error.__traceback__) from error.__cause__
