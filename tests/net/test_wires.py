"""TLS on its socket, and by the loop's own means where the loop cannot watch sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import socket
import ssl
from collections import deque
from typing import Any

import pytest

from invite_client.errors import Attempt, UnknownOutcomeError, UnreachableError
from invite_client.net import wires
from invite_client.net.handshakes import Handshake
from invite_client.net.lines import Way
from invite_client.net.wires import Sessions, Wire
from invite_client.policy import Timeouts
from invite_client.spec.http import Request
from tests.net.conftest import caught
from tests.net.servers import GET, OK, PUT, Authority, Server, StaticDns, Visit, resolved

BIG = Request(PUT.method, PUT.uri, b'"' + b"x" * 3_000_000 + b'"', PUT.authorization, "PUT")
LIMIT = 1_000_000


@pytest.fixture(params=["it watches sockets", "it cannot watch sockets"], autouse=True)
async def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> None:
        raise NotImplementedError

    if request.param == "it cannot watch sockets":  # as the default one of Windows
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", cannot)


@pytest.fixture
def names() -> StaticDns:
    return StaticDns(remote_example=["127.0.0.1"])


async def test_what_is_more_than_fits_anywhere_arrives_whole(
    authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
) -> None:
    answer = bytes(range(256)) * 1500
    digests = []

    async def takes_its_time(visit: Visit) -> None:
        await asyncio.sleep(0.05)  # until the sender has nowhere to put it
        request = await visit.request()
        digests.append(hashlib.sha256(request.partition(b"\r\n\r\n")[2]).digest())
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    server = Server(takes_its_time, authority.server("remote.example"))
    async with server.running():
        transport = transports(authority.policy(), names)
        reply = await transport.exchange(resolved(server), BIG, limit=LIMIT, log=log)

    assert [hashlib.sha256(BIG.body or b"").digest()] == digests
    assert answer == reply.body


@pytest.mark.parametrize("goodbye", ["close", "abort"])
async def test_an_answer_may_end_with_the_connection(
    authority: Authority, transports: Any, log: list[Attempt], names: StaticDns, goodbye: str
) -> None:
    async def ends(visit: Visit) -> None:
        await visit.request()
        await visit.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 20_000)
        getattr(visit.writer.transport, goodbye)()

    server = Server(ends, authority.server("remote.example"))
    async with server.running():
        transport = transports(authority.policy(), names)
        reply = await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)

    assert b"x" * 20_000 == reply.body


async def test_a_connection_that_ends_in_the_middle_leaves_the_outcome_unknown(
    authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
) -> None:
    async def ends(visit: Visit) -> None:
        await visit.request()
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nxx")
        visit.writer.transport.abort()

    server = Server(ends, authority.server("remote.example"))
    async with server.running():
        transport = transports(authority.policy(), names)
        await caught(
            transport.exchange(resolved(server), PUT, limit=LIMIT, log=log), UnknownOutcomeError
        )


async def test_a_wrong_certificate_is_told(
    authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
) -> None:
    server = Server(
        lambda visit: visit.send(OK),
        authority.server("other.example"),
    )
    async with server.running():
        transport = transports(authority.policy(), names)
        error = await caught(
            transport.exchange(resolved(server), GET, limit=LIMIT, log=log), UnreachableError
        )

    expected = "the certificate has the wrong name; it is for other.example, expected one for"
    assert f"{expected} remote.example" in error.message


@pytest.mark.parametrize("ends", ["by time", "by being cancelled"])
async def test_a_handshake_that_hangs_is_hung_up(
    authority: Authority, transports: Any, log: list[Attempt], names: StaticDns, ends: str
) -> None:
    async def stalls(visit: Visit) -> None:
        await visit.until_closed()

    server = Server(stalls)
    async with server.running():
        patience = Timeouts(connect=0.2 if ends == "by time" else 60)
        transport = transports(authority.policy(timeouts=patience), names)
        sending = asyncio.create_task(
            transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)
        )
        while not server.visits:
            await asyncio.sleep(0)
        if ends == "by time":
            await caught(sending, UnreachableError)
        else:
            sending.cancel()
            await caught(sending, asyncio.CancelledError)
        await server.visits[0].closed.wait()


class Farewell:
    """Answers one request by each connection, and notes if that went on with an earlier session."""

    def __init__(self) -> None:
        self.resumed: list[bool] = []

    async def __call__(self, visit: Visit) -> None:
        self.resumed.append(visit.writer.get_extra_info("ssl_object").session_reused)
        await visit.request()
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


@pytest.mark.parametrize("loop", ["it watches sockets"], indirect=True)
class TestASession:
    async def test_is_gone_on_with_by_the_next_connection(
        self, authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
    ) -> None:
        farewell = Farewell()
        server = Server(farewell, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), names)
            for _ in range(3):
                await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)

        assert [False, True, True] == farewell.resumed

    async def test_is_no_way_around_a_certificate_for_another_name(
        self, authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
    ) -> None:
        server = Server(Farewell(), authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), names)
            right = resolved(server)
            wrong = dataclasses.replace(right, tls_name="other.example")
            await transport.exchange(right, PUT, limit=LIMIT, log=log)
            error = await caught(
                transport.exchange(wrong, PUT, limit=LIMIT, log=log), UnreachableError
            )

        assert "the certificate has the wrong name" in error.message

    async def test_that_the_server_does_not_know_is_begun_anew(
        self, authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
    ) -> None:
        farewell = Farewell()
        first = Server(farewell, authority.server("remote.example"))
        async with first.running():
            transport = transports(authority.policy(), names)
            await transport.exchange(resolved(first), PUT, limit=LIMIT, log=log)
        second = Server(farewell, authority.server("remote.example"))
        async with second.running(port=first.port):
            await transport.exchange(resolved(second), PUT, limit=LIMIT, log=log)

        assert [False, False] == farewell.resumed

    async def test_does_not_hide_certificates_from_who_looks_at_handshakes(
        self, authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
    ) -> None:
        seen: list[Handshake] = []
        server = Server(Farewell(), authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), names, on_handshake=seen.append)
            for _ in range(2):
                await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)

        assert [True, True] == [bool(handshake.chain) for handshake in seen]

    async def test_serves_once_and_for_an_hour_since_the_certificate_was_seen(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 10_000.0
        monkeypatch.setattr(wires.time, "monotonic", lambda: now)
        sessions, way, other = Sessions(1), way_to("remote.example"), way_to("other.example")
        session: Any = object()
        sessions.keep(way, session, now - 3599)
        assert (session, now - 3599) == sessions.take(way)
        assert (None, 0.0) == sessions.take(way)
        sessions.keep(way, session, now - 3600)
        assert (None, 0.0) == sessions.take(way)
        sessions.keep(way, session, now)
        sessions.keep(other, session, now)
        assert (None, 0.0) == sessions.take(way)
        assert (session, now) == sessions.take(other)


def way_to(host: str) -> Way:
    return host, 8448, host, ssl.create_default_context(), None


class _Scripted:
    """The part of an `ssl.SSLSocket` that a `Wire` uses: it does, of each, what it is told."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.received: deque[Any] = deque()
        self.sent: deque[Any] = deque()

    session = None

    def fileno(self) -> int:
        return self._sock.fileno()

    def recv(self, _: int) -> bytes:
        return self._next(self.received)

    def send(self, data: bytes) -> int:
        return self._next(self.sent) or len(data)

    def close(self) -> None:
        self._sock.close()

    def _next(self, script: deque[Any]) -> Any:
        step = script.popleft()
        if isinstance(step, Exception):
            raise step
        return step


class _Hearer(asyncio.Protocol):
    def __init__(self) -> None:
        self.heard = b""
        self.ended: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(exc)


@pytest.mark.parametrize("loop", ["it watches sockets"], indirect=True)
class TestTlsThatSpeaksToItself:
    @pytest.fixture
    def far(self) -> Any:
        near, far = socket.socketpair()
        self.tls = _Scripted(near)
        yield far
        far.close()

    def wire(self) -> tuple[Wire, _Hearer]:
        hearer = _Hearer()
        tls: Any = self.tls
        return Wire(tls, hearer), hearer

    async def turns(self, count: int = 10) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def test_and_cannot_send_is_read_on_when_it_has_sent(self, far: socket.socket) -> None:
        wire, hearer = self.wire()
        self.tls.received.extend([ssl.SSLWantWriteError(), b"after", ssl.SSLEOFError()])
        far.send(b"something to be seen")
        await self.turns()

        assert b"after" == hearer.heard
        assert [ssl.SSLEOFError] == [type(error) for error in hearer.ended]
        assert wire.is_closing()

    async def test_and_must_hear_first_sends_when_it_has_heard(self, far: socket.socket) -> None:
        wire, hearer = self.wire()
        self.tls.sent.extend([ssl.SSLWantReadError(), 2, None])
        wire.write(b"four")
        assert 4 == wire.get_write_buffer_size()
        self.tls.received.extend([ssl.SSLWantReadError(), b""])
        far.send(b"something to be seen")
        await self.turns()

        assert not self.tls.sent
        assert [None] == hearer.ended

    async def test_and_fails_ends_the_connection_once(self, far: socket.socket) -> None:
        wire, hearer = self.wire()
        self.tls.sent.append(ConnectionResetError())
        wire.write(b"four")
        wire.abort()
        wire.write(b"more")
        wire.resume_reading()
        far.send(b"something to be seen")
        await self.turns()

        assert [ConnectionResetError] == [type(error) for error in hearer.ended]

    async def test_and_takes_little_is_given_all_in_order(self, far: socket.socket) -> None:
        wire, _ = self.wire()
        self.tls.sent.extend([1, ssl.SSLWantWriteError(), 3, None])
        wire.write(b"four")
        wire.write(b"more")
        assert 7 == wire.get_write_buffer_size()
        await self.turns()

        assert 0 == wire.get_write_buffer_size()
        wire.abort()
        await self.turns()
