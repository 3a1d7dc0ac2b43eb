"""One invite under way, and what is to be said of it when its time is up."""

from __future__ import annotations

import itertools

from invite_client.errors import (
    Attempt,
    CountersignatureError,
    CountersignatureProblem,
    InviteError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.interfaces import Clock
from invite_client.retrying import furthest

__all__ = ["Sending", "keys_unavailable"]

_calls = itertools.count(1)
"""Numbers the calls of `send_invite`, for observers; of all clients, for these may share one."""


class Sending:
    """One invite under way: when it began, when it must end, what was tried, how far it came."""

    def __init__(self, clock: Clock) -> None:
        self.call: int = next(_calls)
        self._clock = clock
        self._started = clock.monotonic()
        self.deadline: float = self._started
        self.log: list[Attempt] = []
        self.answered = False
        self.refused: InviteError | None = None
        self._tried = 0

    def start(self, total: float) -> None:
        """Begin to count: waiting for a slot is not part of the time that is allowed."""
        self._started = self._clock.monotonic()
        self.deadline = self._started + total

    def starts_again(self, error: InviteError) -> None:
        """Note why the same event is sent once more."""
        self.refused = furthest(self.refused, error)
        self._tried = len(self.log)

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return self._clock.monotonic() - self._started

    def out_of_time(self, message: str) -> InviteError:
        """Return the error that tells how far the invite had come when its time was up."""
        if self.answered:
            return keys_unavailable(message)
        puts = [attempt for attempt in self.log[self._tried :] if attempt.what.startswith("PUT")]
        if any(put.sent for put in puts):
            return UnknownOutcomeError(message, retryable=True)
        if self.refused is not None:
            # What the remote said last time says more than that there is no time to ask again.
            return self.refused
        stage = Stage.CONNECT if puts else Stage.DNS
        return UnreachableError(message, stage=stage, retryable=True)


def keys_unavailable(why: str, retry_after: float | None = None) -> CountersignatureError:
    """The invite was answered; what is missing is the means to believe the answer."""
    return CountersignatureError(
        f"the keys of the invited user's server could not be obtained: {why}",
        problem=CountersignatureProblem.KEYS_UNAVAILABLE,
        stage=Stage.KEYS,
        retryable=True,
        retry_after=retry_after,
    )
