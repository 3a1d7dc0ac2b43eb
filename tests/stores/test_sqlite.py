"""A file remembers across restarts, and is never trusted further than that."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from invite_client.errors import InvalidInviteError
from invite_client.interfaces import Stored
from invite_client.stores import sqlite
from invite_client.stores.sqlite import SqliteStore

STORED = Stored({"a": [1, None, "ü"]}, 1.5, 2.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """One that reads from its file every time."""
    made = SqliteStore(path, reread_after=0)
    yield made
    await made.aclose()


def tamper(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


async def test_what_is_put_is_there_after_a_restart(path: Path) -> None:
    store = SqliteStore(path)
    await store.put("keys", "a.example", STORED)
    await store.aclose()
    store = SqliteStore(path)

    assert STORED == await store.get("keys", "a.example")
    assert await store.get("srv", "a.example") is None
    await store.aclose()


@pytest.mark.parametrize("reread_after", [0, 5])
async def test_a_value_is_replaced_deleted_and_purged(path: Path, reread_after: float) -> None:
    store = SqliteStore(path, reread_after=reread_after)
    assert await store.get("k", "a") is None
    await store.put("k", "a", STORED)
    assert STORED == await store.get("k", "a")
    replaced = Stored(2, 0.0, math.inf)
    await store.put("k", "a", replaced)
    await store.put("k", "b", STORED)

    assert replaced == await store.get("k", "a")
    assert 1 == await store.purge(3.0)
    assert replaced == await store.get("k", "a")
    await store.delete("k", "a")
    assert await store.get("k", "a") is None
    await store.aclose()
    store = SqliteStore(path)
    assert await store.get("k", "b") is None
    await store.aclose()


async def test_only_the_owner_can_read_the_file(path: Path, store: SqliteStore) -> None:
    await store.put("k", "a", STORED)

    assert {0o600} == {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}


async def test_closing_twice_is_closing_once(path: Path) -> None:
    store = SqliteStore(path)
    await store.aclose()
    await store.aclose()

    await store.put("k", "a", STORED)
    assert [] == keys_in(path)


async def test_what_can_be_got_is_in_the_file(path: Path) -> None:
    """Whoever has got it may go, and take along the task that puts it."""
    store, busy = SqliteStore(path), threading.Event()
    store._thread.submit(busy.wait, 10)
    putting = asyncio.create_task(store.put("k", "a", STORED))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0.05, busy.set)
    got = await store.get("k", "a")
    putting.cancel()
    await asyncio.gather(putting, return_exceptions=True)
    await store.aclose()

    assert STORED == got
    assert ["a"] == keys_in(path)


async def test_what_was_deleted_while_it_was_put_is_gone(path: Path) -> None:
    async with asyncio.timeout(10):
        store, busy = SqliteStore(path), threading.Event()
        store._thread.submit(busy.wait, 10)
        putting = asyncio.create_task(store.put("k", "a", STORED))
        await asyncio.sleep(0)
        deleting = asyncio.create_task(store.delete("k", "a"))
        await asyncio.sleep(0)
        busy.set()
        await asyncio.gather(putting, deleting)

        assert await store.get("k", "a") is None
        await store.aclose()


# --- Size -----------------------------------------------------------------------------------------


def keys_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [key for (key,) in database.execute("SELECT key FROM stored ORDER BY usable_until")]


async def test_the_file_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_PUTS_UNTIL_TIDY", 10)
    store, now = SqliteStore(path, limit=5), time.time()
    for number in range(30):
        usable = now + (1000 - number if number % 2 else -1)
        await store.put("k", str(number), Stored(number, 0.0, usable))
    await store.aclose()

    # Those that are of no use any more went first, then those that are of use for the shortest time.
    assert ["9", "7", "5", "3", "1"] == keys_in(path)


async def test_what_is_kept_at_hand_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_MOST_AT_HAND", 5)
    store = SqliteStore(path)
    for number in range(20):
        await store.put("k", str(number), STORED)
        await store.get("k", f"absent {number}")

    assert 5 == len(store._at_hand)
    assert STORED == await store.get("k", "0")
    await store.aclose()


# --- Several users of one file --------------------------------------------------------------------


async def test_two_stores_share_a_file(path: Path) -> None:
    first, second = SqliteStore(path), SqliteStore(path)
    await asyncio.gather(
        *(first.put("k", str(i), STORED) for i in range(20)),
        *(second.put("k", str(i), STORED) for i in range(20, 40)),
    )

    assert all([await second.get("k", str(i)) for i in range(40)])
    await first.aclose()
    await second.aclose()


async def test_what_another_has_written_is_seen_after_a_while(path: Path) -> None:
    first, second = SqliteStore(path, reread_after=0.05), SqliteStore(path)
    assert await first.get("k", "a") is None
    await second.put("k", "a", STORED)

    assert await first.get("k", "a") is None
    async with asyncio.timeout(10):
        while await first.get("k", "a") != STORED:
            await asyncio.sleep(0.01)
    await first.aclose()
    await second.aclose()


async def test_what_was_read_before_a_change_does_not_outlive_it(path: Path) -> None:
    store = SqliteStore(path)
    await store.put("k", "a", STORED)
    store._at_hand.clear()
    newer = Stored("newer", 0.0, 9.0)
    reading = asyncio.create_task(store.get("k", "a"))
    await asyncio.sleep(0)
    await store.put("k", "a", newer)
    await reading

    assert newer == await store.get("k", "a")
    await store.aclose()


WRITES = """
import asyncio, sys
from invite_client.interfaces import Stored
from invite_client.stores.sqlite import SqliteStore

async def main(path, prefix, count):
    store = SqliteStore(path)
    for number in range(count):
        await store.put("k", f"{prefix}{number}", Stored({"number": number}, 0.0, 9e9))
        print(number, flush=True)
    await store.aclose()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def writer(path: Path, prefix: str, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITES, str(path), prefix, str(count)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_make_one_file_at_once_all_write_to_it(path: Path) -> None:
    writers = [writer(path, prefix, 20) for prefix in "abcd"]
    errors = [process.communicate(timeout=60)[1] for process in writers]

    assert [""] * 4 == errors
    assert 80 == len(keys_in(path))


async def test_what_was_put_survives_the_death_of_its_process(path: Path) -> None:
    process = writer(path, "", 1_000_000)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 50:
            break
    os.kill(process.pid, signal.SIGKILL)
    rest = process.communicate(timeout=60)[0].split("\n")
    last = max([50, *(int(number) for number in rest[:-1] if number)])

    store = SqliteStore(path)
    assert all([await store.get("k", str(number)) for number in range(last + 1)])
    await store.aclose()


# --- What is not a store --------------------------------------------------------------------------


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


async def test_a_file_that_is_damaged_inside_is_refused(path: Path) -> None:
    store = SqliteStore(path)
    for number in range(2000):
        await store.put("k", str(number), Stored(number, 0.0, math.inf))
    await store.aclose()
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(content)

    assert "damaged" in refusal(path)


def test_another_programs_file_is_refused_and_left_as_it_is(path: Path) -> None:
    tamper(path, "CREATE TABLE theirs (x)")
    before = path.read_bytes()

    assert "another program" in refusal(path)
    assert before == path.read_bytes()


def test_another_programs_empty_file_is_refused_and_left_as_it_is(path: Path) -> None:
    tamper(path, "PRAGMA application_id = 7")
    before = path.read_bytes()

    assert "another program" in refusal(path)
    assert before == path.read_bytes()


def test_a_newer_file_is_refused(path: Path) -> None:
    asyncio.run(SqliteStore(path).aclose())
    tamper(path, "PRAGMA user_version = 99")

    assert "newer version" in refusal(path)


@pytest.mark.parametrize("name", ["missing/store.sqlite", ".", "/dev/null/store.sqlite"])
def test_a_place_where_there_can_be_no_file_is_refused(name: str, tmp_path: Path) -> None:
    refusal(tmp_path / name)


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """Root may write everywhere: be nobody for a while."""
    before = os.geteuid()
    if not before:
        os.seteuid(65534)
    yield
    os.seteuid(before)


@pytest.fixture
def foreign_folder() -> Iterator[Path]:
    """A folder that can be read by all, and written by its owner only."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755 if not os.geteuid() else 0o555)
        yield Path(name)
        Path(name).chmod(0o755)


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_that_cannot_be_written_is_refused(
    exists: bool, foreign_folder: Path, request: pytest.FixtureRequest
) -> None:
    path = foreign_folder / "store.sqlite"
    if exists:
        foreign_folder.chmod(0o755)
        asyncio.run(SqliteStore(path).aclose())
        path.chmod(0o444)
    request.getfixturevalue("unprivileged")

    assert "cannot be used" in refusal(path)


# --- What fails later -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["'{'", "''", "'[[[['", "'NaN1'"])
async def test_a_value_that_is_damaged_is_forgotten(
    value: str, path: Path, store: SqliteStore
) -> None:
    await store.put("k", "a", STORED)
    tamper(path, f"UPDATE stored SET value = {value}")

    assert await store.get("k", "a") is None
    assert [] == keys_in(path)


async def test_a_value_of_any_depth_is_no_error(path: Path, store: SqliteStore) -> None:
    await store.put("k", "a", STORED)
    deep = "[" * 100_000 + "]" * 100_000
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE stored SET value = ?", (deep,))

    assert await store.get("k", "a") is None


async def test_a_file_that_fails_later_is_a_store_that_has_forgotten(
    path: Path, store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put("k", "a", STORED)
    tamper(path, "DROP TABLE stored")
    for _ in range(10):
        assert await store.get("k", "a") is None
        await store.put("k", "a", STORED)
    assert 0 == await store.purge(9.0)

    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert 1 == len(warnings)
    assert str(path) in warnings[0].getMessage()


async def test_a_disk_that_is_full_is_a_store_that_has_forgotten(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put("k", "a", STORED)
    await store._run(lambda: store._database.execute("PRAGMA max_page_count = 1").fetchone())
    large = Stored("x" * 100_000, 0.0, 9e9)
    await store.put("k", "b", large)
    assert "full" in caplog.text
    assert (STORED, None) == (await store.get("k", "a"), await store.get("k", "b"))

    # And when there is room again, it goes on.
    caplog.clear()
    await store._run(lambda: store._database.execute("PRAGMA max_page_count = 99999").fetchone())
    await store.put("k", "b", large)
    assert (large, "") == (await store.get("k", "b"), caplog.text)


@pytest.mark.parametrize("time", [math.nan])
async def test_a_time_that_is_none_is_not_kept(time: float, store: SqliteStore) -> None:
    await store.put("k", "a", Stored(1, time, time))

    assert await store.get("k", "a") is None


async def test_who_is_cancelled_leaves_the_store_in_order(store: SqliteStore) -> None:
    puts = [asyncio.create_task(store.put("k", str(n), STORED)) for n in range(50)]
    await asyncio.sleep(0)
    for put in puts[::2]:
        put.cancel()
    await asyncio.gather(*puts, return_exceptions=True)

    assert all([await store.get("k", str(n)) for n in range(1, 50, 2)])


def test_sqlite_is_imported_only_when_it_is_used() -> None:
    code = "import sys, invite_client; print('sqlite3' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )

    assert "False" == result.stdout.strip()


async def test_all_of_a_kind_can_be_gone_through(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("invite_client.stores.sqlite._PAGE", 2)
    store = SqliteStore(path)
    for kind in ("a", "b", "c"):
        for number in range(5):
            await store.put(kind, f"{number}", STORED)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE stored SET value = '{' WHERE key = '3'")
    database.close()
    found = [entry async for entry in store.entries("c", "a")]

    assert [(kind, key, STORED) for kind in ("a", "c") for key in ("0", "1", "2", "4")] == found
    await store.aclose()
    assert [] == [entry async for entry in store.entries("a")]
