"""Destinations that fail: after some failures in a row, left alone for a while, then tried by one.

What is remembered is kept in the store, so that it survives a restart where the store does, and is
shared where the store is.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Self

from invite_client.errors import (
    Delivery,
    InviteError,
    InviteRejectedError,
    RateLimitedError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.interfaces import Clock, Store, Stored
from invite_client.policy import BackoffPolicy

__all__ = ["BackOff", "BackOffMemory", "not_sent"]

_KIND = "backoff"
_GATEWAY_STATUSES = frozenset({502, 503, 504})
"""What a proxy says of the homeserver behind it. Another 5xx may be about the one invite."""
_MANY = 32
"""Doublings after which any wait is longer than any maximum."""
_REASON = 500
"""Characters of a reason that are kept."""
_MOST = 2**31
"""Nobody fails more often than that."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """Why, and until when, invites to a destination are refused without being sent."""

    destination: str
    """The server name."""
    failures: int
    """Sends in a row that have failed; those that were under way at once count as one."""
    since: float
    """When the first of them had failed, in seconds since the epoch."""
    until: float
    """Until when all are refused, in seconds since the epoch. Later, one at a time is sent."""
    reason: str
    """How the last of them failed."""
    limited: bool = False
    """Whether the last of them was answered "later" (429)."""


@dataclass(slots=True)
class UnderWay:
    """The sends to one destination that are under way in this process."""

    sends: int = 0
    failures: int = 0
    """How many of them failed one after the other: at most one of those that were under way at once."""
    probing: bool = False
    """Whether one of them is to find out if the destination is back."""


class BackOffMemory:
    """Remembers which destinations fail, and says no for them."""

    def __init__(self, store: Store, policy: BackoffPolicy, clock: Clock) -> None:
        self._store = store
        self._policy = policy
        self._clock = clock
        self._under_way: dict[str, UnderWay] = {}

    async def read(self, destination: str) -> BackOff | None:
        """Return why invites to a destination are refused; None if they are sent as usual."""
        known = self._known(destination, await self._store.get(_KIND, destination))
        return known if known is not None and self._is_too_many(known.failures) else None

    async def reset(self, destination: str) -> None:
        """Forget the failures of a destination: the next invite to it is sent."""
        if await self._store.get(_KIND, destination) is not None:
            await self._store.delete(_KIND, destination)

    def watch(self, destination: str) -> Watch:
        """Remember how a block ends that sends one invite."""
        return Watch(self, destination)

    def begin(self, destination: str) -> UnderWay:
        """Take notice of one more send; see `Watch`."""
        sends = self._under_way.get(destination)
        if sends is None:
            sends = self._under_way[destination] = UnderWay()
        sends.sends += 1
        return sends

    def end(self, destination: str, sends: UnderWay) -> None:
        """Take notice that a send is over."""
        sends.sends -= 1
        if not sends.sends:
            del self._under_way[destination]

    async def admit(self, destination: str, sends: UnderWay) -> bool:
        """Whether what is sent now is to find out if the destination is back.

        Raises `UnreachableError`, or `RateLimitedError` if it was the remote that said "later",
        where the time has not come.
        """
        known = await self.read(destination)
        if known is None:
            return False
        wait = known.until - self._clock.time()
        if wait > 0 or sends.probing:
            raise _refusal(known, wait if wait > 0 else self._policy.first)
        sends.probing = True
        return True

    async def note(self, destination: str, error: InviteError) -> None:
        """Count a failure."""
        before = self._known(destination, await self._store.get(_KIND, destination))
        now = self._clock.time()
        failures = 1 + (before.failures if before else 0)
        wait = 0.0
        if self._is_too_many(failures):
            doublings = min(failures - (self._policy.after_failures or 0), _MANY)
            longer = max(self._policy.first * 2.0**doublings, error.retry_after or 0.0)
            wait = min(longer, self._policy.maximum)
        value = {
            "failures": failures,
            "since": before.since if before else now,
            "reason": error.message[:_REASON],
            "limited": isinstance(error, RateLimitedError),
        }
        stored = Stored(value, now + wait, now + wait + self._policy.remember)
        await self._store.put(_KIND, destination, stored)

    def _known(self, destination: str, stored: Stored | None) -> BackOff | None:
        """What the store holds, if it is what we put there, and still of use."""
        if stored is None:
            return None
        now, longest = self._clock.time(), self._policy.maximum + self._policy.remember
        if not stored.is_usable(now, longest):
            return None
        match stored.value:
            case {
                "failures": int(failures),
                "since": int(since) | float(since),
                "reason": str(reason),
                "limited": bool(limited),
            } if 0 < failures < _MOST:
                until = stored.fresh_until if stored.is_fresh(now, self._policy.maximum) else now
                return BackOff(destination, failures, since, until, reason, limited)
        return None

    def _is_too_many(self, failures: int) -> bool:
        return self._policy.after_failures is not None and failures >= self._policy.after_failures


class Watch:
    """The block in which one invite is sent, from whose end is learned whether a server is there."""

    def __init__(self, memory: BackOffMemory, destination: str) -> None:
        self._memory = memory
        self._destination = destination
        self._probe = False
        self._refused = False

    async def __aenter__(self) -> Self:
        self._sends = self._memory.begin(self._destination)
        self._failures = self._sends.failures
        return self

    async def admit(self) -> None:
        """Say no for a destination that fails; see `BackOffMemory.admit`. To be called first."""
        try:
            self._probe = await self._memory.admit(self._destination, self._sends)
        except InviteError:
            self._refused = True
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        try:
            await self._learn(error)
        finally:
            if self._probe:
                self._sends.probing = False
            self._memory.end(self._destination, self._sends)

    async def _learn(self, error: BaseException | None) -> None:
        match error:
            case None:
                await self._memory.reset(self._destination)
            case InviteError() if _means_down(error) and not self._refused:
                if self._failures == self._sends.failures:
                    self._sends.failures += 1
                    await self._memory.note(self._destination, error)
            case InviteError(delivery=Delivery.ANSWERED):
                await self._memory.reset(self._destination)


def _means_down(error: InviteError) -> bool:
    match error:
        case UnreachableError() | UnknownOutcomeError() | RateLimitedError():
            return True
        case InviteRejectedError():
            return error.status in _GATEWAY_STATUSES
    return False


def _refusal(known: BackOff, wait: float) -> InviteError:
    message = (
        f"not sent: {known.failures} invites in a row have failed since {_date(known.since)}, "
        f"the last one: {known.reason}"
    )
    advice = (
        "Send it later, or with ignore_backoff=True; reset_backoff() forgets the failures, and so "
        "does the next success."
    )
    return not_sent(message, limited=known.limited, wait=wait, advice=advice)


def not_sent(message: str, *, limited: bool, wait: float, **details: Any) -> InviteError:
    """Return what says that an invite is not sent, for others have failed or were limited."""
    details = {"retryable": True, **details, "stage": Stage.BACKOFF, "retry_after": wait}
    if limited:
        return RateLimitedError(message, delivery=Delivery.NOT_SENT, status=429, **details)
    return UnreachableError(message, **details)


def _date(seconds: float) -> str:
    try:
        return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return "some time ago"
