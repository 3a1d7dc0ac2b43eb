"""Synapse's own functions as the judge of ours: redaction, hashes, event IDs, signatures.

Events are generated for every room version, with what the specification says and with what it
does not forbid: surplus fields at the top and in the content, old fields that only early room
versions keep through redaction, and content of any shape under the types that redaction knows.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from invite_client.spec import canonical_json, events
from invite_client.spec.invites import Invite
from invite_client.spec.room_versions import ROOM_VERSIONS, EventIdFormat, RoomVersion
from invite_client.spec.signatures import SigningKey, sign_event
from tests.interop.inviter import Inviter, create_room

pytest.importorskip("synapse", reason="needs matrix-synapse, which the extra `dev` brings")
with warnings.catch_warnings():
    # What Synapse and its dependencies are warned of is not ours to mend.
    warnings.simplefilter("ignore")
    import signedjson.key
    from canonicaljson import encode_canonical_json
    from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
    from synapse.crypto import event_signing
    from synapse.events import make_event_from_dict
    from synapse.events.utils import prune_event
    from unpaddedbase64 import encode_base64

pytestmark = pytest.mark.interop

# --- Generated events ---------------------------------------------------------------------------

# Lone surrogates are not Unicode text, and no JSON that travels has them.
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
integers = st.integers(-(2**53) + 1, 2**53 - 1)
# What peers accepted before version 6: any number that JSON has. Floats are written as Python
# writes them.
loose_numbers = (
    integers | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
)

TYPES = (
    "m.room.member",
    "m.room.create",
    "m.room.join_rules",
    "m.room.power_levels",
    "m.room.aliases",
    "m.room.history_visibility",
    "m.room.redaction",
    "m.room.name",
)
CONTENT_KEYS = (
    "membership",
    "join_authorised_via_users_server",
    "third_party_invite",
    "signed",
    "creator",
    "room_version",
    "additional_creators",
    "join_rule",
    "allow",
    "users",
    "users_default",
    "events",
    "events_default",
    "state_default",
    "ban",
    "kick",
    "redact",
    "invite",
    "notifications",
    "aliases",
    "history_visibility",
    "redacts",
    "displayname",
    "avatar_url",
    "is_direct",
    "m.federate",
    "type",
    "sender",
    "unsigned",
)


def json_values(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=6,
    )


def contents(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    values = json_values(numbers)
    nested = values | st.dictionaries(st.sampled_from(CONTENT_KEYS), values, max_size=4)
    return st.dictionaries(st.sampled_from(CONTENT_KEYS) | text, nested, max_size=6)


# Made once: to make them for each example takes longer than to draw from them.
strict_contents, loose_contents = contents(integers), contents(loose_numbers)
event_ids = text.map(lambda part: f"${part}:a.example")
hashed_ids = st.tuples(event_ids, text).map(lambda pair: [pair[0], {"sha256": pair[1]}])
kinds = st.sampled_from(TYPES) | text


@st.composite
def generated_events(draw: st.DrawFn, version: RoomVersion) -> events.Event:
    content = draw(strict_contents if version.strict_canonical_json else loose_contents)
    reference = hashed_ids if version.event_references_have_hashes else event_ids
    kind = draw(kinds)
    # A create event whose ID is the room's has no room ID, and nothing before it.
    is_create = version.room_id_is_create_event_id and kind == "m.room.create"
    event: events.Event = {
        "type": kind,
        "sender": f"@{draw(text)}:a.example",
        "content": content,
        "depth": draw(st.integers(0, 2**53 - 1)),
        "origin_server_ts": draw(st.integers(0, 2**53 - 1)),
        "prev_events": [] if is_create else draw(st.lists(reference, max_size=3)),
        "auth_events": [] if is_create else draw(st.lists(reference, max_size=3)),
        "hashes": {"sha256": draw(text)},
        "signatures": {"a.example": {"ed25519:old": "x" * 86}},
    }
    if is_create:
        event["state_key"] = ""
    else:
        event["room_id"] = "!" + (
            "A" * 43 if version.room_id_is_create_event_id else f"{draw(text)}:a.example"
        )
        if draw(st.booleans()):
            event["state_key"] = draw(text)
    if version.event_id_format is EventIdFormat.IN_EVENT:
        event["event_id"] = f"${draw(text)}:a.example"
    # Fields that some room versions keep, and fields that none knows.
    for name in ("origin", "membership", "redacts", "displayname", "msc_example"):
        if draw(st.booleans()):
            event[name] = draw(text)
    if draw(st.booleans()):
        event["prev_state"] = draw(st.lists(reference, max_size=2))
    if draw(st.booleans()):
        event["unsigned"] = {"age": draw(st.integers(0, 2**53 - 1)), "other": draw(text)}
    return event


in_every_room_version = pytest.mark.parametrize(
    "version", ROOM_VERSIONS.values(), ids=ROOM_VERSIONS
)
# A busy machine is no reason to fail.
thoroughly = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def synapse_event(event: events.Event, version: RoomVersion) -> Any:
    return make_event_from_dict(event, KNOWN_ROOM_VERSIONS[version.identifier])


def synapse_key(seed: bytes) -> Any:
    return signedjson.key.decode_signing_key_base64("ed25519", "a_1", encode_base64(seed))


def without_unsigned(event: events.Event) -> events.Event:
    # Synapse adds an empty `unsigned` of its own to what it redacts.
    return {name: value for name, value in event.items() if name != "unsigned"}


# --- The judgements -----------------------------------------------------------------------------


def test_it_knows_the_same_room_versions() -> None:
    stable = {name for name in KNOWN_ROOM_VERSIONS if "." not in name}
    assert set(ROOM_VERSIONS) == stable


@pytest.mark.parametrize("identifier", list(ROOM_VERSIONS))
def test_room_versions_have_the_same_traits(identifier: str) -> None:
    ours, theirs = ROOM_VERSIONS[identifier], KNOWN_ROOM_VERSIONS[identifier]
    assert ours.strict_canonical_json == theirs.strict_canonicaljson
    assert ours.enforce_key_validity == theirs.enforce_key_validity
    assert ours.room_id_is_create_event_id == theirs.msc4291_room_ids_as_hashes


@in_every_room_version
@thoroughly
@given(data=st.data())
def test_redaction_is_the_same(version: RoomVersion, data: st.DataObject) -> None:
    event = data.draw(generated_events(version))
    theirs = prune_event(synapse_event(event, version)).get_pdu_json()
    ours = events.redact(event, version)
    # As bytes, because to Python 1, 1.0 and True are equal.
    assert canonical_json.encode(
        without_unsigned(ours), strict=version.strict_canonical_json
    ) == encode_canonical_json(without_unsigned(theirs))


@in_every_room_version
@pytest.mark.parametrize(
    "third_party_invite",
    [{}, {"display_name": "b"}, {"signed": None}, {"signed": {"token": "t"}, "x": 1}, None, []],
    ids=repr,
)
def test_redaction_of_a_third_party_invite_is_the_same(
    version: RoomVersion, third_party_invite: Any
) -> None:
    # The specification leaves open what becomes of an object of which nothing stays.
    event = {
        "type": "m.room.member",
        "state_key": "@bob:b.example",
        "sender": "@alice:a.example",
        "room_id": "!" + "A" * 43,
        "depth": 1,
        "origin_server_ts": 1,
        "prev_events": [],
        "auth_events": [],
        "hashes": {},
        "signatures": {},
        "content": {"membership": "invite", "third_party_invite": third_party_invite},
    }
    if version.event_id_format is EventIdFormat.IN_EVENT:
        event["event_id"] = "$1:a.example"
    theirs = prune_event(synapse_event(event, version)).get_pdu_json()
    assert events.redact(event, version)["content"] == theirs["content"]


@in_every_room_version
@thoroughly
@given(data=st.data())
def test_content_hash_is_the_same(version: RoomVersion, data: st.DataObject) -> None:
    event = data.draw(generated_events(version))
    _, digest = event_signing.compute_content_hash(event, hashlib.sha256)
    assert events.content_hash(event, version) == encode_base64(digest)


@in_every_room_version
@thoroughly
@given(data=st.data())
def test_reference_hash_and_event_id_are_the_same(
    version: RoomVersion, data: st.DataObject
) -> None:
    event = data.draw(generated_events(version))
    theirs = synapse_event(event, version)
    _, digest = event_signing.compute_event_reference_hash(theirs)
    assert events.reference_hash(event, version) == digest
    assert events.event_id(event, version) == theirs.event_id


@in_every_room_version
@thoroughly
@given(data=st.data(), seed=st.binary(min_size=32, max_size=32))
def test_signature_is_the_same(version: RoomVersion, data: st.DataObject, seed: bytes) -> None:
    event = {**data.draw(generated_events(version)), "signatures": {}, "hashes": {}}
    by_us = sign_event(
        event, "b.example", SigningKey.from_seed("a_1", encode_base64(seed)), version
    )

    by_them = copy.deepcopy(event)  # It works in place.
    event_signing.add_hashes_and_signatures(
        KNOWN_ROOM_VERSIONS[version.identifier], by_them, "b.example", synapse_key(seed)
    )

    assert by_us["hashes"] == by_them["hashes"]
    assert by_us["signatures"] == by_them["signatures"]
    assert event_signing.check_event_content_hash(synapse_event(by_us, version))


@in_every_room_version
def test_an_invite_made_by_its_functions_is_one_of_ours(version: RoomVersion) -> None:
    # Given an invite that a host has built, hashed and signed with Synapse's functions
    seed = b"s" * 32
    ours = SigningKey.from_seed("a_1", encode_base64(seed))
    room = create_room(Inviter("a.example", ours, (ours,)), version.identifier).snapshot()
    built = Invite.build(room, "@bob:b.example", ours)
    event = {
        name: value for name, value in built.event.items() if name not in ("hashes", "signatures")
    }
    event_signing.add_hashes_and_signatures(
        KNOWN_ROOM_VERSIONS[version.identifier], event, "a.example", synapse_key(seed)
    )

    # When it is taken, then it is the same as the one built here
    invite = Invite.from_pdu(event, version.identifier, room.invite_room_state)
    assert invite == built
    assert invite.event_id == synapse_event(event, version).event_id


@thoroughly
@given(json_values(integers))
def test_canonical_json_is_the_same(value: Any) -> None:
    assert canonical_json.encode(value) == encode_canonical_json(value)


@thoroughly
@given(json_values(loose_numbers))
def test_loose_canonical_json_is_the_same(value: Any) -> None:
    assert canonical_json.encode(value, strict=False) == encode_canonical_json(value)
