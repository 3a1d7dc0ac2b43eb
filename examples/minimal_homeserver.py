"""A homeserver of one room: it invites, answers the join, and talks to who has joined.

    python examples/minimal_homeserver.py        (says what it needs)

What `invite_client` does is one line of `Homeserver.invite`. The rest is what a remote homeserver
asks for before its user is in the room: our keys, `make_join`, `send_join`, and, later, the events
that it wants to look up. Whoever asks must have signed the request, and a join must be hashed,
signed and allowed.

Real homeservers do more: state resolution, all authorization rules, rate limits, a database. Here
events are kept in memory, and only two kinds come from others: their own join or leave, and
messages. Hashes, signatures and event IDs are borrowed from `invite_client.spec`, which is not a
part of the public API: your homeserver has its own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import MultiMapping

from invite_client import (
    AddressPolicy,
    Invite,
    InviteClient,
    InviteError,
    Policy,
    ServerKeys,
    SignedInvite,
    SigningKey,
    TlsPolicy,
    read_signing_key,
)
from invite_client.net.http import HttpTransport
from invite_client.spec import canonical_json, events, x_matrix
from invite_client.spec.http import Request
from invite_client.spec.signatures import json_is_signed, sign_json
from invite_client.testing import RoomHistory

log = logging.getLogger("homeserver")

Event = dict[str, Any]
KEY_VALIDITY = 24 * 3600 * 1000
"""Milliseconds for which our keys are published as valid."""
LARGEST_BODY = 8 * 1024**2
"""Bytes of a request: a transaction has at most 50 events of at most 64 KiB, and 100 EDUs."""


class MatrixError(Exception):
    """A standard error response."""

    def __init__(self, status: int, errcode: str, error: str, **more: str) -> None:
        super().__init__(error)
        self.status = status
        self.body = {"errcode": errcode, "error": error, **more}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that has been authenticated."""

    origin: str
    """The server that has signed it."""
    path: Mapping[str, str]
    """The parameters in its path."""
    query: MultiMapping[str]
    content: Any


class Homeserver:
    """One room, and the part of the Server-Server API that its members' servers need."""

    def __init__(
        self,
        server_name: str,
        key: SigningKey,
        policy: Policy,
        *,
        room_version: str = "10",
        room_name: str = "Tea at five",
    ) -> None:
        self.server_name = server_name
        self.key = key
        self.transport = HttpTransport(policy)
        self.client = InviteClient(server_name, key, policy=policy, transport=self.transport)
        self.alice = f"@alice:{server_name}"
        self.room = RoomHistory.create(
            server_name, key, room_version, creator=self.alice, name=room_name
        )
        history = list(self.room.state.values())
        self.events = {self.event_id(event): event for event in history}
        self.before = {event_id: history[:n] for n, event_id in enumerate(self.events)}
        self.changed = asyncio.Condition()
        self._keys: dict[str, ServerKeys] = {}

    async def aclose(self) -> None:
        """Close what was opened."""
        await self.client.aclose()
        await self.transport.aclose()

    # --- What our own user does -----------------------------------------------------------------

    async def invite(self, user_id: str) -> SignedInvite:
        """Invite a user of another server. Raises `InviteError`."""
        invite = Invite.build(self.room.snapshot(), user_id, self.key)
        signed = await self.client.send_invite(invite)
        await self.persist(signed.event)
        return signed

    async def say(self, text: str) -> Event:
        """Say something in the room, to all servers in it."""
        content = {"msgtype": "m.text", "body": text}
        message = self.room.add("m.room.message", content, state_key=None)
        await self.persist(message)
        for server_name in {server_of(user) for user in self.members()} - {self.server_name}:
            await self.send(server_name, [message])
        return message

    async def send(self, destination: str, pdus: list[Event]) -> None:
        """Send events in a transaction. Raises `InviteError` if no answer came."""
        uri = f"/_matrix/federation/v1/send/{secrets.token_urlsafe()}"
        transaction = {"origin": self.server_name, "origin_server_ts": now(), "pdus": pdus}
        body = canonical_json.encode(transaction)
        authorization = x_matrix.authorize(
            "PUT", uri, origin=self.server_name, destination=destination, key=self.key, body=body
        )
        server = await self.client.resolve(destination)
        request = Request("PUT", uri, body, authorization, "PUT transaction")
        reply = await self.transport.exchange(server, request, limit=LARGEST_BODY, log=[])
        log.info("%s answered %s %s", destination, reply.status, reply.body.decode())

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until something has happened in the room."""
        async with self.changed:
            await self.changed.wait_for(happened)

    # --- The room -------------------------------------------------------------------------------

    def event_id(self, event: Event) -> str:
        """Return the event's ID, by the rules of the room's version."""
        return events.event_id(event, self.room.version)

    def membership(self, user_id: str) -> str | None:
        """Return the user's membership: `join`, `invite`, `leave` …"""
        event = self.room.state.get(("m.room.member", user_id))
        return str(event["content"]["membership"]) if event else None

    def members(self) -> list[str]:
        """Return the users who are in the room."""
        users = [key for kind, key in self.room.state if kind == "m.room.member"]
        return [user for user in users if self.membership(user) == "join"]

    def heard(self, user_id: str) -> list[str]:
        """Return what a user has said in the room."""
        said = [event for event in self.events.values() if event["type"] == "m.room.message"]
        return [event["content"]["body"] for event in said if event["sender"] == user_id]

    async def persist(self, event: Event) -> None:
        """Add an event to the room."""
        event_id = self.event_id(event)
        if event_id in self.events:
            return
        self.before[event_id] = list(self.room.state.values())
        self.events[event_id] = event
        if self.room.reference(event) not in self.room.prev_events:  # `say` has put it there
            self.room.append(event)
        async with self.changed:
            self.changed.notify_all()

    def auth_chain(self, of: Iterable[Event]) -> list[Event]:
        """Return the events that allow these, those that allow them, and so on."""
        chain: dict[str, Event] = {}
        to_do = list(of)
        while to_do:
            for event_id in self.allowing(to_do.pop()):
                if event_id not in chain:
                    chain[event_id] = self.events[event_id]
                    to_do.append(self.events[event_id])
        return list(chain.values())

    def allowing(self, event: Event) -> list[str]:
        """Return the IDs of the events that allow one directly."""
        event_ids = referenced(event["auth_events"])
        if self.room.version.room_id_is_create_event_id and "room_id" in event:
            # Then no `auth_events` name the create event, for the room ID does.
            event_ids.append("$" + event["room_id"][1:])
        return event_ids

    async def check(self, event: Any, origin: str) -> Event:
        """Return an event of another server if it may go into the room; else raise `MatrixError`."""
        version = self.room.version
        try:
            well_formed = (
                event["room_id"] == self.room.room_id
                and isinstance(event["type"], str)
                and isinstance(event["content"], dict)
                and type(event["depth"]) is int
                and type(event["origin_server_ts"]) is int
                and server_of(event["sender"]) == origin
                and {*referenced(event["prev_events"] + event["auth_events"])} <= {*self.events}
            )
            events.check_size(event, version)
            right_hash = event["hashes"]["sha256"] == events.content_hash(event, version)
            key_ids = list(event["signatures"][origin])
        except (LookupError, TypeError, AttributeError, InviteError) as error:
            raise MatrixError(400, "M_INVALID_PARAM", f"Malformed event: {error}") from None
        if not well_formed:
            raise MatrixError(400, "M_INVALID_PARAM", "The event does not fit into the room")
        if not right_hash:
            raise MatrixError(400, "M_INVALID_PARAM", "The content hash is wrong")
        # § Validating hashes and signatures on received events
        valid_at = event["origin_server_ts"] if version.enforce_key_validity else None
        redacted = events.redact(event, version)
        for key_id in key_ids:
            key = (await self.keys_of(origin, key_id)).verify_key(key_id, valid_at)
            if key is not None and json_is_signed(redacted, origin, key):
                break
        else:
            raise MatrixError(400, "M_INVALID_PARAM", f"{origin} has not signed the event")
        if not self.allows(event):
            raise MatrixError(403, "M_FORBIDDEN", f"{event['sender']} may not do that")
        return dict(event)

    def allows(self, event: Event) -> bool:
        """Whether a user of another server may: members talk, who is invited joins, all may go."""
        membership = self.membership(event["sender"])
        if "state_key" not in event:
            return membership == "join"
        return (
            event["type"] == "m.room.member"
            and event["state_key"] == event["sender"]
            and event["content"].get("membership") in ("join", "leave")
            and membership in ("invite", "join")
        )

    # --- Who asks -------------------------------------------------------------------------------

    async def authenticate(self, request: web.Request) -> Asked:
        """Find out which server has signed a request (§ Request Authentication)."""
        raw = await request.read()
        try:
            said = x_matrix.parse_authorization(request.headers.get("Authorization", ""))
            content = canonical_json.decode(raw, strict=False) if raw else None
            body = canonical_json.encode(content, strict=False) if raw else None
        except ValueError as error:
            raise MatrixError(401, "M_UNAUTHORIZED", f"Not a signed request: {error}") from None
        if said.destination not in (None, self.server_name):
            raise MatrixError(401, "M_UNAUTHORIZED", f"This is {self.server_name}")
        key = (await self.keys_of(said.origin, said.key_id)).verify_key(said.key_id, now())
        signed = x_matrix.signed_bytes(
            request.method, request.raw_path, said.origin, self.server_name, body
        )
        if key is None or not key.verifies(signed, said.signature):
            raise MatrixError(401, "M_UNAUTHORIZED", f"{said.origin} has not signed the request")
        if request.match_info.get("room_id", self.room.room_id) != self.room.room_id:
            raise MatrixError(404, "M_NOT_FOUND", "There is no such room")
        return Asked(said.origin, request.match_info, request.query, content)

    async def keys_of(self, server_name: str, key_id: str) -> ServerKeys:
        """Return the keys of another server, fetched anew if those that we have do not do."""
        keys = self._keys.get(server_name)
        if keys is None or key_id not in keys.keys or keys.valid_until_ts < now():
            try:
                keys = self._keys[server_name] = await self.client.server_keys(server_name)
            except InviteError as error:
                raise MatrixError(401, "M_UNAUTHORIZED", f"No keys: {error.message}") from None
        return keys

    # --- What is asked --------------------------------------------------------------------------

    def app(self) -> web.Application:
        """Return the Server-Server API."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_get("/_matrix/key/v2/server", self.publish_keys)
        signed: dict[str, Callable[[Asked], Awaitable[Any]]] = {
            "GET /v1/make_join/{room_id}/{user_id}": self.make_join,
            "PUT /v2/send_join/{room_id}/{event_id}": self.send_join,
            "PUT /v1/send/{txn_id}": self.transaction,
            "GET /v1/event/{event_id}": self.event,
            "GET /v1/state_ids/{room_id}": self.state_ids,
            "GET /v1/backfill/{room_id}": self.backfill,
            "POST /v1/get_missing_events/{room_id}": self.missing_events,
        }
        for endpoint, handler in signed.items():
            method, _, path = endpoint.partition(" ")
            app.router.add_route(method, f"/_matrix/federation{path}", self.answering(handler))
        app.router.add_route("*", "/{path:.*}", self.answering(self.unrecognized))
        return app

    def answering(
        self, handler: Callable[[Asked], Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Authenticate a request before it is handled; turn what comes of it into JSON."""

        async def answer(request: web.Request) -> web.Response:
            try:
                status, body = 200, await handler(await self.authenticate(request))
            except MatrixError as error:
                status, body = error.status, error.body
            log.info("%s %s: %s", request.method, request.path, status)
            return web.json_response(body, status=status)

        return answer

    async def publish_keys(self, _: web.Request) -> web.Response:
        """§ Publishing Keys: for all to read."""
        keys = {
            "server_name": self.server_name,
            "valid_until_ts": now() + KEY_VALIDITY,
            "verify_keys": {self.key.key_id: {"key": self.key.verify_key.base64}},
            "old_verify_keys": {},
        }
        return web.json_response(sign_json(keys, self.server_name, self.key))

    async def make_join(self, asked: Asked) -> Any:
        """§ Joining Rooms: a join event for the user's server to complete and to sign."""
        user_id, version = asked.path["user_id"], self.room.version.identifier
        if server_of(user_id) != asked.origin:
            raise MatrixError(403, "M_FORBIDDEN", f"{user_id} is not a user of {asked.origin}")
        if version not in asked.query.getall("ver", ["1"]):
            raise MatrixError(
                400, "M_INCOMPATIBLE_ROOM_VERSION", f"It is version {version}", room_version=version
            )
        join = {
            "type": "m.room.member",
            "room_id": self.room.room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": {"membership": "join"},
            "origin_server_ts": now(),
            "depth": self.room.depth + 1,
            "prev_events": self.room.prev_events,
            "auth_events": self.room.auth_events("m.room.member", user_id),
        }
        if not self.allows(join):
            raise MatrixError(403, "M_FORBIDDEN", f"{user_id} is not invited")
        return {"room_version": version, "event": join}

    async def send_join(self, asked: Asked) -> Any:
        """§ Joining Rooms: take the join, and return the room as it was before it."""
        join = await self.check(asked.content, asked.origin)
        if (join["type"], join["content"].get("membership")) != ("m.room.member", "join"):
            raise MatrixError(400, "M_INVALID_PARAM", "The event is not a join")
        event_id = self.event_id(join)
        if event_id != asked.path["event_id"]:
            raise MatrixError(400, "M_INVALID_PARAM", "The event has another ID")
        await self.persist(join)
        state = self.before[event_id]
        return {
            "origin": self.server_name,
            "event": join,
            "state": state,
            "auth_chain": self.auth_chain([join, *state]),
            "members_omitted": False,
        }

    async def transaction(self, asked: Asked) -> Any:
        """§ Transactions: take what fits into the room; typing, receipts and the like do not."""
        results: dict[str, dict[str, str]] = {}
        for pdu in asked.content["pdus"]:
            event_id = self.event_id(pdu)
            try:
                await self.persist(await self.check(pdu, asked.origin))
                results[event_id] = {}
            except MatrixError as error:
                results[event_id] = {"error": str(error)}
        return {"pdus": results}

    async def event(self, asked: Asked) -> Any:
        """§ Retrieving events."""
        pdu = self.visible(asked, asked.path["event_id"])
        return {"origin": self.server_name, "origin_server_ts": now(), "pdus": [pdu]}

    async def state_ids(self, asked: Asked) -> Any:
        """§ Retrieving events: the room's state before an event."""
        event = self.visible(asked, asked.query.get("event_id", ""))
        state = self.before[self.event_id(event)]
        return {
            "pdu_ids": list(map(self.event_id, state)),
            "auth_chain_ids": list(map(self.event_id, self.auth_chain(state))),
        }

    async def backfill(self, asked: Asked) -> Any:
        """§ Backfilling: an event and those before it, the newest first."""
        event = self.visible(asked, asked.query.get("v", ""))
        known = list(self.events.values())
        pdus = known[known.index(event) :: -1][: int(asked.query["limit"])]
        return {"origin": self.server_name, "origin_server_ts": now(), "pdus": pdus}

    async def missing_events(self, asked: Asked) -> Any:
        """§ Backfilling: what lies between the events that the server has and one it was sent."""
        found: dict[str, Event] = {}
        to_do = list(asked.content["latest_events"])
        while to_do and len(found) < asked.content.get("limit", 10):
            for event_id in referenced(self.visible(asked, to_do.pop(0))["prev_events"]):
                if event_id not in found and event_id not in asked.content["earliest_events"]:
                    found[event_id] = self.events[event_id]
                    to_do.append(event_id)
        return {"events": sorted(found.values(), key=lambda event: event["depth"])}

    async def unrecognized(self, _: Asked) -> Any:
        """§ Unsupported endpoints."""
        raise MatrixError(404, "M_UNRECOGNIZED", "Not a part of this small homeserver")

    def visible(self, asked: Asked, event_id: str) -> Event:
        """Return an event to a server that is in the room."""
        if asked.origin not in map(server_of, self.members()):
            raise MatrixError(403, "M_FORBIDDEN", f"{asked.origin} is not in the room")
        if event_id not in self.events:
            raise MatrixError(404, "M_NOT_FOUND", "There is no such event")
        return self.events[event_id]


@asynccontextmanager
async def serving(
    homeserver: Homeserver, listener: socket.socket, certificate: str, private_key: str | None
) -> AsyncIterator[None]:
    """Serve a homeserver at a listening socket, with a certificate for its name."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, private_key)
    runner = web.AppRunner(homeserver.app())
    await runner.setup()
    try:
        await web.SockSite(runner, listener, ssl_context=tls).start()
        yield
    finally:
        # Other servers keep their connections; to say goodbye would take as long as they like.
        for connection in runner.server.connections if runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()
        await homeserver.aclose()


def referenced(references: list[Any]) -> list[str]:
    """Return the IDs in `prev_events` or `auth_events`: in old rooms they stand beside hashes."""
    return [entry if isinstance(entry, str) else entry[0] for entry in references]


def server_of(user_id: str) -> str:
    """Return the server that a user belongs to."""
    return user_id.partition(":")[2]


def now() -> int:
    """Return the milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


async def run(options: argparse.Namespace) -> None:
    """Invite a user, wait until they have joined, and greet them."""
    key = read_signing_key(options.signing_key) if options.signing_key else None
    policy = Policy(
        tls=TlsPolicy(ca_file=options.ca_file),
        addresses=AddressPolicy(allowed=tuple(options.allow_address)),
    )
    homeserver = Homeserver(
        options.server_name,
        key or SigningKey.generate("a_1"),
        policy,
        room_version=options.room_version,
    )
    host, _, port = options.listen.rpartition(":")
    with socket.create_server((host, int(port))) as listener:
        async with serving(homeserver, listener, options.certificate, options.private_key):
            signed = await homeserver.invite(options.invite)
            print(f"{options.invite} is invited to {homeserver.room.room_id}", flush=True)
            print(f"signed by {' and '.join(signed.event['signatures'])}", flush=True)
            await homeserver.until(lambda: options.invite in homeserver.members())
            print(f"in the room: {' and '.join(homeserver.members())}", flush=True)
            await homeserver.say("Welcome to tea")


def main() -> None:
    """Read the arguments. Without any, say what it takes to run this."""
    parser = argparse.ArgumentParser(
        description="Host a room, invite a user of another homeserver, and wait for the join.",
        epilog="The other server must reach ours by its name, and believe our certificate.",
    )
    parser.add_argument("--server-name", help="our name, such as localhost:8449")
    parser.add_argument("--invite", metavar="USER_ID", help="the user of another server to invite")
    parser.add_argument("--certificate", metavar="FILE", help="our TLS certificate chain, in PEM")
    parser.add_argument("--private-key", metavar="FILE", help="its key, if it is in another file")
    parser.add_argument("--signing-key", metavar="FILE", help="as homeservers keep it; else a new")
    parser.add_argument("--listen", metavar="ADDRESS:PORT", default="127.0.0.1:8449")
    parser.add_argument("--room-version", default="10")
    parser.add_argument("--ca-file", metavar="FILE", help="who has signed the other certificate")
    parser.add_argument("--allow-address", metavar="CIDR", action="append", default=[])
    options = parser.parse_args()
    if not (options.server_name and options.invite and options.certificate):
        parser.print_help()
        print("\nIt needs at least --server-name, --invite and --certificate.")
        return
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        asyncio.run(run(options))
    except InviteError as error:
        raise SystemExit(error.diagnosis()) from None


if __name__ == "__main__":
    main()
