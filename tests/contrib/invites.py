"""Invites that end in all the ways that an observer must tell apart."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from invite_client import Invite, InviteError, Policy, Retries
from invite_client.interfaces import Observer
from invite_client.observations import Observation, RequestSent
from invite_client.testing import (
    Hangs,
    LosesTheAnswer,
    SimulatedHomeserver,
    badly_signed,
    make_invite,
)

POLICY = Policy(retries=Retries(first_wait=0.001))


async def signed(observer: Observer) -> Invite:
    return await _send(SimulatedHomeserver(), observer)


async def fallen_back(observer: Observer) -> Invite:
    return await _send(SimulatedHomeserver(endpoints=("v1",)), observer, version="1")


async def rejected(observer: Observer) -> Invite:
    remote = SimulatedHomeserver()
    # The words are the remote's own: they must not be able to forge a line of a log.
    remote.answers(403, "M_FORBIDDEN", "no\n{PUT-1} [remote.example] signed")
    return await _send(remote, observer)


async def retried(observer: Observer) -> Invite:
    """Lost, then answered 429, then signed."""
    remote = SimulatedHomeserver()
    remote.fails(LosesTheAnswer(), times=1)
    remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=1, times=2)  # the first of which is lost
    return await _send(remote, observer)


async def forged(observer: Observer) -> Invite:
    remote = SimulatedHomeserver()
    remote.lies(badly_signed())
    return await _send(remote, observer)


async def unreachable(observer: Observer) -> Invite:
    return await _send(SimulatedHomeserver(), observer, target="@bob:nowhere.example")


async def abandoned(observer: Observer) -> Invite:
    """Cancelled while the remote hangs."""
    remote, sent = SimulatedHomeserver(), asyncio.Event()
    remote.fails(Hangs())

    def watch(event: Observation) -> None:
        observer(event)
        if isinstance(event, RequestSent):
            sent.set()

    invite = make_invite()
    async with remote.client(observer=watch) as client:
        task = asyncio.create_task(client.send_invite(invite))
        await sent.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    return invite


async def all_of_them(observer: Observer) -> list[Invite]:
    ways = (signed, fallen_back, rejected, retried, forged, unreachable, abandoned)
    return [await way(observer) for way in ways]


async def _send(
    remote: SimulatedHomeserver,
    observer: Observer,
    target: str = "@bob:remote.example",
    version: str = "10",
) -> Invite:
    invite = make_invite(target, version)
    async with remote.client(policy=POLICY, observer=observer) as client:
        with suppress(InviteError):
            await client.send_invite(invite)
    return invite
