"""`invite-client cache`: what a store remembers of other servers, and to forget it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import click

from invite_client.cli.options import Command, Settings, store_options
from invite_client.cli.output import finite, plain, utc
from invite_client.errors import InvalidInviteError
from invite_client.interfaces import Stored
from invite_client.spec.discovery import SERVICES
from invite_client.spec.server_names import parse_server_name
from invite_client.stores.sqlite import SqliteStore

__all__ = ["command"]

_WELL_KNOWN, _SRV, _KEYS = "well-known", "srv", "keys"
"""What `resolver` and `keyring` call it."""


@click.group("cache", no_args_is_help=False)
def command() -> None:
    """Show or clear what a store remembers: well-known files, SRV records, keys.

    The store is the file of --store, which is never more than a memory: what is forgotten is asked
    for again. A process that is using it notices within seconds.

    \b
    Example:
      invite-client cache show --store store.sqlite
      invite-client cache clear remote.example --store store.sqlite
    """  # noqa: D301


@command.command("show", cls=Command)
@click.argument("server_name", required=False)
@store_options()
def show(server_name: str | None, settings: Settings) -> None:
    """Show what is remembered of a server, or of all of them. JSON is one object a line.

    \b
    Example:
      invite-client cache show remote.example --store store.sqlite
    """  # noqa: D301
    asyncio.run(_show(server_name, settings))


@command.command("clear", cls=Command)
@click.argument("server_name", required=False)
@store_options()
def clear(server_name: str | None, settings: Settings) -> None:
    """Forget what is remembered of a server, or of all of them. Back-offs stay.

    \b
    Example:
      invite-client cache clear remote.example --store store.sqlite
    """  # noqa: D301
    number, rest = asyncio.run(_clear(server_name, settings))
    forgotten = number - rest
    settings.output.result({"forgotten": forgotten}, f"{forgotten} forgotten")
    settings.raise_for_rest(rest, number)


async def _show(server_name: str | None, settings: Settings) -> None:
    output, now, found = settings.output, time.time(), False
    async with settings.existing_store() as store:
        async for kind, key, stored in _entries(store, server_name):
            found = True
            if output.as_json:
                output.json_line(finite({"kind": kind, "key": key, **asdict(stored)}))
            else:
                output.result(
                    None,
                    f"{kind:<12}{plain(key)}",
                    f"{'':12}{plain(_in_words(kind, stored.value))}",
                    f"{'':12}{_times(stored, now)}",
                )
    if not found:
        output.note("nothing is remembered")


async def _clear(server_name: str | None, settings: Settings) -> tuple[int, int]:
    """Return how much was remembered, and how much of it is still."""
    found = set()
    async with settings.existing_store() as store:
        async for kind, key, _ in _entries(store, server_name):
            await store.delete(kind, key)
            found.add((kind, key))
    return len(found), len(await settings.still_stored(found))


async def _entries(
    store: SqliteStore, server_name: str | None
) -> AsyncIterator[tuple[str, str, Stored]]:
    if server_name is None:
        async for entry in store.entries(_WELL_KNOWN, _SRV, _KEYS):
            yield entry
        return
    name = parse_server_name(server_name)
    hosts = [name.host]
    well_known = await store.get(_WELL_KNOWN, name.host)
    match well_known:
        case Stored({"delegated": str(delegated)}):
            with suppress(InvalidInviteError):  # a store may hold anything
                hosts.append(parse_server_name(delegated).host)
    for kind, key in [
        (_WELL_KNOWN, name.host),
        *((_SRV, f"{service}.{host}") for host in dict.fromkeys(hosts) for service in SERVICES),
        (_KEYS, str(name)),
    ]:
        stored = await store.get(kind, key)
        if stored is not None:
            yield kind, key, stored


def _in_words(kind: str, value: Any) -> str:
    match kind, value:
        case ("well-known", {"delegated": str(delegated)}):
            return f"m.server is {delegated}"
        case ("well-known", {"reason": str(reason)}):
            return f"none: {reason}"
        case ("srv", [*records]) if all(isinstance(one, list) and len(one) == 4 for one in records):
            return ", ".join(f"{target}:{port}" for _, _, port, target in records) or "no records"
        case ("keys", {"response": {"verify_keys": dict(keys)}}):
            return ", ".join(map(str, keys))
    return "not what was put there"


def _times(stored: Stored, now: float) -> str:
    if now < stored.fresh_until:
        return f"fresh until {utc(stored.fresh_until * 1000)}"
    if now < stored.usable_until:
        return f"asked for anew; serves if that fails until {utc(stored.usable_until * 1000)}"
    return "of no use any more"
