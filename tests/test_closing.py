"""A client that was closed stays closed: nothing is opened that nobody would close."""

from __future__ import annotations

import asyncio

import pytest

from invite_client import Delivery, InviteClient, InviteError, SigningKey, UnreachableError
from invite_client.stores.memory import MemoryStore
from invite_client.testing import Hangs, LoopbackHomeserver, make_invite
from tests.conftest import open_sockets

NAME = "remote.example"


@pytest.mark.loopback
@pytest.mark.parametrize("what", ["send_invite", "resolve", "server_keys"])
async def test_who_uses_it_afterwards_is_told(what: str) -> None:
    async with LoopbackHomeserver(NAME) as remote:
        async with remote.client() as client:
            await client.send_invite(make_invite())
        before = open_sockets()
        with pytest.raises(RuntimeError, match="after it was closed"):
            await getattr(client, what)(make_invite() if what == "send_invite" else NAME)

        assert before == open_sockets()
        assert 1 == remote.counts["v2"]


@pytest.mark.loopback
async def test_who_used_it_meanwhile_is_told_how_far_the_invite_came() -> None:
    async with LoopbackHomeserver(NAME) as remote, remote.client() as client:
        remote.fails(Hangs(), times=9, endpoint="v2")
        sending = asyncio.create_task(client.send_invite(make_invite()))
        while not remote.counts["v2"]:
            await asyncio.sleep(0.005)
        await client.aclose()
        with pytest.raises(InviteError) as caught:
            await sending

        assert Delivery.UNKNOWN == caught.value.delivery
        assert 1 == remote.counts["v2"]


async def test_it_can_be_closed_twice() -> None:
    client = InviteClient("inviter.example", SigningKey.generate("a"))
    await client.aclose()
    await client.aclose()


@pytest.mark.loopback
@pytest.mark.parametrize("what", ["send_invite", "resolve", "server_keys"])
async def test_who_uses_it_in_another_event_loop_is_told_and_nothing_is_sent(what: str) -> None:
    async with LoopbackHomeserver(NAME) as remote, remote.client() as client:
        await client.send_invite(make_invite())
        asked = dict(remote.counts)

        def elsewhere() -> None:
            asyncio.run(getattr(client, what)(make_invite() if what == "send_invite" else NAME))

        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(elsewhere)

        assert asked == dict(remote.counts)
        await client.send_invite(make_invite())


@pytest.mark.loopback
async def test_what_could_not_be_asked_any_more_is_not_remembered_as_an_answer() -> None:
    """Else who comes next with this store would look for the server where it is not."""
    store = MemoryStore(10)
    async with LoopbackHomeserver(NAME) as remote:
        transport = remote.network.transport()
        async with remote.client(store=store, transport=transport) as client:
            await transport.aclose()
            with pytest.raises(UnreachableError, match="closed"):
                await client.send_invite(make_invite())

    assert await store.get("well-known", NAME) is None
