"""An invited homeserver checks what the specification asks it to check, and signs nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from invite_client.spec import canonical_json, events, x_matrix
from invite_client.spec.http import Reply, Request
from invite_client.spec.invites import V1, V2, Endpoint, Invite
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.server_keys import SERVER_KEYS_REQUEST, notary_request, read_server_keys
from invite_client.spec.server_keys import read_notary_reply as read_notary
from invite_client.spec.signatures import SigningKey, json_is_signed, sign_event
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    Homeserver,
    HonestAnswer,
    RoomHistory,
    make_invite,
    make_room,
    unsigned,
)

NOW = 1_700_000_000
DAY = 24 * 3600
STRANGER = SigningKey.generate("stranger")


@pytest.fixture
def remote() -> Homeserver:
    return Homeserver(now=lambda: float(NOW))


def ask(remote: Homeserver, request: Request) -> Reply:
    headers = {"Host": remote.server_name}
    if request.authorization is not None:
        headers["Authorization"] = request.authorization
    return remote.answer(request.method, request.uri, headers, request.body or b"")


def put(remote: Homeserver, invite: Invite, endpoint: Endpoint = V2) -> Reply:
    return ask(remote, endpoint.request(invite, INVITER_KEY))


def signed_put(uri: str, content: Any, key: SigningKey = INVITER_KEY, **who: str) -> Request:
    """A request whose signature is right, whatever is in it."""
    names = {"origin": INVITER, "destination": "remote.example", **who}
    body = canonical_json.encode(content, strict=False)
    return Request("PUT", uri, body, x_matrix.authorize("PUT", uri, key=key, body=body, **names))


def errcode(reply: Reply) -> tuple[int, str]:
    return reply.status, json.loads(reply.body)["errcode"]


# --- Honest -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_an_invite_is_countersigned(version: str, remote: Homeserver) -> None:
    invite = make_invite(version=version)
    reply = put(remote, invite)

    event = V2.read_event(reply)
    signature = event["signatures"]["remote.example"][remote.signing_key.key_id]
    assert remote.signing_key.verify_key.verifies(invite.signing_json, signature)
    assert invite.event["signatures"][INVITER] == event["signatures"][INVITER]
    assert {**invite.event, "signatures": 0} == {**event, "signatures": 0}


@pytest.mark.parametrize("version", ["1", "2"])
def test_v1_answers_in_its_own_form(version: str, remote: Homeserver) -> None:
    reply = put(remote, make_invite(version=version), V1)

    assert 200 == json.loads(reply.body)[0]
    assert "remote.example" in V1.read_event(reply)["signatures"]


def large_invite(version: str, **content: Any) -> Invite:
    """An invite to a room whose state is larger than any event may be."""
    room = RoomHistory.create(INVITER, INVITER_KEY, version)
    topics = [room.add("m.room.topic", {"topic": 20_000 * "x"}) for _ in range(4)]
    snapshot = room.snapshot()
    snapshot = replace(snapshot, invite_room_state=[*snapshot.invite_room_state, *topics])
    return Invite.build(snapshot, "@bob:remote.example", INVITER_KEY, content=content)


@pytest.mark.parametrize("endpoint", [V2, V1])
def test_what_is_limited_is_the_event_and_not_the_state_that_comes_with_it(
    endpoint: Endpoint, remote: Homeserver
) -> None:
    invite = large_invite("1")
    reply = put(remote, invite, endpoint)

    assert 200 == reply.status
    assert invite.signing_json == remote.invites[invite.event_id].signing_json
    assert invite.invite_room_state == remote.invites[invite.event_id].invite_room_state
    sent = json.loads(remote.requests[-1].body)
    event = endpoint.read_event(reply)
    assert {**(sent if endpoint is V1 else sent["event"]), "signatures": 0} == {
        **event,
        "signatures": 0,
    }


def test_an_event_by_v1_that_is_too_large_by_itself_is_refused(remote: Homeserver) -> None:
    invite = make_invite(version="1")
    event = json.loads(V1.request(invite, INVITER_KEY).body or b"")
    event["unsigned"]["age"] = 66_000 * "x"
    uri = v2_uri(invite).replace("/v2/", "/v1/")

    reply = ask(remote, signed_put(uri, event))
    assert (400, "M_INVALID_PARAM") == errcode(reply)
    assert "65536 are allowed" in json.loads(reply.body)["error"]


@pytest.mark.parametrize("state", [None, {}, "x", [1]])
def test_state_by_v1_that_is_no_list_of_events_is_refused(state: Any, remote: Homeserver) -> None:
    invite = make_invite(version="1")
    event = {**invite.event, "unsigned": {"invite_room_state": state}}
    uri = v2_uri(invite).replace("/v2/", "/v1/")

    assert (400, "M_MISSING_PARAM") == errcode(ask(remote, signed_put(uri, event)))


def test_what_was_received_and_accepted_is_recorded(remote: Homeserver) -> None:
    invite = make_invite()
    put(remote, invite)
    put(remote, invite)
    ask(remote, SERVER_KEYS_REQUEST)

    assert ["v2", "v2", "keys"] == [request.endpoint for request in remote.requests]
    assert {"v2": 2, "keys": 1} == remote.counts
    assert {invite.event_id: 2} == remote.accepted
    assert invite.event == remote.invites[invite.event_id].event
    assert ["PUT", "PUT"] == [request.method for request in remote.requests_for("v2")]
    assert "remote.example" == remote.requests[0].host


def test_one_that_only_counts_keeps_no_events() -> None:
    remote = Homeserver(record=False)
    invite = make_invite()
    put(remote, invite)

    assert ([], {}) == (remote.requests, remote.invites)
    assert ({"v2": 1}, {invite.event_id: 1}) == (remote.counts, remote.accepted)


@pytest.mark.parametrize(
    "request_",
    [
        Request("GET", "/_matrix/federation/v1/make_join/!a/@b"),
        Request("POST", "/_matrix/key/v2/server"),
        Request("PUT", "/_matrix/federation/v3/invite/a/b", b"{}"),
        Request("GET", "/_matrix/federation/v2/invite/a/b"),
    ],
)
def test_what_it_does_not_know_is_unrecognized(request_: Request, remote: Homeserver) -> None:
    assert (404, "M_UNRECOGNIZED") == errcode(ask(remote, request_))


def test_an_endpoint_that_it_does_not_have_is_unrecognized() -> None:
    old = Homeserver(endpoints=("v1",))

    assert (404, "M_UNRECOGNIZED") == errcode(put(old, make_invite(version="1")))
    assert 200 == put(old, make_invite(version="1"), V1).status


def test_it_tells_its_version(remote: Homeserver) -> None:
    reply = ask(remote, Request("GET", "/_matrix/federation/v1/version"))

    assert "invite_client.testing" == json.loads(reply.body)["server"]["name"]


def test_it_tells_the_time_by_its_own_clock(remote: Homeserver) -> None:
    reply = ask(remote, SERVER_KEYS_REQUEST)

    assert "Tue, 14 Nov 2023 22:13:20 GMT" == reply.headers["date"]


def test_a_profile_is_asked_for_by_servers_only(remote: Homeserver) -> None:
    uri = "/_matrix/federation/v1/query/profile?user_id=%40a%3Aremote.example"
    signature = x_matrix.authorize(
        "GET", uri, origin=INVITER, destination="remote.example", key=INVITER_KEY
    )

    assert (401, "M_UNAUTHORIZED") == errcode(ask(remote, Request("GET", uri)))
    signed = Request("GET", uri, authorization=signature)
    assert (404, "M_NOT_FOUND") == errcode(ask(remote, signed))
    assert {"profile": 2} == remote.counts


# --- Who asks -----------------------------------------------------------------------------------


def test_a_request_without_authorization_is_refused(remote: Homeserver) -> None:
    request = replace(V2.request(make_invite(), INVITER_KEY), authorization=None)

    assert (401, "M_UNAUTHORIZED") == errcode(ask(remote, request))
    assert {} == remote.invites


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"uri": "/_matrix/federation/v2/invite/x/y"}, "not signed"),
        ({"body": b"{}"}, "not signed"),
        ({"authorization": "Bearer abc"}, "X-Matrix"),
        ({"authorization": 'X-Matrix origin="inviter.example",key="ed25519:x",sig=""'}, "no key"),
    ],
)
def test_a_request_that_is_not_the_one_signed_is_refused(
    change: dict[str, Any], why: str, remote: Homeserver
) -> None:
    request = V2.request(make_invite(), INVITER_KEY)
    reply = ask(remote, replace(request, **change))

    assert (401, "M_UNAUTHORIZED") == errcode(reply)
    assert why in json.loads(reply.body)["error"]


def test_a_request_signed_for_another_server_is_refused(remote: Homeserver) -> None:
    request = signed_put("/_matrix/federation/v2/invite/a/b", {}, destination="other.example")

    assert (401, "M_UNAUTHORIZED") == errcode(ask(remote, request))


def test_a_server_is_trusted_only_once_its_key_is_known(remote: Homeserver) -> None:
    invite = make_invite(server_name="new.example", key=STRANGER)
    request = V2.request(invite, STRANGER)
    assert (401, "M_UNAUTHORIZED") == errcode(ask(remote, request))

    remote.trust("new.example", STRANGER.verify_key)
    assert 200 == ask(remote, request).status


def test_what_is_signed_is_the_content_not_how_it_was_written(remote: Homeserver) -> None:
    request = V2.request(make_invite(), INVITER_KEY)
    assert request.body is not None
    spaced = json.dumps(json.loads(request.body), indent=2).encode()

    assert 200 == ask(remote, replace(request, body=spaced)).status


# --- What is asked ------------------------------------------------------------------------------


def v2_uri(invite: Invite) -> str:
    return V2.request(invite, INVITER_KEY).uri


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"room_version": "99"}, (400, "M_INCOMPATIBLE_ROOM_VERSION")),
        ({"room_version": None}, (400, "M_INVALID_PARAM")),
        ({"room_version": []}, (400, "M_INVALID_PARAM")),
        ({"event": 1}, (400, "M_INVALID_PARAM")),
        ({"invite_room_state": [1]}, (400, "M_MISSING_PARAM")),
    ],
)
def test_a_request_of_another_form_is_refused(
    changes: dict[str, Any], expected: tuple[int, str], remote: Homeserver
) -> None:
    invite = make_invite()
    request = signed_put(v2_uri(invite), {**invite.to_request(), **changes})

    assert expected == errcode(ask(remote, request))


@pytest.mark.parametrize("missing", ["event", "room_version"])
def test_a_request_with_a_part_missing_is_refused(missing: str, remote: Homeserver) -> None:
    invite = make_invite()
    content = {k: v for k, v in invite.to_request().items() if k != missing}

    assert (400, "M_MISSING_PARAM") == errcode(ask(remote, signed_put(v2_uri(invite), content)))


def test_a_body_that_is_not_json_is_refused(remote: Homeserver) -> None:
    request = replace(V2.request(make_invite(), INVITER_KEY), body=b"{")

    assert (400, "M_NOT_JSON") == errcode(ask(remote, request))


def test_a_body_that_is_nested_too_deeply_is_refused(remote: Homeserver) -> None:
    deep = b"[" * 200 + b"]" * 200
    request = replace(V2.request(make_invite(), INVITER_KEY), body=deep)

    assert (400, "M_BAD_JSON") == errcode(ask(remote, request))


def test_a_room_version_that_it_does_not_support_is_named() -> None:
    remote = Homeserver(room_versions=("9", "10"))
    reply = put(remote, make_invite(version="11"))

    assert (400, "M_INCOMPATIBLE_ROOM_VERSION") == errcode(reply)
    assert "11" == json.loads(reply.body)["room_version"]
    assert 200 == put(remote, make_invite(version="10")).status


def test_an_event_that_is_not_the_one_in_the_path_is_refused(remote: Homeserver) -> None:
    invite, other = make_invite(), make_invite()
    for uri in (
        v2_uri(other),
        v2_uri(invite).rpartition("/")[0] + "/" + v2_uri(other).rpartition("/")[2],
    ):
        request = signed_put(uri, invite.to_request())
        assert (400, "M_INVALID_PARAM") == errcode(ask(remote, request))

    assert {} == remote.accepted


def test_an_invite_of_somebody_elses_user_is_refused(remote: Homeserver) -> None:
    invite = make_invite("@bob:other.example")
    request = signed_put(v2_uri(invite), invite.to_request())

    assert (400, "M_INVALID_PARAM") == errcode(ask(remote, request))


def test_an_invite_by_somebody_elses_user_is_refused(remote: Homeserver) -> None:
    remote.trust("mallory.example", STRANGER.verify_key)
    invite = make_invite()
    request = signed_put(v2_uri(invite), invite.to_request(), STRANGER, origin="mallory.example")

    assert (403, "M_FORBIDDEN") == errcode(ask(remote, request))


def test_an_event_that_its_server_has_not_signed_is_refused(remote: Homeserver) -> None:
    """Not to look was CVE-2019-18835."""
    forged = make_invite(key=STRANGER)
    request = signed_put(v2_uri(forged), forged.to_request())

    assert (403, "M_FORBIDDEN") == errcode(ask(remote, request))
    assert {} == remote.accepted


def test_an_event_that_was_changed_after_it_was_signed_is_refused(remote: Homeserver) -> None:
    invite = make_invite(displayname="Bob")
    event = invite.copy_event()
    event["content"]["displayname"] = "Mallory"  # redaction removes it: only the hash can tell
    request = signed_put(v2_uri(invite), {**invite.to_request(), "event": event})

    assert (400, "M_INVALID_PARAM") == errcode(ask(remote, request))


def test_a_redacted_field_that_was_changed_breaks_the_signature(remote: Homeserver) -> None:
    invite = make_invite(version="10")
    event = sign_event(
        {**invite.copy_event(), "depth": 99, "signatures": {}},
        INVITER,
        STRANGER,
        invite.room_version,
    )
    changed = Invite.from_pdu(event, "10", invite.invite_room_state)
    request = signed_put(v2_uri(changed), changed.to_request())

    assert (403, "M_FORBIDDEN") == errcode(ask(remote, request))


def test_a_room_of_version_12_must_show_its_create_event(remote: Homeserver) -> None:
    invite = make_invite(version="12")
    request = signed_put(v2_uri(invite), {**invite.to_request(), "invite_room_state": []})

    assert (400, "M_MISSING_PARAM") == errcode(ask(remote, request))


# --- Keys ---------------------------------------------------------------------------------------


def keys_of(remote: Homeserver) -> Any:
    reply = ask(remote, SERVER_KEYS_REQUEST)
    return read_server_keys(
        reply, remote.server_name, fetched_at=NOW * 1000, maximum_validity=7 * DAY
    )


def test_it_publishes_its_keys_signed(remote: Homeserver) -> None:
    keys = keys_of(remote)

    assert remote.signing_key.verify_key == keys.verify_key("ed25519:theirs", NOW * 1000)
    assert (NOW + DAY) * 1000 == keys.valid_until_ts
    assert keys.keys["ed25519:expired"].old


def test_after_a_rotation_the_old_key_serves_what_is_older(remote: Homeserver) -> None:
    old = remote.signing_key
    new = remote.rotates_its_key()
    keys = keys_of(remote)

    assert new.verify_key == keys.verify_key(new.key_id, NOW * 1000)
    assert old.verify_key == keys.verify_key(old.key_id, NOW * 1000)
    assert keys.verify_key(old.key_id, NOW * 1000 + 1) is None
    signatures = V2.read_event(put(remote, make_invite()))["signatures"]
    assert [new.key_id] == list(signatures["remote.example"])


def test_every_published_key_signs(remote: Homeserver) -> None:
    remote.published_keys.append(STRANGER)

    assert json_is_signed(remote.server_keys(), "remote.example", STRANGER.verify_key)
    assert json_is_signed(remote.server_keys(), "remote.example", remote.signing_key.verify_key)


def test_a_notary_signs_what_others_publish(remote: Homeserver) -> None:
    notary = Homeserver("notary.example")
    notary.knows(remote)
    request = notary_request("remote.example", ["ed25519:theirs"], minimum_valid_until=0)
    keys = read_notary(
        ask(notary, request),
        "remote.example",
        notary="notary.example",
        notary_keys=[notary.signing_key.verify_key],
        fetched_at=NOW * 1000,
        maximum_validity=DAY,
    )

    assert remote.signing_key.verify_key == keys.keys["ed25519:theirs"].key


def test_a_notary_has_nothing_to_say_of_who_it_does_not_know(remote: Homeserver) -> None:
    request = notary_request("other.example", [], minimum_valid_until=0)

    assert {"server_keys": []} == json.loads(ask(remote, request).body)
    assert (400, "M_MISSING_PARAM") == errcode(ask(remote, replace(request, body=b"[]")))


# --- What it is told ----------------------------------------------------------------------------


def test_it_answers_as_told_and_then_honestly(remote: Homeserver) -> None:
    remote.answers(
        429, "M_LIMIT_EXCEEDED", retry_after_ms=100, headers={"Retry-After": "1"}, times=2
    )
    remote.answers(503, body=b"<html>", times=1)
    replies = [put(remote, make_invite()) for _ in range(4)]

    assert [429, 429, 503, 200] == [reply.status for reply in replies]
    assert "1" == replies[0].headers["retry-after"]
    assert {"errcode": "M_LIMIT_EXCEEDED", "error": "M_LIMIT_EXCEEDED", "retry_after_ms": 100} == (
        json.loads(replies[0].body)
    )
    assert b"<html>" == replies[2].body


def test_it_answers_for_ever_until_it_behaves(remote: Homeserver) -> None:
    remote.answers(500, endpoint="keys")
    remote.lies(unsigned())
    assert 500 == ask(remote, SERVER_KEYS_REQUEST).status
    assert [INVITER] == list(V2.read_event(put(remote, make_invite()))["signatures"])

    remote.behaves()
    assert 200 == ask(remote, SERVER_KEYS_REQUEST).status
    assert 2 == len(V2.read_event(put(remote, make_invite()))["signatures"])


def test_a_lie_of_ones_own_is_a_function(remote: Homeserver) -> None:
    def shouts(honest: HonestAnswer) -> Any:
        return {**honest.event, "type": honest.event["type"].upper()}

    remote.lies(shouts, times=1)

    assert "M.ROOM.MEMBER" == V2.read_event(put(remote, make_invite()))["type"]
    assert "m.room.member" == V2.read_event(put(remote, make_invite()))["type"]


def test_a_homeserver_without_a_network_has_no_faults_of_one(remote: Homeserver) -> None:
    from invite_client.testing import Hangs

    with pytest.raises(TypeError, match="cannot happen to a Homeserver"):
        remote.fails(Hangs())


# --- Rooms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_room_is_made_of_real_events(version: str) -> None:
    rules = ROOM_VERSIONS[version]
    room = make_room(version=version, name="Tea")

    create, _, name = room.invite_room_state
    assert ("m.room.create", "Tea") == (create["type"], name["content"]["name"])
    for event in room.invite_room_state:
        assert events.content_hash(event, rules) == event["hashes"]["sha256"]
        signature = event["signatures"][INVITER][INVITER_KEY.key_id]
        assert INVITER_KEY.verify_key.verifies(events.signing_bytes(event, rules), signature)
    if rules.room_id_is_create_event_id:
        assert "!" + events.event_id(create, rules)[1:] == room.room_id
