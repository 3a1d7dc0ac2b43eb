"""The event loop of `bulk`: uvloop where it is installed, and the same results without it."""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace

import pytest

from invite_client.cli.loop import run_fast
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    LoopbackHomeserver,
    LoopbackNetwork,
    make_invite,
)
from tests.cli.calling import finish


@pytest.fixture
async def remote(network: LoopbackNetwork) -> AsyncIterator[LoopbackHomeserver]:
    async with LoopbackHomeserver(network=network) as remote:
        remote.trust(INVITER, INVITER_KEY.verify_key)
        yield remote


async def loop_of() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def test_it_is_uvloop_where_that_is_installed() -> None:
    pytest.importorskip("uvloop", reason="needs uvloop, which the extra `uvloop` brings")

    assert "uvloop" == run_fast(loop_of())


def test_it_is_that_of_asyncio_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)

    assert "asyncio" == run_fast(loop_of())


def test_what_is_interrupted_before_it_has_begun_is_not_said_to_be_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted() -> asyncio.AbstractEventLoop:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "uvloop", SimpleNamespace(new_event_loop=interrupted))
    work = loop_of()
    with pytest.raises(KeyboardInterrupt):
        run_fast(work)

    assert inspect.CORO_CLOSED == inspect.getcoroutinestate(work)


async def test_a_run_needs_no_uvloop(
    sending: list[str], remote: LoopbackHomeserver, write: Callable[..., str]
) -> None:
    invites = [make_invite(f"@u{number}:remote.example") for number in range(7)]
    source = write("".join(json.dumps(one.to_request()) + "\n" for one in invites), "in.jsonl")
    code = "import sys; sys.modules['uvloop'] = None; from invite_client.cli import main; main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", code, "bulk", source, *sending),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    result = await finish(process)

    assert (0, 7) == (result.code, len(result.out.splitlines())), result.err
    assert 7 == len(remote.accepted)
