"""A homeserver's invite handler in whole: the Client-Server API in front, federation behind.

    python examples/embed_in_send_path.py

A client of our homeserver asks ``POST /_matrix/client/v3/rooms/{roomId}/invite``. Where the invited
user lives on another server, that server has to sign the event before it may go into the room:
this is where `invite_client` stands. Whatever goes wrong, the client is told what the specification
says it should be told, and the log what an operator needs to know.

`InviteHandler` is what you would copy. The rest is a homeserver of one room to put it in, and two
remote servers on loopback to send to: one that signs, and one that does not want to.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp
from aiohttp import web

from invite_client import (
    InvalidInviteError,
    Invite,
    InviteClient,
    InviteError,
    Room,
    SigningKey,
)
from invite_client.testing import LoopbackHomeserver, LoopbackNetwork, RoomHistory

log = logging.getLogger("homeserver")


class InviteHandler:
    """Answers ``POST /_matrix/client/v3/rooms/{roomId}/invite`` for users of other servers."""

    def __init__(self, rooms: Rooms, client: InviteClient, key: SigningKey) -> None:
        self.rooms = rooms
        self.client = client  # one for the whole process: it keeps connections, keys and names
        self.key = key

    async def handle(self, request: web.Request) -> web.Response:
        """Invite the user that the client names, and tell the client what became of it."""
        try:
            asked = await request.json()
            user_id, reason = asked["user_id"], {k: v for k, v in asked.items() if k == "reason"}
        except ValueError:
            return matrix_error(400, "M_NOT_JSON", "The request is not JSON")
        except (TypeError, LookupError):
            return matrix_error(400, "M_MISSING_PARAM", "user_id is missing")
        # A snapshot of the room: what the event refers to, and what the invited user is shown.
        room = self.rooms.snapshot(request.match_info["room_id"])
        if room is None:
            return matrix_error(404, "M_NOT_FOUND", "There is no such room")
        try:
            invite = Invite.build(room, user_id, self.key, content=reason)
            signed = await self.client.send_invite(invite)
        except InviteError as error:
            log.warning("%s", error.diagnosis())
            if isinstance(error, InvalidInviteError) and error.field == "event.state_key":
                # The one part of the event that the client has chosen.
                return matrix_error(400, "M_INVALID_PARAM", error.message)
            status, body = error.client_response()
            return web.json_response(body, status=status)
        # Both servers have signed, and both signatures are verified: now it may go into the room.
        self.rooms.append(signed.event)
        return web.json_response({})


def matrix_error(status: int, errcode: str, error: str) -> web.Response:
    """Return a standard error response of the Client-Server API."""
    return web.json_response({"errcode": errcode, "error": error}, status=status)


class Rooms:
    """The homeserver's rooms; here there is one, and it is kept in memory."""

    def __init__(self, history: RoomHistory) -> None:
        self.history = history
        self.events: list[dict[str, Any]] = []

    def snapshot(self, room_id: str) -> Room | None:
        """Return what an invite needs of the room (see `invite_client.Room` for each field)."""
        return self.history.snapshot() if room_id == self.history.room_id else None

    def append(self, event: dict[str, Any]) -> None:
        """Persist an event, and send it to the other servers in the room."""
        self.events.append(event)


async def main() -> None:
    """Start our homeserver and two remote ones, and invite three users as a client would."""
    key = SigningKey.generate("a_1")
    room = RoomHistory.create("inviter.example", key, "12", name="Tea at five")
    async with (
        LoopbackNetwork() as network,
        LoopbackHomeserver("friendly.example", network=network) as friendly,
        LoopbackHomeserver("shy.example", network=network) as shy,
        network.client("inviter.example", key) as client,
    ):
        friendly.trust("inviter.example", key.verify_key)
        shy.trust("inviter.example", key.verify_key)
        shy.answers(403, "M_FORBIDDEN", "We take no invites from strangers")

        rooms = Rooms(room)
        app = web.Application()
        path = "/_matrix/client/v3/rooms/{room_id}/invite"
        app.router.add_post(path, InviteHandler(rooms, client, key).handle)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            base = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with aiohttp.ClientSession(base) as session:
                for user in ("@bob:friendly.example", "@eve:shy.example", "@mallory"):
                    url = path.format(room_id=room.room_id)
                    async with session.post(url, json={"user_id": user}) as answer:
                        print(f"{user}: {answer.status} {await answer.text()}")
        finally:
            await runner.cleanup()
        for event in rooms.events:
            print(f"in the room: invite of {event['state_key']}, signed by", *event["signatures"])


if __name__ == "__main__":
    logging.basicConfig(format="%(name)s: %(message)s")
    asyncio.run(main())
