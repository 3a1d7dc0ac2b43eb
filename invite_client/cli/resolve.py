"""`invite-client resolve`: where is a homeserver, and why there?"""

from __future__ import annotations

import asyncio

import click

from invite_client.cli.layout import destination_table, trace_table
from invite_client.cli.options import Command, Settings, network_options
from invite_client.cli.output import resolved_json
from invite_client.errors import InviteError
from invite_client.federation import FederationClient
from invite_client.spec.discovery import ResolvedServer

__all__ = ["command"]


@click.command("resolve", cls=Command)
@click.argument("server_name_to_resolve", metavar="SERVER_NAME")
@network_options(identity=False)
def command(server_name_to_resolve: str, settings: Settings) -> int:
    """Find a homeserver: every step of discovery, and why.

    The steps have the numbers of the specification (Server-Server API, Resolving server names).
    No key is needed. Where the network of a step is refused, --allow-address permits it. Whether a
    homeserver answers in the place that is found, and how, is for `doctor` to say.

    \b
    Example:
      invite-client resolve matrix.org
      invite-client resolve --json matrix.org
    """  # noqa: D301
    output = settings.output
    try:
        server = asyncio.run(_resolve(server_name_to_resolve, settings))
    except InviteError as error:
        trace = getattr(error, "trace", ())
        if trace and not output.as_json:
            output.result(None, trace_table(trace))
        return output.failure(error, f"{error}.")
    output.result(resolved_json(server), trace_table(server.trace), "", destination_table(server))
    if server.step == "6" and not output.as_json:
        # Names that do not exist end here, too.
        output.note(f"Does anybody answer there? invite-client doctor {server.server_name}", "dim")
    return 0


async def _resolve(name: str, settings: Settings) -> ResolvedServer:
    async with (
        settings.open_store() as store,
        FederationClient(policy=settings.policy, store=store) as federation,
    ):
        return await federation.resolve(name)
