"""One look-up for all who ask; who leaves disturbs nobody; the last to leave ends it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from invite_client.errors import InvalidInviteError, InviteError
from invite_client.single_flight import SingleFlight


class Work:
    """Counts how often it runs, and waits until it is told to end."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0
        self.go = asyncio.Event()

    async def __call__(self) -> int:
        self.started += 1
        try:
            await self.go.wait()
        finally:
            self.ended += 1
        return self.started


async def spin() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_share_one_look_up() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    callers = [asyncio.create_task(flights.do("a", work)) for _ in range(3)]
    await spin()
    work.go.set()

    assert [1, 1, 1] == await asyncio.gather(*callers)
    assert 0 == len(flights)


async def test_what_has_ended_is_looked_up_again() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    work.go.set()

    assert [1, 2] == [await flights.do("a", work), await flights.do("a", work)]


async def test_every_caller_has_an_error_of_its_own() -> None:
    flights: SingleFlight[str, int] = SingleFlight()

    async def fail() -> int:
        raise InvalidInviteError("not a PEM file", field="tls.ca_file")

    callers = [flights.do("a", fail) for _ in range(3)]
    errors = await asyncio.gather(*callers, return_exceptions=True)

    assert ["tls.ca_file: not a PEM file"] * 3 == [str(error) for error in errors]
    assert 3 == len({id(error) for error in errors})


async def test_a_cancelled_caller_disturbs_nobody() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    first, second = (asyncio.create_task(flights.do("a", work)) for _ in range(2))
    await spin()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    work.go.set()

    assert 1 == await second


async def test_the_last_caller_to_leave_ends_the_look_up() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    callers = [asyncio.create_task(flights.do("a", work)) for _ in range(2)]
    await spin()
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)

    assert (1, 1, 0) == (work.started, work.ended, len(flights))


async def test_who_comes_while_it_is_being_ended_starts_anew() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    first_work, second_work = Work(), Work()
    first = asyncio.create_task(flights.do("a", first_work))
    await spin()
    first.cancel()
    await asyncio.sleep(0)
    second_work.go.set()

    assert 1 == await flights.do("a", second_work)
    await asyncio.gather(first, return_exceptions=True)
    assert 1 == first_work.ended


async def test_all_callers_get_the_error() -> None:
    flights: SingleFlight[str, int] = SingleFlight()

    async def fail() -> int:
        await asyncio.sleep(0)
        raise LookupError("x")

    results = await asyncio.gather(
        *(flights.do("a", fail) for _ in range(2)), return_exceptions=True
    )

    assert ["x", "x"] == [str(result) for result in results]


async def test_an_error_that_nobody_waits_for_any_more_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    go = asyncio.Event()

    async def fail() -> int:
        await go.wait()
        raise LookupError("x")

    caller = asyncio.create_task(flights.do("a", fail))
    await spin()
    # The look-up fails in the very turn of the loop in which its only caller is cancelled.
    go.set()
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    del caller
    await spin()
    gc.collect()

    assert "" == caplog.text


async def test_closing_ends_what_is_under_way() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    work = Work()
    caller = asyncio.create_task(flights.do("a", work))
    await spin()
    await flights.aclose()

    assert 1 == work.ended
    # Who waited is told: it was not cancelled itself.
    with pytest.raises(InviteError, match="closed"):
        await caller
