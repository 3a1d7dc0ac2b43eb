"""The inviting homeserver, as much of it as a real remote wants to see: its keys and its rooms."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trustme
from aiohttp import web

from invite_client.spec import events
from invite_client.spec.base64 import encode_unpadded
from invite_client.spec.invites import Room
from invite_client.spec.room_versions import EventIdFormat, RoomVersion, room_version
from invite_client.spec.signatures import SigningKey, sign_event, sign_json

KEY_VALIDITY = 24 * 3600 * 1000
"""Milliseconds for which the keys are published as valid."""


@dataclass(slots=True)
class Inviter:
    """Our homeserver: it publishes `published` at `server_name`, whatever it signs with."""

    server_name: str
    signing_key: SigningKey
    published: tuple[SigningKey, ...]
    key_requests: int = 0

    @property
    def user_id(self) -> str:
        """The user who invites."""
        return f"@alice:{self.server_name}"

    def keys(self) -> dict[str, Any]:
        """Return what a server publishes at `/_matrix/key/v2/server`."""
        response: dict[str, Any] = {
            "server_name": self.server_name,
            "valid_until_ts": _now() + KEY_VALIDITY,
            "verify_keys": {key.key_id: {"key": key.verify_key.base64} for key in self.published},
            "old_verify_keys": {},
        }
        for key in self.published:
            response = sign_json(response, self.server_name, key)
        return response


@asynccontextmanager
async def start_inviter(ca: trustme.CA) -> AsyncIterator[Inviter]:
    """Serve the keys of a new homeserver on loopback, with a certificate by `ca`."""
    signing_key = SigningKey.generate(f"a_{secrets.token_hex(2)}")
    inviter = Inviter("", signing_key, (signing_key,))

    async def serve_keys(_: web.Request) -> web.Response:
        inviter.key_requests += 1
        if not inviter.published:
            return web.json_response({"errcode": "M_UNRECOGNIZED", "error": "None"}, status=404)
        return web.json_response(inviter.keys())

    app = web.Application()
    app.router.add_get("/_matrix/key/v2/server", serve_keys)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(tls)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        inviter.server_name = f"localhost:{runner.addresses[0][1]}"
        yield inviter
    finally:
        await runner.cleanup()


@dataclass(slots=True)
class RealRoom:
    """A room as its creator's server has it: real events that refer to each other."""

    inviter: Inviter
    version: RoomVersion
    name: str
    room_id: str | None = None
    state: dict[tuple[str, str], events.Event] = field(default_factory=dict)
    prev_events: list[Any] = field(default_factory=list)
    depth: int = 0

    def add(self, kind: str, content: Mapping[str, Any], state_key: str = "") -> events.Event:
        """Add a state event by the creator."""
        event: events.Event = {
            "type": kind,
            "state_key": state_key,
            "sender": self.inviter.user_id,
            "content": dict(content),
            "origin_server_ts": _now(),
            "depth": self.depth + 1,
            "prev_events": list(self.prev_events),
            "auth_events": self.auth_events(),
        }
        if self.room_id is not None:
            event["room_id"] = self.room_id
        if self.version.event_id_format is EventIdFormat.IN_EVENT:
            event["event_id"] = f"${secrets.token_urlsafe(18)}:{self.inviter.server_name}"
        event = sign_event(event, self.inviter.server_name, self.inviter.signing_key, self.version)
        self.state[kind, state_key] = event
        self.prev_events = [self.reference(event)]
        self.depth += 1
        return event

    def reference(self, event: events.Event) -> Any:
        """Return how `prev_events` and `auth_events` refer to an event."""
        event_id = events.event_id(event, self.version)
        if not self.version.event_references_have_hashes:
            return event_id
        digest = events.reference_hash(event, self.version)
        return [event_id, {"sha256": encode_unpadded(digest)}]

    def auth_events(self) -> list[Any]:
        """Return what allows the creator to send state, and to invite."""
        kinds = [
            ("m.room.create", ""),
            ("m.room.power_levels", ""),
            ("m.room.join_rules", ""),
            ("m.room.member", self.inviter.user_id),
        ]
        if self.version.room_id_is_create_event_id:
            kinds.remove(("m.room.create", ""))
        return [self.reference(self.state[kind]) for kind in kinds if kind in self.state]

    def snapshot(self) -> Room:
        """Return what an invite needs of the room."""
        assert self.room_id is not None
        shown = ("m.room.create", "m.room.join_rules", "m.room.name")
        return Room(
            room_id=self.room_id,
            room_version=self.version.identifier,
            sender=self.inviter.user_id,
            depth=self.depth + 1,
            prev_events=self.prev_events,
            auth_events=self.auth_events(),
            invite_room_state=[self.state[kind, ""] for kind in shown],
        )


def create_room(inviter: Inviter, identifier: str, name: str = "Tea at five") -> RealRoom:
    """Create a room of a version, with its creator in it and a name."""
    room = RealRoom(inviter, room_version(identifier), name)
    if not room.version.room_id_is_create_event_id:
        room.room_id = f"!{secrets.token_urlsafe(12)}:{inviter.server_name}"
    # Room versions that do not need `creator` do not mind it.
    create = room.add("m.room.create", {"room_version": identifier, "creator": inviter.user_id})
    if room.version.room_id_is_create_event_id:
        room.room_id = "!" + events.event_id(create, room.version)[1:]
    room.add("m.room.member", {"membership": "join"}, inviter.user_id)
    # Where the room ID is the create event's, creators must not be listed: their power is infinite.
    powers = {} if room.version.room_id_is_create_event_id else {inviter.user_id: 100}
    room.add("m.room.power_levels", {"users": powers})
    room.add("m.room.join_rules", {"join_rule": "invite"})
    room.add("m.room.name", {"name": name})
    return room


def _now() -> int:
    return time.time_ns() // 1_000_000
