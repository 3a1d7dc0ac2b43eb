"""For MkDocs: long names in tables break where a reader would break them, and nowhere else."""  # noqa: INP001

from __future__ import annotations

import re

_CELL = re.compile(r"<td[ >].*?</td>", re.DOTALL)
_CODE = re.compile(r"(?<=<code>)[^<]*(?=</code>)")
_NAME = re.compile(r"[^\s/]+/?")
_IN_NAME = re.compile(r"(?<=[_.])(?=\w)(?!py\b)")
_LONG = 28
"""Characters that fit into a column."""


def on_page_content(html: str, **_: object) -> str:
    """Put a place to break behind each slash of code in a table, and into names that are long."""

    def in_name(name: re.Match[str]) -> str:
        text = name[0]
        broken = _IN_NAME.sub("<wbr>", text) if len(text) > _LONG else text
        return f"{broken}<wbr>" if text.endswith("/") else broken

    def in_code(code: re.Match[str]) -> str:
        return _NAME.sub(in_name, code[0])

    return _CELL.sub(lambda cell: _CODE.sub(in_code, cell[0]), html)
