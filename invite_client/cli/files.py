"""Files that the command reads and writes. Bad input is named by file and field."""

from __future__ import annotations

import codecs
import errno
import io
import os
import secrets
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from invite_client.cli.checks import check_key_file
from invite_client.errors import InvalidInviteError
from invite_client.spec import canonical_json
from invite_client.spec.invites import Invite
from invite_client.spec.signatures import SigningKey

__all__ = [
    "BadInputError",
    "BadSettingError",
    "FileName",
    "check_own_signature",
    "exists",
    "make_blocking",
    "read_bytes",
    "read_invite",
    "read_json",
    "write_whole",
]

MAX_FILE_BYTES = 16 * 1024 * 1024
"""No request, reply or list of keys has a tenth of it; /dev/zero has more."""


class BadInputError(click.ClickException):
    """What was given to the command is wrong: one line on stderr, nothing was sent."""

    exit_code = 2


class BadSettingError(BadInputError):
    """A setting of a TOML file is wrong. It is named as it is there, and not as an option is."""


class FileName(click.Path):
    """The name of a file, as an argument or an option; with `allow_dash`, ``-`` is no file."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse what nobody means; see `click.ParamType`."""
        if not value:  # a variable of a shell that was not set
            self.fail("expected the name of a file, and it is empty", param, ctx)
        if value == "-" and not self.allow_dash:
            self.fail("expected a file; - is none, and a file of that name is ./-", param, ctx)
        try:
            check_key_file(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


def exists(path: str | Path) -> bool:
    """Whether there is something that one may look at."""
    return os.path.exists(path)  # noqa: PTH110  # a Path raises where one may not look


def read_bytes(path: str) -> bytes:
    """Return the bytes of a file, or of standard input for ``-``. Raises `BadInputError`."""
    try:
        if path == "-":
            if sys.stdin is None:
                raise BadInputError("-: standard input is closed")
            with suppress(io.UnsupportedOperation):
                make_blocking(sys.stdin.fileno())
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise BadInputError(f"{path} is longer than {MAX_FILE_BYTES} bytes")
    return data


def make_blocking(descriptor: int) -> None:
    """Let whoever reads wait: who has started us may have left standard input in another state."""
    if os.name == "posix":
        os.set_blocking(descriptor, True)


def read_json(path: str) -> Any:
    """Return the value of a JSON file. Raises `BadInputError` with line and column."""
    # Some editors put it there, and RFC 8259 § 8.1 lets a reader pass it over.
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    if not data.strip():
        raise BadInputError(f"{path} is empty; expected JSON")
    try:
        # Not strict: which numbers are allowed depends on the version of the room.
        return canonical_json.decode(data, strict=False)
    except canonical_json.CanonicalJsonError as error:
        raise BadInputError(f"{path} is not JSON: {error}") from None


def read_invite(path: str, signing_key: SigningKey | None = None) -> Invite:
    """Return the invite of a file with a v2 request body; signed anew if a key is given.

    Raises `BadInputError` that names the file and the field.
    """
    try:
        return Invite.from_request(read_json(path), signing_key)
    except InvalidInviteError as error:
        raise BadInputError(f"{path}: {error.message}") from None


def write_whole(path: str, data: bytes) -> None:
    """Write a file so that it holds all of `data`, or what was there before. Raises `OSError`.

    A link is followed; a file that is there keeps its owner and its mode. What cannot be exchanged
    for another file is written into: a pipe, a device, our own standard output, and a file whose
    owner or folder does not let us.
    """
    try:
        before = os.stat(path)  # noqa: PTH116  # /dev/stdout is a link to what has no path
    except FileNotFoundError:
        before = None
    if before is None or _may_be_exchanged(before):
        try:
            _exchange(Path(os.path.realpath(path)), before, data)
        except OSError as error:
            if error.errno not in _NOT_EXCHANGED:
                raise
        else:
            return
    Path(path).write_bytes(data)


_NOT_EXCHANGED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)
"""Nothing new is allowed there; or the file is mounted by itself, as in containers."""


def _may_be_exchanged(status: os.stat_result) -> bool:
    streams = [os.fstat(one.fileno()) for one in (sys.__stdout__, sys.__stderr__) if one]
    return stat.S_ISREG(status.st_mode) and not any(
        os.path.samestat(status, stream) for stream in streams
    )


def _exchange(path: Path, before: os.stat_result | None, data: bytes) -> None:
    beside = path.with_name(f".{secrets.token_hex(8)}.tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                if os.name == "posix":
                    os.fchown(descriptor, before.st_uid, before.st_gid)
                shutil.copystat(path, beside)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def check_own_signature(invite: Invite, server_name: str, key: SigningKey) -> None:
    """Refuse an event that our key has not signed: other servers would refuse it too.

    Raises `InvalidInviteError`.
    """
    if str(invite.origin) != server_name:
        raise InvalidInviteError(
            f"{invite.sender} is a user of {invite.origin}, but --server-name is {server_name}",
            field="event.sender",
        )
    signatures = invite.event["signatures"][server_name]
    if key.key_id not in signatures:
        raise InvalidInviteError(
            f"{server_name} has signed with {', '.join(signatures)}, but the signing key is "
            f"{key.key_id}; give the key that signed, or sign anew with --sign",
            field="event.signatures",
        )
    if not key.verify_key.verifies(invite.signing_json, signatures[key.key_id]):
        raise InvalidInviteError(
            f"the signature with {key.key_id} is not one of this event by the signing key; "
            "sign anew with --sign",
            field="event.signatures",
        )
