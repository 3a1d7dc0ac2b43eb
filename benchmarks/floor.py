"""The least that one invite takes: a bare PUT by aiohttp, and the plain work of the libraries.

    python -m benchmarks.floor DIRECTORY LOOP

Sign the request, encode it, send it, decode the answer, verify the signature. Nothing else is
done: the server is known, the keys are known, the event is not checked, the answer is not compared
with what was sent, every error is an exception of somebody else, and nothing is bounded.
"""

from __future__ import annotations

import json
import ssl
import sys
from typing import Any
from urllib.parse import quote

import aiohttp
import canonicaljson
import signedjson.key
import signedjson.sign
from yarl import URL

from benchmarks.contender import run_loop, serve
from benchmarks.scenario import ORIGIN, Scenario

# What redaction leaves of an event in room version 10.
_KEPT = [
    "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth",
    "prev_events", "auth_events", "origin_server_ts",
]  # fmt: skip


class Floor:
    """One session, one signing key, one verify key."""

    def __init__(self, scenario: Scenario, session: aiohttp.ClientSession) -> None:
        self.session = session
        with open(scenario.signing_key_file) as file:  # noqa: PTH123
            (self.key,) = signedjson.key.read_signing_keys(file)
        ((key_id, text),) = scenario.verify_keys.items()
        algorithm, _, version = key_id.partition(":")
        self.verify_key = signedjson.key.decode_verify_key_base64(algorithm, version, text)
        self.base = f"https://127.0.0.1:{scenario.port}"

    def prepare(self, body: dict[str, Any]) -> Any:
        """Keep the body as it is; the destination and the request target are known to the host."""
        event = body["event"]
        target = event["state_key"].partition(":")[2]
        # The event's ID is the host's to know; it is made here once, by our own code.
        from invite_client import Invite  # noqa: PLC0415

        event_id = Invite.from_request(body).event_id
        uri = (
            "/_matrix/federation/v2/invite/"
            f"{quote(event['room_id'], safe='')}/{quote(event_id, safe='')}"
        )
        return body, target, uri

    async def send(self, prepared: Any) -> None:
        """Sign, encode, send, decode, verify."""
        body, destination, uri = prepared
        signed = signedjson.sign.sign_json(
            {
                "method": "PUT",
                "uri": uri,
                "origin": ORIGIN,
                "destination": destination,
                "content": body,
            },
            ORIGIN,
            self.key,
        )
        ((key_id, signature),) = signed["signatures"][ORIGIN].items()
        headers = {
            "Authorization": (
                f'X-Matrix origin="{ORIGIN}",destination="{destination}",'
                f'key="{key_id}",sig="{signature}"'
            ),
            "Content-Type": "application/json",
        }
        data = canonicaljson.encode_canonical_json(body)
        async with self.session.put(
            URL(self.base + uri, encoded=True), data=data, headers=headers
        ) as response:
            response.raise_for_status()
            answer = json.loads(await response.read())
        event = answer["event"]
        redacted = {name: event[name] for name in _KEPT if name in event}
        redacted["content"] = {"membership": event["content"]["membership"]}
        signedjson.sign.verify_signed_json(redacted, destination, self.verify_key)


async def _main(scenario: Scenario) -> None:
    context = ssl.create_default_context(cafile=scenario.ca_file)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await serve(Floor(scenario, session), scenario.pools)


if __name__ == "__main__":
    directory, loop = sys.argv[1:]
    scenario = Scenario.load(directory)
    run_loop(lambda: _main(scenario), uvloop=loop == "uvloop")
