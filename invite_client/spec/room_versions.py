"""§ Room versions: each is a value that says how it differs from the one before.

To support room version 13 is to add a row here, and its redaction rules if they change.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from invite_client.errors import InvalidInviteError
from invite_client.spec.quoting import quoted

__all__ = [
    "ROOM_VERSIONS",
    "V1",
    "V2",
    "V3",
    "V4",
    "V5",
    "V6",
    "V7",
    "V8",
    "V9",
    "V10",
    "V11",
    "V12",
    "EventIdFormat",
    "Redaction",
    "RoomVersion",
    "room_version",
]


class EventIdFormat(enum.Enum):
    """Where an event's ID comes from."""

    IN_EVENT = "event_id"
    """The event names it: ``$opaque:server``."""
    REFERENCE_HASH = "base64"
    """``$`` and the reference hash in unpadded base64."""
    REFERENCE_HASH_URL_SAFE = "url-safe base64"
    """``$`` and the reference hash in URL-safe unpadded base64."""


@dataclass(frozen=True, slots=True)
class Redaction:
    """What redaction leaves of an event (§ Redactions of each room version)."""

    keys: frozenset[str]
    """The top-level keys."""
    content: Mapping[str, frozenset[str]]
    """The keys of `content` by event type."""
    whole_content: frozenset[str] = frozenset()
    """Event types whose `content` stays as it is."""
    nested: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By event type, a key of `content` of which only one key stays."""


@dataclass(frozen=True, slots=True)
class RoomVersion:
    """The rules of one room version, as far as an invite meets them."""

    identifier: str
    """``"1"`` to ``"12"``."""
    redaction: Redaction
    """What redaction leaves."""
    event_id_format: EventIdFormat = EventIdFormat.IN_EVENT
    """Where an event's ID comes from; it changed in versions 3 and 4."""
    event_references_have_hashes: bool = True
    """Whether `prev_events` and `auth_events` hold pairs of event ID and hashes; until version 2."""
    v1_invite_fallback: bool = True
    """Whether an invite may be sent by v1: "servers … must assume room version 1 or 2"."""
    enforce_key_validity: bool = False
    """Whether a key must be valid at `origin_server_ts`; since version 5."""
    strict_canonical_json: bool = False
    """Whether numbers must be integers in range; since version 6."""
    room_id_is_create_event_id: bool = False
    """Whether the room ID is the create event's ID, without a domain; since version 12."""
    requires_create_in_invite_state: bool = False
    """Whether `invite_room_state` must hold PDUs and the create event; "SHOULD apply" to all
    versions after 11."""

    def __str__(self) -> str:
        return self.identifier


_MEMBER, _CREATE, _JOIN_RULES = "m.room.member", "m.room.create", "m.room.join_rules"
_POWER_LEVELS, _ALIASES = "m.room.power_levels", "m.room.aliases"
_HISTORY_VISIBILITY, _REDACTION = "m.room.history_visibility", "m.room.redaction"

_REDACTION_V1 = Redaction(
    keys=frozenset(
        {
            "event_id",
            "type",
            "room_id",
            "sender",
            "state_key",
            "content",
            "hashes",
            "signatures",
            "depth",
            "prev_events",
            "prev_state",
            "auth_events",
            "origin",
            "origin_server_ts",
            "membership",
        }
    ),
    content={
        _MEMBER: frozenset({"membership"}),
        _CREATE: frozenset({"creator"}),
        _JOIN_RULES: frozenset({"join_rule"}),
        _POWER_LEVELS: frozenset(
            {
                "ban",
                "events",
                "events_default",
                "kick",
                "redact",
                "state_default",
                "users",
                "users_default",
            }
        ),
        _ALIASES: frozenset({"aliases"}),
        _HISTORY_VISIBILITY: frozenset({"history_visibility"}),
    },
)
_REDACTION_V6 = replace(
    _REDACTION_V1,
    content={kind: keys for kind, keys in _REDACTION_V1.content.items() if kind != _ALIASES},
)
_REDACTION_V8 = replace(
    _REDACTION_V6,
    content={**_REDACTION_V6.content, _JOIN_RULES: frozenset({"join_rule", "allow"})},
)
_REDACTION_V9 = replace(
    _REDACTION_V8,
    content={
        **_REDACTION_V8.content,
        _MEMBER: frozenset({"membership", "join_authorised_via_users_server"}),
    },
)
_REDACTION_V11 = replace(
    _REDACTION_V9,
    keys=_REDACTION_V9.keys - {"prev_state", "origin", "membership"},
    content={
        **_REDACTION_V9.content,
        _POWER_LEVELS: _REDACTION_V9.content[_POWER_LEVELS] | {"invite"},
        _REDACTION: frozenset({"redacts"}),
    },
    whole_content=frozenset({_CREATE}),
    nested={_MEMBER: ("third_party_invite", "signed")},
)

V1 = RoomVersion("1", _REDACTION_V1)
V2 = replace(V1, identifier="2")
V3 = replace(
    V2,
    identifier="3",
    event_id_format=EventIdFormat.REFERENCE_HASH,
    event_references_have_hashes=False,
    v1_invite_fallback=False,
)
V4 = replace(V3, identifier="4", event_id_format=EventIdFormat.REFERENCE_HASH_URL_SAFE)
V5 = replace(V4, identifier="5", enforce_key_validity=True)
V6 = replace(V5, identifier="6", strict_canonical_json=True, redaction=_REDACTION_V6)
V7 = replace(V6, identifier="7")
V8 = replace(V7, identifier="8", redaction=_REDACTION_V8)
V9 = replace(V8, identifier="9", redaction=_REDACTION_V9)
V10 = replace(V9, identifier="10")
V11 = replace(V10, identifier="11", redaction=_REDACTION_V11)
V12 = replace(
    V11,
    identifier="12",
    room_id_is_create_event_id=True,
    requires_create_in_invite_state=True,
)

ROOM_VERSIONS: Mapping[str, RoomVersion] = {
    version.identifier: version for version in (V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12)
}
"""Every stable room version, by identifier."""


def room_version(identifier: object) -> RoomVersion:
    """Return the rules of a room version. Raises `InvalidInviteError` if it is not known."""
    version = ROOM_VERSIONS.get(identifier) if isinstance(identifier, str) else None
    if version is None:
        raise InvalidInviteError(
            f'{quoted(identifier)} is not known; expected a string from "1" to "12"',
            field="room_version",
        )
    return version
