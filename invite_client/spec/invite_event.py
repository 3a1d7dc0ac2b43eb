"""An invite: the event that our server has signed, right in all that can be checked beforehand.

Server-Server API § Inviting to a room, § Adding hashes and signatures to outgoing events.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from invite_client.errors import InvalidInviteError
from invite_client.spec import canonical_json, events, room_versions
from invite_client.spec.events import Event
from invite_client.spec.invite_rules import (
    JsonObject,
    check_form,
    check_hash,
    check_room_state,
    check_signatures,
    expect,
    own_copy,
)
from invite_client.spec.quoting import worded
from invite_client.spec.room_versions import EventIdFormat, RoomVersion
from invite_client.spec.server_names import ServerName, check_user_id
from invite_client.spec.signatures import SigningKey, sign_event

__all__ = ["Invite", "Room"]


@dataclass(frozen=True, slots=True)
class Room:
    """The part of a room's state that an invite needs: a snapshot that the homeserver takes.

    Raises `InvalidInviteError` for a field that is not of its type.
    """

    room_id: str
    """The room's ID."""
    room_version: str
    """Its version, ``"1"`` to ``"12"``."""
    sender: str
    """The user of ours who invites."""
    depth: int
    """The depth of the new event: one more than the greatest among `prev_events`."""
    prev_events: Sequence[Any]
    """The room's forward extremities, in the form that its version prescribes."""
    auth_events: Sequence[Any]
    """What allows the invite (§ Auth events selection), in the form that its version prescribes."""
    invite_room_state: Sequence[JsonObject] = ()
    """State that tells the invited user what room it is: `m.room.create` and, if there are any,
    the name, topic, avatar, join rules, canonical alias and encryption."""

    def __post_init__(self) -> None:
        for name in ("room_id", "room_version", "sender"):
            value = getattr(self, name)
            expect(isinstance(value, str), f"room.{name}", value, "a string")
        expect(type(self.depth) is int, "room.depth", self.depth, "a whole number")
        for name in ("prev_events", "auth_events", "invite_room_state"):
            value = getattr(self, name)
            is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
            expect(is_list, f"room.{name}", value, "a list")

    @classmethod
    def from_json(cls, value: object) -> Room:
        """Read a snapshot from a JSON object with these fields. Raises `InvalidInviteError`."""
        names = cls.__slots__
        if not _is_object(value):
            raise InvalidInviteError("must be a JSON object", field="room")
        for name in value:
            if name not in names:
                raise InvalidInviteError(
                    f"is not a field of a room; expected {', '.join(names)}",
                    field=f"room.{worded(name)}",
                )
        for name in names:
            if name not in value and name != "invite_room_state":
                raise InvalidInviteError("is missing", field=f"room.{name}")
        return cls(**value)


@dataclass(frozen=True, slots=True, repr=False)
class Invite:
    """An invite event, hashed and signed by our server, that is right in all that can be checked.

    Made by `from_pdu`, `from_request`, `sign` or `build`, each of which raises
    `InvalidInviteError` with the name of the field that is wrong. The event is our own copy.
    """

    event: Event
    """The PDU. Treat it as read-only."""
    room_version: RoomVersion
    """The rules of the room."""
    event_id: str
    """The event's ID."""
    destination: ServerName
    """The server of the invited user, which must sign."""
    origin: ServerName
    """The server of the sender: ours."""
    event_json: bytes
    """The event as canonical JSON: the bytes that are sent."""
    state_json: bytes
    """`invite_room_state` as canonical JSON: the bytes that are sent."""
    signing_json: bytes
    """The redacted event without `signatures` and `unsigned` as canonical JSON: what is signed."""
    compared_json: bytes
    """The event without `signatures` and `unsigned` as canonical JSON: what must come back."""
    warnings: tuple[str, ...] = ()
    """What is allowed but unwise, such as an `invite_room_state` without `m.room.create`."""

    @classmethod
    def from_pdu(
        cls,
        event: JsonObject,
        room_version: str,
        room_state: Iterable[JsonObject] | None = None,
    ) -> Invite:
        """Take an invite event that the host has built, hashed and signed.

        `room_state` becomes `invite_room_state`; if it is None, what the event carries in
        `unsigned.invite_room_state` is taken. Full PDUs are expected (Matrix 1.16); stripped state
        is accepted for room versions before 12.
        """
        version = room_versions.room_version(room_version)
        own, event_json = own_copy(event, version)

        # It is an invite …
        expect(own.get("type") == "m.room.member", "event.type", own.get("type"), "m.room.member")
        content = own.get("content")
        expect(isinstance(content, dict), "event.content", content, "an object")
        membership = own["content"].get("membership")
        expect(membership == "invite", "event.content.membership", membership, '"invite"')

        # … by a user of ours, of a user of another server …
        origin = check_user_id(own.get("sender"), field="event.sender")
        destination = check_user_id(own.get("state_key"), field="event.state_key")
        # "Server names must be treated case-sensitively", but DNS does not: we would ask ourselves.
        if destination.leads_to(origin):
            raise InvalidInviteError(
                f"{worded(own['state_key'])} is a user of {origin} too; only invites of other servers' users "
                "are sent to be signed",
                field="event.state_key",
            )

        # … in the form of the room's version …
        check_form(own, version)
        events.check_limits(own, len(event_json))

        # … with the right hash and our signature.
        check_hash(own, version)
        check_signatures(own, version, origin)

        state_json, warnings = check_room_state(own, version, room_state)
        signing_json = events.signing_bytes(own, version, checked=True)
        strict = version.strict_canonical_json
        compared = {k: v for k, v in own.items() if k not in ("signatures", "unsigned")}
        return cls(
            event=own,
            room_version=version,
            event_id=events.event_id(own, version, signing=signing_json),
            destination=destination,
            origin=origin,
            event_json=event_json,
            state_json=state_json,
            signing_json=signing_json,
            compared_json=canonical_json.encode(compared, strict=strict, checked=True),
            warnings=warnings,
        )

    @classmethod
    def from_request(cls, body: object, signing_key: SigningKey | None = None) -> Invite:
        """Take the body of a v2 request: ``{"room_version", "event", "invite_room_state"}``.

        It may be the bytes themselves, as they stand in a file or go over the wire. With a
        `signing_key`, the event is hashed and signed first, as by `sign`.
        """
        if isinstance(body, bytes):
            body = _decoded(body)
        if not _is_object(body):
            raise InvalidInviteError(
                "must be a JSON object with room_version, event and invite_room_state",
                field="request",
            )
        for name in body:
            if name not in ("event", "invite_room_state", "room_version"):
                raise InvalidInviteError(
                    "is not part of a v2 invite request; expected room_version, event "
                    "and invite_room_state",
                    field=worded(name),
                )
        for name in ("room_version", "event"):
            if name not in body:
                raise InvalidInviteError("is missing from the request", field=name)
        event, version, state = body["event"], body["room_version"], body.get("invite_room_state")
        if signing_key is not None:
            return cls.sign(event, version, signing_key, state)
        return cls.from_pdu(event, version, state)

    @classmethod
    def sign(
        cls,
        event: JsonObject,
        room_version: str,
        signing_key: SigningKey,
        room_state: Iterable[JsonObject] | None = None,
    ) -> Invite:
        """Hash an invite event, sign it as the sender's server, and take it.

        An event that has hashes and signatures already gets new ones.
        """
        version = room_versions.room_version(room_version)
        own, _ = own_copy(event, version)
        origin = str(check_user_id(own.get("sender"), field="event.sender"))
        own.pop("signatures", None)
        if version.event_id_format is EventIdFormat.IN_EVENT and "event_id" not in own:
            # Any unique ID will do; a hash of the whole event needs no source of chance.
            digest = events.content_hash(own, version, checked=True).translate(
                str.maketrans("+/", "-_")
            )
            own["event_id"] = f"${digest}:{origin}"
        signed = sign_event(own, origin, signing_key, version)
        return cls.from_pdu(signed, room_version, room_state)

    @classmethod
    def build(
        cls,
        room: Room,
        target: str,
        signing_key: SigningKey,
        *,
        content: JsonObject | None = None,
        origin_server_ts: int | None = None,
    ) -> Invite:
        """Build the invite event for user `target` from a room, hash it and sign it.

        `content` is added to ``{"membership": "invite"}``: `displayname`, `reason`, `is_direct` …; no
        other `membership` is taken.
        `origin_server_ts` is in milliseconds since the epoch; now, if it is not given.
        """
        expect(isinstance(room, Room), "room", room, "a Room")
        if not isinstance(signing_key, SigningKey):
            # It is not shown: it may be the key all the same, as text.
            raise InvalidInviteError("must be a SigningKey", field="signing_key")
        content = {} if content is None else content
        if not _is_object(content):
            raise InvalidInviteError("must be a JSON object", field="content")
        membership = content.get("membership", "invite")
        expect(membership == "invite", "content.membership", membership, '"invite"')
        if origin_server_ts is None:
            # The one look at a clock in `spec`, and only where the caller leaves it to us.
            origin_server_ts = time.time_ns() // 1_000_000
        event = {
            "type": "m.room.member",
            "room_id": room.room_id,
            "sender": room.sender,
            "state_key": target,
            "content": {**content, "membership": "invite"},
            "origin_server_ts": origin_server_ts,
            "depth": room.depth,
            "prev_events": list(room.prev_events),
            "auth_events": list(room.auth_events),
        }
        return cls.sign(event, room.room_version, signing_key, room.invite_room_state)

    def __repr__(self) -> str:
        names = map(worded, (self.event_id, self.target, self.room_id))
        return "<Invite {} of {} to {}>".format(*names)

    @property
    def invite_room_state(self) -> tuple[JsonObject, ...]:
        """The state that is shown to the invited user: a new copy each time."""
        return tuple(canonical_json.decode_own(self.state_json, strict=self._is_strict))

    @property
    def room_id(self) -> str:
        """The room."""
        return str(self.event["room_id"])

    @property
    def sender(self) -> str:
        """The user who invites."""
        return str(self.event["sender"])

    @property
    def target(self) -> str:
        """The user who is invited."""
        return str(self.event["state_key"])

    @property
    def origin_server_ts(self) -> int:
        """When the event was made, in milliseconds since the epoch."""
        return int(self.event["origin_server_ts"])

    @property
    def key_validity_time(self) -> int | None:
        """When keys that sign the event must have been valid; None if the room does not ask."""
        return self.origin_server_ts if self.room_version.enforce_key_validity else None

    def copy_event(self) -> Event:
        """Return a new copy of the event that may be changed."""
        event: Event = canonical_json.decode_own(self.event_json, strict=self._is_strict)
        return event

    @property
    def _is_strict(self) -> bool:
        return self.room_version.strict_canonical_json

    def to_request(self) -> dict[str, Any]:
        """Return the body of the v2 request, from which `from_request` makes the same invite."""
        return {
            "event": self.copy_event(),
            "invite_room_state": list(self.invite_room_state),
            "room_version": self.room_version.identifier,
        }


def _decoded(data: bytes) -> object:
    try:
        # Not strict: which numbers are allowed depends on the version of the room.
        return canonical_json.decode(data, strict=False)
    except canonical_json.CanonicalJsonError as error:
        raise InvalidInviteError(f"is not JSON: {error}", field="request") from None


def _is_object(value: object) -> TypeGuard[JsonObject]:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
