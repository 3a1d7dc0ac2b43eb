"""The file of a journal: its form, how it is opened, and what may be wrong with it."""

from __future__ import annotations

import enum
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from invite_client.errors import Delivery, InvalidInviteError, InviteError, InviteRejectedError

__all__ = [
    "State",
    "as_written",
    "connect",
    "counts",
    "explained",
    "hold",
    "is_damage",
    "prepare",
    "refused",
    "storable",
    "transaction",
]

_APPLICATION_ID = 0x4D496E4A
"""``MInJ``, in the header of the file: what has another one is somebody else's."""
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE rooms (            -- what the invites to one room have in common
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    room_version TEXT NOT NULL,
    invite_room_state TEXT NOT NULL
) STRICT;
CREATE TABLE invites (
    id INTEGER PRIMARY KEY,
    event_id TEXT NOT NULL UNIQUE,
    destination TEXT NOT NULL,
    target TEXT NOT NULL,
    room INTEGER NOT NULL REFERENCES rooms,
    room_id TEXT NOT NULL,
    event TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    seconds REAL,
    error TEXT,                 -- its class
    message TEXT,
    retryable INTEGER,
    retry_after REAL,
    not_before REAL,            -- when a deferred invite may be sent again
    endpoint TEXT,
    signed TEXT,                -- the event with both servers' signatures
    added REAL NOT NULL,        -- seconds since the epoch
    ended REAL
) STRICT;
CREATE INDEX by_state ON invites (state, destination, seconds);
CREATE INDEX by_target ON invites (target);
CREATE INDEX deferred ON invites (not_before) WHERE state = 'deferred';
CREATE TABLE bad_lines (
    source TEXT NOT NULL,
    line INTEGER NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (source, line)
) STRICT;
CREATE TABLE output (           -- at most one row: the file to which signed events are written
    path TEXT NOT NULL,
    size INTEGER                -- bytes of it that are right; NULL if it is to be written anew
) STRICT;
"""
_ADDED_SINCE = (
    """
    CREATE TABLE IF NOT EXISTS inputs (
        source TEXT PRIMARY KEY,
        read_to_its_end INTEGER NOT NULL
    ) STRICT
    """,
    # Of few rows, and so cheap to look for among very many.
    """
    CREATE INDEX IF NOT EXISTS may_have_arrived ON invites (state, destination)
    WHERE error = 'UnknownOutcomeError'
    """,
)
"""What a journal that was begun with an earlier version lacks. A reader does without."""


class State(enum.StrEnum):
    """How far an invite has come."""

    PENDING = "pending"
    """It was not sent, or is to be sent again."""
    IN_FLIGHT = "in flight"
    """It was given to a run, which may have sent it."""
    DEFERRED = "deferred"
    """The remote answered "later"; it is given to a run again when the time has come."""
    SIGNED = "signed"
    REJECTED = "rejected"
    """The remote answered, and said no."""
    FAILED = "failed"
    """It did not reach the remote, or what came back was no countersignature."""
    UNKNOWN = "unknown"
    """It may have arrived, and no answer came: the next run sends it again.

    While a run has yet to do so its row says pending, with the error of the earlier send.
    """

    @classmethod
    def of(cls, error: InviteError | None) -> State:
        """Return the state of an invite that ended with an error, or without one."""
        match error:
            case None:
                return cls.SIGNED
            case InviteRejectedError(retryable=False):
                return cls.REJECTED
            case InviteError(delivery=Delivery.UNKNOWN):
                return cls.UNKNOWN
        return cls.FAILED


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open a journal, or a new file. Raises `InvalidInviteError` or `sqlite3.Error`."""
    if os.path.isdir(path):  # noqa: PTH112  # a Path raises where one may not look
        raise refused(path, "is a folder")
    if not create and _is_missing(path):
        raise refused(path, "does not exist")
    database = _open(path, "mode=rwc" if create else "mode=rw")
    try:
        if not create and _is_kept_from_writing(database, path):
            # There SQLite reads only what nobody else may write meanwhile.
            database.close()
            database = _open(path, "mode=ro&immutable=1")
        (application_id,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application_id != _APPLICATION_ID and (tables or not create):
            raise refused(path, "is no journal, but a file of another program")
        if version > _SCHEMA_VERSION:
            raise refused(path, "was written by a newer version of invite_client")
    except BaseException:
        database.close()
        raise
    return database


def _is_missing(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:  # SQLite says what it is
        return False
    return False


def _open(path: Path, options: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, isolation_level=None)


def _is_kept_from_writing(database: sqlite3.Connection, path: Path) -> bool:
    """Whether a journal that no run has open cannot be read because nothing may be written there."""
    try:
        database.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        code = error.sqlite_errorcode & 0xFF
        kept = code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
        return kept and not Path(f"{path.resolve()}-wal").exists()
    return False


def prepare(database: sqlite3.Connection) -> None:
    """Make a new file a journal."""
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        with transaction(database):
            for statement in _SCHEMA.split(";\n"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    for statement in _ADDED_SINCE:
        database.execute(statement)
    database.execute("PRAGMA journal_mode = WAL")
    # What is recorded survives a power cut, too.
    database.execute("PRAGMA synchronous = FULL")


def hold(path: Path) -> sqlite3.Connection:
    """Lock a journal against other runs, for as long as the connection that is returned is open.

    The lock is one that SQLite takes on a file of its own, beside the journal: it ends with the
    process, however that ends, and does not keep anybody from reading.
    """
    lock = sqlite3.connect(f"{path.resolve()}.lock", timeout=0, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        lock.close()
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
            raise refused(path, "is in use by another run") from None
        raise
    return lock


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Do all of the block, or nothing of it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # SQLite ends it by itself where the disk is full
            database.execute("ROLLBACK")
        raise


def storable(text: str) -> str:
    """Return a text as SQLite takes it: strangers' words, and names of files, may be no Unicode."""
    return text.encode(errors="backslashreplace").decode()


def counts(database: sqlite3.Connection) -> dict[State, int]:
    """Return how many invites are in each state that occurs."""
    rows = database.execute("SELECT state, count(*) FROM invites GROUP BY state")
    with as_written():
        return {State(state): count for state, count in rows}


# --- What may be wrong --------------------------------------------------------------------------

_NOTHING_IS_LOST = "what it records is not lost"
_REASONS = {
    sqlite3.SQLITE_FULL: f"cannot be written, the disk is full; {_NOTHING_IS_LOST}: make room, "
    "and start again",
    sqlite3.SQLITE_IOERR: f"cannot be read or written, the disk fails; {_NOTHING_IS_LOST} unless "
    "the disk is",
    sqlite3.SQLITE_READONLY: "cannot be written; it, and its folder, must be writable",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; its folder must be there and be writable",
    sqlite3.SQLITE_NOTADB: "is no journal",
    sqlite3.SQLITE_CORRUPT: "is damaged; what can be read of it is shown by `journal export`, and "
    "`sqlite3 FILE .recover` may bring back more",
    sqlite3.SQLITE_BUSY: "is locked by another program",
}


class DamagedError(Exception):
    """What stands in the file is not what was written there."""


@contextmanager
def as_written() -> Iterator[None]:
    """Turn what is raised by reading a value that is none into a `DamagedError`."""
    try:
        yield
    except (TypeError, ValueError, RecursionError) as error:
        raise DamagedError from error


def is_damage(error: Exception) -> bool:
    """Whether what was raised tells of a file in which something else stands than was written."""
    if isinstance(error, sqlite3.OperationalError):
        # One without a code is Python's own: what should be text is none.
        return getattr(error, "sqlite_errorcode", None) is None
    if isinstance(error, sqlite3.DatabaseError):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT
    return isinstance(error, UnicodeDecodeError | DamagedError)


@contextmanager
def explained(path: Path, field: str = "journal") -> Iterator[None]:
    """Turn what SQLite and the system say about a file into an `InvalidInviteError`."""
    try:
        yield
    except sqlite3.Error as error:
        # One without a code is Python's own: what should be text is none, and would be shown.
        is_no_text = isinstance(error, sqlite3.OperationalError)
        without = sqlite3.SQLITE_CORRUPT if is_no_text else sqlite3.SQLITE_ERROR
        # The code in the lower byte is the kind of error, the others tell its cause.
        code = getattr(error, "sqlite_errorcode", without) & 0xFF
        why = _REASONS.get(code, f"cannot be used: {error}")
        raise refused(path, why, field) from error
    except (UnicodeDecodeError, DamagedError) as error:
        raise refused(path, _REASONS[sqlite3.SQLITE_CORRUPT], field) from error
    except OSError as error:
        why = f"cannot be written: {error.strerror}; {_NOTHING_IS_LOST}"
        raise refused(path, why, field) from error


def refused(path: Path, why: str, field: str = "journal") -> InvalidInviteError:
    """Return the error that says what is wrong with a file."""
    return InvalidInviteError(f"{path} {why}", field=field)
