"""The inviting homeserver, as much of it as a real remote wants to see: its keys and its rooms."""

from __future__ import annotations

import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trustme
from aiohttp import web

from invite_client.spec.signatures import SigningKey, sign_json
from invite_client.testing import RoomHistory

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
        # A Synapse keeps its connections. To say goodbye to it takes longer than the loop may live.
        for connection in runner.server.connections if runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()


def create_room(inviter: Inviter, version: str, name: str = "Tea at five") -> RoomHistory:
    """Create a room of a version, with its creator in it and a name."""
    return RoomHistory.create(
        inviter.server_name, inviter.signing_key, version, creator=inviter.user_id, name=name
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
