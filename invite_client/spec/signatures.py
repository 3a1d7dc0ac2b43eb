"""Appendices § Signing JSON, § Checking for a signature; the only caller of signedjson and PyNaCl.

signedjson is older than strict canonical JSON: it takes any Python value for JSON, and any
characters for base64. So everything passes a gate of ours before it gets there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import nacl.bindings
import nacl.exceptions
import signedjson.key
import signedjson.sign
import signedjson.types

from invite_client.spec import canonical_json, events
from invite_client.spec.base64 import decode_base64, encode_unpadded
from invite_client.spec.canonical_json import CanonicalJsonError
from invite_client.spec.events import Event
from invite_client.spec.room_versions import RoomVersion

__all__ = [
    "SigningKey",
    "VerifyKey",
    "is_key_id",
    "json_is_signed",
    "missing_signatures",
    "sign_event",
    "sign_json",
    "verified_bytes",
]

_ALGORITHM = "ed25519"
_KEY_ID = re.compile(r"ed25519:[A-Za-z0-9_]+")
_KEY_BYTES, _SIGNATURE_BYTES = 32, 64  # RFC 8032 § 5.1.5, § 5.1.6


def is_key_id(text: str) -> bool:
    """Whether this is the ID of a key of the one algorithm there is, in the grammar."""
    return _KEY_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """An ed25519 public key with its ID. Equal if ID and key are equal."""

    key_id: str
    """``ed25519:`` and the version."""
    base64: str
    """The public key in unpadded base64."""
    _raw: bytes = field(repr=False, compare=False)

    @classmethod
    def from_base64(cls, key_id: str, text: str) -> Self:
        """Read a published key. Raises `ValueError` for an ID or a key that is not in the grammar."""
        if not is_key_id(key_id):
            raise ValueError(f"{key_id!r:.50} is not a key ID of the form ed25519:version")
        raw = decode_base64(text)
        if len(raw) != _KEY_BYTES:
            raise ValueError(f"an ed25519 key has {_KEY_BYTES} bytes, not {len(raw)}")
        return cls._of(signedjson.key.decode_verify_key_bytes(key_id, raw))

    @classmethod
    def _of(cls, key: signedjson.types.VerifyKey) -> Self:
        text = signedjson.key.encode_verify_key_base64(key)
        return cls(f"{key.alg}:{key.version}", text, bytes(key))

    def verifies(self, data: bytes, signature: object) -> bool:
        """Whether `signature` (base64) is one of `data` by this key. Never raises."""
        return verified_bytes(self, data, signature) is not None

    def __str__(self) -> str:
        return f"{self.key_id} {self.base64}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SigningKey:
    """An ed25519 key pair with its ID. Its text shows the ID only, never the secret."""

    key_id: str
    """``ed25519:`` and the version."""
    verify_key: VerifyKey
    """The public half."""
    _key: signedjson.types.SigningKey
    _secret: bytes
    """Seed and public key, as RFC 8032 § 5.1.5 and libsodium have it."""

    @classmethod
    def generate(cls, version: str) -> Self:
        """Make a new key pair. Raises `ValueError` for a version that is not in the grammar."""
        _check_version(version)
        return cls._of(signedjson.key.generate_signing_key(version))

    @classmethod
    def from_seed(cls, version: str, seed: str) -> Self:
        """Read a key pair from its 32-byte seed in base64. Raises `ValueError` without the seed."""
        _check_version(version)
        try:
            raw = decode_base64(seed)
        except ValueError:
            raw = b""
        if len(raw) != _KEY_BYTES:
            raise ValueError(f"not the base64 of a {_KEY_BYTES}-byte ed25519 seed")
        return cls._of(
            signedjson.key.decode_signing_key_base64(_ALGORITHM, version, encode_unpadded(raw))
        )

    @classmethod
    def _of(cls, key: signedjson.types.SigningKey) -> Self:
        public = VerifyKey._of(signedjson.key.get_verify_key(key))  # noqa: SLF001
        return cls(public.key_id, public, key, key.encode() + key.verify_key.encode())

    def sign(self, data: bytes) -> str:
        """Return the signature of `data` in unpadded base64."""
        # Without a copy of `data` behind the signature, as `nacl.signing` returns it.
        signed = nacl.bindings.crypto_sign(data, self._secret)
        return encode_unpadded(signed[:_SIGNATURE_BYTES])

    def to_line(self) -> str:
        """Return the line of a signing key file, secret included: ``ed25519 a_1 <base64 seed>``."""
        seed = signedjson.key.encode_signing_key_base64(self._key)
        return f"{self._key.alg} {self._key.version} {seed}"

    def __repr__(self) -> str:
        return f"<SigningKey {self.key_id}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a signing key is not pickled, lest it be stored where nobody expects it")


def sign_json(obj: Mapping[str, Any], server_name: str, key: SigningKey) -> dict[str, Any]:
    """§ Signing JSON: return a copy of the object with one more signature.

    Raises `CanonicalJsonError` if the object is not canonical JSON.
    """
    return _sign(obj, server_name, key, strict=True)


def sign_event(
    event: Mapping[str, Any], server_name: str, key: SigningKey, version: RoomVersion
) -> Event:
    """§ Adding hashes and signatures to outgoing events: return a hashed and signed copy.

    Raises `CanonicalJsonError` if the event is not JSON.
    """
    hashed = {**event, "hashes": {"sha256": events.content_hash(event, version)}}
    redacted = events.redact(hashed, version)
    signed = _sign(redacted, server_name, key, strict=version.strict_canonical_json)
    # "The signature is then copied back to the original event object."
    return {**hashed, "signatures": signed["signatures"]}


def verified_bytes(key: VerifyKey, data: bytes, signature: object) -> bytes | None:
    """Return the 64 bytes of `signature` (base64) if it is one of `data` by the key. Never raises."""
    raw = _signature_bytes(signature)
    if raw is None:
        return None
    try:
        # What `nacl.signing` does, without what it makes of it.
        nacl.bindings.crypto_sign_open(raw + data, key._raw)  # noqa: SLF001
    except nacl.exceptions.BadSignatureError:
        return None
    return raw


def json_is_signed(obj: Mapping[str, Any], server_name: str, key: VerifyKey) -> bool:
    """§ Checking for a signature: whether the object is signed with this key. Never raises."""
    return not missing_signatures(obj, server_name, [key])


def missing_signatures(
    obj: Mapping[str, Any], server_name: str, keys: Collection[VerifyKey]
) -> list[str]:
    """Return the IDs of those of the keys with which the object is not signed. Never raises."""
    try:
        signatures = obj["signatures"][server_name]
        # Once for all keys: whoever sent the object chooses its size and how many keys there are.
        signed = canonical_json.encode(_signed_part(obj))
    # The last two are what we meet in an object of an unexpected shape.
    except (CanonicalJsonError, LookupError, TypeError):
        signed, signatures = b"", None
    if not isinstance(signatures, Mapping):
        return [key.key_id for key in keys]
    return [key.key_id for key in keys if not key.verifies(signed, signatures.get(key.key_id))]


def _sign(
    obj: Mapping[str, Any], server_name: str, key: SigningKey, *, strict: bool
) -> dict[str, Any]:
    canonical_json.encode(_signed_part(obj), strict=strict)
    signatures = dict(obj.get("signatures", {}))
    # signedjson changes what it is given: the object, and our own entry in its signatures.
    signatures[server_name] = dict(signatures.get(server_name, {}))
    return signedjson.sign.sign_json({**obj, "signatures": signatures}, server_name, key._key)  # noqa: SLF001


def _signed_part(obj: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in obj.items() if name not in ("signatures", "unsigned")}


def _signature_bytes(signature: object) -> bytes | None:
    try:
        raw = decode_base64(signature) if isinstance(signature, str) else b""
    except ValueError:
        return None
    return raw if len(raw) == _SIGNATURE_BYTES else None


def _check_version(version: str) -> None:
    if not is_key_id(f"{_ALGORITHM}:{version}"):
        raise ValueError(f"{version!r:.50} is not a key version; expected letters, digits, _")
