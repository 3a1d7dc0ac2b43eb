"""How many invites may be under way: in total, and to one destination."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from invite_client.policy import Limits

__all__ = ["Slots"]


@dataclass(slots=True)
class _Queue:
    semaphore: asyncio.Semaphore
    interested: int = field(default=0)


class Slots:
    """Gives out slots. Who waits for a busy destination takes no slot from the others."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._total = asyncio.Semaphore(limits.concurrency)
        self._queues: dict[str, _Queue] = {}

    @asynccontextmanager
    async def take(self, destination: str) -> AsyncIterator[None]:
        """Wait for a slot for `destination`, hold it for the block, and give it back."""
        queue = self._queues.get(destination)
        if queue is None:
            queue = _Queue(asyncio.Semaphore(self._limits.per_destination))
            self._queues[destination] = queue
        queue.interested += 1
        try:
            async with queue.semaphore, self._total:
                yield
        finally:
            queue.interested -= 1
            if not queue.interested:
                del self._queues[destination]
