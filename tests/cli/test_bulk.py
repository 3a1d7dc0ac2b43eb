"""Many invites from the command line: every line has one outcome, and a run can always go on."""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from invite_client import Invite
from invite_client.journal import JournalReader, State
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    Hangs,
    LoopbackHomeserver,
    LoopbackNetwork,
    RoomHistory,
    badly_signed,
    make_invite,
    make_room,
)
from invite_client.testing.faults import Wire, encode
from tests.cli.calling import PATIENCE, Call, Invoke, Result, Start, finish

Write = Callable[..., str]
ROOM = make_room()


def request(number: int, destination: str = "remote.example") -> dict[str, Any]:
    return Invite.build(ROOM, f"@u{number}:{destination}", INVITER_KEY).to_request()


def jsonl(*bodies: object) -> str:
    return "".join((body if isinstance(body, str) else json.dumps(body)) + "\n" for body in bodies)


def event_ids(text: str) -> list[str]:
    return [json.loads(line)["event_id"] for line in text.splitlines()]


@pytest.fixture
async def remote(network: LoopbackNetwork) -> AsyncIterator[LoopbackHomeserver]:
    async with LoopbackHomeserver(network=network) as remote:
        remote.trust(INVITER, INVITER_KEY.verify_key)
        yield remote


# --- What is sent -------------------------------------------------------------------------------


async def test_signed_events_go_to_stdout_and_the_summary_to_stderr(
    start: Start, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    source = write(jsonl(*(request(number) for number in range(7))), "in.jsonl")
    result = await finish(await start("bulk", source, *sending))

    assert 0 == result.code
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert sorted(remote.accepted) == sorted(line["event_id"] for line in lines)
    assert {"event_id", "destination", "endpoint", "event"} == lines[0].keys()
    assert {INVITER, "remote.example"} == lines[0]["event"]["signatures"].keys()
    assert re.search(r"signed +7 +100\.0%", result.err)
    assert "Traceback" not in result.err


async def test_requests_may_come_on_standard_input(
    start: Start, sending: list[str], remote: LoopbackHomeserver
) -> None:
    """As they come: the first is sent before the second is there. The last needs no newline."""
    process = await start("bulk", "-", *sending)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"\xef\xbb\xbf" + jsonl(request(1)).encode())
    async with asyncio.timeout(PATIENCE):
        first = await process.stdout.readline()
    result = await finish(process, json.dumps(request(2)).encode())

    assert 0 == result.code
    assert [1, 1] == [len(event_ids(text)) for text in (first.decode(), result.out)]
    assert 2 == len(remote.accepted)


async def test_a_bad_line_is_one_bad_outcome_with_its_number(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    strange = make_invite(server_name="other.example").to_request()
    source = write(
        jsonl(request(1), "{", "", request(2), {}, "\udcff", strange, request(3)).encode(
            errors="surrogateescape"
        ),
        "in.jsonl",
    )
    result = await call("bulk", source, *sending, "--output", "signed.jsonl", "--json")

    assert 1 == result.code
    assert 3 == len(remote.accepted)
    assert {
        2: "line: is not JSON: Expecting property name enclosed in double quotes at column 2",
        5: "room_version: is missing from the request",
        6: "line: is not JSON: not UTF-8 at byte 0",
        7: "event.sender: @alice:other.example is a user of other.example, "
        "but --server-name is inviter.example",
    } == {line["line"]: line["message"] for line in result.json["bad_lines"]}


async def test_a_line_that_is_too_long_is_a_bad_one(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    source = write(jsonl(request(1), " " * (17 * 2**20), request(2)), "in.jsonl")
    result = await call("bulk", source, *sending)

    assert 1 == result.code
    assert 2 == len(remote.accepted)
    assert "line 2: line: is longer than 16777216 bytes" in result.err


async def test_a_byte_order_mark_is_no_part_of_the_first_line_however_it_comes(
    start: Start, sending: list[str], remote: LoopbackHomeserver
) -> None:
    process = await start("bulk", "-", *sending)
    assert process.stdin is not None
    process.stdin.write(codecs.BOM_UTF8)
    await process.stdin.drain()
    first = json.dumps(request(1)) + " " * 2**20
    result = await finish(process, f"{first}\n{json.dumps(request(2))}\n".encode())

    assert 0 == result.code, result.err
    assert 2 == len(remote.accepted)


@pytest.mark.parametrize(
    ("behaviour", "code", "state"),
    [
        ("forges", 1, "failed"),
        ("refuses", 1, "rejected"),
        ("is down", 3, "failed"),
        ("hangs", 3, "unknown"),
    ],
)
async def test_the_exit_code_tells_whether_to_try_again(
    call: Call,
    sending: list[str],
    remote: LoopbackHomeserver,
    write: Write,
    *,
    behaviour: str,
    code: int,
    state: str,
) -> None:
    match behaviour:
        case "forges":
            remote.lies(badly_signed())
        case "refuses":
            remote.answers(403, "M_FORBIDDEN", "No.")
        case "is down":
            await remote.stops()
        case "hangs":
            remote.fails(Hangs())
    source = write(jsonl(request(1)), "in.jsonl")
    options = ("--journal", "run.sqlite", "--patience", "0", "--timeout", "1", "--json")
    result = await call("bulk", source, *sending, *options)

    assert code == result.code
    assert 1 == result.json["invites"][state]
    assert ["remote.example"] == [one["destination"] for one in result.json["unfinished"]]


async def test_a_user_who_is_limited_waits_in_the_journal_and_holds_up_nobody(
    start: Start, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=300_000, times=1)
    source = write(jsonl(*(request(number) for number in range(3))), "in.jsonl")
    options = (*sending, "--journal", "run.sqlite", "--output", "-")
    process = await start("bulk", source, *options)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        signed = [json.loads(await process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    result = await finish(process)

    assert (130, "") == (result.code, result.out)
    assert ["@u1:remote.example", "@u2:remote.example"] == [
        line["event"]["state_key"] for line in signed
    ]
    with JournalReader("run.sqlite") as journal:
        (limited,) = journal.entries([State.DEFERRED])
        assert {State.DEFERRED: 1, State.SIGNED: 2} == journal.counts()
    assert ("@u0:remote.example", 1, 300.0) == (
        limited.target,
        limited.attempts,
        limited.retry_after,
    )


async def test_only_events_that_our_key_has_signed_are_sent(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    body = request(1)
    body["event"]["signatures"][INVITER] = {"ed25519:test": "A" * 86}
    source = write(jsonl(body), "in.jsonl")
    refused = await call("bulk", source, *sending)
    signed = await call("bulk", source, *sending, "--sign")

    assert 1 == refused.code
    assert "is not one of this event by the signing key" in refused.err
    assert 0 == signed.code
    assert 1 == len(remote.accepted)


async def test_words_that_are_no_text_end_no_run(
    call: Call, start: Start, sending: list[str], remote: LoopbackHomeserver
) -> None:
    """Half of a surrogate pair in a remote's error; a file whose name is not UTF-8."""
    remote.answers(403, "M_FORBIDDEN", "No \ud800.", times=1)
    source, journal, output, report = ("in\udcff", "run\udcff", "signed\udcff", "report\udcff")
    Path(source).write_text(jsonl(request(1), "{", request(2)))
    options = (*sending, "--journal", journal, "--output", output, "--report", report)
    result = await finish(await start("bulk", source, *options))
    resumed = await call("bulk", source, *options, "--retry", "rejected")
    shown = await call("journal", "show", journal, "--json")

    assert (1, 1) == (result.code, resumed.code)
    assert "403" in result.err
    assert "in\\udcff, line 2: line: is not JSON" in result.err
    assert 2 == shown.json["invites"]["signed"]
    assert 2 == len(event_ids(Path(output).read_text()))


# --- A room and its users -----------------------------------------------------------------------


@pytest.fixture
def room_file(write: Write) -> str:
    room = RoomHistory.create(INVITER, INVITER_KEY).snapshot()
    return write({name: getattr(room, name) for name in room.__slots__}, "room.json")


InviteUsers = Callable[..., Awaitable[Result]]


@pytest.fixture
def invite_users(call: Call, sending: list[str], room_file: str, write: Write) -> InviteUsers:
    """Invite those whom a file names to the room."""

    async def invite(text: str, *options: str, name: str = "users.txt") -> Result:
        users = ("--users", write(text, name))
        return await call("bulk", "--room", room_file, *users, *sending, *options)

    return invite


async def test_users_are_invited_to_a_room(
    invite_users: InviteUsers, remote: LoopbackHomeserver
) -> None:
    result = await invite_users(
        "# my friends\n@a:remote.example\n\n  @b:remote.example  \n@a:remote.example\nnobody\n"
    )

    assert 1 == result.code
    targets = sorted(invite.target for invite in remote.invites.values())
    assert ["@a:remote.example", "@b:remote.example"] == targets
    assert "users.txt, line 6: event.state_key" in result.err
    assert "1 invite of the input known already" in result.err


async def test_columns_of_a_table_go_into_the_event(
    invite_users: InviteUsers, remote: LoopbackHomeserver
) -> None:
    result = await invite_users(
        'email,user_id,reason,displayname\nx@y,@a:remote.example,"Tea, at five",\n,,no,one\n',
        name="users.csv",
    )

    [invite] = remote.invites.values()
    assert {"membership": "invite", "reason": "Tea, at five"} == invite.event["content"]
    assert "line 3: user_id: is missing" in result.err
    assert 1 == result.code


async def test_a_line_with_more_values_than_columns_invites_nobody(
    invite_users: InviteUsers, remote: LoopbackHomeserver
) -> None:
    """Half of a text would be sent, and an invite is not taken back."""
    result = await invite_users(
        "user_id,reason\n@a:remote.example,Tea, at five\n@b:remote.example,Tea,,\n"
        "@c:remote.example\n",
        name="users.csv",
    )

    assert {
        "@b:remote.example": {"membership": "invite", "reason": "Tea"},
        "@c:remote.example": {"membership": "invite"},
    } == {invite.target: invite.event["content"] for invite in remote.invites.values()}
    assert "line 2: line: has 3 values for 2 columns" in result.err
    assert 1 == result.code


async def test_who_is_invited_already_is_not_invited_again(
    invite_users: InviteUsers, remote: LoopbackHomeserver
) -> None:
    """Although an event that is built later is another event."""
    journal = ("--journal", "run.sqlite")
    await invite_users("@a:remote.example\n", *journal)
    result = await invite_users("@a:remote.example\n@b:remote.example\n", *journal)

    assert 0 == result.code
    assert [1, 1] == list(remote.accepted.values())


# --- A run that goes on -------------------------------------------------------------------------


async def test_a_run_goes_on_without_its_input(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    options = (*sending, "--journal", "run.sqlite", "--output", "signed.jsonl")
    remote.answers(403, "M_FORBIDDEN", times=1)
    source = write(jsonl(*(request(number) for number in range(3))), "in.jsonl")
    first = await call("bulk", source, *options)
    Path(source).unlink()
    idle = await call("bulk", *options)
    again = await call("bulk", *options, "--retry", "rejected")

    assert [1, 1, 0] == [first.code, idle.code, again.code]
    assert "To go on: invite-client bulk --journal run.sqlite --retry rejected" in first.err
    assert 4 == remote.counts["v2"]
    assert sorted(remote.accepted) == sorted(event_ids(Path("signed.jsonl").read_text()))


async def test_the_same_input_again_sends_nothing_twice(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    body = request(1)  # made once: an invite made in another millisecond is another one
    source = write(jsonl(body, body), "in.jsonl")
    for known in (1, 2):
        result = await call("bulk", source, *sending, "--journal", "run.sqlite")
        assert f"{known} invite{'s' * (known > 1)} of the input known" in result.err
        assert (0, "") == (result.code, result.out)

    assert 1 == remote.counts["v2"]


async def until_sent(remote: LoopbackHomeserver, number: int = 1) -> None:
    async with asyncio.timeout(PATIENCE):
        while remote.counts["v2"] < number:
            await asyncio.sleep(0.01)


async def test_an_input_that_was_not_read_to_its_end_is_asked_for_again(
    call: Call, start: Start, sending: list[str], remote: LoopbackHomeserver
) -> None:
    """Else a resumed run would be at its end, and part of the input would be missing."""
    options = (*sending, "--journal", "run.sqlite")
    process = await start("bulk", "-", *options)
    assert process.stdin is not None
    process.stdin.write(jsonl(request(1)).encode())
    await until_sent(remote)
    process.kill()
    await process.communicate()
    resumed = await call("bulk", *options)
    again = await call("bulk", "-", *options, stdin=jsonl(request(2)).encode())

    assert 3 == resumed.code
    assert "- was not read to its end: give it again" in resumed.err
    assert 0 == again.code
    assert 2 == len(remote.accepted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interruption_lets_what_is_in_flight_end(
    start: Start,
    sending: list[str],
    remote: LoopbackHomeserver,
    write: Write,
    number: signal.Signals,
) -> None:
    release = asyncio.Event()

    class Waits(Hangs):
        async def __call__(self, wire: Any) -> None:
            await release.wait()
            await wire.send(encode(wire.reply))

    remote.fails(Waits())
    source = write(jsonl(*(request(n) for n in range(9))), "in.jsonl")
    process = await start("bulk", source, *sending, "--journal", "run.sqlite", "--json")
    await until_sent(remote)
    process.send_signal(number)
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        told = await process.stderr.readline()
    release.set()
    result = await finish(process)

    assert b"interrupted: 1 invite in flight" in told
    assert 130 == result.code
    assert (1, 8) == (result.json["invites"]["signed"], result.json["invites"]["pending"])


async def test_a_signal_that_is_ignored_stays_so(
    sending: list[str], remote: LoopbackHomeserver
) -> None:
    """A shell lets jobs in the background ignore Ctrl-C, and nohup lets them ignore the rest."""
    program = [sys.executable, "-c", "from invite_client.cli import main; main()"]
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh", *program, "bulk", "-", *sending),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(jsonl(request(1)).encode())
    await until_sent(remote)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGHUP)
    result = await finish(process, jsonl(request(2)).encode())

    assert (0, 2) == (result.code, len(event_ids(result.out)))
    assert "interrupted" not in result.err


async def test_a_second_interruption_ends_it_at_once_and_nothing_is_lost(
    call: Call, start: Start, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    remote.fails(Hangs(), times=1)
    source = write(jsonl(request(1)), "in.jsonl")
    options = (*sending, "--journal", "run.sqlite", "--json")
    process = await start("bulk", source, *options)
    await until_sent(remote)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    ended = await finish(process)
    again = await call("bulk", *options)

    assert (130, 1) == (ended.code, ended.json["invites"]["unknown"])
    assert (0, 1) == (again.code, again.json["invites"]["signed"])


async def test_a_third_interruption_does_not_keep_it_from_noting_what_is_unknown(
    start: Start, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    left = asyncio.Event()

    class TellsTheEnd(Hangs):
        async def __call__(self, wire: Wire) -> None:
            await wire.closed()
            left.set()

    remote.fails(TellsTheEnd())
    source = write(jsonl(request(1)), "in.jsonl")
    process = await start("bulk", source, *sending, "--journal", "run.sqlite", "--json")
    await until_sent(remote)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    await process.stderr.readline()
    with closing(sqlite3.connect("run.sqlite", isolation_level=None)) as database:
        database.execute("BEGIN IMMEDIATE")  # so that it has to wait before it can write
        process.send_signal(signal.SIGINT)
        await left.wait()
        process.send_signal(signal.SIGTERM)
        database.execute("ROLLBACK")
    result = await finish(process)

    assert 130 == result.code
    assert 1 == result.json["invites"]["unknown"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interruption_before_anything_is_sent_leaves_no_file_behind(
    start: Start, sending: list[str], write: Write, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    os.mkfifo("pipe")
    source = write(jsonl(request(1)), "in.jsonl")
    process = await start("bulk", source, *sending, "--output", "pipe", TMPDIR=str(folder))
    while not list(folder.glob("*/*.lock")):
        await asyncio.sleep(0.01)
    process.send_signal(number)  # while it waits for somebody to read the pipe
    result = await finish(process)

    assert (130, "") == (result.code, result.out)
    assert "invite-client: interrupted\n" == result.err.lstrip("\n")
    assert not list(folder.iterdir())


def test_nothing_is_imported_while_signals_raise(identity: list[str], write: Write) -> None:
    """Python prints, and passes over, what is raised where it lets go of a module."""
    code = """
import signal, sys
class Watches:
    def find_spec(self, name, path=None, target=None):
        handler = signal.getsignal(signal.SIGTERM)
        if getattr(handler, "__qualname__", "").startswith("interrupting"):
            print("imported:", name, file=sys.stderr)
sys.meta_path.insert(0, Watches())
from invite_client_command import main
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "bulk", write("{\n", "in.jsonl"), *identity],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        text=True,
    )

    assert 1 == result.returncode
    assert "line 1: line: is not JSON" in result.stderr
    assert [] == [line for line in result.stderr.splitlines() if line.startswith("imported: ")]


async def test_an_interruption_does_not_hide_what_was_wrong(
    start: Start, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    """For what would have been sent again, that is the error of its last send."""
    remote.answers(503, "M_UNKNOWN", "Out for lunch.")
    source = write(jsonl(request(1)), "in.jsonl")
    process = await start("bulk", source, *sending, "--journal", "run.sqlite")
    await until_sent(remote, 2)
    process.send_signal(signal.SIGINT)
    result = await finish(process)

    assert 130 == result.code
    assert re.search(r"pending +1", result.err)
    assert re.search(r"remote\.example +0 +1 .*503", result.err)


async def test_a_killed_run_says_what_may_have_arrived(
    call: Call, start: Start, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    remote.fails(Hangs(), times=1)
    options = (*sending, "--journal", "run.sqlite")
    killed = await start("bulk", write(jsonl(request(1)), "in.jsonl"), *options)
    await until_sent(remote)
    killed.kill()
    await killed.communicate()
    shown = await call("journal", "show", "run.sqlite")
    resumed = await call("bulk", *options)

    assert re.search(r"in flight +1", shown.out)
    assert "If that was killed, it may have arrived" in shown.out
    assert "1 invite of earlier runs may have arrived: sent again" in resumed.err
    assert (0, [2]) == (resumed.code, list(remote.accepted.values()))


async def test_what_is_in_flight_when_the_reader_goes_away_is_unknown(
    call: Call,
    start: Start,
    sending: list[str],
    remote: LoopbackHomeserver,
    network: LoopbackNetwork,
) -> None:
    async with LoopbackHomeserver("silent.example", network=network) as silent:
        silent.fails(Hangs())
        options = (*sending, "--journal", "run.sqlite", "--output", "-")
        process = await start("bulk", "-", *options)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(jsonl(request(1, "silent.example")).encode())
        await until_sent(silent)
        process.stdout._transport.close()  # type: ignore[attr-defined]
        process.stdin.write(jsonl(request(1)).encode())
        async with asyncio.timeout(PATIENCE):
            assert 1 == await process.wait()
        shown = await call("journal", "show", "run.sqlite", "--json")

    assert {"signed": 1, "unknown": 1}.items() <= shown.json["invites"].items()


async def test_an_interruption_while_waiting_for_input_ends_it(
    start: Start, sending: list[str], remote: LoopbackHomeserver
) -> None:
    process = await start("bulk", "-", *sending)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(jsonl(request(1)).encode())
    async with asyncio.timeout(PATIENCE):
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert 130 == await process.wait()
    await process.communicate()


async def test_a_second_run_is_refused(
    call: Call, start: Start, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    remote.fails(Hangs())
    source = write(jsonl(request(1)), "in.jsonl")
    first = await start("bulk", source, *sending, "--journal", "run.sqlite")
    await until_sent(remote)
    second = await call("bulk", source, *sending, "--journal", "run.sqlite")
    shown = await call("journal", "show", "run.sqlite")
    first.kill()
    await first.communicate()

    assert (2, "") == (second.code, second.out)
    assert "invite-client: journal: run.sqlite is in use by another run" in second.err
    assert re.search(r"in flight +1", shown.out)


# --- An input that fails ------------------------------------------------------------------------


@asynccontextmanager
async def reading_from_a_socket(
    *arguments: str,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, socket.socket]]:
    """The command with a connection as its standard input, which can be reset."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with ours, theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from invite_client.cli import main; main()", *arguments),
            stdin=theirs,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        yield process, ours


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


async def test_an_input_that_fails_half_way_is_no_bad_usage(
    call: Call, sending: list[str], remote: LoopbackHomeserver
) -> None:
    """For something was sent: what was read has its outcome, and the line is named."""
    options = ("bulk", "-", *sending, "--journal", "run.sqlite", "--output", "signed.jsonl")
    async with reading_from_a_socket(*options, "--json") as (process, connection):
        connection.sendall(jsonl("{", request(1), request(2)).encode())
        await until_sent(remote, 2)
        reset(connection)
        result = await finish(process)
    resumed = await call("bulk", *options[2:])

    assert 1 == result.code
    last = result.err.splitlines()[-1]
    assert "invite-client: - cannot be read beyond line 3: Connection reset by peer" == last
    assert (2, ["-"]) == (result.json["invites"]["signed"], result.json["unread_inputs"])
    assert [1] == [line["line"] for line in result.json["bad_lines"]]
    assert 2 == len(event_ids(Path("signed.jsonl").read_text()))
    assert "- was not read to its end: give it again" in resumed.err


async def test_an_input_that_fails_at_once_is_bad_usage(sending: list[str]) -> None:
    async with reading_from_a_socket("bulk", "-", *sending) as (process, connection):
        reset(connection)
        result = await finish(process)

    assert (2, "") == (result.code, result.out)
    assert "invite-client: - cannot be read: Connection reset by peer\n" == result.err


async def test_nothing_is_sent_of_an_earlier_run_if_the_input_is_none(
    *,
    call: Call,
    start: Start,
    sending: list[str],
    remote: LoopbackHomeserver,
    room_file: str,
    write: Write,
) -> None:
    options = (*sending, "--journal", "run.sqlite")
    remote.fails(Hangs(), times=1)
    killed = await start("bulk", write(jsonl(request(1)), "in.jsonl"), *options)
    await until_sent(remote)
    killed.kill()
    await killed.communicate()
    users = write("@a:remote.example,Alice\n", "users.csv")
    result = await call("bulk", "--room", room_file, "--users", users, *options)

    assert (2, 1) == (result.code, remote.counts["v2"])
    assert 1 == len(result.err.splitlines())


# --- A dry run ----------------------------------------------------------------------------------


async def test_a_dry_run_sends_and_writes_nothing(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write, tmp_path: Path
) -> None:
    source = write(jsonl(request(1), request(2, "b.example"), "{"), "in.jsonl")
    before = sorted(tmp_path.iterdir())
    result = await call("bulk", source, *sending, "--dry-run", "--journal", "run.sqlite", "--json")

    assert 1 == result.code
    assert before == sorted(tmp_path.iterdir())
    assert 2 == result.json["invites"]["pending"]
    assert 0 == remote.counts["v2"]


def test_a_dry_run_names_no_file_that_it_does_not_write(
    invoke: Invoke, identity: list[str], write: Write
) -> None:
    source = write(jsonl(request(1)), "in.jsonl")
    files = ("--journal", "run.sqlite", "--output", "signed.jsonl")
    result = invoke("bulk", source, *identity, *files, "--dry-run")

    assert 0 == result.code
    assert re.search(r"pending +1", result.err)
    assert "run.sqlite" not in result.err
    assert "signed.jsonl" not in result.err


async def test_how_to_go_on_can_be_given_to_a_shell(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    remote.answers(403, "M_FORBIDDEN")
    source = write(jsonl(request(1)), "in.jsonl")
    result = await call("bulk", source, *sending, "--journal", "my run.sqlite")

    told = re.search("To go on: invite-client (.*)", result.err)
    assert told
    assert ["bulk", "--journal", "my run.sqlite", "--retry", "rejected"] == shlex.split(told[1])


async def test_a_dry_run_knows_what_is_signed_already(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    options = (*sending, "--journal", "run.sqlite")
    first = request(1)
    await call("bulk", write(jsonl(first), "in.jsonl"), *options)
    source = write(jsonl(first, request(2)), "in.jsonl")
    result = await call("bulk", source, *options, "--dry-run", "--json")

    assert (0, 1, 1) == (
        result.code,
        result.json["invites"]["signed"],
        result.json["invites"]["pending"],
    )
    assert 1 == remote.counts["v2"]


# --- What cannot be written ---------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("journal", [[], ["--journal", "run.sqlite"]])
@pytest.mark.parametrize("output", [["--output", "/dev/full"], ["--output", "-"]])
async def test_a_run_whose_output_cannot_be_written_says_what_is_not_kept(
    *,
    call: Call,
    sending: list[str],
    remote: LoopbackHomeserver,
    write: Write,
    journal: list[str],
    output: list[str],
) -> None:
    source = write(jsonl(request(1)), "in.jsonl")
    program = [sys.executable, "-c", "from invite_client.cli import main; main()"]
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'exec "$@" >/dev/full', "sh", *program),
        *("bulk", source, *sending, *output, *journal),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    result = await finish(process)

    told = result.err
    assert 1 == result.code
    assert 1 == len(remote.accepted)
    assert 1 == len(told.splitlines())
    assert "cannot be written: No space left on device; " in told
    if journal:
        assert "to go on: --journal run.sqlite" in told
        assert 0 == (await call("bulk", *sending, *journal)).code
        assert 1 == len(remote.accepted)
    else:
        assert "not lost" not in told
        assert "1 of 1 signed events could not be written" in told


AT_ONCE = """
import asyncio
from invite_client.bulk import Outcomes
from invite_client.cli import main

take = Outcomes.__anext__

async def when_there_are_three(outcomes):
    while len(outcomes._finished) < 3:
        await asyncio.sleep(0)
    Outcomes.__anext__ = take
    return await take(outcomes)

Outcomes.__anext__ = when_there_are_three
main()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_what_was_signed_at_the_same_time_is_not_kept_either(
    sending: list[str], network: LoopbackNetwork, write: Write
) -> None:
    names = ("a.example", "b.example", "c.example")
    source = write(jsonl(*(request(1, name) for name in names)), "in.jsonl")
    async with AsyncExitStack() as stack:
        for name in names:
            remote = await stack.enter_async_context(LoopbackHomeserver(name, network=network))
            remote.trust(INVITER, INVITER_KEY.verify_key)
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", 'exec "$@" >/dev/full', "sh", sys.executable, "-c", AT_ONCE),
            *("bulk", source, *sending),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        result = await finish(process)

    assert 1 == result.code
    assert "3 of 3 signed events could not be written" in result.err


BEHIND = """
import asyncio, sys
from invite_client.cli import main
from invite_client.cli.bulk_run import Run
from invite_client.journal import Journal

commit, leave = Journal._commit_soon, Run._leave
is_leaving = asyncio.Event()

async def commit_late(journal):
    print("behind", file=sys.stderr, flush=True)
    await is_leaving.wait()
    await commit(journal)

async def leave_soon(run, journal):
    is_leaving.set()
    await leave(run, journal)

Journal._commit_soon, Run._leave = commit_late, leave_soon
from invite_client.journal import writing
writing._BATCH = 1
main()
"""


async def test_what_is_signed_is_printed_although_nobody_waits_for_the_disk(
    sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    """The summary says that it is signed, and nothing else holds it where there is no journal."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BEHIND, "bulk", write(jsonl(request(1)), "in.jsonl"), *sending),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        for word in (b"behind", b"interrupted"):
            assert word in await process.stderr.readline()
            process.send_signal(signal.SIGINT)
    result = await finish(process)

    assert 130 == result.code
    assert re.search(r"signed +1", result.err)
    assert list(remote.accepted) == event_ids(result.out)


async def test_a_journal_that_somebody_takes_away_is_no_bad_usage(
    start: Start, sending: list[str], remote: LoopbackHomeserver
) -> None:
    """For something was sent."""
    process = await start("bulk", "-", *sending, "--journal", "run.sqlite")
    assert process.stdin is not None
    process.stdin.write(jsonl(request(1)).encode())
    await until_sent(remote)
    for path in Path().glob("run.sqlite*"):
        path.unlink()
    result = await finish(process, jsonl(request(2)).encode())

    assert 1 == result.code
    assert "run.sqlite" in result.err
    assert 1 == len(result.err.splitlines())


async def test_nothing_is_sent_once_the_output_cannot_be_written(
    start: Start, sending: list[str], remote: LoopbackHomeserver
) -> None:
    process = await start("bulk", "-", *sending, "--output", "/dev/full")
    assert process.stdin is not None
    process.stdin.write(jsonl(request(1)).encode())
    async with asyncio.timeout(PATIENCE):
        code = await process.wait()  # although there is more to be read

    assert 1 == code
    assert 1 == len(remote.accepted)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--output", "missing/signed.jsonl"), "missing/signed.jsonl cannot be written: No such"),
        (("--output", "folder"), "/folder cannot be written: Is a directory\n"),
        (("--journal", "missing/run.sqlite"), "journal: missing/run.sqlite cannot be opened"),
        (("--journal", "folder"), "journal: folder is a folder"),
        (
            ("--report", "missing/report.html"),
            "--report: missing/report.html cannot be written: No",
        ),
        (("--report", "folder"), "--report: folder cannot be written: Is a directory"),
        (("--report", "notes.txt"), "--report: notes.txt is there already, and is no report"),
        (("--report", "signing.key"), "--report and the signing key are one file: "),
        (("--journal", "signing.key"), "--journal and the signing key are one file: "),
        (("--output", "key link"), "--output and the signing key are one file: "),
        (("--output", "new", "--journal", "new"), "--journal and --output are one file: new"),
        (("--output", "new", "--report", "./new"), "--output and --report are one file: ./new"),
        (("--journal", "empty.jsonl"), "REQUESTS.jsonl and --journal are one file: empty.jsonl"),
        (("--output", "empty.jsonl"), "REQUESTS.jsonl and --output are one file: empty.jsonl"),
        (("--output", "link"), "REQUESTS.jsonl and --output are one file: link"),
        (("--output", "hard link"), "REQUESTS.jsonl and --output are one file: hard link"),
        (("--output", "new", "--store", "new"), "--output and --store are one file: new"),
        (("--report", "new", "--store", "new"), "--report and --store are one file: new"),
        *(
            ((option, "-"), f"Invalid value for '{option}': expected a file; - is none, and a")
            for option in ("--journal", "--report", "--store")
        ),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_sent(
    invoke: Invoke,
    identity: list[str],
    write: Write,
    tmp_path: Path,
    *,
    arguments: tuple[str, ...],
    told: str,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("empty.jsonl")
    (tmp_path / "key link").symlink_to("signing.key")
    write("buy milk", "notes.txt")
    is_output = {"empty.jsonl", "link", "hard link"} & {*arguments}
    source = write("" if is_output else jsonl(request(1)), "empty.jsonl")
    (tmp_path / "hard link").hardlink_to(source)
    before = sorted(tmp_path.iterdir())
    key = (tmp_path / "signing.key").read_text()
    result = invoke("bulk", Path(source).name, *identity, "--timeout", "0.1", *arguments)

    assert (2, "") == (result.code, result.out)
    assert told in result.err
    assert "lost" not in result.err
    assert 1 == len(result.err.splitlines())
    assert before == sorted(tmp_path.iterdir())
    assert key == (tmp_path / "signing.key").read_text()


def test_a_machine_without_room_for_a_temporary_folder_is_told(
    invoke: Invoke, identity: list[str], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    result = invoke("bulk", write(jsonl(request(1)), "in.jsonl"), *identity)

    assert (2, "") == (result.code, result.out)
    assert "no temporary folder can be made: No such file or directory; make room" in result.err
    assert 1 == len(result.err.splitlines())


async def test_a_report_that_fails_after_the_run_is_no_bad_usage(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    options = ("--journal", "run.sqlite", "--report", "/dev/full")
    source = write(jsonl(request(1)), "in.jsonl")
    result = await call("bulk", source, *sending, *options)

    assert 1 == result.code
    assert 1 == len(remote.accepted)
    last = result.err.splitlines()[-1]
    assert "invite-client: --report: /dev/full cannot be written: No space left on device" in last
    assert "journal show run.sqlite --report FILE.html makes it again" in last


# --- Bad usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give REQUESTS.jsonl, or the --journal of a run to resume"),
        (("--journal", "absent.sqlite"), "give REQUESTS.jsonl"),
        (("--room", "room.json"), "--room and --users belong together"),
        (("in.jsonl", "--room", "r", "--users", "u"), "give either REQUESTS.jsonl or --room"),
        (("in.jsonl", "--json"), "--json prints a summary on stdout: give --output FILE, or"),
        (
            ("in.jsonl", "--json", "--output", "-", "--journal", "run.sqlite"),
            "or --journal without --output",
        ),
        (("in.jsonl", "--retry", "signed"), "expected some of rejected, failed, unknown"),
        (("in.jsonl", "--retry", "failed"), "--retry needs --journal"),
        (("--room", "-", "--users", "-"), "only one of the files can be standard input"),
        (("in.jsonl", "--rate", "0"), "'--rate': expected a number greater than 0, not '0'"),
        (("in.jsonl", "--rate", "nan"), "'--rate': expected a number greater than 0"),
        (("in.jsonl", "--patience", "x"), "expected a number of at least 0, not 'x'"),
        (("in.jsonl", "--concurrency", "1.5"), "expected a whole number of at least 1, and at"),
        (("in.jsonl", "--concurrency", "9" * 400), "and at most 1048576, not '999"),
        (("absent.jsonl",), "absent.jsonl cannot be read: No such file"),
        ((".",), ". cannot be read: Is a directory"),
        (("in.jsonl", "--journal", "room.json"), "journal: room.json is no journal"),
        (("in.jsonl", "--output", "room.json"), "is there already, and not from this journal"),
        (("--room", "bad.json", "--users", "in.jsonl"), "bad.json: room.depth: is missing"),
        (("--room", "room.json", "--users", "in.jsonl"), "but --server-name is inviter.example"),
    ],
)
def test_bad_usage_is_one_line(
    invoke: Invoke, identity: list[str], write: Write, arguments: tuple[str, ...], told: str
) -> None:
    write(jsonl(request(1)), "in.jsonl")
    room = {"room_id": "!a:b", "room_version": "10", "sender": "@a:b.example"}
    write(room, "bad.json")
    write({**room, "depth": 1, "prev_events": [], "auth_events": []}, "room.json")
    result = invoke("bulk", *arguments, *identity)

    assert (2, "") == (result.code, result.out)
    assert told in result.err
    assert 1 == len(result.err.splitlines())


def test_a_table_of_users_must_name_its_columns(
    invoke: Invoke, identity: list[str], room_file: str, write: Write
) -> None:
    users = write("@a:remote.example,Alice\n", "users.csv")
    result = invoke("bulk", "--room", room_file, "--users", users, *identity)

    assert 2 == result.code
    assert "expected the names of the columns: user_id and" in result.err


def test_a_column_that_is_there_twice_is_none_to_choose_from(
    invoke: Invoke, identity: list[str], room_file: str, write: Write
) -> None:
    users = write("user_id,user_id\n@a:remote.example,@b:remote.example\n", "users.csv")
    result = invoke("bulk", "--room", room_file, "--users", users, *identity)

    assert 2 == result.code
    assert "the first line of the users names user_id twice" in result.err


# --- A signing key that is taken for something else ---------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--room", "room.json", "--users", "signing.key"), "--users and the signing key are one"),
        (("--room", "signing.key", "--users", "users"), "--room and the signing key are one file"),
        (("signing.key",), "REQUESTS.jsonl and the signing key are one file: "),
    ],
)
@pytest.mark.parametrize("from_homeserver", [False, True])
def test_the_signing_key_is_no_input(
    invoke: Invoke,
    identity: list[str],
    write: Write,
    *,
    arguments: tuple[str, ...],
    told: str,
    from_homeserver: bool,
) -> None:
    if from_homeserver:
        config = f"server_name: {INVITER}\nsigning_key_path: signing.key\n"
        identity = ["--homeserver-config", write(config, "homeserver.yaml")]
    result = invoke("bulk", *arguments, *identity, "--dry-run")

    assert (2, "") == (result.code, result.out)
    assert told in result.err
    assert 1 == len(result.err.splitlines())


@pytest.mark.parametrize("name", ["users.txt", "users.csv"])
@pytest.mark.parametrize("space", [" ", "\t"])
def test_a_copy_of_the_signing_key_is_not_shown_as_a_user(
    invoke: Invoke,
    identity: list[str],
    room_file: str,
    write: Write,
    tmp_path: Path,
    *,
    name: str,
    space: str,
) -> None:
    header = "user_id\n" if name == "users.csv" else ""
    line = INVITER_KEY.to_line().replace(" ", space)
    users = write(f"{header}  {line}  \n", name)
    options = ("--room", room_file, "--users", users, *identity)
    checked = invoke("bulk", *options, "--dry-run", "--json")
    kept = ("--journal", "run.sqlite", "--report", "report.html", "--output", "signed.jsonl")
    sent = invoke("bulk", *options, *kept, "--json")

    for result in (checked, sent):
        assert 1 == result.code
        assert "the line of a signing key file, which is not shown" in result.err + result.out
    seed = INVITER_KEY.to_line().split()[-1].encode()
    written = {path.name for path in tmp_path.iterdir() if seed in path.read_bytes()}
    assert {"signing.key", name} == written


def test_a_signing_key_is_not_shown_as_a_header(
    invoke: Invoke, identity: list[str], room_file: str, write: Write
) -> None:
    users = write(f"{INVITER_KEY.to_line()}\n", "users.csv")
    result = invoke("bulk", "--room", room_file, "--users", users, *identity)

    assert 2 == result.code
    assert "the first line of the users is the line of a signing key file" in result.err


# --- What is seen -------------------------------------------------------------------------------


async def on_a_terminal(
    arguments: list[str], columns: int, until: str, **environment: str
) -> tuple[str, str]:
    """What the command writes on a terminal, as it is and as text; interrupted when it says `until`."""
    leader, follower = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from invite_client.cli import main; main()", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", **environment},
    )
    os.close(follower)

    def read() -> tuple[str, str]:
        seen, text, interrupted = b"", "", False
        while True:
            try:
                seen += os.read(leader, 65536)
            except OSError:  # the other side is closed
                return seen.decode(), text
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
            text = shown.replace("\r", "\n")
            if until in text and not interrupted:
                os.kill(process.pid, signal.SIGINT)
                interrupted = True

    try:
        return await asyncio.wait_for(asyncio.to_thread(read), PATIENCE)
    except TimeoutError:
        process.kill()
        raise
    finally:
        os.close(leader)
        await process.wait()


@pytest.mark.parametrize("colour", [True, False])
async def test_the_progress_fits_a_terminal_of_80_columns(
    sending: list[str], remote: LoopbackHomeserver, write: Write, colour: bool
) -> None:
    name = "a-server-with-quite-a-long-name.example"
    given = [request(number) for number in range(60)]
    given += [request(number, name) for number in range(3)]
    source = write(jsonl(*given), "in.jsonl")
    async with LoopbackHomeserver(name, network=remote.network) as down:
        await down.stops()
        seen, text = await on_a_terminal(
            ["bulk", source, *sending, "--journal", "run.sqlite"],
            80,
            "60 / 63",
            **({} if colour else {"NO_COLOR": "1"}),
        )

    assert "failing" in text
    assert "slowest" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert colour == ("\x1b[32m" in seen)


async def test_a_run_goes_on_when_its_terminal_goes_away(
    sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    leader, follower = pty.openpty()
    source = write(jsonl(*(request(number) for number in range(10))), "in.jsonl")
    code = (
        "from invite_client.cli import bulk_progress, main; bulk_progress._REFRESH = 0.01; main()"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "bulk", source, *sending),
        *("--output", "signed.jsonl", "--report", "report.html", "--rate", "10"),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(follower)
    await until_sent(remote)
    os.close(leader)
    async with asyncio.timeout(PATIENCE):
        code_of_run = await process.wait()

    assert 0 == code_of_run
    assert 10 == len(Path("signed.jsonl").read_text().splitlines())
    assert Path("report.html").exists()


async def test_in_a_pipe_there_are_lines_now_and_then(
    invoke: Invoke,
    start: Start,
    sending: list[str],
    remote: LoopbackHomeserver,
    write: Write,
) -> None:
    remote.fails(Hangs())
    source = write(jsonl(request(1), "{"), "in.jsonl")
    code = "from invite_client.cli import bulk_progress, main; bulk_progress._EVERY = 0.2; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "bulk", source, *sending, "--journal", "run.sqlite"),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    await until_sent(remote)
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        for _ in range(3):
            line = (await process.stderr.readline()).decode()
    process.kill()
    await process.communicate()

    assert "bulk: 0 of 1 done (0%), 0.0/s, signed 0, bad lines 1\n" == line


async def test_a_log_says_when_what_a_server_has_put_off_is_sent_again(
    sending: list[str], remote: LoopbackHomeserver, write: Write
) -> None:
    remote.answers(429, "M_LIMIT_EXCEEDED", headers={"Retry-After": "1800"})
    source = write(jsonl(request(1)), "in.jsonl")
    code = "from invite_client.cli import bulk_progress, main; bulk_progress._EVERY = 0.2; main()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "bulk", source, *sending, "--journal", "run.sqlite"),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    line = ""
    async with asyncio.timeout(PATIENCE):
        while "deferred" not in line:
            line = (await process.stderr.readline()).decode()
    process.send_signal(signal.SIGINT)
    _, told = await process.communicate()

    assert re.fullmatch(
        r"bulk: 0 of 1 done \(0%\), 0\.0/s, signed 0, deferred 1 \(the first again in "
        r"(30:00|29:5\d)\)\n",
        line,
    )
    words = " ".join(told.decode().split())
    assert re.search(r"answered 429: .*; not before \d{4}-\d\d-\d\d [\d:]* UTC", words)


# --- The report ---------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page says, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
async def report(
    call: Call, sending: list[str], remote: LoopbackHomeserver, write: Write, tmp_path: Path
) -> Path:
    """Of a run in which a server's words are markup."""
    remote.answers(403, "M_FORBIDDEN", "<script>alert(1)</script> & \x1b[31m", times=1)
    source = write(jsonl(*(request(number) for number in range(20)), "{"), "in.jsonl")
    path = tmp_path / "report.html"
    result = await call("bulk", source, *sending, "--report", str(path))
    assert 1 == result.code
    return path


def test_a_report_is_one_page_that_loads_nothing_and_runs_nothing(report: Path) -> None:
    text = report.read_text()
    page = Page(text)
    words = " ".join(" ".join(page.words).split())

    assert [] == page.loads
    assert {"script", "img", "link", "iframe"} & set(page.tags) == set()
    assert "@import" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    for told in (
        "19 signed (95.0%)",
        "1 rejected (5.0%)",
        "1 bad lines",
        "remote.example",
        "<script>alert(1)</script> & [31m",
        "in.jsonl 21 line: is not JSON",
    ):
        assert told in words


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("chromium") or shutil.which("google-chrome")), reason="needs Chromium"
)
def test_a_browser_shows_the_report(report: Path, tmp_path: Path) -> None:
    """Wholly: no error, nothing wider than the window, every bar with a size."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser is not None
    probe = tmp_path / "probe.html"
    # The page's own policy would not run a script, and rightly so.
    text = re.sub(r"<meta http-equiv[^>]*>", "", report.read_text())
    script = (
        "<script>onload = () => { const bars = [...document.querySelectorAll('svg rect')]"
        ".map(bar => bar.getBoundingClientRect()); document.title = JSON.stringify({"
        "wide: document.documentElement.scrollWidth - innerWidth, bars: bars.length,"
        "empty: bars.filter(bar => !bar.width || !bar.height).length }) }</script>"
    )
    probe.write_text(text.replace("</body>", script + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    dom = subprocess.run(
        [browser, *flags, "--window-size=500,900", "--dump-dom", probe.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    found = re.search(r"<title>(.*?)</title>", dom)
    assert found is not None
    measured = json.loads(found[1])

    assert measured["wide"] <= 0
    assert measured["bars"] >= 6
    assert 0 == measured["empty"]


def test_a_report_that_cannot_be_written_is_told(
    invoke: Invoke, identity: list[str], write: Write
) -> None:
    write("", "in.jsonl")
    result = invoke("bulk", "in.jsonl", *identity, "--report", "missing/report.html")

    assert 2 == result.code
    assert "--report: missing/report.html cannot be written" in result.err
