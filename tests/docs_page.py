"""Runs the Python blocks of a page of documentation, as its readers would, without a network.

    python tests/docs_page.py docs/tutorial.md

A block that begins with an import or a docstring is a program of its own; any other goes on where the
one before has ended. What a page says in comments, which nobody sees who reads the page:

    <!-- compiled only: WHY -->   the next block is not run
    <!-- run: CODE -->            run this after the block before it
    <!-- prints -->               the next block is what has been printed since the last run; … stands
                                  for anything

Wherever a page says `InviteClient` or `FederationClient`, it gets one that reaches simulated
homeservers: all names in `example`, and matrix.org.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import json
import os
import re
import sys
import tempfile
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from pathlib import Path
from typing import Any

import invite_client
from invite_client import BulkPolicy, Policy, Retries
from invite_client.testing import (
    INVITER_KEY,
    Refuses,
    SimulatedFederation,
    SimulatedHomeserver,
    badly_signed,
    make_invite,
    make_room,
)

ROOT = Path(__file__).parent.parent
_PARTS = re.compile(
    r"^```python\n(?P<code>.*?)^```$"
    r"|^<!-- (?P<command>compiled only|run|prints)(?:: (?P<text>.*?))? -->$"
    r"|^```text\n(?P<output>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PROGRAM = re.compile(r'(#.*\n)*\s*(from |import |""")')


def federation() -> SimulatedFederation:
    """Who there is in the world of the documentation."""
    old = SimulatedHomeserver("old.example", endpoints=("v1",))
    shy = SimulatedHomeserver("shy.example")
    shy.answers(403, "M_FORBIDDEN", "We take no invites from strangers")
    forger = SimulatedHomeserver("forger.example")
    forger.lies(badly_signed())
    down = SimulatedHomeserver("down.example")
    down.fails(Refuses())
    honest = [
        SimulatedHomeserver(f"{name}.example") for name in ("remote", "friendly", "one", "two")
    ]
    return SimulatedFederation(old, shy, forger, down, *honest, SimulatedHomeserver("matrix.org"))


def simulate(world: SimulatedFederation) -> None:
    """Let clients be made that reach `world`; whoever they are, they are known there."""
    # What is down here stays down: nobody has to wait until that is known for sure.
    policy = Policy(retries=Retries(attempts=1), bulk=BulkPolicy(attempts=1))
    reach = {"transport": world, "resolver": world, "policy": policy}
    invite, federate = invite_client.InviteClient, invite_client.FederationClient

    class InviteClient(invite):  # type: ignore[valid-type, misc]
        def __init__(self, server_name: str, signing_key: Any, **options: Any) -> None:
            super().__init__(server_name, signing_key, **{**reach, **options})
            for homeserver in world.homeservers.values():
                homeserver.trust(self.server_name, signing_key.verify_key)

    class FederationClient(federate):  # type: ignore[valid-type, misc]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**reach, **options})

    invite_client.InviteClient = InviteClient  # type: ignore[misc]
    invite_client.FederationClient = FederationClient  # type: ignore[misc]


def lay_out(directory: Path) -> None:
    """The files that pages speak of."""
    room = make_room()
    users = ("@bob:remote.example", "@eve:shy.example", "@old:down.example")
    invites = [make_invite(user) for user in users]
    (directory / "signing.key").write_text(INVITER_KEY.to_line() + "\n")
    (directory / "room.json").write_text(
        json.dumps({name: getattr(room, name) for name in room.__slots__})
    )
    (directory / "users.txt").write_text("\n".join(users) + "\n")
    (directory / "request.json").write_text(json.dumps(invites[0].to_request()))
    lines = [json.dumps(invite.to_request()) for invite in invites]
    (directory / "requests.jsonl").write_text("\n".join(lines) + "\n")


def run_page(path: Path) -> None:
    """Raise what a block raises, or `AssertionError` if it prints what the page does not say."""
    namespace: dict[str, Any] = {}
    printed, runs, compare = io.StringIO(), True, False
    text = path.read_text(encoding="utf-8")
    for part in _PARTS.finditer(text):
        line = text[: part.start()].count("\n") + 1
        match part["command"]:
            case "compiled only":
                runs = False
            case "run":
                _run(part["text"], namespace, printed, f"{path.name}, line {line}")
            case "prints":
                compare = True
        if part["code"] is not None:
            # Line numbers of errors are those of the page.
            source = "\n" * line + part["code"]
            if _PROGRAM.match(part["code"]):
                namespace = {"__name__": "__main__"}
            if runs:
                printed = io.StringIO()
                _run(source, namespace, printed, path.name)
            else:
                compile(source, path.name, "exec", PyCF_ALLOW_TOP_LEVEL_AWAIT)
            runs = True
        if part["output"] is not None and compare:
            _compare(part["output"], printed.getvalue(), f"{path.name}, line {line}")
            compare = False


def _run(source: str, namespace: dict[str, Any], printed: io.StringIO, where: str) -> None:
    code = compile(source, where, "exec", PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with contextlib.redirect_stdout(printed):
        try:
            done = eval(code, namespace)
        except SystemExit as end:
            assert not end.code, f"{where}: exit code {end.code}"
            return
        if inspect.isawaitable(done):
            asyncio.run(_wait(done))


async def _wait(done: Any) -> None:
    await done


def _compare(expected: str, actual: str, where: str) -> None:
    pattern = ".*?".join(map(re.escape, expected.strip().split("…")))
    if not re.fullmatch(pattern, actual.strip(), re.DOTALL):
        raise AssertionError(f"{where}: the page says\n{expected}\nprinted was\n{actual}")


if __name__ == "__main__":
    page = (ROOT / sys.argv[1]).resolve()
    simulate(federation())
    with tempfile.TemporaryDirectory() as directory:
        lay_out(Path(directory))
        os.chdir(directory)
        run_page(page)
        os.chdir(ROOT)
