"""Which signals ask a sub-command to end."""

from __future__ import annotations

import signal

__all__ = ["ending"]

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C, `kill`, and a terminal that goes away; not every system has the last."""


def ending(*names: str) -> list[signal.Signals]:
    """Return those of `names`, or of all, that are not ignored.

    Whoever starts a job in the background, or with `nohup`, wants it to go on: it inherits that.
    """
    found = (getattr(signal, name, None) for name in names or _NAMES)
    return [one for one in found if one is not None and signal.getsignal(one) != signal.SIG_IGN]
