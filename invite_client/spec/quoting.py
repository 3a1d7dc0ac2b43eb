"""What others wrote, in our messages: one line, of bounded length, whatever it is.

A remote server chooses its error texts, field names and key IDs; they must not be able to forge
lines in a log, or to fill it.

Whoever takes the file of a signing key for a list of users must not find the key in a log: what may
be the line of a file is `quoted`, which looks for one. `worded` and `listed` do not; they are for
what servers say, and for names that stand in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["listed", "quoted", "worded"]

_MOST_CHARACTERS = 100
"""Of a value in a message: enough to know it again, on one line of a log."""
_MOST_ITEMS = 5
"""Of a list in a message."""
_LOOKED_AT = 2 * _MOST_CHARACTERS
"""Characters in which a key is looked for: one of which only a part would be shown is one, too."""
_SPACE = r"(?:\s|\\[tnr]|\\x[0-9a-f]{2}|\\u[0-9a-f]{4})+"
_KEY_LINE = re.compile(rf"ed25519{_SPACE}\w+{_SPACE}[\w+/-]{{32}}")
"""A line of a signing key file, in what Python writes. Its seed has 43 characters; of one that was not
copied whole, 32 are enough: fewer may be anything."""


def quoted(value: object) -> str:
    """Return a value as Python writes it, cut short, and no signing key. Never raises."""
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001  # the value decides: an int of 5,000 digits is a ValueError
        return f"something of type {type(value).__name__}"
    if _KEY_LINE.search(shown, 0, _LOOKED_AT):
        return "the line of a signing key file, which is not shown"
    return shown[:_MOST_CHARACTERS]


def worded(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a text without line breaks and other control characters, cut short."""
    shown = "".join(char if char.isprintable() else " " for char in text[: 2 * most])
    return " ".join(shown.split())[:most]


def listed(names: Iterable[str]) -> str:
    """Return the first few names of a list, as words."""
    names = list(names)
    more = f" and {len(names) - _MOST_ITEMS} more" if len(names) > _MOST_ITEMS else ""
    return ", ".join(map(worded, names[:_MOST_ITEMS])) + more
