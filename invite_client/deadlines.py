"""Time limits that are all of one length, so that they run out in the order in which they began."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from invite_client.errors import InviteError

__all__ = ["Deadlines", "TimeLimit"]

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
        self.loop: asyncio.AbstractEventLoop | None = None
        """Where it counts, as soon as it does."""

    def __len__(self) -> int:
        return len(self._began)

    def begin(self, what: T) -> None:
        """Begin to count. Always in one event loop."""
        loop = self.loop
        if loop is None:
            loop = self.loop = asyncio.get_running_loop()
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


class TimeLimit:
    """A limit for blocks of code, as `asyncio.timeout` is one, of the same length for all of them."""

    def __init__(self, seconds: float, name: str) -> None:
        """`name` is that of the setting, for messages."""
        self.message: str = f"not finished within {seconds:g} s ({name})"
        self.blocks: Deadlines[_Within] = Deadlines(seconds, _Within.give_up)

    def within(self, out_of_time: Callable[[str], InviteError]) -> _Within:
        """Return what ends its block in time, with the error that `out_of_time` makes of a message."""
        return _Within(self, out_of_time)


class _Within:
    def __init__(self, limit: TimeLimit, out_of_time: Callable[[str], InviteError]) -> None:
        self._limit = limit
        self._out_of_time = out_of_time
        self._is_over = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task(self._limit.blocks.loop)
        assert task is not None  # noqa: S101  # this is a coroutine
        self._task = task
        self._cancelling = task.cancelling()
        self._limit.blocks.begin(self)

    def give_up(self) -> None:
        self._is_over = True
        self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._limit.blocks.end(self)
        # Whoever else has cancelled the task meanwhile shall not be kept waiting.
        if (
            self._is_over
            and self._task.uncancel() <= self._cancelling
            and (kind is asyncio.CancelledError)
        ):
            raise self._out_of_time(self._limit.message) from None
