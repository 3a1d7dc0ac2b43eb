"""A destination that fails is left alone for a while, and never to anybody's surprise."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any

import pytest

from invite_client import (
    BackOff,
    BackoffPolicy,
    CachePolicy,
    Delivery,
    InvalidInviteError,
    InviteClient,
    InviteError,
    InviteRejectedError,
    Policy,
    RateLimitedError,
    Retries,
    SignedInvite,
    Stage,
    Timeouts,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.interfaces import Stored
from invite_client.stores.memory import MemoryStore
from invite_client.testing import (
    Hangs,
    LosesTheAnswer,
    ManualClock,
    Refuses,
    SimulatedFederation,
    SimulatedHomeserver,
    badly_signed,
    make_invite,
)

NAME = "remote.example"
HOUR = 3600.0
ONE_ATTEMPT = Retries(attempts=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(100)


@pytest.fixture
def remote() -> SimulatedHomeserver:
    return SimulatedHomeserver(NAME)


@pytest.fixture
async def client(
    remote: SimulatedHomeserver, store: MemoryStore, clock: ManualClock
) -> AsyncIterator[InviteClient]:
    async with make_client(remote, store, clock) as made:
        yield made


def make_client(
    remote: SimulatedHomeserver,
    store: MemoryStore,
    clock: ManualClock,
    policy: BackoffPolicy = BackoffPolicy(),
    **parts: Any,
) -> InviteClient:
    parts = {"retries": ONE_ATTEMPT, **parts}
    return remote.client(store=store, clock=clock, policy=Policy(backoff=policy, **parts))


async def fails(client: InviteClient, times: int = 1, **options: Any) -> InviteError:
    """Send invites, all of which must fail; return the last error."""
    for _ in range(times):
        with pytest.raises(InviteError) as caught:
            await client.send_invite(make_invite(), **options)
    return caught.value


class TestADestinationThatFails:
    async def test_is_sent_to_again_at_once_a_few_times(
        self, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        """Who sends again by hand is not to be surprised."""
        remote.fails(Refuses(), times=2, endpoint="v2")
        for _ in range(2):
            assert Stage.CONNECT == (await fails(client)).stage
            assert await client.backoff(NAME) is None

        assert await client.send_invite(make_invite())

    async def test_is_refused_after_three_failures_in_a_row(
        self, client: InviteClient, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        begun = clock.now
        remote.fails(Refuses())
        await fails(client)
        clock.advance(5)
        await fails(client, 2)
        remote.behaves()
        clock.advance(20)
        error = await fails(client)

        assert UnreachableError is type(error)
        assert (Stage.BACKOFF, Delivery.NOT_SENT) == (error.stage, error.delivery)
        assert (True, 40, ()) == (error.retryable, error.retry_after, error.attempts)
        assert "3 invites in a row" in str(error)
        assert "connection refused" in str(error)
        assert f"{datetime.fromtimestamp(begun, timezone.utc):%Y-%m-%d %H:%M:%S} UTC" in str(error)
        assert "ignore_backoff" in error.diagnosis()
        assert 502 == error.client_response().status
        assert 0 == remote.counts["v2"]
        known = await client.backoff(NAME)
        assert BackOff(NAME, 3, begun, begun + 65, "remote.example:8448: connection refused") == (
            known
        )

    @pytest.mark.parametrize(
        ("fault", "status", "kind"),
        [
            (Refuses(), None, UnreachableError),
            (LosesTheAnswer(), None, UnknownOutcomeError),
            (None, 502, InviteRejectedError),
            (None, 503, InviteRejectedError),
            (None, 504, InviteRejectedError),
            (None, 429, RateLimitedError),
        ],
    )
    async def test_is_one_that_is_out_of_reach(
        self,
        fault: Any,
        status: int | None,
        kind: type[InviteError],
        client: InviteClient,
        remote: SimulatedHomeserver,
    ) -> None:
        if fault is not None:
            remote.fails(fault)
        if status is not None:
            remote.answers(status)
        assert kind is type(await fails(client, 3))

        assert Stage.BACKOFF == (await fails(client)).stage

    async def test_is_one_that_does_not_answer_in_time(
        self, remote: SimulatedHomeserver, store: MemoryStore, clock: ManualClock
    ) -> None:
        remote.fails(Hangs(), endpoint="v2")
        policy = BackoffPolicy(after_failures=1)
        async with make_client(
            remote, store, clock, policy, timeouts=Timeouts(total=0.05)
        ) as client:
            assert UnknownOutcomeError is type(await fails(client))

            assert Stage.BACKOFF == (await fails(client)).stage

    @pytest.mark.parametrize(
        ("status", "errcode"), [(400, "M_BAD_JSON"), (403, "M_FORBIDDEN"), (404, None), (500, None)]
    )
    async def test_is_none_that_answers(
        self, status: int, errcode: str | None, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        remote.answers(status, errcode, endpoint="v2")
        await fails(client, 5)

        assert 5 == remote.counts["v2"]

    async def test_is_none_that_lies(
        self, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        remote.lies(badly_signed())
        await fails(client, 5)

        assert 5 == remote.counts["v2"]

    async def test_has_failed_in_a_row_only_without_an_answer_in_between(
        self, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        for _ in range(3):
            remote.fails(Refuses(), times=2, endpoint="v2")
            await fails(client, 2)
            await client.send_invite(make_invite())
        remote.fails(Refuses(), times=2, endpoint="v2")
        await fails(client, 2)
        remote.answers(403, "M_FORBIDDEN", times=1, endpoint="v2")
        await fails(client)
        remote.fails(Refuses(), times=2, endpoint="v2")
        await fails(client, 2)

        assert await client.send_invite(make_invite())

    async def test_is_no_other_destination(self, store: MemoryStore, clock: ManualClock) -> None:
        dead, alive = SimulatedHomeserver("dead.example"), SimulatedHomeserver("alive.example")
        dead.fails(Refuses())
        policy = Policy(retries=ONE_ATTEMPT)
        federation = SimulatedFederation(dead, alive)
        async with federation.client(store=store, clock=clock, policy=policy) as client:
            for _ in range(4):
                with pytest.raises(UnreachableError):
                    await client.send_invite(make_invite("@bob:dead.example"))

            assert await client.send_invite(make_invite("@bob:alive.example"))

    async def test_counts_once_for_invites_that_were_under_way_at_once(
        self, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        federation = client._transport
        gate = asyncio.Event()

        async def refuse_when_told(*_: Any, **__: Any) -> None:
            await gate.wait()
            raise UnreachableError("down", retryable=True)

        exchange = federation.exchange
        federation.exchange = refuse_when_told  # type: ignore[method-assign,assignment]
        sends = [asyncio.create_task(client.send_invite(make_invite())) for _ in range(4)]
        for _ in range(50):
            await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(*sends, return_exceptions=True)
        federation.exchange = exchange  # type: ignore[method-assign]
        remote.behaves()

        assert {UnreachableError} == set(map(type, results))
        assert await client.backoff(NAME) is None
        assert await client.send_invite(make_invite())

    async def test_is_none_that_we_have_not_asked(
        self, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        for _ in range(5):
            with pytest.raises(InvalidInviteError):
                await client.send_invite(make_invite(server_name="elsewhere.example"))

        assert await client.send_invite(make_invite())


class TestTheBackOff:
    async def test_doubles_with_each_failure_up_to_an_hour(
        self, client: InviteClient, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        remote.fails(Refuses())
        await fails(client, 3)
        waits = []
        for _ in range(8):
            wait = (await fails(client)).retry_after
            assert wait is not None
            waits.append(wait)
            clock.advance(wait)
            assert Stage.CONNECT == (await fails(client)).stage

        assert [60, 120, 240, 480, 960, 1920, 3600, 3600] == waits

    async def test_lets_one_through_when_its_time_is_over(
        self, client: InviteClient, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        remote.fails(Refuses())
        await fails(client, 3)
        remote.behaves()
        remote.fails(Hangs(), times=2, endpoint="v2")
        clock.advance(61)
        ignoring = asyncio.create_task(client.send_invite(make_invite(), ignore_backoff=True))
        probe = asyncio.create_task(client.send_invite(make_invite()))
        while remote.counts["v2"] < 2:
            await asyncio.sleep(0)
        refused = await fails(client, 3)
        assert (Stage.BACKOFF, 60) == (refused.stage, refused.retry_after)
        assert 2 == remote.counts["v2"]

        # Who gives up has found out nothing: the next one may.
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        assert await client.send_invite(make_invite())
        ignoring.cancel()
        await asyncio.gather(ignoring, return_exceptions=True)

    async def test_ends_with_a_success(
        self, client: InviteClient, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        remote.fails(Refuses())
        await fails(client, 3)
        remote.behaves()
        clock.advance(61)
        await client.send_invite(make_invite())
        assert await client.backoff(NAME) is None

        remote.fails(Refuses())
        assert Stage.CONNECT == (await fails(client, 3)).stage

    async def test_is_as_long_as_the_remote_asks_for(
        self, client: InviteClient, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=600_000)
        await fails(client, 3)
        remote.behaves()
        clock.advance(100)
        error = await fails(client)

        assert isinstance(error, RateLimitedError)
        assert (Stage.BACKOFF, Delivery.NOT_SENT) == (error.stage, error.delivery)
        assert (429, True, 500) == (error.status, error.retryable, error.retry_after)
        status, body = error.client_response()
        assert (429, "M_LIMIT_EXCEEDED", 500_000) == (
            status,
            body["errcode"],
            body["retry_after_ms"],
        )
        known = await client.backoff(NAME)
        assert known is not None
        assert known.limited

    async def test_is_never_longer_than_its_limit(
        self, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=2**53)
        await fails(client, 3)

        assert HOUR == (await fails(client)).retry_after

    async def test_is_of_no_concern_to_an_invite_that_ignores_it(
        self, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        remote.fails(Refuses())
        await fails(client, 3)
        assert Stage.CONNECT == (await fails(client, ignore_backoff=True)).stage
        remote.behaves()
        assert await client.send_invite(make_invite(), ignore_backoff=True)

        assert await client.backoff(NAME) is None
        assert await client.send_invite(make_invite())

    async def test_can_be_reset(self, client: InviteClient, remote: SimulatedHomeserver) -> None:
        remote.fails(Refuses())
        await fails(client, 3)
        await client.reset_backoff(NAME)
        assert await client.backoff(NAME) is None
        assert Stage.CONNECT == (await fails(client, 2)).stage
        remote.behaves()

        assert await client.send_invite(make_invite())

    async def test_can_be_switched_off(
        self, remote: SimulatedHomeserver, store: MemoryStore, clock: ManualClock
    ) -> None:
        remote.fails(Refuses())
        async with make_client(remote, store, clock, BackoffPolicy(after_failures=None)) as client:
            assert Stage.CONNECT == (await fails(client, 10)).stage
            assert await client.backoff(NAME) is None

    async def test_survives_a_restart_with_its_store(
        self, remote: SimulatedHomeserver, store: MemoryStore, clock: ManualClock
    ) -> None:
        remote.fails(Refuses())
        async with make_client(remote, store, clock) as client:
            await fails(client, 3)
        async with make_client(remote, store, clock) as client:
            assert Stage.BACKOFF == (await fails(client)).stage

    async def test_is_forgotten_a_day_after_the_last_failure(
        self, client: InviteClient, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        remote.fails(Refuses())
        await fails(client, 2)
        clock.advance(24 * HOUR + 1)
        await fails(client, 2)

        assert await client.backoff(NAME) is None

    async def test_retries_of_one_invite_count_as_one_failure(
        self, remote: SimulatedHomeserver, store: MemoryStore, clock: ManualClock
    ) -> None:
        remote.answers(503, endpoint="v2")
        async with make_client(remote, store, clock, retries=Retries(attempts=4)) as client:
            await fails(client, 2)
            assert 8 == remote.counts["v2"]
            remote.behaves()

            assert await client.send_invite(make_invite())

    async def test_does_not_hold_up_a_run_of_many_invites(
        self, client: InviteClient, remote: SimulatedHomeserver
    ) -> None:
        """Such a run has a back-off of its own, which sees more."""
        remote.fails(Refuses(), times=3, endpoint="v2")
        await fails(client, 3)
        async with client.send_invites([make_invite()]) as outcomes:
            ended = [outcome async for outcome in outcomes]

        assert [(SignedInvite, 1)] == [(type(outcome.signed), outcome.sends) for outcome in ended]


class SlowStore(MemoryStore):
    """One that hangs when it is told to."""

    hanging = False

    async def get(self, kind: str, key: str) -> Stored | None:
        if self.hanging and kind == "backoff":
            await asyncio.Event().wait()
        return await super().get(kind, key)


class TestTheStore:
    @pytest.mark.parametrize(
        "value",
        [
            None,
            [],
            "x",
            {},
            {"failures": "9", "since": 0, "reason": "", "limited": False},
            {"failures": 0, "since": 0, "reason": "", "limited": False},
            {"failures": -9, "since": 0, "reason": "", "limited": False},
            {"failures": 10**5000, "since": 0, "reason": "", "limited": False},
            {"failures": 9, "since": None, "reason": "", "limited": False},
            {"failures": 9, "since": 0, "reason": None, "limited": False},
            {"failures": 9, "since": 0, "reason": "", "limited": 0},
        ],
        ids=lambda value: repr(value)[:40] if not isinstance(value, dict) else None,
    )
    async def test_is_not_believed(
        self, value: Any, client: InviteClient, store: MemoryStore, clock: ManualClock
    ) -> None:
        await store.put("backoff", NAME, Stored(value, clock.now + 60, clock.now + 60))

        assert await client.send_invite(make_invite())

    @pytest.mark.parametrize("since", [math.nan, math.inf, -1e300, 1e300, 10**30])
    async def test_may_hold_any_date(
        self, since: Any, client: InviteClient, store: MemoryStore, clock: ManualClock
    ) -> None:
        value = {"failures": 9, "since": since, "reason": "", "limited": False}
        await store.put("backoff", NAME, Stored(value, clock.now + 60, clock.now + 60))

        assert "some time ago" in str(await fails(client))

    @pytest.mark.parametrize("until", [math.nan, math.inf, "9e99", None, 1e12])
    @pytest.mark.parametrize("usable", [True, False])
    async def test_cannot_refuse_for_ever(
        self, until: Any, usable: bool, client: InviteClient, store: MemoryStore, clock: ManualClock
    ) -> None:
        value = {"failures": 9, "since": 0, "reason": "", "limited": False}
        usable_until = clock.now + 60 if usable else until
        await store.put("backoff", NAME, Stored(value, until, usable_until))

        assert await client.send_invite(make_invite())

    async def test_and_a_clock_that_goes_back_do_not_refuse_for_ever(
        self, client: InviteClient, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        remote.fails(Refuses())
        await fails(client, 3)
        remote.behaves()
        clock.advance(-1000 * HOUR)
        with suppress(InviteError):  # the keys are those of a future in which the clock was wrong
            await client.send_invite(make_invite())

        assert 1 == remote.counts["v2"]

    async def test_that_hangs_does_not_hold_up_what_is_done(
        self, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        store = SlowStore(100)
        remote.fails(Refuses())
        cache = CachePolicy(store_patience=0.01)
        async with make_client(remote, store, clock, cache=cache) as client:
            store.hanging = True
            assert Stage.CONNECT == (await fails(client, ignore_backoff=True)).stage
            remote.behaves()
            assert await client.send_invite(make_invite(), ignore_backoff=True)

    async def test_that_hangs_before_the_invite_is_bounded_with_it(
        self, remote: SimulatedHomeserver, clock: ManualClock
    ) -> None:
        store = SlowStore(100)
        async with make_client(remote, store, clock, timeouts=Timeouts(total=0.05)) as client:
            store.hanging = True
            assert "not finished within" in str(await fails(client))


@pytest.mark.parametrize(
    "wrong",
    [
        {"after_failures": 0},
        {"first": 0},
        {"first": math.nan},
        {"maximum": 0},
        {"remember": -1},
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"backoff.{next(iter(wrong))}"):
        BackoffPolicy(**wrong)
