"""An invite in any room version, and the server that is asked to sign it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from invite_client.spec import events
from invite_client.spec.invites import Invite, Room
from invite_client.spec.room_versions import ROOM_VERSIONS, EventIdFormat
from invite_client.spec.server_keys import PublishedKey, ServerKeys
from invite_client.spec.signatures import SigningKey, sign_event

INVITER = "inviter.example"
INVITED = "remote.example"
NOW = 1_700_000_000_000


@pytest.fixture(scope="session")
def our_key() -> SigningKey:
    return SigningKey.generate("ours")


@pytest.fixture(scope="session")
def their_key() -> SigningKey:
    return SigningKey.generate("theirs")


@pytest.fixture(scope="session")
def make_room(our_key: SigningKey) -> Callable[[str], Room]:
    def make(version: str) -> Room:
        rules = ROOM_VERSIONS[version]
        sender = f"@alice:{INVITER}"
        create: dict[str, Any] = {
            "type": "m.room.create",
            "state_key": "",
            "sender": sender,
            "content": {"room_version": version, "creator": sender},
            "origin_server_ts": NOW - 1000,
            "depth": 1,
            "prev_events": [],
            "auth_events": [],
        }
        if not rules.room_id_is_create_event_id:
            create["room_id"] = f"!room:{INVITER}"
        if rules.event_id_format is EventIdFormat.IN_EVENT:
            create["event_id"] = f"$create:{INVITER}"
        create = sign_event(create, INVITER, our_key, rules)
        create_id = events.event_id(create, rules)
        reference: Any = create_id
        if rules.event_references_have_hashes:
            digest = events.encode_unpadded(events.reference_hash(create, rules))
            reference = [create_id, {"sha256": digest}]
        implied = rules.room_id_is_create_event_id
        return Room(
            room_id="!" + create_id[1:] if implied else f"!room:{INVITER}",
            room_version=version,
            sender=sender,
            depth=2,
            prev_events=[reference],
            auth_events=[] if implied else [reference],
            invite_room_state=[create],
        )

    return make


@pytest.fixture(scope="session")
def make_invite(our_key: SigningKey, make_room: Callable[[str], Room]) -> Callable[..., Invite]:
    def make(version: str = "10", target: str = f"@bob:{INVITED}", **content: Any) -> Invite:
        return Invite.build(
            make_room(version), target, our_key, content=content, origin_server_ts=NOW
        )

    return make


@pytest.fixture(scope="session")
def their_keys(their_key: SigningKey) -> ServerKeys:
    """What the invited server publishes, valid until a minute after the event."""
    published = PublishedKey(their_key.verify_key, NOW + 60_000)
    return ServerKeys(INVITED, {their_key.key_id: published}, NOW + 60_000, NOW, {})
