"""Invites to a real homeserver, and what is expected of its answer, whatever its software."""

from __future__ import annotations

import copy
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
from invite_client.errors import Delivery
from invite_client.interfaces import AttemptLog
from invite_client.net.http import HttpTransport
from invite_client.spec import events
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.signatures import SigningKey, json_is_signed, sign_event
from tests.interop.inviter import Inviter, create_room
from tests.interop.remote import Remote

ODD_TEXT = 'é"\\/\b\f\n\r\t\x00\x1f\x7f\u2028\uffff😀'
"""Escapes, and characters outside the BMP: both sides must agree on bytes."""
THIRD_PARTY_INVITE = {
    "display_name": "b...@e...",
    "signed": {
        "mxid": "@bob:localhost",
        "token": "abc123",
        "signatures": {"id.example": {"ed25519:0": "x" * 86}},
    },
}
LOST = {
    "404 empty": Reply(404, b""),
    "400 M_UNRECOGNIZED": Reply(
        400, b'{"errcode":"M_UNRECOGNIZED","error":"Unrecognized request"}'
    ),
}
"""What proxies answer that know only v1."""
V1_VERSIONS = [name for name, version in ROOM_VERSIONS.items() if version.v1_invite_fallback]


def policy_for(remote: Remote) -> Policy:
    """Return a policy with which a remote on loopback can be invited from."""
    return Policy(
        tls=TlsPolicy(ca_file=str(remote.ca_file)),
        addresses=AddressPolicy(allowed=("127.0.0.0/8", "::1/128")),
    )


async def invite_somebody(
    remote: Remote, inviter: Inviter, identifier: str = "10", **content: Any
) -> Invite:
    """Return an invite of a new user of the remote to a new room of ours."""
    target = await remote.register()
    room = create_room(inviter, identifier).snapshot()
    return Invite.build(room, target.user_id, inviter.signing_key, content=content)


def with_stripped_state(invite: Invite) -> Invite:
    """Return an invite whose room state has but the fields that a client shows."""
    shown = ("type", "state_key", "sender", "content")
    state = [{name: event[name] for name in shown} for event in invite.invite_room_state]
    return Invite.from_pdu(invite.event, invite.room_version.identifier, state)


def of_unknown_version(invite: Invite) -> Invite:
    """Return an invite to a room whose rules only we know."""
    ours = replace(invite.room_version, identifier="example.ours.1")
    return replace(invite, room_version=ours)


def for_somebody_elsewhere(remote: Remote, inviter: Inviter, identifier: str = "10") -> Invite:
    """Return an invite of somebody else's user that is addressed to the remote all the same."""
    room = create_room(inviter, identifier).snapshot()
    return replace(
        Invite.build(room, "@bob:elsewhere.example", inviter.signing_key),
        destination=parse_server_name(remote.server_name),
    )


def badly_signed(invite: Invite, inviter: Inviter) -> Invite:
    """Return an invite whose event has a signature of something else."""
    event = copy.deepcopy(invite.event)
    key = inviter.signing_key
    event["signatures"][inviter.server_name][key.key_id] = key.sign(b"something else")
    return Invite.from_pdu(event, invite.room_version.identifier, invite.invite_room_state)


def signed_with(key: SigningKey, invite: Invite, inviter: Inviter) -> Invite:
    """Return an invite whose event is signed with another key than the request."""
    unsigned = {**invite.event, "signatures": {}}
    event = sign_event(unsigned, inviter.server_name, key, invite.room_version)
    return Invite.from_pdu(event, invite.room_version.identifier, invite.invite_room_state)


async def refusal(client: InviteClient, invite: Invite) -> InviteRejectedError:
    """Send an invite, and return the error that it comes to: an answer that is final."""
    with pytest.raises(InviteRejectedError) as caught:
        await client.send_invite(invite)
    error = caught.value
    assert error.delivery is Delivery.ANSWERED
    assert not error.retryable
    for words in (error.errcode, error.error):
        assert words is None or words[:100] in str(error)  # in a log they are cut short
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

    def __init__(self, remote: Remote) -> None:
        self.remote = parse_server_name(remote.server_name)

    async def resolve(self, name: ServerName) -> ResolvedServer:
        assert self.remote.port is not None
        return ResolvedServer(
            server_name=str(name),
            step="3.2",
            targets=(Target(self.remote.host, self.remote.port),),
            host_header=str(self.remote),
            tls_name=self.remote.host,
        )

    async def forget(self, name: ServerName) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def invite_behind_old_proxy(
    remote: Remote, inviter: Inviter, policy: Policy, identifier: str, lost: Reply
) -> list[dict[str, Any]]:
    """Invite a user in a room of a version where v2 is lost, and see that v1 is signed and kept.

    Returns what the user's client shows.
    """
    # Given a remote behind a proxy that knows only v1
    bob = await remote.register()
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

    # Then the invite went by v1, and is countersigned
    assert "PUT v1 invite" in transport.passed
    assert signed.endpoint == "v1"
    assert set(signed.event["signatures"]) == {inviter.server_name, remote.server_name}
    # (the state that v1 carries in `unsigned` is of the request, not of the event that we keep)
    assert signed.event.get("unsigned", {}) == invite.event.get("unsigned", {})
    return await remote.invite_state(bob, invite.room_id)


async def invite_by_v2(
    remote: Remote, inviter: Inviter, client: InviteClient, identifier: str
) -> None:
    """Invite a user in a room of a version, and see that it is signed, kept and shown."""
    # Given a room of this version and a user of the remote
    bob = await remote.register()
    room = create_room(inviter, identifier, name=f"Tea {identifier}")
    invite = Invite.build(
        room.snapshot(), bob.user_id, inviter.signing_key, content={"displayname": "Bob"}
    )

    # When they are invited
    signed = await client.send_invite(invite)

    # Then the remote has signed our event by v2, and what we keep is our event with both signatures
    assert signed.endpoint == "v2"
    keys = await client.server_keys(remote.server_name)
    assert set(signed.signatures) <= set(keys.keys)
    redacted = events.redact(signed.event, room.version)
    for key_id in signed.signatures:
        assert json_is_signed(redacted, remote.server_name, keys.keys[key_id].key)
    assert json_is_signed(redacted, inviter.server_name, inviter.signing_key.verify_key)
    assert set(signed.event["signatures"]) == {inviter.server_name, remote.server_name}
    assert events.event_id(signed.event, room.version) == invite.event_id
    assert {**signed.event, "signatures": None} == {**invite.event, "signatures": None}
    # and their own client shows the invite, the room's name and who it was
    state = await remote.invite_state(bob, invite.room_id)
    shown = {(event["type"], event["state_key"]): event for event in state}
    assert shown["m.room.name", ""]["content"]["name"] == f"Tea {identifier}"
    assert shown["m.room.create", ""]["sender"] == inviter.user_id
    assert shown["m.room.member", bob.user_id]["sender"] == inviter.user_id
