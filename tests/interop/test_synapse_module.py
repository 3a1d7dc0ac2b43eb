"""Two real Synapses, one of which sends its invites through this library, as a module of its own."""

from __future__ import annotations

import importlib.util
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from aiohttp import web

from examples.minimal_homeserver import Homeserver, serving
from invite_client import Policy, SigningKey
from tests.interop.joining import joined_members, message_from
from tests.interop.remote import User
from tests.interop.synapse import Synapse, start_synapse

pytestmark = pytest.mark.interop

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def inviting_synapse(
    tmp_path_factory: pytest.TempPathFactory, interop_ca: trustme.CA
) -> Iterator[Synapse]:
    """A Synapse with the module of the examples, on asyncio's event loop."""
    if importlib.util.find_spec("synapse") is None:
        pytest.skip("needs matrix-synapse, which the extra `dev` brings")
    directory = tmp_path_factory.mktemp("inviting")
    listens_at, secret = directory / "invite_client.sock", directory / "worker.secret"
    secret.write_text(secrets.token_hex(16))
    config = {
        "signing_key": str(directory / "signing.key"),
        "socket": str(listens_at),
        "secret_path": str(secret),
        "ca_file": str(directory / "ca.pem"),
        "allowed_addresses": ["127.0.0.0/8"],
    }
    settings = {
        "modules": [{"module": "synapse_module.InviteModule", "config": config}],
        "instance_map": {"invite_client": {"path": str(listens_at)}},
        "outbound_federation_restricted_to": ["invite_client"],
        "worker_replication_secret_path": str(secret),
        "federation": {"max_short_retries": 0},
    }
    environment = {"SYNAPSE_ASYNC_IO_REACTOR": "1", "PYTHONPATH": str(EXAMPLES)}
    with start_synapse(
        directory, interop_ca, settings=settings, environment=environment
    ) as running:
        yield running


async def create_room(synapse: Synapse, user: User, version: str) -> str:
    body = {"preset": "private_chat", "name": "Tea at five", "room_version": version}
    path = "/_matrix/client/v3/createRoom"
    return str((await synapse.client_api("POST", path, body, token=user.access_token))["room_id"])


async def invite(synapse: Synapse, user: User, room_id: str, target: str) -> None:
    path = f"/_matrix/client/v3/rooms/{quote(room_id)}/invite"
    await synapse.client_api("POST", path, {"user_id": target}, token=user.access_token)


@pytest.mark.parametrize("version", ["1", "10", "11", "12"])
async def test_a_user_of_one_synapse_invites_a_user_of_another_who_joins(
    version: str, inviting_synapse: Synapse, synapse: Synapse
) -> None:
    # Given a user of each, and a room of the first
    alice, bob = await inviting_synapse.register(), await synapse.register()
    room_id = await create_room(inviting_synapse, alice, version)

    # When the first invites the second
    await invite(inviting_synapse, alice, room_id, bob.user_id)

    # Then it was this library that had the invite signed
    lines = inviting_synapse.log().splitlines()
    (line,) = [line for line in lines if f"of {bob.user_id}" in line and "signed with" in line]
    assert f"[{synapse.server_name}] signed with ed25519:" in line

    # And the second sees it, joins, and is in the room on both sides
    shown = await synapse.invite_state(bob, room_id)
    assert {"name": "Tea at five"} in [event["content"] for event in shown]
    path = f"/_matrix/client/v3/join/{quote(room_id)}"
    await synapse.client_api("POST", path, {}, token=bob.access_token)
    expected = {alice.user_id, bob.user_id}
    assert expected == await joined_members(inviting_synapse, alice, room_id)
    assert expected == await joined_members(synapse, bob, room_id)

    # And what else the first has to say gets through: a message, in a transaction
    path = f"/_matrix/client/v3/rooms/{quote(room_id)}/send/m.room.message/1"
    body = {"msgtype": "m.text", "body": "Welcome to tea"}
    await inviting_synapse.client_api("PUT", path, body, token=alice.access_token)
    assert "Welcome to tea" == await message_from(synapse, bob, room_id, alice.user_id)


@asynccontextmanager
async def remote(certificate: str, answer: Callable[[Any], web.Response]) -> AsyncIterator[str]:
    """A homeserver that publishes its keys, and answers every invite with `answer(body)`."""

    async def invited(request: web.Request) -> web.Response:
        return answer(await request.json())

    class Remote(Homeserver):
        def app(self) -> web.Application:
            app = web.Application()
            app.router.add_get("/_matrix/key/v2/server", self.publish_keys)
            app.router.add_put("/_matrix/federation/v2/invite/{room_id}/{event_id}", invited)
            return app

    with socket.create_server(("127.0.0.1", 0)) as listener:
        name = f"localhost:{listener.getsockname()[1]}"
        homeserver = Remote(name, SigningKey.generate("a_1"), Policy())
        async with serving(homeserver, listener, certificate, None):
            yield name


async def test_an_invite_that_is_not_countersigned_does_not_get_into_the_room(
    inviting_synapse: Synapse,
    certificate: str,
) -> None:
    alice = await inviting_synapse.register()
    room_id = await create_room(inviting_synapse, alice, "11")

    # Given a homeserver that returns the event as it came, without a signature of its own
    def unsigned(body: Any) -> web.Response:
        return web.json_response({"event": body["event"]})

    # When a user of it is invited, then the inviting client is told that it has failed
    async with remote(certificate, unsigned) as name:
        with pytest.raises(AssertionError, match=": 502 "):
            await invite(inviting_synapse, alice, room_id, f"@eve:{name}")

    # And the log says why, and the room does not know them
    assert f"there is no ed25519 signature by {name}" in inviting_synapse.log()
    path = f"/_matrix/client/v3/rooms/{quote(room_id)}/members"
    members = await inviting_synapse.client_api("GET", path, token=alice.access_token)
    assert [alice.user_id] == [event["state_key"] for event in members["chunk"]]


async def test_a_refusal_reaches_the_client_in_the_words_of_the_remote(
    inviting_synapse: Synapse,
    certificate: str,
) -> None:
    alice = await inviting_synapse.register()
    room_id = await create_room(inviting_synapse, alice, "11")

    def refuse(body: Any) -> web.Response:
        error = {"errcode": "M_FORBIDDEN", "error": "We take no invites from strangers"}
        return web.json_response(error, status=403)

    async with remote(certificate, refuse) as name:
        with pytest.raises(AssertionError, match=r"403 .*We take no invites from strangers"):
            await invite(inviting_synapse, alice, room_id, f"@eve:{name}")
