"""TLS on a socket: the transport of a `Line`, where the event loop can watch sockets.

asyncio's own TLS has layers between OpenSSL and the socket, and calls for each of them: that is a good
part of a short exchange, much of what a handshake costs beside its cryptography, and 300 KiB for each
connection that waits.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from invite_client.net.lines import Way

__all__ = ["Earlier", "Sessions", "Wire"]

_PIECE = 2**14
"""Bytes that OpenSSL is given at once, as many as a TLS record carries (RFC 8446 § 5.1). It goes on for
as long as it has any: given the socket itself, a remote that sends on and on would stop the loop."""
_MOST_OWED = 2**16
"""Bytes that TLS itself may have to say to a remote that does not read."""
_RESUMED_FOR = 3600.0
"""Seconds for which a certificate that was found to be right need not be shown again: a connection that
is kept in use is not asked for it either."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is left of earlier connections by a way."""

    session: ssl.SSLSession | None = None
    """To go on with: this is for one connection (RFC 8446 § C.4)."""
    since: float = 0.0
    """Since when its certificate is known, in monotonic seconds."""


class Sessions:
    """TLS sessions to go on with by a new connection, without a certificate (RFC 8446 § 2.2).

    To take one out of OpenSSL costs nearly what it saves: it is of use only to the third connection
    by a way and those after it, and in a run over many new servers there are none.
    """

    def __init__(self, most: int) -> None:
        """At most so many ways are remembered."""
        self._most = most
        self._ways: OrderedDict[Way, Earlier] = OrderedDict()

    def take(self, way: Way) -> Earlier | None:
        """Return what a new connection can go on with, or None if it is the first by this way."""
        earlier = self._ways.pop(way, None)
        self._put(way, Earlier())
        if earlier is not None and time.monotonic() - earlier.since >= _RESUMED_FOR:
            return Earlier()
        return earlier

    def keep(self, way: Way, session: ssl.SSLSession, since: float) -> None:
        """Keep one."""
        self._put(way, Earlier(session, since))

    def _put(self, way: Way, earlier: Earlier) -> None:
        """Remember a way; that which was used first makes room for it."""
        self._ways.pop(way, None)
        self._ways[way] = earlier
        if len(self._ways) > self._most:
            self._ways.popitem(last=False)


class Wire(asyncio.Transport):
    """A connection. Of a transport's methods it has those that a `Line` calls.

    First `shake_hands`, then `begin`.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        name: str,
        session: ssl.SSLSession | None = None,
    ) -> None:
        """Belongs to the running loop, and owns the socket, which is connected.

        Goes on with `session` if the remote lets us. Raises `ValueError` for a `name` that no
        certificate can be for.
        """
        super().__init__({"socket": sock})  # aiohttp has it send without delay (TCP_NODELAY)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        try:
            self.tls: ssl.SSLObject = context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=name, session=session
            )
        except BaseException:
            sock.close()
            raise
        self._offered = session
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._descriptor = sock.fileno()
        self._shaken: asyncio.Future[None] = self._loop.create_future()
        self._protocol: asyncio.Protocol | None = None
        self._unsaid = memoryview(b"")
        """What TLS has not taken yet: it may have to be told something before."""
        self._left = memoryview(b"")
        """What the socket has not taken yet."""
        self._owed = 0
        self._is_closing = False

    # --- The handshake --------------------------------------------------------------------------

    async def shake_hands(self, patience: float) -> None:
        """Make TLS within `patience` seconds, or close the socket.

        Raises `OSError`; `NotImplementedError` where the loop cannot watch sockets, and then the
        socket is as it was.
        """
        self._loop.add_reader(self._descriptor, self._readable)
        limit = asyncio.timeout(patience)
        try:
            self._shake()
            async with limit:
                await self._shaken
        except BaseException as error:
            self._is_closing = True
            self._forget()
            self._sock.close()
            if isinstance(error, TimeoutError) and limit.expired():
                raise OSError(f"no handshake within {patience:g} s") from None
            raise

    def _shake(self) -> None:
        if self._shaken.done():
            return  # What has come since is for the protocol, which is not there yet.
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except Exception as error:  # noqa: BLE001  # whoever waits for it shall have it
            self._shaken.set_exception(error)
        else:
            self._shaken.set_result(None)
        self._send()  # also what TLS says when it refuses

    def begin(
        self, protocol: asyncio.Protocol, keep: Callable[[ssl.SSLSession], None] | None = None
    ) -> None:
        """Hand over to `protocol` what comes from now on.

        At the end, `keep` is given the session, if another connection can go on with it.
        """
        self._protocol, self._keep = protocol, keep
        protocol.connection_made(self)
        self._loop.call_soon(self._hear)  # what came behind the handshake

    # --- What comes -----------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Leave what comes where it is."""
        if not self._is_closing:  # else the descriptor may be another's by now
            self._loop.remove_reader(self._descriptor)

    def resume_reading(self) -> None:
        """Hand over what comes."""
        if not self._is_closing:
            self._loop.add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(error)
            return
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        if self._protocol is None:
            self._shake()
        else:
            self._hear()

    def _hear(self) -> None:
        if self._is_closing or self._protocol is None:
            return
        try:
            while not self._is_closing:
                data = self.tls.read(_PIECE)
                if not data:  # it has said goodbye
                    self._protocol.eof_received()
                    self._end(None)
                    return
                self._protocol.data_received(data)
                if not (self._incoming.pending or self.tls.pending()):
                    break  # To find it out by an error takes as long as to read.
        except ssl.SSLWantReadError:
            pass
        except OSError as error:  # also if it ended without a goodbye
            self._end(error)
        except BaseException:
            self._end(None)
            raise
        if not self._is_closing:
            self._say()
        self._owed += self._outgoing.pending
        self._send()
        if self._owed > _MOST_OWED:
            self._end(None)

    # --- What goes out --------------------------------------------------------------------------

    def get_write_buffer_size(self) -> int:
        """Bytes that have not gone out yet."""
        return len(self._unsaid) + len(self._left)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, now if possible."""
        if self._is_closing:
            return
        self._unsaid = memoryview(bytes(self._unsaid) + data if self._unsaid else data)
        self._say()
        self._send()

    def _say(self) -> None:
        try:
            while self._unsaid:
                self._unsaid = self._unsaid[self.tls.write(self._unsaid) :]
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self._end(error)

    def _send(self) -> None:
        if self._outgoing.pending:
            data = self._outgoing.read()
            if self._left:
                self._left = memoryview(bytes(self._left) + data)
                return  # It is watched until it takes more.
            self._left = memoryview(data)
        try:
            while self._left and not self._is_closing:
                self._left = self._left[self._sock.send(self._left) :]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._descriptor, self._writable)
        except OSError as error:
            self._end(error)
        else:
            self._owed = 0

    def _writable(self) -> None:
        self._loop.remove_writer(self._descriptor)
        self._send()

    # --- The end --------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether it is closed, or will be in the next turn of the loop."""
        return self._is_closing

    def abort(self) -> None:
        """Close it: what was not sent is not sent."""
        self._end(None)

    def _end(self, error: OSError | None) -> None:
        if self._protocol is None:
            if not self._shaken.done():
                self._shaken.set_exception(error or ConnectionAbortedError())
            return
        if self._is_closing:
            return
        self._is_closing = True
        self._forget()
        self._loop.call_soon(self._lost, self._protocol, error)

    def _lost(self, protocol: asyncio.Protocol, error: OSError | None) -> None:
        try:
            # Not before: a server sends what a session is resumed by when it likes (§ 4.6.1).
            if self._keep is not None and error is None:
                session = self.tls.session
                if session is not None and session != self._offered:
                    self._keep(session)
            protocol.connection_lost(error)
        finally:
            self._sock.close()

    def _forget(self) -> None:
        self._loop.remove_reader(self._descriptor)
        self._loop.remove_writer(self._descriptor)
