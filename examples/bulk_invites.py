"""Invites a list of users to a room: a snapshot of the room in, countersigned events out.

    python examples/bulk_invites.py inviter.example signing.key room.json users.txt > signed.jsonl
    python examples/bulk_invites.py    # a rehearsal on loopback, with a room and users of its own

``users.txt`` has one user ID a line. ``room.json`` is what an `invite_client.Room` consists of; your
homeserver takes this snapshot, at one moment, from what it knows of the room:

    room_id, room_version   the room, and its version as a string: "10"
    sender                  a user of yours who may invite (power level `invite`, and in the room)
    prev_events             the room's forward extremities: the latest events that no other event
                            refers to. IDs; in room versions 1 and 2 pairs of [ID, {"sha256": …}]
    depth                   one more than the greatest depth among these
    auth_events             § Auth events selection: the current m.room.create (not in version 12),
                            m.room.power_levels, m.room.join_rules, and the sender's m.room.member
    invite_room_state       full PDUs that tell the invited users what room it is: m.room.create
                            and m.room.join_rules, and name, topic, avatar … where there are any

All invites refer to the same place in the room's history, as events that are sent at the same time
do. If the room goes on meanwhile, that is what federation is made for; if its power levels change,
take a new snapshot.

Every event that is printed has the signatures of both servers, verified: let your homeserver
persist it, and send it to the servers in the room. Where a run must survive a crash, use the
command ``invite-client bulk`` with a journal instead.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from invite_client import Invite, InviteClient, InviteError, Room, SigningKey, read_signing_key
from invite_client.testing import (
    LoopbackHomeserver,
    LoopbackNetwork,
    badly_signed,
    make_room,
)


def invites(room: Room, users: Iterable[str], key: SigningKey) -> Iterator[Invite | InviteError]:
    """Build, hash and sign the events, one by one, as they are asked for."""
    for user in filter(None, map(str.strip, users)):
        try:
            yield Invite.build(room, user, key)
        except InviteError as error:
            yield error  # one bad line is one bad outcome, and no more


async def invite_all(
    client: InviteClient, room: Room, users: Iterable[str], key: SigningKey
) -> int:
    """Send the invites; print what was signed to stdout, and the rest to stderr.

    Returns how many were not signed.
    """
    failed = 0
    async with client.send_invites(invites(room, users, key)) as outcomes:
        async for outcome in outcomes:
            if outcome.signed is not None:
                print(json.dumps(outcome.signed.event, ensure_ascii=False), flush=True)
            elif outcome.error is not None:
                failed += 1
                who = outcome.invite.target if outcome.invite else f"line {outcome.index + 1}"
                again = ", may be sent again" if outcome.error.retryable else ""
                print(f"{who}: {outcome.error}{again}", file=sys.stderr)
    return failed


async def run(server_name: str, key: SigningKey, room: Room, users: Iterable[str]) -> int:
    """Invite real users to a real room."""
    async with InviteClient(server_name, key) as client:
        return await invite_all(client, room, users, key)


async def rehearse() -> int:
    """Do the same with three servers on loopback, one of which forges its signatures."""
    key = SigningKey.generate("a_1")
    room = make_room("inviter.example", key, "12", name="Tea at five")
    async with LoopbackNetwork() as network:
        one = LoopbackHomeserver("one.example", network=network)
        two = LoopbackHomeserver(
            "two.example", network=network, well_known="matrix.two.example:8449"
        )
        forger = LoopbackHomeserver("forger.example", network=network)
        forger.lies(badly_signed())
        async with one, two, forger, network.client("inviter.example", key) as client:
            for homeserver in (one, two, forger):
                homeserver.trust("inviter.example", key.verify_key)
            users = [
                f"@user{n}:{name}" for n in range(3) for name in ("one.example", "two.example")
            ]
            users += ["@bob:forger.example", "not a user"]
            return await invite_all(client, room, users, key)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            failed = asyncio.run(rehearse())
        case [server_name, key_file, room_file, users_file]:
            key = read_signing_key(key_file)
            room = Room.from_json(json.loads(Path(room_file).read_text(encoding="utf-8")))
            with Path(users_file).open(encoding="utf-8") as users:
                failed = asyncio.run(run(server_name, key, room, users))
        case _:
            sys.exit(__doc__)
    print(f"{failed} not signed" if failed else "all signed", file=sys.stderr)
