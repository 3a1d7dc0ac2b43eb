"""TLS on its socket, and by the loop's own means where the loop cannot watch sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pytest

from invite_client.errors import Attempt, UnknownOutcomeError, UnreachableError
from invite_client.net import wires
from invite_client.net.handshakes import Handshake
from invite_client.net.lines import Way
from invite_client.net.wires import Earlier, Sessions, Wire
from invite_client.policy import Timeouts
from invite_client.spec.http import Request
from tests.net.conftest import caught
from tests.net.servers import GET, OK, PUT, Authority, Server, StaticDns, Visit, resolved

BIG = Request(PUT.method, PUT.uri, b'"' + b"x" * 8_000_000 + b'"', PUT.authorization, "PUT")
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

    async def answers_at_length(visit: Visit) -> None:
        request = await visit.request()
        digests.append(hashlib.sha256(request.partition(b"\r\n\r\n")[2]).digest())
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

    server = Server(answers_at_length, authority.server("remote.example"))
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
            for _ in range(4):
                await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)

        assert [False, False, True, True] == farewell.resumed

    async def test_is_not_even_taken_out_of_the_first_connection(
        self,
        authority: Authority,
        transports: Any,
        log: list[Attempt],
        names: StaticDns,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        wanted: list[bool] = []
        begin = Wire.begin

        def notes(wire: Wire, protocol: Any, keep: Any = None) -> None:
            wanted.append(keep is not None)
            begin(wire, protocol, keep)

        monkeypatch.setattr(Wire, "begin", notes)
        server = Server(Farewell(), authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), names)
            for _ in range(2):
                await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)

        assert [False, True] == wanted

    async def test_is_no_way_around_a_certificate_for_another_name(
        self, authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
    ) -> None:
        server = Server(Farewell(), authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), names)
            right = resolved(server)
            wrong = dataclasses.replace(right, tls_name="other.example")
            for _ in range(2):
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
            for _ in range(2):
                await transport.exchange(resolved(first), PUT, limit=LIMIT, log=log)
        second = Server(farewell, authority.server("remote.example"))
        async with second.running(port=first.port):
            await transport.exchange(resolved(second), PUT, limit=LIMIT, log=log)

        assert [False, False, False] == farewell.resumed

    async def test_does_not_hide_certificates_from_who_looks_at_handshakes(
        self, authority: Authority, transports: Any, log: list[Attempt], names: StaticDns
    ) -> None:
        seen: list[Handshake] = []
        server = Server(Farewell(), authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), names, on_handshake=seen.append)
            for _ in range(3):
                await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)

        assert [True, True, True] == [bool(handshake.chain) for handshake in seen]

    async def test_ends_an_hour_after_the_certificate_was_shown(
        self,
        authority: Authority,
        transports: Any,
        log: list[Attempt],
        names: StaticDns,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        farewell = Farewell()
        server = Server(farewell, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), names)
            started = time.monotonic()
            for seconds in (0, 10, 1800, 3500, 3700, 3800):
                with monkeypatch.context() as patched:
                    patched.setattr(wires.time, "monotonic", lambda: started + seconds)
                    await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)
                    await server.visits[-1].closed.wait()
                    await turns()

        assert [False, False, True, True, False, True] == farewell.resumed

    async def test_that_something_before_the_server_cannot_bear_costs_no_request(
        self,
        authority: Authority,
        transports: Any,
        log: list[Attempt],
        names: StaticDns,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        offered: list[bool] = []
        shake_hands = Wire.shake_hands

        async def resets_what_goes_on(wire: Wire, patience: float) -> None:
            offered.append(wire._offered is not None)
            if wire._offered is not None:
                wire._sock.close()
                raise ConnectionResetError
            await shake_hands(wire, patience)

        monkeypatch.setattr(Wire, "shake_hands", resets_what_goes_on)
        server = Server(Farewell(), authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), names)
            for _ in range(4):
                await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)

        assert ["200"] * 4 == [attempt.outcome for attempt in log]
        assert [False, False, True, False, True, False] == offered

    async def test_is_not_kept_if_the_server_gave_no_new_one(
        self, authority: Authority, names: StaticDns
    ) -> None:
        kept: list[ssl.SSLSession] = []
        context = authority.server("remote.example")
        ours = ssl.create_default_context(cafile=str(authority.ca_file))

        async def connect(session: ssl.SSLSession | None) -> Wire:
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.setblocking(False)
            wire = Wire(sock, ours, "remote.example", session)
            await wire.shake_hands(5)
            return wire

        async def hears_all(visit: Visit) -> None:
            await visit.until_closed()

        server = Server(hears_all, context)
        async with server.running():
            wire = await connect(None)
            wire.begin(_Hearer(), kept.append)
            while not wire.tls.session:
                await asyncio.sleep(0)
            while not wire.tls.session.has_ticket:
                await asyncio.sleep(0)
            wire.abort()
            await turns()
            [session] = kept
            wire = await connect(session)
            wire._incoming = ssl.MemoryBIO()  # what follows the handshake does not come
            wire.begin(_Hearer(), kept.append)
            wire.abort()
            await turns()

        assert [session] == kept

    async def test_serves_once_and_for_an_hour_since_the_certificate_was_seen(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 10_000.0
        monkeypatch.setattr(wires.time, "monotonic", lambda: now)
        sessions, way, other = Sessions(1), way_to("remote.example"), way_to("other.example")
        session: Any = object()
        assert sessions.take(way) is None
        sessions.keep(way, session, now - 3599)
        assert Earlier(session, now - 3599) == sessions.take(way)
        assert Earlier() == sessions.take(way)
        sessions.keep(way, session, now - 3600)
        assert Earlier() == sessions.take(way)
        sessions.keep(way, session, now)
        sessions.keep(other, session, now)
        assert sessions.take(way) is None

    async def test_makes_room_for_that_of_a_way_used_since(self) -> None:
        sessions, way, other = Sessions(2), way_to("remote.example"), way_to("other.example")
        session: Any = object()
        sessions.keep(way, session, 1.0)
        sessions.keep(other, session, 2.0)
        sessions.take(way)
        sessions.take(way_to("third.example"))
        assert sessions.take(other) is None

    async def test_is_not_remembered_where_nothing_is(self) -> None:
        sessions, way = Sessions(0), way_to("remote.example")
        sessions.take(way)
        assert sessions.take(way) is None


def way_to(host: str) -> Way:
    return host, 8448, host, ssl.create_default_context(), None


class _Scripted:
    """The part of an `ssl.SSLObject` that a `Wire` uses: it does, of each, what it is told."""

    session = None

    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self.incoming, self.outgoing = incoming, outgoing
        self.given = 0
        self.read_steps: deque[Any] = deque()
        self.write_steps: deque[Any] = deque()

    def read(self, _: int) -> bytes:
        self.given += len(self.incoming.read())
        step = self.read_steps.popleft() if self.read_steps else ssl.SSLWantReadError()
        if isinstance(step, int):  # TLS has as much to say by itself
            self.outgoing.write(bytes(step))
            step = ssl.SSLWantReadError()
        if isinstance(step, Exception):
            raise step
        return bytes(step)

    def pending(self) -> int:
        return len(self.read_steps)

    def write(self, data: memoryview) -> int:
        step = self.write_steps.popleft() if self.write_steps else len(data)
        if isinstance(step, Exception):
            raise step
        self.outgoing.write(data[:step])
        return int(step)


class _Context:
    tls: _Scripted

    def wrap_bio(self, incoming: Any, outgoing: Any, **_: object) -> _Scripted:
        self.tls = _Scripted(incoming, outgoing)
        return self.tls


class _Hearer(asyncio.Protocol):
    def __init__(self) -> None:
        self.heard = b""
        self.ended: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        if data == b"bug":
            raise KeyError
        self.heard += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(exc)


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("loop", ["it watches sockets"], indirect=True)
class TestTlsThatSpeaksToItself:
    @pytest.fixture
    async def far(self) -> AsyncIterator[socket.socket]:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        context: Any = _Context()
        self.wire = Wire(near, context, "remote.example")
        self.tls = context.tls
        self.hearer = _Hearer()
        self.wire.begin(self.hearer)
        self.wire.resume_reading()
        yield far
        self.wire.abort()
        await turns()
        far.close()

    async def test_and_must_hear_first_says_the_rest_when_it_has_heard(
        self, far: socket.socket
    ) -> None:
        self.tls.write_steps.extend([2, ssl.SSLWantReadError()])
        self.wire.write(b"four")
        assert 2 == self.wire.get_write_buffer_size()
        assert b"fo" == far.recv(10)
        self.tls.read_steps.append(b"something")
        far.send(b"x")
        await turns()

        assert (b"something", b"ur") == (self.hearer.heard, far.recv(10))
        assert 0 == self.wire.get_write_buffer_size()

    async def test_to_who_does_not_read_is_hung_up_on(self, far: socket.socket) -> None:
        self.wire.write(bytes(4_000_000))  # more than fits
        for _ in range(3):
            self.tls.read_steps.append(30_000)
            far.send(b"x")
            await turns()

        assert [None] == self.hearer.ended

    async def test_to_who_reads_may_say_as_much_as_it_likes(self, far: socket.socket) -> None:
        for _ in range(10):
            self.tls.read_steps.append(30_000)
            far.send(b"x")
            await turns()
            assert 30_000 == len(far.recv(100_000))

        assert [] == self.hearer.ended

    async def test_is_given_no_more_than_a_record_in_one_turn(self, far: socket.socket) -> None:
        far.send(bytes(100_000))
        self.wire._readable()
        assert 2**14 == self.tls.given

    @pytest.mark.parametrize(
        ("step", "ended"), [(b"", type(None)), (ssl.SSLEOFError(), ssl.SSLEOFError)]
    )
    async def test_and_ends_ends_the_connection_once(
        self, far: socket.socket, step: Any, ended: type
    ) -> None:
        self.tls.read_steps.append(step)
        far.send(b"x")
        await turns()
        self.wire.abort()
        self.wire.write(b"more")
        self.wire.pause_reading()
        self.wire.resume_reading()
        await turns()

        assert [ended] == [type(error) for error in self.hearer.ended]

    async def test_that_cannot_send_ends_the_connection(self, far: socket.socket) -> None:
        far.close()
        self.wire.write(b"four")
        await turns()

        assert [BrokenPipeError] == [type(error) for error in self.hearer.ended]

    async def test_a_bug_in_who_hears_it_ends_the_connection_and_is_told(
        self, far: socket.socket
    ) -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        self.tls.read_steps.append(b"bug")
        far.send(b"x")
        await turns()

        assert [None] == self.hearer.ended
        assert [KeyError] == [type(context["exception"]) for context in told]


@pytest.mark.parametrize("loop", ["it watches sockets"], indirect=True)
async def test_who_never_comes_to_the_point_does_not_stop_the_loop() -> None:
    hello_request = b"\x16\x03\x03\x40\x00" + bytes(2**14)  # RFC 5246 § 7.4.1.1: means nothing
    had_enough: list[bool] = []

    def floods(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            until = time.monotonic() + 10
            try:
                while time.monotonic() < until:
                    connection.sendall(hello_request)
            except OSError:
                pass
            # Who is busy for as long as it is sent to does not hang up before.
            had_enough.append(time.monotonic() >= until)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        flood = threading.Thread(target=floods, args=(listener,))
        flood.start()
        sock = socket.create_connection(listener.getsockname())
        sock.setblocking(False)
        wire = Wire(sock, ssl.create_default_context(), "remote.example")
        with pytest.raises(OSError, match="no handshake within"):
            await wire.shake_hands(0.1)
        await asyncio.get_running_loop().run_in_executor(None, flood.join)

    assert [False] == had_enough


@pytest.mark.parametrize("loop", ["it watches sockets"], indirect=True)
async def test_who_is_told_to_stop_when_the_time_is_up_stops() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        sock.setblocking(False)
        wire = Wire(sock, ssl.create_default_context(), "remote.example")
        shaking = asyncio.create_task(wire.shake_hands(0.05))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_at(asyncio.get_running_loop().time(), shaking.cancel)
        time.sleep(0.1)  # both are due in one turn of the loop
        await asyncio.wait([shaking])

        assert shaking.cancelled()
