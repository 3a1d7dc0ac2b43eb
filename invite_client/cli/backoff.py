"""`invite-client backoff`: which servers are left alone after failures, and to try them again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, replace

import click

from invite_client.backoff import BackOff, BackOffMemory
from invite_client.cli.options import Command, Settings, store_options
from invite_client.cli.output import duration, finite, plain, utc
from invite_client.clock import SystemClock
from invite_client.spec.server_names import parse_server_name
from invite_client.stores.sqlite import SqliteStore

__all__ = ["command"]

_KIND = "backoff"
"""What `invite_client.backoff` calls it."""


@click.group("backoff", no_args_is_help=False)
def command() -> None:
    """Show or reset which servers are left alone, because invites to them have failed.

    Failures are counted in the store of --store. After some in a row, invites to the server are
    refused without being sent, for a while; a success, or a reset, ends that.

    \b
    Example:
      invite-client backoff show --store store.sqlite
      invite-client backoff reset remote.example --store store.sqlite
    """  # noqa: D301


@command.command("show", cls=Command)
@click.argument("server_names", metavar="[SERVER_NAME]...", nargs=-1)
@store_options()
def show(server_names: tuple[str, ...], settings: Settings) -> None:
    """Show which servers are left alone, until when, and why.

    These are the servers to which invites have failed of late. JSON is one object a line.

    \b
    Example:
      invite-client backoff show --store store.sqlite
    """  # noqa: D301
    asyncio.run(_show(_checked(server_names), settings))


@command.command("reset", cls=Command)
@click.argument("server_names", metavar="[SERVER_NAME]...", nargs=-1)
@click.option("--all", "all_servers", is_flag=True, help="Every server.")
@store_options()
def reset(server_names: tuple[str, ...], all_servers: bool, settings: Settings) -> None:
    """Forget the failures of servers: the next invite to each is sent.

    \b
    Example:
      invite-client backoff reset remote.example --store store.sqlite
      invite-client backoff reset --all --store store.sqlite
    """  # noqa: D301
    if bool(server_names) == all_servers:
        raise click.UsageError("give either server names or --all")
    found, rest = asyncio.run(_reset(_checked(server_names), settings))
    done = [name for name in found if name not in rest]
    settings.output.result({"reset": done}, *(plain(name) for name in done))
    if not found:
        settings.output.note("no failure is remembered")
    settings.raise_for_rest(len(rest), len(found))


def _checked(server_names: Sequence[str]) -> list[str]:
    return [str(parse_server_name(name)) for name in server_names]


async def _show(server_names: list[str], settings: Settings) -> None:
    output, policy, found = settings.output, settings.policy.backoff, False
    async with settings.existing_store() as store:
        async for known in _failing(store, server_names, settings):
            found = True
            wait = known.until - time.time()
            refused = wait > 0 and policy.after_failures is not None
            if output.as_json:
                output.json_line(finite({**asdict(known), "refused": refused}))
                continue
            state = "sent as usual"
            if refused:
                state = f"refused until {_utc(known.until)}, for {duration(wait)}"
            elif policy.after_failures is not None and known.failures >= policy.after_failures:
                state = "one at a time is sent, to see if it is back"
            failures = "1 failure" if known.failures == 1 else f"{known.failures} failures"
            output.result(
                None,
                plain(known.destination),
                f"  {state}",
                f"  {failures} in a row since {_utc(known.since)}",
                f"  the last one: {plain(known.reason)}",
            )
    if not found:
        output.note("no failure is remembered")


async def _reset(server_names: list[str], settings: Settings) -> tuple[list[str], set[str]]:
    """Return whose failures were remembered, and whose are still."""
    found = []
    async with settings.existing_store() as store:
        memory = BackOffMemory(store, settings.policy.backoff, SystemClock())
        async for known in _failing(store, server_names, settings):
            await memory.reset(known.destination)
            found.append(known.destination)
    rest = await settings.still_stored([(_KIND, name) for name in found])
    return found, {name for _, name in rest}


async def _failing(
    store: SqliteStore, server_names: list[str], settings: Settings
) -> AsyncIterator[BackOff]:
    """Yield what is remembered, also where it is not yet enough to refuse anything."""
    policy = replace(settings.policy.backoff, after_failures=1)
    memory = BackOffMemory(store, policy, SystemClock())
    async for _, name, _ in store.entries(_KIND):
        known = await memory.read(name)
        if known is not None and (not server_names or name in server_names):
            yield known


def _utc(seconds: float) -> str:
    return utc(seconds * 1000)
