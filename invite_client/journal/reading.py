"""What a journal says, for those who ask; also while a run writes to it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from invite_client.journal.file import State, as_written, connect, explained

__all__ = ["BadLine", "DestinationSummary", "Entry", "JournalReader"]

_COUNTS = """
SELECT state, destination, count(*), count(seconds), total(seconds) FROM invites GROUP BY 1, 2
UNION ALL  -- what may have arrived and waits to be sent again is not pending, but unknown
SELECT shown, destination, sign * count(*), 0, 0
FROM invites, (SELECT 'unknown' AS shown, 1 AS sign UNION ALL VALUES ('pending', -1))
WHERE state = 'pending' AND error = 'UnknownOutcomeError' GROUP BY 1, 2
ORDER BY 2
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One invite, as the journal has it."""

    event_id: str
    destination: str
    target: str
    room_id: str
    attempts: int
    """How often it was sent, as far as an outcome was recorded."""
    seconds: float | None
    """How long its last send took."""
    endpoint: str | None
    ended: float | None
    """When its outcome was recorded, in seconds since the epoch."""
    error: str | None
    """The class of the last error."""
    message: str | None
    retry_after: float | None
    """Seconds that the remote, or our own back-off, asked to wait."""
    state: State
    retryable: bool | None
    """Whether it says that sending it again, later, may succeed."""
    request: dict[str, Any]
    """The body of the v2 request."""
    signed: dict[str, Any] | None
    """The event with both servers' signatures."""


class BadLine(NamedTuple):
    """A line of the input of which no invite could be made."""

    source: str
    line: int
    message: str


class DestinationSummary(NamedTuple):
    """How the invites of one destination stand."""

    destination: str
    states: dict[State, int]
    seconds: float | None
    """The mean time of the last send of each; None if there was none."""
    message: str | None
    """The last of its errors."""
    not_before: float | None
    """When the first that is put off may be sent again, in seconds since the epoch."""

    @property
    def unsigned(self) -> int:
        """How many of them are not signed, or not yet."""
        return sum(self.states.values()) - self.states.get(State.SIGNED, 0)


class JournalReader:
    """A journal, open for reading only."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a journal. Raises `InvalidInviteError`, as does every method if the file fails."""
        self._path = Path(path)
        with explained(self._path):
            self._database = connect(self._path, create=False)
            self._database.execute("PRAGMA query_only = ON")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def copy_to(self, path: str | os.PathLike[str]) -> None:
        """Write a copy of the journal to a new file."""
        with explained(self._path), closing(sqlite3.connect(path)) as copy:
            self._database.backup(copy)

    def counts(self) -> dict[State, int]:
        """Return how many invites are in each state that occurs."""
        found: Counter[State] = Counter()
        for state, _, count, *_ in self._rows(_COUNTS):
            found[self._state(state)] += count
        return dict(+found)

    def bad_lines(self) -> Iterator[BadLine]:
        """Yield the lines of which no invite could be made."""
        for row in self._rows("SELECT source, line, message FROM bad_lines ORDER BY source, line"):
            yield BadLine(*row)

    def unread_inputs(self) -> list[str]:
        """Return the inputs that were not read to their end, so that some of them may be missing."""
        if not list(self._rows("SELECT 1 FROM sqlite_master WHERE name = 'inputs'")):
            return []  # begun with a version that did not note it
        rows = self._rows("SELECT source FROM inputs WHERE NOT read_to_its_end ORDER BY source")
        return [source for (source,) in rows]

    def bad_line_count(self) -> int:
        """Return how many lines there were of which no invite could be made."""
        [(count,)] = self._rows("SELECT count(*) FROM bad_lines")
        return int(count)

    def final_failures(self) -> int:
        """Return how many invites ended without a signature, and sending again will not help them."""
        [(count,)] = self._rows(
            "SELECT count(*) FROM invites "
            "WHERE state IN ('rejected', 'failed', 'unknown') AND NOT retryable"
        )
        return int(count)

    def entries(self, states: Collection[State] = tuple(State)) -> Iterator[Entry]:
        """Yield the invites that are in one of the `states`, in the order of the input."""
        stored = {*states, State.PENDING} if State.UNKNOWN in states else states
        for state, retryable, room_version, event, room_state, signed, *plain in self._rows(
            "SELECT shown, retryable, room_version, event, invite_room_state, signed, "
            # These are in the order of the fields.
            "event_id, destination, target, room_id, attempts, seconds, endpoint, ended, error, "
            "message, retry_after "
            "FROM (SELECT *, CASE WHEN state = 'pending' AND error IS 'UnknownOutcomeError' "
            "THEN 'unknown' ELSE state END AS shown FROM invites) AS invites "
            "JOIN rooms ON rooms.id = room "
            "WHERE state IN (SELECT value FROM json_each(?)) "
            "AND shown IN (SELECT value FROM json_each(?)) ORDER BY invites.id",
            (json.dumps(list(stored)), json.dumps(list(states))),
        ):
            yield Entry(
                **dict(zip(Entry.__slots__, plain, strict=False)),
                state=State(state),
                retryable=None if retryable is None else bool(retryable),
                request={
                    "room_version": room_version,
                    "event": self._json(event),
                    "invite_room_state": self._json(room_state),
                },
                signed=signed and self._json(signed),
            )

    def destinations(self) -> list[DestinationSummary]:
        """Return how the invites of each destination stand, by name."""
        # SQLite takes the other columns from the row that has the greatest value.
        messages = {
            name: message
            for name, message, _ in self._rows(
                "SELECT destination, message, max(ended) FROM invites "
                "WHERE state <> 'signed' AND message IS NOT NULL GROUP BY destination"
            )
        }
        not_before = dict(
            self._rows(
                "SELECT destination, min(not_before) FROM invites "
                "WHERE state <> 'signed' AND retry_after IS NOT NULL GROUP BY destination"
            )
        )
        states: dict[str, Counter[State]] = {}
        seconds: dict[str, list[float]] = {}
        for state, name, count, timed, total in self._rows(_COUNTS):
            states.setdefault(name, Counter())[self._state(state)] += count
            sums = seconds.setdefault(name, [0, 0.0])
            sums[0] += timed
            sums[1] += total
        return [
            DestinationSummary(
                name,
                dict(+by_state),
                seconds[name][1] / seconds[name][0] if seconds[name][0] else None,
                messages.get(name),
                not_before.get(name),
            )
            for name, by_state in states.items()
        ]

    def seconds(self, state: State) -> Iterator[float]:
        """Yield how long the last send of each invite in this state took."""
        for (value,) in self._rows(
            "SELECT seconds FROM invites WHERE state = ? AND seconds IS NOT NULL", (state,)
        ):
            yield value

    def span(self) -> tuple[float, float] | None:
        """Return when the first invite was added and the last one ended, since the epoch."""
        [(first, last)] = self._rows("SELECT min(added), max(ended) FROM invites")
        return None if first is None or last is None else (first, last)

    def _state(self, text: str) -> State:
        with explained(self._path), as_written():
            return State(text)

    def _json(self, text: str) -> Any:
        with explained(self._path), as_written():
            return json.loads(text)

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with explained(self._path):
            yield from self._database.execute(query, values)
