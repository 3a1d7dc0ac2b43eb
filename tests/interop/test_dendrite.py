"""Our invites and a real Dendrite: what it countersigns, and what it refuses in which words.

These tests run where there is a Dendrite: on the PATH, or where the variable DENDRITE points. Where
it differs from Synapse, and from the specification, docs/conformance.md has the table.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from invite_client import Invite, InviteClient, Policy
from invite_client.cli.app import run
from invite_client.signing_keys import write_signing_key
from invite_client.spec.http import Reply
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.signatures import SigningKey
from tests.interop.dendrite import VARIABLE, Dendrite, find_dendrite, start_dendrite
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
from tests.interop.joining import invite_and_join
from tests.interop.notaries import ask_notary

pytestmark = pytest.mark.interop

if find_dendrite() is None:
    pytest.skip(f"needs a dendrite on the PATH, or its path in {VARIABLE}", allow_module_level=True)


@pytest.fixture(scope="module")
def dendrite(
    tmp_path_factory: pytest.TempPathFactory, interop_ca: trustme.CA
) -> Iterator[Dendrite]:
    """A real Dendrite on loopback."""
    with start_dendrite(tmp_path_factory.mktemp("dendrite"), interop_ca) as running:
        yield running


@pytest.fixture
def remote(dendrite: Dendrite) -> Dendrite:
    return dendrite


# --- What it countersigns -----------------------------------------------------------------------


@pytest.mark.parametrize("identifier", list(ROOM_VERSIONS))
async def test_v2_invite_is_countersigned_and_shown_with_the_room_name(
    identifier: str, dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    await invite_by_v2(dendrite, inviter, client, identifier)


@pytest.mark.parametrize("identifier", V1_VERSIONS)
@pytest.mark.parametrize("lost", LOST.values(), ids=LOST)
async def test_v1_invite_is_countersigned_and_shown(
    identifier: str, lost: Reply, dendrite: Dendrite, inviter: Inviter, policy: Policy
) -> None:
    state = await invite_behind_old_proxy(dendrite, inviter, policy, identifier, lost)

    # Dendrite passes over the room's state in a v1 request: its user sees who invites, but no name.
    assert [inviter.user_id] == [
        event["sender"] for event in state if event["type"] == "m.room.member"
    ]


@pytest.mark.parametrize("room_version", ["1", "2", "10", "11", "12"])
async def test_who_accepts_our_invite_is_in_the_room_on_both_sides(
    room_version: str, dendrite: Dendrite, certificate: str
) -> None:
    await invite_and_join(dendrite, certificate, room_version)


async def test_the_same_invite_can_be_sent_again(
    dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    invite = await invite_somebody(dendrite, inviter)

    first = await client.send_invite(invite)
    second = await client.send_invite(invite)

    assert first.event == second.event


@pytest.mark.parametrize("identifier", ["1", "5", "11"])
async def test_stripped_state_is_enough_before_version_12(
    identifier: str, dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    bob = await dendrite.register()
    room = create_room(inviter, identifier).snapshot()
    invite = with_stripped_state(Invite.build(room, bob.user_id, inviter.signing_key))

    await client.send_invite(invite)

    state = await dendrite.invite_state(bob, invite.room_id)
    assert any(event["content"].get("name") == "Tea at five" for event in state)


async def test_its_answer_may_be_longer_than_the_request(
    dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    # Given a room's state that it returns in six times the bytes, for it escapes what is HTML
    bob = await dendrite.register()
    history = create_room(inviter, "12")
    for n in range(4):
        history.add("m.room.topic", {"topic": "<" * 60_000}, str(n))
    room = replace(history.snapshot(), invite_room_state=list(history.state.values()))

    signed = await client.send_invite(Invite.build(room, bob.user_id, inviter.signing_key))

    assert signed.signatures


async def test_every_kind_of_text_is_countersigned(
    dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    invite = await invite_somebody(dendrite, inviter, displayname=ODD_TEXT, reason="<b>&amp;</b>")

    signed = await client.send_invite(invite)

    assert ODD_TEXT == signed.event["content"]["displayname"]


async def test_a_user_that_does_not_exist_is_invited_like_any_other(
    dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    room = create_room(inviter, "10").snapshot()
    target = f"@nobody{secrets.token_hex(4)}:{dendrite.server_name}"

    signed = await client.send_invite(Invite.build(room, target, inviter.signing_key))

    assert signed.signatures


@pytest.mark.parametrize("identifier", ["1", "5", "10"])
async def test_a_third_party_invite_passes_untouched(
    identifier: str, dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    invite = await invite_somebody(
        dendrite, inviter, identifier, third_party_invite=THIRD_PARTY_INVITE
    )

    signed = await client.send_invite(invite)

    assert THIRD_PARTY_INVITE == signed.event["content"]["third_party_invite"]


async def test_its_address_and_keys_are_found(dendrite: Dendrite, client: InviteClient) -> None:
    resolved = await client.resolve(dendrite.server_name)
    assert "2" == resolved.step
    assert [dendrite.server_name] == [str(target) for target in resolved.targets]

    keys = await client.server_keys(dendrite.server_name)
    assert dendrite.server_name == keys.server_name
    assert [False] == [key.old for key in keys.keys.values()]


async def test_it_is_believed_as_a_notary(dendrite: Dendrite, inviter: Inviter) -> None:
    await ask_notary(dendrite, inviter)


# --- What it refuses ----------------------------------------------------------------------------


async def test_refusal_of_a_room_version_that_it_does_not_know(
    dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    error = await refusal(client, of_unknown_version(await invite_somebody(dendrite, inviter)))

    assert (400, "M_UNSUPPORTED_ROOM_VERSION") == (error.status, error.errcode)
    assert 'Room version "example.ours.1" is not supported by this server.' == error.error
    response = error.client_response()
    assert (400, "M_INCOMPATIBLE_ROOM_VERSION") == (response.status, response.errcode)


async def test_refusal_of_a_request_for_another_destination(
    dendrite: Dendrite, inviter: Inviter, policy: Policy
) -> None:
    # Given a server name that leads to the Dendrite, but is not its name
    room = create_room(inviter, "10").snapshot()
    invite = Invite.build(room, "@bob:elsewhere.example", inviter.signing_key)

    async with InviteClient(
        inviter.server_name, inviter.signing_key, policy=policy, resolver=LeadsTo(dendrite)
    ) as client:
        error = await refusal(client, invite)

    # Then it says so in words that are no Matrix error, and they are shown
    assert (400, None, None) == (error.status, error.errcode, error.error)
    assert "Unrecognised server name" in str(error)
    assert 502 == error.client_response().status


async def test_refusal_of_a_user_of_another_server(
    dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    error = await refusal(client, for_somebody_elsewhere(dendrite, inviter))

    assert (400, "M_INVALID_PARAM") == (error.status, error.errcode)
    assert "The invited user domain does not belong to this server" == error.error
    # "…the sending server should not pass the error code to the client": it is about servers.
    assert 502 == error.client_response().status


@pytest.mark.parametrize("identifier", V1_VERSIONS)
async def test_refusal_by_both_endpoints(
    identifier: str, dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    error = await refusal(client, for_somebody_elsewhere(dendrite, inviter, identifier))

    assert error.other is not None
    assert error.error == error.other.error
    assert ["PUT v2 invite", "PUT v1 invite"] == [
        attempt.what for attempt in error.attempts if attempt.what.startswith("PUT")
    ]


@pytest.mark.parametrize("identifier", ["1", "4", "10", "12"])
async def test_refusal_of_a_bad_event_signature(
    identifier: str, dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    valid = await invite_somebody(dendrite, inviter, identifier)

    error = await refusal(client, badly_signed(valid, inviter))

    assert (403, "M_FORBIDDEN") == (error.status, error.errcode)
    assert "The invite must be signed by the server it originated on" == error.error


async def test_refusal_of_an_event_signed_with_an_unknown_key(
    dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    valid = await invite_somebody(dendrite, inviter)

    error = await refusal(client, signed_with(SigningKey.generate("other"), valid, inviter))

    assert (403, "M_FORBIDDEN") == (error.status, error.errcode)
    assert "The invite must be signed by the server it originated on" == error.error


@pytest.mark.parametrize("published", ["nothing", "another key"])
async def test_refusal_of_a_request_signed_with_an_unknown_key(
    published: str, dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    # Given a server that forgot to publish the key it signs with
    inviter.published = () if published == "nothing" else (SigningKey.generate("another"),)
    invite = await invite_somebody(dendrite, inviter)

    error = await refusal(client, invite)

    # Then the Dendrite has looked for it, and the error says what to check
    assert inviter.key_requests > 0
    assert (401, None, None) == (error.status, error.errcode, error.error)
    assert "Invalid request signature" in str(error)
    assert "/_matrix/key/v2/server" in error.diagnosis()


async def test_refusal_of_a_user_id_that_is_not_ascii(
    dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    room = create_room(inviter, "10").snapshot()
    invite = Invite.build(room, f"@böb:{dendrite.server_name}", inviter.signing_key)

    error = await refusal(client, invite)

    assert (400, "M_INVALID_PARAM") == (error.status, error.errcode)
    assert "The user ID is invalid" == error.error


# --- Where its bytes are not those of the specification -------------------------------------------


@pytest.mark.parametrize("name", ['"', "\\", "\n", "\x1f"])
async def test_a_name_that_must_be_escaped_makes_it_refuse_our_signature(
    name: str, dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    content: dict[str, Any] = {name: 1}

    error = await refusal(client, await invite_somebody(dendrite, inviter, **content))

    assert 401 == error.status
    assert "Invalid request signature" in str(error)


@pytest.mark.parametrize("identifier", ["11", "12"])
async def test_a_third_party_invite_has_another_event_id_there_from_version_11_on(
    identifier: str, dendrite: Dendrite, inviter: Inviter, client: InviteClient
) -> None:
    invite = await invite_somebody(
        dendrite, inviter, identifier, third_party_invite=THIRD_PARTY_INVITE
    )

    error = await refusal(client, invite)

    assert (400, "M_BAD_JSON") == (error.status, error.errcode)
    assert error.error is not None
    assert error.error.startswith("The event ID in the request path must match the event ID")
    assert 502 == error.client_response().status


# --- The command --------------------------------------------------------------------------------


async def test_a_dendrite_that_is_well_is_found_well(
    dendrite: Dendrite, inviter: Inviter, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_signing_key(tmp_path / "signing.key", inviter.signing_key)
    arguments = [
        *("doctor", dendrite.server_name, "--json"),
        *("--server-name", inviter.server_name),
        *("--signing-key", str(tmp_path / "signing.key")),
        *("--ca-file", str(dendrite.ca_file)),
        *("--allow-address", "127.0.0.0/8"),
        *("--allow-address", "::1"),
    ]

    code = await asyncio.to_thread(run, arguments)

    report = json.loads(capsys.readouterr().out)
    assert (0, True) == (code, report["ok"])
    assert report["software"].startswith("Dendrite ")
    assert {"v2": True, "v1": True} == {
        version: endpoint["exists"] for version, endpoint in report["endpoints"].items()
    }
    assert report["signature"]["accepted"]
