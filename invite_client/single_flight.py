"""One look-up at a time for one key, shared by all who ask for it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from copy import copy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from invite_client.errors import InviteError, Stage

__all__ = ["SingleFlight"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Flight(Generic[V]):
    task: asyncio.Task[V]
    waiters: int = 0


class SingleFlight(Generic[K, V]):
    """Runs one task per key. The task ends when its work does, or when nobody waits for it.

    A caller that is cancelled leaves the others undisturbed; the last one to leave takes the task
    with it, so that cancellation leaves nothing behind.
    """

    def __init__(self) -> None:
        self._flights: dict[K, _Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: object) -> bool:
        return key in self._flights

    async def do(self, key: K, work: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Return what `work()` returns; join the one that is under way for `key`, if there is one.

        Raises what `work()` raises, a copy of an `InviteError`; and one if `aclose` has ended it.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.create_task(work()))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda task: self._ended(key, flight, task))
        flight.waiters += 1
        try:
            await _end_of(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._land(key, flight)
                flight.task.cancel()
                # Cancelled here, but its sockets are closed by itself: wait for that.
                await asyncio.gather(flight.task, return_exceptions=True)
        if flight.task.cancelled():
            # This caller is not cancelled. A task that ended as if it were would end in silence.
            raise InviteError("the client was closed meanwhile", stage=Stage.CONNECT)
        try:
            return flight.task.result()
        except InviteError as error:
            # One for each caller, who writes into it what it has tried itself.
            raise copy(error) from error

    async def aclose(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: K, flight: _Flight[V], task: asyncio.Task[V]) -> None:
        self._land(key, flight)
        if not task.cancelled():
            # Every caller has it from `result`; where all have just left, asyncio need not know.
            task.exception()

    def _land(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


async def _end_of(task: asyncio.Task[Any]) -> None:
    """Wait for a task, and leave it alone when this caller is cancelled.

    `asyncio.wait` does that too, for any number, at three times the cost.
    """
    if task.done():
        return
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(_: object) -> None:
        if not ended.done():
            ended.set_result(None)

    task.add_done_callback(tell)
    try:
        await ended
    finally:
        task.remove_done_callback(tell)
