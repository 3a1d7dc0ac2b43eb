"""A journal that is open for a run: what comes in, what is given out, what is recorded.

All of it is done by one thread, in few and large transactions.

The rows are given out fairly, whatever the order of the input: of each destination as many as it has
shown to answer, of one that does not answer a single one. So the look-ahead of a run is not filled
by dead destinations, and invites wait on disk, where there is room for them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

from invite_client.bulk import Outcome
from invite_client.clock import SystemClock
from invite_client.errors import (
    Delivery,
    InvalidInviteError,
    InviteError,
    RateLimitedError,
    Stage,
    UnknownOutcomeError,
)
from invite_client.interfaces import Clock
from invite_client.journal.file import (
    State,
    as_written,
    connect,
    counts,
    explained,
    hold,
    prepare,
    refused,
    storable,
    transaction,
)
from invite_client.journal.output import Output, out_of_date
from invite_client.policy import Limits
from invite_client.spec import canonical_json
from invite_client.spec.invites import Invite

__all__ = ["Added", "Journal"]

_LINGER = 0.05
"""Seconds for which outcomes are collected before they are committed: a commit waits for the disk,
and a kill costs no more than that what was collected is sent again."""
_BATCH = 500
"""Outcomes that are collected at most: whoever records more waits for the disk."""
_TAKEN_AT_ONCE = 100
"""Rows that one transaction gives out."""
_LOOKED_AT_ONCE = 1000
"""Destinations that one transaction looks at, where most have as many out as they may."""
_DUE_AT_ONCE = 1000
"""Deferred invites that one transaction makes pending again: they are read, and others wait for it."""
_LONGEST_DEFERRAL = 3600.0
"""Seconds. What is to be sent still later is for another run."""
_MOST_ATTEMPTS = 50
"""Sends after which no invite is deferred any more (as in `BulkPolicy.deferrals`)."""
_REMEMBERED = 10_000
"""Destinations of which it is remembered how they answered, and rooms whose row is remembered."""

T = TypeVar("T")


class Added(NamedTuple):
    """What became of some lines of the input."""

    new: int
    known: int
    """Invites that were in the journal already: nothing has changed about them."""
    bad: int


class _Row(NamedTuple):
    """A row that is given out."""

    id: int
    event_id: str
    destination: str
    event: str
    attempts: int
    room_version: str
    invite_room_state: str
    may_have_arrived: bool

    def invite(self) -> Invite:
        """Return what is to be sent. Raises `InviteError` or `ValueError` if the row is damaged."""
        invite = Invite.from_request(
            {
                "room_version": self.room_version,
                "event": _decoded(self.event),
                "invite_room_state": _decoded(self.invite_room_state),
            }
        )
        if (invite.event_id, str(invite.destination)) != (self.event_id, self.destination):
            raise ValueError(f"it is for {invite.event_id} to {invite.destination}")
        return invite


@dataclass(slots=True)
class _Out:
    """How many invites of a destination are out, and how many may be."""

    count: int = 0
    allowance: int = 1


class Journal:
    """A journal, open for one run. What goes wrong with it is an `InvalidInviteError`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        retry: Collection[State] = (),
        output: str | os.PathLike[str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Open a journal, or make it. What was in flight or unknown is to be sent again.

        It may have arrived, and is `unknown` to readers until it has an outcome. What is in one of
        the states `retry` is pending again. To `output`, if given, signed events are written
        as they come; one that is there already is taken on if it was written with this journal.

        Raises `InvalidInviteError` if the file cannot be opened or written, is damaged, is in use
        by another run, is not a journal, or was written by a newer version.
        """
        self.path: Path = Path(path)
        self._clock = clock or SystemClock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="invite_client-journal")
        self._failure: InvalidInviteError | None = None
        self._output: Output | None = None
        self._rooms: OrderedDict[bytes, int] = OrderedDict()

        self._out: dict[str, _Out] = {}
        self._given_out: dict[str, tuple[int, bool]] = {}
        """Event IDs of what is given out; how often each was sent before, and if it may have arrived."""
        self.may_have_arrived: int = 0
        """How many invites are sent again of which earlier runs do not know whether they arrived."""
        self.deferred: int = 0
        """How many invites wait for a time that the remote has named."""
        self._again: dict[str, None] = {}
        """Destinations that may be given more, because something of theirs has ended; in order."""
        self._walk: str | None = ""
        """The destination to which the walk through all of them has come; None at the end."""
        self._walk_again = False
        self._all_added = False
        self._changed = asyncio.Event()
        self._due: float | None = None
        """When the first deferred invite may be sent again, in seconds since the epoch."""
        self._collected: list[tuple[State, Outcome]] = []
        self._committing: asyncio.Task[None] | None = None
        try:
            self._thread.submit(self._open, retry).result()
            if output is not None:
                self._write_to(Path(output))
        except BaseException:
            self._thread.shutdown()
            raise

    def _write_to(self, path: Path) -> None:
        try:
            # Not in the thread, for whoever waits here for the reader of a pipe may have enough.
            self._output = Output(path)
            self._thread.submit(self._catch_up, self._output).result()
        except BaseException:
            self._thread.submit(self._close).result()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.aclose()
        else:
            with suppress(InvalidInviteError):  # It would hide the one that is being raised.
                await self.aclose()

    async def aclose(self) -> None:
        """Commit, and close the file. What was given out and has no outcome is as it was before."""
        try:
            if self._committing is not None:
                await asyncio.wait([self._committing])
            await self._do(_put_all_back)
        finally:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    # --- In -------------------------------------------------------------------------------------

    async def begin_input(self, source: str) -> None:
        """Note that an input is about to be read, perhaps again; forget its bad lines."""

        def begin(db: sqlite3.Connection) -> None:
            name = storable(source)
            db.execute("DELETE FROM bad_lines WHERE source = ?", (name,))
            db.execute("INSERT OR REPLACE INTO inputs VALUES (?, 0)", (name,))

        await self._do(begin)

    async def finish_input(self, source: str) -> None:
        """Note that an input was read to its end: what is in it is in the journal."""
        await self._do(
            lambda db: db.execute(
                "INSERT OR REPLACE INTO inputs VALUES (?, 1)", (storable(source),)
            )
        )

    async def add(
        self, lines: Sequence[tuple[int, Invite | InviteError]], source: str = ""
    ) -> Added:
        """Write down invites, and lines of which none could be made, by their number in `source`."""
        added = await self._do(lambda db: self._add(db, lines, source))
        if self._walk is None:
            self._walk = ""
        else:
            self._walk_again = True
        self._changed.set()
        return added

    def end_of_input(self) -> None:
        """Say that nothing more will be added."""
        self._all_added = True
        self._changed.set()

    async def invited(self, room_id: str, targets: Iterable[str]) -> set[str]:
        """Return those of `targets` for whom there is an invite to the room already."""
        query = "SELECT 1 FROM invites WHERE target = ? AND room_id = ?"
        return await self._do(
            lambda db: {
                target for target in targets if db.execute(query, (target, room_id)).fetchone()
            }
        )

    async def counts(self) -> dict[State, int]:
        """Return how many invites are in each state that occurs."""
        return await self._do(counts)

    # --- Out ------------------------------------------------------------------------------------

    async def invites(
        self, per_destination: int = Limits().per_destination
    ) -> AsyncIterator[Invite]:
        """Give out what is pending, until the end of the input; record the outcome of every one.

        `per_destination` is how many invites are sent to one destination at once at most.
        """
        while True:
            self._changed.clear()
            # Twice as many, so that one is waiting when another ends.
            rows = await self._take(2 * per_destination)
            for row in rows:
                try:
                    invite = row.invite()
                except (InviteError, ValueError) as error:
                    raise refused(self.path, f"is damaged in row {row.id}: {error}") from None
                yield invite
            if not rows and self._walk is None and not self._again:
                if self._all_added and not (self._given_out or self.deferred or self._committing):
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.seconds_until_due()):
                        await self._changed.wait()

    def seconds_until_due(self) -> float | None:
        """Return how long it is until the first deferred invite is sent again; None without one."""
        if self._due is None:
            return None
        wait = self._due - self._clock.time()
        return wait if 0.0 < wait <= _LONGEST_DEFERRAL else 0.0

    async def record(self, outcome: Outcome) -> State:
        """Write down how an invite ended: on disk within a moment. Waits while the disk is behind.

        Returns its state. If that is `DEFERRED`, it is given out again.
        """
        self._check()
        if outcome.invite is None:
            raise ValueError("an outcome without an invite is none of a journal's")
        sent_before, may_have_arrived = self._given_out.pop(outcome.invite.event_id)
        self._give_back(str(outcome.invite.destination), outcome)
        state = _state(outcome, outcome.sends + sent_before, may_have_arrived=may_have_arrived)
        self.deferred += state is State.DEFERRED
        self._collected.append((state, outcome))
        if self._committing is None:
            self._committing = asyncio.create_task(self._commit_soon())
        if len(self._collected) >= _BATCH:
            await asyncio.wait([self._committing])  # it goes on if whoever waits is cancelled
        return state

    async def abandon(self, invites: Iterable[Invite]) -> None:
        """Write down that invites were being sent when the run was ended: who knows how that went."""
        rows = [(invite.event_id,) for invite in invites]
        await self._do(
            lambda db: db.executemany(
                "UPDATE invites SET state = 'unknown', attempts = attempts + 1, retryable = 1, "
                "error = 'UnknownOutcomeError', message = 'interrupted while it was being sent' "
                "WHERE event_id = ?",
                rows,
            )
        )

    async def put_back(self, outcomes: Iterable[Outcome]) -> None:
        """Write down how the last sends of invites ended that are for another run to send again."""
        rows = []
        for outcome in outcomes:
            assert outcome.invite is not None  # noqa: S101  # it was sent
            before, may_have_arrived = self._given_out.pop(outcome.invite.event_id)
            sends = outcome.sends + before
            state = _state(outcome, sends, may_have_arrived=may_have_arrived)
            left = state if state in (State.UNKNOWN, State.DEFERRED) else State.PENDING
            rows.append((left, outcome))
        await self._do(lambda db: self._write(db, rows))

    def _give_back(self, name: str, outcome: Outcome) -> None:
        out = self._out[name]
        out.count -= 1
        # What was not sent, because its destination had been given up, has cost nothing.
        if outcome.error is None or not outcome.error.retryable or not outcome.sends:
            out.allowance += 2
        elif not isinstance(outcome.error, RateLimitedError):
            out.allowance = 1
        if not out.count and len(self._out) > _REMEMBERED:
            del self._out[name]
        self._again[name] = None
        self._changed.set()

    async def _take(self, most: int) -> list[_Row]:
        """Take some rows: half of destinations that have had an outcome, and half of new ones."""
        again: dict[str, int] = {}
        for name in self._again:
            out = self._out.get(name) or _Out()  # what was forgotten has nothing out
            out.allowance = min(out.allowance, most)
            if out.count < out.allowance:
                again[name] = out.allowance - out.count
        self._again = {}
        busy = {name for name, out in self._out.items() if out.count}
        walk = self._walk
        now = self._clock.time()
        taken = await self._do(lambda db: _take(db, again, busy, walk, now))
        rows, walked = taken.rows, taken.walk
        for row in rows:
            self._out.setdefault(row.destination, _Out()).count += 1
            self._given_out[row.event_id] = row.attempts, bool(row.may_have_arrived)
        self.deferred -= taken.put_back
        self._due = taken.due
        self._again = {**dict.fromkeys(taken.left), **self._again}
        if walk is not None:
            if walked is None and self._walk_again:
                walked, self._walk_again = "", False
            self._walk = walked
        return rows

    async def _commit_soon(self) -> None:
        await asyncio.sleep(_LINGER)
        with suppress(InvalidInviteError):  # It is kept, and raised to whoever comes next.
            while self._collected:
                outcomes, self._collected = self._collected, []
                await self._do(lambda db, batch=outcomes: self._write(db, batch))  # type: ignore[misc]
        self._committing = None
        self._changed.set()

    # --- In the thread --------------------------------------------------------------------------

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in the thread, in one transaction."""
        self._check()
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._transact, work)
        except InvalidInviteError as error:
            self._failure = error
            self._changed.set()
            raise

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with explained(self.path), transaction(self._database):
            return work(self._database)

    def _open(self, retry: Collection[State]) -> None:
        with ExitStack() as stack, explained(self.path):
            self._database = stack.enter_context(closing(connect(self.path, create=True)))
            self._lock = stack.enter_context(closing(hold(self.path)))
            prepare(self._database)
            with transaction(self._database):
                self._database.execute(
                    "UPDATE invites SET state = 'unknown', retryable = 1, "
                    "error = 'UnknownOutcomeError', message = ? WHERE state = 'in flight'",
                    ("in flight when its run was killed: it may have arrived",),
                )
                self._database.executemany(
                    "UPDATE invites SET state = 'pending' WHERE state = ?",
                    [(state,) for state in (State.UNKNOWN, *retry)],
                )
                (self.may_have_arrived,) = self._database.execute(
                    "SELECT count(*) FROM invites "
                    "WHERE state = 'pending' AND error = 'UnknownOutcomeError'"
                ).fetchone()
                (self.deferred,) = self._database.execute(
                    "SELECT count(*) FROM invites WHERE state = 'deferred'"
                ).fetchone()
            stack.pop_all()

    def _catch_up(self, output: Output) -> None:
        with explained(self.path):
            output.catch_up(self._database)

    def _close(self) -> None:
        with closing(self._lock), closing(self._database):
            if self._output is not None:
                self._output.close()

    def _add(
        self, db: sqlite3.Connection, lines: Sequence[tuple[int, Invite | InviteError]], source: str
    ) -> Added:
        new = known = bad = 0
        for line, item in lines:
            if isinstance(item, InviteError):
                problem: str | None = item.message
            elif self._insert(db, item):
                new += 1
                continue
            else:
                problem = _conflict(db, item)
            if problem is None:
                known += 1
                continue
            bad += 1
            row = (storable(source), line, storable(problem))
            db.execute("INSERT OR REPLACE INTO bad_lines VALUES (?,?,?)", row)
        return Added(new, known, bad)

    def _insert(self, db: sqlite3.Connection, invite: Invite) -> bool:
        """Write an invite down, and return whether it is new."""
        cursor = db.execute(
            "INSERT INTO invites (event_id, destination, target, room, room_id, event, state, "
            "added) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (event_id) DO NOTHING",
            (
                invite.event_id,
                str(invite.destination),
                invite.target,
                self._room(db, invite),
                invite.room_id,
                invite.event_json.decode(),
                State.PENDING,
                self._clock.time(),
            ),
        )
        return cursor.rowcount == 1

    def _room(self, db: sqlite3.Connection, invite: Invite) -> int:
        """Return the row of what the invite has in common with others."""
        version = invite.room_version.identifier
        digest = hashlib.sha256(version.encode() + b" " + invite.state_json).digest()
        row = self._rooms.get(digest)
        if row is None:
            db.execute(
                "INSERT OR IGNORE INTO rooms (digest, room_version, invite_room_state) "
                "VALUES (?,?,?)",
                (digest, version, invite.state_json.decode()),
            )
            (row,) = db.execute("SELECT id FROM rooms WHERE digest = ?", (digest,)).fetchone()
            self._rooms[digest] = row
            if len(self._rooms) > _REMEMBERED:
                self._rooms.popitem(last=False)
        return row

    def _write(self, db: sqlite3.Connection, outcomes: Sequence[tuple[State, Outcome]]) -> None:
        now = self._clock.time()
        db.executemany(
            "UPDATE invites SET state = ?, attempts = attempts + ?, "
            "seconds = coalesce(?, seconds), error = ?, message = ?, retryable = ?, "
            "retry_after = ?, not_before = ?, endpoint = ?, signed = ?, ended = ? "
            "WHERE event_id = ?",
            [_columns(state, outcome, now) for state, outcome in outcomes],
        )
        newly_signed = [outcome.signed for _, outcome in outcomes if outcome.signed is not None]
        if self._output is not None:
            self._output.write(db, newly_signed)
        elif newly_signed:
            out_of_date(db)


def _state(outcome: Outcome, attempts: int, *, may_have_arrived: bool) -> State:
    """Return the state in which an outcome leaves an invite that was sent so often in all.

    `may_have_arrived` is for one of which an earlier run does not know: it stays unknown where this
    run could not send it.
    """
    error = outcome.error
    if may_have_arrived and error is not None and error.delivery is Delivery.NOT_SENT:
        return State.UNKNOWN
    match error:
        # A server that was given up (`Stage.BACKOFF`) is for another run.
        case RateLimitedError(retry_after=wait) if (
            wait is not None
            and wait <= _LONGEST_DEFERRAL
            and attempts < _MOST_ATTEMPTS
            and error.stage is not Stage.BACKOFF
        ):
            return State.DEFERRED
    return State.of(error)


def _columns(state: State, outcome: Outcome, now: float) -> tuple[object, ...]:
    """Return what is recorded of an outcome, and the event ID of its invite."""
    error, signed, invite = outcome.error, outcome.signed, outcome.invite
    assert invite is not None  # noqa: S101  # `record` has looked
    return (
        state,
        outcome.sends,
        outcome.seconds if outcome.sends else None,
        UnknownOutcomeError.__name__ if state is State.UNKNOWN else error and type(error).__name__,
        error and storable(error.message),
        error and error.retryable,
        error and error.retry_after,
        now + ((error and error.retry_after) or 0.0),
        signed and signed.endpoint,
        signed and json.dumps(signed.event, ensure_ascii=False, separators=(",", ":")),
        now,
        invite.event_id,
    )


def _conflict(db: sqlite3.Connection, invite: Invite) -> str | None:
    """Return what is wrong if an event ID is in the journal already, with another event.

    That can only be in room versions 1 and 2, where the ID is chosen and not computed.
    """
    query = "SELECT event FROM invites WHERE event_id = ?"
    (event,) = db.execute(query, (invite.event_id,)).fetchone()
    if event.encode() == invite.event_json:
        return None
    with as_written():
        theirs = _decoded(event)
    ours = invite.event
    if all(
        ours.get(name) == theirs.get(name) for name in {*ours, *theirs} - {"signatures", "unsigned"}
    ):
        return None
    return f"event_id: {invite.event_id} is in the journal already, with another event"


def _put_all_back(db: sqlite3.Connection) -> None:
    """Leave what has no outcome as it was before it was given out."""
    db.execute("UPDATE invites SET state = 'pending' WHERE state = 'in flight'")
    db.execute(
        "UPDATE invites SET state = 'unknown' "
        "WHERE state = 'pending' AND error = 'UnknownOutcomeError'"
    )


class _Taken(NamedTuple):
    """What one transaction gives out."""

    rows: list[_Row]
    left: list[str]
    """Destinations whose turn did not come, or to which deferred invites have come back."""
    walk: str | None
    """Where the walk has come."""
    put_back: int
    """How many deferred invites have come back."""
    due: float | None
    """When the first of the others may be sent again, in seconds since the epoch."""


# Each by the index, for which SQLite would not decide by itself: very many may be deferred.
_DUE = " UNION ALL ".join(
    f"SELECT id, destination FROM invites INDEXED BY deferred WHERE state = 'deferred' AND {is_due}"  # noqa: S608  # constants
    # Nothing is deferred for longer: what claims to be so, the clock has gone back since.
    for is_due in ("not_before <= :now", "not_before > :now + :longest")
)
_NEXT_DUE = "SELECT min(not_before) FROM invites INDEXED BY deferred WHERE state = 'deferred'"


def _take(
    db: sqlite3.Connection,
    again: dict[str, int],
    busy: Collection[str],
    walk: str | None,
    now: float,
) -> _Taken:
    """Give out rows: up to so many of the destinations `again`, and one each of those that follow."""
    rows: list[_Row] = []
    left = list(again)
    share = _TAKEN_AT_ONCE if walk is None else _TAKEN_AT_ONCE // 2
    while left and len(rows) < share:
        name = left.pop(0)
        rows += _pending(db, name, again[name])
    looked_at = 0
    while walk is not None and len(rows) < _TAKEN_AT_ONCE and looked_at < _LOOKED_AT_ONCE:
        found = db.execute(
            "SELECT destination FROM invites WHERE state = 'pending' AND destination > ? "
            "ORDER BY destination LIMIT 1",
            (walk,),
        ).fetchone()
        walk = found and found[0]
        looked_at += 1
        if walk is not None and walk not in busy and walk not in again:
            rows += _pending(db, walk, 1)
    db.executemany(
        "UPDATE invites SET state = 'in flight' WHERE id = ?", [(row.id,) for row in rows]
    )
    times = {"now": now, "longest": _LONGEST_DEFERRAL, "most": _DUE_AT_ONCE}
    due = db.execute(f"{_DUE} LIMIT :most", times).fetchall()
    db.executemany("UPDATE invites SET state = 'pending' WHERE id = ?", [(row,) for row, _ in due])
    left += dict.fromkeys(name for _, name in due)
    (next_due,) = db.execute(_NEXT_DUE).fetchone()
    return _Taken(rows, left, walk, len(due), next_due)


def _pending(db: sqlite3.Connection, destination: str, count: int) -> list[_Row]:
    return [
        _Row(*row)
        for row in db.execute(
            "SELECT invites.id, event_id, destination, event, attempts, room_version, "
            "invite_room_state, error IS 'UnknownOutcomeError' "
            "FROM invites JOIN rooms ON rooms.id = room "
            "WHERE state = 'pending' AND destination = ? ORDER BY seconds, invites.id LIMIT ?",
            (destination, count),
        )
    ]


def _decoded(text: str) -> Any:
    return canonical_json.decode(text.encode(), strict=False)
