"""What has been done is shown, and exported so that it can be used."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click import ClickException

from invite_client import InviteError
from invite_client.cli.bulk_report import write_report
from invite_client.errors import InvalidInviteError, InviteRejectedError, UnreachableError
from invite_client.journal import BadLine, Journal, JournalReader
from invite_client.spec.invites import Invite
from invite_client.testing import INVITER_KEY
from tests.cli.calling import Invoke, full_disk
from tests.test_journal import failed, invite, signed

ERRORS: list[InviteError | None] = [
    None,
    None,
    InviteRejectedError("the v2 invite was answered 403: \x1b[31mNo", status=403),
    UnreachableError("nobody there", retryable=True, retry_after=9.0),
]


@pytest.fixture
def invites() -> list[Invite]:
    return [invite(number, f"d{number}.example") for number in range(5)]


@pytest.fixture
def path(tmp_path: Path, invites: list[Invite]) -> str:
    """The journal of a run: two signed, one rejected, one failed, one pending, a bad line."""
    path = tmp_path / "run.sqlite"
    errors = {what.event_id: error for what, error in zip(invites, ERRORS, strict=False)}

    async def run() -> None:
        async with Journal(path) as journal:
            await journal.add([*enumerate(invites, 1)], "in.jsonl")
            await journal.add([(6, InvalidInviteError("is missing", field="event"))], "in.jsonl")
            journal.end_of_input()
            async for what in journal.invites():
                if what.event_id not in errors:
                    break
                error = errors[what.event_id]
                await journal.record(failed(what, error) if error else signed(what))

    asyncio.run(run())
    return str(path)


def test_a_journal_is_shown(invoke: Invoke, path: str) -> None:
    result = invoke("journal", "show", path)

    assert (0, "") == (result.code, result.err)
    for told in (
        r"signed +2 +40\.0%",
        r"rejected +1 +20\.0%",
        r"failed +1",
        r"pending +1",
        r"bad lines +1",
        r"d2\.example +0 +1 +0\.50 s +answered 403: ",
        r"d3\.example +0 +1 +0\.50 s +nobody there",
        r"in\.jsonl, line 6: event: is missing",
    ):
        assert re.search(told, result.out), told
    assert max(map(len, result.out.splitlines())) <= 80


@pytest.mark.parametrize("columns", ["0", "1", "20", "40", "-5", "x"])
def test_nothing_of_it_is_lost_where_there_is_little_room(
    invoke: Invoke, path: str, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    result = invoke("journal", "show", path)

    words = " ".join(result.out.split())
    for told in ("signed 2 40.0%", "d3.example 0 1 0.50 s nobody there"):
        assert told in words


def test_a_journal_is_shown_as_json(invoke: Invoke, path: str) -> None:
    shown = invoke("journal", "show", path, "--json").json

    assert {
        "pending": 1,
        "in flight": 0,
        "deferred": 0,
        "signed": 2,
        "rejected": 1,
        "failed": 1,
        "unknown": 0,
    } == shown["invites"]
    assert ["d2.example", "d3.example", "d4.example"] == [
        one["destination"] for one in shown["unfinished"]
    ]


def test_no_more_bad_lines_are_read_than_are_shown(
    invoke: Invoke, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(_: JournalReader) -> Iterator[BadLine]:
        for number in range(1, 100):
            yield BadLine("in.jsonl", number, "event: is missing")
        raise AssertionError("the rest is not shown")

    monkeypatch.setattr(JournalReader, "bad_lines", lines)
    monkeypatch.setattr(JournalReader, "bad_line_count", lambda _: 1000)
    result = invoke("journal", "show", path)

    assert 0 == result.code
    assert "in.jsonl, line 15: event: is missing" in result.out
    assert "and 985 more bad lines" in result.out


def test_a_report_of_very_many_invites_is_not_made_in_memory(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [number / 7919 for number in range(1, 50_000)]
    monkeypatch.setattr(JournalReader, "seconds", lambda *_: (one * 1.0 for one in times))
    with JournalReader(path) as journal:
        write_report(str(tmp_path / "before.html"), journal)
        tracemalloc.start()
        try:
            write_report(str(tmp_path / "report.html"), journal)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

    assert "half within 3.16 s, 95 % within 6 s, 99 % within 6.25 s" in (
        (tmp_path / "report.html").read_text()
    )
    assert most < 10 * len(times)


def test_a_journal_is_exported(invoke: Invoke, path: str, invites: list[Invite]) -> None:
    lines = [json.loads(line) for line in invoke("journal", "export", path).out.splitlines()]

    assert [what.event_id for what in invites] == [line["event_id"] for line in lines]
    assert ["signed", "signed", "rejected", "failed", "pending"] == [
        line["state"] for line in lines
    ]
    assert invites[0].event["content"] == lines[0]["event"]["content"]
    assert lines[0]["error"] is None
    assert {
        "class": "UnreachableError",
        "message": "nobody there",
        "retryable": True,
        "retry_after": 9.0,
    } == lines[3]["error"]


def test_requests_are_exported_as_they_can_be_sent(
    invoke: Invoke, path: str, invites: list[Invite]
) -> None:
    result = invoke("journal", "export", path, "--state", "failed,pending", "--requests")
    bodies = [json.loads(line) for line in result.out.splitlines()]

    assert [what.event_json for what in invites[3:]] == [
        Invite.from_request(body).event_json for body in bodies
    ]


def test_a_report_is_made_of_a_journal(invoke: Invoke, path: str, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    assert 0 == invoke("journal", "show", path, "--report", str(report)).code

    assert "d2.example" in report.read_text()


def test_when_a_server_may_be_asked_again_is_told(
    invoke: Invoke, path: str, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE invites SET not_before = 32e9 WHERE destination = 'd3.example'")
    report = tmp_path / "report.html"
    shown = invoke("journal", "show", path, "--report", str(report))
    as_json = invoke("journal", "show", path, "--json").json

    told = "nobody there; not before 2984-01-15 08:53:20 UTC"
    assert re.search(rf"d3\.example.*{told}", " ".join(shown.out.split()))
    assert 1 == report.read_text().count("not before")
    assert told in report.read_text()
    assert {"d2.example": None, "d3.example": 32e9, "d4.example": None} == {
        one["destination"]: one["not_before"] for one in as_json["unfinished"]
    }


def test_a_report_is_made_where_a_link_leads(invoke: Invoke, path: str, tmp_path: Path) -> None:
    (tmp_path / "link.html").symlink_to("report.html")
    for _ in range(2):
        assert 0 == invoke("journal", "show", path, "--report", "link.html").code

    assert (tmp_path / "link.html").is_symlink()
    assert "d2.example" in (tmp_path / "report.html").read_text()


def test_a_report_outlives_one_that_there_is_no_room_for(
    invoke: Invoke, path: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    assert 0 == invoke("journal", "show", path, "--report", str(report)).code
    before = report.read_text()
    with JournalReader(path) as journal, full_disk(), pytest.raises(ClickException) as told:
        write_report(str(report), journal)

    assert f"--report: {report} cannot be written: File too large" == told.value.message
    assert before == report.read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("show", "absent.sqlite"), "journal: absent.sqlite does not exist\n"),
        (("export", "run.sqlite", "--state", "lost"), "expected some of pending, in flight"),
        (("export",), "RUN.sqlite"),
        (("show", "-"), "expected a file; - is none"),
        (("show", "run.sqlite", "--report", "-"), "expected a file; - is none"),
        (("show", INVITER_KEY.to_line()), "expected the name of a file, not the key itself"),
    ],
)
def test_bad_usage_is_one_line(invoke: Invoke, arguments: tuple[str, ...], told: str) -> None:
    result = invoke("journal", *arguments)

    assert (2, "") == (result.code, result.out)
    assert told in result.err


def test_what_can_be_read_of_a_damaged_journal_is_exported(
    invoke: Invoke, path: str, invites: list[Invite]
) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE invites SET event = '{' WHERE id = 2")
    result = invoke("journal", "export", path)

    assert 2 == result.code
    exported = [json.loads(line)["event_id"] for line in result.out.splitlines()]
    assert [what.event_id for number, what in enumerate(invites) if number != 1] == exported
    assert "is damaged: 1 of its invites could not be read; `sqlite3 FILE .recover`" in result.err
    assert 1 == len(result.err.splitlines())
