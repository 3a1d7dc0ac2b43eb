"""The default store: a bounded dictionary that forgets what was used least recently."""

from __future__ import annotations

from collections import OrderedDict

from invite_client.interfaces import Stored

__all__ = ["MemoryStore"]


class MemoryStore:
    """An `interfaces.Store` that lives and dies with the process."""

    def __init__(self, limit: int) -> None:
        """Keep at most `limit` values, of all kinds together."""
        self._limit = limit
        self._values: OrderedDict[tuple[str, str], Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    async def get(self, kind: str, key: str) -> Stored | None:
        """Return what was put last, or None."""
        stored = self._values.get((kind, key))
        if stored is not None:
            self._values.move_to_end((kind, key))
        return stored

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        """Remember a value; the least recently used one makes room for it."""
        self._values[kind, key] = stored
        self._values.move_to_end((kind, key))
        while len(self._values) > self._limit:
            self._values.popitem(last=False)

    async def delete(self, kind: str, key: str) -> None:
        """Forget a value, if it is there."""
        self._values.pop((kind, key), None)

    async def aclose(self) -> None:
        """Nothing is open."""
