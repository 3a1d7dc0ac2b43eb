r"""A Synapse module that sends Synapse's invites through `invite_client`, and patches nothing.

The module API has no callback in the place of the request that asks for the countersignature. But
Synapse can be told that only a certain worker may talk to other servers; then every other process
hands its federation requests to that worker, at a Unix socket. This module listens at the socket.
Invites go through `InviteClient.send_invite`; everything else is passed on as it is. In
`homeserver.yaml`:

    modules:
      - module: synapse_module.InviteModule
        config:
          signing_key: /etc/matrix-synapse/homeserver.signing.key
          socket: /run/matrix-synapse/invite_client.sock
          secret_path: /etc/matrix-synapse/worker.secret
    instance_map:
      invite_client: {path: /run/matrix-synapse/invite_client.sock}
    outbound_federation_restricted_to: [invite_client]
    worker_replication_secret_path: /etc/matrix-synapse/worker.secret

This file must be importable, and Synapse must run on asyncio's event loop: set
`SYNAPSE_ASYNC_IO_REACTOR=1` in its environment. Replies are held in memory, up to `LARGEST_REPLY`.
What Synapse says to its workers is no promise of its developers: try it before each upgrade.
"""

# Twisted's web server has few types.
# mypy: disallow-untyped-calls=False

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

if __name__ == "__main__":
    raise SystemExit("this is a module for Synapse, and no program: its first lines tell its use")

from synapse.module_api import ModuleApi
from synapse.module_api.errors import ConfigError
from twisted.internet import defer, reactor
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from invite_client import (
    AddressPolicy,
    Invite,
    InviteClient,
    InviteError,
    InviteRejectedError,
    Policy,
    TlsPolicy,
    read_signing_key,
)
from invite_client.contrib.logs import LogObserver
from invite_client.net.http import HttpTransport
from invite_client.spec import http

LARGEST_REPLY = 200 * 1024**2
"""Bytes of a reply that is passed on: the state of a large room, or a file."""
INVITE = "/_matrix/federation/v2/invite/"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Config:
    """The module's `config`."""

    signing_key: str
    """Synapse's own, with which it signs its requests."""
    socket: str
    """Where to listen: the `path` in `instance_map`."""
    secret_path: str
    """Holds the `worker_replication_secret`: who knows it may send in our name."""
    ca_file: str | None = None
    allowed_addresses: tuple[str, ...] = ()
    """Private networks in which other homeservers may be."""


class InviteModule:
    """What Synapse makes of the entry in `modules`."""

    def __init__(self, config: Config, api: ModuleApi) -> None:
        if not isinstance(reactor, AsyncioSelectorReactor):
            raise ConfigError("InviteModule needs SYNAPSE_ASYNC_IO_REACTOR=1 in the environment")
        self.loop = asyncio.get_event_loop()  # which Synapse has set, and is about to run
        policy = Policy(
            tls=TlsPolicy(ca_file=config.ca_file),
            addresses=AddressPolicy(allowed=config.allowed_addresses),
        )
        self.transport = HttpTransport(policy)
        self.client = InviteClient(
            api.server_name,
            read_signing_key(config.signing_key),
            policy=policy,
            transport=self.transport,
            observer=LogObserver(),
        )
        secret = Path(config.secret_path).read_text(encoding="utf-8").strip()
        site = Site(Gateway(self, secret))
        twisted: Any = reactor  # which interfaces it has, only the running one knows
        twisted.listenUNIX(config.socket, site, mode=0o600)
        twisted.addSystemEventTrigger("before", "shutdown", self.close)

    @staticmethod
    def parse_config(config: dict[str, Any]) -> Config:
        """Check the module's `config`, when Synapse reads its own."""
        allowed = tuple(config.pop("allowed_addresses", ()))
        return Config(**config, allowed_addresses=allowed)

    def close(self) -> defer.Deferred[None]:
        """Close the connections that are kept."""

        async def close() -> None:
            await self.client.aclose()
            await self.transport.aclose()

        return defer.Deferred.fromFuture(self.loop.create_task(close()))

    async def answer(self, destination: str, request: http.Request) -> http.Reply:
        """Send a request of Synapse's to another homeserver."""
        try:
            if request.method == "PUT" and request.uri.startswith(INVITE):
                return await self.invite(json.loads(request.body or b""))
            server = await self.client.resolve(destination)
            return await self.transport.exchange(server, request, limit=LARGEST_REPLY, log=[])
        except InviteRejectedError as error:
            # Synapse has its own ways with what the other server says.
            return reply(error.status, {"errcode": error.errcode, "error": error.error})
        except InviteError as error:
            log.warning("%s", error.diagnosis())
            return reply(*error.client_response())

    async def invite(self, body: dict[str, Any]) -> http.Reply:
        """Have an invite signed, and the signature verified."""
        signed = await self.client.send_invite(Invite.from_request(body))
        return reply(200, {"event": signed.event})


class Gateway(Resource):
    """Takes the requests that Synapse would give a worker: ``PUT matrix-federation://name/path``."""

    isLeaf = True  # noqa: N815  # Twisted's name

    def __init__(self, module: InviteModule, secret: str) -> None:
        super().__init__()
        self.module = module
        self.expected = f"Bearer {secret}".encode()

    def render(self, request: Request) -> int:
        """Answer in a task of asyncio, which ends if nobody waits for it any more."""
        task = self.module.loop.create_task(self._render(request))
        request.notifyFinish().addErrback(lambda _: task.cancel())
        return NOT_DONE_YET

    async def _render(self, request: Request) -> None:
        said = request.getHeader(b"Proxy-Authorization") or b""
        if hmac.compare_digest(said, self.expected):
            answer = await self.module.answer(*asked(request))
        else:
            answer = reply(401, {"errcode": "M_UNAUTHORIZED", "error": "Wrong worker secret"})
        request.setResponseCode(answer.status)
        for name in ("content-type", "content-disposition", "retry-after"):
            if name in answer.headers:
                request.setHeader(name, answer.headers[name])
        request.write(answer.body)
        request.finish()


def asked(request: Request) -> tuple[str, http.Request]:
    """Return where Synapse wants to send what."""
    url = urlsplit(request.uri.decode("ascii"))
    uri = f"{url.path}?{url.query}" if url.query else url.path
    method, authorization = request.method.decode("ascii"), request.getHeader("Authorization")
    # JSON, if there is a body at all, and written as it was signed.
    body = request.content.read() if request.content else b""
    what = f"{method} for Synapse"
    return url.netloc, http.Request(method, uri, body or None, authorization, what)


def reply(status: int, body: dict[str, Any]) -> http.Reply:
    """Return a reply of our own."""
    headers = {"content-type": "application/json"}
    return http.Reply(status, json.dumps(body).encode(), headers)
