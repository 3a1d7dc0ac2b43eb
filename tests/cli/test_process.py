"""The command as a process: streams, exit codes, interruptions, what is imported."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest

from invite_client.cli import app
from invite_client.journal import Journal
from invite_client.testing import (
    NO_ANSWER,
    Hangs,
    LoopbackHomeserver,
    LoopbackNetwork,
    badly_signed,
    make_invite,
)
from tests.cli.calling import PATIENCE, WITHOUT_ROOTS_EYES, Call, Invoke, Start, finish

RequestFile = Callable[..., str]


async def test_results_go_to_stdout_and_all_else_to_stderr(
    start: Start,
    sending: list[str],
    network: LoopbackNetwork,
) -> None:
    body = json.dumps(make_invite().to_request()).encode()
    async with LoopbackHomeserver(network=network) as remote:
        send = ["send", "-", *sending]
        good = await finish(await start(*send), body)
        remote.lies(badly_signed())
        forged = await finish(await start(*send), body)
        broken = await finish(await start(*send), b"{")

    assert 0 == good.code
    assert good.json["signatures"].keys() == {"inviter.example", "remote.example"}
    assert "verified" in good.err
    assert (1, "") == (forged.code, forged.out)
    assert "signature invalid" in forged.err
    assert (2, "") == (broken.code, broken.out)
    assert "invite-client: - is not JSON" in broken.err
    for result in (good, forged, broken):
        assert "Traceback" not in result.err
        assert "Warning" not in result.err


async def test_keys_and_verify_work_together(
    call: Call,
    sending: list[str],
    reaching: list[str],
    network: LoopbackNetwork,
    write: Callable[..., str],
) -> None:
    request = write(make_invite().to_request())
    async with LoopbackHomeserver("remote.example", srv="a.example:8449", network=network):
        keys = await call("keys", "remote.example", "--json", *reaching)
        sent = await call("send", request, *sending)
    reply = write({"event": sent.json}, "reply.json")

    result = await call("verify", request, reply, "--keys", write(keys.out, "keys.json"))

    assert (0, "") == (result.code, result.err)
    assert result.out.endswith("verified\n")


async def wait_for_the_request(remote: LoopbackHomeserver) -> None:
    async with asyncio.timeout(PATIENCE):
        while not remote.counts["v2"]:
            await asyncio.sleep(0.01)


async def test_an_interruption_before_that_leaves_nothing_behind(
    start: Start, sending: list[str], network: LoopbackNetwork, request_file: RequestFile
) -> None:
    service = "_matrix-fed._tcp.remote.example"
    network.dns.fails(service, NO_ANSWER)
    async with LoopbackHomeserver(network=network) as remote:
        for arguments, words in (
            (["send", request_file(), *sending], "interrupted; nothing was sent"),
            (["resolve", "remote.example", *sending], "interrupted"),
        ):
            asked = network.dns.asked(service)
            process = await start(*arguments)
            async with asyncio.timeout(PATIENCE):
                while network.dns.asked(service) == asked:
                    await asyncio.sleep(0.01)
            process.send_signal(signal.SIGINT)
            result = await finish(process)

            assert (130, "") == (result.code, result.out)
            assert f"invite-client: {words}" == result.err.strip()
    assert [] == remote.requests


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_an_interruption_says_what_it_leaves_behind(
    start: Start,
    number: signal.Signals,
    sending: list[str],
    network: LoopbackNetwork,
    request_file: RequestFile,
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        remote.fails(Hangs())
        process = await start("send", request_file(), *sending)
        await wait_for_the_request(remote)
        process.send_signal(number)
        result = await finish(process)

    assert (130, "") == (result.code, result.out)
    assert (
        "invite-client: interrupted while the invite was being sent: whether it arrived is not "
        "known; sending the same request again is safe"
    ) == result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert "Warning" not in result.err


async def test_a_reader_that_goes_away_is_no_error(start: Start) -> None:
    process = await start("demo")
    assert process.stdout is not None
    await process.stdout.readline()
    process.stdout._transport.close()  # type: ignore[attr-defined]
    async with asyncio.timeout(PATIENCE):
        code = await process.wait()
        assert process.stderr is not None
        err = await process.stderr.read()

    assert (1, b"") == (code, err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["demo"],
        ["resolve", "1.1.1.1", "--json"],
        [],
        ["--help"],
        ["--version"],
        ["send", "--help"],
    ],
)
def test_a_full_disk_is_reported(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", "from invite_client.cli import main; main()", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
        )

    assert 1 == result.returncode
    expected = b"invite-client: the result cannot be written: No space left on device\n"
    assert expected == result.stderr


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
async def test_a_success_is_one_whatever_becomes_of_stderr(
    *,
    sending: list[str],
    reaching: list[str],
    network: LoopbackNetwork,
    request_file: RequestFile,
    write: Callable[..., str],
    stderr: str,
) -> None:
    if "full" in stderr and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    request = request_file()
    lines = write(json.dumps(json.loads(Path(request).read_text())) + "\n", "requests.jsonl")
    program = [sys.executable, "-c", "from invite_client.cli import main; main()"]
    results = []
    async with LoopbackHomeserver("remote.example", srv="a.example:8449", network=network):
        for arguments in (
            ["send", request, *sending],
            ["bulk", lines, *sending],
            ["doctor", "remote.example", *reaching],
        ):
            process = await asyncio.create_subprocess_exec(
                *("sh", "-c", f'exec "$@" {stderr}', "sh", *program, *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            results.append(await finish(process))

    assert [0, 0, 0] == [result.code for result in results]
    sent, bulk, doctor = (result.out for result in results)
    assert {"inviter.example", "remote.example"} == json.loads(sent)["signatures"].keys()
    assert json.loads(sent)["signatures"] == json.loads(bulk)["event"]["signatures"]
    assert "should arrive" in doctor


@pytest.mark.parametrize("arguments", [["resolve", "1.1.1.1"], ["keygen", "new.key"]])
def test_nothing_is_done_whose_result_has_nowhere_to_go(arguments: list[str]) -> None:
    program = [sys.executable, "-c", "from invite_client.cli import main; main()", *arguments]
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *program],
        stderr=subprocess.PIPE,
        check=False,
        timeout=PATIENCE,
    )

    assert 2 == result.returncode
    assert b"invite-client: standard output is closed" in result.stderr
    assert 1 == result.stderr.count(b"\n")
    assert not Path("new.key").exists()


CALLS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from invite_client.cli.app import run
for arguments in json.load(sys.stdin):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        code = run(arguments)
    print(json.dumps([code, err.getvalue()]))
"""


@pytest.mark.skipif(
    bool(WITHOUT_ROOTS_EYES) and not shutil.which("setpriv"), reason="root may look everywhere"
)
@pytest.mark.parametrize("variable", ["HOME", "XDG_CONFIG_HOME"])
def test_who_may_not_look_somewhere_is_told_in_one_line(
    identity: list[str], tmp_path: Path, variable: str
) -> None:
    cases: list[tuple[list[str], int, str]] = [
        (["resolve", "1.1.1.1"], 0, ""),
        (["resolve", "1.1.1.1", "--config", "closed/x"], 2, "x cannot be read: Permission denied"),
        (["cache", "show", "--store", "closed/x"], 2, "x does not exist"),
        (["doctor", "1.1.1.1", "--store", "closed/x"], 2, "x cannot be read: Permission denied"),
        (["keygen", "closed/x"], 2, "x cannot be written: Permission denied"),
        (["journal", "show", "closed/x"], 2, "x cannot be opened"),
        (["bulk", "--journal", "closed/x"], 2, "give REQUESTS.jsonl, or the --journal of a run"),
        (["bulk", "in.jsonl", "--journal", "closed/x"], 2, "x cannot be opened"),
        (["bulk", "in.jsonl", "--output", "closed/x"], 2, "cannot be written: Permission denied"),
        (["bulk", "in.jsonl", "--report", "closed/x"], 2, "cannot be written: Permission denied"),
        (["bulk", "closed/x"], 2, "x cannot be read: Permission denied"),
    ]
    (tmp_path / "in.jsonl").touch()
    closed = tmp_path / "closed"
    closed.mkdir()
    calls = [[*call, *(identity if "bulk" in call else [])] for call, _, _ in cases]
    closed.chmod(0)
    try:
        environment = {name: text for name, text in os.environ.items() if name[:4] != "XDG_"}
        result = subprocess.run(
            [*WITHOUT_ROOTS_EYES, sys.executable, "-c", CALLS],
            input=json.dumps(calls),
            capture_output=True,
            check=False,
            timeout=PATIENCE,
            text=True,
            env={**environment, variable: str(closed)},
        )
    finally:
        closed.chmod(0o700)

    assert (0, "") == (result.returncode, result.stderr)
    for (call, code, told), line in zip(cases, result.stdout.splitlines(), strict=True):
        ended, err = json.loads(line)
        assert code == ended, (call, err)
        assert told in err
        assert bool(told) == len(err.splitlines())


@pytest.mark.skipif(
    bool(WITHOUT_ROOTS_EYES) and not shutil.which("setpriv"), reason="root may write everywhere"
)
def test_a_journal_is_shown_to_who_may_only_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    path = folder / "run.sqlite"

    async def make() -> None:
        async with Journal(path) as journal:
            await journal.add([(1, make_invite())])

    asyncio.run(make())
    path.chmod(0o444)
    folder.chmod(0o555)
    try:
        result = subprocess.run(
            [
                *WITHOUT_ROOTS_EYES,
                *(sys.executable, "-c", "from invite_client.cli import main; main()"),
                *("journal", "show", str(path), "--json"),
            ],
            capture_output=True,
            check=False,
            timeout=PATIENCE,
            text=True,
        )
    finally:
        folder.chmod(0o755)

    assert (0, "") == (result.returncode, result.stderr)
    assert 1 == json.loads(result.stdout)["invites"]["pending"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete(shell: str) -> None:
    program = [sys.executable, "-c", "from invite_client.cli import main; main()"]
    result = subprocess.run(
        program,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        text=True,
        env={**os.environ, "_INVITE_CLIENT_COMPLETE": f"{shell}_source"},
    )

    assert (0, "") == (result.returncode, result.stderr)
    assert "_INVITE_CLIENT_COMPLETE=" in result.stdout


@pytest.mark.parametrize(
    ("words", "completion"),
    [
        ("invite-client ke", "plain,keys"),
        ("invite-client backoff re", "plain,reset"),
        ("invite-client send --home", "plain,--homeserver-config"),
        ("invite-client send req", "file,req"),
        ("invite-client resolve --store s", "file,s"),
    ],
)
def test_commands_options_and_files_are_completed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    completion: str,
) -> None:
    monkeypatch.setenv("_INVITE_CLIENT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit) as ended:
        app.run([])
    out, err = capsys.readouterr()

    assert (0, "") == (ended.value.code, err)
    assert completion in out.splitlines()


async def test_works_in_the_locale_of_a_bare_container(start: Start) -> None:
    for encoding in ("ascii", "latin-1"):
        process = await start("demo", PYTHONIOENCODING=encoding)
        out, err = await asyncio.wait_for(process.communicate(), PATIENCE)

        assert (0, b"") == (process.returncode, err)
        assert b"-> no" in out
        assert b"+  @bob:modern.example" in out


# --- Imports ------------------------------------------------------------------------------------


def imported(*arguments: str) -> set[str]:
    code = (
        "import sys; from invite_client.cli.app import run; run(sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        check=True,
        timeout=PATIENCE,
        text=True,
    )
    return {name.partition(".")[0] for name in result.stderr.split()}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["keygen", "new.key"], ["send", "--help"], ["verify", "--help"]]
)
def test_what_needs_no_network_does_not_wait_for_it_to_be_imported(arguments: list[str]) -> None:
    assert set() == imported(*arguments) & {"aiohttp", "dns", "yaml", "trustme", "dnslib"}


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_there_is_a_hint(missing: str, tmp_path: Path) -> None:
    # A module of this name that cannot be imported, as if the extra were not installed.
    code = (
        f"import sys; sys.modules['{missing}'] = None; from invite_client.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        text=True,
    )

    assert (2, "") == (result.returncode, result.stdout)
    assert 1 == result.stderr.count("\n")
    assert "pip install 'invite_client[cli]'" in result.stderr
    assert missing in result.stderr


@pytest.mark.parametrize(
    "name", ["invite_client", "nacl", "click", "invite_client.cli.app", "invite_client.cli.send"]
)
@pytest.mark.parametrize("start", ["from invite_client_command import main; main()", "run as -m"])
def test_an_interruption_while_modules_are_imported_is_one_line(name: str, start: str) -> None:
    if start == "run as -m":
        start = "import runpy; runpy.run_module('invite_client_command', run_name='__main__')"
    code = f"""
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
{start}
"""
    result = subprocess.run(
        [sys.executable, "-c", code, "send", "-"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
        text=True,
    )

    # Click begins with an empty line: on a terminal there stands ^C.
    expected = (130, "", "invite-client: interrupted")
    assert expected == (result.returncode, result.stdout, result.stderr.strip())


def test_the_command_starts_where_it_can_be_interrupted() -> None:
    (script,) = entry_points(group="console_scripts", name="invite-client")

    assert "invite_client_command:main" == script.value


# --- Bugs ---------------------------------------------------------------------------------------


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise LookupError("ed25519 a_1 secret")

    monkeypatch.setattr("invite_client.cli.keygen.write_signing_key", broken)


def test_a_bug_is_one_line_that_shows_no_data(invoke: Invoke, bug: None) -> None:
    result = invoke("keygen", "new.key")

    assert (1, "") == (result.code, result.out)
    assert result.err.startswith("invite-client: a bug: LookupError in test_process.py, line ")
    assert 1 == result.err.count("\n")
    assert "secret" not in result.err


def test_a_bug_has_a_traceback_if_asked(capsys: pytest.CaptureFixture[str], bug: None) -> None:
    assert 1 == app.run(["--debug", "keygen", "new.key"])
    assert "Traceback (most recent call last)" in capsys.readouterr().err


# --- Help ---------------------------------------------------------------------------------------


def test_every_command_is_listed(invoke: Invoke) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        result = invoke(*arguments)

        assert (0, "") == (result.code, result.err)
        assert all(f"  {name} " in result.out for name in app.COMMANDS)


def all_commands() -> Iterator[str]:
    for name in app.COMMANDS:
        yield name
        command = importlib.import_module(f"invite_client.cli.{name}").command
        for inner in getattr(command, "commands", ()):
            yield f"{name} {inner}"


@pytest.mark.parametrize("name", list(all_commands()))
def test_the_help_of_every_command_has_an_example_and_fits(invoke: Invoke, name: str) -> None:
    result = invoke(*name.split(), "--help")

    assert (0, "") == (result.code, result.err)
    assert f"Example:\n    invite-client {name}" in result.out
    assert all(len(line) <= 80 for line in result.out.splitlines())


@pytest.mark.parametrize("name", list(all_commands()))
def test_every_option_is_in_the_documentation(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    first, *inner = name.split()
    command = importlib.import_module(f"invite_client.cli.{first}").command
    for part in inner:
        command = command.commands[part]
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]

    assert options or isinstance(command, click.Group)
    assert [] == [one.name for one in options if not re.search(rf"{one.opts[0]}(?![a-z-])", page)]


def test_a_store_to_look_into_is_not_said_to_be_made(invoke: Invoke) -> None:
    helps = {
        name: " ".join(invoke(*name.split(), "--help").out.split())
        for name in ("send", "cache clear", "backoff reset")
    }
    assert ["made if need be" in text for text in helps.values()] == [True, False, False]


def test_the_version_is_shown(invoke: Invoke) -> None:
    assert 0 == invoke("--version").code
