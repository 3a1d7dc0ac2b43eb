"""Inviting: the two requests by which an invite is sent, and what their answers mean.

Server-Server API § Inviting to a room: `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`,
and the same with `v1` for servers that are older.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

from invite_client.errors import (
    Attempt,
    InviteRejectedError,
    MalformedReplyError,
    RateLimitedError,
    Stage,
)
from invite_client.spec import canonical_json, x_matrix
from invite_client.spec.canonical_json import CanonicalJsonError
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.events import Event
from invite_client.spec.http import Reply, Request, error_body, retry_after
from invite_client.spec.invite_event import Invite, Room
from invite_client.spec.quoting import worded
from invite_client.spec.room_versions import RoomVersion
from invite_client.spec.signatures import SigningKey

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
        room_id, event_id = _segment(invite.room_id), _segment(invite.event_id)
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


def _segment(text: str) -> str:
    """Percent-encode a segment of a path: all but the unreserved characters of RFC 3986 § 2.3."""
    return text.translate(_ESCAPES) if text.isascii() else quote(text, safe="")


_ESCAPES = {code: quote(chr(code), safe="") for code in range(128)}
"""As `quote` writes them, which is several times slower."""


def _v2_body(invite: Invite) -> bytes:
    # The keys stand in the order of canonical JSON, so the bytes can be used as they are.
    return b'{"event":%b,"invite_room_state":%b,"room_version":%b}' % (
        invite.event_json,
        invite.state_json,
        canonical_json.encode(invite.room_version.identifier, checked=True),
    )


def _v1_body(invite: Invite) -> bytes:
    unsigned = {
        **invite.event.get("unsigned", {}),
        "invite_room_state": list(invite.invite_room_state),
    }
    event = {**invite.event, "unsigned": unsigned}
    strict = invite.room_version.strict_canonical_json
    # An event within a list within `unsigned` is deeper than one alone; each was checked alone.
    return canonical_json.encode(event, strict=strict, checked=True)


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
    errcode = _text(error_body(reply), "errcode")
    return errcode == "M_UNRECOGNIZED" or (reply.status == 404 and errcode is None)


def rejection(
    reply: Reply, endpoint: Endpoint, invite: Invite, *, now: float
) -> InviteRejectedError | MalformedReplyError:
    """Return the error that an answer other than 200 stands for. `now` is in seconds since the epoch."""
    body = error_body(reply)
    errcode, error = _text(body, "errcode"), _text(body, "error")
    words = worded(f"{errcode or ''} {error or ''}", _MOST_WORDS)
    message = f"the {endpoint.name} invite was answered {reply.status}"
    if not words:
        message += " without a Matrix error"
        # A proxy says why in HTML or plain text, Dendrite in JSON of another form.
        words = worded(reply.body[:_MOST_BYTES].decode(errors="replace"), _MOST_WORDS)
    if words:
        message += f": {words}"
    if not 400 <= reply.status < 600:
        # "Federation requests do not follow redirects", and no other success is defined.
        return MalformedReplyError(f"{message}; expected 200 or an error", stage=Stage.HTTP)
    details: dict[str, Any] = {
        "status": reply.status,
        "errcode": errcode,
        "error": error,
        "room_version": _text(body, "room_version"),
    }
    if errcode in _UNSUPPORTED_VERSION:
        # The one field that must be there is not always; it is our invite's.
        details["room_version"] = details["room_version"] or invite.room_version.identifier
    wait = retry_after(reply, body, now)
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


_UNSUPPORTED_VERSION = ("M_INCOMPATIBLE_ROOM_VERSION", "M_UNSUPPORTED_ROOM_VERSION")
_MOST_WORDS = 200
"""Characters of the remote's words in our message; `errcode` and `error` keep them all."""
_MOST_BYTES = 8 * _MOST_WORDS
"""Of a body that is quoted: `worded` looks at twice the characters, each of at most 4 bytes."""
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


def _text(body: dict[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value if isinstance(value, str) else None
