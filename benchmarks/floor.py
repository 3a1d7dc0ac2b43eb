"""The least that one invite takes: a bare PUT by aiohttp, and the plain work of the libraries.

    python -m benchmarks.floor DIRECTORY LOOP whole|send

Sign the request, encode it, send it, decode the answer, verify the signature; ``whole`` begins with
the host's event: its size, its content hash, its ID. Nothing else is done: the server is known, the
keys are known, the event is not judged, the room's state is not looked at, the answer is not
compared with what was sent, every error is an exception of somebody else, and nothing is bounded.
"""

from __future__ import annotations

import base64
import hashlib
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

_MOST_BYTES = 65_536  # Client-Server API § Size limits
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
        return body, *_addressed(body["event"])

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
        signedjson.sign.verify_signed_json(_redacted(answer["event"]), destination, self.verify_key)


class FloorFromTheEvent(Floor):
    """The same, where the host has an event only."""

    def prepare(self, body: dict[str, Any]) -> Any:
        """Keep the host's dicts."""
        return body

    async def send(self, prepared: Any) -> None:
        """Check the event, name it, and send it."""
        event = prepared["event"]
        if len(canonicaljson.encode_canonical_json(event)) > _MOST_BYTES:
            raise ValueError("too large")
        if event["hashes"]["sha256"] != _hash(event, "signatures", "unsigned", "hashes").rstrip(
            "="
        ):
            raise ValueError("the content hash is wrong")
        await super().send((prepared, *_addressed(event)))


def _addressed(event: dict[str, Any]) -> tuple[str, str]:
    """The destination and the request target."""
    event_id = "$" + _hash(_redacted(event), "signatures", "unsigned").rstrip("=").translate(
        str.maketrans("+/", "-_")
    )
    uri = (
        "/_matrix/federation/v2/invite/"
        f"{quote(event['room_id'], safe='')}/{quote(event_id, safe='')}"
    )
    return event["state_key"].partition(":")[2], uri


def _redacted(event: dict[str, Any]) -> dict[str, Any]:
    redacted = {name: event[name] for name in _KEPT if name in event}
    redacted["content"] = {"membership": event["content"]["membership"]}
    return redacted


def _hash(event: dict[str, Any], *without: str) -> str:
    hashed = {name: value for name, value in event.items() if name not in without}
    digest = hashlib.sha256(canonicaljson.encode_canonical_json(hashed)).digest()
    return base64.b64encode(digest).decode()


async def _main(scenario: Scenario, what: str) -> None:
    context = ssl.create_default_context(cafile=scenario.ca_file)
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        made = FloorFromTheEvent if what == "whole" else Floor
        await serve(made(scenario, session), scenario)


if __name__ == "__main__":
    directory, loop, what = sys.argv[1:]
    scenario = Scenario.load(directory)
    run_loop(lambda: _main(scenario, what), uvloop=loop == "uvloop")
