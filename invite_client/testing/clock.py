"""Time for tests that wait for nothing."""

from __future__ import annotations

import asyncio

__all__ = ["ManualClock"]

_START = 1_700_000_000.0
"""2023-11-14: after every key that has expired, before every key that has not."""


class ManualClock:
    """An `interfaces.Clock` that only moves when told to, or slept on."""

    def __init__(self, now: float = _START) -> None:
        """Start at `now`, in seconds since the epoch."""
        self.now = now
        self.slept: list[float] = []
        """How long each sleep would have taken, in seconds."""

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return self.now

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    async def sleep(self, seconds: float) -> None:
        """Let time pass at once; others may run meanwhile."""
        self.slept.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)
