"""How far a bulk run has come: a live display on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from invite_client.bulk import Outcome, Outcomes
from invite_client.cli.bulk_input import Lines
from invite_client.cli.output import Output, duration, one_line, plain, thousands
from invite_client.journal import Added, Journal, State

__all__ = ["STYLES", "Progress", "without_name"]

STYLES = {
    State.SIGNED: "green",
    State.REJECTED: "yellow",
    State.FAILED: "red",
    State.UNKNOWN: "magenta",
    State.DEFERRED: "blue",
    State.IN_FLIGHT: "cyan",
    State.PENDING: "dim",
}
"""A colour for each state; the words say the same."""

_REFRESH = 0.25
"""Seconds between two pictures: faster than that nobody reads."""
_EVERY = 10.0
"""Seconds between two lines where there is no terminal: a log of an hour has 360."""
_WINDOW = 20.0
"""Seconds over which the rate is taken."""
_SHOWN = 4
"""Destinations in each list."""
_TIMED = 2000
"""Destinations whose times are remembered, the most recent ones."""


class Progress:
    """What is known of a run, and where it is shown."""

    def __init__(self, output: Output, *, live: bool) -> None:
        """Show on stderr; `live` if that is a terminal which nobody else writes on."""
        self._output = output
        self._live = live
        self.counts: Counter[State] = Counter()
        self.bad = 0
        self._lines: Lines | None = None
        self._reading = False
        self._journal: Journal | None = None
        self._times: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._started = time.monotonic()
        self._samples: deque[tuple[float, int]] = deque()
        self._outcomes: Outcomes | None = None
        self._remark = ""

    # --- What happens ---------------------------------------------------------------------------

    def begin(self, journal: Journal, counts: dict[State, int]) -> None:
        """Take on what earlier runs have done."""
        self._journal = journal
        self.counts.update(counts)
        self.counts[State.PENDING] += self.counts.pop(State.DEFERRED, 0)

    @contextmanager
    def reading(self, lines: Lines) -> Iterator[None]:
        """Note that input is being read."""
        self._lines, self._reading = lines, True
        try:
            yield
        finally:
            self._reading = False

    def added(self, added: Added) -> None:
        """Note what became of some lines."""
        self.counts[State.PENDING] += added.new
        self.bad += added.bad

    def note(self, outcome: Outcome, state: State) -> None:
        """Note how an invite ended, if it is for good."""
        if state is not State.DEFERRED:
            self.counts[State.PENDING] -= 1
            self.counts[state] += 1
        if outcome.invite is not None and outcome.sends:
            name = str(outcome.invite.destination)
            number, mean = self._times.pop(name, (0, 0.0))
            self._times[name] = (number + 1, mean + (outcome.seconds - mean) / (number + 1))
            if len(self._times) > _TIMED:
                self._times.popitem(last=False)

    def remark(self, text: str, *, told_at_the_end: bool = False) -> None:
        """Say something that concerns the whole run: now, or in the picture until it is told."""
        self._remark = text
        if not self._live and not told_at_the_end:
            self._output.note(text)

    # --- What it comes to -----------------------------------------------------------------------

    @property
    def done(self) -> int:
        """How many invites have ended."""
        return self.total - self.counts[State.PENDING] - self.counts[State.IN_FLIGHT]

    @property
    def total(self) -> int:
        """How many invites there are, as far as the input was read."""
        return self.counts.total()

    @property
    def seconds(self) -> float:
        """How long the run has lasted."""
        return time.monotonic() - self._started

    def expected(self) -> int | None:
        """Return how many invites there will be, by the length of the input; None if unknown."""
        if not self._reading or self._lines is None:
            return self.total
        if not self._lines.size or not self._lines.read:
            return None
        share = self._lines.read / self._lines.size
        return max(self.total, int(self.total / share))

    def rate(self) -> float:
        """Return how many invites have ended in a second, of late."""
        now = time.monotonic()
        self._samples.append((now, self.done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW:
            self._samples.popleft()
        (then, before), done = self._samples[0], self.done
        return (done - before) / (now - then) if now > then else 0.0

    def slowest(self) -> list[tuple[str, int, float]]:
        """Return the destinations that take longest, how many answers they gave, and the mean time."""
        found = [(name, number, mean) for name, (number, mean) in self._times.items()]
        return sorted(found, key=lambda one: -one[2])[:_SHOWN]

    # --- How it is shown ------------------------------------------------------------------------

    @asynccontextmanager
    async def showing(self, outcomes: Outcomes) -> AsyncIterator[None]:
        """Show the progress while the block runs."""
        self._outcomes = outcomes
        self._samples.append((time.monotonic(), self.done))
        task = asyncio.create_task(self._draw() if self._live else self._report())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(_EVERY)
            self._output.note(self.line())

    async def _draw(self) -> None:
        # A terminal may go away, and the run goes on.
        with suppress(OSError), self._output.live(self.picture()) as live:
            while True:
                await asyncio.sleep(_REFRESH)
                live.update(self.picture(), refresh=True)

    def line(self) -> str:
        """Return one line for a log."""
        expected, rate = self.expected(), self.rate()
        of = f" of {thousands(expected)}" if expected is not None else ""
        share = f" ({self.done / expected:.0%})" if expected else ""
        parts = [
            f"{thousands(self.done)}{of} done{share}",
            f"{rate:.1f}/s",
            *([f"{self._left(expected, rate)} left"] if expected and rate else []),
            *self._counted(),
        ]
        failing = len(self._outcomes.failing()) if self._outcomes else 0
        if failing:
            parts.append(f"{failing} destination{'s' * (failing > 1)} failing")
        return "bulk: " + ", ".join(parts)

    def _left(self, expected: int, rate: float) -> str:
        return duration(max((expected - self.done) / rate, self._until_due() or 0.0))

    def _until_due(self) -> float | None:
        return self._journal.seconds_until_due() if self._journal else None

    def _due(self) -> str:
        """Say when the first of what a server has put off is sent again."""
        wait = self._until_due()
        return "" if wait is None else f" (the first again in {duration(wait)})"

    def _counted(self) -> list[str]:
        counted = [
            f"{state} {thousands(self._shown(state))}" + self._due() * (state is State.DEFERRED)
            for state in STYLES
            if state not in (State.PENDING, State.IN_FLIGHT)
            if self._shown(state) or state is State.SIGNED
        ]
        if self.bad:
            counted.append(f"bad lines {thousands(self.bad)}")
        return counted

    def picture(self) -> Group:
        """Return what the live display shows."""
        expected, rate = self.expected(), self.rate()
        bar = Table.grid(padding=(0, 2, 0, 0), expand=True)
        bar.add_column(ratio=1)
        for _ in range(3):
            bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            ProgressBar(total=expected or None, completed=self.done, pulse=expected is None),
            f"{thousands(self.done)} / {'?' if expected is None else thousands(expected)}",
            f"{rate:.1f}/s",
            f"{self._left(expected, rate)} left" if expected and rate else duration(self.seconds),
        )
        counts = Text()
        for state, style in STYLES.items():
            shown = self._shown(state)
            if shown or state is State.SIGNED:
                counts.append(f"{state} ", "dim").append(thousands(shown), style)
                counts.append(self._due() * (state is State.DEFERRED), "dim").append("  ")
        if self.bad:
            counts.append("bad lines ", "dim").append(f"{thousands(self.bad)}  ", "red")
        parts: list[Table | Text | str] = [bar, counts]
        parts.extend(self._failing())
        parts.extend(self._slow())
        if self._remark:
            parts += ["", Text(self._remark, "bold")]
        return Group(*parts)

    def _shown(self, state: State) -> int:
        in_flight = self._outcomes.in_flight if self._outcomes else 0
        deferred = self._journal.deferred if self._journal else 0
        match state:
            case State.IN_FLIGHT:
                return in_flight
            case State.DEFERRED:
                return deferred
            case State.PENDING:
                return max(0, self.counts[State.PENDING] - in_flight - deferred)
        return self.counts[state]

    def _failing(self) -> Iterator[Table | str]:
        failing = self._outcomes.failing() if self._outcomes else []
        if not failing:
            return
        table = _list("failing", "in a row", "again in", "last error")
        for one in failing[:_SHOWN]:
            table.add_row(
                plain(one.destination),
                str(one.failures),
                duration(one.rests) if one.rests else "now",
                without_name(one.destination, one.error.message),
            )
        if len(failing) > _SHOWN:
            table.add_row(f"and {thousands(len(failing) - _SHOWN)} more", style="dim")
        yield from ("", table)

    def _slow(self) -> Iterator[Table | str]:
        slowest = self.slowest()
        if not slowest:
            return
        table = _list("slowest", "sends", "mean", "")
        for name, number, mean in slowest:
            table.add_row(plain(name), thousands(number), f"{mean:.2f} s", "")
        yield from ("", table)


def _list(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim", show_edge=False)
    table.add_column(columns[0], width=24, no_wrap=True, overflow="ellipsis")
    table.add_column(columns[1], width=8, no_wrap=True, justify="right")
    table.add_column(columns[2], width=8, no_wrap=True, justify="right")
    table.add_column(columns[3], ratio=1, no_wrap=True, overflow="ellipsis")
    return table


def without_name(destination: str, message: str) -> str:
    """Return what a row about a destination need not begin with once more."""
    where, _, what = one_line(message).partition(": ")
    words = what if what and where.startswith(destination) else one_line(message)
    # What it was answered is what there must be room for.
    return re.sub(r"^the v[12] invite was (?=answered )", "", words)
