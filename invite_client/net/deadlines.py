"""Time limits that are all of one length, so that they run out in the order in which they began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Deadlines"]

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Gives up what has not ended after so many seconds.

    One timer of the loop serves all: one for each would cost more than the work that it is to end.
    """

    def __init__(self, seconds: float, give_up: Callable[[T], None]) -> None:
        """`give_up` is called with what has not ended."""
        self._seconds = seconds
        self._give_up = give_up
        self._began: dict[T, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._began)

    def begin(self, what: T) -> None:
        """Begin to count."""
        loop = asyncio.get_running_loop()
        self._began[what] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)

    def end(self, what: T) -> None:
        """Count no more."""
        self._began.pop(what, None)

    def oldest(self) -> T:
        """Return what began first of what has not ended."""
        return next(iter(self._began))

    def close(self) -> list[T]:
        """Count no more at all, and return what has not ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        left = list(self._began)
        self._began.clear()
        return left

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        while self._began:
            left = self._began[self.oldest()] + self._seconds - loop.time()
            if left > 0:
                self._timer = loop.call_later(left, self._look)
                return
            what = self.oldest()
            del self._began[what]
            self._give_up(what)
