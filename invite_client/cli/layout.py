"""How the answers of a discovery look on a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from invite_client.cli.output import for_operators, plain
from invite_client.spec.discovery import ResolvedServer, Target, TraceStep

__all__ = ["destination_table", "trace_table"]

_SHORT = 50
"""Characters of question and answer that stand in one line."""


def trace_table(trace: Iterable[TraceStep]) -> Table:
    """Lay out the steps of a discovery: number, question, answer, reason and time."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True, justify="right")
    for step in trace:
        seconds = f"{step.seconds:.2f} s" if step.seconds else ""
        question = plain(step.question)
        # An error names what was asked, which stands before it here.
        answer = plain(for_operators(step.answer)).removeprefix(f"{question}: ")
        between = " → " if len(question) + len(answer) < _SHORT else "\n"
        reason = f" ({plain(step.reason)})" if step.reason else ""
        table.add_row(
            step.step, Text.assemble(question, between, (answer, "bold"), reason), seconds
        )
    return table


def destination_table(server: ResolvedServer, addresses: Mapping[Target, str] = {}) -> Table:
    """Lay out the three names that must not be confused, and the step that decided.

    `addresses` are those of the targets, or why there are none.
    """
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(style="bold", overflow="fold")
    for index, target in enumerate(server.targets):
        known = f" → {plain(for_operators(addresses[target]))}" if target in addresses else ""
        table.add_row(
            "" if index else "connect to", Text.assemble(str(target), (known, "not bold"))
        )
    table.add_row("Host", Text(server.host_header))
    sni = " (an IP address: no SNI)" if server.tls_is_ip else ""
    table.add_row("certificate for", Text.assemble(server.tls_name, (sni, "not bold")))
    table.add_row("decided by", f"step {server.step}")
    return table
