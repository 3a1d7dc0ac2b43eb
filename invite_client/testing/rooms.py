"""Rooms of any version, made of real events, and invites to them, in one line each."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from invite_client.spec import events
from invite_client.spec.base64 import encode_unpadded
from invite_client.spec.events import Event
from invite_client.spec.invites import Invite, Room
from invite_client.spec.room_versions import EventIdFormat, RoomVersion, room_version
from invite_client.spec.signatures import SigningKey, sign_event

__all__ = ["INVITER", "INVITER_KEY", "RoomHistory", "make_invite", "make_room"]

INVITER = "inviter.example"
"""The inviting server, where no other is named."""
INVITER_KEY = SigningKey.from_seed("test", "A" * 43)
"""Its key. Everybody knows it, so it is good for tests and nothing else."""

_SHOWN = ("m.room.create", "m.room.join_rules", "m.room.name")
"""What `invite_room_state` tells of these rooms."""


@dataclass(slots=True)
class RoomHistory:
    """A room as its creator's server has it: signed events that refer to each other."""

    version: RoomVersion
    creator: str
    """The creator's user ID."""
    server_name: str
    """The creator's server, which signs all events."""
    signing_key: SigningKey
    origin_server_ts: int | None = None
    """Milliseconds since the epoch that every event bears; now, if it is None."""
    room_id: str | None = None
    state: dict[tuple[str, str], Event] = field(default_factory=dict)
    prev_events: list[Any] = field(default_factory=list)
    depth: int = 0

    @classmethod
    def create(
        cls,
        server_name: str,
        key: SigningKey,
        version: str = "10",
        *,
        creator: str | None = None,
        name: str = "Tea at five",
        origin_server_ts: int | None = None,
    ) -> RoomHistory:
        """Create a room with its creator in it, and a name."""
        creator = creator or f"@alice:{server_name}"
        room = cls(room_version(version), creator, server_name, key, origin_server_ts)
        implied = room.version.room_id_is_create_event_id
        if not implied:
            room.room_id = f"!{secrets.token_urlsafe(12)}:{server_name}"
        # Room versions that do not need `creator` do not mind it.
        create = room.add("m.room.create", {"room_version": version, "creator": creator})
        if implied:
            room.room_id = "!" + events.event_id(create, room.version)[1:]
        room.add("m.room.member", {"membership": "join"}, creator)
        # Where the create event implies them, creators must not be listed: their power is infinite.
        room.add("m.room.power_levels", {"users": {} if implied else {creator: 100}})
        room.add("m.room.join_rules", {"join_rule": "invite"})
        room.add("m.room.name", {"name": name})
        return room

    def add(self, kind: str, content: Mapping[str, Any], state_key: str | None = "") -> Event:
        """Add an event by the creator: state, or without a `state_key` a message."""
        event: Event = {
            "type": kind,
            "sender": self.creator,
            "content": dict(content),
            "origin_server_ts": self.origin_server_ts or time.time_ns() // 1_000_000,
            "depth": self.depth + 1,
            "prev_events": list(self.prev_events),
            "auth_events": self.auth_events(kind),
        }
        if state_key is not None:
            event["state_key"] = state_key
        if self.room_id is not None:
            event["room_id"] = self.room_id
        if self.version.event_id_format is EventIdFormat.IN_EVENT:
            event["event_id"] = f"${secrets.token_urlsafe(18)}:{self.server_name}"
        event = sign_event(event, self.server_name, self.signing_key, self.version)
        self.append(event)
        return event

    def append(self, event: Event) -> None:
        """Put a signed event at the end of the room, whoever has made it."""
        if "state_key" in event:
            self.state[event["type"], event["state_key"]] = event
        ends = [end for end in self.prev_events if end not in event["prev_events"]]
        self.prev_events = [*ends, self.reference(event)]
        self.depth = max(self.depth, event["depth"])

    def reference(self, event: Event) -> Any:
        """Return how `prev_events` and `auth_events` refer to an event."""
        event_id = events.event_id(event, self.version)
        if not self.version.event_references_have_hashes:
            return event_id
        digest = events.reference_hash(event, self.version)
        return [event_id, {"sha256": encode_unpadded(digest)}]

    def auth_events(self, kind: str = "m.room.member", sender: str | None = None) -> list[Any]:
        """Return what allows a sender, else the creator, an event (§ Auth events selection)."""
        kinds = [
            ("m.room.create", ""),
            ("m.room.power_levels", ""),
            ("m.room.member", sender or self.creator),
        ]
        # More than is needed is not allowed: such an event is rejected.
        if kind == "m.room.member":
            kinds.append(("m.room.join_rules", ""))
        if self.version.room_id_is_create_event_id:
            kinds.remove(("m.room.create", ""))
        return [self.reference(self.state[key]) for key in kinds if key in self.state]

    def snapshot(self) -> Room:
        """Return what an invite needs of the room."""
        assert self.room_id is not None  # noqa: S101  # `create` has set it
        return Room(
            room_id=self.room_id,
            room_version=self.version.identifier,
            sender=self.creator,
            depth=self.depth + 1,
            prev_events=self.prev_events,
            auth_events=self.auth_events(),
            invite_room_state=[self.state[kind, ""] for kind in _SHOWN],
        )


def make_room(
    server_name: str = INVITER, key: SigningKey = INVITER_KEY, version: str = "10", **options: Any
) -> Room:
    """Return a new room on `server_name`; `options` are those of `RoomHistory.create`."""
    return RoomHistory.create(server_name, key, version, **options).snapshot()


def make_invite(
    target: str = "@bob:remote.example",
    version: str = "10",
    *,
    server_name: str = INVITER,
    key: SigningKey = INVITER_KEY,
    origin_server_ts: int | None = None,
    **content: Any,
) -> Invite:
    """Return an invite of `target` to a new room on `server_name`, signed with `key`."""
    room = make_room(server_name, key, version, origin_server_ts=origin_server_ts)
    return Invite.build(room, target, key, content=content, origin_server_ts=origin_server_ts)
