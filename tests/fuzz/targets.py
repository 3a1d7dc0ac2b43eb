"""What reads the bytes of strangers, and what must hold whatever the bytes are.

Each target has a corpus of inputs that are right, and a function that takes any bytes. It returns
whether they were accepted; an exception, a failed assertion included, is a bug.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invite_client.errors import (
    CountersignatureError,
    InvalidInviteError,
    InviteError,
    InviteRejectedError,
    MalformedReplyError,
)
from invite_client.policy import CachePolicy
from invite_client.spec import canonical_json, countersignature
from invite_client.spec.canonical_json import CanonicalJsonError
from invite_client.spec.http import Reply
from invite_client.spec.invites import (
    V1,
    V2,
    Endpoint,
    Event,
    Invite,
    Room,
    falls_back_to_v1,
    rejection,
)
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.server_keys import (
    PublishedKey,
    ServerKeys,
    read_notary_reply,
    read_server_keys,
)
from invite_client.spec.server_names import check_user_id, parse_server_name
from invite_client.spec.signatures import SigningKey, sign_json
from invite_client.spec.well_known import WellKnownError, lifetime, read_well_known
from invite_client.spec.x_matrix import XMatrix, authorize, parse_authorization

__all__ = ["TARGETS", "Target"]

INVITER, INVITED, NOTARY = "inviter.example", "remote.example", "notary.example"
OURS, THEIRS = SigningKey.from_seed("ours", "A" * 43), SigningKey.from_seed("theirs", "B" * 43)
OLD, PINNED = SigningKey.from_seed("old", "C" * 43), SigningKey.from_seed("notary", "D" * 43)
NOW = 1_700_000_000_000
WEEK = 7 * 24 * 3600
POLICY = CachePolicy()


@dataclass(frozen=True, slots=True)
class Target:
    """One reader of foreign bytes."""

    name: str
    corpus: Sequence[bytes]
    run: Callable[[bytes], bool]


def shown(error: InviteError) -> None:
    """Every error can be logged on one line, told to a person, and answered to a client."""
    assert str(error).isprintable(), str(error)
    assert len(str(error)) < 1000, len(str(error))
    error.diagnosis().encode()
    status, body = error.client_response()
    assert 400 <= status < 600
    assert json.loads(json.dumps(body)) == body


# --- Replies with a header ----------------------------------------------------------------------


def read_message(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Split ``status``, header fields and body as an HTTP library would hand them over."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *fields = head.split(b"\r\n")
    status = int(first) if first.isdigit() and len(first) == 3 else 200
    headers: dict[str, str] = {}
    for field in fields:
        # The bytes of a field that are not UTF-8 become lone surrogates.
        name, _, value = field.decode("utf-8", "surrogateescape").partition(":")
        headers[name.strip().lower()] = value.strip()
    return status, headers, body


def well_known(data: bytes) -> bool:
    status, headers, body = read_message(data)
    assert POLICY.minimum <= lifetime(headers, NOW / 1000, POLICY) <= POLICY.maximum
    try:
        name = read_well_known(status, body)
    except WellKnownError as error:
        assert str(error).isprintable()
        return False
    assert name == parse_server_name(str(name))
    return True


WELL_KNOWNS = [
    b'200\r\ncache-control: public, max-age=3600\r\nage: 5\r\n\r\n{"m.server":"a.example:8448"}',
    b'200\r\nexpires: Wed, 15 Nov 2023 00:13:20 GMT\r\n\r\n{"m.server": "[2001:db8::1]"}\n',
    b'200\r\ncache-control: private="a, b", no-store\r\n\r\n{"m.server":"192.0.2.1","x":[1.5]}',
]


def error_reply(data: bytes) -> bool:
    status, headers, body = read_message(data)
    reply = Reply(400 if status == 200 else status, body, headers)
    for version in ROOM_VERSIONS.values():
        for fallback in ("spec", "unknown-endpoint"):
            falls = falls_back_to_v1(reply, version, fallback)
            assert not falls or (version.v1_invite_fallback and reply.status in (400, 404))
    error = rejection(reply, V2, INVITES["10"], now=NOW / 1000)
    shown(error)
    assert error.retry_after is None or 0 <= error.retry_after < 2**53
    assert isinstance(error, (InviteRejectedError, MalformedReplyError))
    return isinstance(error, InviteRejectedError)


ERRORS = [
    b'403\r\n\r\n{"errcode":"M_FORBIDDEN","error":"No, thank you"}',
    b'404\r\n\r\n{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}',
    b'400\r\n\r\n{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","error":"x","room_version":"12"}',
    b'429\r\nretry-after: 7\r\n\r\n{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":2500}',
    b"503\r\nretry-after: Tue, 14 Nov 2023 22:13:30 GMT\r\n\r\n<html>Bad gateway</html>",
]  # fmt: skip


# --- Answers to an invite -----------------------------------------------------------------------


def make_invite(version: str) -> Invite:
    reference: Any = "$" + "A" * 43
    if ROOM_VERSIONS[version].event_references_have_hashes:
        reference = [f"$create:{INVITER}", {"sha256": "A" * 43}]
    sender, room_id = f"@alice:{INVITER}", f"!room:{INVITER}"
    state = {"type": "m.room.name", "state_key": "", "sender": sender, "content": {"name": "Tea"}}
    room = Room(room_id, version, sender, 2, [reference], [reference], [state])
    third_party = {"display_name": "b", "signed": {"mxid": f"@bob:{INVITED}", "token": "t"}}
    content = {"displayname": "Bob é\U0001f431", "third_party_invite": third_party}
    target = f"@bob:{INVITED}"
    return Invite.build(room, target, OURS, content=content, origin_server_ts=NOW)


INVITES = {version: make_invite(version) for version in ("1", "5", "10", "11")}
THEIR_KEYS = ServerKeys(
    INVITED,
    {
        THEIRS.key_id: PublishedKey(THEIRS.verify_key, NOW + 1),
        OLD.key_id: PublishedKey(OLD.verify_key, NOW - 1, old=True),
    },
    NOW + 1,
    NOW,
    {},
)


def countersigned(invite: Invite) -> Event:
    """What an honest server answers, and all that may ever be kept."""
    event = invite.copy_event()
    event["signatures"][INVITED] = {THEIRS.key_id: THEIRS.sign(invite.signing_json)}
    return event


HONEST = {version: countersigned(invite) for version, invite in INVITES.items()}


def judged(invite: Invite, returned: Event) -> bool:
    try:
        countersignature.key_ids(invite, returned)
        verified = countersignature.verify(invite, returned, THEIR_KEYS)
        kept = countersignature.merge(invite, verified)
    except CountersignatureError as error:
        shown(error)
        return False
    assert canonical_json.encode(HONEST[str(invite.room_version)], strict=False) == (
        canonical_json.encode(kept, strict=False)
    )
    return True


def reply_to(endpoint: Endpoint, version: str) -> Callable[[bytes], bool]:
    invite = INVITES[version]

    def run(data: bytes) -> bool:
        try:
            returned = endpoint.read_event(Reply(200, data))
        except MalformedReplyError as error:
            shown(error)
            return False
        return judged(invite, returned)

    return run


def replies(endpoint: Endpoint, version: str) -> list[bytes]:
    noisy = countersigned(INVITES[version])
    noisy["unsigned"] = {"age": 1.5, "invite_room_state": [{}]}
    noisy["signatures"]["other.example"] = ["junk"]
    noisy["signatures"][INVITED] |= {OLD.key_id: "x", "ed25519:policy_server": "x", "rsa:1": "x"}
    containers = [{"event": HONEST[version]}, {"event": noisy, "more": None}]
    answers: list[Any] = [[200, c] for c in containers] if endpoint is V1 else [*containers]
    return [
        json.dumps(answer, indent=indent).encode() for answer in answers for indent in (None, 1)
    ]


def signatures(data: bytes) -> bool:
    """The event is ours, and only its signatures are whatever they are."""
    try:
        found = canonical_json.decode(data, strict=False)
    except CanonicalJsonError:
        return False
    results = {
        judged(invite, {**HONEST[version], "signatures": found})
        for version, invite in INVITES.items()
    }
    return True in results


SIGNATURES = [json.dumps(event["signatures"]).encode() for event in HONEST.values()]


# --- Keys ---------------------------------------------------------------------------------------


def published(**changes: Any) -> dict[str, Any]:
    response = {
        "server_name": INVITED,
        "verify_keys": {THEIRS.key_id: {"key": THEIRS.verify_key.base64}},
        "old_verify_keys": {OLD.key_id: {"key": OLD.verify_key.base64, "expired_ts": NOW - 1}},
        "valid_until_ts": NOW + 1000,
        **changes,
    }
    return sign_json(response, INVITED, THEIRS)


RESPONSE = published(unsigned={"x": 1})
RENEWED = published(valid_until_ts=NOW + 2000, old_verify_keys={}, tls_fingerprints=[])


def is_signed_response(keys: ServerKeys) -> bool:
    """Nobody can sign in the server's name but the server, and it signed these two only."""
    signed = {name: keys.response[name] for name in keys.response if name != "unsigned"}
    for response in (RESPONSE, RENEWED):
        ours = {name: response[name] for name in response if name != "unsigned"}
        if {**signed, "signatures": None} == {**ours, "signatures": None}:
            return True
    raise AssertionError(keys.response)


def server_keys(data: bytes) -> bool:
    reply = Reply(200, data)
    try:
        keys = read_server_keys(reply, INVITED, fetched_at=NOW, maximum_validity=WEEK)
    except MalformedReplyError as error:
        shown(error)
        return False
    return is_signed_response(keys)


def notary_reply(data: bytes) -> bool:
    try:
        keys = read_notary_reply(
            Reply(200, data),
            INVITED,
            notary=NOTARY,
            notary_keys=[PINNED.verify_key],
            fetched_at=NOW,
            maximum_validity=WEEK,
        )
    except MalformedReplyError as error:
        shown(error)
        return False
    return is_signed_response(keys)


SERVER_KEYS = [json.dumps(response, indent=1).encode() for response in (RESPONSE, RENEWED)]
ATTESTED = [sign_json(response, NOTARY, PINNED) for response in (RESPONSE, RENEWED)]
NOTARY_REPLIES = [
    json.dumps({"server_keys": responses}).encode()
    for responses in (ATTESTED, ATTESTED[:1], [*ATTESTED, {"server_name": "other.example"}])
]


# --- Grammars -----------------------------------------------------------------------------------


def authorization(data: bytes) -> bool:
    try:
        parsed = parse_authorization(data.decode("utf-8", "surrogateescape"))
    except ValueError as error:
        assert str(error).isprintable()
        return False
    assert isinstance(parsed, XMatrix)
    return True


AUTHORIZATIONS = [
    authorize("PUT", "/x", origin=INVITER, destination=INVITED, key=OURS, body=b"{}").encode(),
    b"X-Matrix origin=a.example,destination=b.example:8448,key=ed25519:k,sig=QUJD",
    b'x-mATRIX   SIG="Q\\UJD" \t,,Key = ed25519:k , oRIGIN="a.ex\\"ample", extra="x, y",',
]


def canonical(data: bytes) -> bool:
    accepted = False
    for strict in (True, False):
        try:
            value = canonical_json.decode(data, strict=strict)
        except CanonicalJsonError as error:
            assert str(error).isprintable()
            continue
        accepted = True
        # Another decoder reads the same. (To it 1e2 is 100.0, which is equal.)
        assert json.loads(data) == value
        try:
            encoded = canonical_json.encode(value, strict=strict)
        except CanonicalJsonError as error:
            assert "nested too deeply" == str(error)
            continue
        again = canonical_json.decode(encoded, strict=strict)
        assert encoded == canonical_json.encode(again, strict=strict)
    return accepted


CANONICAL = [
    '{"a":[1,-0,1e2,true,null,"\\u65e5\\ud83d\\udc31 é\\n"],"b":{"c":{}}} '.encode(),
    b'{"int":9007199254740991,"float":1.5,"big":99999999999999999999,"exp":-1.5E-3}',
    *[invite.event_json for invite in INVITES.values()],
]


def names(data: bytes) -> bool:
    text = data.decode("utf-8", "surrogateescape")
    try:
        check_user_id(text, field="event.state_key")
        return True
    except InvalidInviteError as error:
        shown(error)
    try:
        name = parse_server_name(text)
    except InvalidInviteError as error:
        shown(error)
        return False
    assert text == str(name)
    assert name.host
    return True


NAMES = [
    b"matrix.org", b"Matrix.ORG.:8448", b"192.0.2.1:1", b"[2001:DB8::1]:65535",
    b"@bob:matrix.org", b"@b\xc3\xa9/o b:[::1]:8448", b"@:a.example",
]  # fmt: skip


def request_file(data: bytes) -> bool:
    """Not a stranger's, but read by the command from a file."""
    try:
        body = canonical_json.decode(data, strict=False)
    except CanonicalJsonError:
        return False
    accepted = False
    for key in (None, OURS):
        try:
            invite = Invite.from_request(body, key)
        except InvalidInviteError as error:
            shown(error)
            continue
        accepted = True
        for endpoint in (V2, V1):
            request = endpoint.request(invite, OURS)
            assert request.uri.isascii()
            assert isinstance(canonical_json.decode(request.body or b"", strict=False), Mapping)
    return accepted


REQUESTS = [json.dumps(invite.to_request()).encode() for invite in INVITES.values()]


TARGETS = [
    Target("well-known file", WELL_KNOWNS, well_known),
    Target("error reply", ERRORS, error_reply),
    Target("v2 reply", replies(V2, "10"), reply_to(V2, "10")),
    Target("v2 reply, old numbers", replies(V2, "5"), reply_to(V2, "5")),
    Target("v1 reply", replies(V1, "1"), reply_to(V1, "1")),
    Target("signatures of a reply", SIGNATURES, signatures),
    Target("server keys", SERVER_KEYS, server_keys),
    Target("notary reply", NOTARY_REPLIES, notary_reply),
    Target("X-Matrix header", AUTHORIZATIONS, authorization),
    Target("canonical JSON", CANONICAL, canonical),
    Target("names", NAMES, names),
    Target("request file", REQUESTS, request_file),
]
