"""Which signals ask a sub-command to end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["ending", "interrupting"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, `kill`, and a terminal that goes away; not every system has the last."""


def ending(*names: str) -> list[signal.Signals]:
    """Return those of `names`, or of all, that are not ignored.

    Whoever starts a job in the background, or with `nohup`, wants it to go on: it inherits that.
    """
    found = (getattr(signal, name, None) for name in names or _NAMES)
    return [one for one in found if one is not None and signal.getsignal(one) != signal.SIG_IGN]


@contextmanager
def interrupting() -> Iterator[None]:
    """Let each signal that asks to end raise `KeyboardInterrupt` in the block, as Ctrl-C does.

    By themselves the others end a process without a word, and leave its temporary files behind. An
    event loop that has seen to a signal lets it go at its end: that is for the block inside.
    """

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in ending()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
