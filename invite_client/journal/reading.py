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

from invite_client.journal.file import State, as_written, connect, explained, is_damage, refused

__all__ = ["BadLine", "DestinationSummary", "Entry", "JournalReader"]

_COUNTS = """
SELECT state, destination, count(*), count(seconds), total(seconds) FROM invites GROUP BY 1, 2
UNION ALL  -- what may have arrived and waits to be sent again is not pending, but unknown
SELECT shown, destination, sign * count(*), 0, 0
FROM invites, (SELECT 'unknown' AS shown, 1 AS sign UNION ALL VALUES ('pending', -1))
WHERE state = 'pending' AND error = 'UnknownOutcomeError' GROUP BY 1, 2
ORDER BY 2
"""

_LEAST_BYTES = 100
"""Of the file, for each invite: its event is longer by itself."""
_ENTRIES = (
    "SELECT invites.id, shown, retryable, room_version, event, invite_room_state, signed, "
    # These are in the order of the fields.
    "event_id, destination, target, room_id, attempts, seconds, endpoint, ended, error, "
    "message, retry_after "
    "FROM (SELECT *, CASE WHEN state = 'pending' AND error IS 'UnknownOutcomeError' "
    "THEN 'unknown' ELSE state END AS shown FROM invites) AS invites "
    "JOIN rooms ON rooms.id = room "
)
_IN_STATES = (
    "WHERE state IN (SELECT value FROM json_each(:stored)) "
    "AND shown IN (SELECT value FROM json_each(:states)) ORDER BY invites.id"
)
_ONE_ROW = "WHERE invites.id = :number"


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
        """Yield the invites that are in one of the `states`, in the order of the input.

        Of a damaged file, first those that can be read; then `InvalidInviteError` says how many
        cannot.
        """
        last = 0
        with explained(self._path):
            try:
                for last, entry in self._entries(_IN_STATES, states):  # noqa: B007  # used below
                    yield entry
            except Exception as error:
                if not is_damage(error):
                    raise
            else:
                return
        yield from self._salvaged(states, last)

    def _entries(
        self, where: str, states: Collection[State], **values: int
    ) -> Iterator[tuple[int, Entry]]:
        stored = {*states, State.PENDING} if State.UNKNOWN in states else states
        named = {"stored": json.dumps(list(stored)), "states": json.dumps(list(states)), **values}
        for (
            number,
            state,
            retryable,
            room_version,
            event,
            room_state,
            signed,
            *plain,
        ) in self._database.execute(_ENTRIES + where, named):
            with as_written():
                entry = Entry(
                    **dict(zip(Entry.__slots__, plain, strict=False)),
                    state=State(state),
                    retryable=None if retryable is None else bool(retryable),
                    request={
                        "room_version": room_version,
                        "event": json.loads(event),
                        "invite_room_state": json.loads(room_state),
                    },
                    signed=signed and json.loads(signed),
                )
            yield number, entry

    def _salvaged(self, states: Collection[State], last: int) -> Iterator[Entry]:
        """Yield what can be read beyond the row `last`, looking for each row by itself."""
        lost = 0
        greatest = self._greatest_row()
        for number in range(last + 1, greatest + 1):
            found: list[tuple[int, Entry]] = []
            with explained(self._path):
                try:
                    found = list(self._entries(_ONE_ROW, states, number=number))
                except Exception as error:
                    if not is_damage(error):
                        raise
                    lost += 1
            yield from (entry for _, entry in found if entry.state in states)
        how_many = f"{lost} of its invites" if greatest else "some of its invites"
        raise refused(
            self._path,
            f"is damaged: {how_many} could not be read; `sqlite3 FILE .recover` may bring back more",
        )

    def _greatest_row(self) -> int:
        """Return the number of the last row, from whatever tells it; 0 if nothing does."""
        for source in ("NOT INDEXED", "INDEXED BY by_target", "INDEXED BY by_state"):
            with explained(self._path):
                try:
                    query = f"SELECT max(id) FROM invites {source}"  # noqa: S608  # constants
                    (greatest,) = self._database.execute(query).fetchone()
                except Exception as error:
                    if not is_damage(error):
                        raise
                else:
                    # What is damaged may say anything, and no row is as short as this.
                    return min(greatest or 0, self._path.stat().st_size // _LEAST_BYTES)
        return 0

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

    def _rows(self, query: str, values: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
        with explained(self._path):
            yield from self._database.execute(query, values)
