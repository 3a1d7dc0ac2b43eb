"""Real homeservers on loopback, seen by a client that reads every byte."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from invite_client.errors import InviteError, UnreachableError
from invite_client.policy import Retries
from invite_client.testing import (
    COMMON_NAME_ONLY,
    EXPIRED,
    SELF_SIGNED,
    UNKNOWN_CA,
    BreaksOff,
    Certificate,
    ClosesAfterAnswering,
    ClosesBeforeTls,
    DiesOnReuse,
    Drips,
    EndlessBody,
    Fault,
    GzipBomb,
    Hangs,
    HonestAnswer,
    HugeBody,
    LoopbackHomeserver,
    LosesTheAnswer,
    ManyHeaders,
    NeverCompletesTheHandshake,
    Refuses,
    Resets,
    SaysRaw,
    Slow,
    Srv,
    WellKnown,
    Wire,
    WireFault,
    make_invite,
)

pytestmark = [pytest.mark.loopback, pytest.mark.usefixtures("no_socket_is_left_behind")]

IP = "127.45.9.1"
KEYS = b"GET /_matrix/key/v2/server HTTP/1.1\r\nHost: 127.45.9.1\r\n\r\n"
WELL_KNOWN = "/.well-known/matrix/server"


class Talk:
    """A TLS connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes = KEYS) -> tuple[bytes, bytes]:
        """Send a request, and read an answer that has a length."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        return head, await self.reader.readexactly(length)

    async def read(self) -> bytes:
        """Read until the end."""
        return await self.reader.read()


@asynccontextmanager
async def talk(
    remote: LoopbackHomeserver, host: str = IP, port: int = 8448, *, common_name: bool = False
) -> AsyncIterator[Talk]:
    (address,) = remote.network.host(host)
    context = ssl.create_default_context(cafile=str(remote.network.ca_file))
    context.hostname_checks_common_name = common_name
    where = remote.network.reroute(address, port)
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(*where, ssl=context, server_hostname=host)
        try:
            yield Talk(reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.fixture
async def remote() -> AsyncIterator[LoopbackHomeserver]:
    async with LoopbackHomeserver(IP) as server:
        yield server


# --- HTTP ---------------------------------------------------------------------------------------


async def test_a_connection_is_kept_and_counted(remote: LoopbackHomeserver) -> None:
    async with talk(remote) as one:
        for _ in range(3):
            _, body = await one.ask()
            assert IP == json.loads(body)["server_name"]
    await remote.until_quiet()

    (connection,) = remote.connections
    assert (3, "finished", None) == (connection.requests, connection.handshake, connection.sni)
    assert 3 * len(KEYS) == connection.bytes_received
    assert 1 == remote.handshakes


async def test_requests_may_come_in_pieces_or_together(remote: LoopbackHomeserver) -> None:
    async with talk(remote) as one:
        for byte in KEYS[:-1]:
            one.writer.write(bytes([byte]))
            await one.writer.drain()
        await one.ask(KEYS[-1:] + KEYS)
        await one.ask(b"")

    assert 2 == remote.counts["keys"]


async def test_a_body_may_be_chunked(remote: LoopbackHomeserver) -> None:
    request = (
        b"POST /_matrix/key/v2/query HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'f;x=y\r\n{"server_keys":\r\n4\r\n {} \r\n1\r\n}\r\n0\r\nTrailer: x\r\n\r\n'
    )
    async with talk(remote) as one:
        _, body = await one.ask(request)

    assert {"server_keys": []} == json.loads(body)
    assert b'{"server_keys": {} }' == remote.requests[0].body


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\r\n\r\n",
        b"HELO\r\n\r\n",
        b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"a" * 200_000,
    ],
)
async def test_what_is_not_http_ends_the_connection(
    nonsense: bytes, remote: LoopbackHomeserver
) -> None:
    async with talk(remote) as one:
        one.writer.write(nonsense)
        with suppress(ConnectionResetError):  # it closes with our bytes unread
            assert b"" == await one.read()

    assert [] == remote.requests


async def test_who_wants_no_other_answer_gets_none(remote: LoopbackHomeserver) -> None:
    async with talk(remote) as one:
        await one.ask(KEYS.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert b"" == await one.read()


# --- Faults -------------------------------------------------------------------------------------


@asynccontextmanager
async def faulty(remote: LoopbackHomeserver, fault: Fault) -> AsyncIterator[Talk]:
    """A connection on which the server's keys were asked for."""
    remote.fails(fault, endpoint="keys")
    async with talk(remote) as one:
        one.writer.write(KEYS)
        yield one


async def test_it_drips(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, Drips(interval=0.01)) as one:
        assert b"H" == await one.reader.readexactly(1)
        # All that has come since; of an answer in one piece it would be more.
        assert len(await one.reader.read(1000)) < 20


async def test_it_never_ends(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, EndlessBody(status=500)) as one:
        assert b"HTTP/1.1 500 " == await one.reader.readexactly(13)
        await one.reader.readexactly(1_000_000)


@pytest.mark.parametrize("announced", [True, False])
async def test_it_sends_very_much(announced: bool, remote: LoopbackHomeserver) -> None:
    async with faulty(remote, HugeBody(1_000_001, announced=announced)) as one:
        head, _, body = (await one.read()).partition(b"\r\n\r\n")

    assert 1_000_001 == len(body)
    assert announced == (b"content-length: 1000001" in head)


async def test_it_sends_a_bomb(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, GzipBomb(10_000_000)) as one:
        head, body = await one.ask(b"")

    assert b"content-encoding: gzip" in head
    assert len(body) < 20_000
    assert 10_000_000 == len(gzip.decompress(body))


async def test_it_has_many_headers(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, ManyHeaders(500)) as one:
        head, body = await one.ask(b"")

    assert head.count(b"\r\n") > 500
    assert IP == json.loads(body)["server_name"]


@pytest.mark.parametrize("fault", [LosesTheAnswer(), SaysRaw(b"")], ids=str)
async def test_it_closes_after_reading(fault: Fault, remote: LoopbackHomeserver) -> None:
    async with faulty(remote, fault) as one:
        assert b"" == await one.read()

    assert 1 == remote.counts["keys"]


async def test_it_breaks_off(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, BreaksOff()) as one:
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await one.ask(b"")

    assert 0 < len(caught.value.partial) < caught.value.expected  # type: ignore[operator]


async def test_it_says_anything(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, SaysRaw(b"SMTP at your service")) as one:
        assert b"SMTP at your service" == await one.read()


async def test_it_resets(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, Resets()) as one:
        with pytest.raises(ConnectionResetError):
            await one.read()


async def test_it_hangs_until_the_client_goes(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, Hangs()) as one:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await one.reader.read(1)
    await remote.until_quiet()


async def test_it_is_slow(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, Slow(0.01)) as one:
        _, body = await one.ask(b"")

    assert IP == json.loads(body)["server_name"]


async def test_it_closes_what_it_promised_to_keep(remote: LoopbackHomeserver) -> None:
    async with faulty(remote, ClosesAfterAnswering()) as one:
        head, _ = await one.ask(b"")
        assert b"connection: close" not in head.lower()
        assert b"" == await one.read()


async def test_it_dies_on_reuse(remote: LoopbackHomeserver) -> None:
    remote.fails(DiesOnReuse(), times=1)
    async with talk(remote) as one:
        await one.ask()
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await one.ask()
    async with talk(remote) as two:
        await two.ask()
        await two.ask()

    assert 3 == remote.counts["keys"]


async def test_it_closes_before_tls(remote: LoopbackHomeserver) -> None:
    remote.fails(ClosesBeforeTls(), times=1)
    with pytest.raises(OSError):
        async with talk(remote):
            pass

    assert ["not finished"] == [connection.handshake for connection in remote.connections]


async def test_it_never_completes_the_handshake(remote: LoopbackHomeserver) -> None:
    remote.fails(NeverCompletesTheHandshake())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), talk(remote):
            pass

    assert 0 == remote.handshakes


async def test_a_fault_of_ones_own_is_a_call(remote: LoopbackHomeserver) -> None:
    class Twice(WireFault):
        async def __call__(self, wire: Wire) -> None:
            for _ in range(2):
                await wire.send(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")

    async with faulty(remote, Twice()) as one:
        await one.ask(b"")
        await one.ask(b"")


async def test_a_fault_of_the_network_is_not_one_of_a_server(remote: LoopbackHomeserver) -> None:
    with pytest.raises(TypeError, match="cannot happen to a LoopbackHomeserver"):
        remote.fails(Refuses())


async def test_it_stops_and_comes_back(remote: LoopbackHomeserver) -> None:
    async with talk(remote) as one:
        await one.ask()
        await remote.stops()
        with suppress(ConnectionResetError):
            assert b"" == await one.read()
    with pytest.raises(ConnectionRefusedError):
        async with talk(remote):
            pass
    await remote.starts()
    async with talk(remote) as one:
        await one.ask()

    assert 2 == remote.counts["keys"]


@pytest.mark.parametrize("turns", range(6))
async def test_it_stops_at_any_moment_of_a_connection(
    turns: int, remote: LoopbackHomeserver
) -> None:
    with socket.create_connection(remote.network.reroute(IP, 8448)):
        for _ in range(turns):
            await asyncio.sleep(0)
        await remote.stops()


async def test_a_mistake_in_a_lie_is_told_at_the_end() -> None:
    def mistaken(_: HonestAnswer) -> Any:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        async with LoopbackHomeserver(IP) as remote:
            remote.lies(mistaken)
            policy = remote.network.policy(retries=Retries(attempts=1))
            async with remote.client(policy=policy) as client:
                with suppress(InviteError):
                    await client.send_invite(make_invite(f"@bob:{IP}"))


# --- Certificates -------------------------------------------------------------------------------


HOST = "matrix.remote.example"


@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (EXPIRED, "certificate has expired"),
        (SELF_SIGNED, "self-signed certificate"),
        (UNKNOWN_CA, "unable to get local issuer certificate"),
        (COMMON_NAME_ONLY, "mismatch"),
        (Certificate.of("remote.example", "example"), "mismatch"),
        (Certificate.of("*.matrix.remote.example"), "mismatch"),
        # A wildcard stands for one label, the leftmost (RFC 6125 § 6.4.3).
        (Certificate.of("*.example"), "mismatch"),
    ],
    ids=str,
)
async def test_a_wrong_certificate_is_wrong_as_it_is_called(
    certificate: Certificate, why: str
) -> None:
    async with LoopbackHomeserver(HOST, certificate=certificate) as remote:
        with pytest.raises(ssl.SSLCertVerificationError, match=why):
            async with talk(remote, HOST):
                pass
        await remote.until_quiet()

    assert [("failed", 0)] == [(c.handshake, c.bytes_received) for c in remote.connections]


@pytest.mark.parametrize(
    "certificate",
    [Certificate(), Certificate.of("*.remote.example"), Certificate.of("other.example", HOST)],
    ids=str,
)
async def test_a_right_certificate_is_right(certificate: Certificate) -> None:
    async with LoopbackHomeserver(HOST, certificate=certificate) as remote:
        async with talk(remote, HOST) as one:
            await one.ask()

        assert [(HOST, "finished")] == [(c.sni, c.handshake) for c in remote.connections]


async def test_a_name_in_the_subject_is_a_name_to_who_looks_there() -> None:
    async with (
        LoopbackHomeserver(HOST, certificate=COMMON_NAME_ONLY) as remote,
        talk(remote, HOST, common_name=True) as one,
    ):
        await one.ask()


async def test_it_can_be_too_old_for_tls_1_3() -> None:
    async with (
        LoopbackHomeserver(IP, maximum_tls=ssl.TLSVersion.TLSv1_2) as remote,
        talk(remote) as one,
    ):
        assert "TLSv1.2" == one.writer.get_extra_info("ssl_object").version()


# --- Where it is found --------------------------------------------------------------------------


async def get_well_known(remote: LoopbackHomeserver) -> tuple[bytes, bytes]:
    request = f"GET {WELL_KNOWN} HTTP/1.1\r\nHost: remote.example\r\n\r\n".encode()
    async with talk(remote, "remote.example", 443) as one:
        return await one.ask(request)


async def test_a_well_known_file_says_where_it_is() -> None:
    async with LoopbackHomeserver(well_known="matrix.example:8449") as remote:
        head, body = await get_well_known(remote)

        assert head.startswith(b"HTTP/1.1 200 ")
        assert {"m.server": "matrix.example:8449"} == json.loads(body)
        (request,) = remote.well_known_requests
        assert ("remote.example", 443) == (request.sni, request.port)
        assert [] == remote.requests


@pytest.mark.parametrize(
    ("well_known", "status", "body"),
    [
        (WellKnown(), 200, b"{}"),
        (WellKnown(status=404), 404, b"{}"),
        (WellKnown(body=b"<html>"), 200, b"<html>"),
        (WellKnown("not a name"), 200, b'{"m.server":"not a name"}'),
    ],
)
async def test_a_well_known_file_may_be_anything(
    well_known: WellKnown, status: int, body: bytes
) -> None:
    async with LoopbackHomeserver(well_known=well_known) as remote, remote.client() as client:
        head, found = await get_well_known(remote)
        assert (b"HTTP/1.1 %d " % status, body) == (head[:13], found)

        signed = await client.send_invite(make_invite())
        assert "6" == signed.resolved.step


async def test_a_well_known_file_has_headers_and_faults() -> None:
    told = WellKnown(
        "d.example", headers={"Cache-Control": "max-age=1"}, fault=SaysRaw(b"nonsense")
    )
    request = f"GET {WELL_KNOWN} HTTP/1.1\r\nHost: remote.example\r\n\r\n".encode()
    async with (
        LoopbackHomeserver(well_known=told) as remote,
        talk(remote, "remote.example", 443) as one,
    ):
        one.writer.write(request)
        assert b"nonsense" == await one.read()

    assert "max-age=1" == told.reply().headers["Cache-Control"]


async def test_a_well_known_file_is_reached_by_redirects() -> None:
    told = WellKnown(
        "d.example:9000",
        redirects=["https://www.example/a?b=c", "https://remote.example:444/d"],
        redirect_status=307,
    )
    async with LoopbackHomeserver(well_known=told) as remote, remote.client() as client:
        signed = await client.send_invite(make_invite())

        assert "3.2" == signed.resolved.step
        assert [
            ("remote.example", WELL_KNOWN, 443),
            ("www.example", "/a?b=c", 443),
            ("remote.example:444", "/d", 444),
        ] == [(r.host, r.uri, r.port) for r in remote.well_known_requests]


async def test_of_several_targets_some_may_be_down() -> None:
    srv = [
        Srv("down.example", 8448, priority=1, listens=False),
        Srv("wrong.example", 8449, priority=2, certificate=EXPIRED),
        Srv("up.example", 8450, priority=3),
    ]
    async with LoopbackHomeserver(srv=srv) as remote, remote.client() as client:
        await client.send_invite(make_invite())

        assert {8450} == {request.port for request in remote.requests}


async def test_a_target_of_a_dot_is_a_record_and_no_server() -> None:
    async with LoopbackHomeserver(srv=Srv(".")) as remote, remote.client() as client:
        with pytest.raises(UnreachableError, match="not offered"):
            await client.send_invite(make_invite())

        assert [] == remote.connections


async def test_its_hosts_have_addresses_of_both_kinds() -> None:
    async with LoopbackHomeserver(families=(6, 4)) as remote, remote.client() as client:
        await client.send_invite(make_invite())

        assert ["::1"] == remote.network.host("remote.example")[:1]
        assert {"::1"} == {request.address for request in remote.requests}


def test_a_fault_of_the_wire_says_what_it_does() -> None:
    """One that does not is found where it is made, and not in the middle of a connection."""

    class Nameless(WireFault):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nameless()  # type: ignore[abstract]
