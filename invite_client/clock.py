"""The time of this machine."""

from __future__ import annotations

import asyncio
from time import monotonic, time

__all__ = ["SystemClock"]


class SystemClock:
    """The `interfaces.Clock` that is used unless another is given."""

    # The very functions: a time is taken several times for each invite.
    monotonic = staticmethod(monotonic)
    """Return seconds that never go back."""
    time = staticmethod(time)
    """Return the seconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Return after so many seconds."""
        await asyncio.sleep(seconds)
