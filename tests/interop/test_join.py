"""An invite that leads to a join: a user of a real Synapse accepts, and is in the room on both sides."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from yarl import URL

from examples.minimal_homeserver import MatrixError
from invite_client import SigningKey, read_signing_key
from invite_client.spec import x_matrix
from invite_client.spec.signatures import sign_event
from tests.interop.joining import SECONDS, hosted, invite_and_join, join, message_from
from tests.interop.synapse import Synapse

pytestmark = pytest.mark.interop

EXAMPLE = Path(__file__).parents[2] / "examples" / "minimal_homeserver.py"


@pytest.mark.parametrize("room_version", ["1", "10", "11", "12"])
async def test_who_accepts_our_invite_is_in_the_room_on_both_sides(
    room_version: str, synapse: Synapse, certificate: str
) -> None:
    await invite_and_join(synapse, certificate, room_version)


async def test_what_the_synapse_has_missed_it_finds_at_our_homeserver(
    synapse: Synapse, certificate: str
) -> None:
    bob = await synapse.register()
    async with hosted(synapse, certificate, "11") as ours:
        room_id = ours.room.snapshot().room_id
        await ours.invite(bob.user_id)
        await join(synapse, bob, room_id)

        # Given a change of the room that was never sent to the Synapse
        await ours.persist(ours.room.add("m.room.topic", {"topic": "Green or black?"}))

        # When it is sent what came after
        await ours.say("Please choose")

        # Then it asks, is told, and takes both
        assert "Please choose" == await message_from(synapse, bob, room_id, ours.alice)
        path = f"/_matrix/client/v3/rooms/{quote(room_id)}/state/m.room.topic/"
        topic = await synapse.client_api("GET", path, token=bob.access_token)
        assert {"topic": "Green or black?"} == topic

        # And who scrolls back sees what was there before they came
        path = f"/_matrix/client/v3/rooms/{quote(room_id)}/messages?dir=b&limit=50"
        chunk = (await synapse.client_api("GET", path, token=bob.access_token))["chunk"]
        assert "m.room.create" == chunk[-1]["type"]


async def test_who_is_not_invited_does_not_come_in(synapse: Synapse, certificate: str) -> None:
    eve = await synapse.register()
    async with hosted(synapse, certificate, "10") as ours:
        room_id = ours.room.snapshot().room_id
        path = f"/_matrix/client/v3/join/{quote(room_id)}?server_name={ours.server_name}"
        with pytest.raises(AssertionError, match=r"403.*is not invited"):
            await synapse.client_api("POST", path, {}, token=eve.access_token)
        assert [ours.alice] == ours.members()


async def test_a_join_that_the_users_server_has_not_signed_is_refused(
    synapse: Synapse, certificate: str
) -> None:
    bob = await synapse.register()
    async with hosted(synapse, certificate, "10") as ours:
        # Given an invited user, and a join in their name by somebody who has not their server's key
        await ours.invite(bob.user_id)
        keys = await ours.client.server_keys(synapse.server_name)
        (key_id,) = keys.keys
        forger = SigningKey.generate(key_id.partition(":")[2])
        template = {
            **ours.room.state["m.room.member", bob.user_id],
            "sender": bob.user_id,
            "content": {"membership": "join"},
            "signatures": {},
        }
        forged = sign_event(template, synapse.server_name, forger, ours.room.version)

        # Then it is refused, and so is one whose content was changed later
        with pytest.raises(MatrixError, match="has not signed the event"):
            await ours.check(forged, synapse.server_name)
        with pytest.raises(MatrixError, match="content hash"):
            await ours.check({**forged, "origin_server_ts": 1}, synapse.server_name)
        assert bob.user_id not in ours.members()


async def test_events_are_shown_to_servers_in_the_room_and_to_nobody_else(
    synapse: Synapse, certificate: str
) -> None:
    bob = await synapse.register()
    tls = ssl.create_default_context(cafile=str(synapse.ca_file))
    theirs = read_signing_key(synapse.directory / "signing.key")
    async with hosted(synapse, certificate, "10") as ours, aiohttp.ClientSession() as session:
        room_id = ours.room.snapshot().room_id
        invite = (await ours.invite(bob.user_id)).invite

        async def get(path: str, key: SigningKey | None) -> tuple[int, dict[str, Any]]:
            names = {"origin": synapse.server_name, "destination": ours.server_name}
            headers = {}
            if key is not None:
                headers["Authorization"] = x_matrix.authorize("GET", path, key=key, **names)
            url = URL(f"https://{ours.server_name}{path}", encoded=True)
            async with session.get(url, headers=headers, ssl=tls) as answer:
                return answer.status, await answer.json()

        event = f"/_matrix/federation/v1/event/{quote(invite.event_id)}"
        state = f"/_matrix/federation/v1/state_ids/{quote(room_id)}?event_id={invite.event_id}"

        # Given a user who is invited, but not in the room: then their server sees nothing
        for path in (event, state):
            assert 403 == (await get(path, theirs))[0]

        # When they have joined, then it sees what it asks for
        await join(synapse, bob, room_id)
        assert [invite.event_id] == [
            ours.event_id(pdu) for pdu in (await get(event, theirs))[1]["pdus"]
        ]
        before = list(ours.events)[:5]
        assert before == (await get(state, theirs))[1]["pdu_ids"]
        assert set((await get(state, theirs))[1]["auth_chain_ids"]) < set(before)

        # And nobody else does: without a signature, or with one by another key
        for key in (None, SigningKey.generate("a_1")):
            for path in (event, state, f"/_matrix/federation/v1/make_join/x/{bob.user_id}", "/x"):
                status, answer = await get(path, key)
                assert (401, "M_UNAUTHORIZED") == (status, answer["errcode"])


async def test_the_example_runs_by_itself(synapse: Synapse, certificate: str) -> None:
    # Given a user of the Synapse, and the example as a process of its own
    bob = await synapse.register()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    arguments = {
        "--server-name": f"localhost:{port}",
        "--listen": f"127.0.0.1:{port}",
        "--invite": bob.user_id,
        "--room-version": "12",
        "--certificate": certificate,
        "--ca-file": synapse.ca_file,
        "--allow-address": "127.0.0.0/8",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", str(EXAMPLE)),
        *(str(word) for pair in arguments.items() for word in pair),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS):
            # When it has invited them, and they accept
            invited = (await process.stdout.readline()).decode()
            assert invited.startswith(f"{bob.user_id} is invited to !")
            room_id = invited.split()[-1]
            await join(synapse, bob, room_id)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    # Then it has seen them, greets them, and ends
    ours = f"localhost:{port}"
    assert 0 == process.returncode, err.decode()
    assert "Traceback" not in err.decode()
    expected = [
        f"signed by {ours} and {synapse.server_name}",
        f"in the room: @alice:{ours} and {bob.user_id}",
    ]
    assert expected == out.decode().splitlines()
    assert "Welcome to tea" == await message_from(synapse, bob, room_id, f"@alice:{ours}")
