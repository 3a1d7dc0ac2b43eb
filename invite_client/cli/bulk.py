"""`invite-client bulk`: many invites, in a run that can be killed and resumed."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import (
    ExitStack,
    aclosing,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import replace
from pathlib import Path

import click

from invite_client.bulk import Outcome, Outcomes
from invite_client.cli.bulk_input import Lines, Maker, Requests, Users, read_room
from invite_client.cli.bulk_progress import Progress
from invite_client.cli.bulk_report import check_report, report_option, write_report
from invite_client.cli.bulk_summary import exit_code_of, summary_json, summary_tables
from invite_client.cli.files import BadInputError, FileName, exists
from invite_client.cli.loop import load_network, run_fast
from invite_client.cli.numbers import Number, WholeNumber
from invite_client.cli.options import Settings, network_options
from invite_client.cli.output import (
    CannotWriteError,
    Output,
    complain,
    counted,
    discard,
    thousands,
)
from invite_client.cli.signals import ending, interrupting
from invite_client.cli.states import listed, read_states
from invite_client.client import InviteClient
from invite_client.errors import InvalidInviteError
from invite_client.journal import Journal, JournalReader, State, signed_line
from invite_client.policy import Policy
from invite_client.spec.signatures import SigningKey

__all__ = ["command"]

_GRACE = 5.0
"""Seconds that what is in flight has to end after the first interruption."""
_MOST_AT_ONCE = 2**20
"""Each has a descriptor, of which Linux gives a process no more without further ado."""
_LOOK_AHEAD = 5
"""Times the concurrency that the look-ahead is at least, where an operator raises that."""
_LONGEST_DEFERRAL = 10.0
"""Seconds for which an invite waits in memory; where it is asked to wait longer, in the journal."""
_RETRIED = (State.REJECTED, State.FAILED, State.UNKNOWN)


@click.command("bulk")
@click.argument("requests", metavar="[REQUESTS.jsonl]", type=FileName(), required=False)
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
    type=FileName(),
    help="Write the signed events here, a JSON object a line; - for stdout.  "
    "[default: -, if there is no journal]",
)
@click.option(
    "--room",
    metavar="ROOM.json",
    type=FileName(),
    help="Invite users to this room (with --users).",
)
@click.option(
    "--users",
    metavar="FILE",
    type=FileName(),
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
    _check_files(
        {
            "REQUESTS.jsonl": requests,
            "--room": room,
            "--users": users,
            "--journal": journal_file,
            "--output": output_file,
            "--report": report_file,
            "--store": settings.store,
        }
    )
    if report_file is not None:
        check_report(report_file)
    if output_file is None and journal_file is None:
        output_file = "-"
    if settings.output.as_json and output_file == "-" and not dry_run:
        raise click.UsageError("--json prints a summary on stdout: give --output or --journal, too")
    server_name, key = settings.identity()
    policy = _policy(settings.policy, per_destination, concurrency, rate, patience)

    if not dry_run:
        load_network()
    with ExitStack() as stack:
        stack.enter_context(interrupting())
        source: tuple[Lines, Maker] | None = None
        if requests is not None:
            lines = stack.enter_context(closing(Lines(requests)))
            source = lines, Requests(server_name, key, sign=sign)
        elif room is not None and users is not None:
            snapshot = read_room(room, server_name)
            lines = stack.enter_context(closing(Lines(users)))
            is_csv = Path(users).suffix.lower() == ".csv"
            source = lines, Users(snapshot, key, csv=is_csv)
        if journal_file is not None and not dry_run:
            path = Path(journal_file)
        else:
            path = stack.enter_context(_temporary_folder()) / "run.sqlite"
            if journal_file is not None and exists(journal_file):
                with JournalReader(journal_file) as reader:
                    reader.copy_to(path)
        run = _Run(path, retry, output_file, source, settings.output)
        if dry_run:
            asyncio.run(run.check())
        else:
            with run.ending(journal_file):
                run_fast(run.send(server_name, key, policy, settings))
        stack.enter_context(interrupting())
        return run.conclude(journal_file, report_file, dry_run=dry_run)


def _check_files(files: Mapping[str, str | None]) -> None:
    """Refuse one file for two things: the one would destroy the other."""
    given = [(name, file) for name, file in files.items() if file not in (None, "-")]
    for (name, file), (other_name, other) in itertools.combinations(given, 2):
        path, other_path = (os.path.realpath(str(path)) for path in (file, other))
        one = path == other_path
        if exists(path) and exists(other_path):  # a file may have two names, and a device is none
            one = Path(path).is_file() and Path(path).samefile(other_path)
        if one:
            raise BadInputError(f"{name} and {other_name} are one file: {other}")


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Return a folder for a run without a journal of its own."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="invite_client-")
    except OSError as error:
        raise BadInputError(
            f"no temporary folder can be made: {error.strerror}; make room, set TMPDIR, or give a "
            "--journal"
        ) from None
    with folder as path:
        yield Path(path)


class _StoppedError(click.ClickException):
    """Some was sent, and no more could be: not what bad input is, of which nothing is."""


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


class _Run:
    """One run: what goes into the journal, what comes out of it, and how it may be ended."""

    def __init__(
        self,
        path: Path,
        retry: tuple[State, ...],
        output_file: str | None,
        source: tuple[Lines, Maker] | None,
        output: Output,
    ) -> None:
        self._path = path
        self._retry = retry
        self._output_file = output_file
        self._source = source
        self._output = output
        self._known = 0
        self._outcomes: Outcomes | None = None
        self._sent = self._signed = self._printed = 0
        self._begun = asyncio.Event()
        """Set when something of the input was read, if one need not wait for it."""
        self._input_error: BadInputError | None = None
        """Why the input could not be read to its end, if something was sent all the same."""
        self._interrupted = False

    async def check(self) -> None:
        """Read the input, and send nothing."""
        async with Journal(self._path, retry=self._retry) as journal:
            await self._feed(journal, Progress(self._output, live=False))

    async def send(
        self, server_name: str, key: SigningKey, policy: Policy, settings: Settings
    ) -> None:
        """Read the input, and send what is to be sent."""
        to_stdout = self._output_file == "-"
        progress = Progress(self._output, live=self._output.may_draw(stdout=to_stdout))
        async with (
            Journal(
                self._path, retry=self._retry, output=None if to_stdout else self._output_file
            ) as journal,
            settings.open_store() as store,
            InviteClient(server_name, key, policy=policy, store=store) as client,
        ):
            progress.begin(journal, await journal.counts())
            feeding = asyncio.create_task(self._feed(journal, progress))
            try:
                async with self._interruptible(feeding, progress):
                    await self._begun.wait()
                    if feeding.done():
                        feeding.result()  # what is no input at all is told before anything is sent
                    if journal.may_have_arrived:
                        self._output.note(
                            f"{counted(journal.may_have_arrived, 'invite')} of earlier runs may "
                            "have arrived: sent again, as the same event, which is safe"
                        )
                    invites = journal.invites(policy.limits.per_destination)
                    async with client.send_invites(invites) as outcomes, progress.showing(outcomes):
                        self._outcomes = outcomes
                        async for outcome in outcomes:
                            progress.note(outcome, await self._take(outcome, journal))
                if self._outcomes is not None:
                    for outcome in self._outcomes.untaken():
                        await self._take(outcome, journal)
            finally:
                feeding.cancel()
                await asyncio.wait([feeding])
                # Where the journal cannot be written, that is raised when it is closed.
                with suppress(InvalidInviteError):
                    await self._leave(journal)
        if not feeding.cancelled():
            try:
                feeding.result()
            except BadInputError as error:
                if not self._sent and not self._abandoned:
                    raise
                self._input_error = error

    async def _take(self, outcome: Outcome, journal: Journal) -> State:
        """Keep an outcome where it belongs."""
        self._sent += outcome.sends
        self._signed += outcome.signed is not None
        state = await journal.record(outcome)
        if self._output_file == "-" and outcome.signed is not None:
            self._output.json_line(signed_line(outcome.signed))
            self._printed += 1
        return state

    async def _leave(self, journal: Journal) -> None:
        """Write down what is known of invites that have no outcome, because the run has ended."""
        if self._outcomes is None:
            return
        for outcome in self._outcomes.untaken():
            await journal.record(outcome)
        await journal.abandon(self._outcomes.abandoned)
        await journal.put_back(self._outcomes.unfinished())

    @property
    def _abandoned(self) -> int:
        """How many invites were being sent when the run was ended."""
        return len(self._outcomes.abandoned) if self._outcomes is not None else 0

    @contextmanager
    def ending(self, journal_file: str | None) -> Iterator[None]:
        """Let what cannot be written be told with what is not kept because of it."""
        try:
            yield
        except (InvalidInviteError, CannotWriteError) as error:
            raise self._ended_by(error, journal_file) from None

    def _ended_by(
        self, error: InvalidInviteError | CannotWriteError, journal_file: str | None
    ) -> Exception:
        if isinstance(error, CannotWriteError) and error.unwanted:
            return error
        abandoned = self._abandoned
        if not self._sent and not abandoned:
            return error
        if isinstance(error, CannotWriteError):
            discard(sys.stdout)
        if journal_file is not None:
            return _StoppedError(f"{error.message}; to go on: --journal {journal_file}")
        why, kept = error.message, self._printed
        if isinstance(error, InvalidInviteError):
            # Its message is about journals that stay, which this one does not.
            cause = error.__cause__
            reason = cause.strerror if isinstance(cause, OSError) else cause
            file = self._output_file if error.field == "output" else self._path
            why = f"{file} cannot be written: {reason or error.message}"
        if self._output_file != "-":
            with JournalReader(self._path) as journal:
                kept = journal.counts().get(State.SIGNED, 0)
        lost = f"{thousands(self._signed - kept)} of {thousands(self._signed)} signed events"
        return _StoppedError(
            f"{why}; nothing more is sent, and {lost} could not be written"
            + f"; {thousands(abandoned)} more may have been sent" * bool(abandoned)
            + "; sending the same requests again is safe"
        )

    def conclude(self, journal_file: str | None, report_file: str | None, *, dry_run: bool) -> int:
        """Print what it came to, and return the exit code."""
        try:
            code = self._tell(journal_file, report_file, dry_run=dry_run)
        except InvalidInviteError as error:
            raise (_StoppedError(error.message) if self._sent else error) from None
        if self._input_error is not None:
            complain(self._input_error.message)
            code = 1
        return 130 if self._interrupted else code

    def _tell(self, journal_file: str | None, report_file: str | None, *, dry_run: bool) -> int:
        with JournalReader(self._path) as reader:
            if self._output.as_json:
                self._output.json(summary_json(reader))
            else:
                words = self._last_words(journal_file, reader)
                for part in (*summary_tables(reader), *(["", words] if words else [])):
                    self._output.note(part)
            code = exit_code_of(reader, dry_run=dry_run)
            if report_file is not None:
                try:
                    write_report(report_file, reader)
                except click.ClickException as error:
                    again = f"journal show {journal_file} --report FILE.html makes it again"
                    complain(error.message + f"; {again}" * (journal_file is not None))
                    code = 1
        return code

    def _last_words(self, journal_file: str | None, journal: JournalReader) -> str:
        """Say where the results are, and how to go on."""
        words = []
        if self._known:
            words.append(f"{counted(self._known, 'invite')} of the input known already.")
        if self._output_file not in (None, "-"):
            words.append(f"The signed events are in {self._output_file}.")
        words += [
            f"{source} was not read to its end: give it again."
            for source in journal.unread_inputs()
        ]
        left = set(journal.counts()) - {State.SIGNED}
        if journal_file is not None and left:
            retry = ",".join(state for state in (State.FAILED, State.REJECTED) if state in left)
            again = f"invite-client bulk --journal {journal_file}"
            words.append(f"To go on: {again}" + f" --retry {retry}" * bool(retry))
        return "\n".join(words)

    async def _feed(self, journal: Journal, progress: Progress) -> None:
        """Write the input down in the journal, as fast as it comes."""
        try:
            if self._source is None:
                return
            lines, maker = self._source
            if lines.size is None:  # it may be hours until there is something
                self._begun.set()
            await journal.begin_input(lines.name)
            with progress.reading(lines):
                async with aclosing(lines.batches()) as batches:
                    async for batch in batches:
                        made, known = await maker.make(batch, journal)
                        added = await journal.add(made, lines.name)
                        progress.added(added)
                        self._known += known + added.known
                        self._begun.set()
            await journal.finish_input(lines.name)
        except BadInputError as error:
            progress.remark(error.message, told_at_the_end=True)
            raise
        finally:
            journal.end_of_input()
            self._begun.set()

    @asynccontextmanager
    async def _interruptible(
        self, feeding: asyncio.Task[None], progress: Progress
    ) -> AsyncIterator[None]:
        """Let a signal end the block: what is in flight has some seconds, or none at the second.

        Once it has ended, none ends anything: what is known is being written down.
        """
        loop = asyncio.get_running_loop()
        limit = asyncio.timeout(None)
        is_over = False

        def interrupt() -> None:
            if is_over or limit.expired():
                return
            if self._interrupted or self._outcomes is None:
                self._interrupted = True
                limit.reschedule(loop.time())
                return
            self._interrupted = True
            self._outcomes.stop()
            feeding.cancel()
            limit.reschedule(loop.time() + _GRACE)
            in_flight = counted(self._outcomes.in_flight, "invite")
            progress.remark(
                f"interrupted: {in_flight} in flight, with {_GRACE:g} seconds to end; once more to "
                "leave at once"
            )

        try:
            async with limit:
                for number in ending():
                    loop.add_signal_handler(number, interrupt)
                yield
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            is_over = True
