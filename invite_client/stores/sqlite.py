"""A store in one SQLite file: keys, look-ups and back-off that survive a restart.

The file is a memory, not an authority: who reads from it checks again what can be checked (keys
carry signatures), and everything in it may be deleted at any time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

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
"""

T = TypeVar("T")


class SqliteStore:
    """An `interfaces.Store` in a file. One thread of its own does all the work."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the file, or make it.

        Raises `InvalidInviteError` if it cannot be opened, is damaged, is not one of ours, or was
        written by a newer version.
        """
        self.path = Path(path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="invite_client-store")
        try:
            self._database = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def _open(self) -> sqlite3.Connection:
        database = None
        try:
            database = sqlite3.connect(self.path, isolation_level=None)
            (application_id,) = database.execute("PRAGMA application_id").fetchone()
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables and application_id != _APPLICATION_ID:
                raise _refused(self.path, "is a database of another program")
            if version > _SCHEMA_VERSION:
                raise _refused(self.path, "was written by a newer version of invite_client")
            database.execute("PRAGMA journal_mode = WAL")
            # A power cut may lose the last writes, but not the file: it is only a memory.
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            if database is not None:
                database.close()
            raise _refused(self.path, f"cannot be used as a store: {error}") from None
        except InvalidInviteError:
            if database is not None:
                database.close()
            raise
        return database

    async def get(self, kind: str, key: str) -> Stored | None:
        """Return what was put last, or None; also where the file cannot be read any more."""
        row = await self._run(
            lambda: self._database.execute(
                "SELECT value, fresh_until, usable_until FROM stored WHERE kind = ? AND key = ?",
                (kind, key),
            ).fetchone()
        )
        if row is None:
            return None
        try:
            return Stored(json.loads(row[0]), row[1], row[2])
        except (ValueError, RecursionError):
            await self.delete(kind, key)
            return None

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        """Remember a value."""
        row = (kind, key, json.dumps(stored.value), stored.fresh_until, stored.usable_until)
        await self._run(
            lambda: self._database.execute("INSERT OR REPLACE INTO stored VALUES (?,?,?,?,?)", row)
        )

    async def delete(self, kind: str, key: str) -> None:
        """Forget a value, if it is there."""
        await self._run(
            lambda: self._database.execute(
                "DELETE FROM stored WHERE kind = ? AND key = ?", (kind, key)
            )
        )

    async def purge(self, now: float) -> int:
        """Delete what is of no use after `now` (seconds since the epoch); return how many."""
        cursor = await self._run(
            lambda: self._database.execute("DELETE FROM stored WHERE usable_until < ?", (now,))
        )
        return cursor.rowcount if cursor is not None else 0

    async def aclose(self) -> None:
        """Close the file and end the thread."""
        await self._run(self._database.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T | None:
        """Do `work` in the thread. A store that fails is a store that has forgotten."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            _log.warning("the store %s failed and is passed over: %s", self.path, error)
            return None


def _refused(path: Path, why: str) -> InvalidInviteError:
    return InvalidInviteError(f"{path} {why}; name another file or remove it", field="store")
