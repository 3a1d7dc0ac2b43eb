"""One DNS question and its answer as bytes (RFC 1035 § 4). No IO.

The plain answer, records of the name itself or none at all, is read here; everything else, such as
aliases, by dnspython. That takes ten times as long, and a name that is new costs five questions.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from invite_client.net.dns import DnsAbsentError, DnsFailedError
from invite_client.spec.srv import SrvRecord

if TYPE_CHECKING:
    import dns.message

__all__ = ["Answer", "Kind", "Query", "Record", "UnusableError"]

Kind: TypeAlias = Literal["A", "AAAA", "SRV"]
Record: TypeAlias = IPv4Address | IPv6Address | SrvRecord

_PAYLOAD = 1232
"""Bytes of a UDP answer that pass every network unfragmented (DNS flag day 2020); a large SRV set
then needs no second question by TCP."""
_MOST_BYTES = 255  # RFC 1035 § 2.3.4, and the length of each label before it and the root's behind
_NAME = re.compile(r"[0-9A-Za-z_-]{1,63}(?:\.[0-9A-Za-z_-]{1,63})*", re.ASCII)

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_SRV = struct.Struct("!HHH")
_KINDS: Mapping[Kind, int] = {"A": 1, "AAAA": 28, "SRV": 33}
_CNAME, _SOA, _OPT_KIND = 5, 6, 41
_PRIVATE = (0xFF00).to_bytes(2)
"""RFC 6895 § 3.1: a kind of record whose data nobody reads."""
_INTERNET = 1
_MOST_RECORDS = 100
"""Records that dnspython is given, which may take milliseconds for one: a dozen aliases and addresses,
and all name servers of a zone with their own."""
_LONGEST_TTL = 2**31 - 1  # RFC 2181 § 8
# RFC 6891 § 6.1.2: the root's name, the type OPT, the payload; no flags, no options.
_OPT = struct.pack("!BHHIH", 0, _OPT_KIND, _PAYLOAD, 0, 0)

_RESPONSE, _OPERATION, _TRUNCATED, _RECURSION_DESIRED, _CODE = 0x8000, 0x7800, 0x0200, 0x0100, 0x0F
_NOERROR, _NXDOMAIN = 0, 3
_EXTENDED_CODE = (
    0x00FF_FFFF  # RFC 6891 § 6.1.3: what is above it in the TTL of OPT belongs to the code
)
_ASKED_NAME = b"\xc0\x0c"
"""RFC 1035 § 4.1.4: a pointer to the name in the question, which stands behind the header."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a zone says to a question that it has records for."""

    records: tuple[Record, ...]
    """At least one, in no order."""
    ttl: float
    """Seconds, the least of the whole chain: an alias may live shorter than what it leads to."""


class UnusableError(Exception):
    """A name server answered, and has no answer."""


class Query:
    """One question."""

    def __init__(self, name: str, kind: Kind) -> None:
        """Raises `DnsAbsentError` for what no zone can hold."""
        self._text, self._name, self._kind = f"{kind} {name}", name.removesuffix("."), kind
        if len(self._name) > _MOST_BYTES - 2 or not _NAME.fullmatch(self._name):
            # With ``_matrix-fed._tcp.`` before it, a name may be too long to exist.
            raise DnsAbsentError(f"{self._text}: not a DNS name", math.inf)
        labels = [bytes([len(label)]) + label.encode() for label in self._name.split(".")]
        self._wire = b"".join(labels) + struct.pack("!BHH", 0, _KINDS[kind], _INTERNET)

    def encode(self, number: int) -> bytes:
        """Return what is sent."""
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

    def read(self, data: bytes) -> Answer:
        """Return the answer in `data`, for which `is_answered` holds.

        Raises `DnsAbsentError` or `UnusableError`.
        """
        answer = self._read_plainly(data)
        if answer is not None:
            return answer
        # Imported when first used: dnspython takes as long to import as aiohttp.
        import dns.exception  # noqa: PLC0415
        import dns.message  # noqa: PLC0415
        import dns.rcode  # noqa: PLC0415

        code = int.from_bytes(data[2:4]) & _CODE
        if code not in (_NOERROR, _NXDOMAIN):
            raise UnusableError(dns.rcode.to_text(dns.rcode.Rcode(code)))
        try:
            return self.read_message(dns.message.from_wire(self._lightened(data)))
        except dns.exception.DNSException as error:
            raise UnusableError(type(error).__name__) from None

    def read_message(self, message: dns.message.Message) -> Answer:
        """Like `read`, from what dnspython has made of an answer; raises its exceptions too."""
        import dns.message  # noqa: PLC0415
        import dns.rcode  # noqa: PLC0415

        code = message.rcode()
        if code not in (_NOERROR, _NXDOMAIN) or not isinstance(message, dns.message.QueryMessage):
            raise UnusableError(dns.rcode.to_text(code))
        chain = message.resolve_chaining()
        if chain.answer is None:
            raise self._absent(code, _negative_ttl(message))
        records = tuple(_FROM_DNSPYTHON[self._kind](record) for record in chain.answer)
        return Answer(records, float(chain.minimum_ttl))

    def failed(self, why: str) -> DnsFailedError:
        """Return the error that says that nothing is known."""
        return DnsFailedError(f"{self._text}: {why}")

    def _absent(self, code: int, ttl: float) -> DnsAbsentError:
        nothing = "no such record" if code == _NOERROR else "no such name"
        return DnsAbsentError(f"{self._text}: {nothing}", ttl)

    def _lightened(self, data: bytes) -> bytes:
        """Hide from dnspython what does not matter: it may take seconds for a stranger's records."""
        counts = _HEADER.unpack_from(data)[3:]
        if sum(counts) > _MOST_RECORDS:
            raise UnusableError(f"more than {_MOST_RECORDS} records")
        light = bytearray(data)
        start = _HEADER.size + len(self._wire)
        with suppress(IndexError, ValueError, struct.error):  # dnspython finds out too
            for count, kinds in zip(
                counts, ((_KINDS[self._kind], _CNAME), (_SOA,), (_OPT_KIND,)), strict=True
            ):
                for _ in range(count):
                    begin = _behind_name(data, start)
                    kind, _, _, length = _RECORD.unpack_from(data, begin)
                    if kind not in kinds:
                        light[begin : begin + 2] = _PRIVATE
                    start = begin + _RECORD.size + length
        return bytes(light)

    def _read_plainly(self, data: bytes) -> Answer | None:
        """None for whatever is not plain, or not right: that is dnspython's to tell apart."""
        _, flags, questions, answers, authorities, others = _HEADER.unpack_from(data)
        code = flags & _CODE
        if code not in (_NOERROR, _NXDOMAIN) or flags & _TRUNCATED or (answers and code):
            return None
        wanted, read = (_KINDS[self._kind], _INTERNET), _FROM_WIRE[self._kind]
        records: list[Record] = []
        ttl, negative_ttl = math.inf, 0.0
        start = _HEADER.size + len(self._wire)
        try:
            for number in range(answers + authorities + others):
                name, start = start, _behind_name(data, start)
                kind, of, life, length = _RECORD.unpack_from(data, start)
                begin = start + _RECORD.size
                start = begin + length
                if start > len(data) or (kind == _SOA and life > _LONGEST_TTL):
                    return None
                if number < answers:
                    is_direct = data[name : name + 2] == _ASKED_NAME
                    if not is_direct or (kind, of) != wanted or life > _LONGEST_TTL:
                        return None
                    records.append(read(data[begin:start]))
                    ttl = min(ttl, life)
                elif number < answers + authorities and kind == _SOA:
                    # RFC 2308 § 5: the lesser of the SOA's TTL and its last field.
                    negative_ttl = min(life, int.from_bytes(data[start - 4 : start]))
                elif kind == _OPT_KIND and life > _EXTENDED_CODE:
                    return None
        except (IndexError, ValueError, struct.error):
            return None
        if start != len(data) or not questions:
            return None
        if not records:
            raise self._absent(code, negative_ttl)
        return Answer(tuple(dict.fromkeys(records)), ttl)


def _behind_name(data: bytes, start: int) -> int:
    """Return where a name ends. Raises `IndexError` or `ValueError` for what is none."""
    while length := data[start]:
        if length >= 0xC0:
            return start + 2
        if length > 63:
            raise ValueError
        start += 1 + length
    return start + 1


def _srv(data: bytes) -> SrvRecord:
    """Read the data of an SRV record, without compression (RFC 2782). Raises like `_behind_name`."""
    start, labels = _SRV.size, []
    while length := data[start]:
        if length > 63:
            raise ValueError
        label = data[start + 1 : start + 1 + length]
        if b"." in label:  # it would be two
            raise ValueError
        labels.append(label)
        start += 1 + length
    target = b".".join(labels).decode("ascii")
    if start + 1 != len(data) or (labels and not _NAME.fullmatch(target)):
        raise ValueError
    priority, weight, port = _SRV.unpack_from(data)
    return SrvRecord(priority, weight, port, target or ".")  # a single dot says "not offered"


_FROM_WIRE: Mapping[Kind, Callable[[bytes], Record]] = {
    "A": IPv4Address,
    "AAAA": IPv6Address,
    "SRV": _srv,
}

_FROM_DNSPYTHON: Mapping[Kind, Callable[[Any], Record]] = {
    "A": lambda record: IPv4Address(record.address),
    "AAAA": lambda record: IPv6Address(record.address),
    "SRV": lambda record: SrvRecord(
        record.priority,
        record.weight,
        record.port,
        record.target.to_text().removesuffix(".") or ".",
    ),
}


def _negative_ttl(message: dns.message.Message) -> float:
    """RFC 2308 § 5."""
    for rrset in message.authority:
        for record in rrset:
            if rrset.rdtype == _SOA:
                return float(min(rrset.ttl, record.minimum))
    return 0.0
