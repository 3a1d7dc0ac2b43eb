"""Appendices § Signing JSON, § Checking for a signature; the only caller of signedjson and PyNaCl."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Self

import nacl.exceptions
import nacl.signing
import signedjson.key
import signedjson.sign

from invite_client.spec import canonical_json, events
from invite_client.spec.base64 import decode_base64, encode_unpadded
from invite_client.spec.canonical_json import CanonicalJsonError
from invite_client.spec.events import Event
from invite_client.spec.room_versions import RoomVersion

__all__ = [
    "SigningKey",
    "VerifyKey",
    "json_is_signed",
    "sign_event",
    "sign_json",
]

_KEY_ID = re.compile(r"ed25519:[A-Za-z0-9_]+")
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64  # RFC 8032 § 5.1.5, § 5.1.6


class VerifyKey:
    """An ed25519 public key with its ID. Immutable; equal if ID and key are equal."""

    __slots__ = ("_key", "base64", "key_id")

    key_id: str
    """``ed25519:`` and the version."""
    base64: str
    """The public key in unpadded base64."""

    def __init__(self, key_id: str, key: nacl.signing.VerifyKey) -> None:
        self.key_id = key_id
        self.base64 = encode_unpadded(bytes(key))
        self._key = key

    @classmethod
    def from_base64(cls, key_id: str, text: str) -> Self:
        """Read a published key. Raises `ValueError` for an ID or a key that is not in the grammar."""
        if not _KEY_ID.fullmatch(key_id):
            raise ValueError(f"{key_id!r:.50} is not a key ID of the form ed25519:version")
        raw = decode_base64(text)
        if len(raw) != _KEY_BYTES:
            raise ValueError(f"an ed25519 key has {_KEY_BYTES} bytes, not {len(raw)}")
        return cls(key_id, nacl.signing.VerifyKey(raw))

    def verifies(self, data: bytes, signature: object) -> bool:
        """Whether `signature` (base64) is one of `data` by this key. Never raises."""
        if not isinstance(signature, str):
            return False
        try:
            raw = decode_base64(signature)
            if len(raw) != _SIGNATURE_BYTES:
                return False
            self._key.verify(data, raw)
        except (ValueError, nacl.exceptions.CryptoError):
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifyKey) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return f"{self.key_id} {self.base64}"

    def __repr__(self) -> str:
        return f"<VerifyKey {self}>"


class SigningKey:
    """An ed25519 key pair with its ID. Its text shows the ID only, never the secret."""

    __slots__ = ("_key", "key_id", "verify_key")

    key_id: str
    """``ed25519:`` and the version."""
    verify_key: VerifyKey
    """The public half."""

    def __init__(self, version: str, key: nacl.signing.SigningKey) -> None:
        self.key_id = f"ed25519:{version}"
        if not _KEY_ID.fullmatch(self.key_id):
            raise ValueError(f"{version!r:.50} is not a key version; expected letters, digits, _")
        self._key = key
        self.verify_key = VerifyKey(self.key_id, key.verify_key)

    @classmethod
    def generate(cls, version: str) -> Self:
        """Make a new key pair."""
        return cls(version, nacl.signing.SigningKey.generate())

    @classmethod
    def from_seed(cls, version: str, seed: str) -> Self:
        """Read a key pair from its 32-byte seed in base64. Raises `ValueError` without the seed."""
        try:
            key = signedjson.key.decode_signing_key_base64("ed25519", version, seed)
            return cls(version, nacl.signing.SigningKey(bytes(key)))  # type: ignore[call-overload]
        except Exception:  # noqa: BLE001  # a library's words could quote the seed
            raise ValueError("not the unpadded base64 of a 32-byte ed25519 seed") from None

    def sign(self, data: bytes) -> str:
        """Return the signature of `data` in unpadded base64."""
        return encode_unpadded(self._key.sign(data).signature)

    def to_line(self) -> str:
        """Return the line of a signing key file, secret included: ``ed25519 a_1 <base64 seed>``."""
        return f"ed25519 {self.key_id.removeprefix('ed25519:')} {encode_unpadded(bytes(self._key))}"

    def __repr__(self) -> str:
        return f"<SigningKey {self.key_id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a signing key is not pickled, lest it be stored where nobody expects it")


def sign_json(obj: Mapping[str, Any], server_name: str, key: SigningKey) -> dict[str, Any]:
    """§ Signing JSON: return a copy of the object with one more signature."""
    signed = {k: v for k, v in obj.items() if k not in ("signatures", "unsigned")}
    signature = key.sign(canonical_json.encode(signed))
    signatures = dict(obj.get("signatures", {}))
    signatures[server_name] = {**signatures.get(server_name, {}), key.key_id: signature}
    return {**obj, "signatures": signatures}


def json_is_signed(obj: Mapping[str, Any], server_name: str, key: VerifyKey) -> bool:
    """§ Checking for a signature: whether the object is signed with this key. Never raises."""
    try:
        # signedjson takes any Python value for JSON; what is not canonical is not signed.
        canonical_json.encode({k: v for k, v in obj.items() if k not in ("signatures", "unsigned")})
        public = signedjson.key.decode_verify_key_bytes(key.key_id, decode_base64(key.base64))
        signedjson.sign.verify_signed_json(dict(obj), server_name, public)
    except (signedjson.sign.SignatureVerifyException, CanonicalJsonError, TypeError, AttributeError):
        return False
    return True


def sign_event(
    event: Mapping[str, Any], server_name: str, key: SigningKey, version: RoomVersion
) -> Event:
    """§ Adding hashes and signatures to outgoing events: return a hashed and signed copy.

    Raises `CanonicalJsonError` if the event is not JSON.
    """
    hashed = {**event, "hashes": {"sha256": events.content_hash(event, version)}}
    signature = key.sign(events.signing_bytes(hashed, version))
    signatures = dict(hashed.get("signatures", {}))
    signatures[server_name] = {**signatures.get(server_name, {}), key.key_id: signature}
    return {**hashed, "signatures": signatures}
