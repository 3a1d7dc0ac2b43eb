"""Connections that are opened before there is a request for them.

Nothing is sent by one: a request takes it over, as far as it has come, or it is closed. That it
fails is news to nobody; who finds none opens one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from invite_client.net.connections import Connection
from invite_client.net.lines import Line, Way
from invite_client.net.pool import KEPT_FOR

__all__ = ["Ahead", "Opening"]

_WELL_FOR = 1.0
"""Seconds for which a connection that waits will not have died of it: servers wait longer for a first
request. One that hangs up on that has seen it, and to ask again is for `retrying` to decide."""


class Ahead:
    """The connections that no request has taken yet."""

    def __init__(self, most: int) -> None:
        """At most so many are on their way, or wait, at once."""
        self._most = most
        self._waiting: list[Opening] = []
        self._is_closed = False

    def begin(
        self,
        connection: Connection,
        connect: Callable[[Connection], Awaitable[Line]],
        patience: float,
    ) -> Opening | None:
        """Begin to connect, for `patience` seconds at most, if there is room for one more."""
        if self._is_closed or len(self._waiting) >= self._most:
            return None
        opening = Opening(connection, connect, patience, self._waiting)
        self._waiting.append(opening)
        return opening

    def take(self, connection: Connection) -> Awaitable[Line] | None:
        """Return, for a request to wait for, what leads where it wants to go."""
        for opening in self._waiting:
            if opening.way == connection.way:
                self._waiting.remove(opening)
                return opening.taken_by(connection)
        return None

    async def aclose(self) -> None:
        """Close all that no request has taken, for good: a look-up may be under way still."""
        self._is_closed = True
        while self._waiting:
            await self._waiting[-1].give_up()


class Opening:
    """One connection that is on its way, or waits."""

    def __init__(
        self,
        connection: Connection,
        connect: Callable[[Connection], Awaitable[Line]],
        patience: float,
        waiting: list[Opening],
    ) -> None:
        self.way: Way = connection.way
        self._connection = connection
        self._waiting = waiting
        self._line: Line | None = None
        self._is_closed = False
        self._kept: asyncio.TimerHandle | None = None
        self._since = math.inf
        self._task = asyncio.create_task(self._open(connect, patience))
        self._task.add_done_callback(self._opened)

    async def _open(
        self, connect: Callable[[Connection], Awaitable[Line]], patience: float
    ) -> None:
        async with asyncio.timeout(patience):
            self._line = await connect(self._connection)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._since = asyncio.get_running_loop().time()
        failed = task.cancelled() or task.exception() is not None
        if failed or self._is_closed:
            self._close()
        elif self in self._waiting:
            self._kept = asyncio.get_running_loop().call_later(KEPT_FOR, self._close)

    async def taken_by(self, connection: Connection) -> Line:
        """Return the connection when it is there; raise what came in its way."""
        if self._kept is not None:
            self._kept.cancel()
        waited = asyncio.get_running_loop().time() - self._since
        try:
            # `wait` leaves the task alone when this caller is cancelled.
            await asyncio.wait((self._task,))
        except asyncio.CancelledError:
            await self._end()
            raise
        finally:
            connection.stage = self._connection.stage
            connection.address = self._connection.address
        self._task.result()
        assert self._line is not None  # noqa: S101  # else there was an error
        # One that has waited may have died of it, as any that is kept alive.
        connection.reused = waited > _WELL_FOR or not self._line.is_open
        return self._line

    async def give_up(self) -> None:
        """Close it, unless a request has taken it."""
        if self in self._waiting:
            await self._end()

    async def _end(self) -> None:
        self._close()
        if self._task.cancel():  # it was on its way still
            await asyncio.gather(self._task, return_exceptions=True)

    def _close(self) -> None:
        self._is_closed = True
        if self in self._waiting:
            self._waiting.remove(self)
        if self._kept is not None:
            self._kept.cancel()
        if self._line is not None:
            self._line.close()
