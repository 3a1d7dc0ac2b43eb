"""What calling the command comes to."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE = 30.0
"""Seconds that a process may take which takes one on an idle machine."""

WITHOUT_ROOTS_EYES = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
)
"""What makes root one who may not read and write everything."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one call ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What was printed on stdout, which must be JSON and nothing else."""
        return json.loads(self.out)


Invoke = Callable[..., Result]
Call = Callable[..., Awaitable[Result]]
Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


async def finish(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Result:
    """Wait for the end of a process, and end it if that does not come."""
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    # What is no pipe has nothing to read.
    return Result(process.returncode, (out or b"").decode(), (err or b"").decode())


@contextmanager
def full_disk(left: int = 1000) -> Iterator[None]:
    """Let no file grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
