"""Small raw servers on loopback. They do what they are told, and remember what was done to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeAlias

import trustme

from invite_client.net.dns import Address, Dns, DnsAbsentError, SrvRecords
from invite_client.policy import AddressPolicy, DnsPolicy, Policy, TlsPolicy
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Request

LOOPBACK = ("127.0.0.0/8", "::1/128")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Visit:
    """One connection, as the server saw it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    sni: str | None = None
    requests: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the client has closed it."""

    async def request(self) -> bytes:
        """Read one request, head and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        request = head + await self.reader.readexactly(length)
        self.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.sleep(0)  # else who sends for ever never learns that the client has gone
        await self.writer.drain()

    async def until_closed(self) -> None:
        """Wait until the client goes away."""
        while await self.reader.read(65536):
            pass
        self.closed.set()


Behaviour: TypeAlias = Callable[[Visit], Awaitable[None]]


async def answers_ok(visit: Visit) -> None:
    """Answer every request, for as long as the client likes."""
    while True:
        await visit.request()
        await visit.send(OK)


def says(data: bytes) -> Behaviour:
    """Read one request, say this, and hang up."""

    async def behaviour(visit: Visit) -> None:
        await visit.request()
        await visit.send(data)

    return behaviour


class Server:
    """A TCP server, with TLS if it has a certificate."""

    def __init__(self, behaviour: Behaviour, context: ssl.SSLContext | None = None) -> None:
        self.behaviour = behaviour
        self.visits: list[Visit] = []
        """Connections on which TLS, if there is any, came about."""
        self.snis: list[str | None] = []
        """The names that were asked for in a TLS handshake, also where it came to nothing."""
        self.address = ""
        self.port = 0
        self._context = context
        if context is not None:
            context.sni_callback = lambda _, name, __: self.snis.append(name)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def requests(self) -> list[bytes]:
        return [request for visit in self.visits for request in visit.requests]

    @contextlib.asynccontextmanager
    async def running(
        self, address: str = "127.0.0.1", port: int = 0, *, late: float = 0.0
    ) -> AsyncIterator[Server]:
        """Listen, and begin `late` seconds later to do more than that."""
        listener = socket.create_server(
            (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET
        )
        self.address, self.port = listener.getsockname()[:2]

        async def serve() -> None:
            await asyncio.sleep(late)
            server = await asyncio.start_server(
                self._serve,
                sock=listener,
                ssl=self._context,
                # The client may never say goodbye.
                ssl_shutdown_timeout=self._context and 0.2,
            )
            try:
                serving.set()
                await asyncio.Event().wait()
            finally:
                server.close()

        serving = asyncio.Event()
        task = asyncio.create_task(serve())
        if not late:
            await serving.wait()
        try:
            yield self
        finally:
            tasks = (task, *self._tasks)
            for running in tasks:
                running.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for visit in self.visits:
                visit.writer.transport.abort()
            listener.close()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        visit = Visit(reader, writer)
        self.visits.append(visit)
        try:
            await self.behaviour(visit)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # the client has gone
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            visit.closed.set()
            writer.close()


class StaticDns(Dns):
    """Names with addresses that a test gives them; a list of lists is one answer after another."""

    def __init__(self, **names: list[str] | list[list[str]]) -> None:
        super().__init__(DnsPolicy())
        self.names: dict[str, Any] = {
            name.replace("_", "."): addresses for name, addresses in names.items()
        }
        self.asked: list[str] = []

    async def addresses(self, hostname: str) -> list[Address]:
        self.asked.append(hostname)
        answer = self.names.get(hostname)
        if not answer:
            raise DnsAbsentError(f"A {hostname}: no such name", 0.0)
        if isinstance(answer[0], list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return [ip_address(address) for address in answer]

    async def srv(self, service: str, hostname: str) -> SrvRecords:
        return SrvRecords((), 60.0)


@dataclass
class Authority:
    """A certificate authority, and the file that makes clients trust it."""

    ca: trustme.CA
    ca_file: Path

    def server(self, *names: str, ca: trustme.CA | None = None, **options: Any) -> ssl.SSLContext:
        """A server's context with a certificate for these names."""
        return server_context((ca or self.ca).issue_cert(*names, **options))

    def policy(self, **overrides: Any) -> Policy:
        """A policy that trusts this authority and allows loopback."""
        return Policy(
            **{
                "addresses": AddressPolicy(allowed=LOOPBACK),
                "tls": TlsPolicy(ca_file=str(self.ca_file)),
                **overrides,
            }
        )


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def resolved(
    server: Server | None = None,
    *,
    name: str = "remote.example",
    targets: tuple[Target, ...] | None = None,
    tls_name: str | None = None,
) -> ResolvedServer:
    """What the discovery would say of a server."""
    if targets is None:
        assert server is not None
        targets = (Target(name, server.port),)
    return ResolvedServer(
        server_name=name,
        step="4",
        targets=targets,
        host_header=name,
        tls_name=tls_name or name,
    )


PUT = Request(
    "PUT", "/_matrix/federation/v2/invite/%21room/%24event", b'{"a":1}', "X-Matrix", "PUT"
)
GET = Request("GET", "/_matrix/key/v2/server", what="GET keys")
