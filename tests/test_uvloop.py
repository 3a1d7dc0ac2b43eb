"""The event loop of the extra ``uvloop`` does the same in another order."""

from __future__ import annotations

import asyncio

import pytest

from invite_client.testing import LoopbackHomeserver, make_invite

uvloop = pytest.importorskip("uvloop")


def test_a_first_invite_and_one_by_the_kept_connection() -> None:
    async def send() -> None:
        name = "matrix.example:8449"
        async with LoopbackHomeserver("remote.example", well_known=name) as remote:
            async with remote.client() as client:
                for _ in range(2):
                    signed = await client.send_invite(make_invite())

                    assert "3.2" == signed.resolved.step
                    assert ["200"] == [attempt.outcome for attempt in signed.attempts[:1]]
            assert 2 == remote.counts["v2"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(send())
