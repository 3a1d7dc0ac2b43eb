"""An invite, and the two requests by which it is sent.

Server-Server API § Inviting to a room: `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`,
and the same with `v1` for servers that are older.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from invite_client.errors import (
    Attempt,
    InvalidInviteError,
    InviteRejectedError,
    MalformedReplyError,
    RateLimitedError,
    Stage,
)
from invite_client.spec import canonical_json, events, x_matrix
from invite_client.spec.canonical_json import CanonicalJsonError
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.events import Event
from invite_client.spec.http import Reply, Request
from invite_client.spec.room_versions import EventIdFormat, RoomVersion, room_version
from invite_client.spec.server_names import ServerName, check_user_id, server_of
from invite_client.spec.signatures import SigningKey, sign_event

__all__ = [
    "V1",
    "V2",
    "Endpoint",
    "Event",
    "Invite",
    "Room",
    "SignedInvite",
    "falls_back_to_v1",
    "more_telling",
    "rejection",
]

JsonObject: TypeAlias = Mapping[str, Any]


# --- What is sent -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Room:
    """The part of a room's state that an invite needs: a snapshot that the homeserver takes."""

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

    @classmethod
    def from_json(cls, value: object) -> Room:
        """Read a snapshot from a JSON object with these fields. Raises `InvalidInviteError`."""
        names = cls.__slots__
        if not isinstance(value, dict):
            raise InvalidInviteError("must be a JSON object", field="room")
        for name in value:
            if name not in names:
                raise InvalidInviteError(
                    f"is not a field of a room; expected {', '.join(names)}", field=f"room.{name}"
                )
        for name in names:
            if name not in value and name != "invite_room_state":
                raise InvalidInviteError("is missing", field=f"room.{name}")
        for name in ("room_id", "room_version", "sender"):
            if not isinstance(value[name], str):
                raise InvalidInviteError("must be a string", field=f"room.{name}")
        if type(value["depth"]) is not int:
            raise InvalidInviteError("must be a whole number", field="room.depth")
        for name in ("prev_events", "auth_events", "invite_room_state"):
            if not isinstance(value.get(name, []), list):
                raise InvalidInviteError("must be a list", field=f"room.{name}")
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
    invite_room_state: tuple[JsonObject, ...]
    """The state that is shown to the invited user."""
    event_id: str
    """The event's ID."""
    destination: ServerName
    """The server of the invited user, which must sign."""
    origin: ServerName
    """The server of the sender: ours."""
    event_json: bytes
    """The event as canonical JSON: the bytes that are sent."""
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
        return _read_invite(cls, event, room_version, room_state)

    @classmethod
    def from_request(cls, body: object, signing_key: SigningKey | None = None) -> Invite:
        """Take the body of a v2 request: ``{"room_version", "event", "invite_room_state"}``.

        With a `signing_key`, the event is hashed and signed first, as by `sign`.
        """
        if not isinstance(body, Mapping):
            raise InvalidInviteError(
                "must be a JSON object with room_version, event and invite_room_state",
                field="request",
            )
        for name in body:
            if name not in ("event", "invite_room_state", "room_version"):
                raise InvalidInviteError(
                    "is not part of a v2 invite request; expected room_version, event "
                    "and invite_room_state",
                    field=str(name),
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
        version = _room_version(room_version)
        own = _own_copy(event, version)
        sender = check_user_id(own.get("sender"), field="event.sender")
        origin = str(server_of(sender, field="event.sender"))
        own.pop("signatures", None)
        if version.event_id_format is EventIdFormat.IN_EVENT and "event_id" not in own:
            # Any unique ID will do; a hash of the whole event needs no source of chance.
            digest = events.content_hash(own, version).translate(str.maketrans("+/", "-_"))
            own["event_id"] = f"${digest}:{origin}"
        try:
            signed = sign_event(own, origin, signing_key, version)
        except CanonicalJsonError as error:
            raise InvalidInviteError(str(error), field="event") from None
        return _read_invite(cls, signed, room_version, room_state)

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

        `content` is added to ``{"membership": "invite"}``: `displayname`, `reason`, `is_direct` …
        `origin_server_ts` is in milliseconds since the epoch; now, if it is not given.
        """
        if origin_server_ts is None:
            # The one look at a clock in `spec`, and only where the caller leaves it to us.
            origin_server_ts = time.time_ns() // 1_000_000
        event = {
            "type": "m.room.member",
            "room_id": room.room_id,
            "sender": room.sender,
            "state_key": target,
            "content": {**(content or {}), "membership": "invite"},
            "origin_server_ts": origin_server_ts,
            "depth": room.depth,
            "prev_events": list(room.prev_events),
            "auth_events": list(room.auth_events),
        }
        return cls.sign(event, room.room_version, signing_key, room.invite_room_state)

    def __repr__(self) -> str:
        return f"<Invite {self.event_id} of {self.target} to {self.room_id}>"

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
        event: Event = canonical_json.decode(self.event_json, strict=False)
        return event

    def to_request(self) -> dict[str, Any]:
        """Return the body of the v2 request, from which `from_request` makes the same invite."""
        return {
            "event": self.event,
            "invite_room_state": list(self.invite_room_state),
            "room_version": self.room_version.identifier,
        }


@dataclass(frozen=True, slots=True)
class SignedInvite:
    """An invite that the invited user's server has signed, verified."""

    event: Event
    """The PDU with both servers' signatures, ready to be persisted and sent to the room."""
    signatures: Mapping[str, str]
    """The verified signatures of the invited user's server by key ID, and no others."""
    endpoint: Literal["v2", "v1"]
    """Which endpoint answered."""
    resolved: ResolvedServer
    """Where the request went, and why."""
    invite: Invite
    """What was sent."""
    attempts: tuple[Attempt, ...] = ()
    """Everything that was tried on the network, in order."""
    seconds: float = 0.0
    """How long it took."""


# --- Taking an event ----------------------------------------------------------------------------


def _room_version(identifier: object) -> RoomVersion:
    return identifier if isinstance(identifier, RoomVersion) else room_version(identifier)


def _own_copy(event: object, version: RoomVersion, field: str = "event") -> Event:
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


def _read_invite(
    cls: type[Invite],
    given: JsonObject,
    identifier: str,
    room_state: Iterable[JsonObject] | None,
) -> Invite:
    version = _room_version(identifier)
    event = _own_copy(given, version)

    # It is an invite …
    _expect(event.get("type") == "m.room.member", "event.type", event.get("type"), "m.room.member")
    content = event.get("content")
    _expect(isinstance(content, dict), "event.content", content, "an object")
    membership = event["content"].get("membership")
    _expect(membership == "invite", "event.content.membership", membership, '"invite"')

    # … by a user of ours, of a user of another server …
    sender = check_user_id(event.get("sender"), field="event.sender")
    target = check_user_id(event.get("state_key"), field="event.state_key")
    origin = server_of(sender, field="event.sender")
    destination = server_of(target, field="event.state_key")
    if str(destination) == str(origin):
        raise InvalidInviteError(
            f"{target} is a user of {origin} too; only invites of other servers' users "
            "are sent to be signed",
            field="event.state_key",
        )

    # … in the form of the room's version (§ PDUs) …
    _check_form(event, version)
    events.check_size(event, version)
    event_id = events.event_id(event, version)

    # … with the right hash and our signature.
    _check_hash(event, version)
    signatures = event.get("signatures")
    _expect(isinstance(signatures, dict), "event.signatures", signatures, "an object")
    ours = event["signatures"].get(str(origin))
    if not isinstance(ours, dict) or not ours:
        raise InvalidInviteError(
            f"has no signature by {origin}, the sender's server; sign the event first "
            "(Invite.sign does both)",
            field="event.signatures",
        )
    theirs = event["signatures"].get(str(destination), {})
    _expect(isinstance(theirs, dict), f"event.signatures.{destination}", theirs, "an object")

    state, warnings = _check_room_state(event, version, room_state)
    strict = version.strict_canonical_json
    compared = {k: v for k, v in event.items() if k not in ("signatures", "unsigned")}
    return cls(
        event=event,
        room_version=version,
        invite_room_state=state,
        event_id=event_id,
        destination=destination,
        origin=origin,
        event_json=canonical_json.encode(event, strict=strict),
        signing_json=events.signing_bytes(event, version),
        compared_json=canonical_json.encode(compared, strict=strict),
        warnings=warnings,
    )


def _expect(condition: bool, field: str, value: object, expected: str) -> None:
    if not condition:
        shown = "nothing" if value is None else f"{value!r:.100}"
        raise InvalidInviteError(f"is {shown}, expected {expected}", field=field)


def _check_form(event: Event, version: RoomVersion) -> None:
    """§ PDUs: the fields that every PDU has, in the form of the room version."""
    for name in ("origin_server_ts", "depth"):
        value = event.get(name)
        _expect(type(value) is int and value >= 0, f"event.{name}", value, "a whole number")
    unsigned = event.get("unsigned", {})
    _expect(isinstance(unsigned, dict), "event.unsigned", unsigned, "an object")

    room_id = event.get("room_id")
    if version.room_id_is_create_event_id:
        form = "! and the 43 characters of the create event's reference hash"
        right = isinstance(room_id, str) and len(room_id) == 44 and ":" not in room_id
    else:
        form = "!opaque:server"
        right = isinstance(room_id, str) and ":" in room_id
    _expect(right and str(room_id).startswith("!"), "event.room_id", room_id, form)

    if version.event_id_format is EventIdFormat.IN_EVENT:
        event_id = event.get("event_id")
        right = isinstance(event_id, str) and event_id.startswith("$") and ":" in event_id
        _expect(right, "event.event_id", event_id, "$opaque:server")
    elif "event_id" in event:
        raise InvalidInviteError(
            f"is not part of an event in room version {version.identifier}, "
            "where the ID is the event's hash; remove it before hashing and signing",
            field="event.event_id",
        )

    for name in ("prev_events", "auth_events"):
        references = event.get(name)
        _expect(isinstance(references, list), f"event.{name}", references, "a list")
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
            _expect(right, f"event.{name}[{index}]", reference, form)
    if version.room_id_is_create_event_id and "$" + event["room_id"][1:] in event["auth_events"]:
        raise InvalidInviteError(
            f"must not name the create event in room version {version.identifier}: "
            "the room ID implies it",
            field="event.auth_events",
        )


def _check_hash(event: Event, version: RoomVersion) -> None:
    hashes = event.get("hashes")
    _expect(isinstance(hashes, dict), "event.hashes", hashes, "an object")
    expected = events.content_hash(event, version)
    found = event["hashes"].get("sha256")
    _expect(
        isinstance(found, str) and found.rstrip("=") == expected,
        "event.hashes.sha256",
        found,
        f"{expected!r}, the content hash of this event",
    )


def _check_room_state(
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
        copy = _own_copy(entry, version, where)
        for name in ("type", "sender", "state_key"):
            value = copy.get(name)
            _expect(isinstance(value, str), f"{where}.{name}", value, "a string")
        content = copy.get("content")
        _expect(isinstance(content, dict), f"{where}.content", content, "an object")
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
        _expect(
            isinstance(value, dict),
            f"{where}.{name}",
            value,
            f"an object: stripped state is not enough in room version {version.identifier}",
        )
    room_id = state.get("room_id")
    if is_create:
        # "The room ID is the event ID of the create event with the sigil changed."
        room_id = "!" + events.event_id(state, version)[1:]
    _expect(
        room_id == event["room_id"], f"{where}.room_id", room_id, f"{event['room_id']}, the room"
    )


# --- The two endpoints --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One of the two ways to send an invite: how to ask, and how to read the answer."""

    name: Literal["v2", "v1"]
    """For logs and `SignedInvite.endpoint`."""
    body: Callable[[Invite], bytes]
    """The body of the request as canonical JSON."""
    shape: str
    """What an answer looks like, in words."""
    unwrap: Callable[[Any], Any]
    """From a decoded answer to the event; raises `LookupError` or `TypeError` if it is not there."""

    def request(self, invite: Invite, key: SigningKey) -> Request:
        """Return the signed request. § Request Authentication."""
        # Both segments are percent-encoded once, and this string is the one that is signed and sent.
        room_id, event_id = quote(invite.room_id, safe=""), quote(invite.event_id, safe="")
        uri = f"/_matrix/federation/{self.name}/invite/{room_id}/{event_id}"
        body = self.body(invite)
        # "The server names from before delegation would take place are used."
        authorization = x_matrix.authorize(
            "PUT",
            uri,
            origin=str(invite.origin),
            destination=str(invite.destination),
            key=key,
            body=body,
        )
        return Request("PUT", uri, body, authorization, what=f"PUT {self.name} invite")

    def read_event(self, reply: Reply) -> Event:
        """Return the event in an answer with status 200. Raises `MalformedReplyError`."""
        try:
            # Not strict: `unsigned` may hold anything, and the rest is compared with what was sent.
            answer = canonical_json.decode(reply.body, strict=False)
        except CanonicalJsonError as error:
            raise MalformedReplyError(
                f"the answer to the {self.name} invite is not JSON: {error}"
            ) from None
        try:
            event = self.unwrap(answer)
        except (LookupError, TypeError):
            event = None
        if not isinstance(event, dict):
            raise MalformedReplyError(
                f"the answer to the {self.name} invite is not of the form {self.shape}"
            )
        return event


def _v2_body(invite: Invite) -> bytes:
    # The keys stand in the order of canonical JSON, so the event's bytes can be used as they are.
    strict = invite.room_version.strict_canonical_json
    state = canonical_json.encode(list(invite.invite_room_state), strict=strict)
    version = canonical_json.encode(invite.room_version.identifier)
    return b"".join(
        (
            b'{"event":',
            invite.event_json,
            b',"invite_room_state":',
            state,
            b',"room_version":',
            version,
            b"}",
        )
    )


def _v1_body(invite: Invite) -> bytes:
    unsigned = {
        **invite.event.get("unsigned", {}),
        "invite_room_state": list(invite.invite_room_state),
    }
    event = {**invite.event, "unsigned": unsigned}
    return canonical_json.encode(event, strict=invite.room_version.strict_canonical_json)


def _v2_event(answer: Any) -> Any:
    return answer["event"]


def _v1_event(answer: Any) -> Any:
    # "Due to a typo in the original implementation", as elsewhere in v1: a status and the answer.
    match answer:
        case [int(status), {"event": event}] if status == 200:
            return event
    raise TypeError


V2 = Endpoint("v2", _v2_body, '{"event": {…}}', _v2_event)
"""`PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`"""

V1 = Endpoint("v1", _v1_body, '[200, {"event": {…}}]', _v1_event)
"""`PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`"""


# --- Answers that are not 200 -------------------------------------------------------------------


def falls_back_to_v1(
    reply: Reply,
    version: RoomVersion,
    fallback: Literal["spec", "unknown-endpoint"] = "spec",
) -> bool:
    """Whether an answer to the v2 endpoint means that v1 should be tried.

    "Senders which receive a 400 or 404 response to this endpoint should retry using the v1 API as
    the server may be older, if the room version is "1" or "2"."

    With ``"unknown-endpoint"``, only where the answer shows that the remote does not know v2:
    `M_UNRECOGNIZED` (§ Unsupported endpoints) or, from servers before that rule, a 404 without a
    Matrix error code.
    """
    if not version.v1_invite_fallback or reply.status not in (400, 404):
        return False
    if fallback == "spec":
        return True
    errcode = _error_body(reply).get("errcode")
    return errcode == "M_UNRECOGNIZED" or (reply.status == 404 and errcode is None)


def rejection(
    reply: Reply, endpoint: Endpoint, invite: Invite, *, now: float
) -> InviteRejectedError | MalformedReplyError:
    """Return the error that an answer other than 200 stands for. `now` is in seconds since the epoch."""
    body = _error_body(reply)
    errcode, error = _text(body, "errcode"), _text(body, "error")
    words = " ".join(filter(None, (errcode, error)))
    message = f"the {endpoint.name} invite was answered {reply.status}" + (
        f": {words}" if words else " without a Matrix error"
    )
    if not 400 <= reply.status < 600:
        # "Federation requests do not follow redirects", and no other success is defined.
        return MalformedReplyError(f"{message}; expected 200 or an error", stage=Stage.HTTP)
    details: dict[str, Any] = {
        "status": reply.status,
        "errcode": errcode,
        "error": error,
        "room_version": _text(body, "room_version"),
    }
    wait = _retry_after(reply, body, now)
    if reply.status == 429:
        return RateLimitedError(message, retryable=True, retry_after=wait, **details)
    if reply.status >= 500:
        return InviteRejectedError(message, retryable=True, retry_after=wait, **details)
    advice = _ADVICE.get(reply.status)
    if reply.status == 404 and not invite.room_version.v1_invite_fallback:
        advice = (
            "The remote does not know this endpoint: it is too old for room version "
            f"{invite.room_version.identifier}, or a proxy before it does not pass the request on."
        )
    return InviteRejectedError(message, advice=advice, **details)


_ADVICE = {
    401: (
        "The remote did not accept our signature. Check that /_matrix/key/v2/server of our server "
        "publishes this key, that the server name is ours, that both clocks are right, and that "
        "no proxy rewrites the path of the request."
    ),
}


def more_telling(v2: InviteRejectedError, v1: InviteRejectedError) -> InviteRejectedError:
    """Of two rejections of one invite, return the one that says more; it carries the other."""
    # That an endpoint is unknown says nothing about the invite; an answer to be retried is news.
    silent = (None, "M_UNRECOGNIZED", "M_NOT_FOUND")
    v2_tells = not v1.retryable and v1.errcode in silent and v2.errcode not in silent
    telling, other = (v2, v1) if v2_tells else (v1, v2)
    telling.other = other
    return telling


def _error_body(reply: Reply) -> dict[str, Any]:
    """Return the Matrix error in an answer, or nothing: an error may have any body."""
    try:
        body = canonical_json.decode(reply.body, strict=False)
    except CanonicalJsonError:
        return {}
    return body if isinstance(body, dict) else {}


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None


def _retry_after(reply: Reply, body: dict[str, Any], now: float) -> float | None:
    """The longer of `Retry-After` (RFC 9110 § 10.2.3) and `retry_after_ms`, in seconds."""
    waits = []
    header = reply.headers.get("retry-after", "").strip()
    if header.isascii() and header.isdigit():
        # More digits than a float can hold mean "never" all the same.
        waits.append(float(header[:300]))
    elif header:
        try:
            date = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            pass
        else:
            if date.tzinfo is None:
                date = date.replace(tzinfo=timezone.utc)
            waits.append((date - datetime.fromtimestamp(now, timezone.utc)).total_seconds())
    milliseconds = body.get("retry_after_ms")
    if type(milliseconds) is int:
        waits.append(min(milliseconds, 2**53) / 1000)
    waits = [max(0.0, wait) for wait in waits]
    return max(waits, default=None)
