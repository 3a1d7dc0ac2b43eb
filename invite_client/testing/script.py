"""What a homeserver was told to do at its next requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

__all__ = ["Endpoint", "Script"]

T = TypeVar("T")

Endpoint: TypeAlias = Literal[
    "v2", "v1", "keys", "query", "version", "profile", "unknown", "connection"
]
"""What a request is for: an invite by v2 or v1, the server's keys, another server's keys (as a
notary), the server's version, a user's profile, or something that it does not know. A connection
comes before any."""


@dataclass(slots=True)
class _Entry(Generic[T]):
    what: T
    endpoint: Endpoint | None
    times: int

    def concerns(self, endpoint: Endpoint) -> bool:
        # An invite is what a test is about. A key request travels beside it: what is meant for "the
        # next request" must not be spent on that.
        return endpoint == self.endpoint or (self.endpoint is None and endpoint in ("v2", "v1"))


class Script(Generic[T]):
    """Things to do, each for one endpoint or for invites by either, so often or for ever."""

    def __init__(self) -> None:
        self._counted: list[_Entry[T]] = []
        self._standing: list[_Entry[T]] = []

    def tell(self, what: T, endpoint: Endpoint | None, times: int | None) -> None:
        """Do this so often, after what was told before; or, without `times`, whenever else."""
        if times is not None and times < 1:
            raise ValueError(f"times must be 1 or more, or None for ever, not {times}")
        entries = self._standing if times is None else self._counted
        entries.append(_Entry(what, endpoint, times or 0))

    def next(self, endpoint: Endpoint) -> T | None:
        """Return what is to be done at a request to this endpoint, and count it as done."""
        for entry in self._counted:
            if entry.concerns(endpoint):
                entry.times -= 1
                if not entry.times:
                    self._counted.remove(entry)
                return entry.what
        # Of two things told for ever, the later one holds.
        return next((e.what for e in reversed(self._standing) if e.concerns(endpoint)), None)

    def clear(self) -> None:
        """Forget everything."""
        self._counted.clear()
        self._standing.clear()
