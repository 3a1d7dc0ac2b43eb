"""What the package does without any extra: import it, and send an invite. Prints what came of it.

Run in an environment that has its dependencies and nothing else; the network is this file.
"""

from __future__ import annotations

import asyncio
import json
import time
from importlib.resources import files
from typing import Any

from signedjson.key import decode_signing_key_base64
from signedjson.sign import sign_json

from invite_client import Invite, InviteClient, Room, SigningKey
from invite_client.spec.room_versions import room_version
from invite_client.spec.signatures import sign_event

REMOTE = "192.0.2.1:8448"  # with nothing to resolve
SEED = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"


class Remote:
    """A homeserver that countersigns, in place of `invite_client.net`."""

    async def exchange(self, server: Any, request: Any, **_: Any) -> Any:
        from invite_client.spec.http import Reply

        if request.body is None:
            return Reply(200, json.dumps(self.keys()).encode())
        sent = json.loads(request.body)
        key = SigningKey.from_seed("a_1", SEED)
        signed = sign_event(sent["event"], REMOTE, key, room_version(sent["room_version"]))
        signatures = {**sent["event"]["signatures"], **signed["signatures"]}
        return Reply(200, json.dumps({"event": {**signed, "signatures": signatures}}).encode())

    def keys(self) -> dict[str, Any]:
        key = SigningKey.from_seed("a_1", SEED)
        published = {
            "server_name": REMOTE,
            "valid_until_ts": int(time.time() + 3600) * 1000,
            "verify_keys": {"ed25519:a_1": {"key": key.verify_key.base64}},
            "old_verify_keys": {},
        }
        return sign_json(published, REMOTE, decode_signing_key_base64("ed25519", "a_1", SEED))

    async def aclose(self) -> None: ...


async def main() -> None:
    key = SigningKey.generate("b_1")
    room = Room("!r:inviter.example", "10", "@alice:inviter.example", 5, ["$" + "e" * 43], [])
    invite = Invite.build(room, f"@bob:{REMOTE}", key)
    async with InviteClient("inviter.example", key, transport=Remote()) as client:
        signed = await client.send_invite(invite)
    assert files("invite_client").joinpath("py.typed").is_file()
    print("signed by", *sorted(signed.event["signatures"]))


if __name__ == "__main__":
    asyncio.run(main())
