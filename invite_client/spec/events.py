"""Redaction, hashes, event IDs and sizes of PDUs.

Server-Server API § Signing Events, § PDUs; § Redactions and § Event IDs of each room version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

from invite_client.errors import InvalidInviteError
from invite_client.spec import canonical_json
from invite_client.spec.base64 import encode_unpadded
from invite_client.spec.canonical_json import CanonicalJsonError
from invite_client.spec.room_versions import EventIdFormat, RoomVersion

__all__ = [
    "MAX_EVENT_BYTES",
    "MAX_ID_BYTES",
    "Event",
    "check_limits",
    "check_size",
    "content_hash",
    "event_id",
    "redact",
    "reference_hash",
    "signing_bytes",
]

Event: TypeAlias = dict[str, Any]

MAX_EVENT_BYTES = 65_536
"""Client-Server API § Size limits: the complete event, "formatted as a PDU", in canonical JSON."""
MAX_ID_BYTES = 255
"""Client-Server API § Size limits: `sender`, `room_id`, `state_key`, `type` and `event_id`."""

_LIMITED = ("sender", "room_id", "state_key", "type", "event_id")


def redact(event: Mapping[str, Any], version: RoomVersion) -> Event:
    """Return what redaction leaves of an event; a new object that shares its values."""
    rules = version.redaction
    redacted = {key: value for key, value in event.items() if key in rules.keys}
    kind, content = event.get("type"), event.get("content")
    if not isinstance(kind, str) or kind not in rules.whole_content:
        redacted["content"] = _redact_content(kind, content, version)
    return redacted


def _redact_content(kind: object, content: object, version: RoomVersion) -> dict[str, Any]:
    if not isinstance(content, Mapping) or not isinstance(kind, str):
        return {}
    rules = version.redaction
    kept = rules.content.get(kind, frozenset())
    redacted = {key: value for key, value in content.items() if key in kept}
    if kind in rules.nested:
        outer, inner = rules.nested[kind]
        nested = content.get(outer)
        if isinstance(nested, Mapping):
            # An object of which nothing stays, stays as an empty one. The specification leaves
            # that open; Synapse does so, and it decides about the event's ID.
            redacted[outer] = {key: value for key, value in nested.items() if key == inner}
    return redacted


def content_hash(event: Mapping[str, Any], version: RoomVersion, *, checked: bool = False) -> str:
    """§ Calculating the content hash for an event, in unpadded base64.

    Here and below, an event that is `checked` is known to be JSON: see `canonical_json.encode`.
    """
    hashed = {k: v for k, v in event.items() if k not in ("unsigned", "signatures", "hashes")}
    encoded = canonical_json.encode(hashed, strict=version.strict_canonical_json, checked=checked)
    return encode_unpadded(hashlib.sha256(encoded).digest())


def signing_bytes(
    event: Mapping[str, Any], version: RoomVersion, *, checked: bool = False
) -> bytes:
    """Return what every server signs: the redacted event without `signatures` and `unsigned`."""
    redacted = redact(event, version)
    redacted.pop("signatures", None)
    return canonical_json.encode(redacted, strict=version.strict_canonical_json, checked=checked)


def reference_hash(
    event: Mapping[str, Any], version: RoomVersion, *, signing: bytes | None = None
) -> bytes:
    """§ Calculating the reference hash for an event: 32 bytes.

    Here and below, `signing` are the `signing_bytes` of the event, where they are made already.
    """
    # Its steps 1 to 3 yield the very bytes that are signed.
    return hashlib.sha256(signing_bytes(event, version) if signing is None else signing).digest()


def event_id(
    event: Mapping[str, Any], version: RoomVersion, *, signing: bytes | None = None
) -> str:
    """Return the event's ID as its room version defines it (§ Event IDs)."""
    if version.event_id_format is EventIdFormat.IN_EVENT:
        return str(event["event_id"])
    url_safe = version.event_id_format is EventIdFormat.REFERENCE_HASH_URL_SAFE
    return "$" + encode_unpadded(reference_hash(event, version, signing=signing), url_safe=url_safe)


def check_size(event: Mapping[str, Any], version: RoomVersion, *, field: str = "event") -> None:
    """Raise `InvalidInviteError` if the event, or an ID in it, is over the limit, or is not JSON."""
    try:
        size = len(canonical_json.encode(dict(event), strict=version.strict_canonical_json))
    except CanonicalJsonError as error:
        raise InvalidInviteError(f"is not canonical JSON: {error}", field=field) from None
    check_limits(event, size, field=field)


def check_limits(event: Mapping[str, Any], size: int, *, field: str = "event") -> None:
    """Raise `InvalidInviteError` if the event, of `size` bytes, or an ID in it, is over the limit."""
    if size > MAX_EVENT_BYTES:
        raise InvalidInviteError(f"has {size} bytes, {MAX_EVENT_BYTES} are allowed", field=field)
    for name in _LIMITED:
        value = event.get(name)
        if isinstance(value, str) and (size := len(value.encode())) > MAX_ID_BYTES:
            raise InvalidInviteError(
                f"has {size} bytes, {MAX_ID_BYTES} are allowed", field=f"{field}.{name}"
            )
