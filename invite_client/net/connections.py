"""Opens every connection of this package: look-up, gate, race or tunnel, TLS.

Three things must be exact: that the gate judges the very addresses that are connected to, which of
a target's addresses is tried next when one fails, and whose name the certificate bears.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import aiohappyeyeballs

from invite_client.errors import ForbiddenByPolicyError, Stage, UnreachableError
from invite_client.net.addresses import AddressGate, AddressRefusedError
from invite_client.net.dns import Address, Dns, DnsAbsentError
from invite_client.net.handshakes import Certificate, Handshake
from invite_client.net.lines import Line, Way
from invite_client.net.proxies import Destination, Proxy, ProxyError, is_onion, open_tunnel
from invite_client.net.tls import CertificateError, shown_chain
from invite_client.net.wires import Earlier, Sessions, Wire
from invite_client.policy import Limits
from invite_client.spec.discovery import Target

__all__ = ["Connection", "Connector", "OnHandshake", "Reroute"]

Reroute = Callable[[str, int], tuple[str, int]]
"""From the address and port that are dialled to those that are connected to."""
OnHandshake = Callable[[Handshake], None]
"""Called with each TLS handshake that has ended."""

_HOST = re.compile(r"[A-Za-z0-9._-]+")
_NAME = re.compile(r"[A-Za-z0-9._-]*[A-Za-z]")
"""What is certainly no address: to find that out by trying takes ten times as long."""
_LABELS = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_LONGEST_NAME = 255  # RFC 6066 § 3 leaves it to DNS
_HUNG_UP = "the remote hung up"
_HEAD_START = 0.25
"""Seconds before the next address is raced: the Connection Attempt Delay of RFC 8305 § 5."""


@dataclass(slots=True)
class Connection:
    """The connection that one request asks for, and what came of it."""

    target: Target
    """What to connect to."""
    tls: ssl.SSLContext
    """How the certificate is checked."""
    tls_name: str
    """The DNS name, or bare IP literal, that the certificate must be for."""
    proxy: Proxy | None
    """What it leads through."""
    waits: bool = False
    """Whether it is opened before there is a request. Who is not asked has nothing to say."""
    stage: Stage = Stage.DNS
    """What is being done."""
    address: str | None = None
    """The socket address that is used; all that were tried, until there is a connection."""
    reused: bool = False
    """Whether it was a kept-alive one."""
    sent: bool = False
    """Whether anything of the request went out."""

    @property
    def way(self) -> Way:
        """What two requests must have in common to go by one connection."""
        return self.target.host, self.target.port, self.tls_name, self.tls, self.proxy


class Connector:
    """Opens connections, directly or through a proxy."""

    def __init__(
        self,
        dns: Dns,
        gate: AddressGate,
        limits: Limits,
        *,
        patience: float,
        reroute: Reroute | None = None,
        on_handshake: OnHandshake | None = None,
    ) -> None:
        """`patience` is how many seconds a whole target is given."""
        self._dns = dns
        self._gate = gate
        self._limits = limits
        self._patience = patience
        self._reroute = reroute or (lambda address, port: (address, port))
        self._on_handshake = on_handshake
        # Whoever looks at handshakes wants to see certificates.
        self._sessions = Sessions(0 if on_handshake else limits.idle_connections)

    async def open(self, connection: Connection) -> Line:
        """Connect to one of the target's addresses, and go on to the others if TLS fails there.

        Raises `UnreachableError`, `ForbiddenByPolicyError`.
        """
        target = connection.target
        _check_tls_name(connection)
        connection.stage = Stage.DNS
        left = await self.destinations(connection)
        failures: list[UnreachableError] = []
        while left:
            connection.stage = Stage.CONNECT
            try:
                sock, address = await self._reach(left, connection)
            except OSError as error:
                failures.append(_not_connected(error))
                break
            connection.stage = Stage.TLS
            earlier = self._sessions.take(connection.way)
            goes_on = earlier is not None and earlier.session is not None
            # An address that hangs must not take the time of those that are left.
            is_last = len(left) == 1 and not goes_on
            patience = self._patience if is_last else self._patience / 2
            try:
                return await self._secure(sock, connection, patience, earlier)
            except OSError as error:
                failures.append(_not_secured(error))
                # What stands before some servers cannot bear a session, but a whole handshake.
                if not goes_on or isinstance(error, CertificateError):
                    left.remove(address)
        raise UnreachableError(
            f"{target}: " + "; ".join(dict.fromkeys(error.message for error in failures)),
            stage=failures[0].stage,  # the furthest: a failure to connect ends the loop
            retryable=any(error.retryable for error in failures),
        )

    async def destinations(self, connection: Connection) -> list[Destination]:
        """Return what may be connected to: the addresses that pass the gate, or a name for Tor.

        Raises `UnreachableError`, `ForbiddenByPolicyError`.
        """
        target = connection.target
        if is_onion(target.host):
            if connection.proxy is None:
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
            if not _NAME.fullmatch(host):
                return [ip_address(host)]
        except ValueError:
            if not _HOST.fullmatch(host):
                raise UnreachableError(
                    f"{what}{host!r:.100} is not a host name", stage=Stage.DNS
                ) from None
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
        port, proxy = connection.target.port, connection.proxy
        if proxy is None:
            addresses = [address for address in destinations if not isinstance(address, str)]
            connection.address = ", ".join(str(Target(str(a), port)) for a in addresses)
            sock, reached = await self._race(addresses, port)
            connection.address = str(Target(str(reached), port))
            return sock, reached

        proxy_addresses = await self._addresses(proxy.host, f"{proxy}: ")
        failure: OSError | None = None
        for destination in destinations:
            connection.address = f"{Target(str(destination), port)} via {proxy}"
            try:
                sock, _ = await self._race(proxy_addresses, proxy.port)
            except OSError as error:
                raise ProxyError(f"{proxy}: {_words(error)}", retryable=True) from error
            try:
                host, dialled = destination, port
                if not isinstance(destination, str):
                    text, dialled = self._reroute(str(destination), port)
                    host = ip_address(text)
                await open_tunnel(proxy, sock, host, dialled)
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
            if len(infos) == 1:
                winner = await _connect(make(infos[0]), infos[0][4])
            else:
                winner = await aiohappyeyeballs.start_connection(
                    infos, happy_eyeballs_delay=_HEAD_START, interleave=1, socket_factory=make
                )
        except RuntimeError as error:  # by which uvloop can mean the same as by an OSError
            raise OSError(str(error)) from error
        return winner, made[winner]

    async def _secure(
        self,
        sock: socket.socket,
        connection: Connection,
        patience: float,
        earlier: Earlier | None,
    ) -> Line:
        """Make TLS of a connected socket, and sure that it leads to whom we mean."""
        name = _certificate_name(connection.tls_name)

        def make() -> Line:
            way, address = connection.way, connection.address
            return Line(way, address, self._limits, may_speak=not connection.waits)

        try:
            session = None if earlier is None else earlier.session
            wire = Wire(sock, connection.tls, name, session)
            try:
                await wire.shake_hands(patience)
            except NotImplementedError:
                return await self._secure_by_loop(sock, connection, make, name, patience)
        except OSError as error:
            self._tell(connection, error)
            raise
        line = make()
        if earlier is None:
            wire.begin(line)
        else:
            since = earlier.since if wire.tls.session_reused else time.monotonic()
            wire.begin(line, lambda ended: self._sessions.keep(line.way, ended, since))
        self._tell(connection, wire.tls)
        return line

    async def _secure_by_loop(
        self,
        sock: socket.socket,
        connection: Connection,
        make: Callable[[], Line],
        name: str,
        patience: float,
    ) -> Line:
        """Do the same where the loop cannot watch sockets, as Windows' default one cannot."""
        transport, line = await asyncio.get_running_loop().create_connection(
            make,
            sock=sock,
            ssl=connection.tls,
            server_hostname=name,
            ssl_handshake_timeout=patience,
        )
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


async def _connect(sock: socket.socket, address: Any) -> socket.socket:
    """Connect a socket, or close it."""
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def _certificate_name(tls_name: str) -> str:
    """The trailing dot of an absolute DNS name is not part of a certificate."""
    return tls_name.removesuffix(".")


def _check_tls_name(connection: Connection) -> None:
    """Raise `UnreachableError` for a name that Python takes for no host's.

    A redirect may lead to one. OpenSSL would find out with the socket open.
    """
    name = _certificate_name(connection.tls_name)
    if _LABELS.fullmatch(name) and len(name) < _LONGEST_NAME:
        return
    try:
        connection.tls.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=name)
    except (ValueError, ssl.SSLError):
        raise UnreachableError(
            f"{connection.target}: no certificate can be for {name!r:.100}", stage=Stage.TLS
        ) from None


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
        case ssl.SSLEOFError():
            words = _HUNG_UP
        case ssl.SSLError():
            words = (error.reason or str(error)).replace("_", " ").lower()
        case _:
            words = _words(error)
    return UnreachableError(f"TLS failed: {words}", stage=Stage.TLS, retryable=True)


def _words(error: OSError) -> str:
    """One short line: asyncio's own holds addresses, in the form of a Python tuple, or nothing."""
    if error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or _HUNG_UP
