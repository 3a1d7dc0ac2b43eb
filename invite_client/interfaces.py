"""What a host can implement to replace a part of the client.

Each Protocol is small, says what its implementer promises, and has an implementation in this
package that uses nothing private: `net` and `stores` for real use, `testing` for tests.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from invite_client.errors import Attempt
from invite_client.observations import Observation
from invite_client.spec.discovery import Lookups, ResolvedServer
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_keys import ServerKeys
from invite_client.spec.server_names import ServerName

__all__ = [
    "AttemptLog",
    "Clock",
    "KeyRing",
    "Lookups",
    "Observer",
    "Resolver",
    "Store",
    "Stored",
    "Transport",
]


class Clock(Protocol):
    """Time. Tests bring their own, and then wait for nothing."""

    def time(self) -> float:
        """Return the seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        ...


class AttemptLog(Protocol):
    """Where everything that is tried on the network is written down. A list is one."""

    def append(self, attempt: Attempt, /) -> None:
        """Add one attempt."""
        ...


class Transport(Protocol):
    """Exchanges one request for one reply with a server that has been resolved."""

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        """Send `request` to one of `server.targets`, in their order, and return the reply.

        A target is passed over for the next only while nothing of the request was sent. Every
        status is a reply; no redirect is followed. At most `limit` bytes of body are read: a longer
        body is an error if the status is 200, else it is cut.

        Raises `ForbiddenByPolicyError` (address refused), `UnreachableError` (no target could be
        connected to; TLS failures too), `UnknownOutcomeError` (sent, no whole answer),
        `MalformedReplyError` (not HTTP, or over a limit).
        """
        ...

    async def aclose(self) -> None:
        """Close what was opened."""
        ...


class Resolver(Protocol):
    """Finds where a server name's homeserver is (§ Resolving server names)."""

    async def resolve(self, name: ServerName) -> ResolvedServer:
        """Return where to connect. Raises `UnreachableError` or `ForbiddenByPolicyError`."""
        ...

    async def forget(self, name: ServerName) -> None:
        """Drop what is remembered of `name`: connecting by it failed."""
        ...

    async def aclose(self) -> None:
        """End what runs in the background."""
        ...


class KeyRing(Protocol):
    """Obtains other servers' signing keys (§ Retrieving server keys)."""

    async def prefetch(self, name: ServerName) -> None:
        """Obtain the keys of `name`, unless they are here. Run beside the request; never raises."""
        ...

    async def verify_keys(
        self,
        name: ServerName,
        key_ids: Collection[str],
        valid_at: int | None,
        log: AttemptLog,
    ) -> ServerKeys:
        """Return the checked keys of `name`, fetched anew if those that are here do not do.

        They do if each of `key_ids` is among them and was valid at `valid_at`: milliseconds since
        the epoch, or None where validity does not matter (room versions 1 to 4).

        What is returned may still lack them: judging is the verifier's task. Raises `InviteError`
        if no keys of `name` can be had.
        """
        ...

    async def server_keys(self, name: ServerName) -> ServerKeys:
        """Return the checked keys of `name`, fetched now. Raises `InviteError`."""
        ...

    async def aclose(self) -> None:
        """End what runs in the background."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """A value with its own times. The reader checks them, so a careless store can do no harm."""

    value: Any
    """A JSON-like value: dict, list, str, int, float, bool, None."""
    fresh_until: float
    """Seconds since the epoch until which the value is used as it is."""
    usable_until: float
    """Seconds since the epoch until which it may serve if it cannot be renewed."""

    def is_fresh(self, now: float, longest: float) -> bool:
        """Whether the value may be used as it is.

        What claims to be so for more than `longest` seconds from `now` is not believed: nothing is
        put for that long, so the clock has gone back since, or the store is careless.
        """
        return _lies_ahead(self.fresh_until, now, longest)

    def is_usable(self, now: float, longest: float) -> bool:
        """Whether the value may serve if it cannot be renewed; see `is_fresh`."""
        return _lies_ahead(self.usable_until, now, longest)


def _lies_ahead(until: object, now: float, longest: float) -> bool:
    # Compared like this, NaN is never ahead.
    return isinstance(until, int | float) and now < until <= now + longest


class Store(Protocol):
    """Remembers values by kind and key: ``("resolved", "matrix.org")``, ``("keys", "matrix.org")``.

    May forget anything at any time, and need not look at the times. A store that fails, or takes
    longer than `cache.store_patience`, is a store that has forgotten. Whoever can write to it can say where servers are: it is as
    much to be trusted as this process.
    """

    async def get(self, kind: str, key: str) -> Stored | None:
        """Return what was put last, or None."""
        ...

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        """Remember a value."""
        ...

    async def delete(self, kind: str, key: str) -> None:
        """Forget a value, if it is there."""
        ...

    async def aclose(self) -> None:
        """Close what was opened."""
        ...


class Observer(Protocol):
    """Is told what happens. Called synchronously, on the event loop: be quick.

    What it raises is logged and goes no further.
    """

    def __call__(self, event: Observation, /) -> None:
        """Take notice of one event."""
        ...
