"""The file to which signed events are written as they come: each once, and whole, whatever happens.

The journal records how many bytes of it are right, in the transaction that records the events. What
is beyond was left by a kill, and is cut off before more is written.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from invite_client.journal.file import (
    as_written,
    explained,
    refused,
    storable,
    transaction,
)
from invite_client.spec.invites import SignedInvite

__all__ = ["Output", "out_of_date", "signed_line"]


def signed_line(signed: SignedInvite) -> dict[str, Any]:
    """Return what stands in an output file for an invite that was signed."""
    invite = signed.invite
    return _line(invite.event_id, str(invite.destination), signed.endpoint, signed.event)


def _line(event_id: str, destination: str, endpoint: str, event: Any) -> dict[str, Any]:
    return {"event_id": event_id, "destination": destination, "endpoint": endpoint, "event": event}


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def out_of_date(database: sqlite3.Connection) -> None:
    """Note that the file lacks events, for they went elsewhere: whoever opens it writes it anew."""
    database.execute("UPDATE output SET size = NULL")


class Output:
    """An output file, open for one run."""

    def __init__(self, path: Path) -> None:
        """Open the file. A pipe that nobody reads yet makes one wait for its reader.

        Raises `InvalidInviteError` if it cannot be written.
        """
        self._path = path.absolute()
        self._name = storable(str(self._path))
        self._regular = False
        try:
            self._file = self._path.open("ab")
        except OSError as error:
            why = f"cannot be written: {error.strerror}"
            raise refused(self._path, why, "output") from error

    def catch_up(self, database: sqlite3.Connection) -> None:
        """Cut off what a kill has left, and write what the file lacks.

        Raises `InvalidInviteError` if the file is not one that was written with this journal. What
        is wrong with the journal is raised as it is: it is not this file that has to be mended.
        """
        known = database.execute("SELECT path, size FROM output").fetchone()
        ours = known is not None and known[0] == self._name
        with explained(self._path, "output"):
            status = os.fstat(self._file.fileno())
            self._regular = stat.S_ISREG(status.st_mode)
            if not self._regular:
                return  # What has gone into a pipe or a device is gone.
            if status.st_size and not ours:
                raise refused(self._path, "is there already, and not from this journal", "output")
            size = known[1] if ours else None
            if size is not None and size <= status.st_size:
                self._file.truncate(size)
                return
        self._write_anew(database)

    def _write_anew(self, database: sqlite3.Connection) -> None:
        with transaction(database):
            database.execute("DELETE FROM output")
            database.execute("INSERT INTO output VALUES (?, NULL)", (self._name,))
        with explained(self._path, "output"):
            self._file.truncate(0)
        signed = database.execute(
            "SELECT event_id, destination, endpoint, signed FROM invites WHERE state = 'signed'"
        )
        for event_id, destination, endpoint, text in signed:
            with as_written():
                event = json.loads(text)
            line = _encoded(_line(event_id, destination, endpoint, event))
            with explained(self._path, "output"):
                self._file.write(line)
        with transaction(database):
            self._note_size(database)

    def write(self, database: sqlite3.Connection, invites: Iterable[SignedInvite]) -> None:
        """Write invites that were signed, within the transaction that records them."""
        with explained(self._path, "output"):
            self._file.write(b"".join(_encoded(signed_line(signed)) for signed in invites))
        self._note_size(database)

    def _note_size(self, database: sqlite3.Connection) -> None:
        size = None
        with explained(self._path, "output"):
            self._file.flush()
            if self._regular:
                os.fsync(self._file.fileno())
                size = os.fstat(self._file.fileno()).st_size
        if size is None:
            out_of_date(database)
        else:
            database.execute("UPDATE output SET size = ?", (size,))

    def close(self) -> None:
        """Close the file."""
        with explained(self._path, "output"):
            self._file.close()
