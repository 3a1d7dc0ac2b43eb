"""One question to the name servers: by UDP, and by TCP where the answer does not fit."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from invite_client.net.answers import Answer, Kind, Query, UnusableError
from invite_client.net.dns import DnsAbsentError, DnsFailedError
from invite_client.policy import DnsPolicy

__all__ = ["Asking", "NameServers"]

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

    def begin(self, name: str, kind: Kind) -> Asking:
        """Ask. Raises `DnsAbsentError` for what no zone can hold."""
        return Asking(Query(name, kind), self._servers, self._timeout)


class Asking:
    """One question, which goes out at once. To be closed, in the event loop in which it began."""

    def __init__(self, query: Query, servers: Sequence[tuple[str, int]], timeout: float) -> None:
        self._query, self._timeout = query, timeout
        self._deadline = asyncio.get_running_loop().time() + timeout
        self._waiting = deque(servers)
        if len(servers) > 1:
            # In any order, so that one that is dead does not cost everybody its time.
            random.shuffle(self._waiting)
        self._sent: _Datagram | None = None
        with suppress(OSError, IndexError):  # the next one will tell, or that there is no server
            self._sent = _Datagram(self._waiting[0], query)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._sent is not None:
            self._sent.close()

    async def answer(self) -> Answer:
        """Return the records.

        Raises `DnsAbsentError` if there are none, `DnsFailedError` if that cannot be known.
        """
        loop = asyncio.get_running_loop()
        faults: set[str] = set()
        while self._waiting:
            left = self._deadline - loop.time()
            if left <= 0:
                raise self._query.failed(f"no name server answered within {self._timeout:g} s")
            server = self._waiting.popleft()
            try:
                # A dead one costs half the time, not all of it.
                async with asyncio.timeout(min(left, self._timeout / 2)):
                    return await self._ask(server)
            except DnsAbsentError:
                raise
            except TimeoutError:
                self._waiting.append(server)  # a datagram may be lost
            except OSError as error:
                faults.add(error.strerror or type(error).__name__)
            except UnusableError as error:
                faults.add(str(error))
        raise self._query.failed(", ".join(sorted(faults)) or "no usable name server")

    async def _ask(self, server: tuple[str, int]) -> Answer:
        sent, self._sent = self._sent or _Datagram(server, self._query), None
        with sent:
            data = await sent.answer()
        if data is None or data[2] & _TRUNCATED:
            data = await _ask_by_tcp(server, self._query)
        return self._query.read(data)


class _Datagram:
    """A question that is on its way to one server, by UDP."""

    def __init__(self, server: tuple[str, int], query: Query) -> None:
        # A socket for each question: what the system draws is a port that nobody can guess (RFC 5452
        # § 9.2), and it lets through only what comes from the server that was asked.
        self._query, self._number = query, _draw()
        self._sock = _socket(server, socket.SOCK_DGRAM)
        try:
            self._sock.connect(server)
            self._sock.send(query.encode(self._number))
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    async def answer(self) -> bytes | None:
        """Return the answer; None if there are too many that are none."""
        for _ in range(_STRANGERS):
            data = await asyncio.get_running_loop().sock_recv(self._sock, _MOST)
            if self._query.is_answered(self._number, data):
                return data
        return None


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
