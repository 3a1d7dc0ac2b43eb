"""A host's store may do what it likes: it costs no invite, and no more than its time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from invite_client import CachePolicy, Policy
from invite_client.interfaces import Stored
from invite_client.stores.guarded import GuardedStore
from invite_client.stores.memory import MemoryStore
from invite_client.testing import SimulatedHomeserver, Slow, make_invite


class BrokenStore:
    """Raises whatever it is told to; hangs if it is told nothing."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    async def get(self, kind: str, key: str) -> Stored | None:
        return await self._fails()

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        await self._fails()

    async def delete(self, kind: str, key: str) -> None:
        await self._fails()

    async def aclose(self) -> None: ...

    async def _fails(self) -> Any:
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


class JunkStore(BrokenStore):
    """Returns what is no stored value."""

    async def get(self, kind: str, key: str) -> Any:
        return {"value": 1, "fresh_until": "for ever"}

    async def _fails(self) -> Any:
        return None


class HastyStore(BrokenStore):
    """Fails before there is anything to wait for."""

    def get(self, kind: str, key: str) -> Any:
        raise RuntimeError("not in this thread")

    def put(self, kind: str, key: str, stored: Stored) -> Any:
        raise RuntimeError("not in this thread")


@pytest.mark.parametrize(
    "store",
    [
        BrokenStore(OSError("the disk is gone")),
        BrokenStore(TimeoutError()),
        BrokenStore(KeyError("a bug")),
        BrokenStore(asyncio.CancelledError()),
        BrokenStore(),
        JunkStore(),
        HastyStore(),
    ],
    ids=["OSError", "TimeoutError", "a bug", "a task of its own", "hangs", "junk", "at once"],
)
async def test_an_invite_is_signed_whatever_the_store_does(store: BrokenStore) -> None:
    remote = SimulatedHomeserver()
    policy = Policy(cache=CachePolicy(store_patience=0.01))
    async with remote.client(store=store, policy=policy) as client:
        signed = await client.send_invite(make_invite())

    assert {remote.signing_key.key_id} == set(signed.signatures)
    assert 1 == remote.counts["v2"]


class SlowStore(MemoryStore):
    """Takes its time, as a disk does."""

    async def put(self, kind: str, key: str, stored: Stored) -> None:
        await asyncio.sleep(0.05)
        await super().put(kind, key, stored)


async def test_what_an_invite_has_learned_is_stored_when_it_is_signed() -> None:
    # Given keys that are there before the answer, and not yet stored when it comes
    remote, store = SimulatedHomeserver(), SlowStore(100)
    remote.fails(Slow(0.02), endpoint="v2")
    async with remote.client(store=store) as client:
        await client.send_invite(make_invite())

    assert await store.get("keys", remote.server_name) is not None


async def test_a_failure_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    store = GuardedStore(BrokenStore(OSError("the disk is gone")), 1.0)
    assert await store.get("keys", "remote.example") is None
    await store.put("keys", "remote.example", Stored(1, 2.0, 3.0))

    assert 1 == len(caplog.records)
    assert "the disk is gone" in caplog.text


async def test_who_is_cancelled_is_cancelled() -> None:
    call = asyncio.create_task(GuardedStore(BrokenStore(), 60.0).get("keys", "remote.example"))
    await asyncio.sleep(0)
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
