"""What is checked of a setting, whichever file or option it comes from."""

from __future__ import annotations

import ssl

from invite_client.errors import InvalidInviteError
from invite_client.policy import Notary
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.signatures import VerifyKey

__all__ = ["check_ca_file", "check_key_file", "check_path", "check_server_name", "make_notary"]


def check_ca_file(path: str) -> None:
    """Raise `ValueError` unless these are certificate authorities: now, not in mid-invite."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ValueError(f"{path} is not a PEM file of certificates") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def check_key_file(path: str) -> None:
    """Raise `ValueError` if this is the key itself: it would be shown, as a file that is missing."""
    if path.split()[:1] == ["ed25519"]:
        raise ValueError("expected the name of a file, not the key itself")


def check_path(path: str) -> None:
    """Raise `ValueError` if no file can have this name: a configuration may say anything."""
    if "\0" in path:
        raise ValueError("holds a NUL character, which is in no file's name")


def check_server_name(text: str) -> None:
    """Raise `ValueError` unless the name is in the grammar."""
    try:
        parse_server_name(text)
    except InvalidInviteError as error:
        raise ValueError(error.message.removeprefix("server name: ")) from None


def make_notary(server_name: object, verify_keys: object) -> Notary:
    """Return a notary whose name and keys are in the grammar. Raises `ValueError`."""
    if not isinstance(server_name, str):
        raise ValueError("has no server_name")  # noqa: TRY004  # a value, in a file
    check_server_name(server_name)
    if not isinstance(verify_keys, dict):
        raise ValueError("verify_keys is not a mapping of key IDs to keys")  # noqa: TRY004
    for key_id, key in verify_keys.items():
        VerifyKey.from_base64(str(key_id), str(key))
    return Notary(server_name, verify_keys)
