"""Homeservers without sockets: what goes wrong with them looks to a client as it does in the world."""

from __future__ import annotations

import asyncio

import pytest

from invite_client import (
    Delivery,
    InviteError,
    MalformedReplyError,
    Policy,
    Retries,
    Stage,
    Timeouts,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.spec.signatures import SigningKey
from invite_client.testing import (
    Drips,
    Fault,
    Hangs,
    LosesTheAnswer,
    ManualClock,
    Refuses,
    SimulatedFederation,
    SimulatedHomeserver,
    Slow,
    TimesOut,
    Unreachable,
    make_invite,
)

ONCE = Policy(retries=Retries(attempts=1))


async def test_an_invite_is_signed_without_a_socket(no_socket_is_left_behind: None) -> None:
    remote = SimulatedHomeserver()
    async with remote.client() as client:
        signed = await client.send_invite(make_invite())

    assert [remote.signing_key.key_id] == list(signed.signatures)
    assert [("PUT v2 invite", "200", True)] == [
        (attempt.what, attempt.outcome, attempt.sent)
        for attempt in signed.attempts
        if attempt.what.startswith("PUT")
    ]


async def test_the_key_of_its_client_is_trusted() -> None:
    remote, key = SimulatedHomeserver(), SigningKey.generate("mine")
    async with remote.client("me.example", key) as client:
        await client.send_invite(make_invite(server_name="me.example", key=key))

    assert 1 == sum(remote.accepted.values())


@pytest.mark.parametrize(
    ("fault", "error", "stage", "delivery", "requests"),
    [
        (Unreachable(), UnreachableError, Stage.CONNECT, Delivery.NOT_SENT, 0),
        (Refuses(), UnreachableError, Stage.CONNECT, Delivery.NOT_SENT, 0),
        (TimesOut(), UnreachableError, Stage.CONNECT, Delivery.NOT_SENT, 0),
        (LosesTheAnswer(), UnknownOutcomeError, Stage.HTTP, Delivery.UNKNOWN, 1),
    ],
    ids=str,
)
async def test_a_fault_is_what_it_is_called(
    fault: Fault, error: type[InviteError], stage: Stage, delivery: Delivery, requests: int
) -> None:
    remote = SimulatedHomeserver()
    remote.fails(fault, times=1)
    async with remote.client(policy=ONCE) as client:
        with pytest.raises(error) as caught:
            await client.send_invite(make_invite())
        assert (stage, delivery) == (caught.value.stage, caught.value.delivery)
        assert requests == remote.counts["v2"]

        await client.send_invite(make_invite())


async def test_one_that_hangs_is_ended_by_the_clients_deadline() -> None:
    remote = SimulatedHomeserver()
    remote.fails(Hangs())
    policy = Policy(timeouts=Timeouts(total=0.05))
    async with remote.client(policy=policy) as client:
        with pytest.raises(UnknownOutcomeError):
            await client.send_invite(make_invite())

    assert 1 == remote.counts["v2"]


async def test_one_that_is_slow_answers_all_the_same() -> None:
    remote = SimulatedHomeserver()
    remote.fails(Slow(0.01))
    async with remote.client() as client:
        await client.send_invite(make_invite())


async def test_an_answer_over_the_limit_is_not_handed_over() -> None:
    remote = SimulatedHomeserver()
    remote.answers(200, body=b" " * 2_000_000)
    async with remote.client() as client:
        with pytest.raises(MalformedReplyError, match="longer than"):
            await client.send_invite(make_invite())


async def test_what_takes_a_socket_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot happen to a SimulatedHomeserver"):
        SimulatedHomeserver().fails(Drips())


async def test_it_behaves_again() -> None:
    remote = SimulatedHomeserver()
    remote.fails(Refuses())
    remote.behaves()
    async with remote.client() as client:
        await client.send_invite(make_invite())


async def test_a_federation_leads_every_invite_to_its_own_server() -> None:
    one, two = SimulatedHomeserver("one.example"), SimulatedHomeserver("two.example:8449")
    async with SimulatedFederation(one, two).client() as client:
        await asyncio.gather(
            client.send_invite(make_invite("@a:one.example")),
            client.send_invite(make_invite("@b:two.example:8449")),
            client.send_invite(make_invite("@c:two.example:8449")),
        )

    assert (1, 2) == (one.counts["v2"], two.counts["v2"])
    assert "two.example:8449" == two.requests[0].host


async def test_nobody_else_is_found() -> None:
    async with SimulatedHomeserver().client() as client:
        with pytest.raises(UnreachableError, match="no such name") as caught:
            await client.send_invite(make_invite("@bob:other.example"))

    assert Stage.DNS == caught.value.stage


async def test_with_a_manual_clock_retries_wait_for_nothing() -> None:
    remote, clock = SimulatedHomeserver(), ManualClock()
    remote.answers(429, "M_LIMIT_EXCEEDED", headers={"Retry-After": "25"}, times=1)
    remote.answers(503, times=1)
    started = clock.time()
    async with remote.client(clock=clock) as client:
        await client.send_invite(make_invite())

    assert 3 == remote.counts["v2"]
    assert 25.0 == clock.slept[0]
    assert pytest.approx(sum(clock.slept)) == clock.time() - started
    clock.advance(5)
    assert pytest.approx(started + sum(clock.slept) + 5) == clock.monotonic()


async def test_a_resolver_needs_no_more_than_the_protocol_asks() -> None:
    async with SimulatedHomeserver("remote.example").client() as client:
        server = await client.resolve("remote.example")

    assert ["remote.example:8448"] == [str(target) for target in server.targets]
