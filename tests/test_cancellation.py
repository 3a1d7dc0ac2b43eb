"""`send_invite` cancelled wherever it can wait: nothing is left behind, and the slot is returned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from invite_client import InviteClient, Limits, Policy, Retries, Timeouts
from invite_client.clock import SystemClock
from invite_client.errors import (
    CountersignatureError,
    CountersignatureProblem,
    Delivery,
    InviteError,
    InviteRejectedError,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.interfaces import AttemptLog, Stored
from invite_client.resolver import CachingResolver
from invite_client.spec.discovery import ResolvedServer, SrvAnswer, WellKnownAnswer
from invite_client.spec.http import Reply, Request
from invite_client.spec.invites import Invite
from invite_client.stores.memory import MemoryStore
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    SimulatedFederation,
    SimulatedHomeserver,
    make_invite,
)

# One slot, so that one that is not returned is missed at once.
POLICY = Policy(limits=Limits(concurrency=1, per_destination=1), retries=Retries(first_wait=0.001))


class Places:
    """The places where something outside is waited for; at one of them it never comes."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.park_at: int | None = None
        self.parked = asyncio.Event()

    async def wait(self, place: str) -> None:
        self.passed.append(place)
        if len(self.passed) == self.park_at:
            self.parked.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


class ParkingTransport:
    def __init__(self, places: Places, inner: SimulatedFederation) -> None:
        self.places, self.inner = places, inner

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        await self.places.wait(f"before {request.what}")
        reply = await self.inner.exchange(server, request, limit=limit, log=log)
        await self.places.wait(f"after {request.what}")
        return reply

    async def aclose(self) -> None:
        """Nothing is open."""


class ParkingLookups:
    """A name that has neither a well-known file nor SRV records."""

    def __init__(self, places: Places) -> None:
        self.places = places

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        await self.places.wait(f"well-known {hostname}")
        return WellKnownAnswer(None, "status 404")

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        await self.places.wait(f"SRV {service}.{hostname}")
        return SrvAnswer(())


class ParkingStore(MemoryStore):
    def __init__(self, places: Places) -> None:
        super().__init__(100)
        self.places = places

    async def get(self, kind: str, key: str) -> Stored | None:
        await self.places.wait(f"get {kind}")
        return await super().get(kind, key)

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        await self.places.wait(f"put {kind}")
        await super().put(kind, key, stored)


class ParkingClock(SystemClock):
    def __init__(self, places: Places) -> None:
        self.places = places

    async def sleep(self, seconds: float) -> None:
        await self.places.wait("back-off")


@asynccontextmanager
async def parking_client(places: Places, **options: Any) -> AsyncIterator[InviteClient]:
    """A client whose invite is answered 503, then 404 by v2, then signed by v1."""
    remote = SimulatedHomeserver("remote.example", endpoints=("v1",))
    remote.trust(INVITER, INVITER_KEY.verify_key)
    remote.answers(503, times=1, endpoint="v2")
    store, clock = ParkingStore(places), ParkingClock(places)
    resolver = CachingResolver(ParkingLookups(places), store, POLICY.cache, clock)
    try:
        async with InviteClient(
            INVITER,
            INVITER_KEY,
            transport=ParkingTransport(places, SimulatedFederation(remote)),
            resolver=resolver,
            store=store,
            clock=clock,
            **{"policy": POLICY, **options},
        ) as client:
            yield client
    finally:
        await resolver.aclose()


def invite() -> Invite:
    return make_invite(version="1")


async def places_of_one_invite() -> list[str]:
    places = Places()
    async with parking_client(places) as client:
        signed = await client.send_invite(invite())
        assert "v1" == signed.endpoint
    return places.passed


async def test_the_invite_waits_in_all_the_places_that_there_are() -> None:
    passed = await places_of_one_invite()

    for place in (
        "well-known remote.example",
        "SRV _matrix-fed._tcp.remote.example",
        "SRV _matrix._tcp.remote.example",
        "after PUT v2 invite",
        "after PUT v1 invite",
        "after GET server keys",
        "back-off",
        "get keys",
        "put keys",
    ):
        assert place in passed


async def test_cancelled_at_every_place_it_leaves_nothing_and_returns_its_slot() -> None:
    count = len(await places_of_one_invite())
    before = asyncio.all_tasks()

    for place in range(1, count + 1):
        # Given an invite that waits for ever in one place
        places = Places()
        places.park_at = place
        async with parking_client(places) as client:
            sending = asyncio.create_task(client.send_invite(invite()))
            parked = asyncio.create_task(places.parked.wait())
            await asyncio.wait((sending, parked), return_when=asyncio.FIRST_COMPLETED)
            parked.cancel()

            # When it is cancelled; but what is looked up ahead of time holds up nobody
            if sending.done():
                assert sending.result().signatures
            else:
                sending.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await sending

            # Then nothing of it goes on, and the one slot is free
            left = {task for task in asyncio.all_tasks() - before if not task.done()} - {parked}
            assert set() == left, places.passed[-1]
            async with asyncio.timeout(5):
                signed = await client.send_invite(invite())
            assert signed.signatures


async def test_out_of_time_at_every_place_it_says_how_far_it_came() -> None:
    passed = await places_of_one_invite()
    policy = Policy(limits=POLICY.limits, retries=POLICY.retries, timeouts=Timeouts(total=0.05))
    seen = set()

    for place in range(1, len(passed) + 1):
        # Given an invite that waits in one place until its time is up
        places = Places()
        places.park_at = place
        async with parking_client(places, policy=policy) as client:
            try:
                signed = await client.send_invite(invite())
            except InviteError as raised:
                error = raised
            else:
                # What is looked up ahead of time holds up nobody.
                assert signed.signatures
                continue

        # Then the error tells what is known, and that the event can be sent again
        assert error.retryable
        seen.add(type(error))
        match error:
            case UnreachableError():
                assert "after PUT v2 invite" not in places.passed
                assert Delivery.NOT_SENT == error.delivery
            case InviteRejectedError():
                assert (503, Delivery.ANSWERED) == (error.status, error.delivery)
            case CountersignatureError():
                assert CountersignatureProblem.KEYS_UNAVAILABLE == error.problem
                assert Delivery.ANSWERED == error.delivery
            case _:
                assert isinstance(error, UnknownOutcomeError)
                assert Delivery.UNKNOWN == error.delivery

    expected = {
        UnreachableError,
        UnknownOutcomeError,
        InviteRejectedError,
        CountersignatureError,
    }
    assert expected == seen
