"""Time that passes only when nobody has anything else to do, in the order in which sleepers wake."""

from __future__ import annotations

import asyncio
import heapq
import itertools

START = 1_700_000_000.0


class VirtualClock:
    """An `interfaces.Clock` under which an hour takes as long as the work that is done in it."""

    def __init__(self) -> None:
        self.now = START
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._ticking = False

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    @property
    def elapsed(self) -> float:
        return self.now - START

    async def sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        sleeper = loop.create_future()
        entry = (self.now + max(0.0, seconds), next(self._order), sleeper)
        heapq.heappush(self._sleepers, entry)
        if not self._ticking:
            self._ticking = True
            loop.call_soon(self._tick)
        await sleeper

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while self._sleepers and self._sleepers[0][2].cancelled():
            heapq.heappop(self._sleepers)
        if not self._sleepers:
            self._ticking = False
            return
        if not loop._ready:  # type: ignore[attr-defined]  # nobody has anything else to do
            self.now, _, sleeper = heapq.heappop(self._sleepers)
            sleeper.set_result(None)
        loop.call_soon(self._tick)
