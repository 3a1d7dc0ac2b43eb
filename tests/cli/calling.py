"""What calling the command comes to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

PATIENCE = 30.0
"""Seconds that a process may take which takes one on an idle machine."""


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
Start = Callable[..., Awaitable[asyncio.subprocess.Process]]


async def finish(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Result:
    """Wait for the end of a process."""
    try:
        async with asyncio.timeout(PATIENCE):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())
