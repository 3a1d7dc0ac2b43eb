"""Reading and writing a signing key file, in the one-line format that homeservers keep.

    ed25519 a_1 <unpadded base64 of the 32-byte seed>

No error ever shows what is in the file.
"""

from __future__ import annotations

import os
from pathlib import Path

from invite_client.errors import InvalidInviteError
from invite_client.spec.signatures import SigningKey

__all__ = ["parse_signing_key", "read_signing_key", "write_signing_key"]

_FIELD = "signing key"
_MAX_BYTES = 64 * 1024
"""A key has 60 bytes, and there may be remarks; /dev/zero has no end."""
_FORM = "expected: ed25519 <version> <unpadded base64 seed>"


def read_signing_key(path: str | os.PathLike[str]) -> SigningKey:
    """Return the first key of a file; blank lines and lines that begin with # are passed over.

    Raises `InvalidInviteError` with the path and the line, never with what stands there.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise InvalidInviteError(
                f"{path} is longer than {_MAX_BYTES} bytes; {_FORM}", field=_FIELD
            )
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInviteError(f"{path} is not a text file; {_FORM}", field=_FIELD) from None
    except OSError as error:
        raise InvalidInviteError(f"{path} cannot be read: {error.strerror}", field=_FIELD) from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            return parse_signing_key(line, f"{path}, line {number}")
    raise InvalidInviteError(f"{path} holds no key; {_FORM}", field=_FIELD)


def parse_signing_key(line: str, where: str) -> SigningKey:
    """Return the key of one line. Raises `InvalidInviteError` that says `where`, not what."""
    match line.split():
        case ["ed25519", version, seed]:
            try:
                return SigningKey.from_seed(version, seed)
            except ValueError:
                raise InvalidInviteError(
                    f"{where}: the version or the seed is malformed; {_FORM}", field=_FIELD
                ) from None
        case _:
            raise InvalidInviteError(f"{where} is malformed; {_FORM}", field=_FIELD)


def write_signing_key(path: str | os.PathLike[str], key: SigningKey) -> None:
    """Write a key to a new file that only its owner can read.

    Raises `InvalidInviteError` if the file exists, for the key in it may be in use, or if it cannot
    be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(key.to_line() + "\n")
        except BaseException:
            # A part of a key is none, and would not be overwritten either.
            Path(path).unlink(missing_ok=True)
            raise
    except FileExistsError:
        raise InvalidInviteError(
            f"{path} exists already and is not overwritten", field=_FIELD
        ) from None
    except OSError as error:
        raise InvalidInviteError(
            f"{path} cannot be written: {error.strerror}", field=_FIELD
        ) from None
