"""A store in one SQLite file: keys, resolved servers and back-off that survive a restart.

    from invite_client.stores.sqlite import SqliteStore

The file is a memory, not an authority: who reads from it checks again what can be checked (keys
carry signatures), and everything in it may be deleted at any time. Several processes may share it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from invite_client.errors import InvalidInviteError
from invite_client.interfaces import Stored

__all__ = ["SqliteStore"]

_log = logging.getLogger(__name__)

_APPLICATION_ID = 0x4D496E76
"""``MInv``, in the header of the file: what has another one is somebody else's."""
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS stored (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    fresh_until REAL NOT NULL,
    usable_until REAL NOT NULL,
    PRIMARY KEY (kind, key)
) WITHOUT ROWID, STRICT;
CREATE INDEX IF NOT EXISTS stored_usable_until ON stored (usable_until);
"""
_OWNER_ONLY = 0o600
"""What is in the file decides which servers are spoken to."""
_LIMIT = 100_000
"""Values that are kept, of about 1 KiB: a few for each of the servers of the whole federation."""
_PUTS_UNTIL_TIDY = 1000
"""How many values the file may be over its limit."""
_REREAD_AFTER = 5.0
"""A look-up in the thread costs 70 µs, and an invite makes five of them."""
_MOST_AT_HAND = 10_000
"""Values that are not read again so soon, of about 1 KiB."""
_PAGE = 500
"""Values that are read at once, where all are wanted."""

T = TypeVar("T")


class SqliteStore:
    """An `interfaces.Store` in a file. One thread of its own does all the work."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        limit: int = _LIMIT,
        reread_after: float = _REREAD_AFTER,
    ) -> None:
        """Open the file, or make one that only its owner can read, for about `limit` values.

        Those that are of use for the shortest time make room for others. What was read is kept at
        hand for `reread_after` seconds: so late is seen what another process has written.

        Raises `InvalidInviteError` if it cannot be opened or written, is damaged, is not one of
        ours, or was written by a newer version.
        """
        self.path: Path = Path(path)
        self._limit = limit
        self._reread_after = reread_after
        self._puts = 0
        self._failing = False
        self._closed = False
        self._changes = 0
        self._at_hand: OrderedDict[tuple[str, str], tuple[float, Stored | None]] = OrderedDict()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="invite_client-store")
        try:
            self._database = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def get(self, kind: str, key: str) -> Stored | None:
        """Return what was put last, or None; also where the file cannot be read any more."""
        when, stored = self._at_hand.get((kind, key), (None, None))
        if when is not None and time.monotonic() - when < self._reread_after:
            return stored
        changes = self._changes
        row = await self._run(
            lambda: self._database.execute(
                "SELECT value, fresh_until, usable_until FROM stored WHERE kind = ? AND key = ?",
                (kind, key),
            ).fetchone()
        )
        try:
            stored = None if row is None else Stored(json.loads(row[0]), row[1], row[2])
        except (ValueError, RecursionError):
            await self.delete(kind, key)
            return None
        if changes == self._changes:  # else this may be what was there before
            self._keep_at_hand(kind, key, stored)
        return stored

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        """Remember a value."""
        row = (kind, key, json.dumps(stored.value), stored.fresh_until, stored.usable_until)
        self._changes += 1
        # At hand only when it is written: whoever gets it may leave, and end this before it is.
        self._at_hand.pop((kind, key), None)
        changes = self._changes
        await self._run(lambda: self._put(row))
        if changes == self._changes:  # else it may be deleted by now
            self._keep_at_hand(kind, key, stored)

    async def delete(self, kind: str, key: str) -> None:
        """Forget a value, if it is there."""
        self._changes += 1
        self._keep_at_hand(kind, key, None)
        await self._run(
            lambda: self._database.execute(
                "DELETE FROM stored WHERE kind = ? AND key = ?", (kind, key)
            )
        )

    async def entries(self, *kinds: str) -> AsyncIterator[tuple[str, str, Stored]]:
        """Yield what is in the file, of these kinds, as kind, key and value: for operators."""
        after = ("", "")
        while True:
            rows = await self._run(partial(self._page, kinds, after)) or []
            for kind, key, value, fresh_until, usable_until in rows:
                with suppress(ValueError, RecursionError):
                    yield kind, key, Stored(json.loads(value), fresh_until, usable_until)
            if not rows:
                return
            after = rows[-1][:2]

    async def purge(self, now: float) -> int:
        """Delete what is of no use after `now` (seconds since the epoch); return how many."""
        return await self._run(lambda: self._purge(now)) or 0

    async def aclose(self) -> None:
        """Close the file and end the thread."""
        if not self._closed:
            await self._run(self._database.close)
            self._closed = True
            self._thread.shutdown()

    def _keep_at_hand(self, kind: str, key: str, stored: Stored | None) -> None:
        self._at_hand[kind, key] = time.monotonic(), stored
        self._at_hand.move_to_end((kind, key))
        if len(self._at_hand) > _MOST_AT_HAND:
            self._at_hand.popitem(last=False)

    async def _run(self, work: Callable[[], T]) -> T | None:
        """Do `work` in the thread. A store that fails is a store that has forgotten."""
        if self._closed:
            return None
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            # Once, and not for each of the thousands of look-ups of a run.
            level = logging.DEBUG if self._failing else logging.WARNING
            _log.log(level, "the store %s failed and is passed over: %s", self.path, error)
            self._failing = True
            return None
        self._failing = False
        return done

    # --- In the thread --------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        database = None
        try:
            self.path.touch(_OWNER_ONLY)
            database = sqlite3.connect(self.path, isolation_level=None)
            # The tables first: another process, which makes the file just now, makes them last.
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            (application_id,) = database.execute("PRAGMA application_id").fetchone()
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if application_id != _APPLICATION_ID and (tables or application_id):
                raise _refused(self.path, "is a database of another program")
            if version > _SCHEMA_VERSION:
                raise _refused(self.path, "was written by a newer version of invite_client")
            (health,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if health != "ok":
                raise _refused(self.path, f"is damaged: {' '.join(health.split())}")
            database.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last writes, but not the file: it is only a memory.
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            database.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as error:
            if database is not None:
                database.close()
            raise _refused(self.path, f"cannot be used as a store: {error}") from None
        except InvalidInviteError:
            if database is not None:
                database.close()
            raise
        return database

    def _page(self, kinds: tuple[str, ...], after: tuple[str, str]) -> list[Any]:
        return self._database.execute(
            "SELECT kind, key, value, fresh_until, usable_until FROM stored "
            "WHERE kind IN (SELECT value FROM json_each(?)) AND (kind, key) > (?, ?) "
            "ORDER BY kind, key LIMIT ?",
            (json.dumps(kinds), *after, _PAGE),
        ).fetchall()

    def _put(self, row: tuple[str, str, str, float, float]) -> None:
        self._database.execute("INSERT OR REPLACE INTO stored VALUES (?, ?, ?, ?, ?)", row)
        self._puts += 1
        if self._puts % _PUTS_UNTIL_TIDY == 0:
            self._purge(time.time())
            self._database.execute(
                "DELETE FROM stored WHERE (kind, key) IN (SELECT kind, key FROM stored "
                "ORDER BY usable_until DESC LIMIT -1 OFFSET ?)",
                (self._limit,),
            )

    def _purge(self, now: float) -> int:
        return self._database.execute("DELETE FROM stored WHERE usable_until < ?", (now,)).rowcount


def _refused(path: Path, why: str) -> InvalidInviteError:
    return InvalidInviteError(f"{path} {why}; name another file or remove it", field="store")
