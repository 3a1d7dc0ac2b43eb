"""An internet of its own on loopback: names, addresses, ports and one certificate authority."""

from __future__ import annotations

import errno
import random
import socket
import tempfile
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import trustme

from invite_client.client import InviteClient
from invite_client.interfaces import Transport
from invite_client.net.http import HttpTransport
from invite_client.policy import AddressPolicy, DnsPolicy, Policy, TlsPolicy
from invite_client.spec.signatures import SigningKey
from invite_client.testing.nameserver import NameServer
from invite_client.testing.rooms import INVITER, INVITER_KEY

__all__ = ["IpVersion", "LoopbackNetwork", "random_address"]

IpVersion: TypeAlias = Literal[4, 6]

_BACKLOG = 256
"""Connections that wait to be accepted."""
_LOOPBACK = ("127.0.0.0/8", "::1/128")


def random_address() -> str:
    """Return an address of 127.0.0.0/8 that probably nobody uses: there are 16 million."""
    # 127.0.0.0/16 is where other people's things are: name servers, and what Debian calls itself.
    return f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"


class LoopbackNetwork:
    """Real sockets on loopback, for homeservers with the names and ports of the real world.

        async with LoopbackNetwork() as network:
            async with LoopbackHomeserver("one.example", network=network) as one: ...

    Every host has an address of its own, so all of them can listen on port 8448. Where that is not
    possible (port 443 for an ordinary user; systems on which 127.0.0.0/8 is one address), the host
    listens elsewhere, and the network's own clients are rerouted where they dial: `reroute`.

    Homeservers enter the network that they are in; it is up until the last who entered has left.
    """

    def __init__(self, *, own_addresses: bool | None = None) -> None:
        """Prepare a network; nothing listens yet.

        `own_addresses` says whether this system lets a program listen on any address of
        127.0.0.0/8; None finds out.
        """
        self.dns: NameServer = NameServer()
        """The name server: add records, make it fail, see what it was asked."""
        self.ca: trustme.CA = trustme.CA()
        """The authority that the network's clients trust."""
        self._own_addresses = (
            _can_bind(random_address()) if own_addresses is None else own_addresses
        )
        self._hosts: dict[str, list[str]] = {}
        self._routes: dict[tuple[str, int], tuple[str, int]] = {}
        self._transports: list[HttpTransport] = []
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._nowhere: socket.socket | None = None
        self._entered = 0

    async def __aenter__(self) -> Self:
        if not self._entered:
            self._directory = tempfile.TemporaryDirectory(prefix="invite_client-")
            self.ca.cert_pem.write_to_path(str(self.ca_file))
            # Bound, but not listening: whoever connects is refused.
            self._nowhere = socket.socket()
            self._nowhere.bind(("127.0.0.1", 0))
            await self.dns.start()
        self._entered += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if self._entered:
            return
        for transport in self._transports:
            await transport.aclose()
        self._transports.clear()
        await self.dns.stop()
        if self._nowhere is not None:
            self._nowhere.close()
        if self._directory is not None:
            self._directory.cleanup()
        self._directory = self._nowhere = None

    @property
    def ca_file(self) -> Path:
        """The certificate of `ca` in a PEM file."""
        if self._directory is None:
            raise RuntimeError("enter the network first: async with LoopbackNetwork() as network")
        return Path(self._directory.name) / "ca.pem"

    # --- Servers --------------------------------------------------------------------------------

    def host(self, name: str, families: tuple[IpVersion, ...] = (4,)) -> list[str]:
        """Return the addresses of a host; a new one gets an address, and A and AAAA records.

        There is only one IPv6 address on loopback, ``::1``, which hosts have to share. An IP
        literal is its own address.
        """
        try:
            return [str(ip_address(name))]
        except ValueError:
            pass
        if name not in self._hosts:
            self._hosts[name] = []
            for family in families:
                address = "::1" if family == 6 else random_address()
                self.dns.add(name, "AAAA" if family == 6 else "A", address)
                self._hosts[name].append(address)
        return self._hosts[name]

    def listen(self, address: str, port: int) -> socket.socket:
        """Return a listening socket for what is dialled as this address and port."""
        if (address, port) in self._routes:
            raise OSError(errno.EADDRINUSE, f"{address} port {port} is taken in this network")
        real = address if self._own_addresses or address == "::1" else "127.0.0.1"
        made = None
        if real == address:
            try:
                made = _listening(real, port)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EPERM, errno.EADDRINUSE):
                    raise
        made = made or _listening(real, 0)
        self._routes[address, port] = made.getsockname()[:2]
        return made

    def close(self, address: str, port: int) -> None:
        """Forget that there was somebody listening."""
        self._routes.pop((address, port), None)

    # --- Clients --------------------------------------------------------------------------------

    def reroute(self, address: str, port: int) -> tuple[str, int]:
        """Return the address and port to connect to for the ones that are dialled."""
        route = self._routes.get((address, port))
        if route is not None:
            return route
        if self._own_addresses or self._nowhere is None or not address.startswith("127."):
            return address, port
        nowhere: tuple[str, int] = self._nowhere.getsockname()
        return nowhere

    def policy(self, **overrides: Any) -> Policy:
        """Return a policy with the network's name server and authority, and loopback allowed."""
        parts: dict[str, Any] = {
            "tls": TlsPolicy(ca_file=str(self.ca_file)),
            "dns": DnsPolicy(nameservers=(self.dns.address,), port=self.dns.port),
            "addresses": AddressPolicy(allowed=_LOOPBACK),
        }
        return Policy(**{**parts, **overrides})

    def transport(self, policy: Policy | None = None) -> HttpTransport:
        """Return a transport that is rerouted. The network closes it."""
        transport = HttpTransport(policy or self.policy(), reroute=self.reroute)
        self._transports.append(transport)
        return transport

    def client(
        self,
        server_name: str = INVITER,
        signing_key: SigningKey = INVITER_KEY,
        *,
        policy: Policy | None = None,
        **options: Any,
    ) -> InviteClient:
        """Return a client in this network; `options` are those of `InviteClient`."""
        return _Client(self, server_name, signing_key, policy=policy or self.policy(), **options)


class _Client(InviteClient):
    """Makes, and closes, a transport that is rerouted."""

    def __init__(self, network: LoopbackNetwork, *args: Any, **options: Any) -> None:
        self._network = network
        super().__init__(*args, **options)

    def _own_transport(self) -> Transport:
        transport = HttpTransport(self.policy, reroute=self._network.reroute)
        self._owned.append(transport.aclose)
        return transport


def _listening(address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(_BACKLOG)
    except BaseException:
        made.close()
        raise
    made.setblocking(False)
    return made


def _can_bind(address: str) -> bool:
    try:
        _listening(address, 0).close()
    except OSError:
        return False
    return True
