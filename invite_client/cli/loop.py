"""The event loop of the command: uvloop where it is installed, for what has much to do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_fast"]

T = TypeVar("T")


def run_fast(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as `asyncio.run` does, on the fastest loop there is."""
    try:
        from uvloop import new_event_loop  # noqa: PLC0415  # it comes with the extra `uvloop`
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)
