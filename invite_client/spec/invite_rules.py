"""What must hold of an invite event, and of the room state sent with it, before anything is sent.

Each check raises `InvalidInviteError` with the field that is wrong, what was found and what was
expected. § PDUs; § Inviting to a room; the event format of each room version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from invite_client.errors import InvalidInviteError
from invite_client.spec import canonical_json, events
from invite_client.spec.canonical_json import CanonicalJsonError
from invite_client.spec.events import Event
from invite_client.spec.room_versions import EventIdFormat, RoomVersion

__all__ = ["JsonObject", "check_form", "check_hash", "check_room_state", "expect", "own_copy"]

JsonObject: TypeAlias = Mapping[str, Any]


def own_copy(event: object, version: RoomVersion, field: str = "event") -> Event:
    """Encode and decode: what comes out is JSON, is ours, and has no surprises in it."""
    if not isinstance(event, Mapping):
        raise InvalidInviteError("must be a JSON object", field=field)
    strict = version.strict_canonical_json
    try:
        encoded = canonical_json.encode(dict(event), strict=strict)
        copy: Event = canonical_json.decode(encoded, strict=strict)
    except CanonicalJsonError as error:
        raise InvalidInviteError(f"is not canonical JSON: {error}", field=field) from None
    return copy


def expect(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise unless the condition holds, saying what `field` is and what was expected."""
    if not condition:
        shown = "nothing" if value is None else f"{value!r:.100}"
        raise InvalidInviteError(f"is {shown}, expected {expected}", field=field)


def check_form(event: Event, version: RoomVersion) -> None:
    """§ PDUs: the fields that every PDU has, in the form of the room version."""
    for name in ("origin_server_ts", "depth"):
        value = event.get(name)
        expect(type(value) is int and value >= 0, f"event.{name}", value, "a whole number")
    unsigned = event.get("unsigned", {})
    expect(isinstance(unsigned, dict), "event.unsigned", unsigned, "an object")

    room_id = event.get("room_id")
    if version.room_id_is_create_event_id:
        form = "! and the 43 characters of the create event's reference hash"
        right = isinstance(room_id, str) and len(room_id) == 44 and ":" not in room_id
    else:
        form = "!opaque:server"
        right = isinstance(room_id, str) and ":" in room_id
    expect(right and str(room_id).startswith("!"), "event.room_id", room_id, form)

    if version.event_id_format is EventIdFormat.IN_EVENT:
        event_id = event.get("event_id")
        right = isinstance(event_id, str) and event_id.startswith("$") and ":" in event_id
        expect(right, "event.event_id", event_id, "$opaque:server")
    elif "event_id" in event:
        raise InvalidInviteError(
            f"is not part of an event in room version {version.identifier}, "
            "where the ID is the event's hash; remove it before hashing and signing",
            field="event.event_id",
        )

    for name in ("prev_events", "auth_events"):
        references = event.get(name)
        expect(isinstance(references, list), f"event.{name}", references, "a list")
        form = "[event ID, hashes]" if version.event_references_have_hashes else "an event ID"
        for index, reference in enumerate(event[name]):
            if version.event_references_have_hashes:
                right = (
                    isinstance(reference, list)
                    and len(reference) == 2
                    and isinstance(reference[0], str)
                    and isinstance(reference[1], dict)
                )
            else:
                right = isinstance(reference, str)
            expect(right, f"event.{name}[{index}]", reference, form)
    if version.room_id_is_create_event_id and "$" + event["room_id"][1:] in event["auth_events"]:
        raise InvalidInviteError(
            f"must not name the create event in room version {version.identifier}: "
            "the room ID implies it",
            field="event.auth_events",
        )


def check_hash(event: Event, version: RoomVersion) -> None:
    """§ Calculating the content hash for an event: the one in the event is right."""
    hashes = event.get("hashes")
    expect(isinstance(hashes, dict), "event.hashes", hashes, "an object")
    expected = events.content_hash(event, version)
    found = event["hashes"].get("sha256")
    expect(
        isinstance(found, str) and found.rstrip("=") == expected,
        "event.hashes.sha256",
        found,
        f"{expected!r}, the content hash of this event",
    )


def check_room_state(
    event: Event, version: RoomVersion, given: Iterable[JsonObject] | None
) -> tuple[tuple[JsonObject, ...], tuple[str, ...]]:
    """§ Inviting to a room: `invite_room_state` holds PDUs, the create event among them."""
    field = "invite_room_state"
    if given is None:
        given = event.get("unsigned", {}).get("invite_room_state", ())
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise InvalidInviteError("must be a list of state events", field=field)

    state = []
    has_create = False
    for index, entry in enumerate(given):
        where = f"{field}[{index}]"
        copy = own_copy(entry, version, where)
        for name in ("type", "sender", "state_key"):
            value = copy.get(name)
            expect(isinstance(value, str), f"{where}.{name}", value, "a string")
        content = copy.get("content")
        expect(isinstance(content, dict), f"{where}.content", content, "an object")
        is_create = copy["type"] == "m.room.create" and copy["state_key"] == ""
        has_create = has_create or is_create
        if version.requires_create_in_invite_state:
            _check_state_pdu(event, version, copy, where, is_create=is_create)
        state.append(copy)

    warnings: tuple[str, ...] = ()
    if not has_create:
        if version.requires_create_in_invite_state:
            raise InvalidInviteError(
                f"must contain the m.room.create event in room version {version.identifier}",
                field=field,
            )
        warnings = (f"{field} does not contain the m.room.create event; some servers refuse that",)
    return tuple(state), warnings


def _check_state_pdu(
    event: Event, version: RoomVersion, state: Event, where: str, *, is_create: bool
) -> None:
    for name in ("hashes", "signatures"):
        value = state.get(name)
        expect(
            isinstance(value, dict),
            f"{where}.{name}",
            value,
            f"an object: stripped state is not enough in room version {version.identifier}",
        )
    room_id = state.get("room_id")
    if is_create:
        # "The room ID is the event ID of the create event with the sigil changed."
        room_id = "!" + events.event_id(state, version)[1:]
    expect(
        room_id == event["room_id"], f"{where}.room_id", room_id, f"{event['room_id']}, the room"
    )
