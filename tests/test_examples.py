"""The examples run as they are, from a shell, and print what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_minimal_homeserver_says_what_it_needs() -> None:
    # With a real Synapse it is run by tests/interop/test_join.py.
    assert "It needs at least --server-name, --invite and --certificate." in run(
        "minimal_homeserver.py"
    )


@pytest.mark.parametrize(
    ("name", "missing", "told"),
    [
        ("bulk_cluster.py", "procrastinate", "pip install 'invite_client[queue]'"),
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
