"""Answers as bytes: what is read here is what dnspython reads in them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.net.answers import Answer, Kind, Query, UnusableError
from invite_client.net.dns import DnsAbsentError

NAME = "remote.example"

KINDS: list[Kind] = ["A", "AAAA", "SRV"]
ports = st.integers(0, 65_535).map(str)
records: dict[Kind, st.SearchStrategy[str]] = {
    "A": st.ip_addresses(v=4).map(str),
    "AAAA": st.ip_addresses(v=6).map(str),
    "SRV": st.tuples(
        ports,
        ports,
        ports,
        st.sampled_from(["srv.example.", f"a.b.{NAME}.", ".", "x\\032y.org.", "x\\046y.org."]),
    ).map(" ".join),
}


Sections = tuple[list[dns.rrset.RRset], list[dns.rrset.RRset], list[dns.rrset.RRset], int]


def response(kind: Kind) -> dns.message.QueryMessage:
    query = dns.message.make_query(NAME, kind, use_edns=0, payload=1232, id=7)
    message = dns.message.make_response(query)
    message.flags |= dns.flags.RA
    return message


@st.composite
def responses(draw: st.DrawFn, kind: Kind) -> Sections:
    """What stands in a response."""
    answers, authorities, others = [], [], []
    ttls = st.integers(0, 2**31 - 1)
    owner = draw(st.sampled_from([NAME, NAME, "alias.example"]))
    if owner != NAME:
        answers.append(dns.rrset.from_text(f"{NAME}.", draw(ttls), "IN", "CNAME", f"{owner}."))
    found = draw(st.lists(records[kind], max_size=4))
    if found:
        answers.append(dns.rrset.from_text(f"{owner}.", draw(ttls), "IN", kind, *found))
    elif draw(st.booleans()):
        soa = f"ns.example. host.example. 1 2 3 4 {draw(ttls)}"
        authorities.append(dns.rrset.from_text("example.", draw(ttls), "IN", "SOA", soa))
    if draw(st.booleans()):
        others.append(dns.rrset.from_text("ns.example.", 60, "IN", "A", "192.0.2.9"))
    codes = [dns.rcode.NOERROR] if found else [dns.rcode.NOERROR, dns.rcode.NXDOMAIN]
    return answers, authorities, others, draw(st.sampled_from(codes))


def render(kind: Kind, sections: Sections) -> bytes:
    message = response(kind)
    message.answer, message.authority, message.additional, code = sections
    message.set_rcode(dns.rcode.Rcode(code))
    wire: bytes = message.to_wire(want_shuffle=False)
    return wire


def outcome(read: object, *arguments: object) -> object:
    """What is returned, or what is said in its place."""
    assert callable(read)
    try:
        answer = read(*arguments)
    except DnsAbsentError as absent:
        return str(absent), absent.ttl
    except (UnusableError, dns.exception.DNSException):
        return "unusable"
    return sorted(map(str, answer.records)), answer.ttl


def by_dnspython(query: Query, wire: bytes) -> Answer:
    return query.read_message(dns.message.from_wire(wire))


@given(st.data(), st.sampled_from(KINDS))
def test_an_answer_is_read_as_dnspython_reads_it(data: st.DataObject, kind: Kind) -> None:
    query, wire = Query(NAME, kind), render(kind, data.draw(responses(kind)))

    assert outcome(by_dnspython, query, wire) == outcome(query.read, wire)


@given(st.data(), st.sampled_from(KINDS))
def test_of_any_bytes_nothing_is_read_that_dnspython_would_read_otherwise(
    data: st.DataObject, kind: Kind
) -> None:
    query, wire = Query(NAME, kind), bytearray(render(kind, data.draw(responses(kind))))
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(4, len(wire) - 1))] = data.draw(st.integers(0, 255))
    spoilt = bytes(wire)
    if not query.is_answered(int.from_bytes(spoilt[:2]), spoilt):
        return
    ours, theirs = outcome(query.read, spoilt), outcome(by_dnspython, query, spoilt)

    # It may be that what is wrong stands where nobody needs to look.
    assert theirs in ("unusable", ours)


@given(st.binary(min_size=12, max_size=100), st.sampled_from(KINDS))
def test_whatever_comes_is_an_answer_or_none(junk: bytes, kind: Kind) -> None:
    query = Query(NAME, kind)
    head = junk[:2] + b"\x81\x80\x00\x01"
    question = query.encode(0)[12 : -len(b"\0\0)\0\0\0\0\0\0\0\0")]

    outcome(query.read, head + junk[6:12] + question + junk[12:])


def heavy(kind: int, data: Callable[[int], bytes], fill: int) -> bytes:
    """An answer full of records with the longest name there is, which costs its sender two bytes.

    `data` makes that of a record, from where that name is.
    """
    question = Query(NAME, "SRV").encode(7)[12 : -len(b"\0\0)\0\0\0\0\0\0\0\0")]
    name = b"\x01a" * 126 + b"\0"
    rest = struct.pack("!HHIH", 10, 1, 60, 0)
    pointer = 0xC000 | 12 + len(question)
    made = data(pointer)
    record = b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(made)) + made
    count = min(fill, (65_535 - 12 - len(question) - len(name) - len(rest)) // len(record))
    head = struct.pack("!HHHHHH", 7, 0x8180, 1, count + 1, 0, 0)
    return head + question + name + rest + record * count


@pytest.mark.parametrize(
    ("kind", "pointers", "before", "fill"),
    [
        (2, 1, b"", 65_535),  # NS
        (6, 2, b"", 65_535),  # SOA
        (5, 1, b"", 90),  # CNAME
        (33, 1, b"\0\0\0\0\0\0", 90),  # SRV
        (55, 30_000, b"\0\0\0\0", 1),  # HIP
    ],
    ids=["NS", "SOA", "CNAME", "SRV", "HIP"],
)
def test_no_answer_takes_long_to_read(kind: int, pointers: int, before: bytes, fill: int) -> None:
    """Nobody else gets a turn meanwhile. Names made are counted: time is the machine's."""
    wire = heavy(kind, lambda pointer: before + struct.pack("!H", pointer) * pointers, fill)
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dns.name, "_validate_labels", count)
        outcome(Query(NAME, "SRV").read, wire)

    assert made < 100_000


def test_a_code_that_goes_on_in_the_record_for_it_is_no_absence() -> None:
    message = response("A")
    message.set_rcode(dns.rcode.BADVERS)

    with pytest.raises(UnusableError, match="BADVERS"):
        Query(NAME, "A").read(message.to_wire())


def test_a_time_that_is_none_is_no_time() -> None:
    """RFC 2181 § 8: a TTL has 31 bits."""
    message = response("A")
    soa = f"ns.example. host.example. 1 2 3 4 {2**31 - 1}"
    message.authority.append(dns.rrset.from_text("example.", 60, "IN", "SOA", soa))
    wire = message.to_wire().replace(struct.pack("!I", 60), struct.pack("!I", 2**31), 1)

    with pytest.raises(DnsAbsentError) as caught:
        Query(NAME, "A").read(wire)
    assert 0.0 == caught.value.ttl


def test_a_record_that_comes_twice_is_one() -> None:
    message = response("A")
    message.answer.append(dns.rrset.from_text(f"{NAME}.", 60, "IN", "A", "192.0.2.1"))
    wire = message.to_wire()
    start = len(Query(NAME, "A").encode(7)) - 11
    record = wire[start : start + 16]
    twice = wire[:7] + b"\x02" + wire[8:start] + record + wire[start:]

    assert 1 == len(Query(NAME, "A").read(twice).records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_answer_needs_no_dnspython(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is why all this is here: it takes a tenth of the time."""
    text = {"A": "192.0.2.1", "AAAA": "2001:db8::1", "SRV": "1 2 3 srv.else."}[kind]
    message = response(kind)
    message.answer.append(dns.rrset.from_text(f"{NAME}.", 60, "IN", kind, text))
    wire = message.to_wire()
    monkeypatch.delattr(dns.message, "from_wire")

    assert 60 == Query(NAME, kind).read(wire).ttl


@pytest.mark.parametrize(
    "name",
    ["", ".", "a..b", "a" * 64, ".".join(["a" * 63] * 4), "a b.example", "a\\046b", "ä.example"],
)
def test_what_no_zone_can_hold_is_absent(name: str) -> None:
    with pytest.raises(DnsAbsentError, match="not a DNS name"):
        Query(name, "A")


def test_a_name_as_long_as_there_can_be_is_asked_for() -> None:
    name = ".".join(["a" * 63] * 3 + ["a" * 61])

    assert (
        dns.message.from_wire(Query(name, "A").encode(7)).question[0].name.to_text() == f"{name}."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_is_as_dnspython_would_ask_it(kind: Kind) -> None:
    query = Query(NAME, kind)
    theirs = dns.message.make_query(NAME, kind, use_edns=0, payload=1232, id=7)

    assert theirs.to_wire() == query.encode(7)
