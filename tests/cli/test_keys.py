"""`keys`: checked, and saved as they came."""

from __future__ import annotations

import asyncio

from invite_client.testing import INVITER, LoopbackHomeserver, LoopbackNetwork
from tests.cli.calling import Invoke


async def test_shows_each_key_and_how_long_it_is_good_for(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        result = await asyncio.to_thread(invoke, "keys", "remote.example", *reaching)

    assert (0, "") == (result.code, result.err)
    assert f"ed25519:theirs   {remote.signing_key.verify_key.base64}\n" in result.out
    assert f"ed25519:expired  {remote.expired_key.verify_key.base64}\n" in result.out
    assert "an old key, for events until 2001-09-09 01:46:40 UTC\n" in result.out
    assert "remote.example has signed this with each of its current keys.\n" in result.out


async def test_prints_the_answer_itself_as_json(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    async with LoopbackHomeserver(network=network, now=lambda: 2_000_000_000) as remote:
        result = await asyncio.to_thread(invoke, "keys", "--json", "remote.example", *reaching)

        assert (0, "") == (result.code, result.err)
        assert remote.server_keys() == result.json


async def test_keys_that_are_not_signed_are_refused(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        forged = {**remote.server_keys(), "signatures": {}}
        remote.answers(200, body=str(forged).replace("'", '"').encode(), endpoint="keys")
        result = await asyncio.to_thread(invoke, "keys", "remote.example", *reaching)

    assert (1, "") == (result.code, result.out)
    assert "remote.example: the keys are not signed with ed25519:theirs.\n" == result.err


async def test_the_server_itself_is_asked_and_not_a_notary(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork, tmp_path: object
) -> None:
    config = f"{tmp_path}/homeserver.yaml"
    with open(config, "w") as file:
        file.write(f"server_name: {INVITER}\ntrusted_key_servers: [server_name: notary.example]\n")
    async with (
        LoopbackHomeserver(network=network) as remote,
        LoopbackHomeserver("notary.example", network=network) as notary,
    ):
        notary.knows(remote)
        remote.answers(500, endpoint="keys")
        options = ["--homeserver-config", config, *reaching]
        result = await asyncio.to_thread(invoke, "keys", "remote.example", *options)

    assert (3, "") == (result.code, result.out)
    assert "answered 500" in result.err
    assert 0 == notary.counts["query"]
