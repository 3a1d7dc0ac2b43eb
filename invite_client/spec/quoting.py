"""What others wrote, in our messages: one line, of bounded length, whatever it is.

A remote server chooses its error texts, field names and key IDs; they must not be able to forge
lines in a log, or to fill it.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["listed", "quoted", "worded"]

_MOST_CHARACTERS = 100
_MOST_ITEMS = 5


def quoted(value: object) -> str:
    """Return a value as Python writes it, cut short. Never raises."""
    try:
        return repr(value)[:_MOST_CHARACTERS]
    except Exception:  # noqa: BLE001  # the value decides: an int of 5,000 digits is a ValueError
        return f"something of type {type(value).__name__}"


def worded(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a text without line breaks and other control characters, cut short."""
    shown = "".join(char if char.isprintable() else " " for char in text[: 2 * most])
    return " ".join(shown.split())[:most]


def listed(names: Iterable[str]) -> str:
    """Return the first few names of a list, as words."""
    names = list(names)
    more = f" and {len(names) - _MOST_ITEMS} more" if len(names) > _MOST_ITEMS else ""
    return ", ".join(map(worded, names[:_MOST_ITEMS])) + more
