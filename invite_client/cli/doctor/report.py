"""How an examination and its findings are shown: text for 80 columns, JSON for machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from invite_client.cli.doctor.diagnosis import (
    CLOCK_TOLERANCE,
    Finding,
    accepts,
    apart,
    exists,
    exit_code,
    speaks,
    words_of,
)
from invite_client.cli.doctor.examination import Address, Answer, Examination
from invite_client.cli.layout import destination_table, trace_table
from invite_client.cli.output import error_json, for_operators, plain, resolved_json, utc
from invite_client.errors import Stage
from invite_client.net.handshakes import Certificate, Handshake

__all__ = ["report_json", "report_text"]

_SHOWN_NAMES = 8
"""Names of a certificate that a person is shown."""
_GOOD, _BAD, _UNCLEAR = Text("✓", "green"), Text("✗", "red"), Text("?", "yellow")


def report_text(
    theirs: Examination, ours: Examination | None, findings: list[Finding]
) -> Iterator[RenderableType]:
    """Yield what a person is shown: what was seen, what is wrong, and what to do."""
    yield from _examination(theirs, "")
    if ours is not None:
        yield ""
        yield _title(f"Our server {ours.server_name}")
        yield from _examination(ours, f" of {ours.server_name}")
    yield ""
    yield _title("Verdict")
    yield from _verdict(theirs, findings)


def _title(text: str) -> Text:
    return Text(plain(text), "bold underline")


def _examination(exam: Examination, whose: str) -> Iterator[RenderableType]:
    yield _title(f"Discovery{whose}")
    trace = exam.server.trace if exam.server else getattr(exam.error, "trace", ())
    yield trace_table(trace)
    if exam.error is not None and not trace:
        yield Text(plain(for_operators(str(exam.error))))
    if exam.server is None:
        return
    yield destination_table(exam.server)
    yield ""
    yield _title(f"Connections{whose}")
    yield _connections(exam)
    for handshakes in _by_chain(exam.addresses):
        yield ""
        yield _title(f"Certificate for {exam.server.tls_name}")
        yield _certificates(handshakes, exam.now)
    if exam.reached:
        yield ""
        yield _title(f"Homeserver{whose}")
        yield _homeserver(exam)


# --- Connections --------------------------------------------------------------------------------


def _connections(exam: Examination) -> Table:
    table = _grid()
    for target in exam.server.targets if exam.server else ():
        addresses = [address for address in exam.addresses if address.target == target]
        table.add_row("", Text(str(target), "bold"), "")
        for address in sorted(addresses, key=lambda one: one.address or ""):
            table.add_row(
                _GOOD if address.connected and speaks(address.answer) else _BAD,
                Text(f"  {address.address or ''}"),
                Text(plain(for_operators(_connected(address)))),
            )
        if not addresses:
            table.add_row(_UNCLEAR, "", "not tried in time")
    return table


def _connected(address: Address) -> str:
    """What TCP, TLS and HTTP came to."""
    error, took = address.answer.error, f" ({address.seconds:.2f} s)"
    version = address.handshake.version if address.handshake else None
    if error is None:
        status = address.answer.reply.status if address.answer.reply else 0
        return f"TCP connected, {version}, HTTP {status}{took}"
    words = words_of(address, error)
    match error.stage:
        case Stage.DNS | Stage.POLICY:
            return words
        case Stage.CONNECT:
            return f"TCP: {words}{took}"
        case Stage.TLS if address.handshake and address.handshake.problem is not None:
            return f"TCP connected; TLS: certificate refused{took}"
        case Stage.TLS:
            return f"TCP connected; TLS: {words}{took}"
    return f"TCP connected, {version}; HTTP: {words}{took}"


# --- Certificates -------------------------------------------------------------------------------


def _by_chain(addresses: Iterable[Address]) -> list[list[Handshake]]:
    """Return the handshakes in which a certificate was shown, those with the same one together."""
    chains: dict[tuple[Certificate, ...], list[Handshake]] = {}
    for address in addresses:
        if address.handshake is not None and address.handshake.chain:
            chains.setdefault(address.handshake.chain, []).append(address.handshake)
    return list(chains.values())


def _certificates(handshakes: list[Handshake], now: float) -> Table:
    handshake = handshakes[0]
    leaf = handshake.chain[0]
    table = _grid()
    mark = _GOOD if handshake.version and handshake.checked else _BAD
    table.add_row(mark, "shown by", Text(", ".join(str(h.target) for h in handshakes)))
    more = len(leaf.names) - _SHOWN_NAMES
    names = ", ".join(leaf.names[:_SHOWN_NAMES]) or "no name"
    table.add_row("", "names", Text(plain(names + (f" and {more} more" if more > 0 else ""))))
    table.add_row("", "valid", Text(f"{_date(leaf.not_before)} to {_date(leaf.not_after)}"))
    if leaf.not_after is not None:
        days = (leaf.not_after - now) / 86400
        left = f"{days:.0f} days left" if days >= 0 else f"expired {-days:.0f} days ago"
        table.add_row("", "", Text(left))
    chain = " ← ".join(
        [f'"{one.subject or ", ".join(one.names[:1])}"' for one in handshake.chain]
        + ([f'"{handshake.chain[-1].issuer}"'] if not _ends(handshake) else [])
    )
    table.add_row("", "chain", Text(plain(chain)))
    if not handshake.checked:
        table.add_row("", "", Text("not checked (tls.unverified)", "yellow"))
    return table


def _ends(handshake: Handshake) -> bool:
    """Whether the last certificate of a chain is that of an authority."""
    return handshake.chain[-1].subject == handshake.chain[-1].issuer


# --- The homeserver -----------------------------------------------------------------------------


def _homeserver(exam: Examination) -> Table:
    table = _grid()
    for mark, label, text in _facts(exam):
        table.add_row(mark, label, Text(plain(for_operators(text))))
    return table


def _facts(exam: Examination) -> Iterator[tuple[Text, str, str]]:
    software = _software(exam)
    yield (_GOOD if software else _UNCLEAR), "software", software or "it does not tell"
    if exam.keys is not None:
        if exam.keys.keys is None:
            yield _BAD, "keys", exam.keys.error.message if exam.keys.error else ""
        else:
            until = int(str(exam.keys.keys.response["valid_until_ts"]))
            mark = _GOOD if until / 1000 > exam.now else _BAD
            current = [one.key for one in exam.keys.keys.keys.values() if not one.old]
            old = [key_id for key_id, one in exam.keys.keys.keys.items() if one.old]
            for key in current:
                yield mark, "key", str(key)
            yield (
                mark,
                "",
                f"signed with {'it' if len(current) == 1 else 'each'}, valid until {utc(until)}",
            )
            if old:
                yield Text(""), "", f"old keys: {', '.join(old)}"
    if exam.clock is not None:
        mark = _GOOD if abs(exam.clock) <= CLOCK_TOLERANCE else _BAD
        yield mark, "clock", f"{apart(exam.clock)} ours"
    for version, answer in exam.endpoints.items():
        mark = {True: _GOOD, False: _BAD, None: _UNCLEAR}[exists(answer)]
        there = {True: "there", False: "not there", None: "unclear"}[exists(answer)]
        yield mark, f"{version} invites", f"{there}: to an empty request it says {_said(answer)}"
    if exam.signed is not None:
        accepted = accepts(exam.signed)
        words = {True: "accepted", False: "refused", None: "unclear"}[accepted]
        mark = {True: _GOOD, False: _BAD, None: _UNCLEAR}[accepted]
        yield mark, "our signature", f"{words}: to a signed request it says {_said(exam.signed)}"


def _software(exam: Examination) -> str | None:
    for address in exam.addresses:
        match address.answer.body:
            case {"server": {"name": str(name), "version": str(version)}}:
                return f"{name} {version}"
            case {"server": {"name": str(name)}}:
                return name
    return None


def _said(answer: Answer) -> str:
    if answer.reply is None:
        return f"nothing ({answer.error.message})" if answer.error else "nothing"
    return f"{answer.reply.status} {answer.errcode or ''}".strip()


# --- The verdict --------------------------------------------------------------------------------


def _verdict(theirs: Examination, findings: list[Finding]) -> Iterator[RenderableType]:
    name = plain(theirs.server_name)
    if not findings:
        yield Text(f"Invites to {name} should arrive.", "green")
        return
    first, *others = findings
    if first.fatal:
        text, style = f"Invites to {name} do not arrive: {first.problem}.", "red"
    else:
        text, style = f"Invites to {name} should arrive, but: {first.problem}.", "yellow"
    yield Text(text, style)
    yield _finding(first)
    if others:
        yield ""
        yield Text("Also:")
    for finding in others:
        yield _finding(finding)


def _finding(finding: Finding) -> Table:
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("-", Text(plain(for_operators(f"{finding.what}."))))
    table.add_row("", Text(plain(f"To do: {finding.fix}"), "bold"))
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _date(seconds: float | None) -> str:
    return "?" if seconds is None else utc(int(seconds * 1000))[:10]


# --- JSON ---------------------------------------------------------------------------------------


def report_json(
    theirs: Examination, ours: Examination | None, findings: list[Finding]
) -> dict[str, Any]:
    """Return all of it for machines."""
    return {
        **_examination_json(theirs),
        "ours": None if ours is None else _examination_json(ours),
        "ok": exit_code(findings) == 0,
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _examination_json(exam: Examination) -> dict[str, Any]:
    keys = exam.keys
    return {
        "server_name": exam.server_name,
        "finished": exam.finished,
        "resolved": None if exam.server is None else resolved_json(exam.server),
        "error": None if exam.error is None else error_json(exam.error),
        "addresses": [
            {
                "target": {"host": address.target.host, "port": address.target.port},
                "address": address.address,
                "connected": address.connected,
                "seconds": address.seconds,
                "tls": None if address.handshake is None else _handshake_json(address.handshake),
                **_answer_json(address.answer),
            }
            for address in exam.addresses
        ],
        "software": _software(exam),
        "keys": None
        if keys is None
        else {
            "response": None if keys.keys is None else dict(keys.keys.response),
            "error": None if keys.error is None else error_json(keys.error),
        },
        "clock_ahead": exam.clock,
        "endpoints": {
            version: {"exists": exists(answer), **_answer_json(answer)}
            for version, answer in exam.endpoints.items()
        },
        "signature": None
        if exam.signed is None
        else {"accepted": accepts(exam.signed), **_answer_json(exam.signed)},
    }


def _answer_json(answer: Answer) -> dict[str, Any]:
    return {
        "status": None if answer.reply is None else answer.reply.status,
        "errcode": answer.errcode,
        "error": None if answer.error is None else error_json(answer.error),
    }


def _handshake_json(handshake: Handshake) -> dict[str, Any]:
    return {
        "version": handshake.version,
        "checked": handshake.checked,
        "chain": [dataclasses.asdict(certificate) for certificate in handshake.chain],
    }
