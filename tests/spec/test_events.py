"""Redaction, hashes, event IDs and sizes are those of the event's room version."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.errors import InvalidInviteError
from invite_client.spec import canonical_json
from invite_client.spec.events import (
    MAX_EVENT_BYTES,
    MAX_ID_BYTES,
    check_size,
    content_hash,
    event_id,
    redact,
    reference_hash,
    signing_bytes,
)
from invite_client.spec.room_versions import (
    ROOM_VERSIONS,
    V1,
    V2,
    V3,
    V4,
    V5,
    V6,
    V10,
    V11,
    V12,
    RoomVersion,
)

EVERY = pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=ROOM_VERSIONS)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=10)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
TYPES = ["member", "create", "join_rules", "power_levels", "aliases", "history_visibility"]
TYPES = [f"m.room.{kind}" for kind in [*TYPES, "redaction", "name"]]
TOP = ["event_id", "room_id", "sender", "state_key", "hashes", "signatures", "depth", "unsigned"]
TOP += ["prev_events", "prev_state", "auth_events", "origin", "origin_server_ts", "membership"]
CONTENT = ["membership", "creator", "join_rule", "allow", "users", "invite", "aliases", "redacts"]
CONTENT += ["third_party_invite", "signed", "history_visibility", ""]
contents = st.dictionaries(
    st.sampled_from(CONTENT) | text,
    json_values | st.fixed_dictionaries({"signed": json_values}),
    max_size=6,
)
events = st.builds(
    lambda top, kind, content: {**top, "type": kind, "content": content},
    st.dictionaries(st.sampled_from([*TOP, "redacts"]) | text, json_values, max_size=8),
    st.sampled_from(TYPES) | text | json_values,
    contents | json_values,
)
versions = st.sampled_from(list(ROOM_VERSIONS.values()))


def kept(version: RoomVersion, kind: str, *keys: str) -> set[str]:
    content = dict.fromkeys([*keys, "other"], "x")
    return set(redact({"type": kind, "content": content}, version)["content"])


def since(number: int) -> set[str]:
    return {name for name in ROOM_VERSIONS if int(name) >= number}


def keeping(kind: str, key: str) -> set[str]:
    return {name for name, version in ROOM_VERSIONS.items() if kept(version, kind, key) == {key}}


# --- Redaction ----------------------------------------------------------------------------------


@EVERY
def test_these_fields_stay(version: RoomVersion) -> None:
    event = dict.fromkeys([*TOP, "type", "content", "redacts", "age_ts", "other"], "x")
    stay = set(event) - {"unsigned", "redacts", "age_ts", "other"}
    if version.identifier in since(11):
        stay -= {"origin", "membership", "prev_state"}

    assert stay == set(redact(event, version))


POWER_LEVELS = ("ban", "events", "events_default", "kick", "redact", "state_default", "users")


@pytest.mark.parametrize(
    ("kind", "key", "expected"),
    [
        ("m.room.member", "membership", since(1)),
        ("m.room.member", "join_authorised_via_users_server", since(9)),
        ("m.room.member", "displayname", set()),
        ("m.room.create", "creator", since(1) - since(11)),
        ("m.room.create", "room_version", set()),
        ("m.room.join_rules", "join_rule", since(1)),
        ("m.room.join_rules", "allow", since(8)),
        *[("m.room.power_levels", key, since(1)) for key in (*POWER_LEVELS, "users_default")],
        ("m.room.power_levels", "invite", since(11)),
        ("m.room.power_levels", "notifications", set()),
        ("m.room.aliases", "aliases", since(1) - since(6)),
        ("m.room.history_visibility", "history_visibility", since(1)),
        ("m.room.redaction", "redacts", since(11)),
        ("m.room.name", "name", set()),
        ("m.room.message", "membership", set()),
    ],
)
def test_this_content_stays_in_these_versions(kind: str, key: str, expected: set[str]) -> None:
    assert expected == keeping(kind, key)


@EVERY
def test_the_whole_content_of_a_create_event_stays_since_version_11(version: RoomVersion) -> None:
    content = {"creator": "@a:b", "room_version": "x", "m.federate": False, "other": {"a": 1}}
    stays = content if version.identifier in since(11) else {"creator": "@a:b"}

    assert stays == redact({"type": "m.room.create", "content": content}, version)["content"]


@EVERY
def test_what_the_identity_server_signed_stays_since_version_11(version: RoomVersion) -> None:
    signed = {"mxid": "@b:c", "token": "t", "signatures": {}}
    content = {
        "membership": "invite",
        "third_party_invite": {"display_name": "b", "signed": signed},
    }
    stays: dict[str, Any] = {"membership": "invite"}
    if version.identifier in since(11):
        stays["third_party_invite"] = {"signed": signed}

    assert stays == redact({"type": "m.room.member", "content": content}, version)["content"]


@pytest.mark.parametrize(
    ("third_party_invite", "stays"),
    [
        ({"signed": None}, {"third_party_invite": {"signed": None}}),
        ({"display_name": "b"}, {"third_party_invite": {}}),
        ({}, {"third_party_invite": {}}),
        ("signed", {}),
        (["signed"], {}),
        (None, {}),
    ],
)
def test_a_malformed_third_party_invite_is_redacted_as_peers_do(
    third_party_invite: object, stays: object
) -> None:
    event = {"type": "m.room.member", "content": {"third_party_invite": third_party_invite}}

    assert stays == redact(event, V11)["content"]


@EVERY
def test_an_empty_key_is_a_key_like_any_other(version: RoomVersion) -> None:
    for kind in ("m.room.name", "m.room.member", ""):
        event = {"type": kind, "content": {"": {"": "x", "signed": "y"}}}

        assert {} == redact(event, version)["content"]


@EVERY
@pytest.mark.parametrize("content", [None, "x", 1, [], ["membership"]])
def test_content_that_is_no_object_is_emptied(version: RoomVersion, content: object) -> None:
    assert {} == redact({"type": "m.room.member", "content": content}, version)["content"]


@EVERY
@pytest.mark.parametrize("kind", [None, 1, ["m.room.member"], {"m.room.create": 1}])
def test_a_type_that_is_no_string_keeps_no_content(version: RoomVersion, kind: object) -> None:
    event = {"type": kind, "content": {"membership": "invite"}}

    assert {"type": kind, "content": {}} == redact(event, version)


@given(events, versions)
def test_redaction_is_idempotent_and_leaves_its_input_alone(
    event: dict[str, Any], version: RoomVersion
) -> None:
    before = copy.deepcopy(event)
    once = redact(event, version)

    assert once == redact(once, version)
    assert before == event
    assert set(once) <= set(event)


# --- Hashes and event IDs -----------------------------------------------------------------------

EVENT: dict[str, Any] = {
    "type": "m.room.member",
    "room_id": "!r:a.example",
    "sender": "@a:a.example",
    "state_key": "@b:b.example",
    "content": {"membership": "invite", "displayname": "b"},
    "depth": 3,
    "origin_server_ts": 4,
    "prev_events": [],
    "auth_events": [],
    "hashes": {"sha256": "h"},
    "signatures": {"a.example": {"ed25519:1": "s"}},
    "unsigned": {"age": 5},
}
# The canonical JSON of the redacted event without `signatures` and `unsigned`, written by hand.
REDACTED = (
    b'{"auth_events":[],"content":{"membership":"invite"},"depth":3,"hashes":{"sha256":"h"},'
    b'"origin_server_ts":4,"prev_events":[],"room_id":"!r:a.example","sender":"@a:a.example",'
    b'"state_key":"@b:b.example","type":"m.room.member"}'
)
# … and of the whole event without `hashes`, `signatures` and `unsigned`.
HASHED = (
    b'{"auth_events":[],"content":{"displayname":"b","membership":"invite"},"depth":3,'
    b'"origin_server_ts":4,"prev_events":[],"room_id":"!r:a.example","sender":"@a:a.example",'
    b'"state_key":"@b:b.example","type":"m.room.member"}'
)


@EVERY
def test_the_redacted_event_without_signatures_and_unsigned_is_signed(version: RoomVersion) -> None:
    assert REDACTED == signing_bytes(EVENT, version)
    assert hashlib.sha256(REDACTED).digest() == reference_hash(EVENT, version)


@EVERY
def test_the_whole_event_but_hashes_signatures_and_unsigned_is_hashed(version: RoomVersion) -> None:
    digest = base64.b64encode(hashlib.sha256(HASHED).digest()).decode()

    assert digest.rstrip("=") == content_hash(EVENT, version)


@EVERY
def test_no_other_field_is_left_out_of_the_content_hash(version: RoomVersion) -> None:
    # Servers were seen to leave these out; the specification does not.
    for name in ("age_ts", "outlier", "destinations"):
        assert content_hash(EVENT, version) != content_hash({**EVENT, name: 1}, version)


@pytest.mark.parametrize("version", [V1, V2], ids=str)
def test_the_event_names_its_id_until_version_2(version: RoomVersion) -> None:
    event = {**EVENT, "event_id": "$1:a.example"}

    assert "$1:a.example" == event_id(event, version)
    assert b'"event_id":"$1:a.example"' in signing_bytes(event, version)


def with_hash_of_both_alphabets(version: RoomVersion) -> tuple[dict[str, Any], bytes]:
    """Return an event whose reference hash has a + and a / in base64."""
    for depth in range(1000):
        event = {**EVENT, "depth": depth}
        encoded = base64.b64encode(digest := reference_hash(event, version))
        if b"+" in encoded and b"/" in encoded:
            return event, digest
    raise AssertionError


def test_the_event_id_is_the_reference_hash_in_base64_in_version_3() -> None:
    event, digest = with_hash_of_both_alphabets(V3)

    assert "$" + base64.b64encode(digest).decode().rstrip("=") == event_id(event, V3)


@pytest.mark.parametrize("version", [V4, V5, V6, V10, V11, V12], ids=str)
def test_the_event_id_is_url_safe_since_version_4(version: RoomVersion) -> None:
    event, digest = with_hash_of_both_alphabets(version)

    assert "$" + base64.urlsafe_b64encode(digest).decode().rstrip("=") == event_id(event, version)


def test_a_create_event_of_version_12_has_an_id_without_a_room_id() -> None:
    event = {k: v for k, v in EVENT.items() if k not in ("room_id", "state_key")}
    event |= {"type": "m.room.create", "state_key": "", "content": {"room_version": "12"}}

    assert 44 == len(event_id(event, V12))
    assert b"room_id" not in signing_bytes(event, V12)
    check_size(event, V12)


@EVERY
def test_numbers_of_old_events_count_as_they_are(version: RoomVersion) -> None:
    event = {**EVENT, "depth": 2**60, "content": {"membership": "invite", "x": 1.5}}
    if version.strict_canonical_json:
        for hashing in (content_hash, reference_hash, signing_bytes, event_id):
            with pytest.raises(canonical_json.CanonicalJsonError):
                hashing(event, version)
    else:
        assert REDACTED.replace(b":3", b":1152921504606846976") == signing_bytes(event, version)
        assert 43 == len(content_hash(event, version))


@given(events, versions)
def test_redaction_changes_no_reference_hash(event: dict[str, Any], version: RoomVersion) -> None:
    redacted = redact(event, version)

    assert reference_hash(event, version) == reference_hash(redacted, version)
    assert set(json.loads(signing_bytes(event, version))) == set(redacted) - {"signatures"}


@given(events, versions, json_values)
def test_signatures_and_unsigned_change_no_hash(
    event: dict[str, Any], version: RoomVersion, value: Any
) -> None:
    changed = {**event, "signatures": value, "unsigned": value}

    assert content_hash(event, version) == content_hash(changed, version)
    assert reference_hash(event, version) == reference_hash(changed, version)
    hashes = {**event, "hashes": value}
    assert content_hash(event, version) == content_hash(hashes, version)


# --- Sizes --------------------------------------------------------------------------------------


def of_size(size: int) -> dict[str, Any]:
    event = {**EVENT, "content": {"body": ""}}
    missing = size - len(canonical_json.encode(event))
    return {**event, "content": {"body": "x" * missing}}


@EVERY
def test_an_event_has_65536_bytes_at_most(version: RoomVersion) -> None:
    check_size(of_size(MAX_EVENT_BYTES), version)

    with pytest.raises(InvalidInviteError, match="has 65537 bytes, 65536 are allowed") as caught:
        check_size(of_size(MAX_EVENT_BYTES + 1), version, field="reply.event")
    assert "reply.event" == caught.value.field


@pytest.mark.parametrize("name", ["sender", "room_id", "state_key", "type", "event_id"])
def test_an_id_has_255_bytes_at_most(name: str) -> None:
    check_size({**EVENT, name: "x" * MAX_ID_BYTES}, V10)

    # Bytes, not characters.
    with pytest.raises(InvalidInviteError, match="has 256 bytes, 255 are allowed") as caught:
        check_size({**EVENT, name: "é" * 128}, V10)
    assert f"event.{name}" == caught.value.field


def test_a_missing_or_odd_id_is_not_the_business_of_sizes() -> None:
    check_size({"sender": 1, "room_id": None}, V10)


@pytest.mark.parametrize("value", ["\ud800", 1.5, 2**53, (1,), b"x"])
def test_an_event_that_is_not_json_has_no_size(value: object) -> None:
    for name in ("sender", "content"):
        with pytest.raises(InvalidInviteError, match="is not canonical JSON") as caught:
            check_size({**EVENT, name: value}, V10)
        assert "event" == caught.value.field
