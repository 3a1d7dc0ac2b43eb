"""What `invite-client bulk` reads: requests, or users, a line each; never more of it than needed."""

from __future__ import annotations

import asyncio
import codecs
import csv
import errno
import io
import os
import stat
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Protocol

from invite_client.cli.files import (
    MAX_FILE_BYTES,
    BadInputError,
    check_own_signature,
    make_blocking,
    read_json,
)
from invite_client.errors import InvalidInviteError, InviteError
from invite_client.journal import Journal
from invite_client.spec import canonical_json
from invite_client.spec.invites import Invite, Room
from invite_client.spec.quoting import quoted
from invite_client.spec.server_names import server_of
from invite_client.spec.signatures import SigningKey

__all__ = ["Lines", "Maker", "Requests", "Users", "read_room"]

_CHUNK = 256 * 1024
"""Bytes that are read at once: some 50 requests, or some 5,000 users."""
_TOGETHER = 100
"""Lines that become invites at once: each of them has some 25 KiB."""
_IN_A_ROW = 5
"""Invites that are made before others get their turn: each takes about a millisecond."""
_CONTENT = ("displayname", "avatar_url", "reason")
"""Columns that go into the event, beside `user_id`."""

Numbered = list[tuple[int, bytes | None]]


class Lines:
    """The lines of a file, or of standard input for ``-``, with their numbers."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises `BadInputError`."""
        self.name = path
        self.size: int | None = None
        """Bytes of the file, where that is known."""
        self.read = 0
        """Bytes that have been read."""
        self._opened: int | None = None
        try:
            self._read = self._open(path)
        except OSError as error:
            self.close()
            raise BadInputError(f"{path} cannot be read: {error.strerror}") from None

    def _open(self, path: str) -> Callable[[], bytes]:
        if path != "-":
            descriptor = self._opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        elif sys.stdin is None:
            raise BadInputError("-: standard input is closed")
        else:
            try:
                descriptor = sys.stdin.fileno()
            except io.UnsupportedOperation:
                return lambda: sys.stdin.buffer.read(_CHUNK)
            make_blocking(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if stat.S_ISREG(status.st_mode):
            self.size = status.st_size
        return lambda: os.read(descriptor, _CHUNK)

    def close(self) -> None:
        """Close the file."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    async def batches(self) -> AsyncGenerator[Numbered, None]:
        """Yield the lines as they come, some at a time; None for one that is too long to be one.

        Raises `BadInputError` that says how far it came.
        """
        number, rest, too_long = 0, b"", False
        while chunk := await self._chunk(number):
            self.read += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            if whole and not number:
                whole[0] = whole[0].removeprefix(codecs.BOM_UTF8)
            batch: Numbered = []
            for line in whole:
                number += 1
                batch.append((number, None if too_long else line))
                too_long = False
            if len(rest) > MAX_FILE_BYTES:
                rest, too_long = b"", True
            for start in range(0, len(batch), _TOGETHER):
                yield batch[start : start + _TOGETHER]
        if not number:
            rest = rest.removeprefix(codecs.BOM_UTF8)
        if rest or too_long:
            yield [(number + 1, None if too_long else rest)]

    async def _chunk(self, number: int) -> bytes:
        try:
            return await _in_a_thread(self._read)
        except OSError as error:
            beyond = f" beyond line {number}" if number else ""
            raise BadInputError(f"{self.name} cannot be read{beyond}: {error.strerror}") from None


async def _in_a_thread(read: Callable[[], bytes]) -> bytes:
    """Read without holding up the loop: a pipe may have nothing to say for hours.

    A daemon thread for each, because one that waits for standard input could not be ended.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[bytes] = loop.create_future()

    def settle(data: bytes, error: OSError | None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(data)
        else:
            result.set_exception(error)

    def work() -> None:
        data, failure = b"", None
        try:
            data = read()
        except OSError as error:
            failure = error
        with suppress(RuntimeError):  # Nobody waits any more, and the loop is closed.
            loop.call_soon_threadsafe(settle, data, failure)

    threading.Thread(target=work, daemon=True).start()
    return await result


class Maker(Protocol):
    """Makes invites of lines."""

    async def make(
        self, batch: Numbered, journal: Journal, /
    ) -> tuple[list[tuple[int, Invite | InviteError]], int]:
        """Return an invite for each line, or what is wrong with it; and how many are known already."""
        ...


class Requests:
    """Makes invites of lines that are bodies of v2 requests."""

    def __init__(self, server_name: str, key: SigningKey, *, sign: bool) -> None:
        """Take events that `key` has signed for `server_name`; with `sign`, sign them first."""
        self._server_name = server_name
        self._key = key
        self._sign = sign

    async def make(
        self, batch: Numbered, _: Journal
    ) -> tuple[list[tuple[int, Invite | InviteError]], int]:
        """Return an invite for each line that is not blank, or what is wrong with it."""
        made: list[tuple[int, Invite | InviteError]] = []
        for number, line in batch:
            if line is None or line.strip():
                made.append((number, self._invite(line)))
                if not len(made) % _IN_A_ROW:
                    await asyncio.sleep(0)
        return made, 0

    def _invite(self, line: bytes | None) -> Invite | InviteError:
        if line is None:
            return _too_long()
        try:
            body = canonical_json.decode(line, strict=False)
        except canonical_json.CanonicalJsonError as error:
            why = str(error).replace(" at line 1, column", " at column")
            return InvalidInviteError(f"is not JSON: {why}", field="line")
        try:
            invite = Invite.from_request(body, self._key if self._sign else None)
            check_own_signature(invite, self._server_name, self._key)
        except InvalidInviteError as error:
            return error
        return invite


class Users:
    """Makes invites to one room of lines that name users: plain, or comma-separated with a header."""

    def __init__(self, room: Room, key: SigningKey, *, csv: bool) -> None:
        """Invite to `room`, and sign with `key`."""
        self._room = room
        self._key = key
        self._columns: list[str] | None = None if csv else ["user_id"]
        self._csv = csv

    async def make(
        self, batch: Numbered, journal: Journal
    ) -> tuple[list[tuple[int, Invite | InviteError]], int]:
        """Return an invite for each user who has none to this room, or what is wrong with the line."""
        users: dict[str, tuple[int, dict[str, str]]] = {}
        made: list[tuple[int, Invite | InviteError]] = []
        given = 0
        for number, line in batch:
            try:
                fields = self._fields(line)
            except InvalidInviteError as error:
                made.append((number, error))
                continue
            if fields is not None:
                given += 1
                users.setdefault(fields.pop("user_id"), (number, fields))
        known = await journal.invited(self._room.room_id, users)
        for user, (number, content) in users.items():
            if user not in known:
                made.append((number, self._invite(user, content)))
                if not len(made) % _IN_A_ROW:
                    await asyncio.sleep(0)
        return made, given - len(users) + len(known)

    def _fields(self, line: bytes | None) -> dict[str, str] | None:
        """Return what a line says of a user; None if it is about none."""
        if line is None:
            raise _too_long()
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            raise InvalidInviteError(f"is not UTF-8 at byte {error.start}", field="line") from None
        if not text or (not self._csv and text.startswith("#")):
            return None
        if not self._csv:
            return {"user_id": text}
        try:
            [values] = csv.reader([text], strict=True)
        except (csv.Error, ValueError) as error:
            raise InvalidInviteError(f"is not comma-separated: {error}", field="line") from None
        values = [value.strip() for value in values]
        if self._columns is None:
            if "user_id" not in values:
                raise BadInputError(
                    f"the first line of the users is {quoted(', '.join(values))}; expected the names "
                    f"of the columns: user_id and, if wanted, {', '.join(_CONTENT)}"
                )
            twice = [name for name in ("user_id", *_CONTENT) if values.count(name) > 1]
            if twice:
                raise BadInputError(f"the first line of the users names {twice[0]} twice")
            self._columns = values
            return None
        if any(values[len(self._columns) :]):
            # A comma within a text that is not quoted: whoever reads it would miss half of it.
            raise InvalidInviteError(
                f"has {len(values)} values for {len(self._columns)} columns; a value with a comma "
                'in it stands in "quotation marks"',
                field="line",
            )
        fields = dict(zip(self._columns, values, strict=False))
        if not fields.get("user_id"):
            raise InvalidInviteError("is missing", field="user_id")
        return {name: value for name, value in fields.items() if name in ("user_id", *_CONTENT)}

    def _invite(self, user: str, content: dict[str, str]) -> Invite | InviteError:
        try:
            return Invite.build(
                self._room,
                user,
                self._key,
                content={name: value for name, value in content.items() if value},
            )
        except InvalidInviteError as error:
            return error


def read_room(path: str, server_name: str) -> Room:
    """Read the snapshot of a room of ours. Raises `BadInputError`."""
    value: Any = read_json(path)
    try:
        room = Room.from_json(value)
        origin = str(server_of(room.sender, field="room.sender"))
    except InvalidInviteError as error:
        raise BadInputError(f"{path}: {error.message}") from None
    if origin != server_name:
        raise BadInputError(
            f"{path}: room.sender: {room.sender} is a user of {origin}, but --server-name is "
            f"{server_name}"
        )
    return room


def _too_long() -> InvalidInviteError:
    return InvalidInviteError(f"is longer than {MAX_FILE_BYTES} bytes", field="line")
