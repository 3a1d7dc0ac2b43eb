"""`--show-config`: every setting, and where it comes from."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from invite_client.cli.output import Output, plain
from invite_client.cli.settings import Layer, shown

__all__ = ["show_settings"]

_MANY = 8
"""Items of a list that are shown to a person."""


def show_settings(output: Output, settings: Layer) -> None:
    """Print all settings, without secrets."""
    visible = {name: shown(name, setting.value) for name, setting in settings.items()}
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for name, value in visible.items():
        source = settings[name].source
        style = "dim" if source == "default" else ""
        table.add_row(name, Text(plain(_in_words(value))), Text(plain(source), style))
    output.result(
        {
            "settings": {
                name: {"value": value, "source": settings[name].source}
                for name, value in visible.items()
            }
        },
        table,
    )


def _in_words(value: Any) -> str:
    match value:
        case None:
            return "not set"
        case []:
            return "(empty)"
        case float():
            return f"{value:g}" if value < 1e6 else f"{value:.0f}"
        case list() if len(value) > _MANY:
            return f"{', '.join(map(str, value[:2]))} and {len(value) - 2} more"
        case list():
            return ", ".join(map(_in_words, value))
        case {"server_name": name, "verify_keys": keys}:
            return f"{name} ({', '.join(keys) or 'no pinned key'})"
    return str(value)
