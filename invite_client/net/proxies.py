"""Proxies: which one a connection goes through, and how it is asked for a tunnel.

HTTP CONNECT (RFC 9110 § 9.3.6) and SOCKS5 (RFC 1928, RFC 1929), spoken over a connected socket. TLS
with the remote comes after, through the tunnel: a proxy sees names and sizes, never a request.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TypeAlias
from urllib.parse import unquote_to_bytes, urlsplit

from invite_client.policy import ProxyPolicy

__all__ = ["Destination", "Proxy", "ProxyError", "Routes", "is_onion", "open_tunnel"]

Destination: TypeAlias = IPv4Address | IPv6Address | str
"""What a proxy is asked to connect to: an address, or a name that it resolves itself."""

_MAX_HEAD = 16 * 1024
"""Bytes of a proxy's answer to CONNECT."""

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")


_ENTRY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:]+))(?::([0-9]{1,5}))?")
"""Host and port: an IPv6 address has colons of its own, and brackets if there is a port."""


class ProxyError(OSError):
    """The proxy did not open the tunnel."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and what it asks of those who use it. `str()` shows no credentials."""

    scheme: str
    host: str
    port: int
    user: bytes = field(default=b"", repr=False)
    password: bytes = field(default=b"", repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """Read a URL that `ProxyPolicy` has checked."""
        parts = urlsplit(url)
        return cls(
            parts.scheme,
            parts.hostname or "",
            parts.port or 0,
            unquote_to_bytes(parts.username or ""),
            unquote_to_bytes(parts.password or ""),
        )

    def __str__(self) -> str:
        return f"the proxy {_authority(self.host, self.port)}"


class Routes:
    """Decides by names which proxy a connection goes through."""

    def __init__(self, policy: ProxyPolicy) -> None:
        self._proxy = Proxy.parse(policy.url) if policy.url else None
        self._onion = Proxy.parse(policy.onion) if policy.onion else self._proxy
        self._bypass = [_Bypass.parse(entry) for entry in policy.bypass]

    @property
    def are_direct(self) -> bool:
        """Whether names need not be looked at: but for Tor, there is no proxy."""
        return self._proxy is None

    def proxy_for(self, target: str, port: int, *names: str) -> Proxy | None:
        """Return the proxy for a target by which any of `names` is reached; None is directly."""
        if is_onion(target):
            return self._onion
        if self._proxy is None:
            return None
        is_direct = any(
            entry.covers(name, port) for entry in self._bypass for name in (target, *names)
        )
        return None if is_direct else self._proxy


@dataclass(frozen=True, slots=True)
class _Bypass:
    """One entry of a list of what is reached directly."""

    what: ipaddress.IPv4Network | ipaddress.IPv6Network | str
    """Addresses, or the end of names, with a dot before it."""
    port: int | None = None

    @classmethod
    def parse(cls, entry: str) -> _Bypass:
        match = _ENTRY.fullmatch(entry)
        bare, port = (match[1] or match[2], int(match[3])) if match and match[3] else (entry, None)
        try:
            return cls(ipaddress.ip_network(bare.strip("[]"), strict=False), port)
        except ValueError:
            return cls("" if bare == "*" else "." + bare.lower().strip("."), port)

    def covers(self, name: str, port: int) -> bool:
        if self.port not in (None, port):
            return False
        # As it is written: the zone of a name, which is a stranger's, must not choose the way out.
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            address = None
        if isinstance(self.what, str):
            # No name is the end of an address.
            is_ours = address is None or not self.what
            return is_ours and f".{name.lower().rstrip('.')}".endswith(self.what)
        return address is not None and address in self.what


def is_onion(name: str) -> bool:
    """Whether a name exists in Tor only, and must not be asked for in DNS (RFC 7686)."""
    return name.lower().rstrip(".").endswith(".onion")


async def open_tunnel(proxy: Proxy, sock: socket.socket, host: Destination, port: int) -> None:
    """Have the proxy at the other end of `sock` connect it to `host`. Raises `OSError`."""
    handshake = _socks5 if proxy.scheme == "socks5" else _connect
    await handshake(proxy, sock, host, port)


# --- HTTP CONNECT -------------------------------------------------------------------------------


async def _connect(proxy: Proxy, sock: socket.socket, host: Destination, port: int) -> None:
    loop = asyncio.get_running_loop()
    authority = _authority(str(host), port)
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.user:
        credentials = base64.b64encode(proxy.user + b":" + proxy.password).decode()
        lines.append(f"Proxy-Authorization: Basic {credentials}")
    await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())

    head = b""
    while b"\r\n\r\n" not in head:
        chunk = await loop.sock_recv(sock, 4096)
        head += chunk
        if not chunk or len(head) > _MAX_HEAD:
            raise ProxyError(f"{proxy} gave no answer that is HTTP", retryable=True)
    match = _STATUS_LINE.match(head)
    if match is None:
        raise ProxyError(f"{proxy} gave no answer that is HTTP", retryable=False)
    status = int(match[1])
    if status == 407:
        raise ProxyError(f"{proxy} wants other credentials (407)", retryable=False)
    if not 200 <= status < 300:
        raise ProxyError(f"{proxy} did not connect: status {status}", retryable=status >= 500)
    if head.partition(b"\r\n\r\n")[2]:
        # Nobody speaks before us in TLS, so this is not the remote's.
        raise ProxyError(f"{proxy} sent more than an answer", retryable=False)


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- SOCKS5 -------------------------------------------------------------------------------------

_VERSION, _NO_AUTH, _USER_PASSWORD, _CONNECT = 5, 0, 2, 1
_IPV4, _NAME, _IPV6 = 1, 3, 4

_SOCKS_FAILURES = {
    1: ("general failure", True),
    2: ("not allowed by its rules", False),
    3: ("network unreachable", True),
    4: ("host unreachable", True),
    5: ("connection refused", True),
    6: ("TTL expired", True),
    7: ("command not supported", False),
    8: ("kind of address not supported", False),
}
"""RFC 1928 § 6: what the code says, and whether it may pass."""


async def _socks5(proxy: Proxy, sock: socket.socket, host: Destination, port: int) -> None:
    loop = asyncio.get_running_loop()

    async def read(count: int) -> bytes:
        """Exactly so many bytes: what follows belongs to the remote."""
        data = b""
        while len(data) < count:
            chunk = await loop.sock_recv(sock, count - len(data))
            if not chunk:
                raise ProxyError(f"{proxy} hung up during the SOCKS handshake", retryable=True)
            data += chunk
        return data

    # RFC 1928 § 3
    methods = [_USER_PASSWORD, _NO_AUTH] if proxy.user else [_NO_AUTH]
    await loop.sock_sendall(sock, bytes([_VERSION, len(methods), *methods]))
    version, method = await read(2)
    if version != _VERSION:
        raise ProxyError(f"{proxy} does not speak SOCKS5", retryable=False)
    if method not in methods:
        raise ProxyError(f"{proxy} wants other credentials", retryable=False)
    if method == _USER_PASSWORD:
        # RFC 1929 § 2
        credentials = _with_length(proxy.user) + _with_length(proxy.password)
        await loop.sock_sendall(sock, b"\x01" + credentials)
        _, status = await read(2)
        if status != 0:
            raise ProxyError(f"{proxy} wants other credentials", retryable=False)

    # RFC 1928 § 4
    match host:
        case str():
            address = bytes([_NAME]) + _with_length(host.encode())
        case _:
            address = bytes([_IPV4 if isinstance(host, IPv4Address) else _IPV6]) + host.packed
    await loop.sock_sendall(
        sock, bytes([_VERSION, _CONNECT, 0]) + address + port.to_bytes(2, "big")
    )

    # RFC 1928 § 6
    version, code, _, kind = await read(4)
    if version != _VERSION:
        raise ProxyError(f"{proxy} does not speak SOCKS5", retryable=False)
    if code != 0:
        words, retryable = _SOCKS_FAILURES.get(code, (f"code {code}", True))
        raise ProxyError(f"{proxy} did not connect: {words}", retryable=retryable)
    # The address that the proxy connects from: of no use, but it stands before the tunnel.
    lengths = {_IPV4: 4, _IPV6: 16}
    length = (await read(1))[0] if kind == _NAME else lengths.get(kind)
    if length is None:
        raise ProxyError(f"{proxy} does not speak SOCKS5", retryable=False)
    await read(length + 2)


def _with_length(part: bytes) -> bytes:
    return bytes([len(part)]) + part
