"""What a bulk run came to: tables for a person, JSON for a program, an exit code for a shell."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from invite_client.cli.bulk_progress import STYLES, without_name
from invite_client.cli.output import as_they_come, duration, one_line, plain, thousands, utc
from invite_client.journal import DestinationSummary, JournalReader, State

__all__ = ["exit_code_of", "put_off", "summary_json", "summary_tables"]

_SHOWN = 15
"""Destinations, and bad lines, that a summary shows; all of them are in the report."""
_ERROR = 160
"""Characters of an error that a summary shows: what went wrong, and how, and not all that was said."""


def exit_code_of(journal: JournalReader, *, dry_run: bool = False) -> int:
    """0 if all are signed, 3 if all others may yet be by going on, else 1.

    After a dry run, 0 if every line is an invite.
    """
    if dry_run:
        return int(journal.bad_line_count() > 0)
    if journal.final_failures() or journal.bad_line_count():
        return 1
    return 3 if set(journal.counts()) - {State.SIGNED} or journal.unread_inputs() else 0


def _unfinished(journal: JournalReader) -> list[DestinationSummary]:
    """Return the destinations that have not signed everything: those of most invites first."""
    found = [one for one in journal.destinations() if one.unsigned]
    return sorted(found, key=lambda one: -one.unsigned)


def summary_tables(journal: JournalReader) -> Iterator[RenderableType]:
    """Yield what has become of all invites in a journal, for a person."""
    yield _outcomes(journal)
    if State.IN_FLIGHT in journal.counts():
        yield ""
        yield (
            "What is in flight was given to a run. If that was killed, it may have arrived; the next "
            "run sends it again, which is safe."
        )
    destinations = _unfinished(journal)
    if destinations:
        yield ""
        yield _destinations(destinations[:_SHOWN])
    if len(destinations) > _SHOWN:
        yield f"and {thousands(len(destinations) - _SHOWN)} more servers"
    bad = journal.bad_line_count()
    if bad:
        yield ""
    for line in islice(journal.bad_lines(), _SHOWN):
        yield one_line(f"{line.source}, line {line.line}: {line.message}")
    if bad > _SHOWN:
        yield f"and {thousands(bad - _SHOWN)} more bad lines"


def put_off(destination: DestinationSummary) -> str:
    """Say from when on it may be tried again, where that has not come yet."""
    when = destination.not_before
    return "" if when is None or when <= time.time() else f"; not before {utc(when * 1000)}"


def summary_json(journal: JournalReader) -> dict[str, Any]:
    """Return what has become of all invites in a journal, to be printed while it is open."""
    counts = journal.counts()
    return {
        "invites": {str(state): counts.get(state, 0) for state in State},
        "bad_lines": as_they_come(line._asdict() for line in journal.bad_lines()),
        "unread_inputs": journal.unread_inputs(),
        "unfinished": [
            {
                "destination": one.destination,
                "invites": {str(state): count for state, count in one.states.items()},
                "mean_seconds": one.seconds,
                "last_error": one.message,
                "not_before": one.not_before,
            }
            for one in _unfinished(journal)
        ],
    }


def _outcomes(journal: JournalReader) -> Table:
    counts = journal.counts()
    number = sum(counts.values())
    bad = journal.bad_line_count()
    table = _table("outcome", "invites", "")
    for state, style in STYLES.items():
        count = counts.get(state, 0)
        if count or state is State.SIGNED:
            share = f"{count / number:.1%}" if number else ""
            table.add_row(Text(state, style), thousands(count), share)
    if bad:
        table.add_row(Text("bad lines", "red"), thousands(bad), "")
    return table


def _destinations(destinations: list[DestinationSummary]) -> Table:
    table = _table("not all signed by", "signed", "not", "mean")
    table.expand = True
    table.columns[0].max_width = 24
    table.add_column("last error", ratio=1, overflow="fold")
    for one in destinations:
        table.add_row(
            plain(one.destination),
            thousands(one.states.get(State.SIGNED, 0)),
            thousands(one.unsigned),
            "" if one.seconds is None else _seconds(one.seconds),
            _shortened(without_name(one.destination, one.message or "")) + put_off(one),
        )
    return table


def _table(name: str, *numbers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
    table.add_column(name, no_wrap=True, overflow="ellipsis")
    for number in numbers:
        table.add_column(number, justify="right", no_wrap=True, min_width=6)
    return table


def _shortened(error: str) -> str:
    return error if len(error) <= _ERROR else f"{error[:_ERROR]}…"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 60 else duration(seconds)
