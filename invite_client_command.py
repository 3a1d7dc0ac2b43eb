"""Where `invite-client` starts: beside the package, whose import takes part of a second itself.

Ctrl-C within that time must end the command as at any other time. `python -m invite_client_command`
is the same command.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn

__all__ = ["main"]


def main() -> None:
    """Import the command, run it with the arguments of the process, and exit."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored
    if ours:
        # No exception: in the middle of an import, others may catch it, or wrap it in theirs.
        signal.signal(signal.SIGINT, _leave)
    from invite_client.cli import load  # noqa: PLC0415  # what takes its time
    from invite_client.cli import main as command  # noqa: PLC0415

    load()
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command()


def _leave(number: int, _: FrameType | None) -> NoReturn:
    try:
        os.write(2, b"invite-client: interrupted\n")
    finally:
        os._exit(128 + number)  # nothing has been begun that would need an end


if __name__ == "__main__":
    main()
