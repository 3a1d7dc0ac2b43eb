"""`invite-client bulk`: many invites, in a run that can be killed and resumed."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import click

from invite_client.cli.bulk_input import Lines, Maker, Requests, Users, read_room
from invite_client.cli.bulk_report import check_report, report_option
from invite_client.cli.bulk_run import Run
from invite_client.cli.files import BadInputError, FileName, exists
from invite_client.cli.loop import load_network, run_fast
from invite_client.cli.numbers import Number, WholeNumber
from invite_client.cli.options import Settings, network_options
from invite_client.cli.signals import interrupting
from invite_client.cli.states import listed, read_states
from invite_client.journal import JournalReader, State
from invite_client.policy import Policy
from invite_client.spec.signatures import SigningKey

__all__ = ["command"]

_MOST_AT_ONCE = 2**20
"""Each has a descriptor, of which Linux gives a process no more without further ado."""
_LOOK_AHEAD = 5
"""Times the concurrency that the look-ahead is at least, where an operator raises that."""
_LONGEST_DEFERRAL = 10.0
"""Seconds for which an invite waits in memory; where it is asked to wait longer, in the journal."""
_RETRIED = (State.REJECTED, State.FAILED, State.UNKNOWN)


@click.command("bulk")
@click.argument(
    "requests", metavar="[REQUESTS.jsonl]", type=FileName(allow_dash=True), required=False
)
@click.option(
    "--journal",
    "journal_file",
    metavar="FILE",
    type=FileName(),
    help="Keep a journal here; the same journal again resumes the run.",
)
@click.option(
    "--output",
    "output_file",
    metavar="FILE",
    type=FileName(allow_dash=True),
    help="Write the signed events here, a JSON object a line; - for stdout.  "
    "[default: -, if there is no journal]",
)
@click.option(
    "--room",
    metavar="ROOM.json",
    type=FileName(allow_dash=True),
    help="Invite users to this room (with --users).",
)
@click.option(
    "--users",
    metavar="FILE",
    type=FileName(allow_dash=True),
    help="A text file of user IDs, or .csv with a header.",
)
@click.option("--sign", is_flag=True, help="Hash and sign the events with the key first.")
@click.option(
    "--retry",
    metavar="STATES",
    callback=read_states(_RETRIED, otherwise=()),
    help=f"Send again what a journal has as {listed(_RETRIED)}; several with commas. Unknown ones "
    "are always sent again.",
)
@click.option("--dry-run", is_flag=True, help="Check the input, and show what would be sent.")
@click.option(
    "--rate",
    type=Number(min=0, min_open=True),
    metavar="N",
    help="Invites a second at most.",
)
@click.option(
    "--per-destination",
    type=WholeNumber(min=1, max=_MOST_AT_ONCE),
    metavar="N",
    help=f"Invites at once to one server at most.  [default: {Policy().limits.per_destination}]",
)
@click.option(
    "--concurrency",
    type=WholeNumber(min=1, max=_MOST_AT_ONCE),
    metavar="N",
    help=f"Invites at once at most.  [default: {Policy().limits.concurrency}]",
)
@click.option(
    "--patience",
    type=Number(min=0),
    metavar="SECONDS",
    help="How long a server may do nothing but fail before it is given up.  "
    f"[default: {Policy().bulk.patience:g}]",
)
@report_option
@network_options(identity=True)
def command(
    *,
    requests: str | None,
    journal_file: str | None,
    output_file: str | None,
    room: str | None,
    users: str | None,
    sign: bool,
    retry: tuple[State, ...],
    dry_run: bool,
    rate: float | None,
    per_destination: int | None,
    concurrency: int | None,
    patience: float | None,
    report_file: str | None,
    settings: Settings,
) -> int:
    """Send many invites. A journal lets a run go on where it was ended, by whatever.

    REQUESTS.jsonl (or - for standard input) has the body of a v2 request on each line. Without it,
    a journal is resumed. A server that fails is tried again later within the run, for up to ten
    minutes. Ctrl-C ends what is in flight within seconds.

    \b
    Example:
      invite-client bulk requests.jsonl --journal run.sqlite --output signed.jsonl
      invite-client bulk --journal run.sqlite --retry failed
      invite-client bulk --room room.json --users users.csv --journal run.sqlite
    """  # noqa: D301  # \b is click's: leave these lines as they are
    _check_usage(requests, room, users, journal_file, retry)
    _check_files(
        {
            "REQUESTS.jsonl": requests,
            "--room": room,
            "--users": users,
            "--journal": journal_file,
            "--output": output_file,
            "--report": report_file,
            "--store": settings.store,
            "the signing key": settings.key_file,
        }
    )
    if report_file is not None:
        check_report(report_file)
    if output_file is None and journal_file is None:
        output_file = "-"
    if settings.output.as_json and output_file == "-" and not dry_run:
        raise click.UsageError(
            "--json prints a summary on stdout: give --output FILE, or --journal without --output"
        )
    server_name, key = settings.identity()
    policy = _policy(settings.policy, per_destination, concurrency, rate, patience)

    if not dry_run:
        load_network()
    with (
        interrupting(),
        _opened_input(requests, room, users, server_name, key, sign=sign) as source,
        _journal_path(journal_file, dry_run=dry_run) as path,
    ):
        if dry_run:  # neither is written
            journal_file = output_file = None
        run = Run(
            path,
            source,
            settings.output,
            kept=journal_file,
            retry=retry,
            output_file=output_file,
        )
        if dry_run:
            asyncio.run(run.check())
        else:
            with run.ending():
                run_fast(run.send(server_name, key, policy, settings))
        with interrupting():  # an event loop has let the signals go
            return run.conclude(report_file, dry_run=dry_run)


def _check_usage(
    requests: str | None,
    room: str | None,
    users: str | None,
    journal_file: str | None,
    retry: tuple[State, ...],
) -> None:
    if (room is None) != (users is None):
        raise click.UsageError("--room and --users belong together")
    if requests is not None and room is not None:
        raise click.UsageError("give either REQUESTS.jsonl or --room and --users")
    if requests is None and room is None and not (journal_file and exists(journal_file)):
        raise click.UsageError("give REQUESTS.jsonl, or the --journal of a run to resume")
    if retry and journal_file is None:
        raise click.UsageError("--retry needs --journal: only there is what became of earlier runs")
    if room == users == "-":
        raise click.UsageError("only one of the files can be standard input")


def _check_files(files: Mapping[str, str | None]) -> None:
    """Refuse one file for two things: the one would destroy the other, or show it."""
    given = [(name, file) for name, file in files.items() if file not in (None, "-")]
    for (name, file), (other_name, other) in itertools.combinations(given, 2):
        path, other_path = (os.path.realpath(str(path)) for path in (file, other))
        one = path == other_path
        if exists(path) and exists(other_path):  # a file may have two names, and a device is none
            one = Path(path).is_file() and Path(path).samefile(other_path)
        if one:
            raise BadInputError(f"{name} and {other_name} are one file: {other}")


@contextmanager
def _opened_input(
    requests: str | None,
    room: str | None,
    users: str | None,
    server_name: str,
    key: SigningKey,
    *,
    sign: bool,
) -> Iterator[tuple[Lines, Maker] | None]:
    """Open what is to be read, with what makes invites of it; None where a journal is resumed."""
    if requests is not None:
        with closing(Lines(requests)) as lines:
            yield lines, Requests(server_name, key, sign=sign)
    elif room is not None and users is not None:
        snapshot = read_room(room, server_name)
        with closing(Lines(users)) as lines:
            is_csv = Path(users).suffix.lower() == ".csv"
            yield lines, Users(snapshot, key, csv=is_csv)
    else:
        yield None


@contextmanager
def _journal_path(journal_file: str | None, *, dry_run: bool) -> Iterator[Path]:
    """Yield where the journal of the run is: a temporary one where none is to be kept, or changed."""
    if journal_file is not None and not dry_run:
        yield Path(journal_file)
        return
    with _temporary_folder() as folder:
        path = folder / "run.sqlite"
        if journal_file is not None and exists(journal_file):
            with JournalReader(journal_file) as reader:
                reader.copy_to(path)
        yield path


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield a folder for a run without a journal of its own."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="invite_client-")
    except OSError as error:
        raise BadInputError(
            f"no temporary folder can be made: {error.strerror}; make room, set TMPDIR, or give a "
            "--journal"
        ) from None
    with folder as path:
        yield Path(path)


def _policy(
    policy: Policy,
    per_destination: int | None,
    concurrency: int | None,
    rate: float | None,
    patience: float | None,
) -> Policy:
    limits = replace(
        policy.limits,
        per_destination=per_destination or policy.limits.per_destination,
        concurrency=concurrency or policy.limits.concurrency,
    )
    look_ahead = max(policy.bulk.look_ahead, _LOOK_AHEAD * limits.concurrency)
    bulk = replace(
        policy.bulk,
        rate=rate or policy.bulk.rate,
        look_ahead=look_ahead,
        longest_deferral=min(policy.bulk.longest_deferral, _LONGEST_DEFERRAL),
    )
    if patience is not None:
        bulk = replace(bulk, patience=patience, patience_when_full=patience)
    return replace(policy, limits=limits, bulk=bulk)
