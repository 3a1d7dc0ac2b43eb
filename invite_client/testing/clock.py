"""Time for tests that wait for nothing."""

from __future__ import annotations

import asyncio
import time

__all__ = ["ManualClock"]


class ManualClock:
    """An `interfaces.Clock` that only moves when told to, or slept on."""

    def __init__(self, now: float | None = None) -> None:
        """Start at `now`, in seconds since the epoch; without it, at the real time, whole.

        Homeservers of this kit go by the real time, unless they are told otherwise.
        """
        self.now: float = float(int(time.time())) if now is None else now
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
