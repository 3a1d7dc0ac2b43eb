"""A host's store behind a guard: whatever it does, it costs no invite."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from invite_client.interfaces import Store, Stored

__all__ = ["GuardedStore"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


class GuardedStore:
    """An `interfaces.Store` that keeps its promises, around one that may not.

    A store that raises, takes its time or returns something else has forgotten.
    """

    def __init__(self, store: Store, patience: float) -> None:
        """Give `store` so many seconds for each call."""
        self._store = store
        self._patience = patience
        self._complained = False

    async def get(self, kind: str, key: str) -> Stored | None:
        """Return what was put last, or None."""
        stored = await self._guarded(lambda: self._store.get(kind, key))
        return stored if isinstance(stored, Stored) else None

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        """Remember a value."""
        await self._guarded(lambda: self._store.put(kind, key, stored))

    async def delete(self, kind: str, key: str) -> None:
        """Forget a value, if it is there."""
        await self._guarded(lambda: self._store.delete(kind, key))

    async def aclose(self) -> None:
        """Leave the store open: it is its owner's."""

    async def _guarded(self, call: Callable[[], Awaitable[T]]) -> T | None:
        try:
            async with asyncio.timeout(self._patience):
                return await call()
        except (Exception, asyncio.CancelledError) as error:  # whatever it raises
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            # Once: a store that is down is down for every look-up of every invite.
            level = logging.DEBUG if self._complained else logging.WARNING
            self._complained = True
            _log.log(level, "the store failed and is passed over: %r", error)
            return None


def _is_cancelled() -> bool:
    """Whether it is this task that is cancelled, and not one of the store's own that it waited for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
