"""What one process has learned, the next one knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from invite_client import InviteError, Policy, Retries
from invite_client.stores.sqlite import SqliteStore
from invite_client.testing import (
    LoopbackHomeserver,
    Refuses,
    SimulatedHomeserver,
    WellKnown,
    make_invite,
)


@pytest.mark.loopback
async def test_keys_and_the_way_to_a_server_survive_a_restart(tmp_path: Path) -> None:
    async with LoopbackHomeserver(
        "remote.example", well_known=WellKnown("delegated.example"), srv="srv.example:8449"
    ) as remote:
        for _ in range(2):
            store = SqliteStore(tmp_path / "store.sqlite")
            async with remote.client(store=store) as client:
                signed = await client.send_invite(make_invite())
                assert ("3.3", "v2") == (signed.resolved.step, signed.endpoint)
            await store.aclose()

        assert {"v2": 2, "keys": 1} == dict(remote.counts)
        assert 1 == len(remote.well_known_requests)
        assert 1 == remote.network.dns.asked("_matrix-fed._tcp.delegated.example")


async def test_a_back_off_survives_a_restart(tmp_path: Path) -> None:
    remote = SimulatedHomeserver("remote.example")
    remote.fails(Refuses())
    stages = []
    for _ in range(4):
        store = SqliteStore(tmp_path / "store.sqlite")
        policy = Policy(retries=Retries(attempts=1))
        async with remote.client(store=store, policy=policy) as client:
            with pytest.raises(InviteError) as caught:
                await client.send_invite(make_invite())
        await store.aclose()
        stages.append(str(caught.value.stage))

    assert ["connect", "connect", "connect", "back-off"] == stages


async def test_a_file_that_is_lost_costs_nothing_but_the_look_ups(tmp_path: Path) -> None:
    remote = SimulatedHomeserver("remote.example")
    store = SqliteStore(tmp_path / "store.sqlite", reread_after=0)
    async with remote.client(store=store) as client:
        await client.send_invite(make_invite())
        await store._run(lambda: store._database.execute("DROP TABLE stored"))
        assert (await client.send_invite(make_invite())).signatures
    await store.aclose()
