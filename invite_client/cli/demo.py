"""`invite-client demo`: three invites on loopback, explained while they happen.

The homeservers are those of `invite_client.testing`, the client is the one of real use; what is
printed is what its observer is told.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from invite_client.cli.layout import destination_table, trace_table
from invite_client.cli.output import CannotWriteError, Output, error_json, plain, signed_json
from invite_client.errors import (
    CountersignatureError,
    CountersignatureProblem,
    InviteError,
    MalformedReplyError,
)
from invite_client.observations import (
    FellBack,
    KeysObtained,
    Observation,
    Replied,
    RequestSent,
    Resolved,
    Verified,
)
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Request
from invite_client.spec.invites import V1, V2, Invite, SignedInvite
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.signatures import SigningKey
from invite_client.testing import (
    LoopbackHomeserver,
    LoopbackNetwork,
    badly_signed,
    make_invite,
)

__all__ = ["command"]

OUR_NAME = "inviter.example"
_PROGRAM = "invite-client"
_WIDTH = 90
"""Columns at most: longer lines are hard to read."""
_SHOWN_CHARACTERS = 200
"""Of an answer that is no event."""


@click.command("demo")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(as_json: bool) -> int:
    """A whole invite on loopback, offline, explained step by step.

    Three homeservers are started, with real DNS, TLS and HTTP: one behind .well-known delegation,
    one so old that it knows only v1, and one that forges its countersignature. Each is sent an
    invite. The exit code is 0 if the first two are verified and the third is refused.

    \b
    Example:
      invite-client demo
      invite-client demo --json
    """  # noqa: D301
    output = Output(as_json=as_json)
    try:
        chapters = asyncio.run(_demonstrate(output))
    except OSError as error:
        raise click.ClickException(f"the demo needs sockets on loopback: {error}") from None
    passed = all(chapter.passed for chapter in chapters)
    output.result(
        {"passed": passed, "invites": [chapter.to_json() for chapter in chapters]},
        _summary(chapters, passed=passed),
    )
    return 0 if passed else 1


@dataclass(slots=True)
class _Chapter:
    """One homeserver, what it shows, and what must come of it."""

    homeserver: LoopbackHomeserver
    user: str
    room_version: str
    title: str
    expected: str
    is_expected: Callable[[SignedInvite | InviteError], bool]
    result: SignedInvite | InviteError | None = None

    @property
    def target(self) -> str:
        return f"@{self.user}:{self.homeserver.server_name}"

    @property
    def passed(self) -> bool:
        return self.result is not None and self.is_expected(self.result)

    @property
    def outcome(self) -> str:
        match self.result:
            case SignedInvite(endpoint=endpoint):
                return f"signed by {endpoint} and verified"
            case CountersignatureError(problem=problem):
                return f"refused: {problem}"
            case error:
                return f"failed: {error}"

    def to_json(self) -> dict[str, Any]:
        shown = {
            "target": self.target,
            "room_version": self.room_version,
            "expected": self.expected,
            "outcome": self.outcome,
            "passed": self.passed,
        }
        match self.result:
            case SignedInvite() as signed:
                return {**shown, **signed_json(signed)}
            case InviteError() as error:
                return {**shown, "error": error_json(error)}
        return shown


def _chapters(network: LoopbackNetwork) -> list[_Chapter]:
    forger = LoopbackHomeserver("forger.example", network=network, srv="host.forger.example:8450")
    forger.lies(badly_signed())
    return [
        _Chapter(
            LoopbackHomeserver(
                "modern.example", network=network, well_known="matrix.modern.example:8449"
            ),
            "bob",
            list(ROOM_VERSIONS)[-1],
            "A server of today, behind .well-known delegation",
            "signed by v2 and verified",
            lambda result: isinstance(result, SignedInvite) and result.endpoint == "v2",
        ),
        _Chapter(
            LoopbackHomeserver("old.example", network=network, endpoints=("v1",)),
            "carol",
            next(iter(ROOM_VERSIONS)),
            "A server so old that it knows only v1",
            "signed by v1 and verified",
            lambda result: isinstance(result, SignedInvite) and result.endpoint == "v1",
        ),
        _Chapter(
            forger,
            "dave",
            "10",
            "A server that forges its countersignature",
            f"refused: {CountersignatureProblem.SIGNATURE_INVALID}",
            lambda result: (
                isinstance(result, CountersignatureError)
                and result.problem is CountersignatureProblem.SIGNATURE_INVALID
            ),
        ),
    ]


async def _demonstrate(output: Output) -> list[_Chapter]:
    key = SigningKey.generate("ours")
    narrator = _Narrator(output)
    async with LoopbackNetwork() as network:
        chapters = _chapters(network)
        narrator.introduces()
        for number, chapter in enumerate(chapters, start=1):
            async with (
                chapter.homeserver as homeserver,
                homeserver.client(OUR_NAME, key, observer=narrator) as client,
            ):
                invite = make_invite(
                    chapter.target, chapter.room_version, server_name=OUR_NAME, key=key
                )
                narrator.opens(number, chapter, invite)
                try:
                    chapter.result = await client.send_invite(invite)
                except InviteError as error:
                    chapter.result = error
                    narrator.fails(invite, error)
    return chapters


# --- What is told -------------------------------------------------------------------------------

_PROBLEMS = CountersignatureProblem
_CHECKS: tuple[tuple[str, frozenset[CountersignatureProblem]], ...] = (
    (
        "the event came back unchanged, byte for byte, but for signatures",
        frozenset({_PROBLEMS.EVENT_CHANGED}),
    ),
    (
        "{server} has added a signature",
        frozenset({_PROBLEMS.SIGNATURES_MALFORMED, _PROBLEMS.NOT_SIGNED}),
    ),
    (
        "with a key that it publishes{validity}",
        frozenset({_PROBLEMS.KEYS_UNAVAILABLE, _PROBLEMS.KEY_NOT_PUBLISHED, _PROBLEMS.KEY_EXPIRED}),
    ),
    (
        "and it is really a signature of this event",
        frozenset({_PROBLEMS.SIGNATURE_INVALID}),
    ),
)
"""What is verified, in this order, and the problems that say that it was not so."""


class _Narrator:
    """An `interfaces.Observer` that explains what it is told."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __call__(self, event: Observation) -> None:
        # An observer must not raise. What cannot be written now cannot be at the end either.
        with suppress(CannotWriteError):
            self._narrate(event)

    def _narrate(self, event: Observation) -> None:
        match event:
            case Resolved(server=server):
                self._tell(
                    "resolve",
                    f"Where is the homeserver of {server.server_name}? Step by step, as the "
                    "specification says:",
                    _data(trace_table(server.trace)),
                    "From this come three names, which must not be confused:",
                    _data(destination_table(server)),
                )
            case RequestSent(request=request, server=server):
                self._tell(
                    "sign",
                    f"{OUR_NAME} signs the request (method, path, both servers' names, body), so "
                    f"that {server.server_name} knows who is asking:",
                    _request(request, server),
                )
            case Replied():
                self._tell("answer", *_answer(event))
            case FellBack(invite=invite):
                self._tell(
                    "fall back",
                    f"This server does not know v2. The room is of version {invite.room_version}, "
                    "and servers from the time of versions 1 and 2 may know v1 only; so the "
                    "specification says: try v1. In a room of any later version the invite would "
                    "have failed here.",
                )
            case KeysObtained(keys=keys):
                current = [key.key for key in keys.keys.values() if not key.old]
                lines = ((f"{key.key_id}", f"  {key.base64}") for key in current)
                self._tell(
                    "keys",
                    f"{keys.server_name} publishes its keys, and signs that with each of them "
                    "(GET /_matrix/key/v2/server, asked while the PUT was on its way):",
                    _code(*chain.from_iterable(lines)),
                )
            case Verified(invite=invite):
                self._tell(
                    "verify",
                    *_checks(invite, None),
                    Text("Verified.", style="bold green").append(
                        " The signature is added to our copy of the event, which can now be sent "
                        "to the room.",
                        style="not bold default",
                    ),
                )

    def introduces(self) -> None:
        self._print(
            Text("Inviting users of other Matrix homeservers", style="bold"),
            "",
            "When Alice invites a user of another server, that server has to sign the invite. "
            f"Alice's own server, {OUR_NAME}, must find the other one, ask it, and check what "
            "comes back. Here it does so three times, by real DNS, TLS and HTTP. Nothing leaves "
            "this machine: the names exist only here.",
            "",
        )

    def opens(self, number: int, chapter: _Chapter, invite: Invite) -> None:
        title = Text(f"{number}. {chapter.title}", style="bold")
        self._print(Rule(title, align="left", style="dim"), "")
        event = Table.grid(padding=(0, 2, 0, 0))
        for name in ("type", "sender", "state_key", "content"):
            value = invite.event[name]
            event.add_row(name, Text(value if isinstance(value, str) else json.dumps(value)))
        event.add_row("event ID", Text(invite.event_id, overflow="fold"))
        self._tell(
            "invite",
            f"{invite.sender} invites {invite.target} to a room of version "
            f"{invite.room_version}. The event, hashed and signed by {OUR_NAME}:",
            _data(event),
        )

    def fails(self, invite: Invite, error: InviteError) -> None:
        if isinstance(error, CountersignatureError):
            self._tell(
                "verify",
                *_checks(invite, error),
                Text("Refused.", style="bold red").append(
                    f" Nothing of this answer is kept: whatever it says, {invite.destination} "
                    "has not signed the invite.",
                    style="not bold default",
                ),
            )
        else:
            self._tell("failed", Text(plain(error.diagnosis()), style="red"))

    def _tell(self, step: str, *parts: RenderableType) -> None:
        told = Table.grid(padding=(0, 2, 0, 0))
        told.add_column(width=9, style="bold cyan", no_wrap=True)
        told.add_column(overflow="fold")
        told.add_row(step, Group(*parts))
        self._print(told, "")

    def _print(self, *parts: RenderableType) -> None:
        if not self._output.as_json:
            self._output.result(None, Constrain(Group(*parts), _WIDTH))


def _data(part: RenderableType, indent: int = 2) -> RenderableType:
    """Set off what is shown from what is said about it."""
    return Padding(part, (0, 0, 0, indent))


def _code(*lines: str) -> RenderableType:
    """What goes over the wire; a line that is too long goes on where it began."""
    shown = []
    for line in lines:
        text = line.lstrip(" ")
        indent = len(line) - len(text)
        shown.append(_data(Text(plain(text), style="dim", overflow="fold"), 2 + indent))
    return Group(*shown)


def _request(request: Request, server: ResolvedServer) -> RenderableType:
    """Show what goes over the wire, broken into lines where there is room to breathe."""
    path, room_id, event_id = request.uri.rsplit("/", 2)
    scheme, _, parameters = (request.authorization or "").partition(" ")
    return _code(
        f"{request.method} https://{server.targets[0]}{path}",
        f"  /{room_id}",
        f"  /{event_id}",
        f"Host: {server.host_header}",
        f"Authorization: {scheme}",
        *(f"  {parameter}" for parameter in parameters.replace(",", ",\n").split("\n")),
    )


def _answer(replied: Replied) -> Iterator[RenderableType]:
    """Show of an answer what is new in it: a signature, or what the server has to say."""
    status = f"{replied.reply.status} after {replied.seconds:.2f} s"
    endpoint = V1 if replied.endpoint == V1.name else V2
    server_name = str(replied.invite.destination)
    try:
        signatures = endpoint.read_event(replied.reply)["signatures"][server_name]
    except (MalformedReplyError, LookupError, TypeError):
        yield status
        yield _code(replied.reply.body.decode("utf-8", "replace")[:_SHOWN_CHARACTERS])
    else:
        yield f"{status}: {endpoint.shape}, the event with one more signature:"
        lines = ((f"{server_name} {key_id}", f"  {text}") for key_id, text in signatures.items())
        yield _code(*chain.from_iterable(lines))


def _checks(invite: Invite, error: CountersignatureError | None) -> Iterator[Text]:
    validity = (
        ", valid at the time of the event" if invite.room_version.enforce_key_validity else ""
    )
    for check, problems in _CHECKS:
        if error is not None and error.problem in problems:
            yield Text.assemble(("✗ ", "bold red"), plain(error.message))
            return
        yield Text.assemble(
            ("✓ ", "green"), check.format(server=invite.destination, validity=validity)
        )


def _as_called() -> str:
    """The command as it can be typed again: by its path, in an environment that is not active."""
    called = Path(sys.argv[0])
    by_path = called.name == _PROGRAM and shutil.which(_PROGRAM) is None
    return str(called) if by_path else _PROGRAM


def _summary(chapters: list[_Chapter], *, passed: bool) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    for chapter in chapters:
        mark = Text("✓", "green") if chapter.passed else Text("✗", "bold red")
        wanted = "as it must be" if chapter.passed else f"expected: {chapter.expected}"
        table.add_row(mark, chapter.target, plain(chapter.outcome), wanted)
    end = f"Next, a real one: {_as_called()} resolve matrix.org" if passed else "That is a bug."
    return Constrain(Group(Rule(style="dim"), "", table, "", end), _WIDTH)
