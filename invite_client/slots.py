"""How many invites may be under way: in total, and to one destination."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from invite_client.policy import Limits

__all__ = ["Slot", "Slots"]


@dataclass(slots=True)
class _Queue:
    semaphore: asyncio.Semaphore
    interested: int = 0


class Slots:
    """Gives out slots. Who waits for a busy destination takes no slot from the others."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = asyncio.Semaphore(limits.concurrency)
        self._queues: dict[str, _Queue] = {}

    @property
    def destinations(self) -> int:
        """To how many destinations invites are under way, or wait."""
        return len(self._queues)

    def take(self, destination: str) -> Slot:
        """Return a slot for `destination`, to be waited for and held in an `async with`."""
        return Slot(self, destination)

    async def acquire(self, destination: str) -> None:
        """Wait for a slot."""
        queue = self._queues.get(destination)
        if queue is None:
            queue = _Queue(asyncio.Semaphore(self._limits.per_destination))
            self._queues[destination] = queue
        queue.interested += 1
        try:
            await queue.semaphore.acquire()
            try:
                await self._total.acquire()
            except BaseException:
                queue.semaphore.release()
                raise
        except BaseException:
            self._leave(destination, queue)
            raise

    def release(self, destination: str) -> None:
        """Give a slot back."""
        queue = self._queues[destination]
        self._total.release()
        queue.semaphore.release()
        self._leave(destination, queue)

    def _leave(self, destination: str, queue: _Queue) -> None:
        queue.interested -= 1
        if not queue.interested:
            del self._queues[destination]


@dataclass(frozen=True, slots=True)
class Slot:
    """Holds a slot for as long as the block lasts."""

    # A generator would do, at several times the cost: asyncio keeps account of each.
    slots: Slots
    destination: str

    async def __aenter__(self) -> None:
        await self.slots.acquire(self.destination)

    async def __aexit__(self, *_: object) -> None:
        self.slots.release(self.destination)
