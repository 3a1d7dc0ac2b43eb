"""Our homeserver, a room of its own, and users of a real one who come in."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from examples.minimal_homeserver import Homeserver, serving
from invite_client import SigningKey
from tests.interop.invites import policy_for
from tests.interop.remote import Remote, User

SECONDS = 30
"""Until what must come is missed."""


@asynccontextmanager
async def hosted(remote: Remote, certificate: str, room_version: str) -> AsyncIterator[Homeserver]:
    """Our homeserver, with a name and keys that the remote has never seen."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = f"localhost:{listener.getsockname()[1]}"
        ours = Homeserver(
            name, SigningKey.generate("a_1"), policy_for(remote), room_version=room_version
        )
        async with serving(ours, listener, certificate, None):
            yield ours


async def join(remote: Remote, user: User, room_id: str) -> None:
    path = f"/_matrix/client/v3/join/{quote(room_id)}"
    await remote.client_api("POST", path, {}, token=user.access_token)


async def joined_members(remote: Remote, user: User, room_id: str) -> set[str]:
    path = f"/_matrix/client/v3/rooms/{quote(room_id)}/joined_members"
    return set((await remote.client_api("GET", path, token=user.access_token))["joined"])


async def message_from(remote: Remote, user: User, room_id: str, sender: str) -> str:
    """Wait until the user sees a message of `sender` in their sync."""
    since = ""
    async with asyncio.timeout(SECONDS):
        while True:
            path = f"/_matrix/client/v3/sync?timeout=5000{since}"
            sync = await remote.client_api("GET", path, token=user.access_token)
            since = f"&since={sync['next_batch']}"
            room: dict[str, Any] = sync.get("rooms", {}).get("join", {}).get(room_id, {})
            for event in room.get("timeline", {}).get("events", []):
                if (event["type"], event["sender"]) == ("m.room.message", sender):
                    return str(event["content"]["body"])


async def invite_and_join(remote: Remote, certificate: str, room_version: str) -> None:
    """Invite a user of the remote, let them accept, and see that both sides agree about it."""
    # Given a room of ours, to which a user of the remote is invited through this library
    bob = await remote.register()
    async with hosted(remote, certificate, room_version) as ours:
        room_id = ours.room.snapshot().room_id
        await ours.invite(bob.user_id)
        shown = await remote.invite_state(bob, room_id)
        assert {"name": "Tea at five"} in [event["content"] for event in shown]

        # When they accept, as any client does
        await join(remote, bob, room_id)

        # Then they are in the room on both sides, by an event that their server has signed
        async with asyncio.timeout(SECONDS):
            await ours.until(lambda: bob.user_id in ours.members())
        expected = {ours.alice, bob.user_id}
        assert expected == set(ours.members())
        assert expected == await joined_members(remote, bob, room_id)
        assert {remote.server_name} == set(
            ours.room.state["m.room.member", bob.user_id]["signatures"]
        )

        # And all of our room's state was believed
        path = f"/_matrix/client/v3/rooms/{quote(room_id)}/state/m.room.name/"
        name = await remote.client_api("GET", path, token=bob.access_token)
        assert {"name": "Tea at five"} == name

        # And what is said on one side is heard on the other
        await ours.say("Welcome to tea")
        assert "Welcome to tea" == await message_from(remote, bob, room_id, ours.alice)
        path = f"/_matrix/client/v3/rooms/{quote(room_id)}/send/m.room.message/1"
        reply = {"msgtype": "m.text", "body": "Thank you"}
        await remote.client_api("PUT", path, reply, token=bob.access_token)
        async with asyncio.timeout(SECONDS):
            await ours.until(lambda: ours.heard(bob.user_id) == ["Thank you"])
