"""What is printed: results to stdout, everything else to stderr; as text or as JSON."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import islice
from typing import IO, Any

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from invite_client.errors import InvalidInviteError, InviteError
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.invites import SignedInvite

__all__ = [
    "CannotWriteError",
    "InterruptionError",
    "Output",
    "as_they_come",
    "complain",
    "counted",
    "discard",
    "duration",
    "error_json",
    "exit_code",
    "finite",
    "for_operators",
    "one_line",
    "plain",
    "resolved_json",
    "signed_json",
    "thousands",
    "utc",
    "write_anything",
]

_SETTINGS = {
    "addresses.allowed": "--allow-address",
    "dns.nameservers": "--nameserver",
    "ignore_backoff=True": "--ignore-backoff",
    "(proxy.onion)": "(--onion-proxy)",
    "reset_backoff()": "invite-client backoff reset",
    "servers.allowed": "federation_domain_whitelist in homeserver.yaml",
    "timeouts.total": "--timeout",
    "tls.ca_file": "--ca-file",
}
"""What the library calls a setting, and where an operator finds it."""

_WITHOUT_UNICODE = {
    "…": "...",
    "–": "-",
    "─": "-",
    "→": "->",
    "✓": "+",
    "✗": "x",
    "§": "section",
    "±": "+/-",
}


_NARROWEST = 60
"""Columns without which tables would lose some of theirs. Narrower terminals break lines."""
_OF_NO_WIDTH = 1000
"""Columns of a file or a pipe: whoever searches it wants a line to be one."""


class CannotWriteError(click.ClickException):
    """The result could not be written. Nobody needs to be told if it was not wanted any more."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the result cannot be written: {error.strerror}")
        self.reason = error.strerror
        self.unwanted = isinstance(error, BrokenPipeError)


class InterruptionError(click.ClickException):
    """The person at the keyboard had enough; the message says what is left behind."""

    exit_code = 130


class Output:
    """Where one sub-command prints."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout = _console()
        self._stderr = _console(stderr=True)

    def result(self, value: Any, *text: RenderableType) -> None:
        """Print the result: `value` if JSON was asked for, else `text`."""
        if self.as_json:
            self.json(value)
        else:
            for part in text:
                _print(self._stdout, part)

    def json(self, value: Any) -> None:
        """Print JSON on stdout. It is ASCII, so no terminal takes any of it for a command."""
        with _writing(self._stdout) as file:
            for part in json.JSONEncoder(indent=2, allow_nan=False).iterencode(value):
                file.write(part)
            file.write("\n")

    def json_line(self, value: Any) -> None:
        """Print JSON on stdout, as one line of many."""
        with _writing(self._stdout) as file:
            file.write(json.dumps(value, allow_nan=False) + "\n")

    def note(self, text: RenderableType, style: str = "") -> None:
        """Say on stderr what is going on, if it can be told: nothing is worth less for it."""
        _print(self._stderr, text, style)

    def live(self, picture: RenderableType) -> Live:
        """Return a picture on the terminal of stderr, which goes away with its block."""
        return Live(picture, console=self._stderr, auto_refresh=False, transient=True)

    def may_draw(self, *, stdout: bool) -> bool:
        """Whether stderr is a terminal to draw on; `stdout` if lines are printed on stdout meanwhile."""
        stderr = self._stderr
        # Where lines are broken, a picture could not be taken back.
        fits = Console(stderr=True).width >= _NARROWEST
        return stderr.is_terminal and fits and not (stdout and self._stdout.is_terminal)

    def failure(self, error: InviteError, diagnosis: str | None = None, **more: Any) -> int:
        """Print an error for whoever asked for JSON and for a person; return the exit code.

        Bad input, found late, is raised again: it is one line and no result.
        """
        if isinstance(error, InvalidInviteError):
            raise error
        diagnosis = for_operators(error.diagnosis() if diagnosis is None else diagnosis)
        if self.as_json:
            self.json({**more, "error": {**error_json(error), "diagnosis": diagnosis}})
        self.note(diagnosis, "red")
        return exit_code(error)


def exit_code(error: InviteError) -> int:
    """3 if the same invite may succeed later, else 1."""
    return 3 if error.retryable else 1


def complain(message: str, *, by_option: bool = True) -> None:
    """Print one line on stderr, whatever the message; settings are named by option if they have one."""
    message = one_line(message) if by_option else plain(" ".join(message.split()))
    _print(_console(stderr=True), f"invite-client: {message}")


def _console(*, stderr: bool = False) -> Console:
    # Neither markup nor highlighting: what is printed are often a stranger's words.
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _OF_NO_WIDTH
    console.width = max(console.width, _NARROWEST)
    return console


def _print(console: Console, part: RenderableType, style: str = "") -> None:
    if isinstance(part, str):
        part = Text(plain(part), style=style)
    with _writing(console) as file:
        if console.is_terminal:
            console.print(part)
            return
        # A file or a pipe has no width: there a line stays a line, and nobody wants padding.
        with console.capture() as capture:
            console.print(part, soft_wrap=isinstance(part, Text))
        file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


@contextlib.contextmanager
def _writing(console: Console) -> Iterator[IO[str]]:
    try:
        yield console.file
        console.file.flush()
    except OSError as error:
        if not console.stderr:  # else there is nobody to tell
            raise CannotWriteError(error) from None


def discard(stream: IO[str]) -> None:
    """Let what could not be written be lost: Python would fail at it again on exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


# --- Text ---------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Show what a terminal might take for a command as an escape: the text may be a stranger's."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def one_line(text: str) -> str:
    """Make one line of a message."""
    return plain(for_operators(" ".join(text.split())))


def for_operators(text: str) -> str:
    """Name settings as the command knows them."""
    for setting, option in _SETTINGS.items():
        text = text.replace(setting, option)
    return text


def counted(number: int, noun: str) -> str:
    """Return so many of something for a person to read."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def thousands(number: int) -> str:
    """Return a number for a person to read."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Return a time for a person to read: ``42 s``, ``3:07``, ``1:02:03``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def utc(milliseconds: float) -> str:
    """Return a time since the epoch as a date and time; as the number if there is no such date."""
    try:
        when = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return f"{milliseconds} ms since the epoch"
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def write_anything() -> None:
    """Make stdout and stderr take any character, whatever the locale."""
    codecs.register_error("invite-client", _replacement)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="invite-client")


def _replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    known = (_WITHOUT_UNICODE.get(c) or c.encode("unicode_escape").decode() for c in wrong)
    return "".join(known), error.end


# --- JSON ---------------------------------------------------------------------------------------


class _AsTheyCome(list[Any]):
    """To the encoder, which looks whether it is empty and goes through it once, a list as others."""

    def __init__(self, items: Iterator[Any]) -> None:
        super().__init__(islice(items, 1))
        self._rest = items

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        yield from self._rest


def as_they_come(items: Iterator[Any]) -> list[Any]:
    """Return what is printed as a JSON array: once, and never all of it in memory."""
    return _AsTheyCome(items)


def finite(value: Any) -> Any:
    """Return a value without the numbers that JSON does not have; a store may hold anything."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def signed_json(signed: SignedInvite) -> dict[str, Any]:
    """Return what is known of an invite that was signed."""
    return {
        "event_id": signed.invite.event_id,
        "destination": str(signed.invite.destination),
        "event": signed.event,
        "signatures": dict(signed.signatures),
        "endpoint": signed.endpoint,
        "resolved": resolved_json(signed.resolved),
        "attempts": [dataclasses.asdict(attempt) for attempt in signed.attempts],
        "seconds": signed.seconds,
        "warnings": list(signed.invite.warnings),
    }


def resolved_json(server: ResolvedServer) -> dict[str, Any]:
    """Return where a server is, and why."""
    return {
        "server_name": server.server_name,
        "step": server.step,
        "targets": [{"host": target.host, "port": target.port} for target in server.targets],
        "host_header": server.host_header,
        "tls_name": server.tls_name,
        "trace": [dataclasses.asdict(step) for step in server.trace],
        # What rests on no answer of the network never gets old; JSON has no infinity.
        "fresh_until": server.fresh_until if math.isfinite(server.fresh_until) else None,
    }


_DETAILS = ("error", "room_version", "problem", "fields", "setting", "field")
"""What only some kinds of error have."""


def error_json(error: InviteError) -> dict[str, Any]:
    """Return everything that an error says."""
    shown: dict[str, Any] = {
        "class": type(error).__name__,
        "message": error.message,
        "stage": error.stage,
        "delivery": error.delivery,
        "retryable": error.retryable,
        "retry_after": error.retry_after,
        "destination": error.destination,
        "status": getattr(error, "status", None),
        "errcode": getattr(error, "errcode", None),
    }
    shown |= {name: getattr(error, name) for name in _DETAILS if hasattr(error, name)}
    trace = getattr(error, "trace", ())
    if trace:
        shown["trace"] = [dataclasses.asdict(step) for step in trace]
    shown["attempts"] = [dataclasses.asdict(attempt) for attempt in error.attempts]
    return shown
