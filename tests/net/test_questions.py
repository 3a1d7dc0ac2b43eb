"""Questions on the wire: which datagrams are believed, and what else is asked when one is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.resolver
import dns.rrset
import pytest

from invite_client.net.dns import DnsFailedError
from invite_client.net.questions import NameServers
from invite_client.policy import DnsPolicy

NAME = "remote.example"
TRUE, FORGED = "192.0.2.1", "192.0.2.66"

Datagrams = list[bytes]
Script = Callable[[dns.message.Message, int], Datagrams]


def answer(query: dns.message.Message, *addresses: str) -> dns.message.Message:
    response = dns.message.make_response(query)
    response.answer.append(dns.rrset.from_text(f"{NAME}.", 60, "IN", "A", *addresses))
    return response


class Server(asyncio.DatagramProtocol):
    """Answers each question with the datagrams that a script makes of it."""

    def __init__(self) -> None:
        self.script: Script = lambda query, _: [answer(query, TRUE).to_wire()]
        self.asked: list[tuple[int, int]] = []
        """The ID and the source port of each question."""
        self.transport: Any = None
        self.tcp: Any = None
        """A socket with the same port, where nobody listens yet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        self.asked.append((query.id, addr[1]))
        for datagram in self.script(query, len(self.asked)):
            self.transport.sendto(datagram, addr)

    @property
    def port(self) -> int:
        port: int = self.transport.get_extra_info("sockname")[1]
        return port


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    loop = asyncio.get_running_loop()
    with socket.socket() as tcp:  # its port is free by both protocols, and stays so
        tcp.bind(("127.0.0.1", 0))
        transport, protocol = await loop.create_datagram_endpoint(
            Server, local_addr=tcp.getsockname()
        )
        protocol.tcp = tcp
        yield protocol
        transport.close()
        await asyncio.sleep(0)


def asking(server: Server, *others: str, timeout: float = 5.0) -> NameServers:
    return NameServers(
        DnsPolicy(nameservers=("127.0.0.1", *others), port=server.port, timeout=timeout)
    )


async def found(servers: NameServers) -> list[str]:
    with servers.begin(NAME, "A") as asking:
        return [str(record) for record in (await asking.answer()).records]


def other_id(query: dns.message.Message) -> bytes:
    forged = answer(query, FORGED)
    forged.id ^= 1
    return forged.to_wire()


def other_question(query: dns.message.Message) -> bytes:
    asked = dns.message.make_query("else.example", "A")
    asked.id = query.id
    return answer(asked, FORGED).to_wire()


def other_kind(query: dns.message.Message) -> bytes:
    asked = dns.message.make_query(NAME, "AAAA")
    asked.id = query.id
    return answer(asked, FORGED).to_wire()


def no_response(query: dns.message.Message) -> bytes:
    forged = answer(query, FORGED)
    forged.flags &= ~dns.flags.QR
    return forged.to_wire()


def other_operation(query: dns.message.Message) -> bytes:
    wire = answer(query, FORGED).to_wire()
    return wire[:2] + bytes([wire[2] | dns.opcode.UPDATE << 3]) + wire[3:]


def no_question(query: dns.message.Message) -> bytes:
    forged = answer(query, FORGED)
    forged.question = []
    return forged.to_wire()


def too_short(query: dns.message.Message) -> bytes:
    return answer(query, FORGED).to_wire()[:11]


FORGERIES = [
    other_id,
    other_question,
    other_kind,
    no_response,
    other_operation,
    no_question,
    too_short,
]


@pytest.mark.parametrize("forge", FORGERIES)
async def test_what_answers_another_question_is_not_heard(
    forge: Callable[[dns.message.Message], bytes], server: Server
) -> None:
    server.script = lambda query, _: [forge(query), answer(query, TRUE).to_wire()]

    assert [TRUE] == await found(asking(server))
    assert 1 == len(server.asked)


async def test_what_comes_from_elsewhere_is_not_heard(server: Server) -> None:
    """Even if it knows everything that can be guessed."""
    loop = asyncio.get_running_loop()
    stranger, _ = await loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    )

    def script(query: dns.message.Message, _: int) -> Datagrams:
        stranger.sendto(answer(query, FORGED).to_wire(), ("127.0.0.1", server.asked[-1][1]))
        return [answer(query, TRUE).to_wire()]

    server.script = script
    try:
        assert [TRUE] == await found(asking(server))
    finally:
        stranger.close()


class TestByTcp:
    """Where what came by UDP is not to be relied on."""

    @pytest.fixture(autouse=True)
    async def listener(self, server: Server) -> AsyncIterator[None]:
        self.says: Callable[[dns.message.Message], bytes] = lambda q: answer(q, TRUE).to_wire()
        self.asked = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            length = int.from_bytes(await reader.readexactly(2))
            query = dns.message.from_wire(await reader.readexactly(length))
            self.asked += 1
            said = self.says(query)
            writer.write(len(answer(query, TRUE).to_wire()).to_bytes(2) + said)
            writer.close()

        listener = await asyncio.start_server(serve, sock=server.tcp)
        async with listener:
            yield

    async def test_is_asked_who_lets_others_guess_the_id(self, server: Server) -> None:
        """There are 65,536, and it takes a moment to try them all."""
        server.script = lambda query, _: [
            *(guess.to_bytes(2) + other_id(query)[2:] for guess in range(100) if guess != query.id),
            answer(query, FORGED).to_wire(),
        ]

        assert [TRUE] == await found(asking(server))
        assert 1 == self.asked

    @pytest.mark.parametrize(
        ("says", "words"),
        [
            (other_id, "another question"),
            (other_question, "another question|before the answer"),
            (lambda query: answer(query, TRUE).to_wire()[:-1], "before the answer"),
            (lambda _: b"", "before the answer"),
        ],
        ids=["another ID", "another question", "cut off", "nothing"],
    )
    async def test_what_is_no_answer_is_none(
        self, says: Callable[[dns.message.Message], bytes], words: str, server: Server
    ) -> None:
        def script(query: dns.message.Message, _: int) -> Datagrams:
            response = dns.message.make_response(query)
            response.flags |= dns.flags.TC
            return [response.to_wire()]

        server.script, self.says = script, says

        with pytest.raises(DnsFailedError, match=words):
            await found(asking(server))


async def test_a_line_that_nobody_understands_in_the_systems_list_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(resolver: dns.resolver.Resolver, _: object) -> None:
        resolver.nameservers = ["127.0.0.1", "nobody"]

    monkeypatch.setattr(dns.resolver.Resolver, "read_resolv_conf", read)

    with pytest.raises(DnsFailedError, match=r"dns\.nameservers.*nobody"):
        NameServers(DnsPolicy())


async def test_neither_id_nor_port_can_be_guessed_from_those_before(server: Server) -> None:
    servers = asking(server)
    for _ in range(40):
        await found(servers)
    numbers, ports = zip(*server.asked, strict=True)

    for drawn in (numbers, ports):
        assert len(set(drawn)) > 30
        assert sorted(drawn) != list(drawn)


async def test_names_may_come_back_in_other_letters(server: Server) -> None:
    def script(query: dns.message.Message, _: int) -> Datagrams:
        wire = answer(query, TRUE).to_wire()
        return [wire.replace(b"remote", b"ReMoTe")]

    server.script = script

    assert [TRUE] == await found(asking(server))


async def test_a_datagram_may_be_lost(server: Server) -> None:
    server.script = lambda query, time: [] if time == 1 else [answer(query, TRUE).to_wire()]

    assert [TRUE] == await found(asking(server, timeout=1.0))
    assert server.asked[0] != server.asked[1]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda wire: wire[:-3], "FormError"),
        (lambda wire: wire + b"more", "TrailingJunk"),
    ],
    ids=["cut off", "with more behind it"],
)
async def test_an_answer_that_cannot_be_read_is_none(
    spoil: Callable[[bytes], bytes], words: str, server: Server
) -> None:
    server.script = lambda query, _: [spoil(answer(query, TRUE).to_wire())]

    with pytest.raises(DnsFailedError, match=words):
        await found(asking(server))


@pytest.mark.parametrize("code", ["FORMERR", "SERVFAIL", "NOTIMP", "REFUSED"])
@pytest.mark.parametrize("repeated", [True, False], ids=["question", "no question"])
async def test_a_refusal_is_told(code: str, repeated: bool, server: Server) -> None:
    def script(query: dns.message.Message, _: int) -> Datagrams:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.from_text(code))
        if not repeated:
            response.question = []
        return [response.to_wire()]

    server.script = script

    with pytest.raises(DnsFailedError, match=code):
        await found(asking(server))


async def test_a_port_where_nobody_listens_costs_no_time(server: Server) -> None:
    """The kernel is told at once, and tells us."""
    servers = asking(server, "127.9.9.9", timeout=3600.0)
    for _ in range(10):
        assert [TRUE] == await found(servers)


async def test_nobody_listens_anywhere(server: Server) -> None:
    servers = asking(server)
    server.transport.close()
    await asyncio.sleep(0)

    with pytest.raises(DnsFailedError, match="refused"):
        await found(servers)


async def test_a_circle_of_aliases_is_no_answer(server: Server) -> None:
    def script(query: dns.message.Message, _: int) -> Datagrams:
        response = dns.message.make_response(query)
        for here, there in (("remote", "b"), ("b", "remote")):
            response.answer.append(
                dns.rrset.from_text(f"{here}.example.", 60, "IN", "CNAME", f"{there}.example.")
            )
        return [response.to_wire()]

    server.script = script

    with pytest.raises(DnsFailedError, match="ChainTooLong"):
        await found(asking(server))


async def test_records_of_other_names_are_not_taken_for_those_asked_for(server: Server) -> None:
    def script(query: dns.message.Message, _: int) -> Datagrams:
        response = answer(query, TRUE)
        response.answer.append(dns.rrset.from_text("else.example.", 60, "IN", "A", FORGED))
        return [response.to_wire()]

    server.script = script

    assert [TRUE] == await found(asking(server))
