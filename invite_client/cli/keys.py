"""`invite-client keys`: with which keys does a homeserver sign?"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import click
from rich.table import Table
from rich.text import Text

from invite_client.cli.options import Command, Settings, network_options
from invite_client.cli.output import utc
from invite_client.errors import InviteError
from invite_client.federation import FederationClient
from invite_client.spec.server_keys import ServerKeys

__all__ = ["command"]


@click.command("keys", cls=Command)
@click.argument("server_name_to_ask", metavar="SERVER_NAME")
@network_options(identity=False)
def command(server_name_to_ask: str, settings: Settings) -> int:
    """Show a homeserver's signing keys, checked.

    The server itself is asked, never a notary. Its answer must name it and be signed with each of
    its current keys. With --json the answer is printed as it came, for `verify --keys`.

    \b
    Example:
      invite-client keys matrix.org
      invite-client keys --json matrix.org > keys.json
    """  # noqa: D301
    output = settings.output
    try:
        keys = asyncio.run(_keys(server_name_to_ask, settings))
    except InviteError as error:
        return output.failure(error, f"{error}.")
    output.result(
        dict(keys.response),
        _table(keys),
        "",
        f"{keys.server_name} has signed this with each of its current keys.",
    )
    return 0


async def _keys(name: str, settings: Settings) -> ServerKeys:
    # What a notary remembers says nothing about what the server answers.
    policy = replace(settings.policy, keys=replace(settings.policy.keys, notaries=()))
    async with (
        settings.open_store() as store,
        FederationClient(policy=policy, store=store) as federation,
    ):
        return await federation.server_keys(name)


def _table(keys: ServerKeys) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", overflow="fold")
    for key_id, published in keys.keys.items():
        kind = "an old key, for events until" if published.old else "valid for events until"
        validity = f"{kind} {utc(published.valid_until)}"
        table.add_row(Text(key_id), Text(f"{published.key.base64}\n{validity}", overflow="fold"))
    return table
