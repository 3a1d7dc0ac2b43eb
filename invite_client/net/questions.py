"""One question to the name servers: by UDP, and by TCP where the answer does not fit.

dnspython reads the system's configuration and the answers. Its resolver is left out: it takes three
times as long, and a name that is new costs five questions.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any

import dns.asyncquery
import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver
from dns.rdtypes.ANY.SOA import SOA

from invite_client.net.dns import DnsAbsentError, DnsFailedError
from invite_client.policy import DnsPolicy

__all__ = ["Answer", "NameServers"]

_PAYLOAD = 1232
"""Bytes of a UDP answer that pass every network unfragmented (DNS flag day 2020); a large SRV set
then needs no second question by TCP."""
_MOST = 65_535
_PORT = 53
_HEADER = struct.Struct("!HHHHHH")
_KIND_AND_CLASS = struct.Struct("!HH")
_INTERNET = 1
# RFC 6891 § 6.1.2: the root's name, the type OPT, the payload; no flags, no options.
_OPT = struct.pack("!BHHIH", 0, 41, _PAYLOAD, 0, 0)
_RECURSION_DESIRED = 0x0100
_RESPONSE, _OPERATION, _CODE = 0x8000, 0x7800, 0x000F
_TRUNCATED = 0x02
"""In the third byte of an answer."""
_NOERROR, _NXDOMAIN = int(dns.rcode.NOERROR), int(dns.rcode.NXDOMAIN)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a zone says to a question that it has records for."""

    records: tuple[Any, ...]
    """dnspython's: at least one."""
    ttl: float
    """Seconds, the least of the whole chain: an alias may live shorter than what it leads to."""


class NameServers:
    """The name servers of a policy, or those of this system."""

    def __init__(self, policy: DnsPolicy) -> None:
        """Ask nothing yet. Raises `DnsFailedError` if there is nobody to ask."""
        self._timeout = policy.timeout
        self._servers = list(policy.servers)
        if not self._servers:
            try:
                configured = dns.resolver.Resolver().nameservers
            except dns.resolver.NoResolverConfiguration:
                raise DnsFailedError("this system names no name server (dns.nameservers)") from None
            self._servers = [(str(address), _PORT) for address in configured]

    async def ask(self, name: str, kind: str) -> Answer:
        """Return the records.

        Raises `DnsAbsentError` if there are none, `DnsFailedError` if that cannot be known.
        """
        query = _Query(name, kind)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        # In any order, so that one that is dead does not cost everybody its time.
        waiting = deque(random.sample(self._servers, len(self._servers)))
        faults: set[str] = set()
        while waiting:
            left = deadline - loop.time()
            if left <= 0:
                raise query.failed(f"no name server answered within {self._timeout:g} s")
            server = waiting.popleft()
            try:
                # A dead one costs half the time, not all of it.
                async with asyncio.timeout(min(left, self._timeout / 2)):
                    return await _ask_one(server, query)
            except TimeoutError:
                waiting.append(server)  # a datagram may be lost
            except DnsAbsentError:
                raise
            except _UnusableError as error:
                faults.add(str(error))
            except OSError as error:
                faults.add(error.strerror or type(error).__name__)
            except (dns.exception.DNSException, EOFError, ValueError) as error:
                faults.add(type(error).__name__)
        raise query.failed(", ".join(sorted(faults)) or "no usable name server")


class _UnusableError(Exception):
    """A name server answered, and has no answer."""


class _Query:
    """A question on the wire."""

    def __init__(self, name: str, kind: str) -> None:
        """Raises `DnsAbsentError` for what no zone can hold."""
        self.text = f"{kind} {name}"
        self._name, self._kind = name, kind
        try:
            encoded = dns.name.from_text(name).to_wire() or b""
        except (dns.exception.SyntaxError, dns.name.NameTooLong):
            # With ``_matrix-fed._tcp.`` before it, a name may be too long to exist.
            raise DnsAbsentError(f"{self.text}: not a DNS name", math.inf) from None
        except dns.exception.DNSException as error:
            raise self.failed(type(error).__name__) from None
        self._wire = encoded + _KIND_AND_CLASS.pack(dns.rdatatype.RdataType[kind], _INTERNET)

    def encode(self, number: int) -> bytes:
        """Return the datagram."""
        return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 1) + self._wire + _OPT

    def is_answered(self, number: int, data: bytes) -> bool:
        """Whether this is an answer to it, and not to another question, or a stranger's guess."""
        if len(data) < _HEADER.size:
            return False
        theirs, flags, questions, *_ = _HEADER.unpack_from(data)
        if theirs != number or flags & (_RESPONSE | _OPERATION) != _RESPONSE:
            return False
        if not questions:
            return flags & _CODE not in (_NOERROR, _NXDOMAIN)  # what was not understood
        # Names may come back in other letters; no byte that is not of a name is changed by this.
        end = _HEADER.size + len(self._wire)
        return questions == 1 and data[_HEADER.size : end].lower() == self._wire.lower()

    def to_message(self) -> dns.message.QueryMessage:
        """Return it as dnspython wants it."""
        return dns.message.make_query(self._name, self._kind, use_edns=0, payload=_PAYLOAD)

    def failed(self, why: str) -> DnsFailedError:
        return DnsFailedError(f"{self.text}: {why}")


async def _ask_one(server: tuple[str, int], query: _Query) -> Answer:
    data = await _ask_by_udp(server, query)
    if data[2] & _TRUNCATED:
        address, port = server
        message = await dns.asyncquery.tcp(query.to_message(), address, port=port)
    else:
        message = dns.message.from_wire(data)
    return _read(message, query)


async def _ask_by_udp(server: tuple[str, int], query: _Query) -> bytes:
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    # A socket for each question: what the system draws is a port that nobody can guess (RFC 5452
    # § 9.2), and it lets through only what comes from the server that was asked.
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(server)
        number = secrets.randbits(16)
        sock.send(query.encode(number))
        loop = asyncio.get_running_loop()
        while True:
            data = await loop.sock_recv(sock, _MOST)
            if query.is_answered(number, data):
                return data


def _read(message: dns.message.Message, query: _Query) -> Answer:
    code = message.rcode()
    if code not in (_NOERROR, _NXDOMAIN) or not isinstance(message, dns.message.QueryMessage):
        raise _UnusableError(dns.rcode.to_text(code))
    chain = message.resolve_chaining()
    if chain.answer is None:
        nothing = "no such record" if code == _NOERROR else "no such name"
        raise DnsAbsentError(f"{query.text}: {nothing}", _negative_ttl(message))
    return Answer(tuple(chain.answer), float(chain.minimum_ttl))


def _negative_ttl(message: dns.message.Message) -> float:
    """RFC 2308 § 5: the lesser of the SOA's TTL and its minimum field."""
    for rrset in message.authority:
        for record in rrset:
            if isinstance(record, SOA):
                return float(min(rrset.ttl, record.minimum))
    return 0.0
