"""The command `invite-client`: one file a sub-command, each thin: parse, call, print.

It needs the extra `cli`. Nothing here is imported by the library.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys

__all__ = ["load", "main"]


def load() -> None:
    """Import what every sub-command needs. What is missing, `main` will tell."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("invite_client.cli.app")


def main() -> None:
    """Run the command with the arguments of the process, and exit."""
    if sys.stderr is None:
        # What is opened next must not get its number, and with it what is meant for stderr.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
    if "--debug" not in sys.argv:
        # What the library logs it also raises; without a handler, Python would print it.
        logging.getLogger().addHandler(logging.NullHandler())
    try:
        from invite_client.cli.app import run  # noqa: PLC0415

        code = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("invite_client"):
            raise
        missing = error.name.partition(".")[0]
        print(  # noqa: T201  # click may be what is missing
            f"invite-client: {missing} is not installed; the command needs an extra: "
            "pip install 'invite_client[cli]'",
            file=sys.stderr,
        )
        code = 2
    except KeyboardInterrupt:  # while modules were still being imported
        code = 130
    try:
        sys.stderr.flush()
    except OSError:
        from invite_client.cli.output import discard  # noqa: PLC0415

        discard(sys.stderr)
    sys.exit(code)
