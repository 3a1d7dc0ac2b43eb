"""An invited homeserver without sockets: what it checks, what it signs, and what it can be told.

It does what the specification asks of a receiving homeserver, for real: it authenticates the
request, checks the event, and countersigns it. Then it can be told to lie (`lies`), or to answer
otherwise (`answers`). `simulated` and `loopback` put it behind a client.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, ClassVar, Literal
from urllib.parse import unquote

from invite_client.errors import InvalidInviteError
from invite_client.spec import canonical_json
from invite_client.spec.canonical_json import MAX_DEPTH, CanonicalJsonError
from invite_client.spec.http import Reply
from invite_client.spec.invites import Invite
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.signatures import SigningKey, VerifyKey, sign_event, sign_json
from invite_client.spec.x_matrix import XMatrix, parse_authorization, signed_bytes
from invite_client.testing.faults import ConnectionFault, Fault
from invite_client.testing.lies import HonestAnswer, Lie
from invite_client.testing.rooms import INVITER, INVITER_KEY
from invite_client.testing.script import Endpoint, Script
from invite_client.version import __version__

__all__ = ["Homeserver", "Received"]

_INVITE = re.compile(r"/_matrix/federation/(v[12])/invite/([^/?]+)/([^/?]+)")
_BODY_DEPTH = MAX_DEPTH + 3
"""An event within a list within `unsigned` within the event of v1."""
_EXPIRED_TS = 1_000_000_000_000
"""2001-09-09: before every event there is."""
_KEY_VALIDITY = 24 * 3600.0
"""Seconds for which keys are published as valid; what homeservers do by default."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request as the homeserver saw it."""

    method: str
    uri: str
    headers: Mapping[str, str]
    """The header, names in lower case."""
    body: bytes = b""
    address: str = ""
    """The address that the client connected to, if there was a connection."""
    port: int = 0
    """The port that it connected to."""
    sni: str | None = None
    """The server name that it asked for in the TLS handshake."""

    @property
    def host(self) -> str | None:
        """The `Host` header."""
        return self.headers.get("host")

    @property
    def endpoint(self) -> Endpoint:
        """What the request is for."""
        path = self.uri.partition("?")[0]
        invite = _INVITE.fullmatch(path)
        if self.method == "PUT" and invite is not None:
            return "v2" if invite[1] == "v2" else "v1"
        match self.method, path:
            case "GET", "/_matrix/key/v2/server":
                return "keys"
            case "POST", "/_matrix/key/v2/query":
                return "query"
            case "GET", "/_matrix/federation/v1/version":
                return "version"
            case "GET", "/_matrix/federation/v1/query/profile":
                return "profile"
        return "unknown"


class _Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, errcode: str, error: str, **extra: Any) -> None:
        super().__init__(error)
        self.reply = _json_reply(status, {"errcode": errcode, "error": error, **extra})


class Homeserver:
    """The sans-IO logic of an invited homeserver.

    remote = Homeserver("remote.example")
    remote.trust("inviter.example", key.verify_key)
    reply = remote.answer("PUT", uri, headers, body)
    """

    possible_faults: ClassVar[tuple[type[Fault], ...]] = ()
    """What can go wrong with it; nothing, without a network."""

    def __init__(
        self,
        server_name: str = "remote.example",
        signing_key: SigningKey | None = None,
        *,
        endpoints: Collection[Literal["v2", "v1"]] = ("v2", "v1"),
        room_versions: Collection[str] = tuple(ROOM_VERSIONS),
        key_validity: float = _KEY_VALIDITY,
        now: Callable[[], float] = time.time,
        record: bool = True,
    ) -> None:
        """Make a homeserver that trusts nobody but `INVITER`.

        `endpoints` are the versions of the invite endpoint that it has, `key_validity` is in
        seconds, `now` returns seconds since the epoch. With ``record=False`` it only counts: for
        runs with so many invites that their events would fill the memory.
        """
        self.server_name: str = str(parse_server_name(server_name))
        self.signing_key: SigningKey = signing_key or SigningKey.generate("theirs")
        self.published_keys: list[SigningKey] = [self.signing_key]
        """What it publishes as current; change it to publish other keys than it signs with."""
        self.expired_key: SigningKey = SigningKey.generate("expired")
        self.old_keys: dict[SigningKey, int] = {self.expired_key: _EXPIRED_TS}
        """Old keys, with the milliseconds since the epoch at which they expired."""
        self.endpoints: frozenset[Literal["v2", "v1"]] = frozenset(endpoints)
        self.room_versions: frozenset[str] = frozenset(room_versions)
        self.key_validity = key_validity
        self.requests: list[Received] = []
        """Every request for `/_matrix`, in order."""
        self.counts: Counter[Endpoint] = Counter()
        """How many requests there were for each endpoint."""
        self.invites: dict[str, Invite] = {}
        """The invites that were accepted, by event ID."""
        self.accepted: Counter[str] = Counter()
        """How often each event, by its ID, was accepted."""
        self._now = now
        self._record = record
        self._trusted = {INVITER: {INVITER_KEY.key_id: INVITER_KEY.verify_key}}
        self._known: dict[str, Homeserver] = {}
        self._answers: Script[Reply] = Script()
        self._lies: Script[Lie] = Script()
        self._faults: Script[Fault] = Script()

    # --- What it is told ------------------------------------------------------------------------

    def trust(self, server_name: str, *verify_keys: VerifyKey) -> None:
        """Accept requests and events of another server that are signed with these keys."""
        self._trusted.setdefault(server_name, {}).update({key.key_id: key for key in verify_keys})

    def knows(self, *homeservers: Homeserver) -> None:
        """Answer for the keys of other servers, as a notary."""
        self._known.update({homeserver.server_name: homeserver for homeserver in homeservers})

    def rotates_its_key(self) -> SigningKey:
        """Sign with a new key from now on; publish the one before as old."""
        old, self.signing_key = self.signing_key, SigningKey.generate(f"k{len(self.old_keys)}")
        self.published_keys = [self.signing_key]
        self.old_keys[old] = int(self._now() * 1000)
        return self.signing_key

    def lies(self, lie: Lie, *, times: int | None = None, endpoint: Endpoint | None = None) -> None:
        """Return something else than the honestly signed event; see `testing.lies`.

        At the next `times` invites (by `endpoint`, if given), or for ever.
        """
        self._lies.tell(lie, endpoint, times)

    def answers(
        self,
        status: int,
        errcode: str | None = None,
        error: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        times: int | None = None,
        endpoint: Endpoint | None = None,
        **extra: Any,
    ) -> None:
        """Answer the next `times` invites, or requests to `endpoint`, or all of them, with this.

        With an `errcode` the body is a Matrix error, with `extra` in it; else it is `body`, or
        empty. What is told twice happens one after the other: ``answers(429, times=1)``, then
        ``answers(503, times=1)``, then the honest answer.
        """
        given = {name.lower(): value for name, value in (headers or {}).items()}
        if body is None and errcode is not None:
            reply = _json_reply(status, {"errcode": errcode, "error": error or errcode, **extra})
            reply = Reply(status, reply.body, {**reply.headers, **given})
        else:
            reply = Reply(status, body or b"", given)
        self._answers.tell(reply, endpoint, times)

    def fails(
        self, fault: Fault, *, times: int | None = None, endpoint: Endpoint | None = None
    ) -> None:
        """Fail at the next `times` invites, or requests to `endpoint`, or at all of them.

        A fault that happens before there is a request, at the next `times` connections. See
        `testing.faults`; raises `TypeError` for one that this kind of homeserver cannot have.
        """
        if not isinstance(fault, self.possible_faults):
            raise TypeError(f"{fault} cannot happen to a {type(self).__name__}")
        if isinstance(fault, ConnectionFault):
            endpoint = "connection"
        self._faults.tell(fault, endpoint, times)

    def next_fault(self, endpoint: Endpoint) -> Fault | None:
        """Return what is to go wrong with this request or connection, and count it as done."""
        return self._faults.next(endpoint)

    def behaves(self) -> None:
        """Be honest, and reachable, again: forget all lies, answers and faults."""
        self._answers.clear()
        self._lies.clear()
        self._faults.clear()

    # --- What it does ---------------------------------------------------------------------------

    def answer(self, method: str, uri: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Answer a request; `uri` is the request target as it was on the wire."""
        lower = {name.lower(): value for name, value in headers.items()}
        return self.receive(Received(method, uri, lower, body))

    def receive(self, received: Received) -> Reply:
        """Record a request and answer it."""
        endpoint = received.endpoint
        self.counts[endpoint] += 1
        if self._record:
            self.requests.append(received)
        told = self._answers.next(endpoint)
        if told is not None:
            return told
        try:
            reply = self._honest(endpoint, received)
        except _Refusal as refusal:
            reply = refusal.reply
        return Reply(reply.status, reply.body, {**reply.headers, "date": self._date()})

    def requests_for(self, *endpoints: Endpoint) -> list[Received]:
        """Return the requests to these endpoints, in order."""
        return [request for request in self.requests if request.endpoint in endpoints]

    def _date(self) -> str:
        """RFC 9110 § 6.6.1: who has a clock sends the time."""
        return formatdate(self._now(), usegmt=True)

    def _honest(self, endpoint: Endpoint, received: Received) -> Reply:
        match endpoint:
            case "v2" | "v1" if endpoint in self.endpoints:
                return self._invite(endpoint, received)
            case "keys":
                return _json_reply(200, self.server_keys())
            case "query":
                return _json_reply(200, {"server_keys": list(self._notarized(received.body))})
            case "version":
                server = {"name": "invite_client.testing", "version": __version__}
                return _json_reply(200, {"server": server})
            case "profile":
                self._authenticate(received)
                raise _Refusal(404, "M_NOT_FOUND", "No such user")
        # § Unsupported endpoints
        raise _Refusal(404, "M_UNRECOGNIZED", "Unrecognized request")

    def server_keys(self) -> dict[str, Any]:
        """Return what it publishes at `/_matrix/key/v2/server` (§ Publishing Keys)."""
        response: dict[str, Any] = {
            "server_name": self.server_name,
            "valid_until_ts": int((self._now() + self.key_validity) * 1000),
            "verify_keys": {
                key.key_id: {"key": key.verify_key.base64} for key in self.published_keys
            },
            "old_verify_keys": {
                key.key_id: {"key": key.verify_key.base64, "expired_ts": expired}
                for key, expired in self.old_keys.items()
            },
        }
        for key in self.published_keys:
            response = sign_json(response, self.server_name, key)
        return response

    def _notarized(self, body: bytes) -> Iterable[dict[str, Any]]:
        """§ Querying Keys Through Another Server: "an array of server keys"."""
        asked = _read_json(body)
        names = asked.get("server_keys") if isinstance(asked, dict) else None
        if not isinstance(names, dict):
            raise _Refusal(400, "M_MISSING_PARAM", "server_keys is missing")
        for name in names:
            if name in self._known:
                yield sign_json(self._known[name].server_keys(), self.server_name, self.signing_key)

    # --- An invite ------------------------------------------------------------------------------

    def _invite(self, endpoint: Literal["v2", "v1"], received: Received) -> Reply:
        request = _read_json(received.body)
        sender = self._authenticate(received, request)
        invite = self._read_invite(endpoint, request)
        self._check(invite, sender, received)
        self.accepted[invite.event_id] += 1
        if self._record:
            self.invites[invite.event_id] = invite
        sent = request if endpoint == "v1" else request["event"]
        returned = self._sign(invite, sent.get("unsigned"), self._lies.next(endpoint))
        answer = {"event": returned}
        return _json_reply(200, answer if endpoint == "v2" else [200, answer])

    def _authenticate(self, received: Received, request: object = None) -> XMatrix:
        """§ Request Authentication. A GET has no content."""
        try:
            said = parse_authorization(received.headers.get("authorization", ""))
        except ValueError as error:
            raise _Refusal(401, "M_UNAUTHORIZED", str(error)) from None
        if said.destination not in (None, self.server_name):
            raise _Refusal(401, "M_UNAUTHORIZED", f"{said.destination} is another server")
        key = self._trusted.get(said.origin, {}).get(said.key_id)
        if key is None:
            raise _Refusal(401, "M_UNAUTHORIZED", f"no key {said.key_id} of {said.origin} is known")
        # What is signed is the content, not the bytes in which it came.
        content = None
        try:
            if received.method != "GET":
                content = canonical_json.encode(request, strict=False, depth=_BODY_DEPTH)
        except CanonicalJsonError as error:
            raise _Refusal(400, "M_BAD_JSON", str(error)) from None
        signed = signed_bytes(received.method, received.uri, said.origin, self.server_name, content)
        if not key.verifies(signed, said.signature):
            raise _Refusal(401, "M_UNAUTHORIZED", f"not signed by {said.origin} with {said.key_id}")
        return said

    def _read_invite(self, endpoint: Literal["v2", "v1"], request: object) -> Invite:
        """Read the event. All that is wrong in itself is found here, its content hash included."""
        if endpoint == "v2" and isinstance(request, dict):
            version = request.get("room_version")
            if isinstance(version, str) and version not in self.room_versions:
                raise _Refusal(
                    400,
                    "M_INCOMPATIBLE_ROOM_VERSION",
                    f"Rooms of version {version} are not supported",
                    room_version=version,
                )
        try:
            if endpoint == "v2":
                return Invite.from_request(request)
            event, state = _parted(request)
            # "Also, the room version is assumed to be 1 or 2": their rules are the same.
            return Invite.from_pdu(event, "1", state)
        except InvalidInviteError as error:
            missing = error.message.endswith("missing from the request")
            about_state = error.field.startswith("invite_room_state")
            errcode = "M_MISSING_PARAM" if missing or about_state else "M_INVALID_PARAM"
            raise _Refusal(400, errcode, error.message) from None

    def _check(self, invite: Invite, sender: XMatrix, received: Received) -> None:
        """Check the event against the request, and its signature: not to do so was CVE-2019-18835."""
        path = _INVITE.fullmatch(received.uri.partition("?")[0])
        assert path is not None  # noqa: S101  # it has led here
        if unquote(path[2]) != invite.room_id:
            raise _Refusal(400, "M_INVALID_PARAM", "The room ID in the path is not the event's")
        if unquote(path[3]) != invite.event_id:
            raise _Refusal(
                400, "M_INVALID_PARAM", f"The event ID in the path is not {invite.event_id}"
            )
        if str(invite.destination) != self.server_name:
            raise _Refusal(400, "M_INVALID_PARAM", f"{invite.target} is no user of this server")
        if str(invite.origin) != sender.origin:
            raise _Refusal(403, "M_FORBIDDEN", f"{invite.sender} is no user of {sender.origin}")
        keys = self._trusted[sender.origin]
        signatures = invite.event["signatures"][sender.origin]
        if not any(
            keys[key_id].verifies(invite.signing_json, signature)
            for key_id, signature in signatures.items()
            if key_id in keys
        ):
            raise _Refusal(403, "M_FORBIDDEN", f"The event is not signed by {sender.origin}")

    def _sign(self, invite: Invite, unsigned: object, lie: Lie | None) -> Any:
        event = sign_event(
            invite.copy_event(), self.server_name, self.signing_key, invite.room_version
        )
        if unsigned is not None:  # "All other fields of the events should remain untouched."
            event["unsigned"] = unsigned
        if lie is None:
            return event
        return lie(
            HonestAnswer(event, invite, self.server_name, self.signing_key, self.expired_key)
        )


def _read_json(body: bytes) -> Any:
    try:
        return canonical_json.decode(body, strict=False)
    except CanonicalJsonError as error:
        raise _Refusal(400, "M_NOT_JSON", f"Content not JSON: {error}") from None


def _parted(request: Any) -> tuple[Any, list[Any] | None]:
    """Return the event of a v1 request without the room's state: § Size limits is about the event."""
    match request:
        case {"unsigned": {"invite_room_state": [*state], **rest}}:
            return {**request, "unsigned": rest}, state
    return request, None


def _json_reply(status: int, value: object) -> Reply:
    # Not canonical JSON: a lie may hold anything.
    return Reply(status, json.dumps(value).encode(), {"content-type": "application/json"})
