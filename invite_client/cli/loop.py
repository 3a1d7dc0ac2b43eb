"""The event loop of the command: uvloop where it is installed, for what has much to do."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from contextlib import closing, suppress
from typing import Any, TypeVar

__all__ = ["load_network", "run_fast"]

T = TypeVar("T")


def load_network() -> None:
    """Import what takes its time, before signals raise: what is raised in an import may be lost."""
    for name in ("uvloop", "invite_client.net.http", "invite_client.net.lookups"):
        with suppress(ImportError):  # for whoever needs it to tell
            importlib.import_module(name)


def run_fast(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as `asyncio.run` does, on the fastest loop there is."""
    with closing(work):  # a signal may raise before it has begun, of which Python would warn
        try:
            from uvloop import new_event_loop  # noqa: PLC0415  # it comes with the extra `uvloop`
        except ImportError:
            return asyncio.run(work)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(work)
