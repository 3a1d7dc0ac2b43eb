"""States of invites on the command line: several, with commas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from invite_client.journal import State

__all__ = ["listed", "read_states"]


def read_states(
    possible: Sequence[State], otherwise: Sequence[State]
) -> Callable[[click.Context, click.Parameter, str | None], tuple[State, ...]]:
    """Return how an option is read that names some of the `possible`; `otherwise` if it is not given."""

    def read(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[State, ...]:
        if text is None:
            return tuple(otherwise)
        words = [word.strip() for word in text.split(",")]
        if set(words) - set(possible):
            raise click.BadParameter(f"expected some of {', '.join(possible)}", param=parameter)
        return tuple(map(State, words))

    return read


def listed(states: Sequence[State]) -> str:
    """Return their names for a person to read."""
    return f"{', '.join(states[:-1])} or {states[-1]}"
