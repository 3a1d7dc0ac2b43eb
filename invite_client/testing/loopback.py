"""Homeservers with real DNS, TLS and HTTP, on loopback.

async with LoopbackHomeserver("remote.example") as remote, remote.client() as client:
    signed = await client.send_invite(invite)
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from yarl import URL

from invite_client.client import InviteClient
from invite_client.errors import InvalidInviteError
from invite_client.spec import canonical_json
from invite_client.spec.discovery import DEFAULT_PORT
from invite_client.spec.http import Reply
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.signatures import SigningKey
from invite_client.testing.certificates import RIGHT, Certificate
from invite_client.testing.faults import (
    ClosesBeforeTls,
    ConnectionFault,
    DiesOnReuse,
    Fault,
    NeverCompletesTheHandshake,
    WireFault,
    encode,
)
from invite_client.testing.homeserver import Homeserver, Received
from invite_client.testing.network import IpVersion, LoopbackNetwork
from invite_client.testing.rooms import INVITER, INVITER_KEY

__all__ = ["Connection", "LoopbackHomeserver", "Srv", "WellKnown"]

_WELL_KNOWN = "/.well-known/matrix/server"
_HTTPS = 443
_HEADER_BYTES = 64 * 1024
"""A request's header at most; a federation request has about 1 KiB."""
_CLOSING = 1.0
"""Seconds that a client has to answer our goodbye before the connection is broken off."""


@dataclass(frozen=True, slots=True)
class WellKnown:
    """What stands at ``https://NAME/.well-known/matrix/server``."""

    delegated: str | None = None
    """The `m.server`: where the homeserver is found instead."""
    body: bytes | None = None
    """The whole body, where it is not ``{"m.server": delegated}``."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    redirects: Sequence[str] = ()
    """URLs by whose way the file is reached: each redirects to the next, and at the last it is."""
    redirect_status: int = 302
    fault: WireFault | None = None
    """What goes wrong on the wire when it is asked for."""
    certificate: Certificate = RIGHT
    """What the web server of NAME shows."""

    def reply(self) -> Reply:
        """Return the answer at the end of all redirects."""
        body = self.body
        if body is None:
            answer = {} if self.delegated is None else {"m.server": self.delegated}
            body = canonical_json.encode(answer)
        return Reply(self.status, body, {"content-type": "application/json", **self.headers})


@dataclass(frozen=True, slots=True)
class Srv:
    """One SRV record, and the server that it points to."""

    target: str
    port: int = DEFAULT_PORT
    priority: int = 10
    weight: int = 10
    service: Literal["_matrix-fed._tcp", "_matrix._tcp"] = "_matrix-fed._tcp"
    listens: bool = True
    """Whether there is a server; if not, connections are refused."""
    certificate: Certificate | None = None
    """What it shows, if that is not what the homeserver shows."""


@dataclass(slots=True)
class Connection:
    """A TCP connection that was accepted."""

    address: str
    """What the client dialled."""
    port: int
    """What the client dialled."""
    sni: str | None = None
    """The name that the client asked for."""
    handshake: Literal["not finished", "finished", "failed"] = "not finished"
    """What became of TLS."""
    bytes_received: int = 0
    """How much was received inside of TLS."""
    requests: int = 0
    """How many requests came by it."""


class LoopbackHomeserver(Homeserver):
    """A homeserver that listens, and that is found by its name as the specification says.

        LoopbackHomeserver("remote.example")                                        # step 6
        LoopbackHomeserver("remote.example", srv="srv.example:8449")                # step 4
        LoopbackHomeserver("remote.example", well_known="other.example:8449")       # step 3.2
        LoopbackHomeserver("remote.example", well_known="b.example", srv="c.example:1")  # step 3.3
        LoopbackHomeserver("remote.example:8449")                                   # step 2
        LoopbackHomeserver("127.1.2.3")                                             # step 1

    It makes the DNS records, listens where they lead to, and shows the certificate that the name
    asks for. Alone it makes its own `LoopbackNetwork`; with `network` it joins one.
    """

    possible_faults: ClassVar[tuple[type[Fault], ...]] = (WireFault, ConnectionFault)

    def __init__(
        self,
        server_name: str = "remote.example",
        signing_key: SigningKey | None = None,
        *,
        network: LoopbackNetwork | None = None,
        well_known: str | WellKnown | None = None,
        srv: str | Srv | Iterable[Srv] = (),
        certificate: Certificate = RIGHT,
        families: tuple[IpVersion, ...] = (4,),
        maximum_tls: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
        **options: Any,
    ) -> None:
        """Prepare a homeserver; `options` are those of `Homeserver`.

        `well_known` is the delegated name, or all of what is answered. `srv` is ``host:port`` of a
        `_matrix-fed._tcp` record, or all records. `certificate` is what it shows as homeserver,
        `families` the IP versions of the addresses that its hosts get.
        """
        super().__init__(server_name, signing_key, **options)
        self.well_known: WellKnown | None = (
            WellKnown(well_known) if isinstance(well_known, str) else well_known
        )
        self.srv: tuple[Srv, ...] = tuple(
            _srv(srv) if isinstance(srv, str) else [srv] if isinstance(srv, Srv) else srv
        )
        self.certificate = certificate
        self.network: LoopbackNetwork = network or LoopbackNetwork()
        """The network that it is in."""
        self.connections: list[Connection] = []
        """Every connection to any of its ports, in order."""
        self.well_known_requests: list[Received] = []
        """Every request for the well-known file, redirects included, in order."""
        self._families = families
        self._maximum_tls = maximum_tls
        self._bugs: list[Exception] = []
        self._listening: dict[tuple[str, int], socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._snis: weakref.WeakKeyDictionary[ssl.SSLObject, str] = weakref.WeakKeyDictionary()

    async def __aenter__(self) -> Self:
        await self.network.__aenter__()
        try:
            self._publish_names()
            await self.starts()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stops()
        await self.network.__aexit__(kind, error, traceback)
        if self._bugs and error is None:
            raise self._bugs[0]

    @property
    def handshakes(self) -> int:
        """How many TLS handshakes were finished."""
        return sum(connection.handshake == "finished" for connection in self.connections)

    def client(
        self,
        server_name: str = INVITER,
        signing_key: SigningKey = INVITER_KEY,
        **options: Any,
    ) -> InviteClient:
        """Return a client whose key it trusts; `options` are those of `LoopbackNetwork.client`."""
        self.trust(server_name, signing_key.verify_key)
        return self.network.client(server_name, signing_key, **options)

    # --- Where it is found ----------------------------------------------------------------------

    @property
    def found_as(self) -> ServerName:
        """The name by which it is found: the delegated one, if there is one."""
        delegated = self.well_known.delegated if self.well_known else None
        try:
            return parse_server_name(delegated or self.server_name)
        except InvalidInviteError:  # A delegation that is no name leads nowhere.
            return parse_server_name(self.server_name)

    def _publish_names(self) -> None:
        dns = self.network.dns
        for name in (parse_server_name(self.server_name), self.found_as):
            self.network.host(name.host, self._families)
        for srv in self.srv:
            service = f"{srv.service}.{self.found_as.host}"
            dns.add(service, "SRV", srv.priority, srv.weight, srv.port, srv.target)
            if srv.target != ".":
                self.network.host(srv.target, self._families)

    def _places(self) -> Iterable[tuple[str, int, Certificate, str]]:
        """Where it listens: host, port, certificate, and the name that is right for that."""
        found = self.found_as
        if self.well_known is not None:
            host = parse_server_name(self.server_name).host
            yield host, _HTTPS, self.well_known.certificate, host
            for url in map(URL, self.well_known.redirects):
                if url.scheme == "https" and url.host:
                    yield url.host, url.port or _HTTPS, RIGHT, url.host
        if found.ip is not None or found.port is not None or not self.srv:
            yield found.host, found.port or DEFAULT_PORT, self.certificate, found.host
        for srv in self.srv:
            if srv.listens and srv.target != ".":
                yield srv.target, srv.port, srv.certificate or self.certificate, found.host

    async def starts(self) -> None:
        """Listen everywhere. Entering does this; after `stops` it comes back."""
        for host, port, certificate, name in self._places():
            for address in self.network.host(host, self._families):
                # Where two roles meet in one place, the first one's certificate is shown.
                if (address, port) not in self._listening:
                    self._listen(address, port, certificate.context(self.network.ca, name))

    def _listen(self, address: str, port: int, context: ssl.SSLContext) -> None:
        context.maximum_version = self._maximum_tls
        context.sni_callback = self._note_sni
        made = self._listening[address, port] = self.network.listen(address, port)
        # Not `sock_accept`: what it has accepted is lost if it is cancelled in the same turn.
        asyncio.get_running_loop().add_reader(made, self._accept, address, port, context, made)

    async def stops(self) -> None:
        """Close everything: whoever connects now is refused."""
        for (address, port), listening in self._listening.items():
            asyncio.get_running_loop().remove_reader(listening)
            listening.close()
            self.network.close(address, port)
        self._listening.clear()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def until_quiet(self) -> None:
        """Return when every connection so far has ended; close the client before."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- Connections ----------------------------------------------------------------------------

    def _accept(
        self, address: str, port: int, context: ssl.SSLContext, listening: socket.socket
    ) -> None:
        try:
            accepted, _ = listening.accept()
        except OSError:  # The client has gone again.
            return
        accepted.setblocking(False)
        connection = Connection(address, port)
        self.connections.append(connection)
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._serve(connection, accepted, context))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Whoever has it by then has closed it, unless the task ended before it began.
        task.add_done_callback(partial(_close, accepted))

    async def _serve(
        self, connection: Connection, accepted: socket.socket, context: ssl.SSLContext
    ) -> None:
        # Faults concern the homeserver, not the web server beside it.
        is_web = self.well_known is not None and connection.port == _HTTPS
        fault = None if is_web else self.next_fault("connection")
        if isinstance(fault, NeverCompletesTheHandshake | ClosesBeforeTls):
            if isinstance(fault, NeverCompletesTheHandshake):
                await asyncio.Event().wait()
            return
        reader = asyncio.StreamReader(limit=_HEADER_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, accepted, ssl=context
            )
        except OSError:  # ssl.SSLError is one
            connection.handshake = "failed"
            return
        connection.handshake = "finished"
        connection.sni = self._snis.get(transport.get_extra_info("ssl_object"))
        wire = _Wire(connection, reader, asyncio.StreamWriter(transport, protocol, reader, loop))
        try:
            # A client that goes, or speaks no HTTP, needs no answer.
            with suppress(OSError, EOFError):
                await self._converse(wire, dies_on_reuse=isinstance(fault, DiesOnReuse))
        except Exception as error:  # noqa: BLE001  # a lie or a fault of the author's: told at exit
            self._bugs.append(error)
        finally:
            await wire.end()

    async def _converse(self, wire: _Wire, *, dies_on_reuse: bool) -> None:
        while not wire.closing:
            received = await wire.read_request()
            if dies_on_reuse and wire.connection.requests > 1:
                wire.reset()
                return
            fault: Fault | None
            web_reply = self._web_reply(received)
            if web_reply is not None and self.well_known is not None:
                self.well_known_requests.append(received)
                wire.reply, fault = web_reply, self.well_known.fault
            else:
                fault = self.next_fault(received.endpoint)
                wire.reply = self.receive(received)
            if isinstance(fault, WireFault):
                await fault(wire)
            else:
                await wire.send(encode(wire.reply))
            if received.headers.get("connection", "").lower() == "close":
                return

    def _web_reply(self, received: Received) -> Reply | None:
        """Return the well-known file, or a redirect on the way there; None for other requests."""
        if self.well_known is None:
            return None
        host = parse_server_name(self.server_name).host
        urls = [URL(f"https://{host}{_WELL_KNOWN}"), *map(URL, self.well_known.redirects)]
        asked = URL(f"https://{received.host}{received.uri}")
        if asked not in urls:
            return None
        following = urls[urls.index(asked) + 1 :]
        if following:
            headers = {"location": str(following[0])}
            return Reply(self.well_known.redirect_status, b"", headers)
        return self.well_known.reply()

    def _note_sni(self, ssl_object: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name is not None:
            self._snis[ssl_object] = name


class _Wire:
    """A connection, from the server's end."""

    def __init__(
        self, connection: Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connection = connection
        self.reply = Reply(500, b"")
        self.closing = False
        self._reader = reader
        self._writer = writer

    async def read_request(self) -> Received:
        """Raises `EOFError` when there are no more, or if it is not HTTP."""
        try:
            return await self._read_request()
        except (ValueError, asyncio.LimitOverrunError):
            raise EOFError from None

    async def _read_request(self) -> Received:
        head = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, uri, _ = first.split(" ")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            lower = name.lower()
            found = value.strip()
            headers[lower] = f"{headers[lower]}, {found}" if lower in headers else found
        self.connection.bytes_received += len(head)
        body = await self._read_body(headers)
        self.connection.requests += 1
        at = self.connection
        return Received(method, uri, headers, body, at.address, at.port, at.sni)

    async def _read_body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
            self.connection.bytes_received += len(body)
            return body
        chunks = []
        while True:
            line = await self._reader.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            chunk = await self._reader.readexactly(size)
            chunks.append(chunk)
            self.connection.bytes_received += len(line) + size
            if size == 0:
                while await self._reader.readuntil(b"\r\n") != b"\r\n":  # trailer fields
                    pass
                return b"".join(chunks)
            await self._reader.readexactly(2)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        # Where `drain` has nothing to wait for, the loop gets no turn to notice that nobody is
        # there any more, and who sends for ever would do so for ever.
        await asyncio.sleep(0)
        await self._writer.drain()

    async def closed(self) -> None:
        await self._reader.read(1)

    def close(self) -> None:
        self.closing = True

    def reset(self) -> None:
        self.closing = True
        raw = self._writer.get_extra_info("socket")
        # RFC 9293 § 3.6.1 by way of SO_LINGER: closing discards what is unsent, and sends RST.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def end(self) -> None:
        """Say goodbye, and see to it that the socket is closed."""
        self._writer.close()
        with suppress(OSError):
            try:
                async with asyncio.timeout(_CLOSING):
                    await self._writer.wait_closed()
            except (TimeoutError, asyncio.CancelledError):
                self._writer.transport.abort()
                await self._writer.wait_closed()


def _close(accepted: socket.socket, _: asyncio.Task[None]) -> None:
    accepted.close()


def _srv(text: str) -> tuple[Srv]:
    name = parse_server_name(text)
    return (Srv(name.host, name.port or DEFAULT_PORT),)
