"""TLS straight on its socket: the transport of a `Line`, where the event loop can watch sockets.

asyncio's own TLS stands between OpenSSL and the socket, and carries every byte from one to the other
in Python: that is a good part of a short exchange, most of what a handshake costs beside its
cryptography, and 300 KiB for each connection that waits.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable

from invite_client.net.lines import Way
from invite_client.net.tls import refusal

__all__ = ["Sessions", "Wire", "shake_hands"]

_RECORD = 2**14
"""Bytes that a TLS record carries at most (RFC 8446 § 5.1): OpenSSL hands over one at a time."""


_RESUMED_FOR = 3600.0
"""Seconds for which a certificate that was found to be right need not be shown again. Tickets live as
long with most servers, and a connection that is kept in use is not asked for it either."""


class Sessions:
    """TLS sessions to go on with by a new connection, at half the work (RFC 8446 § 2.2)."""

    def __init__(self, most: int) -> None:
        """At most so many are kept, of different ways."""
        self._most = most
        self._kept: OrderedDict[Way, tuple[ssl.SSLSession, float]] = OrderedDict()

    def take(self, way: Way) -> tuple[ssl.SSLSession | None, float]:
        """Return one, and since when the certificate is known. Each is used once (§ C.4)."""
        session, since = self._kept.pop(way, (None, 0.0))
        return (session, since) if time.monotonic() - since < _RESUMED_FOR else (None, 0.0)

    def keep(self, way: Way, session: ssl.SSLSession, since: float) -> None:
        """Keep one; that which was kept first makes room for it."""
        self._kept.pop(way, None)
        self._kept[way] = session, since
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


async def shake_hands(
    sock: socket.socket,
    context: ssl.SSLContext,
    name: str,
    patience: float,
    session: ssl.SSLSession | None = None,
) -> ssl.SSLSocket:
    """Make TLS of a connected socket, which it takes over, within `patience` seconds.

    Goes on with `session` if the server lets us. Raises `OSError`; `NotImplementedError` where the loop cannot watch sockets, and then the socket
    is as it was.
    """
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def step() -> None:
        if ready.done():
            return
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            loop.remove_writer(descriptor)
        except ssl.SSLWantWriteError:
            loop.add_writer(descriptor, step)
        except ssl.SSLCertVerificationError as error:
            ready.set_exception(refusal(tls, error))
        except Exception as error:  # noqa: BLE001  # whoever waits for it shall have it
            ready.set_exception(error)
        else:
            ready.set_result(None)

    descriptor = sock.fileno()
    loop.add_reader(descriptor, step)
    try:
        tls = context.wrap_socket(
            sock,
            server_hostname=name,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
            session=session,
        )
    except BaseException:
        loop.remove_reader(descriptor)
        sock.close()
        raise
    limit = asyncio.timeout(patience)
    try:
        step()
        async with limit:
            await ready
    except BaseException:
        _forget(loop, descriptor)
        tls.close()
        if limit.expired():
            raise OSError(f"no handshake within {patience:g} s") from None
        raise
    return tls


class Wire(asyncio.Transport):
    """A connection after its handshake. Of a transport's methods it has those that a `Line` calls."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        protocol: asyncio.Protocol,
        keep: Callable[[ssl.SSLSession], None] = lambda _: None,
    ) -> None:
        """Belongs to the running loop, and owns the socket.

        `keep` is given the TLS session of a connection that has ended well.
        """
        super().__init__({"socket": sock})  # aiohttp has it send without delay (TCP_NODELAY)
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._descriptor = sock.fileno()
        self._protocol = protocol
        self._keep = keep
        self._left = memoryview(b"")
        """What the socket has not taken yet."""
        self._waits_to_read = False
        """Whether TLS must be told something before it sends on."""
        self._is_closing = False
        protocol.connection_made(self)
        self.resume_reading()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be in the next turn of the loop."""
        return self._is_closing

    def abort(self) -> None:
        """Close it: what was not sent is not sent."""
        self._end(None)

    def pause_reading(self) -> None:
        """Leave what comes where it is."""
        if not self._is_closing:  # else the descriptor may be another's by now
            self._loop.remove_reader(self._descriptor)

    def resume_reading(self) -> None:
        """Hand over what comes."""
        if not self._is_closing:
            self._loop.add_reader(self._descriptor, self._read)

    def get_write_buffer_size(self) -> int:
        """Bytes that the socket has not taken yet."""
        return len(self._left)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, now if possible."""
        if self._is_closing:
            return
        is_waiting = len(self._left) > 0
        self._left = memoryview(bytes(self._left) + data) if is_waiting else memoryview(data)
        if not is_waiting:
            self._send()

    def _send(self) -> None:
        try:
            while self._left:
                self._left = self._left[self._sock.send(self._left) :]
        except ssl.SSLWantReadError:
            self._waits_to_read = True
        except ssl.SSLWantWriteError:
            self._loop.add_writer(self._descriptor, self._writable)
        except OSError as error:
            self._end(error)

    def _writable(self) -> None:
        self._loop.remove_writer(self._descriptor)
        self._send()
        self.resume_reading()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_RECORD)
        except ssl.SSLWantReadError:  # part of a record, or TLS that speaks to itself
            if self._waits_to_read:
                self._waits_to_read = False
                self._send()
            return
        except ssl.SSLWantWriteError:
            # What TLS itself has to say does not fit. Whoever reads nothing is not read on.
            self.pause_reading()
            self._loop.add_writer(self._descriptor, self._writable)
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._protocol.data_received(data)
        else:
            self._protocol.eof_received()
            self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        _forget(self._loop, self._descriptor)
        self._left = memoryview(b"")
        self._loop.call_soon(self._lost, error)

    def _lost(self, error: OSError | None) -> None:
        try:
            # Not before: a server sends what a session is resumed by when it likes (§ 4.6.1).
            session = None if error else self._sock.session
            if session is not None:
                self._keep(session)
            self._protocol.connection_lost(error)
        finally:
            self._sock.close()


def _forget(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    loop.remove_reader(descriptor)
    loop.remove_writer(descriptor)
