"""A file remembers across restarts, and is never trusted further than that."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from pathlib import Path

import pytest

from invite_client.errors import InvalidInviteError
from invite_client.interfaces import Stored
from invite_client.stores.sqlite import SqliteStore

STORED = Stored({"a": [1, None, "ü"]}, 1.5, 2.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


async def test_what_is_put_is_there_after_a_restart(path: Path) -> None:
    store = SqliteStore(path)
    await store.put("keys", "a.example", STORED)
    await store.aclose()
    store = SqliteStore(path)

    assert STORED == await store.get("keys", "a.example")
    assert await store.get("srv", "a.example") is None
    await store.aclose()


async def test_a_value_is_replaced_deleted_and_purged(path: Path) -> None:
    store = SqliteStore(path)
    await store.put("k", "a", STORED)
    await store.put("k", "a", Stored(2, 0.0, math.inf))
    await store.put("k", "b", STORED)

    assert 2 == (await store.get("k", "a")).value
    assert 1 == await store.purge(3.0)
    assert await store.get("k", "b") is None
    await store.delete("k", "a")
    assert await store.get("k", "a") is None
    await store.aclose()


async def test_two_stores_share_a_file(path: Path) -> None:
    first, second = SqliteStore(path), SqliteStore(path)
    await asyncio.gather(
        *(first.put("k", str(i), STORED) for i in range(20)),
        *(second.put("k", str(i), STORED) for i in range(20, 40)),
    )

    assert all([await second.get("k", str(i)) for i in range(40)])
    await first.aclose()
    await second.aclose()


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInviteError) as caught:
        SqliteStore(path)
    assert "store" == caught.value.field
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_damaged_file_is_refused(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    assert "cannot be used" in refusal(path)

    path.write_text("not a database, but quite long enough to be taken for one" * 10)
    assert "cannot be used" in refusal(path)


def test_another_programs_file_is_refused_and_left_as_it_is(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    before = path.read_bytes()

    assert "another program" in refusal(path)
    assert before == path.read_bytes()


def test_a_newer_file_is_refused(path: Path) -> None:
    asyncio.run(SqliteStore(path).aclose())
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()

    assert "newer version" in refusal(path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "missing" / "store.sqlite")


async def test_a_value_that_is_damaged_is_forgotten(path: Path) -> None:
    store = SqliteStore(path)
    await store.put("k", "a", STORED)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE stored SET value = '{'")
    database.close()

    assert await store.get("k", "a") is None
    await store.aclose()


async def test_a_file_that_fails_later_is_a_store_that_has_forgotten(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(path)
    await store.put("k", "a", STORED)
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE stored")
    database.close()

    assert await store.get("k", "a") is None
    await store.put("k", "a", STORED)
    assert 0 == await store.purge(9.0)
    assert str(path) in caplog.text
    await store.aclose()
