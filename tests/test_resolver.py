"""What was discovered is remembered for as long as it may be, and looked up once for all who ask."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from itertools import cycle, pairwise
from typing import Any

import pytest

from invite_client.errors import InviteError, Stage, UnreachableError
from invite_client.interfaces import Stored
from invite_client.policy import CachePolicy
from invite_client.resolver import CachingResolver, about_to_send
from invite_client.single_flight import SingleFlight
from invite_client.spec.discovery import ResolvedServer, SrvAnswer, TraceStep, WellKnownAnswer
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.srv import SrvRecord
from invite_client.stores.memory import MemoryStore
from invite_client.testing.clock import ManualClock

NAME = parse_server_name("remote.example")
FED, OLD = "_matrix-fed._tcp", "_matrix._tcp"
HOUR = 3600.0
POLICY = CachePolicy(jitter=0)


class FakeLookups:
    """A network that is told what to answer, writes down what it is asked, and can be made to wait."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.asked: list[str] = []
        self.under_way: set[str] = set()
        self.delegated: str | None = None
        self.absent = False
        self.lifetime = HOUR
        self.srv_lifetime = HOUR
        self.records: dict[str, list[SrvRecord]] = {}
        self.fault: UnreachableError | None = None
        self.gates: dict[str, asyncio.Event] = {}
        self._addresses: SingleFlight[str, None] = SingleFlight()

    def hold(self, question: str) -> asyncio.Event:
        """Let a question wait until the event is set."""
        return self.gates.setdefault(question, asyncio.Event())

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        await self._ask(hostname)
        until = self.clock.time() + self.lifetime
        if self.delegated is None:
            return WellKnownAnswer(None, "status 503", 0.1, until, self.absent)
        return WellKnownAnswer(parse_server_name(self.delegated), "", 0.1, until)

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        question = f"{service}.{hostname}"
        await self._ask(question)
        if self.fault is not None:
            raise self.fault
        records = tuple(self.records.get(question, ()))
        return SrvAnswer(records, 0.1, self.clock.time() + self.srv_lifetime)

    async def addresses(self, hostname: str) -> None:
        await self._addresses.do(hostname, lambda: self._ask(f"A {hostname}"))

    def forget(self, hostname: str) -> None:
        self.asked.append(f"forget {hostname}")

    async def _ask(self, question: str) -> None:
        assert question not in self.under_way, "two look-ups for one name"
        self.asked.append(question)
        self.under_way.add(question)
        try:
            await asyncio.sleep(0)
            if question in self.gates:
                await self.gates[question].wait()
        finally:
            self.under_way.discard(question)


class SlowStore(MemoryStore):
    """Gives way to others at every call, as a store on disk does."""

    async def get(self, kind: str, key: str) -> Stored | None:
        await asyncio.sleep(0)
        return await super().get(kind, key)

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        await asyncio.sleep(0)
        await super().put(kind, key, stored)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def lookups(clock: ManualClock) -> FakeLookups:
    return FakeLookups(clock)


@pytest.fixture(params=[MemoryStore, SlowStore])
def store(request: pytest.FixtureRequest) -> MemoryStore:
    made: MemoryStore = request.param(1000)
    return made


@pytest.fixture
async def resolver(
    lookups: FakeLookups, store: MemoryStore, clock: ManualClock
) -> AsyncIterator[CachingResolver]:
    made = make(lookups, store, clock)
    yield made
    await made.aclose()


def make(
    lookups: FakeLookups, store: MemoryStore, clock: ManualClock, policy: CachePolicy = POLICY
) -> CachingResolver:
    return CachingResolver(lookups, store, policy, clock, chance=lambda _: 0)


async def spin(turns: int = 30) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def where(resolver: CachingResolver) -> str:
    server = await resolver.resolve(NAME)
    return ", ".join(map(str, server.targets))


class TestAWellKnownAnswer:
    async def test_is_asked_for_once_while_it_is_fresh(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated = "one.example:1"
        for _ in range(3):
            assert "one.example:1" == await where(resolver)
            clock.advance(lookups.lifetime / 3 - 1)

        assert 1 == lookups.asked.count("remote.example")

    async def test_that_has_just_expired_serves_while_it_is_asked_for_in_the_background(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated = "one.example:1"
        await where(resolver)
        lookups.delegated = "two.example:2"
        clock.advance(HOUR + 1)
        gate = lookups.hold("remote.example")
        before = len(asyncio.all_tasks())

        assert ["one.example:1"] * 3 == [await where(resolver) for _ in range(3)]
        await spin()
        assert before + 2 == len(asyncio.all_tasks())  # who asks, and the look-up itself
        gate.set()
        await spin()
        assert "two.example:2" == await where(resolver)
        assert 2 == lookups.asked.count("remote.example")

    async def test_that_expires_again_and_again_is_asked_for_each_time(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        for number in range(1, 4):
            lookups.delegated = f"example:{number}"
            await where(resolver)
            await spin()
            assert f"example:{number}" == await where(resolver)
            clock.advance(HOUR + 1)

        assert 3 == lookups.asked.count("remote.example")

    async def test_that_has_long_expired_does_not_serve(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated = "one.example:1"
        await where(resolver)
        lookups.delegated = "two.example:2"
        clock.advance(HOUR + POLICY.stale + 1)

        assert "two.example:2" == await where(resolver)

    async def test_is_kept_for_48_hours_at_most(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated, lookups.lifetime = "one.example:1", math.inf
        await where(resolver)
        lookups.delegated = "two.example:2"
        clock.advance(48 * HOUR - 1)
        assert "one.example:1" == await where(resolver)
        assert 1 == lookups.asked.count("remote.example")

        clock.advance(POLICY.stale + 2)
        assert "two.example:2" == await where(resolver)

    async def test_that_was_valid_recently_survives_a_passing_failure(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated = "one.example:1"
        await where(resolver)
        lookups.delegated = None
        clock.advance(HOUR + POLICY.remember_valid - 1)
        assert "one.example:1" == await where(resolver)

        clock.advance(2)
        assert "remote.example:8448" == await where(resolver)

    async def test_that_was_valid_recently_survives_many_failures_and_no_longer_for_them(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated = "one.example:1"
        await where(resolver)
        lookups.delegated = None
        clock.advance(HOUR + POLICY.stale + 1)
        since = POLICY.stale + 1
        while since < POLICY.remember_valid:
            for _ in range(2):
                assert "one.example:1" == await where(resolver)
            clock.advance(1000)
            since += 1000

        assert "remote.example:8448" == await where(resolver)

    async def test_that_is_withdrawn_does_not_survive(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        """404 is an answer: the operator has taken the file away."""
        lookups.delegated = "one.example:1"
        await where(resolver)
        lookups.delegated, lookups.absent = None, True
        clock.advance(HOUR + POLICY.stale + 1)

        assert "remote.example:8448" == await where(resolver)

    async def test_is_shortened_by_chance(
        self, lookups: FakeLookups, store: MemoryStore, clock: ManualClock
    ) -> None:
        policy = CachePolicy(jitter=0.1, stale=0)
        resolver = CachingResolver(lookups, store, policy, clock, chance=lambda most: most)
        lookups.delegated = "one.example:1"
        await where(resolver)
        clock.advance(0.9 * HOUR - 1)
        await where(resolver)
        assert 1 == lookups.asked.count("remote.example")

        clock.advance(2)
        await where(resolver)
        assert 2 == lookups.asked.count("remote.example")
        await resolver.aclose()


async def test_closing_ends_what_is_asked_for_in_the_background(
    lookups: FakeLookups, store: MemoryStore, clock: ManualClock
) -> None:
    resolver = make(lookups, store, clock)
    lookups.delegated = "one.example:1"
    await where(resolver)
    clock.advance(HOUR + 1)
    lookups.hold("remote.example")
    await where(resolver)
    await spin()
    assert {"remote.example"} == lookups.under_way
    await resolver.aclose()

    assert set() == lookups.under_way


async def test_closing_ends_what_has_not_begun_yet(
    lookups: FakeLookups, store: MemoryStore, clock: ManualClock
) -> None:
    resolver = make(lookups, store, clock)
    lookups.delegated = "one.example:1"
    await where(resolver)
    clock.advance(HOUR + 1)
    await where(resolver)
    await resolver.aclose()
    asked = list(lookups.asked)
    await spin()

    assert asked == lookups.asked


@pytest.mark.parametrize("question", ["remote.example", f"{FED}.remote.example"])
async def test_closing_ends_a_walk(
    question: str, lookups: FakeLookups, store: MemoryStore, clock: ManualClock
) -> None:
    resolver = make(lookups, store, clock)
    lookups.hold(question)
    resolving = asyncio.create_task(resolver.resolve(NAME))
    await spin()
    await resolver.aclose()

    with pytest.raises(InviteError, match="closed"):
        await resolving
    assert set() == lookups.under_way


async def test_chance_is_uniform_from_0_on(lookups: FakeLookups, clock: ManualClock) -> None:
    lookups.records[f"{FED}.remote.example"] = [
        SrvRecord(1, 0, 1, "a.example"),
        SrvRecord(1, 1, 2, "b.example"),
    ]
    firsts = set()
    for _ in range(200):
        resolver = CachingResolver(lookups, MemoryStore(10), POLICY, clock)
        firsts.add((await where(resolver)).partition(",")[0])
        await resolver.aclose()

    # RFC 2782: what has no weight has "a very small chance of being selected", but has it.
    assert {"a.example:1", "b.example:2"} == firsts


class TestAFailedWellKnown:
    async def test_backs_off_exponentially_up_to_an_hour(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        asked_at, begun = [], clock.now
        for _ in range(4 * 360):
            before = lookups.asked.count("remote.example")
            await where(resolver)
            if lookups.asked.count("remote.example") > before:
                asked_at.append(clock.now - begun)
            clock.advance(10)
        waits = [later - sooner for sooner, later in pairwise(asked_at)]

        assert [60, 120, 240, 480, 960, 1920, 3600, 3600] == waits

    async def test_is_kept_for_less_by_chance(
        self, lookups: FakeLookups, store: MemoryStore, clock: ManualClock
    ) -> None:
        policy = CachePolicy(jitter=0.1)
        resolver = CachingResolver(lookups, store, policy, clock, chance=lambda most: most)
        for seconds, asked in ((0, 1), (53, 1), (2, 2)):
            clock.advance(seconds)
            await where(resolver)
            assert asked == lookups.asked.count("remote.example")
        await resolver.aclose()

    async def test_is_counted_anew_after_a_success(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        await where(resolver)
        clock.advance(61)
        lookups.delegated = "one.example:1"
        assert "one.example:1" == await where(resolver)
        lookups.delegated, lookups.absent = None, True
        clock.advance(HOUR + POLICY.stale + 1)
        await where(resolver)
        asked = lookups.asked.count("remote.example")
        clock.advance(61)
        await where(resolver)

        assert asked + 1 == lookups.asked.count("remote.example")

    async def test_long_ago_does_not_count(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        await where(resolver)
        clock.advance(10 * HOUR)
        await where(resolver)
        clock.advance(61)
        await where(resolver)

        assert 3 == lookups.asked.count("remote.example")


class TestSrvRecords:
    async def test_are_asked_for_once_while_they_are_fresh(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.records[f"{FED}.remote.example"] = [SrvRecord(1, 1, 7, "srv.example")]
        for _ in range(2):
            assert "srv.example:7" == await where(resolver)

        assert 1 == lookups.asked.count(f"{FED}.remote.example")

    async def test_that_are_absent_are_remembered_too(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        for _ in range(2):
            assert "remote.example:8448" == await where(resolver)

        assert [1, 1] == [lookups.asked.count(f"{s}.remote.example") for s in (FED, OLD)]

    async def test_of_before_serve_while_no_name_server_answers(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.records[f"{FED}.remote.example"] = [SrvRecord(1, 1, 7, "srv.example")]
        await where(resolver)
        lookups.fault = UnreachableError("SERVFAIL", stage=Stage.DNS, retryable=True)
        clock.advance(HOUR + POLICY.remember_valid - 1)
        assert "srv.example:7" == await where(resolver)

        clock.advance(2)
        with pytest.raises(UnreachableError, match="SERVFAIL") as caught:
            await where(resolver)
        assert (Stage.DNS, True) == (caught.value.stage, caught.value.retryable)

    async def test_that_cannot_be_had_are_not_taken_for_absent(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.fault = UnreachableError("SERVFAIL", stage=Stage.DNS, retryable=True)
        with pytest.raises(UnreachableError):
            await where(resolver)
        lookups.fault = None

        assert "remote.example:8448" == await where(resolver)

    async def test_errors_are_new_ones_for_each_caller(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.fault = UnreachableError("SERVFAIL", stage=Stage.DNS)
        errors = await asyncio.gather(where(resolver), where(resolver), return_exceptions=True)

        assert errors[0] is not errors[1]


class TestManyCallers:
    async def test_cause_one_look_up(self, resolver: CachingResolver, lookups: FakeLookups) -> None:
        gate = lookups.hold("remote.example")
        callers = [asyncio.create_task(where(resolver)) for _ in range(5)]
        await spin()
        gate.set()

        assert {"remote.example:8448"} == set(await asyncio.gather(*callers))
        assert len(lookups.asked) == len(set(lookups.asked))

    async def test_do_not_suffer_from_one_that_is_cancelled(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        gate = lookups.hold("remote.example")
        callers = [asyncio.create_task(where(resolver)) for _ in range(3)]
        await spin()
        callers[0].cancel()
        await spin()
        gate.set()

        results = await asyncio.gather(*callers, return_exceptions=True)
        assert ["remote.example:8448"] * 2 == results[1:]
        assert 1 == lookups.asked.count("remote.example")

    @pytest.mark.parametrize("held", ["remote.example", f"{FED}.remote.example"])
    async def test_that_are_all_cancelled_leave_nothing(
        self, held: str, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        before = asyncio.all_tasks()
        lookups.hold(held)
        callers = [asyncio.create_task(where(resolver)) for _ in range(3)]
        await spin()
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)

        assert (set(), before) == (lookups.under_way, asyncio.all_tasks())


class TestForgetting:
    async def test_makes_the_next_caller_look_everything_up(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.delegated = "one.example"
        lookups.records[f"{FED}.one.example"] = [SrvRecord(1, 1, 7, "srv.example")]
        assert "srv.example:7" == await where(resolver)
        lookups.delegated = "two.example"
        lookups.records[f"{FED}.two.example"] = [SrvRecord(1, 1, 8, "srv.example")]
        await resolver.forget(NAME)

        assert "srv.example:8" == await where(resolver)

    async def test_the_records_of_the_same_delegation_too(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.delegated = "one.example"
        lookups.records[f"{FED}.one.example"] = [SrvRecord(1, 1, 7, "srv.example")]
        await where(resolver)
        lookups.records[f"{FED}.one.example"] = [SrvRecord(1, 1, 8, "srv.example")]
        await resolver.forget(NAME)

        assert "srv.example:8" == await where(resolver)

    @pytest.mark.parametrize("lifetime", [HOUR, math.inf])
    async def test_keeps_what_was_valid_recently_for_a_passing_failure(
        self, lifetime: float, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        """A server that is down as a whole must not be looked for elsewhere."""
        lookups.delegated, lookups.lifetime = "one.example:1", lifetime
        await where(resolver)
        lookups.delegated = None
        await resolver.forget(NAME)

        assert "one.example:1" == await where(resolver)

    async def test_does_not_ask_a_failing_web_server_at_every_attempt(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.delegated = "one.example:1"
        await where(resolver)
        lookups.delegated = None
        for _ in range(4):
            await resolver.forget(NAME)
            await where(resolver)

        assert 2 == lookups.asked.count("remote.example")

    async def test_does_not_repeat_a_well_known_that_was_not_there(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        for _ in range(3):
            await where(resolver)
            await resolver.forget(NAME)

        assert 1 == lookups.asked.count("remote.example")
        assert 3 == lookups.asked.count(f"{FED}.remote.example")

    async def test_reaches_the_addresses_of_all_hosts_that_were_connected_to(
        self, lookups: FakeLookups, store: MemoryStore, clock: ManualClock
    ) -> None:
        resolver = CachingResolver(
            lookups, store, POLICY, clock, chance=lambda _: 0, addresses=lookups
        )
        lookups.delegated = "one.example"
        lookups.records[f"{OLD}.one.example"] = [SrvRecord(1, 1, 7, "SRV.example")]
        await where(resolver)
        await resolver.forget(NAME)
        forgotten = {a.removeprefix("forget ") for a in lookups.asked if a.startswith("forget")}

        assert {"remote.example", "one.example", "srv.example"} == forgotten
        await resolver.aclose()

    async def test_a_name_with_a_port_leaves_the_file_of_the_name_without(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.delegated = "one.example:1"
        await where(resolver)
        await resolver.forget(parse_server_name("remote.example:1234"))
        await where(resolver)

        assert 1 == lookups.asked.count("remote.example")

    @pytest.mark.parametrize("name", ["remote.example:1234", "192.0.2.1", "[2001:db8::1]:1"])
    async def test_a_name_that_needs_no_look_up_does_nothing(
        self, name: str, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        parsed = parse_server_name(name)
        await resolver.forget(parsed)
        await resolver.resolve(parsed)

        assert [] == lookups.asked


class TestAWalkOverTheSameAnswers:
    """It is left out, and nobody can tell but by the time that it does not take."""

    async def test_leads_to_the_same_server_with_the_same_trace(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.delegated = "one.example"
        lookups.records[f"{OLD}.one.example"] = [SrvRecord(1, 1, 7, "srv.example")]
        await where(resolver)
        walked = await resolver.resolve(NAME)
        trace: list[TraceStep] = []
        again = await resolver.resolve(NAME, trace)

        assert walked is again
        assert list(walked.trace) == trace

    @pytest.mark.parametrize(
        "key", [("well-known", "remote.example"), ("srv", f"{FED}.one.example")]
    )
    @pytest.mark.parametrize("how", ["deleted", "expired", "written by another worker"])
    async def test_is_taken_again_if_one_of_them_is_not_the_same(
        self,
        lookups: FakeLookups,
        store: MemoryStore,
        clock: ManualClock,
        key: tuple[str, str],
        how: str,
    ) -> None:
        resolver = make(lookups, store, clock)
        lookups.delegated = "one.example"
        lookups.records[f"{FED}.one.example"] = [SrvRecord(1, 1, 7, "srv.example")]
        for _ in range(3):
            assert "srv.example:7" == await where(resolver)
        stored = await store.get(*key)
        assert stored is not None
        moved: object = [[1, 1, 8, "srv.example"]]
        if key[0] == "well-known":
            moved = {"delegated": "two.example:8", "reason": "", "failures": 0}
        match how:
            case "deleted":
                await store.delete(*key)
            case "expired":
                await store.put(*key, Stored(stored.value, clock.time() - 1, clock.time() - 1))
            case _:
                await store.put(*key, Stored(moved, stored.fresh_until, stored.usable_until))
        lookups.delegated = "two.example:8"
        lookups.records[f"{FED}.one.example"] = [SrvRecord(1, 1, 8, "srv.example")]

        assert (await where(resolver)).endswith(":8")
        await resolver.aclose()

    async def test_is_taken_again_if_something_was_asked_for(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated, lookups.srv_lifetime = "one.example", 100
        lookups.records[f"{FED}.one.example"] = [SrvRecord(1, 1, 7, "srv.example")]
        for _ in range(2):
            assert "srv.example:7" == await where(resolver)
            clock.advance(101)
        lookups.records[f"{FED}.one.example"] = [SrvRecord(1, 1, 8, "srv.example")]

        assert "srv.example:8" == await where(resolver)

    async def test_is_remembered_for_only_so_many_names(
        self, resolver: CachingResolver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("invite_client.resolver._MOST_RESTED", 2)
        names = [f"192.0.2.{number}" for number in range(1, 6)]
        for name in names:
            assert f"{name}:8448" == str(
                (await resolver.resolve(parse_server_name(name))).targets[0]
            )

        assert names[-2:] == list(resolver._rested)

    async def test_draws_for_each_priority_anew(
        self, lookups: FakeLookups, store: MemoryStore, clock: ManualClock
    ) -> None:
        draws = iter([0, 2])
        resolver = CachingResolver(
            lookups, store, POLICY, clock, chance=lambda most: next(draws) if most == 2 else 0
        )
        lookups.records[f"{FED}.remote.example"] = [
            SrvRecord(priority, 1, port, f"{port}.example")
            for priority, port in ((1, 1), (1, 2), (2, 3), (2, 4))
        ]

        assert "1.example:1, 2.example:2, 4.example:4, 3.example:3" == await where(resolver)
        await resolver.aclose()

    async def test_is_taken_by_chance_where_there_is_a_choice(
        self, lookups: FakeLookups, store: MemoryStore, clock: ManualClock
    ) -> None:
        draws = iter([0, 0, 2, 2, 0, 0, 2, 2])
        resolver = CachingResolver(
            lookups, store, POLICY, clock, chance=lambda most: next(draws) if most == 2 else 0
        )
        lookups.records[f"{FED}.remote.example"] = [
            SrvRecord(1, 1, 7, "a.example"),
            SrvRecord(1, 1, 8, "b.example"),
        ]
        found = {await where(resolver) for _ in range(4)}

        assert {"a.example:7, b.example:8", "b.example:8, a.example:7"} == found
        await resolver.aclose()


class TestLookingAhead:
    @pytest.fixture
    async def resolver(
        self, lookups: FakeLookups, store: MemoryStore, clock: ManualClock
    ) -> AsyncIterator[CachingResolver]:
        made = CachingResolver(lookups, store, POLICY, clock, chance=lambda _: 0, addresses=lookups)
        yield made
        await made.aclose()

    async def test_all_is_looked_up_while_the_web_server_is_slow(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.records[f"{OLD}.remote.example"] = [SrvRecord(1, 1, 7, "srv.example")]
        gate = lookups.hold("remote.example")
        caller = asyncio.create_task(where(resolver))
        await spin()
        assert ["A srv.example", f"{FED}.remote.example", f"{OLD}.remote.example"] == sorted(
            set(lookups.asked) - {"remote.example"}
        )

        gate.set()
        assert "srv.example:7" == await caller
        assert len(lookups.asked) == len(set(lookups.asked))

    async def test_all_is_looked_up_where_there_was_no_file_the_last_time(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        await where(resolver)
        clock.advance(2 * HOUR)
        asked = len(lookups.asked)
        gate = lookups.hold("remote.example")
        caller = asyncio.create_task(where(resolver))
        await spin()
        assert f"{FED}.remote.example" in lookups.asked[asked:]

        gate.set()
        assert "remote.example:8448" == await caller

    async def test_both_srv_names_are_asked_for_at_once(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.hold(f"{FED}.one.example")
        lookups.delegated = "one.example"
        caller = asyncio.create_task(where(resolver))
        await spin()

        assert f"{OLD}.one.example" in lookups.asked
        lookups.gates[f"{FED}.one.example"].set()
        assert "one.example:8448" == await caller

    async def test_the_second_srv_name_decides_nothing_before_the_first(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.records[f"{FED}.remote.example"] = [SrvRecord(1, 1, 7, "first.example")]
        lookups.records[f"{OLD}.remote.example"] = [SrvRecord(1, 1, 8, "second.example")]
        gate = lookups.hold(f"{FED}.remote.example")
        caller = asyncio.create_task(where(resolver))
        await spin()
        gate.set()

        assert "first.example:7" == await caller

    async def test_a_guess_that_is_wrong_changes_nothing_and_ends(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        before = asyncio.all_tasks()
        lookups.delegated = "one.example:1"
        gate = lookups.hold("remote.example")
        lookups.hold(f"{OLD}.remote.example")
        caller = asyncio.create_task(where(resolver))
        await spin()
        assert f"{OLD}.remote.example" in lookups.under_way

        gate.set()
        assert "one.example:1" == await caller
        assert (set(), before) == (lookups.under_way, asyncio.all_tasks() - {caller})
        assert "A one.example" not in lookups.asked  # which the connection asks for, not the guess

    async def test_a_guess_that_fails_is_no_error(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.delegated = "one.example:1"
        lookups.fault = UnreachableError("SERVFAIL", stage=Stage.DNS)
        gate = lookups.hold("remote.example")
        caller = asyncio.create_task(where(resolver))
        await spin()
        gate.set()

        assert "one.example:1" == await caller

    async def test_a_guess_that_is_right_is_waited_for_as_the_connection_would(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        gate = lookups.hold("A remote.example")
        caller = asyncio.create_task(where(resolver))
        await spin()
        assert {"A remote.example"} == lookups.under_way
        gate.set()

        assert "remote.example:8448" == await caller
        assert set() == lookups.under_way

    async def test_a_guess_at_another_target_is_not_waited_for(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        """Records may change while the well-known file is on its way."""
        service = f"{FED}.remote.example"
        lookups.records[service] = [SrvRecord(1, 1, 7, "one.example")]
        lookups.hold("A one.example")
        gate = lookups.hold("remote.example")
        caller = asyncio.create_task(where(resolver))
        await spin()
        assert "A one.example" in lookups.under_way
        lookups.records[service] = [SrvRecord(1, 1, 7, "two.example")]
        clock.advance(HOUR + 1)
        gate.set()

        assert "two.example:7" == await asyncio.wait_for(caller, 5)
        assert set() == lookups.under_way

    async def test_a_caller_that_is_cancelled_takes_its_guess_with_it(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.hold("A remote.example")
        caller = asyncio.create_task(where(resolver))
        await spin()
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)

        assert set() == lookups.under_way

    async def test_there_is_no_guess_where_the_answer_is_known(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated = "one.example:1"
        await where(resolver)
        lookups.asked.clear()
        await where(resolver)
        assert [] == lookups.asked

        clock.advance(HOUR + 1)
        await where(resolver)
        await spin()
        assert ["remote.example"] == lookups.asked

        # What was valid recently will do, whatever the answer.
        clock.advance(HOUR + POLICY.stale + 1)
        await where(resolver)
        assert ["remote.example"] * 2 == lookups.asked

    async def test_addresses_that_are_there_already_are_not_looked_up(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        lookups.records[f"{FED}.remote.example"] = [SrvRecord(1, 1, 7, "192.0.2.7")]
        await where(resolver)

        assert [] == [question for question in lookups.asked if question.startswith("A ")]


class FakeConnections:
    """Opens connections that are there at once, and stay until they are given up."""

    def __init__(self) -> None:
        self.open: list[str] = []

    def open_ahead(self, server: ResolvedServer) -> FakeOpening:
        return FakeOpening(self.open, str(server.targets[0]))


class FakeOpening:
    def __init__(self, opened: list[str], target: str) -> None:
        self.opened, self.target = opened, target
        opened.append(target)

    async def give_up(self) -> None:
        self.opened.remove(self.target)


class TestConnectingAhead:
    """A connection for who is about to send, to where the server is if it has no well-known file."""

    @pytest.fixture
    def connections(self) -> FakeConnections:
        return FakeConnections()

    @pytest.fixture
    def resolver(
        self,
        lookups: FakeLookups,
        store: MemoryStore,
        clock: ManualClock,
        connections: FakeConnections,
    ) -> CachingResolver:
        """One whose chance gives every second walk another one of equal targets."""
        picks = cycle([0, 2])
        return CachingResolver(
            lookups,
            store,
            POLICY,
            clock,
            chance=lambda most: next(picks) if most == 2 else 0,
            addresses=lookups,
            connections=connections,
        )

    async def test_is_kept_where_the_guess_is_right(
        self, resolver: CachingResolver, lookups: FakeLookups, connections: FakeConnections
    ) -> None:
        gate = lookups.hold("remote.example")
        with about_to_send(lambda: True):
            caller = asyncio.create_task(where(resolver))
        await spin()
        assert ["remote.example:8448"] == connections.open
        gate.set()

        assert [await caller] == connections.open

    async def test_is_closed_as_soon_as_the_guess_is_wrong(
        self, resolver: CachingResolver, lookups: FakeLookups, connections: FakeConnections
    ) -> None:
        lookups.delegated = "one.example"
        gate = lookups.hold("remote.example")
        going_on = lookups.hold(f"{FED}.one.example")
        with about_to_send(lambda: True):
            caller = asyncio.create_task(where(resolver))
        await spin()
        assert ["remote.example:8448"] == connections.open
        gate.set()
        await spin()
        assert not caller.done()
        assert [] == connections.open
        going_on.set()

        assert "one.example:8448" == await caller
        assert [] == connections.open

    async def test_is_kept_where_chance_decides_for_it_is_asked_once(
        self, resolver: CachingResolver, lookups: FakeLookups, connections: FakeConnections
    ) -> None:
        lookups.records[f"{FED}.remote.example"] = [
            SrvRecord(1, 1, 7, "one.example"),
            SrvRecord(1, 1, 7, "two.example"),
        ]
        gate = lookups.hold("remote.example")
        with about_to_send(lambda: True):
            caller = asyncio.create_task(where(resolver))
        await spin()
        assert ["one.example:7"] == connections.open
        gate.set()

        assert "one.example:7, two.example:7" == await caller
        assert ["one.example:7"] == connections.open

    async def test_is_closed_where_the_records_have_changed(
        self,
        resolver: CachingResolver,
        lookups: FakeLookups,
        connections: FakeConnections,
        clock: ManualClock,
    ) -> None:
        service = f"{FED}.remote.example"
        lookups.records[service] = [SrvRecord(1, 1, 7, "one.example")]
        gate = lookups.hold("remote.example")
        with about_to_send(lambda: True):
            caller = asyncio.create_task(where(resolver))
        await spin()
        assert ["one.example:7"] == connections.open
        lookups.records[service] = [SrvRecord(1, 1, 7, "two.example")]
        clock.advance(HOUR + 1)
        gate.set()

        assert "two.example:7" == await caller
        assert [] == connections.open

    async def test_draws_again_for_another_name(
        self, resolver: CachingResolver, lookups: FakeLookups
    ) -> None:
        """What the guess has drawn from few must not decide among many."""
        lookups.delegated = "one.example"
        lookups.records[f"{FED}.remote.example"] = [SrvRecord(1, 0, 7, "guessed.example")]
        lookups.records[f"{FED}.one.example"] = [
            SrvRecord(1, 1, 7, f"{n}.one.example") for n in range(2)
        ]

        assert {"0.one.example:7, 1.one.example:7", "1.one.example:7, 0.one.example:7"} == {
            await where(resolver) for _ in range(2)
        }

    async def test_is_closed_with_a_caller_that_is_cancelled(
        self, resolver: CachingResolver, lookups: FakeLookups, connections: FakeConnections
    ) -> None:
        lookups.hold("remote.example")
        with about_to_send(lambda: True):
            caller = asyncio.create_task(where(resolver))
        await spin()
        assert ["remote.example:8448"] == connections.open
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller

        assert [] == connections.open

    async def test_is_not_for_who_only_asks(
        self, resolver: CachingResolver, lookups: FakeLookups, connections: FakeConnections
    ) -> None:
        gate = lookups.hold("remote.example")
        with about_to_send(lambda: True):
            pass  # something else was sent before
        caller = asyncio.create_task(where(resolver))
        await spin()
        assert "A remote.example" in lookups.asked
        assert [] == connections.open
        gate.set()

        assert "remote.example:8448" == await caller
        assert [] == connections.open

    async def test_nor_is_anything_looked_up_for_who_sends_without_haste(
        self, resolver: CachingResolver, lookups: FakeLookups, connections: FakeConnections
    ) -> None:
        gate = lookups.hold("remote.example")
        with about_to_send(lambda: False):
            caller = asyncio.create_task(where(resolver))
        await spin()
        assert ["remote.example"] == lookups.asked
        gate.set()

        assert "remote.example:8448" == await caller
        assert [] == connections.open

    async def test_is_not_opened_if_there_is_no_haste_any_more(
        self, resolver: CachingResolver, lookups: FakeLookups, connections: FakeConnections
    ) -> None:
        """Others may have begun while names were looked up."""
        haste = [True]
        lookups.hold("remote.example")
        looking_up = lookups.hold("A remote.example")
        with about_to_send(lambda: haste[0]):
            caller = asyncio.create_task(where(resolver))
        await spin()
        assert "A remote.example" in lookups.under_way
        haste[0] = False
        looking_up.set()
        await spin()

        assert [] == connections.open
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)

    async def test_is_not_opened_where_all_is_known(
        self, resolver: CachingResolver, connections: FakeConnections
    ) -> None:
        await where(resolver)
        with about_to_send(lambda: True):
            await where(resolver)

        assert [] == connections.open


def _short(value: Any) -> str:
    return f"{value!r:.40}"


class TestAStoreIsNotBelieved:
    @pytest.mark.parametrize("until", [math.inf, math.nan, "9e99", None, 10**400], ids=_short)
    async def test_about_how_long_a_well_known_holds(
        self, until: Any, resolver: CachingResolver, lookups: FakeLookups, store: MemoryStore
    ) -> None:
        lookups.delegated = "one.example:1"
        value = {"delegated": "evil.example:1", "reason": "", "failures": 0}
        await store.put("well-known", "remote.example", Stored(value, until, until))

        assert "one.example:1" == await where(resolver)

    @pytest.mark.parametrize(
        "value",
        [
            None,
            [],
            "evil.example:1",
            {"delegated": "evil example", "reason": "", "failures": 0},
            {"delegated": ["evil.example"], "reason": "", "failures": 0},
            {"delegated": None, "reason": 7},
            {"reason": ""},
        ],
        ids=_short,
    )
    async def test_about_a_well_known(
        self,
        value: Any,
        resolver: CachingResolver,
        lookups: FakeLookups,
        store: MemoryStore,
        clock: ManualClock,
    ) -> None:
        lookups.delegated = "one.example:1"
        until = clock.now + 100
        await store.put("well-known", "remote.example", Stored(value, until, until))

        assert "one.example:1" == await where(resolver)

    @pytest.mark.parametrize("failures", [{}, {"failures": None}, {"failures": -7}])
    async def test_about_how_often_a_well_known_failed(
        self,
        failures: dict[str, Any],
        resolver: CachingResolver,
        lookups: FakeLookups,
        store: MemoryStore,
        clock: ManualClock,
    ) -> None:
        value = {"delegated": None, "reason": "", **failures}
        stored = Stored(value, clock.now - 1, clock.now + 100)
        await store.put("well-known", "remote.example", stored)
        await where(resolver)
        clock.advance(61)  # as after a first one
        await where(resolver)

        assert 2 == lookups.asked.count("remote.example")

    @pytest.mark.parametrize(
        "value",
        [
            None,
            {},
            "x",
            [[1, 1, 7]],
            [[1, 1, 7, "evil.example", 0]],
            [[1, 1, "7", "evil.example"]],
            [[1, -1, 7, "evil.example"]],
            [[1, 1, 65_536, "evil.example"]],
            [[1, 1, 7, None]],
            [[1, 1, 7, "evil.example"]] * 100_000,
        ],
        ids=_short,
    )
    async def test_about_srv_records(
        self,
        value: Any,
        resolver: CachingResolver,
        lookups: FakeLookups,
        store: MemoryStore,
        clock: ManualClock,
    ) -> None:
        until = clock.now + 100
        await store.put("srv", f"{FED}.remote.example", Stored(value, until, until))

        assert "remote.example:8448" == await where(resolver)
        assert f"{FED}.remote.example" in lookups.asked

    @pytest.mark.parametrize("usable", [100, -1])
    async def test_about_srv_records_while_no_name_server_answers(
        self,
        usable: float,
        resolver: CachingResolver,
        lookups: FakeLookups,
        store: MemoryStore,
        clock: ManualClock,
    ) -> None:
        value = None if usable > 0 else [[1, 1, 7, "evil.example"]]
        stored = Stored(value, clock.now - 2, clock.now + usable)
        await store.put("srv", f"{FED}.remote.example", stored)
        lookups.fault = UnreachableError("SERVFAIL", stage=Stage.DNS)

        with pytest.raises(UnreachableError, match="SERVFAIL"):
            await where(resolver)

    async def test_a_clock_that_goes_back_makes_nothing_live_longer(
        self, resolver: CachingResolver, lookups: FakeLookups, clock: ManualClock
    ) -> None:
        lookups.delegated = "one.example:1"
        await where(resolver)
        lookups.delegated = "two.example:2"
        clock.advance(-1000 * HOUR)

        assert "two.example:2" == await where(resolver)
