"""The command, called in process or as a process of its own, and a network for it to talk to."""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from invite_client.cli.app import run
from invite_client.signing_keys import write_signing_key
from invite_client.testing import INVITER, INVITER_KEY, LoopbackNetwork, make_invite
from tests.cli.calling import Call, Invoke, Result, Start

SEED = INVITER_KEY.to_line().split()[-1]


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """80 columns, no colour, and files and settings of the test's own."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))
    proxies = {"https_proxy", "all_proxy", "no_proxy"}
    for name in os.environ:
        if (
            name in {"FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}
            or name.lower() in proxies
            or name.startswith("INVITE_CLIENT_")
        ):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Call the command in this process. No key ever shows."""

    def call(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        assert SEED not in captured.out + captured.err
        assert "Traceback" not in captured.err
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def call(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the command in this process where a loop runs already: in a thread, which gets no signal."""
    monkeypatch.setattr("invite_client.cli.signals._NAMES", ())
    return partial(asyncio.to_thread, invoke)


@pytest.fixture
def start() -> Start:
    """Start the command as a process of its own, whose streams are pipes."""

    async def call(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-Werror::ResourceWarning",
            "-c",
            "from invite_client.cli import main; main()",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
        )

    return call


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """The key of the inviting server."""
    path = tmp_path / "signing.key"
    write_signing_key(path, INVITER_KEY)
    return path


@pytest.fixture
def identity(key_file: Path) -> list[str]:
    """The options that say who is inviting."""
    return ["--server-name", INVITER, "--signing-key", str(key_file)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a file, as JSON if it is no text, and return its path."""

    def call(content: object, name: str = "request.json") -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return call


@pytest.fixture
def request_file(write: Callable[..., str]) -> Callable[..., str]:
    """Write the request of an invite, signed by the inviting server."""

    def call(target: str = "@bob:remote.example", version: str = "10", **content: Any) -> str:
        return write(make_invite(target, version, **content).to_request())

    return call


@pytest.fixture
async def network() -> AsyncIterator[LoopbackNetwork]:
    """A network whose servers can be reached from another process, too."""
    async with LoopbackNetwork() as network:
        if not network._own_addresses:
            pytest.skip("needs a system on which all of 127.0.0.0/8 is loopback")
        yield network


@pytest.fixture
def reaching(network: LoopbackNetwork) -> list[str]:
    """The options that lead into the network."""
    return [
        *("--nameserver", f"{network.dns.address}:{network.dns.port}"),
        *("--ca-file", str(network.ca_file)),
        *("--allow-address", "127.0.0.0/8"),
    ]


@pytest.fixture
def sending(identity: list[str], reaching: list[str]) -> list[str]:
    """All options that it takes to send."""
    return [*identity, *reaching]
