"""An exchange is repeated while that may help and time remains, and never else."""

from __future__ import annotations

import asyncio
import math

import pytest
import tenacity

from invite_client.errors import (
    InviteError,
    InviteRejectedError,
    RateLimitedError,
    UnreachableError,
)
from invite_client.policy import Retries
from invite_client.retrying import with_retries
from invite_client.testing.clock import ManualClock

TOTAL = 60.0


class Exchange:
    """Ends as it is told to, one attempt after the other; each takes a second."""

    def __init__(self, clock: ManualClock, *endings: InviteError | str) -> None:
        self.clock = clock
        self.endings = list(endings)
        self.begun: list[tuple[int, float]] = []
        """Attempts, and when they began."""

    async def __call__(self, attempt: int) -> str:
        self.begun.append((attempt, self.clock.now))
        self.clock.advance(1)
        ending = self.endings.pop(0)
        if isinstance(ending, InviteError):
            raise ending
        return ending


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def passing(retry_after: float | None = None) -> InviteError:
    return UnreachableError("down", retryable=True, retry_after=retry_after)


async def run(exchange: Exchange, retries: Retries = Retries(), total: float = TOTAL) -> str:
    clock = exchange.clock
    return await with_retries(exchange, retries, clock, clock.monotonic() + total)


async def test_a_success_is_returned(clock: ManualClock) -> None:
    exchange = Exchange(clock, "done")

    assert "done" == await run(exchange)
    assert [1] == [attempt for attempt, _ in exchange.begun]


async def test_what_may_pass_is_repeated_with_growing_waits(clock: ManualClock) -> None:
    for _ in range(50):
        clock.slept.clear()
        exchange = Exchange(clock, passing(), passing(), passing(), "done")
        assert "done" == await run(exchange, Retries(attempts=4, first_wait=1, max_wait=3))
        assert [1, 2, 3, 4] == [attempt for attempt, _ in exchange.begun]
        assert all(0 <= wait <= most for wait, most in zip(clock.slept, (1, 2, 3), strict=True)), (
            clock.slept
        )


async def test_waits_are_jittered(clock: ManualClock) -> None:
    for _ in range(20):
        await run(Exchange(clock, passing(), "done"))

    assert 20 == len(set(clock.slept))


@pytest.mark.parametrize(
    "error",
    [
        InviteRejectedError("403", status=403),
        UnreachableError("the certificate is not one for remote.example"),
        InviteRejectedError("400, and come back later", status=400, retry_after=1.0),
    ],
    ids=str,
)
async def test_what_will_not_pass_is_never_repeated(error: InviteError, clock: ManualClock) -> None:
    exchange = Exchange(clock, error, "never")
    with pytest.raises(InviteError) as caught:
        await run(exchange)

    assert (error, 1, []) == (caught.value, len(exchange.begun), clock.slept)


@pytest.mark.parametrize("error", [ValueError("a bug"), TimeoutError(), asyncio.CancelledError()])
async def test_what_is_not_ours_is_never_repeated(error: BaseException, clock: ManualClock) -> None:
    attempts: list[int] = []

    async def exchange(attempt: int) -> None:
        attempts.append(attempt)
        raise error

    with pytest.raises(type(error)):
        await with_retries(exchange, Retries(), clock, clock.now + TOTAL)
    assert [1] == attempts


async def test_nothing_is_prepared_for_retries_before_there_is_one(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tenacity, "AsyncRetrying")

    assert "done" == await run(Exchange(clock, "done"))
    with pytest.raises(InviteRejectedError):
        await run(Exchange(clock, InviteRejectedError("403", status=403)))


async def test_the_last_error_itself_is_raised(clock: ManualClock) -> None:
    errors = [passing() for _ in range(3)]
    with pytest.raises(UnreachableError) as caught:
        await run(Exchange(clock, *errors), Retries(attempts=3))

    assert errors[-1] is caught.value


class TestRetryAfter:
    @pytest.mark.parametrize(
        "error",
        [
            RateLimitedError("429", status=429, retryable=True, retry_after=20.0),
            InviteRejectedError("503", status=503, retryable=True, retry_after=20.0),
        ],
        ids=str,
    )
    async def test_is_waited_for(self, error: InviteError, clock: ManualClock) -> None:
        exchange = Exchange(clock, error, "done")

        assert "done" == await run(exchange, Retries(first_wait=0.01, max_wait=0.05))
        assert [20.0] == clock.slept

    @pytest.mark.parametrize(
        ("seconds", "total"), [(59.5, 60.0), (20.0, 21.0), (1e299, 60.0), (math.inf, 60.0)]
    )
    async def test_that_does_not_fit_is_the_callers_to_keep(
        self, seconds: float, total: float, clock: ManualClock
    ) -> None:
        exchange = Exchange(clock, passing(seconds), "never")
        with pytest.raises(UnreachableError) as caught:
            await run(exchange, total=total)

        assert (seconds, 1, []) == (caught.value.retry_after, len(exchange.begun), clock.slept)

    async def test_of_nothing_is_no_licence_to_hammer(self, clock: ManualClock) -> None:
        for _ in range(20):
            await run(Exchange(clock, passing(0.0), "done"), Retries(first_wait=10))

        assert 1 < max(clock.slept)

    async def test_does_not_stop_the_waits_from_growing(self, clock: ManualClock) -> None:
        longest = 0.0
        for _ in range(20):
            clock.slept.clear()
            exchange = Exchange(clock, passing(1.0), passing(1.0), passing(1.0), "done")
            await run(exchange, Retries(attempts=4, first_wait=2), total=1000)
            longest = max(longest, clock.slept[-1])

        assert 2 < longest


class TestTheDeadline:
    async def test_is_not_passed_by_a_wait(self, clock: ManualClock) -> None:
        begun = clock.now
        exchange = Exchange(clock, *(passing() for _ in range(100)))
        with pytest.raises(UnreachableError):
            await run(exchange, Retries(attempts=100, first_wait=5), total=20)

        assert clock.now < begun + 20 + 1  # what an attempt takes that began just in time
        assert all(when < begun + 20 for _, when in exchange.begun)

    async def test_that_has_passed_ends_it(self, clock: ManualClock) -> None:
        exchange = Exchange(clock, passing(), "never")
        with pytest.raises(UnreachableError):
            await run(exchange, Retries(first_wait=0), total=1)

        assert 1 == len(exchange.begun)


async def test_every_retry_is_told_before_its_wait(clock: ManualClock) -> None:
    told: list[tuple[str, int, float, int]] = []

    def on_retry(error: InviteError, attempt: int, wait: float) -> None:
        told.append((str(error), attempt, wait, len(clock.slept)))

    exchange = Exchange(clock, passing(2.0), passing(3.0), "done")
    await with_retries(exchange, Retries(first_wait=0), clock, clock.now + TOTAL, on_retry)

    assert [("down", 1, 2.0, 0), ("down", 2, 3.0, 1)] == told


async def test_calls_at_once_do_not_share_their_counts(clock: ManualClock) -> None:
    exchanges = [Exchange(clock, passing(), passing(), "done") for _ in range(5)]
    await asyncio.gather(*(run(exchange, total=1e9) for exchange in exchanges))

    assert [[1, 2, 3]] * 5 == [[attempt for attempt, _ in e.begun] for e in exchanges]
