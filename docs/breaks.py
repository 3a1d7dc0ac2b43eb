"""For MkDocs: long names in tables break where a reader would break them, and nowhere else."""  # noqa: INP001

from __future__ import annotations

import re

_CELL = re.compile(r"<td[ >].*?</td>", re.DOTALL)
_CODE = re.compile(r"(?<=<code>)[^<]*(?=</code>)")
_BREAK = re.compile(r"(?<=[/_.])(?=\w)(?!py\b)")


def on_page_content(html: str, **_: object) -> str:
    """Put a place to break behind each slash, dot and underscore of code in a table."""

    def in_code(code: re.Match[str]) -> str:
        return _BREAK.sub("<wbr>", code[0])

    return _CELL.sub(lambda cell: _CODE.sub(in_code, cell[0]), html)
