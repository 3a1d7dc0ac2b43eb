"""A host's own parts behind a guard: what they raise of the system's errors becomes ours.

The Protocols say what their implementers raise. A socket's error or a time limit that was forgotten
there is no bug that should end a run over many invites: it is one server that was not reached.
Anything else that is not ours is a bug, and is let out as one.
"""

from __future__ import annotations

from collections.abc import Collection

from invite_client.errors import InviteError, Stage, UnknownOutcomeError, UnreachableError
from invite_client.interfaces import AttemptLog, KeyRing, Resolver, Transport
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_keys import ServerKeys
from invite_client.spec.server_names import ServerName

__all__ = ["GuardedKeyRing", "GuardedResolver", "GuardedTransport"]


class GuardedTransport:
    """An `interfaces.Transport` around a host's."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        """Send a request; what failed in an unforeseen way may have been sent."""
        try:
            return await self._transport.exchange(server, request, limit=limit, log=log)
        except InviteError:
            raise  # of which some are OSErrors too
        except OSError as error:
            message = f"the transport failed: {_words(error)}"
            raise UnknownOutcomeError(message, stage=Stage.HTTP, retryable=True) from error

    async def aclose(self) -> None:
        """Leave the transport open: it is its owner's."""


class GuardedResolver:
    """An `interfaces.Resolver` around a host's."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(self, name: ServerName) -> ResolvedServer:
        """Return where to connect."""
        try:
            return await self._resolver.resolve(name)
        except InviteError:
            raise
        except OSError as error:
            message = f"the resolver failed: {_words(error)}"
            raise UnreachableError(message, stage=Stage.DNS, retryable=True) from error

    async def forget(self, name: ServerName) -> None:
        """Drop what is remembered of `name`."""
        await self._resolver.forget(name)

    async def aclose(self) -> None:
        """Leave the resolver open: it is its owner's."""


class GuardedKeyRing:
    """An `interfaces.KeyRing` around a host's."""

    def __init__(self, keyring: KeyRing) -> None:
        self._keyring = keyring

    async def prefetch(self, name: ServerName) -> None:
        """Obtain the keys of `name`; fails for nobody."""
        await self._keyring.prefetch(name)

    async def verify_keys(
        self, name: ServerName, key_ids: Collection[str], valid_at: int | None, log: AttemptLog
    ) -> ServerKeys:
        """Return the checked keys of `name`."""
        try:
            return await self._keyring.verify_keys(name, key_ids, valid_at, log)
        except InviteError:
            raise
        except OSError as error:
            raise _no_keys(error) from error

    async def server_keys(self, name: ServerName) -> ServerKeys:
        """Return the checked keys of `name`, fetched now."""
        try:
            return await self._keyring.server_keys(name)
        except InviteError:
            raise
        except OSError as error:
            raise _no_keys(error) from error

    async def aclose(self) -> None:
        """Leave the key ring open: it is its owner's."""


def _no_keys(error: OSError) -> UnreachableError:
    message = f"the key ring failed: {_words(error)}"
    return UnreachableError(message, stage=Stage.KEYS, retryable=True)


def _words(error: OSError) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:200]
