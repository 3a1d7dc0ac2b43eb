"""What every contender has in common: it sends invites, as it is told by the harness.

A contender is a process of its own, so that neither its memory nor its processor time is mixed with
another's, and stays for all rounds, so that it is warm in all but the first, which does not count.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

from benchmarks.children import reply
from benchmarks.scenario import Scenario

__all__ = ["AsyncioContender", "figures", "peak", "resident", "serve"]


class AsyncioContender(Protocol):
    """One way to send invites from an asyncio loop."""

    def prepare(self, body: dict[str, Any]) -> Any:
        """Make of a v2 request body what a host would have in its hands. Not timed."""
        ...

    async def send(self, prepared: Any) -> None:
        """Have one invite signed. Raises if it is not, or not as it should be."""
        ...


class _Clock:
    """Wall and processor time of this process since a moment."""

    def __init__(self) -> None:
        gc.collect()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {
            "wall": time.perf_counter() - self.wall,
            "cpu": time.process_time() - self.cpu,
        }


def figures(clock: _Clock, count: int, failures: list[BaseException]) -> dict[str, Any]:
    """The answer to a ``run`` command."""
    return {
        **clock.read(),
        "count": count,
        "failures": len(failures),
        "failure": repr(failures[0])[:300] if failures else None,
        "resident": resident(),
        "peak": peak(),
    }


def start_clock() -> _Clock:
    """Begin to count."""
    return _Clock()


def chosen(pool: list[Any], command: dict[str, Any]) -> Iterator[Any]:
    """The invites of a ``run`` command: so many from a pool, from a position on, again and again."""
    start = command.get("start", 0)
    return islice(cycle(pool), start, start + command["count"])


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    # Not `getrusage`, by which a process has held what the one held that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


async def run(
    contender: AsyncioContender, pool: list[Any], command: dict[str, Any]
) -> dict[str, Any]:
    """Send invites, `concurrency` at a time."""
    invites = chosen(pool, command)
    failures: list[BaseException] = []

    async def worker() -> None:
        for invite in invites:
            try:
                await contender.send(invite)
            except Exception as error:  # noqa: BLE001  # counted, and reported by the harness
                failures.append(error)

    clock = start_clock()
    await asyncio.gather(*(worker() for _ in range(command["concurrency"])))
    return figures(clock, command["count"], failures)


async def serve(contender: AsyncioContender, scenario: Scenario) -> None:
    """Do what standard input says until it ends."""
    name = ""
    prepared: list[Any] = []
    loop = asyncio.get_running_loop()
    reply(ready=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = json.loads(line)
        if name != command["pool"]:
            name = command["pool"]
            prepared = [contender.prepare(body) for body in scenario.pool(name)]
        reply(**await run(contender, prepared, command))


def run_loop(main: Callable[[], Awaitable[None]], *, uvloop: bool) -> None:
    """Run `main` on the loop that is asked for."""

    async def entered() -> None:
        await main()

    if uvloop:
        from uvloop import new_event_loop  # noqa: PLC0415  # only there if it is asked for

        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(entered())
    else:
        asyncio.run(entered())
