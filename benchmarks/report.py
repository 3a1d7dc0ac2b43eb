"""Ratios with their spread: as a table, as JSON, as a plot."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

__all__ = ["Figure", "Report"]

_SHOWN = (
    "invite_client",
    "aiohttp",
    "orjson",
    "uvloop",
    "PyNaCl",
    "signedjson",
    "matrix-synapse",
    "Twisted",
)


@dataclass(frozen=True)
class Figure:
    """One thing measured, once in each round."""

    part: str
    name: str
    values: list[float]
    unit: str = "×"
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median is where it should be; None if nothing is asked of it."""
        if self.at_least is not None:
            return self.median >= self.at_least
        if self.at_most is not None:
            return self.median <= self.at_most
        return None

    @property
    def aim(self) -> str:
        """Where the median should be, in signs."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"


@dataclass
class Report:
    """Everything that one run has found."""

    settings: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    """What the contenders answered, word for word."""
    notes: list[str] = field(default_factory=list)

    def add(self, figure: Figure) -> None:
        """Take a figure into the report."""
        self.figures.append(figure)

    def table(self) -> str:
        """The figures for a person."""
        lines = []
        part = None
        for figure in self.figures:
            if figure.part != part:
                part = figure.part
                lines += ["", part]
            state = {True: "met", False: "NOT MET", None: ""}[figure.met]
            spread = f"{_short(min(figure.values))} … {_short(max(figure.values))}"
            lines.append(
                f"  {figure.name:<56} {_short(figure.median):>8} {figure.unit:<11}"
                f" ({spread:<17}) {figure.aim:<7} {state}".rstrip()
            )
        return "\n".join([*lines, "", *self.notes])

    def save(self, path: Path) -> None:
        """Write all of it as JSON."""
        document = {
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "versions": {name: found for name in _SHOWN if (found := _version(name))},
            "settings": self.settings,
            "figures": [
                {**asdict(f), "median": f.median, "low": min(f.values), "high": max(f.values)}
                for f in self.figures
            ],
            "notes": self.notes,
            "measurements": self.measurements,
        }
        path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    def plot(self, path: Path) -> None:
        """Draw ratios and round trips as SVG."""
        ratios = [f for f in self.figures if f.unit == "×"]
        trips = [f for f in self.figures if f.unit == "round trips"]
        panels = [
            _panel(
                "Ratios: median, least and greatest of the rounds; | is the aim", ratios, log=True
            ),
            _panel("Round trips to a server never seen before", trips, log=False),
        ]
        path.write_text(_stacked([panel for panel in panels if panel is not None]))


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# --- The plot -----------------------------------------------------------------------------------

_LEFT, _WIDTH, _ROW, _HEAD, _FOOT = 520, 420, 20, 30, 30


def _panel(title: str, figures: Sequence[Figure], *, log: bool) -> tuple[str, int] | None:
    """One panel and its height in pixels."""
    if not figures:
        return None
    everything = [v for f in figures for v in f.values]
    everything += [a for f in figures for a in (f.at_least, f.at_most) if a is not None]
    low, high = min(everything), max(everything)
    if log:
        low, high = min(low, 0.5), max(high, 2.0)
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if low * 0.9 <= t <= high * 1.1]
        first, last = math.log(low * 0.9), math.log(high * 1.1)
    else:
        first, last = 0.0, high * 1.05
        ticks = list(range(0, int(last) + 1, 2))

    def x(value: float) -> float:
        where = math.log(max(value, 1e-9)) if log else value
        return _LEFT + _WIDTH * (where - first) / (last - first)

    bottom = _HEAD + _ROW * len(figures) + 6
    parts = [f'<text x="10" y="18" class="title">{escape(title)}</text>']
    for tick in ticks:
        strong = ' class="one"' if log and tick == 1 else ' class="grid"'
        parts.append(f'<path d="M{x(tick):.1f} {_HEAD}V{bottom}"{strong}/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 14}" class="tick">{tick:g}</text>')
    for index, figure in enumerate(figures):
        y = _HEAD + _ROW * index + 14
        label = escape(f"{figure.part}: {figure.name}")
        parts.append(f'<text x="{_LEFT - 10}" y="{y + 4}" class="label">{label}</text>')
        colour = {True: "good", False: "bad", None: "plain"}[figure.met]
        parts.append(
            f'<path d="M{x(min(figure.values)):.1f} {y}H{x(max(figure.values)):.1f}" '
            f'class="spread {colour}"/>'
            f'<circle cx="{x(figure.median):.1f}" cy="{y}" r="4" class="dot {colour}">'
            f"<title>{_short(figure.median)}</title></circle>"
        )
        aim = figure.at_least if figure.at_least is not None else figure.at_most
        if aim is not None:
            parts.append(f'<path d="M{x(aim):.1f} {y - 8}v16" class="aim"/>')
    return "".join(parts), bottom + _FOOT


def _stacked(panels: Sequence[tuple[str, int]]) -> str:
    total = sum(height for _, height in panels) or _HEAD
    pieces = []
    y = 0
    for body, height in panels:
        pieces.append(f'<g transform="translate(0 {y})">{body}</g>')
        y += height
    style = (
        "text{font:12px sans-serif;fill:#222}.title{font-weight:bold}.label{text-anchor:end}"
        ".tick{text-anchor:middle;fill:#666}.grid{stroke:#ddd}.one{stroke:#888}"
        ".spread{stroke-width:3}.aim{stroke:#000;stroke-width:2}"
        ".good{fill:#2a7f3f;stroke:#2a7f3f}.bad{fill:#b3261e;stroke:#b3261e}"
        ".plain{fill:#33608c;stroke:#33608c}"
    )
    width = _LEFT + _WIDTH + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {total}" '
        f'width="{width}" height="{total}"><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(pieces)}</svg>\n'
    )
