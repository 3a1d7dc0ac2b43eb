"""Many invites: every one has one outcome, nothing is unbounded, nobody waits for somebody else."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invite_client import BulkPolicy, Invite, InviteError, Limits, Outcome, Policy, SignedInvite
from invite_client.bulk import Invites, Outcomes, send_all
from invite_client.errors import (
    CountersignatureError,
    CountersignatureProblem,
    Delivery,
    InvalidInviteError,
    InviteRejectedError,
    RateLimitedError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.server_names import parse_server_name
from invite_client.testing import (
    SimulatedFederation,
    SimulatedHomeserver,
    make_invite,
)
from tests.virtual_time import VirtualClock

TEMPLATE = make_invite()
NOWHERE = ResolvedServer("x.example", "6", (), "x.example", "x.example")
LIMITS = Limits(concurrency=20, per_destination=4)


def invite(destination: str, number: int = 0) -> Invite:
    """An invite that is cheap to make: what is in it is the business of whoever sends it."""
    return replace(
        TEMPLATE,
        event={**TEMPLATE.event, "state_key": f"@u{number}:{destination}"},
        event_id=f"${destination}-{number}",
        destination=parse_server_name(destination),
    )


def invites(destination: str, count: int) -> list[Invite]:
    return [invite(destination, number) for number in range(count)]


def signed(what: Invite) -> SignedInvite:
    return SignedInvite(what.event, {"ed25519:a": "x"}, "v2", NOWHERE, what)


def down() -> UnreachableError:
    return UnreachableError("nobody there", retryable=True)


def later(seconds: float | None = None) -> RateLimitedError:
    return RateLimitedError("too many", status=429, retryable=True, retry_after=seconds)


Behaviour = Callable[["World", Invite], Awaitable[None]]


@dataclass
class World:
    """The servers out there: each takes a second to sign, unless it is told otherwise."""

    clock: VirtualClock = field(default_factory=VirtualClock)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    sent: list[tuple[float, str]] = field(default_factory=list)
    in_flight: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)

    async def send(self, what: Invite) -> SignedInvite:
        name = str(what.destination)
        self.sent.append((self.clock.elapsed, name))
        for key in (name, "total"):
            self.in_flight[key] += 1
            self.most[key] = max(self.most[key], self.in_flight[key])
        try:
            await self.behaviours.get(name, signs)(self, what)
        finally:
            self.in_flight[name] -= 1
            self.in_flight["total"] -= 1
        return signed(what)

    def sent_to(self, name: str) -> list[float]:
        return [when for when, whom in self.sent if whom == name]

    def run(self, what: Invites, limits: Limits = LIMITS, **policy: Any) -> Any:
        return send_all(what, self.send, limits, BulkPolicy(**policy), self.clock)

    async def outcomes(
        self, what: Invites, limits: Limits = LIMITS, **policy: Any
    ) -> list[Outcome]:
        async with self.run(what, limits, **policy) as outcomes:
            return [outcome async for outcome in outcomes]


async def signs(world: World, _: Invite) -> None:
    await world.clock.sleep(1)


async def hangs(world: World, _: Invite) -> None:
    await world.clock.sleep(60)
    raise UnknownOutcomeError("no answer within 60 s", retryable=True)


async def refuses_connections(_: World, __: Invite) -> None:
    raise down()


def fails_with(error: InviteError, times: float = float("inf")) -> Behaviour:
    remaining = times

    async def behave(world: World, what: Invite) -> None:
        nonlocal remaining
        await signs(world, what)
        if remaining > 0:
            remaining -= 1
            raise error

    return behave


def by_destination(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        assert outcome.invite is not None
        grouped.setdefault(str(outcome.invite.destination), []).append(outcome)
    return grouped


def shuffled(*parts: list[Invite]) -> list[Invite]:
    """One of each, then again."""
    return [what for group in itertools.zip_longest(*parts) for what in group if what is not None]


# --- Every invite has one outcome ---------------------------------------------------------------


async def test_every_invite_has_one_outcome() -> None:
    world = World()
    given = shuffled(*(invites(f"d{i}.example", 7) for i in range(30)))
    outcomes = await world.outcomes(given)

    assert [what.event_id for what in given] == [
        outcome.invite.event_id
        for outcome in sorted(outcomes, key=lambda outcome: outcome.index)
        if outcome.invite is not None
    ]
    assert all(outcome.signed and outcome.error is None for outcome in outcomes)
    assert {1} == {outcome.sends for outcome in outcomes}


async def test_nothing_to_send_is_no_outcome() -> None:
    assert [] == await World().outcomes([])


async def test_outcomes_come_as_they_are_known() -> None:
    world = World(behaviours={"slow.example": hangs})
    async with world.run([invite("slow.example"), invite("quick.example")]) as outcomes:
        first = await anext(outcomes)

    assert "quick.example" == str(first.invite.destination)


async def test_an_asynchronous_iterable_is_read_as_it_comes() -> None:
    world = World()

    async def produce() -> AsyncIterator[Invite]:
        for number in range(3):
            await world.clock.sleep(100)
            yield invite("a.example", number)

    await world.outcomes(produce())

    assert [100, 200, 300] == world.sent_to("a.example")


@pytest.mark.parametrize(
    ("error", "sends"),
    [
        (InviteRejectedError("no", status=403), 1),
        (CountersignatureError("bad", problem=CountersignatureProblem.NOT_SIGNED), 1),
        (InvalidInviteError("wrong"), 1),
        (InviteRejectedError("broken", status=500, retryable=True), 5),
        (UnknownOutcomeError("lost", retryable=True), 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, InviteError) else str(value),
)
async def test_what_may_pass_is_tried_again_and_nothing_else(
    error: InviteError, sends: int
) -> None:
    world = World(behaviours={"a.example": fails_with(error)})
    [outcome] = await world.outcomes(invites("a.example", 1))

    assert (error, sends, None) == (outcome.error, outcome.sends, outcome.signed)
    assert sends == len(world.sent)
    assert 1.0 == outcome.seconds  # of the last send


# --- One bad item is one bad outcome ------------------------------------------------------------


async def test_an_error_among_the_invites_is_an_outcome() -> None:
    bad = InvalidInviteError("is missing", field="event")
    outcomes = await World().outcomes([invite("a.example", 1), bad, invite("a.example", 2)])

    assert [(1, None, bad)] == [
        (outcome.index, outcome.invite, outcome.error) for outcome in outcomes if outcome.error
    ]
    assert 3 == len(outcomes)


async def test_a_map_that_raises_goes_on() -> None:
    outcomes = await World().outcomes(
        map(Invite.from_request, [TEMPLATE.to_request(), {}, TEMPLATE.to_request()])
    )

    assert ["None", "room_version", "None"] == [
        str(getattr(outcome.error, "field", None))
        for outcome in sorted(outcomes, key=lambda outcome: outcome.index)
    ]


def one_then_bad() -> Iterator[Invite]:
    yield invite("a.example")
    raise InvalidInviteError("a generator ends here")


async def one_then_bad_async() -> AsyncIterator[Invite]:
    yield invite("a.example")
    raise InvalidInviteError("a generator ends here")


async def one_then_trouble() -> AsyncIterator[Invite]:
    yield invite("a.example")
    raise OSError("a generator ends here")


@pytest.mark.parametrize("broken", [one_then_bad, one_then_bad_async, one_then_trouble])
async def test_a_generator_that_raises_is_not_taken_for_the_end(
    broken: Callable[[], Invites],
) -> None:
    seen = []
    with pytest.raises((InvalidInviteError, OSError), match="a generator ends here"):
        async with World().run(broken()) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome)

    assert [True] == [outcome.signed is not None for outcome in seen]


@pytest.mark.parametrize("item", [None, "an invite", {}])
async def test_what_is_no_invite_is_a_bug_of_the_caller(item: Any) -> None:
    with pytest.raises(TypeError, match="expected an Invite"):
        await World().outcomes([invite("a.example"), item])


@pytest.mark.parametrize("given", [None, 5, TEMPLATE])
async def test_what_cannot_be_read_is_refused_where_it_is_given(given: Any) -> None:
    with pytest.raises(TypeError, match="not iterable"):
        await World().outcomes(given)


async def test_an_input_that_somebody_else_cancels_is_not_taken_for_the_end() -> None:
    async def one_then_cancelled() -> AsyncIterator[Invite]:
        yield invite("a.example")
        raise asyncio.CancelledError

    seen = []
    with pytest.raises(asyncio.CancelledError):
        async with World().run(one_then_cancelled()) as outcomes:
            async for outcome in outcomes:
                seen.append(outcome)

    assert [True] == [outcome.signed is not None for outcome in seen]


async def test_a_bug_ends_the_run() -> None:
    async def broken(_: World, __: Invite) -> None:
        raise ZeroDivisionError

    world = World(behaviours={"b.example": broken, "a.example": hangs})
    with pytest.raises(ZeroDivisionError):
        await world.outcomes([invite("a.example"), invite("b.example")])

    assert 0 == world.in_flight["total"]


async def test_a_send_that_somebody_else_cancels_does_not_hang_the_run() -> None:
    async def cancelled(_: World, __: Invite) -> None:
        raise asyncio.CancelledError

    world = World(behaviours={"a.example": cancelled})
    with pytest.raises(asyncio.CancelledError):
        await world.outcomes([invite("a.example")])


# --- Bounded ------------------------------------------------------------------------------------


async def test_sends_are_bounded_in_total_and_per_destination() -> None:
    world = World()
    await world.outcomes(shuffled(*(invites(f"d{i}.example", 20) for i in range(12))))

    assert LIMITS.concurrency == world.most.pop("total")
    assert LIMITS.per_destination == max(world.most.values())


async def test_destinations_take_turns_of_some_invites_each() -> None:
    """They share its connections; and nobody waits until another has had all of its own."""
    world = World()
    one_at_a_time = Limits(concurrency=1)
    await world.outcomes(invites("a.example", 30) + invites("b.example", 30), one_at_a_time)
    turns = [len(list(turn)) for _, turn in itertools.groupby(name for _, name in world.sent)]

    assert 8 == max(turns)
    assert len(turns) < 12


async def test_an_endless_input_is_read_no_further_than_the_look_ahead() -> None:
    taken = 0

    def endless() -> Iterator[Invite]:
        nonlocal taken
        for taken in itertools.count(1):
            yield invite(f"d{taken % 50}.example", taken)

    world, handed_out = World(), 0
    async with world.run(endless(), look_ahead=100) as outcomes:
        async for _ in outcomes:
            handed_out += 1
            assert taken - handed_out <= 100
            if handed_out == 2000:
                break

    assert 0 == world.in_flight["total"]


async def test_a_slow_consumer_holds_the_sends_back() -> None:
    world = World()
    async with world.run(shuffled(*(invites(f"d{i}.example", 9) for i in range(50)))) as outcomes:
        await anext(outcomes)
        await world.clock.sleep(1000)
        sent = len(world.sent)
        rest = [outcome async for outcome in outcomes]

    assert sent <= 2 * LIMITS.concurrency + 1
    assert 449 == len(rest)


async def test_destinations_are_forgotten() -> None:
    limits = replace(LIMITS, cached_servers=10)
    given = (invite(f"d{number}.example") for number in range(500))
    async with World().run(given, limits, look_ahead=30) as outcomes:
        async for _ in outcomes:
            assert len(outcomes._busy) <= 30
            assert len(outcomes._idle) <= 10


async def test_sends_keep_to_the_rate() -> None:
    world = World()
    await world.outcomes([invite(f"d{i}.example") for i in range(21)], rate=4)

    assert [number / 4 for number in range(21)] == pytest.approx([when for when, _ in world.sent])


# --- Fair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [hangs, refuses_connections, fails_with(later(30.0))])
async def test_a_bad_destination_costs_the_others_nothing(behaviour: Behaviour) -> None:
    others = [invites(f"d{i}.example", 50) for i in range(5)]

    async def seconds(*more: list[Invite]) -> float:
        world = World(behaviours={"bad.example": behaviour})
        async with world.run(shuffled(*more, *others), Limits(concurrency=21)) as outcomes:
            done = 0
            while done < 250:
                outcome = await anext(outcomes)
                done += str(outcome.invite.destination) != "bad.example"
        return world.clock.elapsed

    alone = await seconds()
    assert alone == await seconds(invites("bad.example", 50))


async def test_slots_are_kept_for_those_that_answer() -> None:
    bad = {f"bad{i}.example": hangs for i in range(40)}
    world = World(behaviours={**bad})
    given = [invite("good.example", 0), *map(invite, bad), *invites("good.example", 60)[1:]]
    async with world.run(given) as outcomes:
        good = 0
        while good < 60:
            outcome = await anext(outcomes)
            good += str(outcome.invite.destination) == "good.example"

    # 16 of the 20 slots hang for 60 s; 4 are enough for 60 invites of a second each.
    assert world.clock.elapsed < 25


async def test_a_new_destination_is_sent_one_and_a_prompt_one_more() -> None:
    world = World()
    await world.outcomes(invites("a.example", 11))

    assert {0: 1, 1: 2, 2: 4, 3: 4} == Counter(world.sent_to("a.example"))


async def test_a_slow_destination_is_sent_one_at_a_time() -> None:
    async def slow(world: World, _: Invite) -> None:
        await world.clock.sleep(6)

    world = World(behaviours={"a.example": slow})
    await world.outcomes(invites("a.example", 5))

    assert [0, 6, 12, 18, 24] == world.sent_to("a.example")


async def test_a_destination_that_turns_slow_while_it_is_in_the_queue_is_still_sent() -> None:
    async def turns_slow(world: World, _: Invite) -> None:
        await world.clock.sleep(1 if len(world.sent) == 1 else 6)

    world = World(behaviours={"a.example": turns_slow})
    outcomes = await world.outcomes(invites("a.example", 3), Limits(concurrency=1))

    assert [0, 1, 7] == world.sent_to("a.example")
    assert 3 == len(outcomes)


@pytest.mark.parametrize(
    ("behaviour", "seconds"), [(refuses_connections, 60), (hangs, 180)], ids=["dead", "hangs"]
)
async def test_who_fills_the_look_ahead_is_given_up_sooner(
    behaviour: Behaviour, seconds: float
) -> None:
    """An input sorted by destination, which begins with many invites of a dead one."""
    world = World(behaviours={"dead.example": behaviour})
    given = itertools.chain(
        (invite("dead.example", i) for i in range(10_000)), [invite("good.example")]
    )
    outcomes = await world.outcomes(given)

    assert 10_001 == len(outcomes)
    assert world.sent_to("good.example")[0] < seconds


async def test_one_invite_that_is_never_accepted_does_not_hold_up_its_neighbours() -> None:
    """A limit for one invited user looks like one of the whole server."""

    async def limits_one(world: World, what: Invite) -> None:
        await signs(world, what)
        if what.target.startswith("@u0:"):
            raise later(3.0)

    world = World(behaviours={"a.example": limits_one})
    outcomes = await world.outcomes(invites("a.example", 20))

    assert [0] == [outcome.index for outcome in outcomes if outcome.error]
    assert 0 == outcomes[-1].index
    assert BulkPolicy().deferrals == outcomes[-1].sends


# --- Back-off -----------------------------------------------------------------------------------


async def test_a_failing_destination_rests_longer_each_time_and_is_given_up() -> None:
    world = World(behaviours={"dead.example": refuses_connections})
    outcomes = await world.outcomes(invites("dead.example", 100))
    sent = world.sent_to("dead.example")
    rests = [after - before for before, after in itertools.pairwise(sent)]

    assert len(sent) < 25
    assert 540 < sent[-1] <= 600
    for rest, longest in zip(rests, (1, 2, 4, 8, 16, 32), strict=False):
        assert longest / 2 <= rest <= longest
    assert all(30 <= rest <= 60 for rest in rests[6:])
    assert 100 == len(outcomes)


async def test_what_waited_for_a_destination_that_is_given_up_says_so() -> None:
    world = World(behaviours={"dead.example": refuses_connections})
    outcomes = await world.outcomes(invites("dead.example", 100))
    [unsent] = {str(outcome.error) for outcome in outcomes if outcome.sends == 0 and outcome.error}
    errors = [outcome.error for outcome in outcomes]

    assert "dead.example: nobody there (given up after" in unsent
    assert all(isinstance(error, UnreachableError) and error.retryable for error in errors)
    assert {Delivery.NOT_SENT} == {error.delivery for error in errors if error}


async def test_that_it_had_to_wait_for_its_turn_is_not_held_against_a_destination() -> None:
    world = World(behaviours={"a.example": fails_with(down(), times=2)})
    [outcome] = await world.outcomes(invites("a.example", 1), rate=1 / 30, patience=10.0)

    assert [0, 30, 60] == world.sent_to("a.example")
    assert outcome.signed


async def test_a_destination_that_no_repetition_can_reach_is_given_up_at_once() -> None:
    bad_certificate = UnreachableError("certificate is for other.example", retryable=False)
    world = World(behaviours={"a.example": fails_with(bad_certificate)})
    outcomes = await world.outcomes(invites("a.example", 100))

    assert 1 == len(world.sent)
    assert {False} == {outcome.error.retryable for outcome in outcomes if outcome.error}


async def test_a_destination_that_was_given_up_is_tried_once_in_a_while() -> None:
    world = World(behaviours={"a.example": refuses_connections})

    async def one_a_second() -> AsyncIterator[Invite]:
        for number in range(1000):
            await world.clock.sleep(1)
            if number == 800:
                world.behaviours.clear()
            yield invite("a.example", number)

    outcomes = await world.outcomes(one_a_second())
    signed_at = [outcome.index for outcome in outcomes if outcome.signed]

    assert 800 <= min(signed_at) <= 860
    assert list(range(min(signed_at), 1000)) == signed_at


async def test_a_destination_that_comes_back_gets_its_invites() -> None:
    async def down_for_two_minutes(world: World, what: Invite) -> None:
        if world.clock.elapsed < 120:
            raise down()
        await signs(world, what)

    world = World(behaviours={"a.example": down_for_two_minutes})
    outcomes = await world.outcomes(invites("a.example", 100), attempts=20)

    assert all(outcome.signed for outcome in outcomes)
    assert world.clock.elapsed < 120 + 60 + 100


async def test_a_limit_is_kept_for_the_user_alone() -> None:
    """Synapse limits invites of other servers by the invited user, for up to 333 s."""

    async def limits_one_user(world: World, what: Invite) -> None:
        await signs(world, what)
        if what.target == "@u0:a.example" and world.clock.elapsed < 334:
            raise later(334 - world.clock.elapsed)

    world = World(behaviours={"a.example": limits_one_user})
    rooms = [replace(what, event_id=f"{what.event_id}-2") for what in invites("a.example", 1)]
    outcomes = await world.outcomes([*invites("a.example", 4), *rooms])

    assert all(outcome.signed for outcome in outcomes)
    assert [0, 1, 2, 2, 334, 334] == world.sent_to("a.example")


async def test_a_limit_for_a_second_user_is_kept_for_the_server() -> None:
    world = World(behaviours={"a.example": fails_with(later(17.0), times=2)})
    outcomes = await world.outcomes(invites("a.example", 3))

    assert all(outcome.signed for outcome in outcomes)
    # Until the first of them may come back.
    assert [0, 1, 18, 19, 20] == world.sent_to("a.example")


async def test_a_user_who_is_limited_for_long_holds_up_no_others_with_another_invite() -> None:
    """What may not wait in memory ends, with what is known: it was not sent."""
    world = World(behaviours={"a.example": fails_with(later(300.0), times=1)})
    first, *others = invites("a.example", 3)
    again = replace(first, event_id=f"{first.event_id}-2")
    outcomes = await world.outcomes([first, again, *others], longest_deferral=10.0)
    by_index = {outcome.index: outcome for outcome in outcomes}
    error = by_index[1].error

    assert [0, 1, 2] == world.sent_to("a.example")
    assert isinstance(error, RateLimitedError)
    assert (Delivery.NOT_SENT, True, 300.0) == (error.delivery, error.retryable, error.retry_after)
    assert "a.example: not sent: another invite of @u0:a.example was answered 429" == str(error)
    assert 0 == by_index[1].sends
    assert by_index[2].signed
    assert by_index[3].signed


async def test_a_destination_is_forgotten_whose_last_invite_is_put_off() -> None:
    world = World(behaviours={"a.example": fails_with(later(300.0), times=1)})
    first = invite("a.example")
    again = replace(first, event_id=f"{first.event_id}-2")
    async with world.run([first, again], longest_deferral=10.0) as outcomes:
        assert 2 == len([outcome async for outcome in outcomes])

        assert not outcomes._busy


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (later(5.0), RateLimitedError),
        (UnknownOutcomeError("no answer", retryable=True), UnreachableError),
    ],
)
async def test_what_is_not_sent_to_a_server_that_was_reached_says_so(
    error: InviteError, kind: type[InviteError]
) -> None:
    world = World(behaviours={"a.example": fails_with(error)})
    outcomes = await world.outcomes(invites("a.example", 20), patience=1.0)
    unsent = [outcome.error for outcome in outcomes if not outcome.sends]

    assert unsent
    assert {kind} == {type(one) for one in unsent}
    assert {Delivery.NOT_SENT} == {one.delivery for one in unsent if one}
    assert {Stage.BACKOFF} == {one.stage for one in unsent if one}
    assert all("not sent: given up after " in str(one) for one in unsent)
    assert all(str(one).endswith(f"of another invite: {error.message}") for one in unsent)


async def test_a_server_that_has_answered_for_long_is_taken_to_limit_nobody_any_more() -> None:
    world = World(behaviours={"a.example": fails_with(later(1.0), times=2)})
    outcomes = await world.outcomes(invites("a.example", 60))

    assert all(outcome.signed for outcome in outcomes)
    assert LIMITS.per_destination == world.most["a.example"]
    assert world.clock.elapsed < 60 / 2


@pytest.mark.parametrize("seconds", [0.5, 86400.0])
async def test_what_is_remembered_of_limited_users_is_bounded(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr("invite_client.bulk._REMEMBERED", 6)
    limited: set[str] = set()

    async def limits_every_other_user_once(world: World, what: Invite) -> None:
        await signs(world, what)
        if what.target not in limited and len(world.sent) % 2:
            limited.add(what.target)
            raise later(seconds)

    world = World(behaviours={"a.example": limits_every_other_user_once})
    async with world.run(invites("a.example", 50)) as outcomes:
        assert 50 == len([outcome async for outcome in outcomes])

        assert 25 <= len(limited)
        assert 1 <= len(outcomes._idle["a.example"].limited) <= 6


async def test_many_users_that_are_limited_do_not_wait_for_each_other() -> None:
    """Each of 200 users is limited for 333 s, from when it is invited."""
    until: dict[str, float] = {}

    async def limits_every_user(world: World, what: Invite) -> None:
        await world.clock.sleep(0.05)
        now = world.clock.elapsed
        if now < until.setdefault(what.target, now + 333):
            raise later(until[what.target] - now)

    world = World(behaviours={"a.example": limits_every_user})
    outcomes = await world.outcomes(invites("a.example", 200))

    assert all(outcome.signed for outcome in outcomes)
    assert len(world.sent) < 2.5 * 200
    assert world.clock.elapsed < 12 * 333


@pytest.mark.parametrize("zero", [None, 0.0])
async def test_a_limit_without_a_time_is_kept_longer_each_time(zero: float | None) -> None:
    world = World(behaviours={"a.example": fails_with(later(zero), times=5)})
    [outcome] = await world.outcomes(invites("a.example", 1))
    rests = [b - a - 1 for a, b in itertools.pairwise(world.sent_to("a.example"))]

    assert outcome.signed
    assert all(
        longest / 2 <= rest <= longest
        for rest, longest in zip(rests, (1, 2, 4, 8, 16), strict=True)
    )


async def test_a_time_to_come_back_that_is_too_long_is_for_another_run() -> None:
    world = World(behaviours={"a.example": fails_with(later(3600.0))})
    outcomes = await world.outcomes(invites("a.example", 3))

    assert [0, 1, 62] == world.sent_to("a.example")
    assert {3600.0} == {outcome.error.retry_after for outcome in outcomes if outcome.error}


async def test_failures_of_sends_that_were_under_way_at_once_are_one() -> None:
    world = World()

    async def fails_from_five_to_ten(_: World, what: Invite) -> None:
        await signs(world, what)
        if 5 <= world.clock.elapsed < 10:
            raise down()

    world.behaviours["a.example"] = fails_from_five_to_ten
    outcomes = await world.outcomes(invites("a.example", 30))
    second_4, pause = 4.0, next(when for when in world.sent_to("a.example") if when > 4.0)

    assert 4 == world.sent_to("a.example").count(second_4)
    assert pause - 5 <= 1.0  # as after one failure
    assert all(outcome.signed for outcome in outcomes)


async def test_a_server_that_limits_gets_all_invites_in_the_end() -> None:
    """A token bucket, as in Synapse's `rc_invites`: 0.3 a second, 10 at once."""
    tokens, at = 10.0, 0.0
    refused: list[float] = []
    clock = VirtualClock()

    async def bucket(world: World, _: Invite) -> None:
        nonlocal tokens, at
        await world.clock.sleep(0.05)
        now = world.clock.elapsed
        tokens, at = min(10.0, tokens + (now - at) * 0.3), now
        if tokens < 1:
            refused.append(now)
            raise later((1 - tokens) / 0.3)
        tokens -= 1

    world = World(clock, behaviours={"a.example": bucket})
    outcomes = await world.outcomes(invites("a.example", 300))

    assert all(outcome.signed for outcome in outcomes)
    assert len(refused) < 1.3 * 300
    # What is allowed is used.
    assert clock.elapsed < 1.1 * 290 / 0.3


async def test_who_fails_is_told() -> None:
    world = World(behaviours={"dead.example": refuses_connections, "late.example": hangs})
    given = shuffled(*(invites(f"{name}.example", 3) for name in ("dead", "late", "good")))
    async with world.run(given) as outcomes:
        for _ in range(3):
            await anext(outcomes)
        [dead] = outcomes.failing()
        in_flight = outcomes.in_flight

    assert ("dead.example", 3, "nobody there") == (
        dead.destination,
        dead.waiting,
        dead.error.message,
    )
    assert 2 <= dead.failures <= 4
    assert 0 < dead.rests <= 4
    assert 1 == in_flight  # late.example's


# --- Ended --------------------------------------------------------------------------------------


async def test_leaving_the_block_ends_every_send() -> None:
    world = World(behaviours={f"d{i}.example": hangs for i in range(9)})
    async with world.run([invite("a.example"), *map(invite, world.behaviours)]) as outcomes:
        async for _ in outcomes:
            break

    assert (0, 10) == (world.in_flight["total"], len(world.sent))
    assert {*world.behaviours} == {str(what.destination) for what in outcomes.abandoned}


async def test_an_exception_in_the_block_ends_every_send() -> None:
    world = World()
    with pytest.raises(LookupError):
        async with world.run(invites("a.example", 9)) as outcomes:
            async for _ in outcomes:
                raise LookupError

    assert 0 == world.in_flight["total"]


async def test_cancellation_ends_every_send() -> None:
    world = World(behaviours={"a.example": hangs})
    started = asyncio.Event()

    async def run() -> None:
        async with world.run(invites("a.example", 9)) as outcomes:
            started.set()
            async for _ in outcomes:
                pass

    task = asyncio.create_task(run())
    await started.wait()
    while not world.sent:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert 0 == world.in_flight["total"]


async def test_an_asynchronous_generator_is_closed_with_the_block() -> None:
    closed = False

    async def endless() -> AsyncIterator[Invite]:
        nonlocal closed
        try:
            for number in itertools.count():
                yield invite("a.example", number)
        finally:
            closed = True

    async with World().run(endless()) as outcomes:
        await anext(outcomes)

    assert closed


async def test_a_run_that_is_stopped_ends_what_is_under_way_and_starts_nothing() -> None:
    world = World()
    seen = []
    async with world.run(shuffled(*(invites(f"d{i}.example", 20) for i in range(9)))) as outcomes:
        async for outcome in outcomes:
            seen.append(outcome)
            outcomes.stop()

    assert 0 == world.in_flight["total"]
    assert len(world.sent) == len(seen) < 180
    assert all(outcome.signed for outcome in seen)


async def test_what_nobody_has_taken_is_known_when_the_block_is_left() -> None:
    """What has ended has its outcome; what was to be sent again, the error of its last send."""

    async def at_once(_: World, __: Invite) -> None:
        pass

    world = World(
        behaviours={
            "dead.example": refuses_connections,
            "late.example": hangs,
            "quick.example": at_once,
        }
    )
    given = [*invites("dead.example", 2), *invites("late.example", 2), *invites("quick.example", 2)]
    async with world.run(given) as outcomes:
        while len(world.sent_to("quick.example")) < 2 or world.in_flight["quick.example"]:
            await asyncio.sleep(0)

    untaken, unfinished = list(outcomes.untaken()), outcomes.unfinished()
    assert [4, 5] == [one.index for one in untaken if one.signed]
    assert 2 == len(untaken)
    assert [] == list(outcomes.untaken())
    assert [(0, "nobody there", 1)] == [
        (one.index, one.error and one.error.message, one.sends) for one in unfinished
    ]
    assert {"late.example"} == {str(what.destination) for what in outcomes.abandoned}


async def test_what_was_to_be_sent_again_just_then_is_known_when_the_block_is_left() -> None:
    """It may have arrived the first time, and nothing else says so."""
    no_answer = UnknownOutcomeError("no answer", retryable=True)
    world = World(behaviours={"late.example": fails_with(no_answer, times=1)})
    one_at_a_time = replace(LIMITS, concurrency=1)
    async with world.run([invite("late.example"), invite("a.example")], one_at_a_time) as outcomes:
        await world.clock.sleep(100)  # the slot is kept from all until an outcome is taken
        await anext(outcomes)

    assert [0] == world.sent_to("late.example")
    assert [] == outcomes.abandoned
    assert [(0, no_answer, 1)] == [
        (one.index, one.error, one.sends) for one in outcomes.unfinished()
    ]


async def test_several_may_take_the_outcomes() -> None:
    async def take(outcomes: Outcomes) -> int:
        return len([outcome async for outcome in outcomes])

    async with World().run(invites("a.example", 20)) as outcomes:
        taken = await asyncio.gather(*(take(outcomes) for _ in range(3)))

    assert 20 == sum(taken)


# --- By chance ----------------------------------------------------------------------------------

fates = st.lists(
    st.sampled_from(
        [None, down(), later(), later(1e-9), later(5.0), later(700.0), InviteRejectedError("no")]
    ),
    max_size=12,
)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from([f"d{i}.example" for i in range(6)]), fates, min_size=1),
    st.lists(st.sampled_from([f"d{i}.example" for i in range(6)]), max_size=40),
    st.integers(1, 8),
    st.integers(1, 3),
    st.integers(1, 12),
)
def test_whatever_happens_every_invite_has_one_outcome(
    scripts: dict[str, list[InviteError | None]],
    destinations: list[str],
    concurrency: int,
    per_destination: int,
    look_ahead: int,
) -> None:
    """And the limits hold, and the run ends."""
    remaining = {name: list(script) for name, script in scripts.items()}

    async def scripted(world: World, what: Invite) -> None:
        await world.clock.sleep(len(world.sent) % 7)
        script = remaining.get(str(what.destination))
        fate = script.pop(0) if script else None
        if fate is not None:
            raise fate

    async def run() -> tuple[World, list[Outcome]]:
        world = World(behaviours=dict.fromkeys(destinations, scripted))
        given = [invite(name, number) for number, name in enumerate(destinations)]
        limits = Limits(concurrency=concurrency, per_destination=per_destination)
        return world, await world.outcomes(given, limits, look_ahead=look_ahead)

    world, outcomes = asyncio.run(run())

    assert list(range(len(destinations))) == sorted(outcome.index for outcome in outcomes)
    assert all((outcome.signed is None) != (outcome.error is None) for outcome in outcomes)
    assert concurrency >= world.most.pop("total", 0)
    assert per_destination >= max(world.most.values(), default=0)


# --- With a client ------------------------------------------------------------------------------


async def test_a_client_sends_many() -> None:
    clock = VirtualClock()
    good, limiting, refusing = (
        SimulatedHomeserver(f"{name}.example", now=clock.time)
        for name in ("good", "limiting", "refusing")
    )
    limiting.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=1000, times=2)
    refusing.answers(403, "M_FORBIDDEN")
    federation = SimulatedFederation(good, limiting, refusing)
    names = ("good.example", "limiting.example", "refusing.example", "absent.example")
    given = [
        make_invite(f"@u{number}:{name}", origin_server_ts=int(clock.now * 1000))
        for name in names
        for number in range(3)
    ]
    policy = Policy(bulk=BulkPolicy(patience=10.0))
    async with (
        federation.client(policy=policy, clock=clock) as client,
        client.send_invites(given) as outcomes,
    ):
        found = by_destination([outcome async for outcome in outcomes])

    results = {name: {type(outcome.error).__name__ for outcome in found[name]} for name in names}
    assert {
        "good.example": {"NoneType"},
        "limiting.example": {"NoneType"},
        "refusing.example": {"InviteRejectedError"},
        "absent.example": {"UnreachableError"},
    } == results
    # The run repeats, and not the client as well.
    assert 5 == limiting.counts["v2"]
    assert all(outcome.signed.invite is outcome.invite for outcome in found["good.example"])


# --- What was sent was sent ---------------------------------------------------------------------


async def loses_one_answer_and_is_gone(world: World, _: Invite) -> None:
    await world.clock.sleep(1)
    if 1 == len(world.sent):
        raise UnknownOutcomeError("no whole answer", retryable=True)
    raise down()


@pytest.mark.parametrize(
    "policy", [{"attempts": 3}, {"patience": 2.0, "attempts": 50}], ids=["repeated", "given up"]
)
async def test_an_invite_that_may_have_arrived_is_never_reported_as_not_sent(
    policy: dict[str, Any],
) -> None:
    world = World(behaviours={"gone.example": loses_one_answer_and_is_gone})
    first, second = await world.outcomes(invites("gone.example", 2), **policy)

    by_index = {outcome.index: outcome.error for outcome in (first, second)}
    assert Delivery.UNKNOWN == by_index[0].delivery  # type: ignore[union-attr]
    assert Delivery.NOT_SENT == by_index[1].delivery  # type: ignore[union-attr]
