"""Connections that are kept for the next request by the same way."""

from __future__ import annotations

import asyncio

from invite_client.deadlines import Deadlines
from invite_client.net.lines import Line, Way

__all__ = ["KEPT_FOR", "Pool"]

KEPT_FOR = 15.0
"""Seconds that nobody uses a connection before it is closed: servers close theirs after more."""


class Pool:
    """Who uses a connection takes it out and, if it is still of use, puts it back."""

    def __init__(self, most_idle: int) -> None:
        """At most so many connections are kept that nobody uses."""
        self._most_idle = most_idle
        self._idle: Deadlines[Line] = Deadlines(KEPT_FOR, self._close)
        self._by_way: dict[Way, list[Line]] = {}
        self._in_use: set[Line] = set()

    def take(self, way: Way) -> Line | None:
        """Return the connection by this way that was used last, or None."""
        lines = self._by_way.get(way)
        while lines:
            line = lines[-1]
            self._drop(line)
            if line.is_open:
                self._in_use.add(line)
                return line
            line.close()
        return None

    def has(self, way: Way) -> bool:
        """Whether `take` would return one."""
        return any(line.is_open for line in self._by_way.get(way, ()))

    def lend(self, line: Line) -> None:
        """Take notice of a connection that is new."""
        self._in_use.add(line)

    def put(self, line: Line) -> None:
        """Keep a connection; the one that was put here first makes room for it."""
        self._in_use.discard(line)
        if not line.is_usable:
            line.close()
            return
        self._idle.begin(line)
        self._by_way.setdefault(line.way, []).append(line)
        if len(self._idle) > self._most_idle:
            self._close(self._idle.oldest())

    async def aclose(self) -> None:
        """Close all connections, also those in use."""
        for line in (*self._idle.close(), *self._in_use):
            line.close()
        self._by_way.clear()
        self._in_use.clear()
        await asyncio.sleep(0)  # the sockets are closed in the next turn of the loop

    def _close(self, line: Line) -> None:
        self._drop(line)
        line.close()

    def _drop(self, line: Line) -> None:
        self._idle.end(line)
        lines = self._by_way[line.way]
        if lines[-1] is line:
            lines.pop()
        else:
            lines.remove(line)
        if not lines:
            del self._by_way[line.way]
