"""Many homeservers in a process of their own, good and bad ones, and invites for all of them.

python -m tests.bulk_world FOLDER DESTINATIONS INVITES

Writes `requests.jsonl` and `signing.key` to the folder, prints the options that lead there as one
line of JSON, and serves until standard input ends. To every line on it, it answers with a line of
JSON: how often each event was accepted, by its ID.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invite_client import Invite
from invite_client.signing_keys import write_signing_key
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    LoopbackHomeserver,
    LoopbackNetwork,
    Slow,
    badly_signed,
    make_room,
)

KINDS = (
    *("dead",) * 10,
    *("limiting",) * 5,
    *("slow",) * 5,
    *("old",) * 5,
    *("forging",) * 2,
)
"""Of a hundred destinations, the first ones; the others are good."""

_LONGEST_LINE = 2**28

OUTCOMES = {
    "good": "signed",
    "dead": "failed",
    "limiting": "signed",
    "slow": "signed",
    "old": "signed",
    "forging": "failed",
}
"""The right outcome for each kind."""


def kind(number: int, destinations: int) -> str:
    """What kind of server a destination is: each kind as often as its share of a hundred."""
    place = number * 100 // destinations
    return KINDS[place] if place < len(KINDS) else "good"


def name(number: int, destinations: int) -> str:
    return f"d{number}.{kind(number, destinations)}.example"


def kind_of(destination: str) -> str:
    return destination.split(".")[-2]


def homeserver(number: int, destinations: int, network: LoopbackNetwork) -> LoopbackHomeserver:
    what = kind(number, destinations)
    remote = LoopbackHomeserver(
        name(number, destinations),
        network=network,
        record=False,
        endpoints=("v1",) if what == "old" else ("v2", "v1"),
    )
    remote.trust(INVITER, INVITER_KEY.verify_key)
    match what:
        case "limiting":
            remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=300, times=3)
        case "slow":
            remote.fails(Slow(0.3))
        case "forging":
            remote.lies(badly_signed())
    return remote


def requests(destinations: int, invites: int) -> Iterator[dict[str, Any]]:
    """Invites of users of all destinations in turn: to a room of version 1 where that is needed."""
    rooms = {version: make_room(version=version) for version in ("1", "10")}
    for number in range(invites):
        where = name(number % destinations, destinations)
        room = rooms["1" if kind_of(where) == "old" else "10"]
        yield Invite.build(room, f"@u{number}:{where}", INVITER_KEY).to_request()


async def serve(folder: Path, destinations: int, invites: int) -> None:
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(LoopbackNetwork())
        servers = [homeserver(number, destinations, network) for number in range(destinations)]
        for server in servers:
            await stack.enter_async_context(server)
            if kind_of(server.server_name) == "dead":
                await server.stops()
        write_signing_key(folder / "signing.key", INVITER_KEY)
        with (folder / "requests.jsonl").open("w") as file:
            for request in requests(destinations, invites):
                file.write(json.dumps(request) + "\n")
        options = [
            *("--server-name", INVITER, "--signing-key", str(folder / "signing.key")),
            *("--nameserver", f"{network.dns.address}:{network.dns.port}"),
            *("--ca-file", str(network.ca_file), "--allow-address", "127.0.0.0/8"),
        ]
        print(json.dumps(options), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            accepted: Counter[str] = Counter()
            for server in servers:
                accepted.update(server.accepted)
            print(json.dumps(accepted), flush=True)


@dataclass
class World:
    """The other process, as a test sees it."""

    process: asyncio.subprocess.Process
    folder: Path
    options: list[str]

    async def accepted(self) -> dict[str, int]:
        """Return how often each event was accepted so far."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        return json.loads(await self.process.stdout.readline())


@asynccontextmanager
async def bulk_world(folder: Path, destinations: int, invites: int) -> AsyncIterator[World]:
    """Start the other process, and end it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bulk_world", str(folder), str(destinations), str(invites)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
        limit=_LONGEST_LINE,
    )
    try:
        assert process.stdout is not None
        yield World(process, folder, json.loads(await process.stdout.readline()))
    finally:
        process.kill()
        await process.communicate()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
