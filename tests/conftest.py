"""What holds for every test: nothing is left behind, nothing leaves this machine."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    deadline=None,  # these machines are noisy
    # Who works on the code draws new examples each time; a build says the same thing twice.
    derandomize="CI" in os.environ,
    max_examples=50 if "CI" in os.environ else 100,
    # The autouse fixtures below are per test, not per example, and that is what they are for.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
# For the same tests once more, with other versions of what they use.
settings.register_profile("quick", parent=settings.get_profile("default"), max_examples=10)
settings.load_profile("default")

# What a script starts in the background ignores this, and so would all that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Whole folders on all cores; files, or what is chosen by name or output, in this process.

    To start workers takes longer than most tests do.
    """
    chosen = config.option.keyword or config.getoption("lf", None) or config.option.capture == "no"
    folders = any(Path(argument).is_dir() for argument in config.args)
    return None if folders and not chosen else 0


@pytest.fixture(autouse=True)
async def no_task_is_left_behind() -> AsyncIterator[None]:
    """Every task that a test, or the code under it, has started has also ended."""
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
    if left:  # What has been cancelled may need a turn of the loop to see it.
        await asyncio.wait(left, timeout=1)
    left = {task for task in left if not task.done()}

    assert set() == left


def open_sockets() -> set[str]:
    """Return the sockets that this process holds, by descriptor and inode."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(f"{descriptor.name} {target}")
    return found


@pytest.fixture(autouse=True, scope="module")
def what_was_there_before_is_no_garbage() -> None:
    """To look for garbage in all modules and tests would take longer than most tests do."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_socket_is_left_behind() -> Iterator[None]:
    """Every socket that was opened during the test is closed after it."""
    gc.collect()
    before = open_sockets()
    yield
    gc.collect()

    assert set() == open_sockets() - before


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that would talk to another machine fails instead."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            host = str(address[0]).removeprefix("::ffff:")
            assert host.startswith(("127.", "7f")) or host == "::1", f"reached for {host}"
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)
