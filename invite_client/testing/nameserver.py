"""A DNS server on loopback, by UDP and TCP, with zones of its own and faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import dnslib

__all__ = [
    "NO_ANSWER",
    "NXDOMAIN",
    "REFUSED",
    "SERVFAIL",
    "TRUNCATED",
    "DnsFault",
    "NameServer",
    "Question",
]

Kind: TypeAlias = Literal["A", "AAAA", "CNAME", "SRV"]

_CHAIN = 8
"""CNAMEs that are followed, as by most resolvers."""
_PLAIN_PAYLOAD = 512
"""Bytes of a UDP answer to who does not say more (RFC 1035 § 4.2.1)."""
_ATTEMPTS = 20
"""Ports that are tried until one is free for UDP and TCP alike."""


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked."""

    name: str
    """In lower case, without the last dot."""
    kind: str
    """``A``, ``AAAA``, ``SRV`` …"""
    protocol: Literal["udp", "tcp"]


@dataclass(frozen=True, slots=True)
class DnsFault:
    """What is answered in place of what the zone says."""

    rcode: Literal["SERVFAIL", "NXDOMAIN", "REFUSED"] | None = None
    """An error."""
    silent: bool = False
    """No answer at all."""
    truncated: bool = False
    """By UDP, nothing but the word that the answer is too long for it (RFC 1035 § 4.1.1)."""
    delay: float = 0.0
    """Seconds that the answer takes."""


SERVFAIL = DnsFault(rcode="SERVFAIL")
NXDOMAIN = DnsFault(rcode="NXDOMAIN")
REFUSED = DnsFault(rcode="REFUSED")
NO_ANSWER = DnsFault(silent=True)
TRUNCATED = DnsFault(truncated=True)


@dataclass(slots=True)
class _Told:
    fault: DnsFault
    name: str
    kind: Kind | None
    times: int | None


class NameServer:
    """Authoritative for all the names that there are.

    dns.add("srv.example", "A", "127.1.2.3")
    dns.add("_matrix-fed._tcp.remote.example", "SRV", 10, 5, 8448, "srv.example")
    dns.fails("remote.example", SERVFAIL, kind="AAAA")
    """

    def __init__(self, *, ttl: int = 60, negative_ttl: int = 60) -> None:
        """Know nothing yet. `negative_ttl` is for how many seconds an absence may be kept."""
        self.ttl = ttl
        self.negative_ttl = negative_ttl
        self.address = "127.0.0.1"
        self.port: int = 0
        self.questions: list[Question] = []
        """Everything that was asked, in order."""
        self._zone: dict[str, list[dnslib.RR]] = defaultdict(list)
        self._told: list[_Told] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None

    # --- What it knows --------------------------------------------------------------------------

    def add(self, name: str, kind: Kind, *data: str | int, ttl: int | None = None) -> None:
        """Add a record: an address; another name; or priority, weight, port and target."""
        key = _key(name)
        rdata = getattr(dnslib, kind)(*data)
        if kind == "SRV" and data[3] == ".":  # dnslib makes an empty label of it
            rdata.target = dnslib.DNSLabel([])
        lifetime = self.ttl if ttl is None else ttl
        record = dnslib.RR(key, getattr(dnslib.QTYPE, kind), rdata=rdata, ttl=lifetime)
        self._zone[key].append(record)

    def remove(self, name: str, kind: Kind | None = None) -> None:
        """Remove the records of a name."""
        key = _key(name)
        kept = [r for r in self._zone.pop(key, []) if kind and dnslib.QTYPE[r.rtype] != kind]
        if kept:
            self._zone[key] = kept

    def fails(
        self, name: str, fault: DnsFault, *, kind: Kind | None = None, times: int | None = None
    ) -> None:
        """Answer the next `times` questions about a name (of this kind), or all of them, so."""
        self._told.append(_Told(fault, _key(name), kind, times))

    def behaves(self) -> None:
        """Answer everything again."""
        self._told.clear()

    def asked(self, name: str, kind: Kind | None = None) -> int:
        """Return how often a name (of this kind) was asked for."""
        return sum(q.name == _key(name) and kind in (None, q.kind) for q in self.questions)

    # --- What it answers ------------------------------------------------------------------------

    async def answer(self, data: bytes, protocol: Literal["udp", "tcp"]) -> bytes | None:
        """Return the answer to a question as bytes; None if there is to be none."""
        try:
            request = dnslib.DNSRecord.parse(data)
            name, kind = _key(str(request.q.qname)), str(dnslib.QTYPE[request.q.qtype])
        except dnslib.DNSError:
            return None
        self.questions.append(Question(name, kind, protocol))
        fault = self._next_fault(name, kind)
        await asyncio.sleep(fault.delay)
        if fault.silent:
            return None
        if fault.rcode is not None:
            reply = request.reply()
            reply.header.rcode = getattr(dnslib.RCODE, fault.rcode)
            if fault.rcode == "NXDOMAIN":
                reply.add_auth(self._soa(name))
        else:
            reply = self._look_up(request, name, kind)
        packed: bytes = reply.pack()
        if protocol == "udp" and (fault.truncated or len(packed) > _payload(request)):
            reply = request.reply()
            reply.header.tc = 1
            packed = reply.pack()
        return packed

    def _next_fault(self, name: str, kind: str) -> DnsFault:
        for told in self._told:
            if told.name == name and told.kind in (None, kind):
                if told.times is not None:
                    told.times -= 1
                    if not told.times:
                        self._told.remove(told)
                return told.fault
        return DnsFault()

    def _look_up(self, request: Any, name: str, kind: str) -> Any:
        reply = request.reply()
        for _ in range(_CHAIN):
            records = self._zone.get(name, [])
            found = [r for r in records if dnslib.QTYPE[r.rtype] == kind]
            alias = [r for r in records if dnslib.QTYPE[r.rtype] == "CNAME"]
            reply.add_answer(*(found or alias))
            if found:
                return reply
            if not alias:
                break
            name = _key(str(alias[0].rdata.label))
        # RFC 2308: no such record, or, if nothing stands below it either, no such name.
        if not self._zone.get(name) and not any(key.endswith(f".{name}") for key in self._zone):
            reply.header.rcode = dnslib.RCODE.NXDOMAIN
        reply.add_auth(self._soa(name))
        return reply

    def _soa(self, name: str) -> Any:
        times = (1, 3600, 600, 86400, self.negative_ttl)
        soa = dnslib.SOA(f"ns.{name}", f"hostmaster.{name}", times)
        return dnslib.RR(name, dnslib.QTYPE.SOA, rdata=soa, ttl=self.negative_ttl)

    # --- Where it listens -----------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, by UDP and TCP, at a port that is free for both."""
        loop = asyncio.get_running_loop()
        for attempt in range(_ATTEMPTS):
            tcp = await asyncio.start_server(self._serve_tcp, self.address, 0)
            self.port = tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=(self.address, self.port)
                )
            except OSError:
                tcp.close()
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                self._tcp = tcp
                return

    async def stop(self) -> None:
        """Close what is open and end what runs."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # what was closed is told so in the next turn of the loop

    def serve_datagram(
        self, data: bytes, sender: Any, transport: asyncio.DatagramTransport
    ) -> None:
        """Answer one datagram, beside all others."""

        async def serve() -> None:
            reply = await self.answer(data, "udp")
            if reply is not None and not transport.is_closing():
                transport.sendto(reply, sender)

        task = asyncio.get_running_loop().create_task(serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a coroutine runs in one
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            # Who is cut off in the middle, or goes, needs no answer.
            with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
                while True:
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    reply = await self.answer(await reader.readexactly(length), "tcp")
                    if reply is None:
                        continue
                    writer.write(len(reply).to_bytes(2, "big") + reply)
                    await writer.drain()
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._transport is not None:
            self._server.serve_datagram(data, addr, self._transport)


def _key(name: str) -> str:
    return name.lower().removesuffix(".")


def _payload(request: Any) -> int:
    """How many bytes of a UDP answer the asker takes (RFC 6891 § 6.2.3)."""
    sizes: list[int] = [r.rclass for r in request.ar if r.rtype == dnslib.QTYPE.OPT]
    return max([_PLAIN_PAYLOAD, *sizes])
