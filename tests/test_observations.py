"""What an observer is told of an invite: when it begins, each request, and one end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from invite_client import (
    CountersignatureError,
    Delivery,
    ForbiddenByPolicyError,
    InviteError,
    Limits,
    Policy,
    Retries,
    ServerPolicy,
    Timeouts,
    UnreachableError,
)
from invite_client import client as client_module
from invite_client.interfaces import AttemptLog
from invite_client.observations import (
    Abandoned,
    Failed,
    FellBack,
    KeysObtained,
    Observation,
    Queued,
    Replied,
    RequestSent,
    Resolved,
    RetryScheduled,
    Started,
    Unanswered,
    Verified,
)
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Reply, Request
from invite_client.testing import (
    Hangs,
    LosesTheAnswer,
    SimulatedFederation,
    SimulatedHomeserver,
    badly_signed,
    make_invite,
)

POLICY = Policy(retries=Retries(first_wait=0.001))


class Notes(list[Observation]):
    """An observer that remembers."""

    def __call__(self, event: Observation) -> None:
        self.append(event)

    @property
    def kinds(self) -> list[type]:
        return [type(event) for event in self]

    def of(self, kind: type) -> list[Any]:
        return [event for event in self if isinstance(event, kind)]


async def send(remote: SimulatedHomeserver, policy: Policy = POLICY, version: str = "10") -> Notes:
    notes = Notes()
    async with remote.client(policy=policy, observer=notes) as client:
        try:
            await client.send_invite(make_invite(version=version))
        except InviteError:
            assert isinstance(notes[-1], Failed)
    return notes


async def test_a_signed_invite() -> None:
    notes = await send(SimulatedHomeserver())

    expected = [Queued, Started, Resolved, RequestSent, Replied, KeysObtained, Verified]
    assert expected == notes.kinds
    assert [("v2", 1)] == [(sent.endpoint, sent.attempt) for sent in notes.of(RequestSent)]
    assert ["200"] == [attempt.outcome for attempt in notes.of(Replied)[0].attempts]
    assert 1 == len({event.call for event in notes})


async def test_a_fallback_is_part_of_the_attempt() -> None:
    notes = await send(SimulatedHomeserver(endpoints=("v1",)), version="1")

    expected = [RequestSent, Replied, FellBack, RequestSent, Replied]
    assert expected == notes.kinds[3:-2]
    assert [("v2", 1), ("v1", 1)] == [(s.endpoint, s.attempt) for s in notes.of(RequestSent)]
    # Each reply comes with what was tried for it, and not with what was tried before.
    outcomes = [[a.outcome for a in replied.attempts] for replied in notes.of(Replied)]
    assert [["404"], ["200"]] == outcomes


async def test_a_retry_begins_with_the_discovery() -> None:
    remote = SimulatedHomeserver()
    remote.fails(LosesTheAnswer(), times=1)
    remote.answers(503, times=2)  # the first of which is lost
    notes = await send(remote)

    expected = [Resolved, RequestSent, Unanswered, RetryScheduled]
    expected += [Resolved, RequestSent, Replied, RetryScheduled]
    expected += [Resolved, RequestSent, Replied, KeysObtained, Verified]
    assert expected == notes.kinds[2:]
    unanswered = notes.of(Unanswered)[0]
    assert Delivery.UNKNOWN == unanswered.error.delivery
    assert [True] == [attempt.sent for attempt in unanswered.attempts]


async def test_a_rejection() -> None:
    remote = SimulatedHomeserver()
    remote.answers(403, "M_FORBIDDEN")
    notes = await send(remote)

    assert [Queued, Started, Resolved, RequestSent, Replied, Failed] == notes.kinds


async def test_a_forgery_is_found_after_the_keys_are_here() -> None:
    remote = SimulatedHomeserver()
    remote.lies(badly_signed())
    notes = await send(remote)

    expected = [Queued, Started, Resolved, RequestSent, Replied, KeysObtained, Failed]
    assert expected == notes.kinds
    assert isinstance(notes[-1].error, CountersignatureError)  # type: ignore[union-attr]


async def test_what_the_policy_refuses_never_had_a_slot() -> None:
    policy = Policy(servers=ServerPolicy(blocked=("remote.example",)))
    notes = await send(SimulatedHomeserver(), policy)

    assert [Queued, Failed] == notes.kinds
    assert isinstance(notes[-1].error, ForbiddenByPolicyError)  # type: ignore[union-attr]


@pytest.mark.parametrize("spelling", ["remote.example", "remote.example.", "REMOTE.Example."])
@pytest.mark.parametrize("listed", ["remote.example", "Remote.example."])
async def test_a_blocked_server_is_blocked_in_any_spelling(listed: str, spelling: str) -> None:
    """For all of them lead to it."""
    invite = make_invite(f"@bob:{spelling}")
    for policy in (ServerPolicy(blocked=(listed,)), ServerPolicy(allowed=("else.example",))):
        async with SimulatedFederation().client(policy=Policy(servers=policy)) as client:
            with pytest.raises(ForbiddenByPolicyError):
                await client.send_invite(invite)
    policy = ServerPolicy(allowed=(listed,), blocked=("remote.example:8449",))
    async with SimulatedFederation().client(policy=Policy(servers=policy)) as client:
        with pytest.raises(UnreachableError):  # nobody is there
            await client.send_invite(invite)


async def test_out_of_time_ends_the_request_and_the_invite() -> None:
    remote = SimulatedHomeserver()
    remote.fails(Hangs())
    notes = await send(remote, Policy(timeouts=Timeouts(total=0.05)))

    assert [RequestSent, Unanswered, Failed] == notes.kinds[3:]
    assert [None] == [unanswered.error for unanswered in notes.of(Unanswered)]


async def test_a_cancelled_invite_is_abandoned_wherever_it_waits() -> None:
    # Given one slot, an invite that holds it, and one that waits for it
    remote = SimulatedHomeserver()
    remote.fails(Hangs())
    notes, sent = Notes(), asyncio.Event()

    def observer(event: Observation) -> None:
        notes(event)
        if isinstance(event, RequestSent):
            sent.set()

    policy = Policy(limits=Limits(concurrency=1))
    async with remote.client(policy=policy, observer=observer) as client:
        first = asyncio.create_task(client.send_invite(make_invite()))
        await sent.wait()
        second = asyncio.create_task(client.send_invite(make_invite()))
        await asyncio.sleep(0)

        # When both are cancelled
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)

    # Then each has one end, and the request that was under way has one too
    calls = {event.call for event in notes}
    told = [[type(event) for event in notes if event.call == call] for call in sorted(calls)]
    expected = [
        [Queued, Started, Resolved, RequestSent, Unanswered, Abandoned],
        [Queued, Abandoned],
    ]
    assert expected == told


async def test_a_bug_is_an_end_too() -> None:
    class BrokenTransport:
        async def exchange(
            self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
        ) -> Reply:
            raise ZeroDivisionError

        async def aclose(self) -> None:
            """Nothing is open."""

    notes = Notes()
    async with SimulatedHomeserver().client(transport=BrokenTransport(), observer=notes) as client:
        with pytest.raises(ZeroDivisionError):
            await client.send_invite(make_invite())

    assert [RequestSent, Unanswered, Abandoned] == notes.kinds[-3:]


async def test_calls_are_numbered_across_clients() -> None:
    # Given two clients that share an observer, and send the same invite
    notes, invite = Notes(), make_invite()
    remote = SimulatedHomeserver()
    async with remote.client(observer=notes) as one, remote.client(observer=notes) as other:
        await asyncio.gather(
            one.send_invite(invite), one.send_invite(invite), other.send_invite(invite)
        )

    # Then what is told of them can be told apart
    assert 3 == len({event.call for event in notes})
    assert 3 == len(notes.of(Verified))


async def test_where_nobody_observes_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: object, **__: object) -> None:
        pytest.fail("an observation was made")

    for kind in (Queued, Started, Resolved, RequestSent, Replied, KeysObtained, Verified):
        monkeypatch.setattr(client_module, kind.__name__, made)
    async with SimulatedHomeserver().client(policy=POLICY) as client:
        assert (await client.send_invite(make_invite())).signatures


async def test_an_observer_that_raises_costs_no_invite(caplog: pytest.LogCaptureFixture) -> None:
    def observer(event: Observation) -> None:
        raise ZeroDivisionError

    async with SimulatedHomeserver().client(observer=observer) as client:
        signed = await client.send_invite(make_invite())

    assert signed.signatures
    assert "the observer failed" in caplog.text
