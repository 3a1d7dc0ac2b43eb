"""Homeservers without sockets, behind a real client.

remote = SimulatedHomeserver("remote.example")
async with remote.client() as client:
    signed = await client.send_invite(invite)
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from invite_client.client import InviteClient
from invite_client.errors import (
    Attempt,
    InviteError,
    MalformedReplyError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.interfaces import AttemptLog
from invite_client.spec.discovery import DEFAULT_PORT, ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_names import ServerName
from invite_client.spec.signatures import SigningKey
from invite_client.testing.faults import (
    Fault,
    Hangs,
    LosesTheAnswer,
    Refuses,
    Slow,
    TimesOut,
    Unreachable,
)
from invite_client.testing.homeserver import Homeserver, Received
from invite_client.testing.rooms import INVITER, INVITER_KEY

__all__ = ["SimulatedFederation", "SimulatedHomeserver"]


class SimulatedFederation:
    """Several simulated homeservers behind one client: its transport, and its resolver."""

    def __init__(self, *homeservers: SimulatedHomeserver) -> None:
        """Put the homeservers where they can be found; nobody else can."""
        self.homeservers: dict[str, SimulatedHomeserver] = {
            server.server_name: server for server in homeservers
        }

    def client(
        self,
        server_name: str = INVITER,
        signing_key: SigningKey = INVITER_KEY,
        **options: Any,
    ) -> InviteClient:
        """Return a client whose key all homeservers trust; `options` are those of `InviteClient`."""
        for homeserver in self.homeservers.values():
            homeserver.trust(server_name, signing_key.verify_key)
        return InviteClient(
            server_name, signing_key, **{"transport": self, "resolver": self, **options}
        )

    # --- interfaces.Resolver --------------------------------------------------------------------

    async def resolve(self, name: ServerName) -> ResolvedServer:
        """Return where a homeserver is: at port 8448 of its name, unless that has another."""
        if str(name) not in self.homeservers:
            raise UnreachableError(f"{name.host}: no such name", stage=Stage.DNS)
        target = Target(name.host, name.port or DEFAULT_PORT)
        return ResolvedServer(str(name), "6", (target,), str(name), name.host)

    async def forget(self, name: ServerName) -> None:
        """Nothing is remembered."""

    # --- interfaces.Transport -------------------------------------------------------------------

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        """Hand the request to the homeserver; see `interfaces.Transport.exchange`."""
        target = server.targets[0]
        remote = self.homeservers[server.server_name]
        outcome, sent = "ended from outside", False
        try:
            received = _received(server, request)
            fault = remote.next_fault(received.endpoint)
            _connect(fault, target)
            sent = True
            reply = remote.receive(received)
            match fault:
                case LosesTheAnswer():
                    raise UnknownOutcomeError(
                        "the connection ended before the answer", retryable=True
                    )
                case Hangs():
                    await asyncio.Event().wait()
                case Slow(seconds):
                    await asyncio.sleep(seconds)
            if len(reply.body) > limit:
                raise MalformedReplyError(
                    f"the answer is longer than {limit} bytes", stage=Stage.HTTP
                )
            outcome = str(reply.status)
        except InviteError as error:
            outcome = error.message
            raise
        else:
            return reply
        finally:
            what = request.what or request.method
            log.append(Attempt(what=what, target=str(target), outcome=outcome, sent=sent))

    async def aclose(self) -> None:
        """Nothing is open."""


class SimulatedHomeserver(Homeserver):
    """A homeserver without sockets, which can be told to lie, to refuse, and to be out of reach."""

    possible_faults: ClassVar[tuple[type[Fault], ...]] = (
        Unreachable,
        Refuses,
        TimesOut,
        LosesTheAnswer,
        Hangs,
        Slow,
    )

    def client(
        self,
        server_name: str = INVITER,
        signing_key: SigningKey = INVITER_KEY,
        **options: Any,
    ) -> InviteClient:
        """Return a client whose key this homeserver trusts, and which can reach it alone."""
        return SimulatedFederation(self).client(server_name, signing_key, **options)


def _connect(fault: Fault | None, target: Target) -> None:
    match fault:
        case Unreachable():
            message = "no route to host"
        case Refuses():
            message = "connection refused"
        case TimesOut():
            message = "no connection in time"
        case _:
            return
    raise UnreachableError(f"{target}: {message}", stage=Stage.CONNECT, retryable=True)


def _received(server: ResolvedServer, request: Request) -> Received:
    headers = {"host": server.host_header}
    if request.authorization is not None:
        headers["authorization"] = request.authorization
    if request.body is not None:
        headers["content-type"] = "application/json"
    return Received(request.method, request.uri, headers, request.body or b"")
