"""A store in PostgreSQL: what one worker has learned, all workers know.

    from invite_client.stores.postgres import PostgresStore

    store = PostgresStore("postgresql:///synapse")

It makes a table of its own. Whoever may write to that can say where servers are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import Any

import psycopg
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from invite_client.interfaces import Stored

__all__ = ["PostgresStore"]

_log = logging.getLogger(__name__)

_TABLE = """
CREATE TABLE IF NOT EXISTS invite_client_stored (
    kind text NOT NULL,
    key text NOT NULL,
    value jsonb NOT NULL,
    fresh_until double precision NOT NULL,
    usable_until double precision NOT NULL,
    PRIMARY KEY (kind, key)
);
CREATE INDEX IF NOT EXISTS invite_client_stored_usable_until
    ON invite_client_stored (usable_until);
"""
_LOCK = 0x4D496E76
"""Two that make one table at once would get in each other's way."""
_PATIENCE = 5.0
"""Seconds that the database has to answer: an invite waits for it."""
_REREAD_AFTER = 5.0
"""An invite makes five look-ups; each takes a round trip."""
_MOST_AT_HAND = 10_000
"""Values that are not read again so soon, of about 1 KiB."""
_CONNECTIONS = 4
"""Of one process: a look-up takes a millisecond, and a database has a hundred for all."""
_PUTS_UNTIL_TIDY = 1000
"""To look for what is past its time reads the whole table."""


class PostgresStore:
    """An `interfaces.Store` that many processes share."""

    def __init__(self, conninfo: str, *, reread_after: float = _REREAD_AFTER) -> None:
        """Prepare a store in the database of a libpq connection string. Connects when it is used.

        What was read is kept at hand for `reread_after` seconds: so late is seen what another
        process has written.
        """
        self._pool = AsyncConnectionPool(
            conninfo, open=False, min_size=1, max_size=_CONNECTIONS, timeout=_PATIENCE
        )
        self._opening = asyncio.Lock()
        self._ready = False
        self._failing = False
        self._reread_after = reread_after
        self._changes = 0
        self._puts = 0
        self._at_hand: OrderedDict[tuple[str, str], tuple[float, Stored | None]] = OrderedDict()

    async def get(self, kind: str, key: str) -> Stored | None:
        """Return what was put last, or None; also where the database cannot be reached."""
        when, stored = self._at_hand.get((kind, key), (None, None))
        if when is not None and time.monotonic() - when < self._reread_after:
            return stored
        changes = self._changes
        rows = await self._run(
            "SELECT value, fresh_until, usable_until FROM invite_client_stored "
            "WHERE kind = %s AND key = %s",
            kind,
            key,
        )
        if rows is None:
            return None
        stored = Stored(*rows[0]) if rows else None
        if changes == self._changes:  # else this may be what was there before
            self._keep_at_hand(kind, key, stored)
        return stored

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        """Remember a value."""
        self._changes += 1
        self._puts += 1
        # At hand only when it is written: whoever gets it may leave, and end this before it is.
        self._at_hand.pop((kind, key), None)
        changes = self._changes
        await self._run(
            "INSERT INTO invite_client_stored VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value, "
            "fresh_until = excluded.fresh_until, usable_until = excluded.usable_until",
            kind,
            key,
            Jsonb(stored.value),
            stored.fresh_until,
            stored.usable_until,
        )
        if changes == self._changes:  # else it may be deleted by now
            self._keep_at_hand(kind, key, stored)
        self._changes += 1  # what was read meanwhile may be what was there before
        if self._puts % _PUTS_UNTIL_TIDY == 0:
            await self.purge(time.time())

    async def delete(self, kind: str, key: str) -> None:
        """Forget a value, if it is there."""
        self._keep_at_hand(kind, key, None)
        self._changes += 1
        await self._run("DELETE FROM invite_client_stored WHERE kind = %s AND key = %s", kind, key)
        self._changes += 1

    async def purge(self, now: float) -> None:
        """Delete what is of no use after `now`, in seconds since the epoch."""
        await self._run("DELETE FROM invite_client_stored WHERE usable_until < %s", now)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.close()

    def _keep_at_hand(self, kind: str, key: str, stored: Stored | None) -> None:
        self._at_hand[kind, key] = time.monotonic(), stored
        self._at_hand.move_to_end((kind, key))
        if len(self._at_hand) > _MOST_AT_HAND:
            self._at_hand.popitem(last=False)

    async def _run(self, query: str, *values: Any) -> list[Any] | None:
        """Return the rows of a query. A store that fails is a store that has forgotten."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._prepare()
                async with self._pool.connection() as connection:
                    cursor = await connection.execute(query, values)
                    rows = await cursor.fetchall() if cursor.description else []
        except (psycopg.Error, PoolTimeout, TimeoutError, OSError) as error:
            # Once, and not for each of the thousands of look-ups of a run.
            level = logging.DEBUG if self._failing else logging.WARNING
            _log.log(level, "the store in PostgreSQL failed and is passed over: %s", error)
            self._failing = True
            return None
        self._failing = False
        return rows

    async def _prepare(self) -> None:
        """Connect, and make the table, if that was not done yet."""
        async with self._opening:
            if not self._ready:
                await self._pool.open()
                async with self._pool.connection() as connection:
                    await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                    await connection.execute(_TABLE)
                self._ready = True
