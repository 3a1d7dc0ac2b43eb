"""Many invites by many workers: jobs in PostgreSQL, outcomes in a table beside them.

    python examples/bulk_cluster.py init  --database postgresql:///invites
    python examples/bulk_cluster.py add   --database … requests.jsonl
    python examples/bulk_cluster.py work  --database … --server-name … --signing-key …
    python examples/bulk_cluster.py show  --database …

`work` is started on as many machines as wanted, as often as wanted; any of them may be killed. What
they learn of servers they share in the database. `Outcomes` is what you would write yourself: where
a signed event goes in your homeserver.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import procrastinate
    import psycopg
    from psycopg.types.json import Jsonb
    from psycopg_pool import AsyncConnectionPool
except ModuleNotFoundError as error:
    missing = f"{error.name} is not installed; this example needs: pip install"
    raise SystemExit(f"{missing} 'invite_client[cluster]'") from None

from invite_client import (
    AddressPolicy,
    DnsPolicy,
    Invite,
    InviteClient,
    Outcome,
    Policy,
    TlsPolicy,
    read_signing_key,
)
from invite_client.contrib.procrastinate import InviteJobs, JobPolicy
from invite_client.stores.postgres import PostgresStore

TABLE = """
CREATE TABLE IF NOT EXISTS invite_outcomes (
    event_id text PRIMARY KEY,
    destination text NOT NULL,
    signed jsonb,       -- the event with both servers' signatures
    error text,
    ended timestamptz NOT NULL DEFAULT now()
)
"""


class Outcomes:
    """Keeps outcomes in a table. A job may be run twice, so both methods bear to be called twice."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self.pool = pool

    async def is_signed(self, event_id: str) -> bool:
        """Return whether an event was signed: then it is not sent again."""
        query = "SELECT 1 FROM invite_outcomes WHERE event_id = %s AND signed IS NOT NULL"
        async with self.pool.connection() as connection:
            return await (await connection.execute(query, (event_id,))).fetchone() is not None

    async def record(self, outcome: Outcome) -> None:
        """Write down how an invite ended; once it is signed, that stays."""
        if outcome.invite is None:  # never so with jobs, which hold invites
            return
        async with self.pool.connection() as connection:
            await connection.execute(
                "INSERT INTO invite_outcomes (event_id, destination, signed, error) "
                "VALUES (%s, %s, %s, %s) ON CONFLICT (event_id) DO UPDATE SET "
                "signed = excluded.signed, error = excluded.error, ended = now() "
                "WHERE invite_outcomes.signed IS NULL",
                (
                    outcome.invite.event_id,
                    str(outcome.invite.destination),
                    outcome.signed and Jsonb(outcome.signed.event),
                    outcome.error and str(outcome.error),
                ),
            )


async def init(app: procrastinate.App, database: str) -> None:
    """Make the tables, where they are not there yet."""
    async with await psycopg.AsyncConnection.connect(database) as connection:
        cursor = await connection.execute("SELECT to_regclass('procrastinate_jobs')")
        [has_jobs] = await cursor.fetchone() or [None]
        await connection.execute(TABLE)
    if has_jobs is None:
        await app.schema_manager.apply_schema_async()


def read(path: str) -> Iterator[Invite]:
    """Yield the invites of a file with a v2 request on each line."""
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Invite.from_request(json.loads(line))
            except ValueError as error:  # an `InvalidInviteError` is one
                print(f"line {number}: {error}")


async def work(jobs: InviteJobs, options: argparse.Namespace) -> None:
    """Send what is in the queue, until a signal ends it."""
    policy = Policy(
        tls=TlsPolicy(ca_file=options.ca_file),
        addresses=AddressPolicy(allowed=tuple(options.allow_address)),
    )
    if options.nameserver:
        host, _, port = options.nameserver.partition(":")
        dns = DnsPolicy(nameservers=(host,), port=int(port or 53))
        policy = Policy(tls=policy.tls, addresses=policy.addresses, dns=dns)
    store = PostgresStore(options.database)
    key = read_signing_key(options.signing_key)
    async with (
        InviteClient(options.server_name, key, policy=policy, store=store) as client,
        AsyncConnectionPool(options.database, open=False) as pool,
    ):
        await jobs.work(client, Outcomes(pool), concurrency=options.concurrency)
    await store.aclose()


async def show(database: str) -> None:
    """Print how many invites wait, and how the others ended."""
    queries = {
        "in the queue": "SELECT status::text, count(*) FROM procrastinate_jobs GROUP BY 1",
        "ended": "SELECT coalesce(error, 'signed'), count(*) FROM invite_outcomes GROUP BY 1",
    }
    async with await psycopg.AsyncConnection.connect(database) as connection:
        for title, query in queries.items():
            async for name, count in await connection.execute(query + " ORDER BY 2 DESC LIMIT 20"):
                print(f"{title}: {count:6} {name}")


async def main(options: argparse.Namespace) -> None:
    """Do what the command line says."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=options.database))
    jobs = InviteJobs(
        app, policy=JobPolicy(heartbeat=options.heartbeat, stalled_after=6 * options.heartbeat)
    )
    async with app.open_async():
        match options.command:
            case "init":
                await init(app, options.database)
            case "add":
                print(f"{await jobs.defer(read(options.requests))} invites added")
            case "work":
                await work(jobs, options)
            case "show":
                await show(options.database)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Many invites by many workers.")
    commands = parser.add_subparsers(dest="command", required=True)
    parsers: dict[str, Any] = {
        name: commands.add_parser(name) for name in ("init", "add", "work", "show")
    }
    for one in parsers.values():
        one.add_argument("--database", required=True, help="postgresql://…")
        one.add_argument("--heartbeat", type=float, default=10.0, help=argparse.SUPPRESS)
    parsers["add"].add_argument("requests", help="a file with a v2 request on each line")
    parsers["work"].add_argument("--server-name", required=True)
    parsers["work"].add_argument("--signing-key", required=True)
    parsers["work"].add_argument("--concurrency", type=int, default=100)
    parsers["work"].add_argument("--ca-file")
    parsers["work"].add_argument("--allow-address", action="append", default=[])
    parsers["work"].add_argument("--nameserver")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
