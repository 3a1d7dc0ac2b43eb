"""Our invites and a real Synapse: what it countersigns, and what it refuses in which words."""

from __future__ import annotations

import copy
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from invite_client import (
    AddressPolicy,
    Invite,
    InviteClient,
    InviteRejectedError,
    Policy,
    TlsPolicy,
)
from invite_client.errors import Delivery, InvalidInviteError
from invite_client.interfaces import AttemptLog
from invite_client.net.http import HttpTransport
from invite_client.spec import events
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.spec.room_versions import ROOM_VERSIONS, room_version
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.signatures import SigningKey, json_is_signed, sign_event
from tests.interop.inviter import Inviter, create_room
from tests.interop.synapse import Synapse

pytestmark = pytest.mark.interop

V1_VERSIONS = [name for name, version in ROOM_VERSIONS.items() if version.v1_invite_fallback]


@pytest.fixture
def policy(synapse: Synapse) -> Policy:
    return Policy(
        tls=TlsPolicy(ca_file=str(synapse.ca_file)),
        addresses=AddressPolicy(allowed=("127.0.0.0/8", "::1/128")),
    )


@pytest.fixture
async def client(inviter: Inviter, policy: Policy) -> AsyncIterator[InviteClient]:
    async with InviteClient(inviter.server_name, inviter.signing_key, policy=policy) as client:
        yield client


async def invite_somebody(
    synapse: Synapse, inviter: Inviter, identifier: str = "10", **content: Any
) -> Invite:
    target = await synapse.register()
    room = create_room(inviter, identifier).snapshot()
    return Invite.build(room, target.user_id, inviter.signing_key, content=content)


async def refusal(client: InviteClient, invite: Invite) -> InviteRejectedError:
    with pytest.raises(InviteRejectedError) as caught:
        await client.send_invite(invite)
    error = caught.value
    assert error.delivery is Delivery.ANSWERED
    assert not error.retryable
    assert error.errcode is not None
    assert error.errcode in str(error)
    assert error.error is not None
    assert error.error[:100] in str(error)  # in a log it is cut short
    return error


class BehindOldProxy:
    """A transport that loses every v2 request on the way, as a proxy does that knows only v1."""

    def __init__(self, policy: Policy, lost: Reply) -> None:
        self.inner = HttpTransport(policy)
        self.lost = lost
        self.passed: list[str] = []

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        if request.uri.startswith("/_matrix/federation/v2/"):
            return self.lost
        self.passed.append(request.what)
        return await self.inner.exchange(server, request, limit=limit, log=log)

    async def aclose(self) -> None:
        await self.inner.aclose()


class LeadsTo:
    """A resolver by which every server name leads to one server: delegation gone wrong."""

    def __init__(self, synapse: Synapse) -> None:
        self.synapse = parse_server_name(synapse.server_name)

    async def resolve(self, name: ServerName) -> ResolvedServer:
        assert self.synapse.port is not None
        return ResolvedServer(
            server_name=str(name),
            step="3.2",
            targets=(Target(self.synapse.host, self.synapse.port),),
            host_header=str(self.synapse),
            tls_name=self.synapse.host,
        )

    async def forget(self, name: ServerName) -> None:
        pass

    async def aclose(self) -> None:
        pass


# --- What it countersigns -----------------------------------------------------------------------


@pytest.mark.parametrize("identifier", list(ROOM_VERSIONS))
async def test_v2_invite_is_countersigned_and_shown_with_the_room_name(
    identifier: str, synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Given a room of this version and a user of the Synapse
    bob = await synapse.register()
    room = create_room(inviter, identifier, name=f"Tea {identifier}")
    invite = Invite.build(
        room.snapshot(), bob.user_id, inviter.signing_key, content={"displayname": "Bob"}
    )

    # When they are invited
    signed = await client.send_invite(invite)

    # Then the Synapse has signed our event by v2, and what we keep is our event with both signatures
    assert signed.endpoint == "v2"
    keys = await client.server_keys(synapse.server_name)
    assert set(signed.signatures) <= set(keys.keys)
    redacted = events.redact(signed.event, room.version)
    for key_id in signed.signatures:
        assert json_is_signed(redacted, synapse.server_name, keys.keys[key_id].key)
    assert json_is_signed(redacted, inviter.server_name, inviter.signing_key.verify_key)
    assert set(signed.event["signatures"]) == {inviter.server_name, synapse.server_name}
    assert events.event_id(signed.event, room.version) == invite.event_id
    assert {**signed.event, "signatures": None} == {**invite.event, "signatures": None}
    # and their own client shows the invite, the room's name and who it was
    state = await synapse.invite_state(bob, invite.room_id)
    shown = {(event["type"], event["state_key"]): event for event in state}
    assert shown["m.room.name", ""]["content"]["name"] == f"Tea {identifier}"
    assert shown["m.room.create", ""]["sender"] == inviter.user_id
    assert shown["m.room.member", bob.user_id]["sender"] == inviter.user_id


@pytest.mark.parametrize("identifier", V1_VERSIONS)
@pytest.mark.parametrize(
    "lost",
    [
        Reply(404, b""),
        Reply(400, b'{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}'),
    ],
    ids=["404 empty", "400 M_UNRECOGNIZED"],
)
async def test_v1_invite_is_countersigned_and_shown_with_the_room_name(
    identifier: str, lost: Reply, synapse: Synapse, inviter: Inviter, policy: Policy
) -> None:
    # Given a Synapse behind a proxy that knows only v1
    bob = await synapse.register()
    invite = Invite.build(
        create_room(inviter, identifier).snapshot(), bob.user_id, inviter.signing_key
    )
    transport = BehindOldProxy(policy, lost)

    # When its user is invited
    client = InviteClient(
        inviter.server_name, inviter.signing_key, policy=policy, transport=transport
    )
    try:
        async with client:
            signed = await client.send_invite(invite)
    finally:
        await transport.aclose()

    # Then the invite went by v1, is countersigned, and is shown
    assert "PUT v1 invite" in transport.passed
    assert signed.endpoint == "v1"
    assert set(signed.event["signatures"]) == {inviter.server_name, synapse.server_name}
    # (the state that v1 carries in `unsigned` is of the request, not of the event that we keep)
    assert signed.event.get("unsigned", {}) == invite.event.get("unsigned", {})
    state = await synapse.invite_state(bob, invite.room_id)
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
    signed_by_identity_server = {
        "mxid": "@bob:localhost",
        "token": "abc123",
        "signatures": {"id.example": {"ed25519:0": "x" * 86}},
    }
    third_party = {"display_name": "b...@e...", "signed": signed_by_identity_server}
    invite = await invite_somebody(synapse, inviter, identifier, third_party_invite=third_party)

    signed = await client.send_invite(invite)

    assert signed.event["content"]["third_party_invite"] == third_party


@pytest.mark.parametrize("identifier", ["1", "5", "11"])
async def test_stripped_state_is_enough_before_version_12(
    identifier: str, synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    bob = await synapse.register()
    room = create_room(inviter, identifier).snapshot()
    stripped = [
        {name: event[name] for name in ("type", "state_key", "sender", "content")}
        for event in room.invite_room_state
    ]
    invite = Invite.build(
        replace(room, invite_room_state=stripped), bob.user_id, inviter.signing_key
    )

    await client.send_invite(invite)

    state = await synapse.invite_state(bob, invite.room_id)
    assert any(event["content"].get("name") == "Tea at five" for event in state)


async def test_an_event_with_every_kind_of_text_is_countersigned(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Escapes, characters outside the BMP, keys in code point order: both sides must agree on bytes.
    odd = 'é"\\/\b\f\n\r\t\x00\x1f\x7f\u2028\uffff😀'
    invite = await invite_somebody(
        synapse,
        inviter,
        displayname=odd,
        reason=odd,
        **{odd: {"": [odd, None, True, -(2**53) + 1]}},
    )

    signed = await client.send_invite(invite)

    assert signed.event["content"]["displayname"] == odd


async def test_its_address_and_keys_are_found(synapse: Synapse, client: InviteClient) -> None:
    resolved = await client.resolve(synapse.server_name)
    assert resolved.step == "2"
    assert [str(target) for target in resolved.targets] == [synapse.server_name]

    keys = await client.server_keys(synapse.server_name)
    assert keys.server_name == synapse.server_name
    assert [key.old for key in keys.keys.values()] == [False]


# --- What it refuses ----------------------------------------------------------------------------


async def test_refusal_of_a_room_version_that_it_does_not_know(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Given rules of a room that only we know
    ours = replace(room_version("10"), identifier="example.ours.1")
    valid = await invite_somebody(synapse, inviter)
    invite = replace(valid, room_version=ours)

    error = await refusal(client, invite)

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
    # Given an invite of somebody else's user that is addressed to the Synapse all the same
    room = create_room(inviter, "10").snapshot()
    invite = replace(
        Invite.build(room, "@bob:elsewhere.example", inviter.signing_key),
        destination=parse_server_name(synapse.server_name),
    )

    error = await refusal(client, invite)

    assert (error.status, error.errcode) == (400, "M_UNKNOWN")
    assert error.error == "The invite event must be for this server"


async def test_refusal_of_a_bad_event_signature(
    synapse: Synapse, inviter: Inviter, client: InviteClient
) -> None:
    # Given an event whose signature is one of something else
    valid = await invite_somebody(synapse, inviter)
    event = copy.deepcopy(valid.event)
    key_id = inviter.signing_key.key_id
    event["signatures"][inviter.server_name][key_id] = inviter.signing_key.sign(b"something else")
    invite = Invite.from_pdu(event, "10", valid.invite_room_state)

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
    other = SigningKey.generate("unpublished")
    event = {**valid.event, "signatures": {}}
    event = sign_event(event, inviter.server_name, other, room_version("10"))
    invite = Invite.from_pdu(event, "10", valid.invite_room_state)

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
    room = create_room(inviter, identifier).snapshot()
    invite = replace(
        Invite.build(room, "@bob:elsewhere.example", inviter.signing_key),
        destination=parse_server_name(synapse.server_name),
    )

    error = await refusal(client, invite)

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
