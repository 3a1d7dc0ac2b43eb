"""Homeservers that cost next to nothing: one process, one thread, answers made beforehand.

    python -m benchmarks.peer DIRECTORY

A benchmark measures the slower of two sides, so this one must never be it. It speaks as much HTTP
as its clients do: a head, a body of known length, one request at a time on a kept connection.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field

from benchmarks.children import reply
from benchmarks.scenario import FAST_ADDRESS, Peer

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_HOST = re.compile(rb"\r\nhost: *([^\r]+)", re.IGNORECASE)
_WOULD_BLOCK = (ssl.SSLWantReadError, ssl.SSLWantWriteError)
_HEAD_BYTES = 16_384


@dataclass(slots=True)
class _Connection:
    socket: ssl.SSLSocket
    shaken: bool = False
    received: bytearray = field(default_factory=bytearray)
    unsent: bytes = b""


class Server:
    """Accepts, reads, looks up, writes."""

    def __init__(self, peer: Peer) -> None:
        self.answers = {
            **{f"PUT {target}".encode(): _http(body) for target, body in peer.invites.items()},
            **{f"GET {where}".encode(): _http(body) for where, body in peer.files.items()},
        }
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(peer.certificate_file)
        self.context.set_alpn_protocols(["http/1.1"])
        self.listener = socket.create_server((FAST_ADDRESS, peer.port), backlog=1024)
        self.listener.setblocking(False)
        self.poll = select.epoll()
        self.poll.register(self.listener, select.EPOLLIN)
        self.connections: dict[int, _Connection] = {}
        self.accepted = 0
        self.requests = 0

    def run(self) -> None:
        """Serve until standard input ends; a line on it asks for the figures."""
        self.poll.register(sys.stdin, select.EPOLLIN)
        while True:
            for descriptor, _ in self.poll.poll():
                if descriptor == sys.stdin.fileno():
                    if not sys.stdin.readline():
                        return
                    reply(
                        cpu=time.process_time(),
                        accepted=self.accepted,
                        requests=self.requests,
                        open=len(self.connections),
                    )
                elif descriptor == self.listener.fileno():
                    self.accept()
                else:
                    self.serve(descriptor, self.connections[descriptor])

    def accept(self) -> None:
        """Take all new connections."""
        while True:
            try:
                accepted, _ = self.listener.accept()
            except BlockingIOError:
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wrapped = self.context.wrap_socket(
                accepted, server_side=True, do_handshake_on_connect=False
            )
            self.accepted += 1
            self.connections[wrapped.fileno()] = _Connection(wrapped)
            self.poll.register(wrapped, select.EPOLLIN)

    def serve(self, descriptor: int, connection: _Connection) -> None:
        """Do what one connection is ready for."""
        try:
            if not connection.shaken:
                connection.socket.do_handshake()
                connection.shaken = True
            if connection.unsent:
                self.send(descriptor, connection, connection.unsent)
            while True:
                data = connection.socket.recv(65_536)
                if not data:
                    break
                connection.received += data
                self.answer(descriptor, connection)
        except _WOULD_BLOCK:
            return
        except OSError:
            pass
        self.poll.unregister(descriptor)
        del self.connections[descriptor]
        connection.socket.close()

    def answer(self, descriptor: int, connection: _Connection) -> None:
        """Answer a request, if it is there in whole."""
        received = connection.received
        end = received.find(b"\r\n\r\n")
        if end < 0:
            if len(received) > _HEAD_BYTES:
                raise ConnectionError
            return
        head = bytes(received[: end + 2])
        length = _LENGTH.search(head)
        size = end + 4 + (int(length[1]) if length else 0)
        if len(received) < size:
            return
        del received[:size]
        self.requests += 1
        # "PUT /uri HTTP/1.1": an invite is found by its target, a file by its host as well.
        method, uri, _ = head.split(b" ", 2)
        if method == b"GET":
            host = _HOST.search(head)
            uri = (host[1] if host else b"") + b" " + uri
        self.send(descriptor, connection, self.answers.get(method + b" " + uri, _ABSENT))

    def send(self, descriptor: int, connection: _Connection, data: bytes) -> None:
        """Send what can be sent now; keep the rest until there is room."""
        try:
            sent = connection.socket.send(data)
        except _WOULD_BLOCK:
            sent = 0
        if (sent < len(data)) != bool(connection.unsent):
            events = select.EPOLLIN | (select.EPOLLOUT if sent < len(data) else 0)
            self.poll.modify(descriptor, events)
        connection.unsent = data[sent:]


def _http(body: str, status: str = "200 OK") -> bytes:
    encoded = body.encode()
    return (
        f"HTTP/1.1 {status}\r\nServer: peer\r\nDate: Mon, 24 Nov 2025 16:00:00 GMT\r\n"
        "Content-Type: application/json\r\nCache-Control: max-age=86400\r\n"
        f"Content-Length: {len(encoded)}\r\n\r\n"
    ).encode() + encoded


_ABSENT = _http('{"errcode":"M_NOT_FOUND","error":"not here"}', "404 Not Found")


if __name__ == "__main__":
    server = Server(Peer.load(sys.argv[1]))
    reply(ready=True)
    server.run()
