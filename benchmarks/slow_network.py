"""A network with a delay: a relay before the servers, and the DNS of all their names.

    python -m benchmarks.slow_network DIRECTORY SECONDS

`SECONDS` is one round trip to the addresses of the relay and, for the names of the slow zone, to
the name server. A connection of TCP costs one, and then each direction costs a half. The kernel
completes a handshake on loopback at once, so the relay holds back what a client says until one
round trip after it came: to the client, who speaks first, that is the same.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from typing import cast

from benchmarks.children import reply
from benchmarks.scenario import FAST_ADDRESS, SLOW_ADDRESS, Peer
from invite_client.net.answers import Query

_A, _SRV = 1, 33
_TTL = 3600
_MOST = 65_535
_PATIENCE = 10.0
"""Seconds after which nobody answers."""


class _Half(asyncio.Protocol):
    """One end of a relayed connection. What comes in here goes out at the other end, later."""

    def __init__(self, delay: float, held_for: float = 0.0) -> None:
        self.delay = delay
        self.loop = asyncio.get_running_loop()
        self.not_before = self.loop.time() + held_for
        self.other: asyncio.Future[asyncio.Transport] = self.loop.create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.later(lambda other: other.write(data))

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  # either way it ends
        self.later(lambda other: other.close())

    def later(self, act: Callable[[asyncio.Transport], None]) -> None:
        when = max(self.loop.time(), self.not_before) + self.delay

        def deliver() -> None:
            if self.other.cancelled():
                return
            if self.other.done():
                act(self.other.result())
            else:
                self.other.add_done_callback(lambda done: act(done.result()))

        self.loop.call_at(when, deliver)


class _Client(_Half):
    """The client's end; opens the server's."""

    def __init__(self, round_trip: float, port: int, tasks: set[asyncio.Task[None]]) -> None:
        super().__init__(round_trip / 2, held_for=round_trip)
        self.port = port
        self.tasks = tasks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        task = self.loop.create_task(self.connect(cast(asyncio.Transport, transport)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def connect(self, transport: asyncio.Transport) -> None:
        half = _Half(self.delay)
        half.other.set_result(transport)
        server, _ = await self.loop.create_connection(lambda: half, FAST_ADDRESS, self.port)
        self.other.set_result(server)


class _Dns(asyncio.DatagramProtocol):
    """Answers A and SRV from the zone; that there is nothing of the kind, to all else."""

    def __init__(self, peer: Peer, round_trip: float) -> None:
        self.peer = peer
        self.round_trip = round_trip
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str | int, int]) -> None:
        end, labels = 12, []
        while length := data[end]:
            labels.append(data[end + 1 : end + 1 + length].decode("ascii").lower())
            end += 1 + length
        name = ".".join(labels)
        (kind,) = struct.unpack_from("!H", data, end + 1)
        question = data[12 : end + 5]
        answers = self.answers(name, kind)
        # The same ID; an authoritative response without error; one question, so many answers.
        head = data[:2] + struct.pack("!HHHHH", 0x8580, 1, len(answers), 0, 0)
        response = head + question + b"".join(answers)
        delay = self.round_trip if name.endswith(".slow.example") else 0.0
        if delay:
            asyncio.get_running_loop().call_later(delay, self.send, response, address)
        else:
            self.send(response, address)

    def send(self, response: bytes, address: tuple[str | int, int]) -> None:
        assert self.transport is not None  # noqa: S101
        self.transport.sendto(response, address)

    def answers(self, name: str, kind: int) -> list[bytes]:
        match kind:
            case 1:
                found = [a for suffix, a in self.peer.addresses.items() if name.endswith(suffix)]
                return [_record(_A, IPv4Address(address).packed) for address in found[:1]]
            case 33 if name in self.peer.srv:
                port, target = self.peer.srv[name]
                return [_record(_SRV, struct.pack("!HHH", 10, 5, port) + _name(target))]
        return []


def bare_look_up(port: int) -> float:
    """Seconds that a round trip takes here: a question to the slow name server, and its answer."""
    query = Query("bare.slow.example", "A").encode(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect((FAST_ADDRESS, port))
        began = time.perf_counter()
        sock.send(query)
        sock.recv(_MOST)
        return time.perf_counter() - began


def _record(kind: int, data: bytes) -> bytes:
    # 0xC00C: the name of the question.
    return struct.pack("!HHHIH", 0xC00C, kind, 1, _TTL, len(data)) + data


def _name(name: str) -> bytes:
    labels = [label.encode("ascii") for label in name.split(".")]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _loop() -> asyncio.AbstractEventLoop:
    # `epoll` waits for whole milliseconds, rounded up, and one invite waits sixteen times.
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _main(directory: str, round_trip: float) -> None:
    peer = Peer.load(directory)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    relay = await loop.create_server(
        lambda: _Client(round_trip, peer.port, tasks),
        [SLOW_ADDRESS, *peer.literals],
        peer.port,
        backlog=1024,
    )
    dns, _ = await loop.create_datagram_endpoint(
        lambda: _Dns(peer, round_trip), (FAST_ADDRESS, peer.dns_port)
    )
    reply(ready=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        reply(ok=True)
    dns.close()
    relay.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(_main(sys.argv[1], float(sys.argv[2])))
