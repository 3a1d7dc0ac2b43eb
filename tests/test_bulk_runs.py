"""Whole runs of the command against many servers, good and bad ones, in another process.

The sizes are those of a quick check. `INVITE_CLIENT_BULK=20000/500` makes them 20,000 invites to 500
servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from invite_client.journal import JournalReader, State
from invite_client.signing_keys import write_signing_key
from invite_client.testing import INVITER, INVITER_KEY, make_room
from tests.bulk_world import OUTCOMES, World, bulk_world, kind_of

INVITES, DESTINATIONS = map(int, os.environ.get("INVITE_CLIENT_BULK", "400/50").split("/"))
KILLS = 5 if INVITES < 5000 else 20
SECONDS = 120 + INVITES // 20
MEBIBYTE = 2**20

pytestmark = [pytest.mark.slow, pytest.mark.loopback, pytest.mark.timeout(10 * SECONDS)]

# The peak of the process's own memory: what a child inherits in `ru_maxrss` is not its own.
COMMAND = """
import atexit, sys
from invite_client.cli import main
def peak():
    with open("/proc/self/status") as status, open("peak", "w") as file:
        file.write(next(line for line in status if line.startswith("VmHWM")))
atexit.register(peak)
main()
"""


async def start(world: World, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", COMMAND, "bulk", *arguments, *world.options),
        *("--journal", "run.sqlite", "--output", "signed.jsonl", "--patience", "10", "--json"),
        cwd=world.folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


def peak(folder: Path) -> int:
    """The most memory that the last run had, in bytes."""
    found = re.search(r"(\d+) kB", (folder / "peak").read_text())
    assert found is not None
    return 1024 * int(found[1])


def check(world: World, accepted: dict[str, int], *, killed: bool = False) -> dict[str, Any]:
    """Every invite ended with exactly one right outcome. Returns the entries by event ID.

    What was in flight when a run was killed may have arrived, also where nobody answers any more.
    """
    with JournalReader(world.folder / "run.sqlite") as reader:
        entries = {entry.event_id: entry for entry in reader.entries()}
    with (world.folder / "signed.jsonl").open() as file:
        written = Counter(json.loads(line)["event_id"] for line in file)
    signed = {event_id for event_id, entry in entries.items() if entry.state is State.SIGNED}

    assert INVITES == len(entries)
    found = {(kind_of(entry.destination), str(entry.state)) for entry in entries.values()}
    assert set(OUTCOMES.items()) == found - ({("dead", "unknown")} if killed else set())
    assert dict.fromkeys(signed, 1) == written
    # A server that forges has accepted the invite all the same.
    assert set(accepted) == signed | {
        event_id for event_id, entry in entries.items() if kind_of(entry.destination) == "forging"
    }
    return entries


async def test_every_invite_has_one_right_outcome(tmp_path: Path) -> None:
    async with bulk_world(tmp_path, DESTINATIONS, INVITES) as world:
        process = await start(world, "requests.jsonl")
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
        accepted = await world.accepted()
    print(err.decode(), f"peak memory: {peak(tmp_path) / MEBIBYTE:.0f} MiB")

    assert 1 == process.returncode
    check(world, accepted)
    assert {1} == set(accepted.values())
    assert peak(tmp_path) < 200 * MEBIBYTE
    summary = json.loads(out)["invites"]
    assert INVITES == sum(summary.values())


async def test_killed_again_and_again_it_loses_and_repeats_nothing(tmp_path: Path) -> None:
    chance = random.Random(20)
    async with bulk_world(tmp_path, DESTINATIONS, INVITES) as world:
        kills, recorded = 0, {}
        while True:
            # The input again, now and then: what is known of it is known.
            # The last run gets it for certain: none before may have come to read all of it.
            again = not kills or kills >= KILLS or chance.random() < 0.5
            source = ["requests.jsonl"] if again else []
            process = await start(world, *source)
            if kills < KILLS:
                moment = chance.uniform(0.5, 2 + INVITES / 2500)
                try:
                    await asyncio.wait_for(process.wait(), moment)
                except TimeoutError:
                    process.send_signal(signal.SIGKILL)
            await asyncio.wait_for(process.communicate(), SECONDS)
            accepted = await world.accepted()
            # What was recorded as signed was not sent again.
            assert recorded == {event_id: accepted[event_id] for event_id in recorded}
            if process.returncode != -signal.SIGKILL:
                if source:
                    break
                continue
            kills += 1
            journal = tmp_path / "run.sqlite"
            if journal.exists():
                with JournalReader(journal) as reader:
                    recorded = {
                        entry.event_id: accepted[entry.event_id]
                        for entry in reader.entries([State.SIGNED])
                    }
    print(f"{kills} kills; accepted more than once: {sum(n > 1 for n in accepted.values())}")

    assert kills >= KILLS * 0.8
    check(world, accepted, killed=True)


async def test_one_bad_line_among_very_many_is_one_bad_outcome(tmp_path: Path) -> None:
    """With its number; and their number costs no memory."""
    many, bad = 20 * INVITES, 13 * INVITES
    write_signing_key(tmp_path / "signing.key", INVITER_KEY)
    room = make_room()
    (tmp_path / "room.json").write_text(
        json.dumps({name: getattr(room, name) for name in room.__slots__})
    )
    with (tmp_path / "users.txt").open("w") as file:
        for number in range(1, many + 1):
            line = "nobody" if number == bad else f"@u{number}:d{number % 4000}.example"
            file.write(f"{line}\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", COMMAND, "bulk", "--room", "room.json", "--users", "users.txt"),
        *("--server-name", INVITER, "--signing-key", "signing.key", "--dry-run", "--json"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    summary = json.loads(out)
    print(f"{many} lines, peak memory: {peak(tmp_path) / MEBIBYTE:.0f} MiB")

    assert 1 == process.returncode
    assert [bad] == [line["line"] for line in summary["bad_lines"]]
    assert many - 1 == summary["invites"]["pending"]
    assert peak(tmp_path) < 100 * MEBIBYTE


# --- Memory -------------------------------------------------------------------------------------

STREAMED = """
import asyncio, sys
from invite_client import Invite
from invite_client.bulk import send_all
from invite_client.clock import SystemClock
from invite_client.journal import Journal
from invite_client.policy import BulkPolicy, Limits
from invite_client.testing import INVITER_KEY, make_room
from tests.test_journal import signed

async def main(count):
    room = make_room()
    async def send(invite):
        await asyncio.sleep(0)
        return signed(invite).signed
    async with Journal("run.sqlite", output="signed.jsonl") as journal:
        async def feed():
            try:
                for start in range(0, count, 50):
                    await journal.add([
                        (n, Invite.build(room, f"@u{n}:d{n % 500}.example", INVITER_KEY))
                        for n in range(start, start + 50)
                    ])
            finally:
                journal.end_of_input()  # else who sends would wait for more
        feeding = asyncio.create_task(feed())
        limits, policy = Limits(), BulkPolicy()
        async with send_all(journal.invites(), send, limits, policy, SystemClock()) as outcomes:
            async for outcome in outcomes:
                await journal.record(outcome)
        await feeding
    with open("/proc/self/status") as status, open("peak", "w") as file:
        file.write(next(line for line in status if line.startswith("VmHWM")))

asyncio.run(main(int(sys.argv[1])))
"""


async def test_ten_times_as_many_lines_take_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (INVITES, 10 * INVITES):
        folder = tmp_path / str(count)
        folder.mkdir()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", STREAMED, str(count)),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        try:
            assert 0 == await asyncio.wait_for(process.wait(), SECONDS * 10)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        peaks.append(peak(folder))
    print(f"peak memory: {[f'{value / MEBIBYTE:.0f} MiB' for value in peaks]}")

    assert peaks[1] - peaks[0] < 20 * MEBIBYTE
