"""Our invites and a real Synapse: what it countersigns, and what it refuses in which words."""

from __future__ import annotations

import copy
import secrets
from typing import Any

import pytest

from invite_client import Invite, InviteClient, Policy
from invite_client.errors import InvalidInviteError
from invite_client.spec.http import Reply
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.signatures import SigningKey
from tests.interop.inviter import Inviter, create_room
from tests.interop.invites import (
    LOST,
    ODD_TEXT,
    THIRD_PARTY_INVITE,
    V1_VERSIONS,
    LeadsTo,
    badly_signed,
    for_somebody_elsewhere,
    invite_behind_old_proxy,
    invite_by_v2,
    invite_somebody,
    of_unknown_version,
    refusal,
    signed_with,
    with_stripped_state,
)
from tests.interop.notaries import ask_notary
from tests.interop.synapse import Synapse

pytestmark = pytest.mark.interop


@pytest.fixture
def remote(synapse: Synapse) -> Synapse:
    return synapse


# --- What it countersigns -----------------------------------------------------------------------


@pytest.mark.parametrize("identifier", list(ROOM_VERSIONS))
async def test_v2_invite_is_countersigned_and_shown_with_the_room_name(
    identifier: str, synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    await invite_by_v2(synapse, inviter, client, identifier)


@pytest.mark.parametrize("identifier", V1_VERSIONS)
@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
async def test_v1_invite_is_countersigned_and_shown_with_the_room_name(
    identifier: str, lost: Reply, synapse: Synapse, inviter: Inviter, policy: Policy
) -> None:
    state = await invite_behind_old_proxy(synapse, inviter, policy, identifier, lost)

    names = [event["content"] for event in state if event["type"] == "m.room.name"]
    assert names == [{"name": "Tea at five"}]


async def test_the_same_invite_can_be_sent_again(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    invite = await invite_somebody(synapse, inviter)

    first = await client.send_invite(invite)
    second = await client.send_invite(invite)

    assert first.event == second.event


@pytest.mark.parametrize("identifier", ["1", "5", "10", "11", "12"])
async def test_a_third_party_invite_passes_untouched(
    identifier: str, synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    invite = await invite_somebody(
        synapse, inviter, identifier, third_party_invite=THIRD_PARTY_INVITE
    )

    signed = await client.send_invite(invite)

    assert signed.event["content"]["third_party_invite"] == THIRD_PARTY_INVITE


@pytest.mark.parametrize("identifier", ["1", "5", "11"])
async def test_stripped_state_is_enough_before_version_12(
    identifier: str, synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    bob = await synapse.register()
    room = create_room(inviter, identifier).snapshot()
    invite = with_stripped_state(Invite.build(room, bob.user_id, inviter.signing_key))

    await client.send_invite(invite)

    state = await synapse.invite_state(bob, invite.room_id)
    assert any(event["content"].get("name") == "Tea at five" for event in state)


async def test_an_event_with_every_kind_of_text_is_countersigned(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Also as keys, which canonical JSON orders by code point.
    odd: dict[str, Any] = {ODD_TEXT: {"": [ODD_TEXT, None, True, -(2**53) + 1]}}
    invite = await invite_somebody(synapse, inviter, displayname=ODD_TEXT, reason=ODD_TEXT, **odd)

    signed = await client.send_invite(invite)

    assert signed.event["content"]["displayname"] == ODD_TEXT


async def test_its_address_and_keys_are_found(synapse: Synapse, client: InviteClient) -> None:
    resolved = await client.resolve(synapse.server_name)
    assert resolved.step == "2"
    assert [str(target) for target in resolved.targets] == [synapse.server_name]

    keys = await client.server_keys(synapse.server_name)
    assert keys.server_name == synapse.server_name
    assert [key.old for key in keys.keys.values()] == [False]


async def test_it_is_believed_as_a_notary(synapse: Synapse, inviter: Inviter) -> None:
    await ask_notary(synapse, inviter)


# --- What it refuses ----------------------------------------------------------------------------


async def test_refusal_of_a_room_version_that_it_does_not_know(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    error = await refusal(client, of_unknown_version(await invite_somebody(synapse, inviter)))

    assert (error.status, error.errcode) == (400, "M_UNSUPPORTED_ROOM_VERSION")
    assert error.error == "Homeserver does not support this room version"
    # Our client is told by the one code that its API has for it.
    response = error.client_response()
    assert (response.status, response.errcode) == (400, "M_INCOMPATIBLE_ROOM_VERSION")


async def test_refusal_of_a_request_for_another_destination(
    synapse: Synapse, inviter: Inviter, policy: Policy
) -> None:
    # Given a server name that leads to the Synapse, but is not its name
    room = create_room(inviter, "10").snapshot()
    invite = Invite.build(room, "@bob:elsewhere.example", inviter.signing_key)

    async with InviteClient(
        inviter.server_name, inviter.signing_key, policy=policy, resolver=LeadsTo(synapse)
    ) as client:
        error = await refusal(client, invite)

    assert (error.status, error.errcode) == (401, "M_UNAUTHORIZED")
    assert error.error == "Destination mismatch in auth header, received: 'elsewhere.example'"
    assert error.client_response().status == 502


async def test_refusal_of_a_user_of_another_server(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    error = await refusal(client, for_somebody_elsewhere(synapse, inviter))

    assert (error.status, error.errcode) == (400, "M_UNKNOWN")
    assert error.error == "The invite event must be for this server"


async def test_refusal_of_a_bad_event_signature(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    invite = badly_signed(await invite_somebody(synapse, inviter), inviter)

    error = await refusal(client, invite)

    assert (error.status, error.errcode) == (403, "M_FORBIDDEN")
    assert invite.event_id in error.error
    assert f"unable to verify signature for sender domain {inviter.server_name}" in error.error
    assert "Signature was forged or corrupt" in error.error


async def test_refusal_of_an_event_signed_with_an_unknown_key(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Given an event signed with a key that we do not publish, in a request signed with one we do
    valid = await invite_somebody(synapse, inviter)
    invite = signed_with(SigningKey.generate("unpublished"), valid, inviter)

    error = await refusal(client, invite)

    assert (error.status, error.errcode) == (403, "M_FORBIDDEN")
    assert "Failed to find any key to satisfy" in error.error
    assert "ed25519:unpublished" in error.error


@pytest.mark.parametrize("published", ["nothing", "another key"])
async def test_refusal_of_a_request_signed_with_an_unknown_key(
    published: str, synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Given a server that forgot to publish the key it signs with
    inviter.published = () if published == "nothing" else (SigningKey.generate("another"),)
    invite = await invite_somebody(synapse, inviter)

    error = await refusal(client, invite)

    # Then the Synapse has looked for it, and the error says what to check
    assert inviter.key_requests > 0
    assert (error.status, error.errcode) == (401, "M_UNAUTHORIZED")
    assert "Failed to find any key to satisfy" in error.error
    assert inviter.signing_key.key_id in error.error
    assert "/_matrix/key/v2/server" in error.diagnosis()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("org.matrix.msc4155.invite_permission_config", {"blocked_servers": ["*"]}),
        ("org.matrix.msc4155.invite_permission_config", {"blocked_users": ["@alice:*"]}),
        ("m.invite_permission_config", {"default_action": "block"}),
    ],
    ids=["all servers", "the user", "everybody"],
)
async def test_refusal_by_the_invited_user(
    kind: str, content: dict[str, Any], synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Given a user who does not want to be invited
    bob = await synapse.register()
    await synapse.set_account_data(bob, kind, content)
    invite = Invite.build(create_room(inviter, "10").snapshot(), bob.user_id, inviter.signing_key)

    error = await refusal(client, invite)

    # Then they are not bothered, and our own client learns why
    assert (error.status, error.errcode) == (403, "M_INVITE_BLOCKED")
    assert error.error == "You are not permitted to invite this user."
    response = error.client_response()
    assert (response.status, response.errcode) == (403, "M_INVITE_BLOCKED")
    assert await synapse.invite_state(bob, invite.room_id) == []


@pytest.mark.parametrize("identifier", V1_VERSIONS)
async def test_refusal_by_both_endpoints(
    identifier: str, synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Given an invite in an old room that the Synapse answers with 400: v1 is asked as well
    error = await refusal(client, for_somebody_elsewhere(synapse, inviter, identifier))

    # Then one of its answers is raised and carries the other
    assert error.error == "The invite event must be for this server"
    assert error.other is not None
    assert error.other.error == error.error
    assert [attempt.what for attempt in error.attempts if attempt.what.startswith("PUT")] == [
        "PUT v2 invite",
        "PUT v1 invite",
    ]


async def test_what_it_would_redact_is_not_sent(synapse: Synapse, inviter: Inviter) -> None:
    # Synapse signs an event whose content hash is wrong, but without its content: the room would
    # get an invite that is not the one we made. So it does not leave the house.
    valid = await invite_somebody(synapse, inviter, displayname="Bob")
    event = copy.deepcopy(valid.event)
    event["content"]["displayname"] = "Mallory"

    with pytest.raises(InvalidInviteError, match=r"hashes\.sha256"):
        Invite.from_pdu(event, "10", valid.invite_room_state)


async def test_a_user_that_does_not_exist_is_invited_like_any_other(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Synapse does not tell strangers who its users are: a signature does not prove that one exists.
    room = create_room(inviter, "10").snapshot()
    target = f"@nobody{secrets.token_hex(4)}:{synapse.server_name}"

    signed = await client.send_invite(Invite.build(room, target, inviter.signing_key))

    assert signed.signatures
