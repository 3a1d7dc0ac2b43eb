"""What a run has done survives anything, and nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from invite_client import Invite, InviteError, Outcome
from invite_client.clock import SystemClock
from invite_client.errors import (
    CountersignatureError,
    CountersignatureProblem,
    Delivery,
    ForbiddenByPolicyError,
    InvalidInviteError,
    InviteRejectedError,
    RateLimitedError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.journal import Added, BadLine, Journal, JournalReader, State
from invite_client.spec.invites import SignedInvite
from invite_client.testing import make_invite
from tests.test_bulk import NOWHERE

ROOM = make_invite()


def invite(number: int, destination: str = "remote.example", version: str = "10") -> Invite:
    return make_invite(f"@u{number}:{destination}", version)


def signed(what: Invite) -> Outcome:
    event = what.copy_event()
    event["signatures"][str(what.destination)] = {"ed25519:a": "sig"}
    result = SignedInvite(event, {"ed25519:a": "sig"}, "v2", NOWHERE, what)
    return Outcome(0, what, result, None, 0.25, 1)


def failed(what: Invite, error: InviteError, sends: int = 1) -> Outcome:
    return Outcome(0, what, None, error, 0.5, sends)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


async def run(
    journal: Journal,
    invites: Iterable[Invite | InviteError] = (),
    outcome: Callable[[Invite], Outcome] = signed,
) -> list[str]:
    """Add, give out, record; return the event IDs in the order in which they were given out."""
    lines = list(enumerate(invites, 1))
    await journal.add(lines)
    journal.end_of_input()
    given_out = []
    async for what in journal.invites():
        given_out.append(what.event_id)
        await journal.record(outcome(what))
    return given_out


def entries(path: Path, *states: State) -> list[Any]:
    with JournalReader(path) as reader:
        return list(reader.entries(states or tuple(State)))


# --- One row for each invite --------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1", "6", "10", "12"])
async def test_what_is_given_out_is_what_was_added(path: Path, version: str) -> None:
    given = invite(1, version=version)
    async with Journal(path) as journal:
        await journal.add([(1, given)])
        journal.end_of_input()
        async for what in journal.invites():
            assert given.event_json == what.event_json
            assert given.to_request() == what.to_request()
            await journal.record(signed(what))


async def test_room_state_is_kept_however_deep_it_may_be(path: Path) -> None:
    deep: Any = {}
    for _ in range(97):
        deep = {"a": deep}
    create, *_ = invite(1).invite_room_state
    topic = {**create, "type": "m.room.topic", "content": {"topic": deep}}
    given = Invite.from_pdu(invite(1).event, "10", [create, topic])
    async with Journal(path) as journal:
        await journal.add([(1, given)])
        journal.end_of_input()
        async for what in journal.invites():
            assert given.to_request() == what.to_request()
            await journal.record(signed(what))


async def test_a_signed_event_is_kept(path: Path) -> None:
    given = invite(1)
    async with Journal(path) as journal:
        await run(journal, [given])
    [entry] = entries(path)

    assert (given.event_id, "remote.example", "@u1:remote.example", State.SIGNED) == (
        entry.event_id,
        entry.destination,
        entry.target,
        entry.state,
    )
    assert signed(given).signed.event == entry.signed
    assert given.to_request() == entry.request
    assert (1, 0.25, "v2", None) == (entry.attempts, entry.seconds, entry.endpoint, entry.error)


REFUSED = InviteRejectedError("the invite was answered 403", status=403)


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (REFUSED, State.REJECTED),
        (RateLimitedError("429", status=429, retryable=True, retry_after=9999.0), State.FAILED),
        (RateLimitedError("429", status=429, retryable=True), State.FAILED),
        (InviteRejectedError("502", status=502, retryable=True), State.FAILED),
        (UnreachableError("nobody there", retryable=True), State.FAILED),
        (UnknownOutcomeError("no answer", retryable=True), State.UNKNOWN),
        (
            CountersignatureError("forged", problem=CountersignatureProblem.NOT_SIGNED),
            State.FAILED,
        ),
    ],
    ids=lambda value: value if isinstance(value, State) else type(value).__name__,
)
async def test_an_error_is_recorded(path: Path, error: InviteError, state: State) -> None:
    async with Journal(path) as journal:
        await run(journal, [invite(1)], lambda what: failed(what, error, sends=3))
    [entry] = entries(path)

    assert state == entry.state
    assert (type(error).__name__, error.message, error.retryable, error.retry_after, 3) == (
        entry.error,
        entry.message,
        entry.retryable,
        entry.retry_after,
        entry.attempts,
    )


async def test_the_same_input_again_adds_nothing(path: Path) -> None:
    given = [invite(number) for number in range(5)]
    async with Journal(path) as journal:
        assert Added(5, 0, 0) == await journal.add(list(enumerate(given)))
        assert Added(0, 5, 0) == await journal.add(list(enumerate(given)))
    async with Journal(path) as journal:
        assert Added(0, 5, 0) == await journal.add(list(enumerate(given)))
        assert 5 == len(await run(journal))


async def test_one_event_id_for_two_events_is_a_bad_line(path: Path) -> None:
    """In room versions 1 and 2 the ID is chosen, so it may be chosen twice."""
    first = invite(1, version="1")
    second = replace(first, event={**first.event, "depth": 99}, event_json=b"{}")
    async with Journal(path) as journal:
        assert Added(1, 0, 0) == await journal.add([(1, first)], "in")
        assert Added(0, 0, 1) == await journal.add([(2, second)], "in")
        assert Added(0, 1, 0) == await journal.add([(3, replace(first, event_json=b"{}"))], "in")
    with JournalReader(path) as reader:
        [line] = reader.bad_lines()

    assert ("in", 2) == line[:2]
    assert first.event_id in line.message


async def test_bad_lines_are_recorded_once_and_forgotten_when_they_are_mended(path: Path) -> None:
    bad = InvalidInviteError("is missing", field="event")
    for _ in range(2):
        async with Journal(path) as journal:
            await journal.begin_input("in.jsonl")
            await journal.add([(3, bad), (7, bad)], "in.jsonl")
        with JournalReader(path) as reader:
            assert [
                BadLine("in.jsonl", 3, "event: is missing"),
                BadLine("in.jsonl", 7, "event: is missing"),
            ] == list(reader.bad_lines())
    async with Journal(path) as journal:
        await journal.begin_input("in.jsonl")
        await journal.add([(3, invite(3)), (7, bad)], "in.jsonl")
    with JournalReader(path) as reader:
        assert [7] == [line.line for line in reader.bad_lines()]


async def test_who_is_invited_to_a_room_is_known(path: Path) -> None:
    given = invite(1)
    async with Journal(path) as journal:
        await journal.add([(1, given)])
        targets = ["@u1:remote.example", "@u2:remote.example"]

        assert {"@u1:remote.example"} == await journal.invited(given.room_id, targets)
        assert set() == await journal.invited("!other:inviter.example", targets)


# --- What is sent again -------------------------------------------------------------------------

ERRORS = {
    State.REJECTED: REFUSED,
    State.FAILED: UnreachableError("nobody there", retryable=True),
    State.UNKNOWN: UnknownOutcomeError("no answer", retryable=True),
}


async def one_of_each(path: Path) -> dict[str, str]:
    """A journal with an invite in each final state; its event IDs and their states."""
    states: dict[str, str] = {}
    todo = iter(["signed", *ERRORS])

    def outcome(what: Invite) -> Outcome:
        state = next(todo)
        states[what.event_id] = str(state)
        return signed(what) if state == "signed" else failed(what, ERRORS[state])

    async with Journal(path) as journal:
        await run(journal, [invite(number) for number in range(4)], outcome)
    return states


@pytest.mark.parametrize(
    ("retry", "again"),
    [
        ((), {"unknown"}),
        ((State.FAILED,), {"unknown", "failed"}),
        ((State.REJECTED, State.FAILED), {"unknown", "failed", "rejected"}),
    ],
)
async def test_what_is_sent_again(path: Path, retry: tuple[State, ...], again: set[str]) -> None:
    states = await one_of_each(path)
    async with Journal(path, retry=retry) as journal:
        given_out = await run(journal)

    assert again == {states[event_id] for event_id in given_out}
    assert {1 + (states[entry.event_id] in again) for entry in entries(path)} == {1, 2}
    assert all(entry.attempts == 1 + (states[entry.event_id] in again) for entry in entries(path))


async def test_what_was_not_sent_again_keeps_the_time_of_its_last_send(path: Path) -> None:
    down = UnreachableError("nobody there", retryable=True)
    async with Journal(path) as journal:
        await run(journal, [invite(1)], lambda what: failed(what, down))
    async with Journal(path, retry=[State.FAILED]) as journal:
        await run(journal, (), lambda what: failed(what, down, sends=0))

    assert [(0.5, 1)] == [(entry.seconds, entry.attempts) for entry in entries(path)]


async def test_what_was_given_out_and_has_no_outcome_is_pending_again(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.add(list(enumerate([invite(1, "a.example"), invite(2, "b.example")])))
        given_out = journal.invites()
        abandoned = await anext(given_out)
        assert {State.IN_FLIGHT: 2} == await journal.counts()
        await journal.abandon([abandoned])
        await given_out.aclose()

    assert {abandoned.event_id: State.UNKNOWN} == {
        entry.event_id: entry.state for entry in entries(path) if entry.state is not State.PENDING
    }
    assert 2 == len(entries(path))


def later(seconds: float) -> RateLimitedError:
    return RateLimitedError("too many", status=429, retryable=True, retry_after=seconds)


async def test_what_is_deferred_is_given_out_again_when_the_time_has_come(path: Path) -> None:
    given_out: list[tuple[float, str]] = []
    limited = invite(1, "limiting.example")
    loop = asyncio.get_running_loop()
    begun = loop.time()

    def outcome(what: Invite) -> Outcome:
        given_out.append((loop.time() - begun, what.event_id))
        again = [event_id for _, event_id in given_out].count(what.event_id)
        first = what.event_id == limited.event_id and again == 1
        return failed(what, later(0.4)) if first else signed(what)

    async with Journal(path) as journal:
        await run(journal, [limited, *(invite(number) for number in range(3))], outcome)

    assert 5 == len(given_out)
    assert given_out[-1][1] == limited.event_id
    assert given_out[-1][0] >= 0.4
    assert {State.SIGNED} == {entry.state for entry in entries(path)}


async def test_what_is_deferred_stays_so_in_another_run(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.add([(1, invite(1))])
        what = await anext(journal.invites())
        assert State.DEFERRED == await journal.record(failed(what, later(0.3)))
    assert [State.DEFERRED] == [entry.state for entry in entries(path)]
    async with Journal(path) as journal:
        assert 1 == len(await run(journal))


async def test_it_is_known_when_the_first_that_is_put_off_is_sent_again(path: Path) -> None:
    waits = {"a.example": 300.0, "b.example": 7200.0, "c.example": None}
    given = {name: [invite(number, name) for number in range(2)] for name in waits}
    clock = FixedClock()
    async with Journal(path, clock=clock) as journal:
        assert journal.seconds_until_due() is None
        await journal.add([*enumerate(given["a.example"] + given["b.example"], 1)])
        await journal.add([*enumerate(given["c.example"], 5)])
        given_out = journal.invites()
        for _ in range(6):
            what = await anext(given_out)
            wait = waits[str(what.destination)]
            error = later(wait) if wait else UnreachableError("gone", retryable=True)
            await journal.record(failed(what, error))
            clock.now += 10
        following = asyncio.ensure_future(anext(given_out))
        while (due := journal.seconds_until_due()) is None:
            await asyncio.sleep(0)
        assert 2 == journal.deferred
        following.cancel()
        await asyncio.wait([following])
    with JournalReader(path) as reader:
        known = {one.destination: one.not_before for one in reader.destinations()}

    ended = {one.event_id: one.ended for one in entries(path)}
    first = {name: min(ended[one.event_id] for one in given[name]) for name in given}
    assert {
        "a.example": first["a.example"] + 300,
        "b.example": first["b.example"] + 7200,
        "c.example": None,
    } == known
    assert due == first["a.example"] + 300 - clock.now


class FixedClock(SystemClock):
    """A clock that stands still until somebody sets it."""

    now = 1_700_000_000.0

    def time(self) -> float:
        return self.now


class MovedClock(SystemClock):
    """A clock that somebody sets."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@pytest.mark.parametrize("in_another_run", [True, False])
async def test_what_is_deferred_does_not_wait_for_a_time_that_the_clock_went_back_from(
    path: Path, in_another_run: bool
) -> None:
    clock = MovedClock()
    clock.ahead = 48 * 3600.0
    journal = Journal(path, clock=clock)
    await journal.add([(1, invite(1))])
    journal.end_of_input()
    given_out = journal.invites()
    what = await anext(given_out)
    await journal.record(failed(what, later(0.01)))
    while State.DEFERRED not in await journal.counts():
        await asyncio.sleep(0)
    clock.ahead = 0.0
    if in_another_run:
        await journal.aclose()
        journal = Journal(path, clock=clock)
        journal.end_of_input()
        given_out = journal.invites()

    async with journal:
        assert what == await anext(given_out)


async def test_what_is_deferred_costs_nothing_until_its_time_has_come(path: Path) -> None:
    """Else each invite that is given out would cost more, the more users a server limits."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    given = [invite(number, f"d{number % 3}.example") for number in range(300)]
    async with Journal(path) as journal:
        await journal.add(list(enumerate(given[:-1], 1)))
        given_out = journal.invites()
        for _ in given[:-1]:
            await journal.record(failed(await anext(given_out), later(3000)))
    async with Journal(path) as journal:
        await journal.add([(1, given[-1])])
        await journal._do(lambda db: db.set_progress_handler(count, 1))
        what = await anext(journal.invites())

    assert given[-1].event_id == what.event_id
    assert len(given) - 1 == journal.deferred
    assert steps < len(given)


async def test_however_many_are_due_at_once_all_are_given_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invite_client.journal.writing._DUE_AT_ONCE", 2)
    limited: set[str] = set()

    def limits_once(what: Invite) -> Outcome:
        if what.event_id in limited:
            return signed(what)
        limited.add(what.event_id)
        return failed(what, later(0.01))

    async with Journal(path) as journal:
        await run(
            journal, [invite(number, f"d{number % 3}.example") for number in range(9)], limits_once
        )

    assert 9 == len(entries(path, State.SIGNED))
    assert 0 == journal.deferred


async def test_what_is_deferred_again_and_again_fails_in_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invite_client.journal.writing._MOST_ATTEMPTS", 3)
    async with Journal(path) as journal:
        given_out = await run(journal, [invite(1)], lambda what: failed(what, later(0.01)))
    [entry] = entries(path)

    assert 3 == len(given_out)
    assert (State.FAILED, 3, 0.01) == (entry.state, entry.attempts, entry.retry_after)


# --- Given out fairly ---------------------------------------------------------------------------


async def test_an_input_that_is_sorted_is_given_out_fairly(path: Path) -> None:
    """The first 300 lines are one server, which does not answer; the others go on."""
    given = [invite(number, "dead.example") for number in range(300)]
    given += [invite(number, f"d{number % 3}.example") for number in range(60)]
    async with Journal(path) as journal:
        await journal.add(list(enumerate(given)))
        journal.end_of_input()
        counts: Counter[str] = Counter()
        async for what in journal.invites():
            name = str(what.destination)
            counts[name] += 1
            if name != "dead.example":
                await journal.record(signed(what))
                if sum(counts.values()) == 61:
                    break

    assert {"dead.example": 1, **{f"d{i}.example": 20 for i in range(3)}} == counts


async def test_who_answers_is_given_more_and_who_fails_one(path: Path) -> None:
    down = UnreachableError("nobody there", retryable=True)
    out: Counter[str] = Counter()
    most: Counter[str] = Counter()
    given = [invite(number, f"{name}.example") for number in range(40) for name in ("good", "bad")]
    async with Journal(path) as journal:
        await journal.add(list(enumerate(given)))
        journal.end_of_input()
        waiting: list[Invite] = []

        async def end_one() -> None:
            what = waiting.pop(0)
            out[str(what.destination)] -= 1
            good = str(what.destination) == "good.example"
            await journal.record(signed(what) if good else failed(what, down))

        given_out = journal.invites(per_destination=3)
        following = asyncio.ensure_future(anext(given_out, None))
        while True:
            done, _ = await asyncio.wait([following], timeout=0.01 if waiting else None)
            if not done:
                await end_one()
                continue
            what = following.result()
            if what is None:
                break
            waiting.append(what)
            name = str(what.destination)
            out[name] += 1
            most[name] = max(most[name], out[name])
            following = asyncio.ensure_future(anext(given_out, None))

    assert {"good.example": 6, "bad.example": 1} == most
    assert {State.SIGNED: 40, State.FAILED: 40} == Counter(entry.state for entry in entries(path))


async def test_who_fails_while_several_are_out_is_given_no_more(path: Path) -> None:
    """Less may be out than is."""
    down = UnreachableError("nobody there", retryable=True)
    async with Journal(path) as journal:
        await journal.add([(number, invite(number)) for number in range(60)])
        journal.end_of_input()
        given_out = journal.invites()
        await journal.record(signed(await anext(given_out)))
        out = [await anext(given_out) for _ in range(3)]
        await journal.record(failed(out[0], down))
        following = asyncio.ensure_future(anext(given_out))
        await asyncio.wait([following], timeout=0.2)

        assert not following.done()
        assert 2 == (await journal.counts())[State.IN_FLIGHT]
        following.cancel()
        await asyncio.wait([following])


async def test_what_is_remembered_of_destinations_is_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invite_client.journal.writing._REMEMBERED", 3)
    async with Journal(path) as journal:
        await run(journal, [invite(1, f"d{number}.example") for number in range(9)])

        assert 3 == len(journal._out)


async def test_a_recorder_that_is_cancelled_takes_no_outcome_along(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invite_client.journal.writing._BATCH", 1)
    async with Journal(path) as journal:
        await journal.add([(1, invite(1))])
        what = await anext(journal.invites())
        recording = asyncio.create_task(journal.record(signed(what)))
        await asyncio.sleep(0)
        recording.cancel()
        await asyncio.wait([recording])
        assert recording.cancelled()

    assert [State.SIGNED] == [entry.state for entry in entries(path)]


async def test_invites_that_are_added_later_are_given_out(path: Path) -> None:
    async with Journal(path) as journal:
        given_out: list[str] = []

        async def send() -> None:
            async for what in journal.invites():
                given_out.append(what.target)
                await journal.record(signed(what))

        sending = asyncio.create_task(send())
        names = ["m.example", "a.example", "z.example", "a.example"]
        for number, name in enumerate(names):
            await journal.add([(number, invite(number, name))])
            while len(given_out) <= number:
                await asyncio.sleep(0)
        journal.end_of_input()
        await sending

    assert [f"@u{number}:{name}" for number, name in enumerate(names)] == given_out


async def test_more_destinations_than_are_looked_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invite_client.journal.writing._LOOKED_AT_ONCE", 3)
    monkeypatch.setattr("invite_client.journal.writing._TAKEN_AT_ONCE", 4)
    given = [invite(number, f"d{number % 17}.example") for number in range(60)]
    async with Journal(path) as journal:
        given_out = await run(journal, given)

    assert sorted(what.event_id for what in given) == sorted(given_out)


# --- The file -----------------------------------------------------------------------------------


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InvalidInviteError) as caught:
        Journal(path, **options)
    assert str(path) in str(caught.value)
    return caught.value.message


async def test_what_is_recorded_survives_a_power_cut(path: Path) -> None:
    async with Journal(path) as journal:
        ask = journal._thread.submit(
            lambda: journal._database.execute("PRAGMA synchronous").fetchone()
        )

        assert (2,) == ask.result()  # FULL


async def test_a_second_run_is_refused_and_a_reader_is_not(path: Path) -> None:
    journal = Journal(path)
    await journal.add([(1, invite(1))])

    assert "in use by another run" in refusal(path)
    link = path.with_name("link")
    link.symlink_to(path)
    assert "in use by another run" in refusal(link)
    with JournalReader(path) as reader:
        assert {State.PENDING: 1} == reader.counts()
    await journal.aclose()
    await Journal(path).aclose()


async def test_a_journal_that_was_begun_with_an_earlier_version_is_shown_and_goes_on(
    path: Path,
) -> None:
    async with Journal(path) as journal:
        await journal.add([(1, invite(1)), (2, invite(2))])
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE inputs")
        database.execute("DROP INDEX may_have_arrived")
        database.commit()

    with JournalReader(path) as reader:
        assert ({State.PENDING: 2}, []) == (reader.counts(), reader.unread_inputs())
    async with Journal(path) as journal:
        await journal.begin_input("in.jsonl")
        assert 2 == len(await run(journal))
    with JournalReader(path) as reader:
        assert ({State.SIGNED: 2}, ["in.jsonl"]) == (reader.counts(), reader.unread_inputs())


def test_another_programs_file_is_refused_and_left_as_it_is(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()

    assert "another program" in refusal(path)
    assert before == path.read_bytes()
    assert [path] == list(path.parent.iterdir())


@pytest.mark.parametrize("content", [b"x" * 5000, b"SQLite format 3\0" + b"\xff" * 4096])
def test_what_is_no_database_is_refused_and_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)

    assert "is no journal" in refusal(path) or "damaged" in refusal(path)
    assert content == path.read_bytes()


async def test_a_newer_file_is_refused(path: Path) -> None:
    await Journal(path).aclose()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")

    assert "newer version" in refusal(path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "its folder must be there" in refusal(tmp_path / "missing" / "run.sqlite")


def test_only_a_journal_can_be_read(path: Path) -> None:
    with pytest.raises(InvalidInviteError, match="does not exist"):
        JournalReader(path)
    path.write_bytes(b"")
    with pytest.raises(InvalidInviteError, match="no journal"):
        JournalReader(path)


async def test_a_file_that_is_damaged_in_the_middle_is_told(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.add([(number, invite(number)) for number in range(50)])
    damaged = bytearray(path.read_bytes())
    damaged[8192:] = random.Random(1).randbytes(len(damaged) - 8192)
    path.write_bytes(damaged)

    with pytest.raises(InvalidInviteError, match="damaged"):
        async with Journal(path) as journal:
            await run(journal)
    with pytest.raises(InvalidInviteError, match="damaged"), JournalReader(path) as reader:
        list(reader.entries())


def changed(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement)


async def test_a_row_that_somebody_has_changed_is_not_sent(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.add([(1, invite(1))])
    changed(path, "UPDATE invites SET event = replace(event, '@u1', '@u2')")

    with pytest.raises(InvalidInviteError, match=r"damaged in row 1: event\.hashes"):
        async with Journal(path) as journal:
            await run(journal)


@pytest.mark.parametrize(
    "change",
    [
        "event_id = '$' || substr(event_id, 3) || 'A'",
        "destination = 'another.example'",
    ],
)
async def test_a_row_that_is_for_another_event_is_not_sent(path: Path, change: str) -> None:
    async with Journal(path) as journal:
        await journal.add([(1, invite(1))])
    changed(path, f"UPDATE invites SET {change}")

    with pytest.raises(InvalidInviteError, match=r"damaged in row 1: it is for \$.* to remote"):
        async with Journal(path) as journal:
            await run(journal)


async def all_entries(path: Path) -> None:
    entries(path)


async def counted(path: Path) -> None:
    with JournalReader(path) as reader:
        reader.counts()


async def by_destination(path: Path) -> None:
    with JournalReader(path) as reader:
        reader.destinations()


async def counted_for_a_run(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.counts()


DAMAGED = invite(1)


async def added_again(path: Path) -> None:
    async with Journal(path) as journal:
        await journal.add([(1, DAMAGED)])


async def written_to_an_output(path: Path) -> None:
    await Journal(path, output=path.with_name("signed.jsonl")).aclose()


@pytest.mark.parametrize(
    ("column", "use"),
    [
        ("event", all_entries),
        ("event", added_again),
        ("invite_room_state", all_entries),
        ("signed", all_entries),
        ("signed", written_to_an_output),
        ("state", counted),
        ("state", by_destination),
        ("state", counted_for_a_run),
    ],
)
@pytest.mark.parametrize(
    "value",
    ["'{\"membership'", f"'{'[' * 100_000}'", "CAST('{\"membership' || x'ff' AS TEXT)"],
    ids=["cut off", "too deep", "no UTF-8"],
)
async def test_a_value_that_is_damaged_is_told_and_not_shown(
    path: Path, column: str, use: Callable[[Path], Awaitable[None]], value: str
) -> None:
    async with Journal(path) as journal:
        await run(journal, [DAMAGED])
    table = "rooms" if column == "invite_room_state" else "invites"
    changed(path, f"UPDATE {table} SET {column} = {value}")

    with pytest.raises(
        InvalidInviteError, match=r"is damaged(; what can be read of it|: 1 of its invites)"
    ) as told:
        await use(path)
    assert f"{path} is damaged" in str(told.value)
    assert "journal" == vars(told.value)["field"]
    assert "membership" not in str(told.value)


@pytest.mark.parametrize(
    ("stage", "state"), [(Stage.HTTP, State.DEFERRED), (Stage.BACKOFF, State.FAILED)]
)
async def test_a_server_that_was_given_up_is_for_another_run(
    path: Path, stage: Stage, state: State
) -> None:
    unsent = RateLimitedError(
        "not sent", stage=stage, delivery=Delivery.NOT_SENT, retryable=True, retry_after=1.0
    )
    async with Journal(path) as journal:
        await journal.add([(1, DAMAGED)])
        async for what in journal.invites():
            assert state == await journal.record(Outcome(0, what, None, unsent))
            break


async def test_of_a_damaged_journal_all_is_read_that_can_be(path: Path) -> None:
    given = [invite(number) for number in range(60)]
    async with Journal(path) as journal:
        await run(journal, given)
    whole = path.read_bytes()
    page = 4096
    read = []
    for start in range(0, len(whole), page):
        noise = random.Random(start).randbytes(page)
        path.write_bytes(whole[:start] + noise + whole[start + page :])
        found: list[str] = []
        with suppress(InvalidInviteError), JournalReader(path) as reader:
            found.extend(entry.event_id for entry in reader.entries())
        assert [what.event_id for what in given if what.event_id in found] == found
        read.append(len(found))

    # Nothing can be found without the schema, the room, and the page that names the others.
    assert 3 >= read.count(0)
    assert 50 <= min(filter(None, read))


async def test_what_cannot_be_read_of_a_journal_is_counted(path: Path) -> None:
    given = [invite(number) for number in range(5)]
    async with Journal(path) as journal:
        await run(journal, given)
    changed(path, "UPDATE invites SET event = '{' WHERE id IN (2, 3)")
    found = []

    with (
        pytest.raises(InvalidInviteError, match="is damaged: 2 of its invites could not be read"),
        JournalReader(path) as reader,
    ):
        found.extend(entry.event_id for entry in reader.entries([State.SIGNED]))
    assert [given[number].event_id for number in (0, 3, 4)] == found


async def test_a_journal_that_fails_is_not_told_as_its_output(path: Path) -> None:
    journal = Journal(path, output=path.with_name("signed.jsonl"))
    await journal.add([(1, DAMAGED)])
    changed(
        path,
        "CREATE TRIGGER fails BEFORE UPDATE ON output BEGIN SELECT RAISE(ABORT, 'no'); END",
    )

    with pytest.raises(InvalidInviteError, match="cannot be used: no") as told:
        async with journal:
            await run(journal)
    assert f"journal: {path} cannot be used" in str(told.value)


async def test_a_full_disk_is_told_and_nothing_is_lost(path: Path) -> None:
    given = [invite(number) for number in range(40)]
    journal = Journal(path)
    await journal.add(list(enumerate(given)))
    full = "PRAGMA max_page_count = 1"  # as many pages as there are
    journal._thread.submit(lambda: journal._database.execute(full).fetchone()).result()
    with pytest.raises(InvalidInviteError, match=r"the disk is full; .* not lost: make room"):
        async with journal:
            async for what in journal.invites():
                await journal.record(signed(what))

    async with Journal(path) as journal:
        assert 40 == len(await run(journal))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    code = (
        "import os, sys; from invite_client.journal import Journal; os.setuid(65534)\n"
        "try: Journal(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    asyncio.run(Journal(tmp_path / "ours.sqlite").aclose())
    tmp_path.chmod(0o755)
    told = {
        name: subprocess.run(
            [sys.executable, "-c", code, tmp_path / name],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        for name in ("new.sqlite", "ours.sqlite")
    }

    assert "its folder must be there and be writable" in told["new.sqlite"]
    assert "its folder" in told["ours.sqlite"]
    assert "be writable" in told["ours.sqlite"]


# --- The output ---------------------------------------------------------------------------------


def lines(path: Path) -> list[str]:
    """The event IDs in an output file, each line of which must be whole."""
    return [json.loads(line)["event_id"] for line in path.read_text().splitlines()]


async def test_signed_events_are_written_as_they_come(path: Path, tmp_path: Path) -> None:
    output = tmp_path / "signed.jsonl"
    given = [invite(number) for number in range(3)]
    journal = Journal(path, output=output)
    await run(journal, given)
    while len(lines(output)) < 3:  # not only at the end
        await asyncio.sleep(0.01)
    await journal.aclose()

    assert [what.event_id for what in given] == lines(output)
    first = json.loads(output.read_text().splitlines()[0])
    assert {
        "event_id": given[0].event_id,
        "destination": "remote.example",
        "endpoint": "v2",
        "event": signed(given[0]).signed.event,
    } == first


@pytest.mark.parametrize("torn", [b"", b'{"event_id": "$torn', b'{"event_id": "$whole"}\n'])
async def test_what_a_kill_has_left_is_cut_off(path: Path, tmp_path: Path, torn: bytes) -> None:
    output = tmp_path / "signed.jsonl"
    async with Journal(path, output=output) as journal:
        first = await run(journal, [invite(1)])
    with output.open("ab") as file:
        file.write(torn)
    async with Journal(path, output=output) as journal:
        second = await run(journal, [invite(2)])

    assert first + second == lines(output)


@pytest.mark.parametrize("lost", ["nothing", "the file", "its end", "another name"])
async def test_an_output_that_lacks_something_is_written_anew(
    path: Path, tmp_path: Path, lost: str
) -> None:
    output = tmp_path / "signed.jsonl"
    async with Journal(path, output=output) as journal:
        given_out = await run(journal, [invite(number) for number in range(3)])
    match lost:
        case "the file":
            output.unlink()
        case "its end":
            os.truncate(output, 10)
        case "another name":
            output = tmp_path / "other.jsonl"
    async with Journal(path, output=output) as journal:
        pass

    assert given_out == lines(output)


@pytest.mark.parametrize("elsewhere", [None, "/dev/null"])
async def test_an_output_has_also_what_runs_without_it_have_signed(
    path: Path, tmp_path: Path, elsewhere: str | None
) -> None:
    output = tmp_path / "signed.jsonl"
    given_out = []
    for number, where in enumerate((output, elsewhere, output)):
        async with Journal(path, output=where) as journal:
            given_out += await run(journal, [invite(number)])

    assert sorted(given_out) == sorted(lines(output))


async def test_a_file_that_is_not_from_this_journal_is_left_as_it_is(
    path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "precious.jsonl"
    output.write_text("precious\n")

    with pytest.raises(InvalidInviteError, match=r"output: .* not from this journal"):
        Journal(path, output=output)
    assert "precious\n" == output.read_text()
    await Journal(path).aclose()  # and the journal is free


async def test_an_output_on_a_full_disk_is_told_and_nothing_is_lost(path: Path) -> None:
    with pytest.raises(InvalidInviteError, match="output: /dev/full cannot be written"):
        async with Journal(path, output="/dev/full") as journal:
            await run(journal, [invite(1)])
            await journal.aclose()

    async with Journal(path) as journal:
        assert 1 == len(await run(journal))


# --- Killed -------------------------------------------------------------------------------------

KILLED = """
import asyncio, json, sys
from invite_client import Invite
from invite_client.journal import Journal
from tests.test_journal import signed

async def main():
    journal = Journal(sys.argv[1], output=sys.argv[2])
    async def feed():
        with open(sys.argv[3]) as lines:
            for number, line in enumerate(lines):
                await journal.add([(number, Invite.from_request(json.loads(line)))])
        journal.end_of_input()
    feeding = asyncio.create_task(feed())
    async for invite in journal.invites():
        print(invite.event_id, flush=True)
        await asyncio.sleep(0)
        await journal.record(signed(invite))
    await feeding
    await journal.aclose()

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_nothing(path: Path, tmp_path: Path) -> None:
    """What is recorded is not sent again, every line ends in the output once, and whole."""
    given = [invite(number, f"d{number % 7}.example") for number in range(300)]
    source, output = tmp_path / "in.jsonl", tmp_path / "signed.jsonl"
    source.write_text("".join(json.dumps(what.to_request()) + "\n" for what in given))
    chance = random.Random(5)
    recorded: set[str] = set()
    kills = 0
    for attempt in range(40):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, path, output, source],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        ) as process:
            assert process.stdout is not None
            sent = [process.stdout.readline().strip() for _ in range(chance.randint(0, 60))]
            if attempt < 6:
                process.send_signal(signal.SIGKILL)
            sent += process.stdout.read().split()
        kills += process.returncode == -signal.SIGKILL
        # What was recorded before was not sent again.
        assert set() == recorded & set(sent)
        with JournalReader(path) as reader:
            recorded = {entry.event_id for entry in reader.entries([State.SIGNED])}
        if process.returncode == 0:
            break

    assert kills >= 4
    assert {what.event_id for what in given} == recorded
    assert sorted(recorded) == sorted(lines(output))


# --- What may have arrived ----------------------------------------------------------------------


async def test_what_is_unknown_stays_so_where_a_later_run_cannot_send_it(path: Path) -> None:
    given = invite(1)
    lost, gone = UnknownOutcomeError("lost", retryable=True), UnreachableError("gone")
    for error in (lost, gone, gone):
        async with Journal(path) as journal:
            await run(journal, [given], lambda what: failed(what, error))

        [entry] = entries(path)
        assert (State.UNKNOWN, error.message) == (entry.state, entry.message)

    async with Journal(path) as journal:
        await run(journal)
    assert [State.SIGNED] == [entry.state for entry in entries(path)]


DIES = """
import asyncio, json, os, signal, sys
from invite_client import Invite
from invite_client.journal import Journal

async def main():
    async with Journal(sys.argv[1]) as journal:
        await journal.add([(1, Invite.from_request(json.load(sys.stdin)))])
        async for _ in journal.invites():
            os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def killed(path: Path, what: Invite) -> None:
    """A run that was killed while it sent an invite."""
    result = subprocess.run(
        [sys.executable, "-c", DIES, path],
        input=json.dumps(what.to_request()),
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert -signal.SIGKILL == result.returncode


async def test_what_was_in_flight_at_a_kill_may_have_arrived(path: Path) -> None:
    """It is sent again; until that has an outcome, the journal says so."""
    given, gone = invite(1), UnreachableError("gone")
    killed(path, given)
    assert [State.IN_FLIGHT] == [entry.state for entry in entries(path)]

    async with Journal(path) as journal:
        assert 1 == journal.may_have_arrived
        [meanwhile] = entries(path, State.UNKNOWN)
        with JournalReader(path) as reader:
            assert {State.UNKNOWN: 1} == reader.counts()
            [summary] = reader.destinations()
    [unsent] = entries(path)
    async with Journal(path) as journal:
        await run(journal, (), lambda what: failed(what, gone))
    [still] = entries(path)
    async with Journal(path) as journal:
        assert [given.event_id] == await run(journal)
    [at_last] = entries(path)

    told = "in flight when its run was killed: it may have arrived"
    assert ({State.UNKNOWN: 1}, told) == (summary.states, summary.message)
    assert {(State.UNKNOWN, "UnknownOutcomeError", told)} == {
        (one.state, one.error, one.message) for one in (meanwhile, unsent)
    }
    assert (State.UNKNOWN, "gone") == (still.state, still.message)
    assert (State.SIGNED, None) == (at_last.state, at_last.message)


async def test_what_was_to_be_sent_again_keeps_its_last_error(path: Path) -> None:
    """Where a run is ended between two sends."""
    down, lost = invite(1, "down.example"), invite(2, "silent.example")
    errors = {
        down.event_id: UnreachableError("nobody there", retryable=True),
        lost.event_id: UnknownOutcomeError("no answer", retryable=True),
    }
    async with Journal(path) as journal:
        await journal.add([(1, down), (2, lost)])
        given_out = journal.invites()
        taken = [await anext(given_out), await anext(given_out)]
        await journal.put_back([failed(what, errors[what.event_id], 3) for what in taken])
        await given_out.aclose()
    with JournalReader(path) as reader:
        told = {one.destination: one.message for one in reader.destinations()}

    assert {"down.example": "nobody there", "silent.example": "no answer"} == told
    assert {(down.event_id, State.PENDING, 3), (lost.event_id, State.UNKNOWN, 3)} == {
        (one.event_id, one.state, one.attempts) for one in entries(path)
    }


async def test_what_cannot_be_sent_ever_is_no_passing_failure_although_it_is_unknown(
    path: Path,
) -> None:
    """Else who tries again while it may help would do so for ever."""
    killed(path, invite(1))
    forbidden = ForbiddenByPolicyError("blocked", setting="servers.blocked")
    async with Journal(path) as journal:
        await run(journal, (), lambda what: failed(what, forbidden))

    with JournalReader(path) as reader:
        assert ({State.UNKNOWN: 1}, 1) == (reader.counts(), reader.final_failures())
