"""What must hold of an invite event, and of the room state sent with it, before anything is sent.

Each check raises `InvalidInviteError` with the field that is wrong, what was found and what was
expected. § PDUs; § Inviting to a room; § Event format of each room version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from invite_client.errors import InvalidInviteError
from invite_client.spec import canonical_json, events
from invite_client.spec.canonical_json import MAX_DEPTH, MAX_INTEGER, CanonicalJsonError
from invite_client.spec.events import Event
from invite_client.spec.quoting import quoted, worded
from invite_client.spec.room_versions import EventIdFormat, RoomVersion
from invite_client.spec.server_names import ServerName

__all__ = [
    "JsonObject",
    "check_form",
    "check_hash",
    "check_room_state",
    "check_signatures",
    "encoded",
    "expect",
    "own_copy",
    "unexpected",
]

JsonObject: TypeAlias = Mapping[str, Any]

_MOST_NAMES = 5  # of a path in a message
_MAX_INT64 = 2**63 - 1  # § PDUs: both numbers are int64, where canonical JSON does not say less.
_MOST_REFERENCES = {"prev_events": 20, "auth_events": 10}  # § PDUs
# Appendices § Room IDs, § Event IDs: any character but the colon and NUL before the first colon.
_OPAQUE_AND_DOMAIN = re.compile(r"[!$][^:\0]*:.+", re.DOTALL)
_ROOM_ID_OF_HASH = re.compile(r"![A-Za-z0-9_-]{43}")


def expect(condition: bool, field: str, value: object, expected: str) -> None:
    """Raise unless the condition holds, saying what `field` is and what was expected."""
    if not condition:
        raise unexpected(field, value, expected)


def unexpected(field: str, value: object, expected: str) -> InvalidInviteError:
    """Return the error that says what `field` is and what was expected."""
    # Checks of every event of the room state call this themselves, and not `expect`: hundreds of
    # messages would be written for each invite that nobody reads.
    shown = "nothing" if value is None else quoted(value)
    return InvalidInviteError(f"is {shown}, expected {expected}", field=field)


def encoded(event: object, version: RoomVersion, field: str = "event") -> bytes:
    """Return the canonical JSON of an event: what has one is JSON, with no surprises in it."""
    plain, strict = _plain(event, field), version.strict_canonical_json
    try:
        return canonical_json.encode(plain, strict=strict)
    except CanonicalJsonError as error:
        part, fault = _culprit(plain, error, strict)
        raise InvalidInviteError(f"is not canonical JSON: {fault}", field=field + part) from None


def _plain(event: object, field: str) -> Event:
    if type(event) is dict:
        return event
    if isinstance(event, Mapping):
        return dict(event)
    raise InvalidInviteError("must be a JSON object", field=field)


def _culprit(
    value: object, fault: CanonicalJsonError, strict: bool
) -> tuple[str, CanonicalJsonError]:
    """Return which part of a value is not canonical JSON, as the end of a path, and what it is."""
    path = ""
    for _ in range(_MOST_NAMES):
        for step, part in _parts(value):
            try:
                canonical_json.encode(part, strict=strict)
            except CanonicalJsonError as inner:
                path, value, fault = path + step, part, inner
                break
        else:
            break  # It is this one: each of its parts is right.
    return path, fault


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        yield from ((f".{worded(k)}", part) for k, part in value.items() if isinstance(k, str))
    elif isinstance(value, list):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))


def own_copy(event: object, version: RoomVersion) -> tuple[Event, bytes]:
    """Return a copy of an event that is ours, and its canonical JSON, of which it is made."""
    encoding = encoded(event, version)
    return canonical_json.decode_own(encoding, strict=version.strict_canonical_json), encoding


def check_form(
    event: Event, version: RoomVersion, field: str = "event", room: str | None = None
) -> None:
    """§ PDUs: the fields that every PDU has, in the form of the room version.

    `room` is a room ID that was found to be right before.
    """
    for name in ("origin_server_ts", "depth"):
        value = event.get(name)
        if type(value) is not int or not 0 <= value <= _MAX_INT64:
            raise unexpected(f"{field}.{name}", value, "a whole number")
    unsigned = event.get("unsigned", {})
    if not isinstance(unsigned, dict):
        raise unexpected(f"{field}.unsigned", unsigned, "an object")
    if room is None or event.get("room_id") != room or version.room_id_is_create_event_id:
        _check_room_id(event, version, field)

    if version.event_id_format is EventIdFormat.IN_EVENT:
        event_id = event.get("event_id")
        if not _has_domain(event_id, "$"):
            raise unexpected(f"{field}.event_id", event_id, "$opaque:server")
    elif "event_id" in event:
        raise InvalidInviteError(
            f"is not part of an event in room version {version.identifier}, "
            "where the ID is the event's hash; remove it before hashing and signing",
            field=f"{field}.event_id",
        )

    for name in _MOST_REFERENCES:
        _check_references(event.get(name), name, version, field)
    if version.room_id_is_create_event_id and not _is_create(event):
        # "The `m.room.create` event MUST NOT be selected for `auth_events`": the room ID implies it.
        create_id = "$" + event["room_id"][1:]
        if create_id in event["auth_events"]:
            raise unexpected(
                f"{field}.auth_events",
                event["auth_events"],
                f"no create event in room version {version.identifier}",
            )


def _check_room_id(event: Event, version: RoomVersion, field: str) -> None:
    room_id = event.get("room_id")
    if not version.room_id_is_create_event_id:
        right, form = _has_domain(room_id, "!"), "!opaque:server"
    elif _is_create(event):
        right, form = "room_id" not in event, "nothing: its own hash is the room ID"
    else:
        right = isinstance(room_id, str) and _ROOM_ID_OF_HASH.fullmatch(room_id) is not None
        form = "! and the 43 characters of the create event's reference hash"
    if not right:
        raise unexpected(f"{field}.room_id", room_id, form)


def _has_domain(identifier: object, sigil: str) -> bool:
    return (
        isinstance(identifier, str)
        and identifier.startswith(sigil)
        and _OPAQUE_AND_DOMAIN.fullmatch(identifier) is not None
    )


def _check_references(references: Any, name: str, version: RoomVersion, field: str) -> None:
    if not isinstance(references, list):
        raise unexpected(f"{field}.{name}", references, "a list")
    most = _MOST_REFERENCES[name]
    if len(references) > most:
        raise unexpected(f"{field}.{name}", references, f"at most {most} events")
    have_hashes = version.event_references_have_hashes
    for index, reference in enumerate(references):
        event_id = reference
        if have_hashes:
            match reference:
                case [str(event_id), dict()]:
                    pass
                case _:
                    event_id = None
        if type(event_id) is not str or event_id[:1] != "$":
            form = "[event ID, hashes]" if have_hashes else "an event ID"
            raise unexpected(f"{field}.{name}[{index}]", reference, form)


def check_hash(event: Event, version: RoomVersion) -> None:
    """§ Calculating the content hash for an event: the one in the event is right."""
    hashes = event.get("hashes")
    expect(isinstance(hashes, dict), "event.hashes", hashes, "an object")
    expected = events.content_hash(event, version, checked=True)
    found = event["hashes"].get("sha256")
    expect(
        isinstance(found, str) and found.rstrip("=") == expected,
        "event.hashes.sha256",
        found,
        f"{expected!r}, the content hash of this event",
    )


def check_signatures(event: Event, version: RoomVersion, origin: ServerName) -> None:
    """Signatures are there and in form; whether they are right, their keys would tell."""
    signatures = event.get("signatures")
    expect(isinstance(signatures, dict), "event.signatures", signatures, "an object")
    for server, entry in event["signatures"].items():
        if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
            field = f"event.signatures.{worded(server)}"
            raise unexpected(field, entry, "an object of key IDs and signatures")
    if not event["signatures"].get(str(origin)):
        raise InvalidInviteError(
            f"has no signature by {origin}, the sender's server; sign the event first "
            "(Invite.sign does both)",
            field="event.signatures",
        )
    if version.event_id_format is EventIdFormat.IN_EVENT:
        # "Room versions 1 and 2 also require that a signature is present from the domain in the
        # `event_id`, if it differs from the originating server."
        _, _, namer = event["event_id"].partition(":")
        if not event["signatures"].get(namer):
            raise InvalidInviteError(
                f"is one of {worded(namer)}, which has not signed the event; "
                f"use an ID of {origin}, the sender's server",
                field="event.event_id",
            )


def check_room_state(
    event: Event, version: RoomVersion, given: Iterable[JsonObject] | None
) -> tuple[bytes, tuple[str, ...]]:
    """Return the room state for the invited user as canonical JSON, and warnings.

    § Inviting to a room: it holds PDUs of the room, `m.room.create` among them. "Servers SHOULD
    warn about invites which fail the validation rather than error in room versions 1 through 11.
    All invites to other room versions which fail validation SHOULD result in an error."
    """
    field = "invite_room_state"
    if given is None:
        given = event.get("unsigned", {}).get("invite_room_state", ())
    if type(given) is not list and (
        isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable)
    ):
        raise InvalidInviteError("must be a list of state events", field=field)

    states = [
        entry if type(entry) is dict else _plain(entry, f"{field}[{index}]")
        for index, entry in enumerate(given)
    ]
    room_id = event["room_id"]
    unchecked: list[Any] = []
    others = [
        (index, state)
        for index, state in enumerate(states)
        if not _is_evident_pdu(state, room_id, version, unchecked)
    ]
    unchecked += [state for _, state in others]
    state_json = _encoded_states(states, unchecked, version, field)
    has_create = False
    fault: InvalidInviteError | None = None
    for index, state in others:
        where = f"{field}[{index}]"
        _check_stripped(state, where)
        try:
            _check_pdu_of_room(state, room_id, version, where)
        except InvalidInviteError as error:
            fault = fault or error
        has_create = has_create or _is_create(state)

    faults = [fault] if fault else []
    if not has_create:
        missing = "must contain the m.room.create event"
        faults.append(InvalidInviteError(missing, field=field))
    if faults and version.requires_create_in_invite_state:
        raise faults[0]
    warnings = tuple(f"{found}; some servers refuse that" for found in faults)
    return state_json, warnings


def _encoded_states(
    states: list[Event], unchecked: list[Any], version: RoomVersion, field: str
) -> bytes:
    strict = version.strict_canonical_json
    try:
        canonical_json.check(unchecked, strict=strict, depth=MAX_DEPTH + 1)
        return canonical_json.encode(states, strict=strict, checked=True)
    except CanonicalJsonError:
        for index, state in enumerate(states):
            encoded(state, version, f"{field}[{index}]")  # says which of them it is, and where
        raise  # pragma: no cover  # it is one of them


def _is_evident_pdu(state: Event, room: str, version: RoomVersion, unchecked: list[Any]) -> bool:
    """Whether it is seen at one look that there is nothing wrong with an event, as with most.

    Then what has yet to pass the gate of canonical JSON is added to `unchecked`, as deep as it is in
    the event. Of any other event, the checks below say what it is.
    """
    if version.event_references_have_hashes:
        return False
    try:  # A `match` would take five times as long.
        kind, created, depth = state["type"], state["origin_server_ts"], state["depth"]
        room_id, sender, state_key = state["room_id"], state["sender"], state["state_key"]
        before, allowing = state["prev_events"], state["auth_events"]
        content, hashes, signatures = state["content"], state["hashes"], state["signatures"]
        unsigned = state["unsigned"] if len(state) == 12 else {}
    except KeyError:
        return False
    if not (
        # These and no others.
        11 <= len(state) <= 12
        and type(kind) is type(sender) is type(state_key) is type(room_id) is str
        and kind != "m.room.create"
        and room_id == room
        and type(content) is type(hashes) is type(signatures) is type(unsigned) is dict
        and type(created) is type(depth) is int
        and 0 <= created <= MAX_INTEGER
        and 0 <= depth <= MAX_INTEGER
        and type(before) is type(allowing) is list
        and len(before) <= _MOST_REFERENCES["prev_events"]
        and len(allowing) <= _MOST_REFERENCES["auth_events"]
        and not [name for name in before + allowing if type(name) is not str or name[:1] != "$"]
        and not (version.room_id_is_create_event_id and "$" + room[1:] in allowing)
    ):
        return False
    unchecked.append([content, hashes, signatures, unsigned])
    return True


def _check_stripped(state: Event, field: str) -> None:
    """Client-Server API § Stripped state: the fields that are there at least."""
    for name in ("type", "sender", "state_key"):
        value = state.get(name)
        if not isinstance(value, str):
            raise unexpected(f"{field}.{name}", value, "a string")
    content = state.get("content")
    if not isinstance(content, dict):
        raise unexpected(f"{field}.content", content, "an object")


def _check_pdu_of_room(state: Event, room: str, version: RoomVersion, field: str) -> None:
    if _is_create(state):
        # An event that was hashed by the rules of another version is another event.
        named = state["content"].get("room_version", "1")
        if named != version.identifier:
            expected = f"{version.identifier!r}, the room's version"
            raise unexpected(f"{field}.content.room_version", named, expected)
    for name in ("hashes", "signatures"):
        value = state.get(name)
        if not isinstance(value, dict):
            expected = "an object: stripped state is not enough"
            raise unexpected(f"{field}.{name}", value, expected)
    check_form(state, version, field, room)
    room_id = state.get("room_id")
    if version.room_id_is_create_event_id and _is_create(state):
        # "The room ID is the event ID of the create event with the sigil changed."
        room_id = "!" + events.event_id(state, version)[1:]
    if room_id != room:
        raise unexpected(f"{field}.room_id", room_id, f"{worded(room)}, the room")


def _is_create(event: Event) -> bool:
    return event.get("type") == "m.room.create" and event.get("state_key") == ""
