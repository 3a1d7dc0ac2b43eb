"""What one worker has learned all workers know, and none of them fails with the database."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from invite_client.interfaces import Stored
from invite_client.stores.postgres import PostgresStore
from tests.postgres import running_postgres

STORED = Stored({"a": [1, None, "ü", 1.5], "b": "\x7f"}, 1.5, 2.5)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with running_postgres() as conninfo:
        yield conninfo


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(database, reread_after=0)
    yield store
    await store.aclose()


async def test_what_one_puts_another_gets(database: str, store: PostgresStore) -> None:
    other = PostgresStore(database, reread_after=0)
    await asyncio.gather(
        *(store.put("keys", f"a{n}.example", STORED) for n in range(20)),
        *(other.put("keys", f"b{n}.example", STORED) for n in range(20)),
    )

    assert STORED == await other.get("keys", "a7.example")
    assert STORED == await store.get("keys", "b7.example")
    assert await store.get("srv", "b7.example") is None
    await other.aclose()


async def test_a_value_is_replaced_deleted_and_purged(store: PostgresStore) -> None:
    await store.put("k", "a", STORED)
    await store.put("k", "a", Stored(2, 0.0, math.inf))
    await store.put("k", "b", STORED)
    await store.purge(3.0)

    assert Stored(2, 0.0, math.inf) == await store.get("k", "a")
    assert await store.get("k", "b") is None
    await store.delete("k", "a")
    assert await store.get("k", "a") is None


async def test_what_can_be_got_is_in_the_database(database: str) -> None:
    """Whoever has got it may go, and take along the task that puts it."""
    store, other = PostgresStore(database), PostgresStore(database)
    await store.put("k", "other", STORED)
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute("LOCK TABLE invite_client_stored IN EXCLUSIVE MODE")
        putting = asyncio.create_task(store.put("k", "slow", STORED))
        while not await waiting_for_locks(database):
            await asyncio.sleep(0.01)
        got = await store.get("k", "slow")
        putting.cancel()
        await asyncio.gather(putting, return_exceptions=True)

    assert got == await other.get("k", "slow")
    await store.put("k", "slow", STORED)
    assert STORED == await store.get("k", "slow")
    await store.aclose()
    await other.aclose()


async def waiting_for_locks(database: str) -> int:
    """How many queries wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with await psycopg.AsyncConnection.connect(database) as connection:
        row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return int(row[0])


async def test_what_was_read_is_kept_at_hand_for_a_while(
    database: str, store: PostgresStore
) -> None:
    await store.put("k", "a", STORED)
    slow, quick = PostgresStore(database, reread_after=1000), store
    assert STORED == await slow.get("k", "a")
    await quick.put("k", "a", Stored(2, 0.0, 1.0))

    assert STORED == await slow.get("k", "a")
    await slow.put("k", "a", Stored(3, 0.0, 1.0))
    assert 3 == (await slow.get("k", "a")).value
    assert 3 == (await quick.get("k", "a")).value
    await slow.aclose()


async def test_a_database_that_is_not_there_is_a_store_that_has_forgotten(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invite_client.stores.postgres._PATIENCE", 0.3)
    store = PostgresStore("host=/nowhere")
    assert await store.get("k", "a") is None
    await store.put("k", "b", STORED)
    await store.delete("k", "a")
    assert await store.get("k", "c") is None
    await store.aclose()

    warnings = [record for record in caplog.records if record.name.startswith("invite_client")]
    assert ["WARNING"] == [record.levelname for record in warnings]


async def test_a_table_that_has_gone_is_a_store_that_has_forgotten(
    database: str, store: PostgresStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put("k", "a", STORED)
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE invite_client_stored")

    assert await store.get("k", "a") is None
    assert "passed over" in caplog.text
