"""Many time limits of one length, and one timer."""

from __future__ import annotations

import asyncio

from invite_client.deadlines import Deadlines

SECONDS = 0.05


async def test_what_has_not_ended_is_given_up_when_its_own_time_is_up() -> None:
    loop = asyncio.get_running_loop()
    began: dict[str, float] = {}
    given_up: dict[str, float] = {}
    all_over = asyncio.Event()

    def give_up(what: str) -> None:
        given_up[what] = loop.time() - began[what]
        if what == "last":
            all_over.set()

    deadlines = Deadlines(SECONDS, give_up)
    for what in ("first", "ended", "second", "last"):
        began[what] = loop.time()
        deadlines.begin(what)
        await asyncio.sleep(SECONDS / 5)
    deadlines.end("ended")
    async with asyncio.timeout(5):
        await all_over.wait()

    assert ["first", "second", "last"] == list(given_up)
    # A timer of asyncio may be early by the resolution of its clock.
    assert all(SECONDS - 0.001 <= waited for waited in given_up.values())
    assert 0 == len(deadlines)


async def test_after_a_pause_it_counts_again() -> None:
    over = asyncio.Event()
    deadlines = Deadlines(SECONDS, lambda _: over.set())
    deadlines.begin("ended in time")
    deadlines.end("ended in time")
    await asyncio.sleep(2 * SECONDS)
    assert not over.is_set()

    deadlines.begin("hangs")
    async with asyncio.timeout(5):
        await over.wait()


async def test_what_is_left_is_handed_over_when_it_is_closed() -> None:
    given_up: list[str] = []
    deadlines = Deadlines(SECONDS, given_up.append)
    deadlines.begin("a")
    deadlines.begin("b")
    assert ["a", "b"] == deadlines.close()
    await asyncio.sleep(2 * SECONDS)
    assert [] == given_up
