"""Real proxies on loopback: HTTP CONNECT and SOCKS5."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.net.servers import Server, Visit


@dataclass
class Proxying:
    """What a proxy does, and what it was asked."""

    credentials: tuple[str, str] | None = None
    """The user and password that it wants."""
    names: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Names, or addresses, that it resolves itself; what is not here is connected to as it is."""
    refuses: dict[str, int] = field(default_factory=dict)
    """Hosts that it does not connect to, and the status or code that it says so with."""
    asked: list[tuple[str, int]] = field(default_factory=list)
    said: bytes = b""
    """Everything that clients have said to it, before and inside of the tunnel."""
    given: list[str] = field(default_factory=list)
    """The credentials that were given."""

    async def connect(self, visit: Visit) -> None:
        """HTTP CONNECT (RFC 9110 § 9.3.6)."""
        head = await visit.reader.readuntil(b"\r\n\r\n")
        self.said += head
        method, authority, _ = head.split(b"\r\n")[0].decode().split(" ")
        assert "CONNECT" == method
        assert f"Host: {authority}".encode() in head.split(b"\r\n")
        for line in head.split(b"\r\n"):
            if line.startswith(b"Proxy-Authorization: Basic "):
                self.given.append(base64.b64decode(line.split()[-1]).decode())
        if self.credentials and self.given[-1:] != [":".join(self.credentials)]:
            await visit.send(b"HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n")
            return
        host, _, port = authority.rpartition(":")
        await self.tunnel(
            visit,
            host.strip("[]"),
            int(port),
            lambda status: b"HTTP/1.1 %d X\r\nVia: us\r\n\r\n" % (status or 200),
        )

    async def socks5(self, visit: Visit) -> None:
        """SOCKS5 (RFC 1928), with a user and a password (RFC 1929) if it wants them."""
        read = visit.reader.readexactly
        version, count = await read(2)
        assert 5 == version
        methods = await read(count)
        method = 2 if self.credentials else 0
        if method not in methods:
            await visit.send(b"\x05\xff")
            return
        await visit.send(bytes([5, method]))
        if method == 2:
            (_, length) = await read(2)
            user = (await read(length)).decode()
            (length,) = await read(1)
            self.given.append(f"{user}:{(await read(length)).decode()}")
            right = self.given[-1] == ":".join(self.credentials or ())
            await visit.send(bytes([1, 0 if right else 1]))
            if not right:
                return
        assert b"\x05\x01\x00" == await read(3)
        match await read(1):
            case b"\x01":
                host = str(ipaddress.IPv4Address(await read(4)))
            case b"\x04":
                host = str(ipaddress.IPv6Address(await read(16)))
            case b"\x03":
                (length,) = await read(1)
                host = (await read(length)).decode()
        (port,) = struct.unpack("!H", await read(2))
        # It says by name from where it connects, which is allowed and rarely seen.
        await self.tunnel(
            visit, host, port, lambda code: bytes([5, code, 0, 3, 2]) + b"me" + b"\0\0"
        )

    async def tunnel(
        self, visit: Visit, host: str, port: int, answer: Callable[[int], bytes]
    ) -> None:
        self.asked.append((host, port))
        if host in self.refuses:
            await visit.send(answer(self.refuses[host]))
            return
        reader, writer = await asyncio.open_connection(*self.names.get(host, (host, port)))
        try:
            await visit.send(answer(0))
            there = asyncio.create_task(self._pipe(visit.reader, writer))
            await self._pipe(reader, visit.writer, listen=False)
            there.cancel()
        finally:
            writer.transport.abort()

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, listen: bool = True
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if listen:
                    self.said += data
                writer.write(data)
                await writer.drain()
        writer.close()


def proxy_server(scheme: str, proxying: Proxying) -> Server:
    return Server(proxying.socks5 if scheme == "socks5" else proxying.connect)
