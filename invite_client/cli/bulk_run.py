"""One bulk run: what goes into the journal, what comes out of it, and how it may be ended."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import click

from invite_client.bulk import Outcome, Outcomes
from invite_client.cli.bulk_input import Lines, Maker
from invite_client.cli.bulk_progress import Progress
from invite_client.cli.bulk_report import write_report
from invite_client.cli.bulk_summary import exit_code_of, summary_json, summary_tables
from invite_client.cli.files import BadInputError
from invite_client.cli.options import Settings
from invite_client.cli.output import (
    CannotWriteError,
    Output,
    complain,
    counted,
    discard,
    thousands,
)
from invite_client.cli.signals import ending
from invite_client.client import InviteClient
from invite_client.errors import InvalidInviteError
from invite_client.journal import Journal, JournalReader, State, signed_line
from invite_client.policy import Policy
from invite_client.spec.signatures import SigningKey

__all__ = ["Run"]

_GRACE = 5.0
"""Seconds that what is in flight has to end after the first interruption."""


class _StoppedError(click.ClickException):
    """Some was sent, and no more could be: not what bad input is, of which nothing is."""


class Run:
    """One run: what goes into the journal, what comes out of it, and how it may be ended."""

    def __init__(
        self,
        path: Path,
        source: tuple[Lines, Maker] | None,
        output: Output,
        *,
        kept: str | None,
        retry: tuple[State, ...],
        output_file: str | None,
    ) -> None:
        """Work with the journal `path`; `kept` is what to call it, if it stays when this is over."""
        self._path = path
        self._kept = None if kept is None else shlex.quote(kept)
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
        try:
            return await journal.record(outcome)
        finally:
            # Also where nobody waits for the disk any more, or it fails.
            if self._output_file == "-" and outcome.signed is not None:
                self._output.json_line(signed_line(outcome.signed))
                self._printed += 1

    async def _leave(self, journal: Journal) -> None:
        """Write down what is known of invites that have no outcome, because the run has ended."""
        if self._outcomes is None:
            return
        for outcome in self._outcomes.untaken():
            with suppress(InvalidInviteError, CannotWriteError):  # It is why the run has ended.
                await self._take(outcome, journal)
        await journal.abandon(self._outcomes.abandoned)
        await journal.put_back(self._outcomes.unfinished())

    @property
    def _abandoned(self) -> int:
        """How many invites were being sent when the run was ended."""
        return len(self._outcomes.abandoned) if self._outcomes is not None else 0

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Let what cannot be written be told with what is not kept because of it."""
        try:
            yield
        except (InvalidInviteError, CannotWriteError) as error:
            raise self._ended_by(error) from None

    def _ended_by(self, error: InvalidInviteError | CannotWriteError) -> Exception:
        if isinstance(error, CannotWriteError) and error.unwanted:
            return error
        abandoned = self._abandoned
        if not self._sent and not abandoned:
            return error
        if isinstance(error, CannotWriteError):
            discard(sys.stdout)
        if self._kept is not None:
            return _StoppedError(f"{error.message}; to go on: --journal {self._kept}")
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

    def conclude(self, report_file: str | None, *, dry_run: bool) -> int:
        """Print what it came to, and return the exit code."""
        try:
            code = self._tell(report_file, dry_run=dry_run)
        except InvalidInviteError as error:
            raise (_StoppedError(error.message) if self._sent else error) from None
        if self._input_error is not None:
            complain(self._input_error.message)
            code = 1
        return 130 if self._interrupted else code

    def _tell(self, report_file: str | None, *, dry_run: bool) -> int:
        with JournalReader(self._path) as reader:
            if self._output.as_json:
                self._output.json(summary_json(reader))
            else:
                words = self._last_words(reader)
                for part in (*summary_tables(reader), *(["", words] if words else [])):
                    self._output.note(part)
            code = exit_code_of(reader, dry_run=dry_run)
            if report_file is not None:
                try:
                    write_report(report_file, reader)
                except click.ClickException as error:
                    again = f"journal show {self._kept} --report FILE.html makes it again"
                    complain(error.message + f"; {again}" * (self._kept is not None))
                    code = 1
        return code

    def _last_words(self, journal: JournalReader) -> str:
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
        if self._kept is not None and left:
            retry = ",".join(state for state in (State.FAILED, State.REJECTED) if state in left)
            again = f"invite-client bulk --journal {self._kept}"
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
