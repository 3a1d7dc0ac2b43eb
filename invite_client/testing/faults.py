"""How the network, or the software of a remote, can fail. Values, given to `fails`.

    remote.fails(Hangs(), times=1)
    remote.fails(Drips(interval=0.1), endpoint="keys")

Those that a simulated homeserver can have are faults of the network; a loopback homeserver can have
all that happens once a connection stands. To let it refuse connections, stop it.
"""

from __future__ import annotations

import asyncio
import functools
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from invite_client.spec.http import Reply

__all__ = [
    "BreaksOff",
    "ClosesAfterAnswering",
    "ClosesBeforeTls",
    "DiesOnReuse",
    "Drips",
    "EndlessBody",
    "Fault",
    "GzipBomb",
    "Hangs",
    "HugeBody",
    "LosesTheAnswer",
    "ManyHeaders",
    "NeverCompletesTheHandshake",
    "Refuses",
    "Resets",
    "SaysRaw",
    "Slow",
    "TimesOut",
    "Unreachable",
    "Wire",
    "WireFault",
]

_CHUNK = 64 * 1024
_GZIP = 31
"""zlib's `wbits` for the gzip format with the largest window."""


class Wire(Protocol):
    """What a fault can do to a connection on which a request has been read."""

    reply: Reply
    """The answer that would be honest."""

    async def send(self, data: bytes) -> None:
        """Send bytes, at the pace at which they are taken."""
        ...

    async def closed(self) -> None:
        """Return when the client has closed the connection."""
        ...

    def close(self) -> None:
        """Send no more: the connection is closed after this answer."""
        ...

    def reset(self) -> None:
        """Break the connection off with a TCP reset."""
        ...


class Fault:
    """Root of all faults."""

    __slots__ = ()


class WireFault(Fault, ABC):
    """One that a loopback homeserver can have: it is called instead of sending `wire.reply`."""

    __slots__ = ()

    @abstractmethod
    async def __call__(self, wire: Wire) -> None:
        """Do to the connection what the fault is."""


class ConnectionFault(Fault):
    """One that happens before there is a request."""

    __slots__ = ()


def encode(reply: Reply) -> bytes:
    """Return a reply as it goes over the wire."""
    return _head(reply, f"content-length: {len(reply.body)}") + reply.body


def _head(reply: Reply, *lines: str) -> bytes:
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = "Unknown"
    fields = [f"{name}: {value}" for name, value in reply.headers.items()]
    text = "\r\n".join([f"HTTP/1.1 {reply.status} {phrase}", *fields, *lines, "", ""])
    return text.encode("latin-1")


# --- Of the network -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unreachable(Fault):
    """There is no way there (simulated homeservers only)."""


@dataclass(frozen=True, slots=True)
class Refuses(Fault):
    """Nobody listens (simulated homeservers only)."""


@dataclass(frozen=True, slots=True)
class TimesOut(Fault):
    """Nothing comes back when connecting (simulated homeservers only, which do not really wait)."""


@dataclass(frozen=True, slots=True)
class LosesTheAnswer(WireFault):
    """The request is received and acted on, and the connection closes without an answer."""

    async def __call__(self, wire: Wire) -> None:
        wire.close()


@dataclass(frozen=True, slots=True)
class Hangs(WireFault):
    """The request is received and acted on, and no answer comes, ever."""

    async def __call__(self, wire: Wire) -> None:
        await wire.closed()


@dataclass(frozen=True, slots=True)
class Slow(WireFault):
    """The answer comes after so many seconds."""

    seconds: float

    async def __call__(self, wire: Wire) -> None:
        await asyncio.sleep(self.seconds)
        await wire.send(encode(wire.reply))


# --- Of connections -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NeverCompletesTheHandshake(ConnectionFault):
    """TCP connects, TLS never answers."""


@dataclass(frozen=True, slots=True)
class ClosesBeforeTls(ConnectionFault):
    """TCP connects, and the connection is closed at once."""


@dataclass(frozen=True, slots=True)
class ClosesAfterAnswering(WireFault):
    """The answer promises to keep the connection, which is closed at once nevertheless."""

    async def __call__(self, wire: Wire) -> None:
        await wire.send(encode(wire.reply))
        wire.close()


@dataclass(frozen=True, slots=True)
class DiesOnReuse(ConnectionFault):
    """The first request is answered; the next one on the same connection meets a reset."""


@dataclass(frozen=True, slots=True)
class Resets(WireFault):
    """The request is received and acted on, and the connection is reset."""

    async def __call__(self, wire: Wire) -> None:
        wire.reset()


# --- Of answers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drips(WireFault):
    """The answer comes one byte at a time."""

    interval: float = 0.05
    """Seconds between two bytes."""

    async def __call__(self, wire: Wire) -> None:
        for byte in encode(wire.reply):
            await wire.send(bytes([byte]))
            await asyncio.sleep(self.interval)


@dataclass(frozen=True, slots=True)
class BreaksOff(WireFault):
    """The connection closes in the middle of the answer's body."""

    async def __call__(self, wire: Wire) -> None:
        whole = encode(wire.reply)
        await wire.send(whole[: len(whole) - len(wire.reply.body) // 2])
        wire.close()


@dataclass(frozen=True, slots=True)
class EndlessBody(WireFault):
    """The body never ends."""

    status: int = 200

    async def __call__(self, wire: Wire) -> None:
        await wire.send(_head(Reply(self.status, b""), "transfer-encoding: chunked"))
        while True:
            await wire.send(b"%x\r\n%b\r\n" % (_CHUNK, b" " * _CHUNK))


@dataclass(frozen=True, slots=True)
class HugeBody(WireFault):
    """The body is very long; `announced` in a `Content-Length`, or not."""

    size: int = 200 * 1024 * 1024
    """Bytes."""
    status: int = 500
    announced: bool = True

    async def __call__(self, wire: Wire) -> None:
        wire.close()
        length = f"content-length: {self.size}" if self.announced else "connection: close"
        await wire.send(_head(Reply(self.status, b""), length))
        for chunk in _chunks(self.size):
            await wire.send(chunk)


@dataclass(frozen=True, slots=True)
class GzipBomb(WireFault):
    """A small body that is a large one after decompression."""

    size: int = 200 * 1024 * 1024
    """Bytes, decompressed."""
    status: int = 200

    async def __call__(self, wire: Wire) -> None:
        reply = Reply(self.status, _bomb(self.size), {"content-encoding": "gzip"})
        await wire.send(encode(reply))


@dataclass(frozen=True, slots=True)
class ManyHeaders(WireFault):
    """The honest answer, with very many fields in its header."""

    count: int = 10_000

    async def __call__(self, wire: Wire) -> None:
        more = {f"x-{number}": "0" for number in range(self.count)}
        await wire.send(
            encode(Reply(wire.reply.status, wire.reply.body, {**wire.reply.headers, **more}))
        )


@dataclass(frozen=True, slots=True)
class SaysRaw(WireFault):
    """These very bytes instead of an answer; then the connection closes."""

    data: bytes

    async def __call__(self, wire: Wire) -> None:
        await wire.send(self.data)
        wire.close()


@functools.cache
def _bomb(size: int) -> bytes:
    compressor = zlib.compressobj(wbits=_GZIP)
    return b"".join([*map(compressor.compress, _chunks(size)), compressor.flush()])


def _chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // _CHUNK):
        yield b" " * _CHUNK
    yield b" " * (size % _CHUNK)
