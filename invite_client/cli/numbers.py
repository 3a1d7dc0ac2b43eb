"""Numbers on the command line: what is wrong with one is said in words."""

from __future__ import annotations

import math
from typing import Any

import click

__all__ = ["Number", "WholeNumber"]


class Number(click.FloatRange):
    """A finite number in a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read the number; see `click.ParamType`."""
        try:
            number = float(super().convert(value, param, ctx))
        except click.BadParameter:
            number = math.nan
        if not math.isfinite(number):
            self.fail(_expected("a number", self, value), param, ctx)
        return number


class WholeNumber(click.IntRange):
    """A whole number in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the number; see `click.ParamType`."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(_expected("a whole number", self, value), param, ctx)


def _expected(kind: str, range_: click.FloatRange | click.IntRange, value: object) -> str:
    if range_.min is not None:
        kind += f" {'greater than' if range_.min_open else 'of at least'} {range_.min:g}"
    if range_.max is not None:
        kind += f", and at most {range_.max:.10g}"
    return f"expected {kind}, not {str(value)!r:.50}"
