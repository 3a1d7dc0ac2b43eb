"""`invite-client resolve`: where is a homeserver, and why there?"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import click

from invite_client.cli.layout import destination_table, trace_table
from invite_client.cli.options import Command, Settings, network_options
from invite_client.cli.output import resolved_json
from invite_client.deadlines import TimeLimit
from invite_client.errors import InviteError, Stage, UnreachableError
from invite_client.federation import FederationClient
from invite_client.spec.discovery import ResolvedServer, Target

__all__ = ["command"]


@click.command("resolve", cls=Command)
@click.argument("server_name_to_resolve", metavar="SERVER_NAME")
@network_options(identity=False)
def command(server_name_to_resolve: str, settings: Settings) -> int:
    """Find a homeserver: every step of discovery, and why.

    The steps have the numbers of the specification (Server-Server API, Resolving server names). At
    the end stands what would be connected to. No key is needed. Where the network of a step or of
    an address is refused, --allow-address permits it. Whether a homeserver answers in the place
    that is found, and how, is for `doctor` to say.

    \b
    Example:
      invite-client resolve matrix.org
      invite-client resolve --json matrix.org
    """  # noqa: D301
    output = settings.output
    try:
        found = asyncio.run(_resolve(server_name_to_resolve, settings))
    except InviteError as error:
        trace = getattr(error, "trace", ())
        if trace and not output.as_json:
            output.result(None, trace_table(trace))
        return output.failure(error, f"{error}.")
    server, nowhere = found.server, found.error
    if nowhere is None or not output.as_json:
        table = destination_table(server, {one.target: one.in_words for one in found.targets})
        output.result(found.json(), trace_table(server.trace), "", table)
    if nowhere is not None:
        return output.failure(nowhere, f"{nowhere}.", **found.json())
    if server.step == "6" and not output.as_json:
        # Names of no homeserver end here, too.
        output.note(f"Does anybody answer there? invite-client doctor {server.server_name}", "dim")
    return 0


_LAST_RESORTS = ("3.5", "6")


@dataclass(frozen=True, slots=True)
class _Addresses:
    """What a target leads to: addresses that may be connected to, or why there are none."""

    target: Target
    addresses: tuple[str, ...]
    error: InviteError | None = None

    @property
    def in_words(self) -> str:
        if self.error is None:
            return ", ".join(self.addresses)
        return self.error.message.removeprefix(f"{self.target}: ")

    def json(self) -> dict[str, Any]:
        return {
            "host": self.target.host,
            "port": self.target.port,
            "addresses": list(self.addresses),
            "error": self.error and self.in_words,
        }


@dataclass(frozen=True, slots=True)
class _Found:
    """A server, and whether there is such a name."""

    server: ResolvedServer
    targets: tuple[_Addresses, ...]
    error: InviteError | None
    """What is not there, if none of the targets is."""

    def json(self) -> dict[str, Any]:
        targets = [one.json() for one in self.targets]
        return {**resolved_json(self.server), "targets": targets}


async def _resolve(name: str, settings: Settings) -> _Found:
    from invite_client.net.http import HttpTransport, summary  # noqa: PLC0415  # it takes a while

    async def look_up(target: Target) -> _Addresses:
        try:
            async with time.within(_not_in_time):
                addresses = await transport.addresses(target, server)
        except InviteError as error:
            return _Addresses(target, (), error)
        return _Addresses(target, tuple(map(str, addresses)))

    time = TimeLimit(settings.policy.timeouts.total, "timeouts.total")
    transport = HttpTransport(settings.policy)
    try:
        async with (
            settings.open_store() as store,
            FederationClient(
                policy=settings.policy, transport=transport, store=store
            ) as federation,
        ):
            server = await federation.resolve(name)
            targets = await asyncio.gather(*map(look_up, server.targets))
    finally:
        await transport.aclose()
    absent = [one.error for one in targets if one.error is not None and _is_absent(one.error)]
    # What somebody has written down, a port or a record, is found; a bare name alone says nothing.
    if server.step not in _LAST_RESORTS or len(absent) < len(targets):
        return _Found(server, tuple(targets), None)
    error = summary(absent)
    error.destination = server.server_name
    return _Found(server, tuple(targets), error)


def _is_absent(error: InviteError) -> bool:
    """Whether there is no such name. What is refused, or not known now, is there all the same."""
    return error.stage is Stage.DNS and not error.retryable


def _not_in_time(message: str) -> InviteError:
    return UnreachableError(message, stage=Stage.DNS, retryable=True)
