"""The examples run as they are, from a shell, and print what they promise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.minimal_homeserver import Homeserver
from invite_client import Policy
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.testing import INVITER, INVITER_KEY

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.loopback


def run(name: str, *arguments: str) -> str:
    """Run an example with warnings as errors, and return what it prints to stdout."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_embed_in_send_path() -> None:
    printed = run("embed_in_send_path.py")

    # The client is told what it can do something about, and the room gets what was signed.
    assert "@bob:friendly.example: 200 {}" in printed
    assert '@eve:shy.example: 403 {"errcode": "M_FORBIDDEN"' in printed
    assert '@mallory: 400 {"errcode": "M_INVALID_PARAM"' in printed
    expected = "invite of @bob:friendly.example, signed by inviter.example friendly.example"
    assert expected in printed
    assert 1 == printed.count("in the room:")


def test_bulk_invites() -> None:
    events = [json.loads(line) for line in run("bulk_invites.py").splitlines()]

    # Every user of an honest server is there once, and nobody else.
    expected = {f"@user{n}:{name}" for n in range(3) for name in ("one.example", "two.example")}
    assert expected == {event["state_key"] for event in events}
    assert len(expected) == len(events)
    for event in events:
        invited_server = event["state_key"].partition(":")[2]
        assert {"inviter.example", invited_server} == event["signatures"].keys()


@pytest.fixture
def playground(tmp_path: Path) -> Iterator[tuple[Path, set[str]]]:
    """The folder of a playground that is up, and the servers that cannot be found there."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", EXAMPLES / "playground.py", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = "".join(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
            needs_443 = {"moved.example", "closed.example"}
            yield tmp_path, needs_443 if "moved.example, closed.example cannot" in said else set()
        finally:
            process.send_signal(signal.SIGINT)
            _, complaints = process.communicate(timeout=20)
    assert (0, "") == (process.returncode, complaints)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the command as who has been told what to type."""
    return subprocess.run(
        [sys.executable, "-m", "invite_client_command", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=EXAMPLES.parent,
        env={**os.environ, "INVITE_CLIENT_CONFIG": str(folder / "config.toml")},
    )


def test_playground_has_a_server_for_every_fault_that_doctor_is_shown_with(
    playground: tuple[Path, set[str]],
) -> None:
    folder, not_found = playground
    expected = {
        "inviter.example": (0, []),
        "well.example": (0, []),
        "moved.example": (0, []),
        "old.example": (1, ["no v2 endpoint"]),
        "expired.example": (1, ["certificate expired"]),
        "renamed.example": (1, ["certificate for another name"]),
        "closed.example": (3, ["connection refused"]),
        "tampered.example": (1, ["keys not valid"]),
        "stale.example": (1, ["keys expired"]),
        "web.example": (1, ["not a homeserver"]),
        "early.example": (0, ["clocks differ"]),
        "nodns.example": (3, ["DNS failed"]),
        "private.example": (1, ["address refused by our policy"]),
    }
    found = {}
    for name in expected:
        done = command(folder, "doctor", name, "--json")
        problems = [finding["problem"] for finding in json.loads(done.stdout)["findings"]]
        found[name] = done.returncode, problems

    assert {n: e for n, e in expected.items() if n not in not_found} == {
        n: e for n, e in found.items() if n not in not_found
    }


def test_playground_has_something_to_send(playground: tuple[Path, set[str]]) -> None:
    folder, not_found = playground
    one = command(folder, "send", str(folder / "request.json"))
    users = (folder / "users.txt").read_text().splitlines()
    users = list({user.partition(":")[2]: user for user in users}.values())  # one of each server
    (folder / "users.txt").write_text("\n".join(users))
    files = ("--room", str(folder / "room.json"), "--users", str(folder / "users.txt"))
    many = command(folder, "bulk", *files, "--json", "--journal", str(folder / "run.sqlite"))

    assert 0 == one.returncode, one.stderr
    assert "warning" not in one.stderr
    assert {"inviter.example", "well.example"} == json.loads(one.stdout)["signatures"].keys()
    assert 1 == many.returncode, many.stderr
    came_of_it = json.loads(many.stdout)["invites"]
    signed = 4 - ("moved.example" in not_found)
    assert (signed, 2, 2) == tuple(came_of_it[state] for state in ("signed", "rejected", "failed"))


def test_minimal_homeserver_says_what_it_needs() -> None:
    # With a real Synapse it is run by tests/interop/test_join.py.
    assert "It needs at least --server-name, --invite and --certificate." in run(
        "minimal_homeserver.py"
    )


@pytest.mark.parametrize("room_version", list(ROOM_VERSIONS))
async def test_minimal_homeserver_has_the_create_event_in_every_auth_chain(
    room_version: str,
) -> None:
    homeserver = Homeserver(INVITER, INVITER_KEY, Policy(), room_version=room_version)
    create, *others = homeserver.events.values()

    for event in others:
        assert 1 == homeserver.auth_chain([event]).count(create)
    # Nothing allows the create event itself, and before it there is nothing to be allowed.
    assert [] == homeserver.auth_chain([create])
    assert [] == homeserver.auth_chain([])
    await homeserver.aclose()


@pytest.mark.parametrize(
    ("name", "missing", "told"),
    [
        ("bulk_cluster.py", "procrastinate", "pip install 'invite_client[cluster]'"),
        ("synapse_module.py", "synapse", "a module for Synapse"),
    ],
)
def test_an_example_that_cannot_run_says_why_in_one_line(
    name: str, missing: str, told: str
) -> None:
    path = str(EXAMPLES / name)
    code = (
        f"import runpy, sys; sys.modules[{missing!r}] = None; "
        f"runpy.run_path({path!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (1, "") == (done.returncode, done.stdout)
    assert told in done.stderr
    assert 1 == done.stderr.count("\n")
