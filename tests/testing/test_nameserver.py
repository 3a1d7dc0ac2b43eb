"""A name server on loopback, asked by dnspython, which is not what it is made of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.rcode
import pytest

from invite_client.testing import (
    NO_ANSWER,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    TRUNCATED,
    DnsFault,
    NameServer,
    Question,
)

pytestmark = [pytest.mark.loopback, pytest.mark.usefixtures("no_socket_is_left_behind")]

NAME = "remote.example"


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    made = NameServer(ttl=120, negative_ttl=7)
    await made.start()
    yield made
    await made.stop()


async def ask(
    server: NameServer, name: str, kind: str = "A", *, tcp: bool = False, **options: Any
) -> dns.message.Message:
    query = dns.message.make_query(name, kind, **options)
    way = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    return await way(query, server.address, port=server.port, timeout=2)


def answers(message: dns.message.Message) -> list[str]:
    return [f"{r.ttl} {record}" for r in message.answer for record in r]


@pytest.mark.parametrize("tcp", [False, True])
async def test_it_answers_what_it_was_told(tcp: bool, server: NameServer) -> None:
    server.add(NAME, "A", "127.1.1.1")
    server.add(NAME, "A", "127.1.1.2", ttl=5)
    server.add(NAME, "AAAA", "::1")
    server.add(f"_matrix-fed._tcp.{NAME}", "SRV", 1, 2, 3, "srv.example")

    # One set of records has one lifetime: the shortest.
    assert {"5 127.1.1.1", "5 127.1.1.2"} == set(answers(await ask(server, NAME, tcp=tcp)))
    assert ["120 ::1"] == answers(await ask(server, NAME.upper(), "AAAA", tcp=tcp))
    assert ["120 1 2 3 srv.example."] == answers(
        await ask(server, f"_matrix-fed._tcp.{NAME}", "SRV", tcp=tcp)
    )


async def test_a_target_may_be_the_root(server: NameServer) -> None:
    server.add(NAME, "SRV", 0, 0, 0, ".")

    assert ["120 0 0 0 ."] == answers(await ask(server, NAME, "SRV"))


async def test_it_follows_its_own_aliases(server: NameServer) -> None:
    server.add(NAME, "CNAME", "b.example")
    server.add("b.example", "CNAME", "c.example")
    server.add("c.example", "A", "127.1.1.1")

    assert ["120 b.example.", "120 c.example.", "120 127.1.1.1"] == answers(await ask(server, NAME))


async def test_aliases_in_a_circle_come_to_an_end(server: NameServer) -> None:
    server.add(NAME, "CNAME", NAME)

    assert answers(await ask(server, NAME))


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("nobody.example", "A", dns.rcode.NXDOMAIN),
        (NAME, "AAAA", dns.rcode.NOERROR),  # the name is there, the record is not
        ("_tcp.remote.example", "A", dns.rcode.NOERROR),  # something stands below it (RFC 8020)
    ],
)
async def test_what_is_absent_is_absent_for_a_time(
    name: str, kind: str, rcode: int, server: NameServer
) -> None:
    server.add(NAME, "A", "127.1.1.1")
    server.add(f"_matrix-fed._tcp.{NAME}", "SRV", 1, 2, 3, "srv.example")
    reply = await ask(server, name, kind)

    assert (rcode, []) == (reply.rcode(), answers(reply))
    (soa,) = reply.authority
    assert (7, 7) == (soa.ttl, soa[0].minimum)


async def test_records_can_be_removed(server: NameServer) -> None:
    server.add(NAME, "A", "127.1.1.1")
    server.add(NAME, "AAAA", "::1")
    server.remove(NAME, "A")
    assert dns.rcode.NOERROR == (await ask(server, NAME)).rcode()
    server.remove(NAME)
    assert dns.rcode.NXDOMAIN == (await ask(server, NAME)).rcode()


@pytest.mark.parametrize(
    ("fault", "rcode"),
    [
        (SERVFAIL, dns.rcode.SERVFAIL),
        (REFUSED, dns.rcode.REFUSED),
        (NXDOMAIN, dns.rcode.NXDOMAIN),
        (DnsFault(delay=0.01), dns.rcode.NOERROR),
    ],
)
async def test_it_fails_as_often_as_told(fault: DnsFault, rcode: int, server: NameServer) -> None:
    server.add(NAME, "A", "127.1.1.1")
    server.fails(NAME, fault, times=2)

    assert [rcode, rcode, dns.rcode.NOERROR] == [
        (await ask(server, NAME)).rcode() for _ in range(3)
    ]


async def test_it_fails_for_one_kind_only_until_it_behaves(server: NameServer) -> None:
    server.add(NAME, "A", "127.1.1.1")
    server.add(NAME, "AAAA", "::1")
    server.fails(NAME, SERVFAIL, kind="AAAA")
    assert dns.rcode.NOERROR == (await ask(server, NAME, "A")).rcode()
    assert dns.rcode.SERVFAIL == (await ask(server, NAME, "AAAA")).rcode()

    server.behaves()
    assert dns.rcode.NOERROR == (await ask(server, NAME, "AAAA")).rcode()


@pytest.mark.parametrize("tcp", [False, True])
async def test_it_may_say_nothing(tcp: bool, server: NameServer) -> None:
    server.fails(NAME, NO_ANSWER)
    query = dns.message.make_query(NAME, "A")
    way = dns.asyncquery.tcp if tcp else dns.asyncquery.udp
    with pytest.raises(dns.exception.Timeout):
        await way(query, server.address, port=server.port, timeout=0.1)

    assert [Question(NAME, "A", "tcp" if tcp else "udp")] == server.questions


async def test_what_is_truncated_by_udp_is_whole_by_tcp(server: NameServer) -> None:
    server.add(NAME, "A", "127.1.1.1")
    server.fails(NAME, TRUNCATED)
    short = await ask(server, NAME)
    assert (True, []) == (bool(short.flags & dns.flags.TC), answers(short))

    assert ["120 127.1.1.1"] == answers(await ask(server, NAME, tcp=True))
    assert ["udp", "tcp"] == [question.protocol for question in server.questions]


async def test_what_is_too_long_for_who_asks_is_truncated(server: NameServer) -> None:
    for number in range(40):
        server.add(NAME, "A", f"127.1.1.{number}")

    assert (await ask(server, NAME)).flags & dns.flags.TC
    assert 40 == len((await ask(server, NAME, payload=4096)).answer[0])


async def test_what_was_asked_is_counted(server: NameServer) -> None:
    await ask(server, NAME, "A")
    await ask(server, NAME, "SRV")

    assert (2, 1, 0) == (
        server.asked(NAME),
        server.asked(f"{NAME}.", "SRV"),
        server.asked("other.example"),
    )


async def test_what_is_no_question_is_not_answered(server: NameServer) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=(server.address, server.port)
    )
    transport.sendto(b"?")
    transport.close()
    _, writer = await asyncio.open_connection(server.address, server.port)
    writer.write(b"\x00\x01?")
    writer.close()
    await writer.wait_closed()

    assert dns.rcode.NXDOMAIN == (await ask(server, NAME)).rcode()


async def test_stopping_ends_what_is_under_way(server: NameServer) -> None:
    server.fails(NAME, DnsFault(delay=60))
    asking = asyncio.create_task(ask(server, NAME, tcp=True))
    while not server.questions:
        await asyncio.sleep(0.001)
    await server.stop()

    with pytest.raises((EOFError, OSError)):
        await asking
