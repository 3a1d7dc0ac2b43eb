"""`resolve`: every step with its answer, also where there is nothing to be found."""

from __future__ import annotations

import asyncio
import re

import pytest

from invite_client.testing import NO_ANSWER, SERVFAIL, LoopbackHomeserver, LoopbackNetwork, Srv
from tests.cli.calling import Invoke


async def test_shows_every_step_and_the_three_names(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    srv = [Srv("b.example", 8450, 20), Srv("a.example", 8449, 10)]
    async with LoopbackHomeserver("remote.example", network=network, srv=srv):
        result = await asyncio.to_thread(invoke, "resolve", "remote.example", *reaching)

    assert (0, "") == (result.code, result.err)
    # How long a step took depends on the machine, and is not shown of what took no time.
    shown = re.sub(r" \d+\.\d\d s(?= |$)", "", " ".join(result.out.split()))
    for words in (
        "1 is the name an IP literal? → no",
        "2 has the name a port? → no",
        "3 https://remote.example/.well-known/matrix/server",
        "Connection refused (no valid answer: on to step 4)",
        "4 SRV _matrix-fed._tcp.remote.example a.example:8449, b.example:8450 (by priority",
        "Host remote.example",
        "certificate for remote.example",
        "decided by step 4",
    ):
        assert words in shown
    assert re.search(
        r"connect to a\.example:8449 → 127\.\S+ b\.example:8450 → 127\.\S+ Host remote\.example",
        shown,
    )
    assert all(len(line) <= 80 and line == line.rstrip() for line in result.out.splitlines())


async def test_shows_the_same_as_json(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    async with LoopbackHomeserver("remote.example", network=network):
        result = await asyncio.to_thread(invoke, "resolve", "remote.example", "--json", *reaching)

    assert (0, "") == (result.code, result.err)
    assert {
        "server_name": "remote.example",
        "step": "6",
        "host_header": "remote.example",
        "tls_name": "remote.example",
    }.items() <= result.json.items()
    [address] = network.host("remote.example")
    assert [
        {"host": "remote.example", "port": 8448, "addresses": [address], "error": None}
    ] == result.json["targets"]
    assert ["1", "2", "3", "4", "5", "6"] == [step["step"] for step in result.json["trace"]]
    assert {"step", "question", "answer", "seconds", "reason"} == result.json["trace"][0].keys()


async def test_a_name_that_nobody_has_is_no_server(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    """Although the discovery ends well: at the name itself."""
    async with network:
        result = await asyncio.to_thread(invoke, "resolve", "typo.example", *reaching)
        as_json = await asyncio.to_thread(invoke, "resolve", "typo.example", "--json", *reaching)

    assert 1 == result.code == as_json.code
    assert "connect to       typo.example:8448 → A typo.example: no such name" in result.out
    assert "typo.example: no such name" in result.err
    [target] = as_json.json["targets"]
    assert ("A typo.example: no such name", []) == (target["error"], target["addresses"])
    assert ("UnreachableError", "DNS") == (
        as_json.json["error"]["class"],
        as_json.json["error"]["stage"],
    )


async def test_a_name_whose_address_no_name_server_tells_is_found_all_the_same(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    network.dns.add("_matrix-fed._tcp.remote.example", "SRV", 0, 0, 8448, "a.example")
    network.host("remote.example")
    network.dns.fails("a.example", SERVFAIL)

    result = await asyncio.to_thread(invoke, "resolve", "remote.example", *reaching)

    assert 0 == result.code
    assert "connect to       a.example:8448 → A a.example: " in result.out


async def test_a_port_that_is_written_is_found_though_the_name_is_not(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    async with network:
        result = await asyncio.to_thread(invoke, "resolve", "typo.example:1234", *reaching)

    assert 0 == result.code
    assert "connect to       typo.example:1234 → A typo.example: no such name" in result.out


async def test_one_target_with_an_address_is_enough(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    for host, priority in (("gone.example", 0), ("a.example", 1)):
        service = "_matrix-fed._tcp.remote.example"
        network.dns.add(service, "SRV", priority, 0, 8448, host)
    network.host("remote.example")
    network.host("a.example")

    result = await asyncio.to_thread(invoke, "resolve", "remote.example", *reaching)

    assert (0, "") == (result.code, result.err)
    assert "gone.example:8448 → A gone.example: no such name" in result.out


def test_asks_nobody_about_a_literal(invoke: Invoke) -> None:
    allowed = ("--allow-address", "2001:db8::/32", "--allow-address", "192.0.2.0/24")
    result = invoke("resolve", "[2001:db8::1]:443", *allowed)
    as_json = invoke("resolve", "--json", "192.0.2.1", *allowed)

    assert 0 == result.code
    assert "connect to       [2001:db8::1]:443 → 2001:db8::1\n" in result.out
    assert "certificate for  2001:db8::1 (an IP address: no SNI)" in result.out
    assert 0 == as_json.code
    assert as_json.json["fresh_until"] is None


async def test_shows_the_steps_also_if_they_lead_nowhere(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    network.host("remote.example")
    network.dns.fails("_matrix-fed._tcp.remote.example", SERVFAIL)

    result = await asyncio.to_thread(invoke, "resolve", "remote.example", *reaching)
    as_json = await asyncio.to_thread(invoke, "resolve", "remote.example", "--json", *reaching)

    assert 3 == result.code == as_json.code
    assert "1  is the name an IP literal? → no" in result.out
    assert "DNS failed: this is no answer" in " ".join(result.out.split())
    assert "SERVFAIL" in result.err
    assert "invite" not in result.err
    assert ["1", "2", "3", "4"] == [step["step"] for step in as_json.json["error"]["trace"]]


async def test_shows_how_far_it_came_if_it_took_too_long(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    network.host("remote.example")
    network.dns.fails("_matrix-fed._tcp.remote.example", NO_ANSWER)
    options = ["--timeout", "0.5", *reaching]

    result = await asyncio.to_thread(invoke, "resolve", "remote.example", *options)

    assert 3 == result.code
    assert "4  SRV _matrix-fed._tcp.remote.example → no answer yet" in result.out
    assert "not finished within 0.5 s (--timeout)" in result.err


async def test_a_service_that_is_not_offered_is_no_passing_fault(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    network.host("remote.example")
    network.dns.add("_matrix-fed._tcp.remote.example", "SRV", 0, 0, 8448, ".")

    result = await asyncio.to_thread(invoke, "resolve", "remote.example", *reaching)

    assert 1 == result.code
    assert "federation is not offered" in result.err


async def test_names_the_option_that_permits_a_refused_address(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    network.host("remote.example")

    result = await asyncio.to_thread(invoke, "resolve", "remote.example", *reaching[:4])

    assert 0 == result.code
    assert "add its network to --allow-address" in " ".join(result.out.split())


@pytest.mark.parametrize("name", ["127.0.0.1:1", "192.0.2.1", "[::1]"])
def test_a_literal_is_found_though_it_may_not_be_connected_to(invoke: Invoke, name: str) -> None:
    result = invoke("resolve", name)

    assert 0 == result.code
    assert "is refused" in result.out


def test_needs_no_identity_and_takes_one_all_the_same(invoke: Invoke) -> None:
    options = ["--server-name", "inviter.example", "--signing-key", "nope.key"]

    assert 0 == invoke("resolve", "192.0.2.1", "--allow-address", "192.0.2.1/32", *options).code
