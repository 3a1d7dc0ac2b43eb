"""Opens every connection of this package: look-up, gate, race or tunnel, TLS.

aiohttp does the HTTP and keeps the pool; `Connector` is what it asks for connections. Three things
are ours because they must be exact: that the gate judges the very addresses that are connected to,
which of a target's addresses is tried next when one fails, and whose name the certificate bears.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import aiohappyeyeballs
import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from invite_client.errors import ForbiddenByPolicyError, InviteError, Stage, UnreachableError
from invite_client.net.addresses import AddressGate, AddressRefusedError
from invite_client.net.dns import Address, Dns, DnsAbsentError
from invite_client.net.handshakes import Certificate, Handshake
from invite_client.net.proxies import Destination, Proxy, ProxyError, is_onion, open_tunnel
from invite_client.net.tls import CertificateError, shown_chain
from invite_client.spec.discovery import Target

__all__ = ["ConnectFailedError", "Connection", "Connector", "OnHandshake", "Reroute", "wanted"]

Reroute = Callable[[str, int], tuple[str, int]]
"""From the address and port that are dialled to those that are connected to."""
OnHandshake = Callable[[Handshake], None]
"""Called with each TLS handshake that has ended."""

_HEAD_START = 0.25
"""Seconds before the next address is raced: the Connection Attempt Delay of RFC 8305 § 5."""


class ConnectFailedError(aiohttp.ClientError):
    """Carries our own error through aiohttp, which would take it for an `OSError` of its own."""

    def __init__(self, error: InviteError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(slots=True)
class Connection:
    """The connection that one request asks for, and what came of it."""

    target: Target
    """What to connect to."""
    tls: ssl.SSLContext
    """How the certificate is checked."""
    tls_name: str
    """The DNS name, or bare IP literal, that the certificate must be for."""
    allowance: int
    """Bytes that the answer may have, all told."""
    on_open: Callable[[], None]
    """Called when there is a connection."""
    on_again: Callable[[], None]
    """Called when a kept-alive connection was dead, and the request is about to be sent again."""
    stage: Stage = Stage.DNS
    """What is being done."""
    address: str | None = None
    """The socket address that is used; all that were tried, until there is a connection."""
    opened: bool = False
    """Whether there is, or was, a connection."""
    reused: bool = False
    """Whether it was a kept-alive one."""
    sent: bool = False
    """Whether anything of the request went out."""
    fault: str = ""
    """What is wrong with what came back, as the end of a sentence on the answer."""

    @property
    def way(self) -> tuple[Target, str, ssl.SSLContext]:
        """What two requests must have in common to go by one connection."""
        return self.target, self.tls_name, self.tls


wanted: ContextVar[Connection] = ContextVar("wanted")
"""What the request of the current task asks for. aiohttp has no other way to tell a connector."""


class _Line(ResponseHandler):
    """aiohttp's end of a connection: remembers where and to whom it leads, and counts what comes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        super().__init__(loop=loop)
        self.address = connection.address
        self.way = connection.way
        self.tls_name = connection.tls_name
        self.serve(connection)

    def serve(self, connection: Connection) -> None:
        """Carry a request, the first one or another."""
        self._connection = connection
        self._allowance = connection.allowance

    def data_received(self, data: bytes) -> None:
        # Limits on body and header do not see what comes before them ("100 Continue", for ever), nor
        # what stands around chunks.
        self._allowance -= len(data)
        if self._allowance < 0:
            self._refuse(f"takes more than {self._connection.allowance} bytes")
            return
        super().data_received(data)
        match self.exception():
            case HttpProcessingError() as error:
                self._refuse(f"is not HTTP: {' '.join(error.message.split())[:200]}")

    def _refuse(self, fault: str) -> None:
        """Hear no more, and tell who waits: aiohttp does not always tell who reads the body."""
        self._connection.fault = fault
        if self._payload is not None:
            self._payload.set_exception(aiohttp.ClientPayloadError(fault))
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        # Else asyncio waits half a minute for the remote's own goodbye, with the socket open.
        self.abort()


class Connector(aiohttp.BaseConnector):
    """Opens connections directly, or through one proxy."""

    def __init__(
        self,
        dns: Dns,
        gate: AddressGate,
        *,
        proxy: Proxy | None,
        reroute: Reroute | None,
        patience: float,
        most_idle: int,
        on_handshake: OnHandshake | None = None,
        ahead: Callable[[Connection], Awaitable[ResponseHandler] | None] = lambda _: None,
    ) -> None:
        """`patience` is how many seconds a whole target is given.

        `most_idle` is how many connections are kept that nobody uses. `ahead` gives away what has
        been opened ahead.
        """
        super().__init__(limit=0)  # slots are given out before a request is made, not in here
        self._most_idle = most_idle
        self._idle: OrderedDict[ResponseHandler, None] = OrderedDict()
        self._dns = dns
        self._gate = gate
        self._proxy = proxy
        self._reroute = reroute or (lambda address, port: (address, port))
        self._patience = patience
        self._on_handshake = on_handshake
        self._ahead = ahead

    def has_idle(self, connection: Connection) -> bool:
        """Whether the pool has what `connection` asks for."""
        return any(
            isinstance(line, _Line) and line.way == connection.way and line.is_connected()
            for line in self._idle
        )

    async def connect(self, req: Any, traces: Any, timeout: Any) -> Any:
        """Return a connection from the pool, or a new one (`aiohttp.BaseConnector`)."""
        connection = wanted.get()
        again = connection.opened
        if again and (connection.fault or not connection.reused):
            # aiohttp sends idempotent requests twice. A remote that took this one and hung up has
            # made its choice; to ask again is for `retrying` to decide.
            raise aiohttp.ServerDisconnectedError
        if again:
            connection.on_again()
        while True:
            connection.reused = True  # unless a new one is made
            found = await super().connect(req, traces, timeout)
            line = found.protocol
            assert isinstance(line, _Line)  # noqa: S101  # the pool holds what we made
            if not connection.reused or (not again and _may_be_reused(line, connection)):
                break
            # What waited in the pool beside a dead connection is likely to be dead too.
            found.close()
        self._idle.pop(line, None)
        line.serve(connection)
        connection.address, connection.opened = line.address, True
        connection.on_open()
        return found

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        """Put a connection back into the pool; the one that was put there first makes room for it."""
        super()._release(key, protocol, should_close=should_close)
        if protocol.is_connected():
            self._idle[protocol] = None
        while len(self._idle) > self._most_idle:
            # The pool passes over what is closed.
            self._idle.popitem(last=False)[0].close()

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:  # noqa: ARG002  # the signature is aiohttp's
        connection = wanted.get()
        connection.reused = False
        try:
            return await (self._ahead(connection) or self.open(connection))
        except InviteError as error:
            failed = ConnectFailedError(error)
        raise failed  # not from the error that it carries: that would be a circle

    async def open(self, connection: Connection) -> ResponseHandler:
        """Connect to one of the target's addresses, and go on to the others if TLS fails there."""
        target = connection.target
        _check_tls_name(connection)
        connection.stage = Stage.DNS
        left = await self._destinations(target)
        failures: list[UnreachableError] = []
        while left:
            connection.stage = Stage.CONNECT
            try:
                sock, address = await self._reach(left, connection)
            except OSError as error:
                failures.append(_not_connected(error))
                break
            left.remove(address)
            connection.stage = Stage.TLS
            try:
                # An address that hangs must not take the time of those that are left.
                patience = self._patience / 2 if left else self._patience
                return await self._secure(sock, connection, patience)
            except OSError as error:
                failures.append(_not_secured(error))
        raise UnreachableError(
            f"{target}: " + "; ".join(dict.fromkeys(error.message for error in failures)),
            stage=failures[0].stage,  # the furthest: a failure to connect ends the loop
            retryable=any(error.retryable for error in failures),
        )

    async def _destinations(self, target: Target) -> list[Destination]:
        """What may be connected to: the addresses that pass the gate, or a name for Tor."""
        if is_onion(target.host):
            if self._proxy is None:
                raise UnreachableError(
                    f"{target}: names of Tor are reached through a proxy only (proxy.onion)",
                    stage=Stage.DNS,
                )
            return [target.host.rstrip(".")]
        refused: AddressRefusedError | None = None
        passed: list[Destination] = []
        for address in await self._addresses(target.host, f"{target}: "):
            try:
                self._gate.check(address)
            except AddressRefusedError as error:
                refused = error
            else:
                passed.append(address)
        if refused is not None and not passed:
            raise ForbiddenByPolicyError(
                f"{target}: {refused}", setting="addresses.allowed", stage=Stage.POLICY
            ) from refused
        return passed

    async def _addresses(self, host: str, what: str) -> list[Address]:
        try:
            return [ip_address(host)]
        except ValueError:
            pass
        try:
            return await self._dns.addresses(host)
        except OSError as error:
            raise UnreachableError(
                f"{what}{error}",
                stage=Stage.DNS,
                retryable=not isinstance(error, DnsAbsentError),
            ) from error

    async def _reach(
        self, destinations: list[Destination], connection: Connection
    ) -> tuple[socket.socket, Destination]:
        """Return a socket that leads to one of the destinations, and to which. Raises `OSError`."""
        port = connection.target.port
        if self._proxy is None:
            addresses = [address for address in destinations if not isinstance(address, str)]
            connection.address = ", ".join(str(Target(str(a), port)) for a in addresses)
            sock, reached = await self._race(addresses, port)
            connection.address = str(Target(str(reached), port))
            return sock, reached

        proxy_addresses = await self._addresses(self._proxy.host, f"{self._proxy}: ")
        failure: OSError | None = None
        for destination in destinations:
            connection.address = f"{Target(str(destination), port)} via {self._proxy}"
            try:
                sock, _ = await self._race(proxy_addresses, self._proxy.port)
            except OSError as error:
                raise ProxyError(f"{self._proxy}: {_words(error)}", retryable=True) from error
            try:
                host, dialled = destination, port
                if not isinstance(destination, str):
                    text, dialled = self._reroute(str(destination), port)
                    host = ip_address(text)
                await open_tunnel(self._proxy, sock, host, dialled)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock, destination
        raise failure or OSError("nothing to connect to")

    async def _race(self, addresses: list[Address], port: int) -> tuple[socket.socket, Address]:
        """Connect to the first of the addresses that answers (RFC 8305)."""
        made: dict[socket.socket, Address] = {}
        dialled = {self._reroute(str(address), port): address for address in addresses}

        def make(info: tuple[Any, ...]) -> socket.socket:
            sock = socket.socket(family=info[0], type=info[1], proto=info[2])
            made[sock] = dialled[info[4][:2]]
            return sock

        infos = [
            (
                socket.AF_INET6 if ":" in host else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (host, dialled_port, 0, 0) if ":" in host else (host, dialled_port),
            )
            for host, dialled_port in dialled
        ]
        try:
            winner = await aiohappyeyeballs.start_connection(
                infos, happy_eyeballs_delay=_HEAD_START, interleave=1, socket_factory=make
            )
        except RuntimeError as error:  # by which uvloop can mean the same as by an OSError
            raise OSError(str(error)) from error
        return winner, made[winner]

    async def _secure(self, sock: socket.socket, connection: Connection, patience: float) -> _Line:
        """Make TLS of a connected socket, and sure that it leads to whom we mean."""
        loop = asyncio.get_running_loop()
        try:
            transport, line = await loop.create_connection(
                lambda: _Line(loop, connection),
                sock=sock,
                ssl=connection.tls,
                server_hostname=_certificate_name(connection.tls_name),
                ssl_handshake_timeout=patience,
            )
        except OSError as error:
            self._tell(connection, error)
            raise
        self._tell(connection, transport.get_extra_info("ssl_object"))
        return line

    def _tell(self, connection: Connection, ended: ssl.SSLObject | OSError) -> None:
        """Tell who wants to know how a handshake ended."""
        if self._on_handshake is None:
            return
        checked = connection.tls.verify_mode is ssl.CERT_REQUIRED
        chain: Sequence[Mapping[str, Any]] = ()
        version, problem = None, None
        match ended:
            case CertificateError():
                chain, problem = ended.chain, ended.problem
            case ssl.SSLObject():
                chain, version = shown_chain(ended, trusted=checked), ended.version()
        self._on_handshake(
            Handshake(
                target=connection.target,
                address=connection.address,
                tls_name=connection.tls_name,
                checked=checked,
                version=version,
                chain=tuple(map(Certificate.read, chain)),
                problem=problem,
            )
        )


def _certificate_name(tls_name: str) -> str:
    """The trailing dot of an absolute DNS name is not part of a certificate."""
    return tls_name.removesuffix(".")


def _check_tls_name(connection: Connection) -> None:
    """Raise `UnreachableError` for a name that Python takes for no host's.

    A redirect may lead to one. asyncio would find out with the socket open, and leave it open.
    """
    name = _certificate_name(connection.tls_name)
    try:
        connection.tls.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except ValueError:
        raise UnreachableError(
            f"{connection.target}: no certificate can be for {name!r:.100}", stage=Stage.TLS
        ) from None


def _may_be_reused(line: _Line, connection: Connection) -> bool:
    # aiohttp before 3.14.1 does not ask by which name the certificate was checked, and none asks
    # whether the remote has sent something that would pass for the answer to the next request.
    return line.tls_name == connection.tls_name and not line.should_close


def _not_connected(error: OSError) -> UnreachableError:
    match error:
        case ProxyError():
            return UnreachableError(str(error), stage=Stage.CONNECT, retryable=error.retryable)
        case UnreachableError():
            return error
    return UnreachableError(_words(error), stage=Stage.CONNECT, retryable=True)


def _not_secured(error: OSError) -> UnreachableError:
    match error:
        case CertificateError():
            return UnreachableError(str(error), stage=Stage.TLS)
        case ssl.SSLError():
            words = (error.reason or str(error)).replace("_", " ").lower()
        case _:
            words = _words(error)
    return UnreachableError(f"TLS failed: {words}", stage=Stage.TLS, retryable=True)


def _words(error: OSError) -> str:
    """One short line: asyncio's own holds addresses, in the form of a Python tuple, or nothing."""
    if error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or "the remote hung up"
