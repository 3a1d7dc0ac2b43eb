"""One question to the name servers: by UDP, and by TCP where the answer does not fit."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import deque

from invite_client.net.answers import Answer, Kind, Query, UnusableError
from invite_client.net.dns import DnsAbsentError, DnsFailedError
from invite_client.policy import DnsPolicy

__all__ = ["NameServers"]

_MOST = 65_535
_PORT = 53
_TRUNCATED = 0x02
"""In the third byte of an answer."""
_STRANGERS = 16
"""Datagrams that are no answer, after which the question is asked by TCP: somebody knows the port and
guesses the ID, of which there are 65,536, or keeps this loop from doing anything else."""


class NameServers:
    """The name servers of a policy, or those of this system."""

    def __init__(self, policy: DnsPolicy) -> None:
        """Ask nothing yet. Raises `DnsFailedError` if there is nobody to ask."""
        self._timeout = policy.timeout
        self._servers = list(policy.servers) or _of_this_system()

    async def ask(self, name: str, kind: Kind) -> Answer:
        """Return the records.

        Raises `DnsAbsentError` if there are none, `DnsFailedError` if that cannot be known.
        """
        query = Query(name, kind)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        waiting = deque(self._servers)
        if len(waiting) > 1:
            # In any order, so that one that is dead does not cost everybody its time.
            random.shuffle(waiting)
        faults: set[str] = set()
        while waiting:
            left = deadline - loop.time()
            if left <= 0:
                raise query.failed(f"no name server answered within {self._timeout:g} s")
            server = waiting.popleft()
            try:
                # A dead one costs half the time, not all of it.
                async with asyncio.timeout(min(left, self._timeout / 2)):
                    return await _ask_one(server, query)
            except DnsAbsentError:
                raise
            except TimeoutError:
                waiting.append(server)  # a datagram may be lost
            except OSError as error:
                faults.add(error.strerror or type(error).__name__)
            except UnusableError as error:
                faults.add(str(error))
        raise query.failed(", ".join(sorted(faults)) or "no usable name server")


def _of_this_system() -> list[tuple[str, int]]:
    # Imported when first used: dnspython takes as long to import as aiohttp.
    import dns.resolver  # noqa: PLC0415

    try:
        return [(str(address), _PORT) for address in dns.resolver.Resolver().nameservers]
    except dns.resolver.NoResolverConfiguration:
        raise DnsFailedError("this system names no name server (dns.nameservers)") from None
    except ValueError as error:
        raise DnsFailedError(
            f"this system's name servers cannot be read (dns.nameservers): {error}"
        ) from None


async def _ask_one(server: tuple[str, int], query: Query) -> Answer:
    data = await _ask_by_udp(server, query)
    if data is None or data[2] & _TRUNCATED:
        data = await _ask_by_tcp(server, query)
    return query.read(data)


async def _ask_by_udp(server: tuple[str, int], query: Query) -> bytes | None:
    """Return the answer; None if there are too many that are none."""
    loop = asyncio.get_running_loop()
    # A socket for each question: what the system draws is a port that nobody can guess (RFC 5452
    # § 9.2), and it lets through only what comes from the server that was asked.
    with _socket(server, socket.SOCK_DGRAM) as sock:
        sock.connect(server)
        number = _draw()
        sock.send(query.encode(number))
        for _ in range(_STRANGERS):
            data = await loop.sock_recv(sock, _MOST)
            if query.is_answered(number, data):
                return data
    return None


async def _ask_by_tcp(server: tuple[str, int], query: Query) -> bytes:
    """RFC 7766 § 8: two bytes of length come first, either way."""
    loop = asyncio.get_running_loop()
    with _socket(server, socket.SOCK_STREAM) as sock:
        await loop.sock_connect(sock, server)
        number = _draw()
        question = query.encode(number)
        await loop.sock_sendall(sock, len(question).to_bytes(2) + question)
        data = await _receive(sock, int.from_bytes(await _receive(sock, 2)))
    if not query.is_answered(number, data):
        raise UnusableError("an answer to another question")
    return data


def _socket(server: tuple[str, int], kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, kind)
    sock.setblocking(False)
    return sock


def _draw() -> int:
    return int.from_bytes(os.urandom(2))


async def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = await asyncio.get_running_loop().sock_recv(sock, count - len(data))
        if not piece:
            raise UnusableError("the connection ended before the answer")
        data += piece
    return bytes(data)
