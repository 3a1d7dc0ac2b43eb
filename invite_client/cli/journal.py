"""`invite-client journal`: what a bulk run has done so far."""

from __future__ import annotations

from typing import Any

import click

from invite_client.cli.bulk_report import check_report, report_option, write_report
from invite_client.cli.bulk_summary import summary_json, summary_tables
from invite_client.cli.files import FileName
from invite_client.cli.output import Output
from invite_client.cli.states import listed, read_states
from invite_client.journal import Entry, JournalReader, State

__all__ = ["command"]

_STATES = tuple(State)


@click.group("journal", no_args_is_help=False)
def command() -> None:
    """Show or export the journal of a bulk run, also while it runs.

    \b
    Example:
      invite-client journal show run.sqlite
      invite-client journal export run.sqlite --state failed --requests
    """  # noqa: D301  # \b is click's: leave these lines as they are


@command.command("show")
@click.argument("path", metavar="RUN.sqlite", type=FileName())
@report_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def show(path: str, report_file: str | None, as_json: bool) -> None:
    """Show what has become of the invites, in all and by destination.

    \b
    Example:
      invite-client journal show run.sqlite --report report.html
    """  # noqa: D301
    output = Output(as_json=as_json)
    if report_file is not None:
        check_report(report_file)
    with JournalReader(path) as journal:
        if as_json:
            output.json(summary_json(journal))
        else:
            output.result(None, *summary_tables(journal))
        if report_file is not None:
            write_report(report_file, journal)


@command.command("export")
@click.argument("path", metavar="RUN.sqlite", type=FileName())
@click.option(
    "--state",
    "states",
    metavar="STATES",
    callback=read_states(_STATES, otherwise=_STATES),
    help=f"Only those that are {listed(_STATES)}; several with commas.",
)
@click.option("--requests", is_flag=True, help="Only the requests, as `bulk` reads them.")
def export(path: str, states: tuple[State, ...], requests: bool) -> None:
    """Print the invites, a JSON object a line.

    \b
    Example:
      invite-client journal export run.sqlite --state failed --requests
    """  # noqa: D301
    output = Output()
    with JournalReader(path) as journal:
        for entry in journal.entries(states):
            output.json_line(entry.request if requests else _entry_json(entry))


def _entry_json(entry: Entry) -> dict[str, Any]:
    error = None
    if entry.error is not None:
        error = {
            "class": entry.error,
            "message": entry.message,
            "retryable": entry.retryable,
            "retry_after": entry.retry_after,
        }
    return {
        "event_id": entry.event_id,
        "destination": entry.destination,
        "target": entry.target,
        "room_id": entry.room_id,
        "state": entry.state,
        "attempts": entry.attempts,
        "seconds": entry.seconds,
        "ended": entry.ended,
        "endpoint": entry.endpoint,
        "error": error,
        "event": entry.signed,
        "request": entry.request,
    }
