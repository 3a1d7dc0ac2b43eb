"""The report of a bulk run: one HTML page that needs nothing else, and runs no script."""

from __future__ import annotations

import bisect
import errno
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from html import escape
from itertools import islice
from pathlib import Path

import click

from invite_client.cli.bulk_summary import put_off
from invite_client.cli.files import BadInputError, FileName, write_whole
from invite_client.cli.output import duration, for_operators, plain, thousands
from invite_client.journal import DestinationSummary, JournalReader, State
from invite_client.version import __version__

__all__ = ["check_report", "report_option", "write_report"]

report_option = click.option(
    "--report",
    "report_file",
    metavar="FILE.html",
    type=FileName(),
    help="Write a report: one page.",
)

_DOCTYPE = "<!doctype html>"
_DESTINATIONS = 5000
"""Rows of the table: some 2 MB of page. Those that signed everything come last."""
_BAD_LINES = 200
"""Of the input, that are told: whoever has more has made the same mistake in all of them."""
_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""Seconds that separate the bars of the histogram: equal steps for an eye that sees ratios."""
_ORDER = (
    State.SIGNED,
    State.REJECTED,
    State.FAILED,
    State.UNKNOWN,
    State.DEFERRED,
    State.IN_FLIGHT,
    State.PENDING,
)
_UNSIGNED = (State.REJECTED, State.FAILED, State.UNKNOWN)

_STYLE = """
:root { --ground: #fff; --text: #1b1f24; --faint: #66707b; --line: #d9dee3; --card: #f5f7f9;
  --signed: #1a7f4b; --rejected: #c77700; --failed: #c9302c; --unknown: #8250df;
  --in-flight: #0b7fab; --deferred: #1f5fd1; --pending: #a8b1ba; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --text: #e4e8ec; --faint: #98a2ad;
  --line: #2d343b; --card: #1c2126; --signed: #3fb27f; --rejected: #e3a13c; --failed: #f0645f;
  --unknown: #b08cf0; --in-flight: #4db3dc; --deferred: #6f9cf5; --pending: #67727d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--ground);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p { margin: .25rem 0 1rem; color: var(--faint); }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; min-width: 8rem;
  border-left: .3rem solid var(--colour, var(--line)); }
.card b { display: block; font-size: 1.5rem; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.card span { color: var(--faint); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .faint { fill: var(--faint); }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--faint); }
th:first-child { min-width: 12rem; width: 26%; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.bar { width: 7rem; padding-top: .65rem; }
.bar svg { height: .6rem; border-radius: .2rem; }
.error { color: var(--faint); }
"""


def check_report(path: str) -> None:
    """Raise `BadInputError` if no report can be written there, or it would replace something else."""
    file, head = Path(path), b""
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if file.is_file():
            with file.open("rb+") as opened:
                head = opened.read(len(_DOCTYPE))
        elif not file.exists():
            new = Path(os.path.realpath(file))  # a link may lead to what is not there yet
            new.touch(exist_ok=False)
            new.unlink()
    except OSError as error:
        raise BadInputError(f"--report: {path} cannot be written: {error.strerror}") from None
    if head not in (b"", _DOCTYPE.encode()):
        raise BadInputError(f"--report: {path} is there already, and is no report")


def write_report(path: str, journal: JournalReader) -> None:
    """Write the page. Raises `ClickException` if the file cannot be written."""
    page = "\n".join(_page(journal))
    try:
        # What strangers' servers say may hold half of a surrogate pair.
        write_whole(path, page.encode(errors="replace"))
    except OSError as error:
        raise click.ClickException(
            f"--report: {path} cannot be written: {error.strerror}"
        ) from None


def _page(journal: JournalReader) -> Iterator[str]:
    counts = journal.counts()
    bad = journal.bad_line_count()
    destinations = sorted(journal.destinations(), key=lambda one: -one.unsigned)
    yield _DOCTYPE
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield (
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    )
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Bulk invites</title><style>{_STYLE}</style></head><body>"
    yield "<h1>Bulk invites</h1>"
    yield f"<p>{_when(journal)}</p>"
    yield from _cards(counts, bad, len(destinations))
    yield "<h2>Outcomes</h2>"
    yield _outcome_chart(counts)
    yield "<h2>How long a send took</h2>"
    yield from _latency(journal)
    yield f"<h2>Destinations ({thousands(len(destinations))})</h2>"
    yield from _destinations(destinations)
    if bad:
        yield f"<h2>Bad lines ({thousands(bad)})</h2>"
        rows = [
            f'<td>{_text(line.source)}</td><td class="number">{line.line}</td>'
            f"<td>{_text(line.message)}</td>"
            for line in islice(journal.bad_lines(), _BAD_LINES)
        ]
        yield from _table(("input", "line", "what is wrong"), rows, numbers=("line",))
        if bad > _BAD_LINES:
            yield f"<p>These are the first {_BAD_LINES}.</p>"
    yield f"<p>invite_client {escape(__version__)}</p></body></html>"


def _when(journal: JournalReader) -> str:
    span = journal.span()
    if span is None:
        return "Nothing was sent."
    first, last = (datetime.fromtimestamp(moment, timezone.utc) for moment in span)
    lasted = duration(max(0.0, span[1] - span[0]))
    return f"{first:%Y-%m-%d %H:%M:%S} to {last:%Y-%m-%d %H:%M:%S} UTC ({lasted})"


def _cards(counts: dict[State, int], bad: int, destinations: int) -> Iterator[str]:
    total = sum(counts.values())
    yield '<div class="cards">'
    yield _card(thousands(total), "invites")
    for state in _ORDER:
        if counts.get(state) or state is State.SIGNED:
            share = f" ({_percent(counts.get(state, 0), total)})" if total else ""
            yield _card(thousands(counts.get(state, 0)), f"{state}{share}", _colour(state))
    if bad:
        yield _card(thousands(bad), "bad lines", "var(--failed)")
    yield _card(thousands(destinations), "destinations")
    yield "</div>"


def _card(number: str, label: str, colour: str = "var(--line)") -> str:
    return (
        f'<div class="card" style="--colour: {colour}"><b>{number}</b>'
        f"<span>{escape(label)}</span></div>"
    )


# --- Charts -------------------------------------------------------------------------------------


def _outcome_chart(counts: dict[State, int]) -> str:
    """One bar, in the proportions of the outcomes, and what its colours mean."""
    label = ", ".join(f"{state} {counts[state]}" for state in _ORDER if counts.get(state))
    legend, x = [], 0.0
    for state in _ORDER:
        if not counts.get(state):
            continue
        text = f"{state} {thousands(counts[state])}"
        legend.append(
            f'<rect x="{x:.0f}" y="40" width="10" height="10" rx="2" fill="{_colour(state)}"/>'
            f'<text x="{x + 15:.0f}" y="49">{text}</text>'
        )
        x += 40 + 6.5 * len(text)
    return (
        f'<svg viewBox="0 0 960 56" role="img" aria-label="{escape(label)}">'
        f"{_stacked(counts, 960, 28)}{''.join(legend)}</svg>"
    )


def _stacked(counts: dict[State, int], width: float, height: float) -> str:
    total, x, parts = sum(counts.values()), 0.0, []
    for state in _ORDER:
        part = counts.get(state, 0) / total * width if total else 0
        if part:
            parts.append(
                f'<rect x="{x:.2f}" width="{part:.2f}" height="{height:g}" '
                f'fill="{_colour(state)}"/>'
            )
        x += part
    return "".join(parts)


def _latency(journal: JournalReader) -> Iterator[str]:
    signed = _buckets(journal.seconds(State.SIGNED))
    others = _buckets(value for state in _UNSIGNED for value in journal.seconds(state))
    if not any(signed) and not any(others):
        yield "<p>Nothing was sent.</p>"
        return
    if any(signed):
        # As they are shown: of these there are few, however many invites there are.
        times = Counter(map(_rounded, journal.seconds(State.SIGNED)))
        marks = ((0.5, "half"), (0.95, "95 %"), (0.99, "99 %"))
        parts = [f"{name} within {_seconds(_within(times, part))}" for part, name in marks]
        yield f"<p>Signed: {', '.join(parts)}.</p>"
    yield _histogram(signed, others)


def _within(times: Counter[float], part: float) -> float:
    """Return the time within which that part of all has ended."""
    place = int(part * times.total())
    for seconds in sorted(times):
        place -= times[seconds]
        if place < 0:
            break
    return seconds


def _buckets(values: Iterable[float]) -> list[int]:
    found = [0] * (len(_BOUNDS) + 1)
    for value in values:
        found[bisect.bisect_right(_BOUNDS, value)] += 1
    return found


def _histogram(signed: Sequence[int], others: Sequence[int]) -> str:
    top, bottom, left, width = 30, 210, 0, 960
    most = max(map(sum, zip(signed, others, strict=True)))
    step = width / len(signed)
    parts = []
    for index, (good, bad) in enumerate(zip(signed, others, strict=True)):
        x, y = left + index * step + 3, float(bottom)
        for count, colour in ((good, "var(--signed)"), (bad, "var(--failed)")):
            height = count / most * (bottom - top)
            if count:
                height = max(height, 1.0)  # one invite among a million is still to be seen
                y -= height
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{step - 6:.1f}" '
                    f'height="{height:.1f}" fill="{colour}"/>'
                )
        middle = f'x="{x + step / 2 - 3:.1f}" text-anchor="middle"'
        if good + bad:
            parts.append(f'<text {middle} y="{y - 6:.1f}">{thousands(good + bad)}</text>')
        parts.append(f'<text class="faint" {middle} y="{bottom + 18}">{_bucket(index)}</text>')
    legend = (
        '<rect x="0" y="0" width="10" height="10" rx="2" fill="var(--signed)"/>'
        '<text x="15" y="9">signed</text>'
        '<rect x="75" y="0" width="10" height="10" rx="2" fill="var(--failed)"/>'
        '<text x="90" y="9">not signed</text>'
    )
    return (
        f'<svg viewBox="0 0 {width} {bottom + 26}" role="img" '
        f'aria-label="Invites by the time that the last send took">'
        f'{legend}<line x1="0" x2="{width}" y1="{bottom}" y2="{bottom}" stroke="var(--line)"/>'
        f"{''.join(parts)}</svg>"
    )


def _bucket(index: int) -> str:
    if index == len(_BOUNDS):
        return f"≥ {_seconds(_BOUNDS[-1])}"
    return f"< {_seconds(_BOUNDS[index])}"


# --- Tables -------------------------------------------------------------------------------------


def _destinations(destinations: Sequence[DestinationSummary]) -> Iterator[str]:
    rows = []
    for one in destinations[:_DESTINATIONS]:
        total = sum(one.states.values())
        label = ", ".join(f"{state} {one.states[state]}" for state in _ORDER if state in one.states)
        mean = "" if one.seconds is None else _seconds(one.seconds)
        bar = (
            f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
            f'aria-label="{escape(label)}"><title>{escape(label)}</title>'
            f"{_stacked(one.states, 100, 10)}</svg>"
        )
        rows.append(
            f'<td>{_text(one.destination)}</td><td class="bar">{bar}</td>'
            f'<td class="number">{thousands(one.states.get(State.SIGNED, 0))}</td>'
            f'<td class="number">{thousands(total)}</td><td class="number">{mean}</td>'
            f'<td class="error">{_text((one.message or "") + put_off(one))}</td>'
        )
    yield from _table(
        ("server", "", "signed", "of", "mean time", "last error"),
        rows,
        numbers=("signed", "of", "mean time"),
    )
    if len(destinations) > _DESTINATIONS:
        yield f"<p>These are the first {thousands(_DESTINATIONS)}; all are in the journal.</p>"


def _table(columns: Sequence[str], rows: Iterable[str], *, numbers: Sequence[str]) -> Iterator[str]:
    yield "<table><thead><tr>"
    for name in columns:
        kind = ' class="number"' if name in numbers else ""
        yield f"<th{kind}>{name}</th>"
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{row}</tr>"
    yield "</tbody></table>"


# --- Text ---------------------------------------------------------------------------------------


def _colour(state: State) -> str:
    return f"var(--{state.replace(' ', '-')})"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}"


def _rounded(seconds: float) -> float:
    return round(seconds * 1000) / 1000 if seconds < 1 else float(f"{seconds:.3g}")


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.3g} s"


def _text(text: str) -> str:
    """Show what others have said: as text, whatever it is."""
    return escape(plain(for_operators(text)))
