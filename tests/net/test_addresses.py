"""No stranger makes us connect where our policy forbids it, by whatever path an address comes."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, IPv6Network, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from invite_client.errors import Attempt, Delivery, ForbiddenByPolicyError, Stage
from invite_client.net.addresses import AddressGate, AddressRefusedError
from invite_client.net.lookups import NetworkLookups
from invite_client.policy import NON_PUBLIC_NETWORKS, AddressPolicy, ProxyPolicy
from invite_client.spec.discovery import Target, discover
from invite_client.spec.server_names import parse_server_name
from tests.net.conftest import caught
from tests.net.servers import (
    PUT,
    Authority,
    Server,
    StaticDns,
    answers_ok,
    resolved,
    says,
)

HERE = "127.0.0.2"
"""Where the servers of these tests are: the only address that is allowed."""

ONLY_HERE = AddressPolicy(allowed=(f"{HERE}/32",))


def one_of(network: str) -> str:
    """An address of a network, towards its end: the beginning often has a smaller one in it."""
    return str(ip_network(network)[-5])


DISGUISED = {
    "127.0.0.0/8": ["::ffff:127.0.0.1", "64:ff9b::7f00:1", "127.255.255.254"],
    "10.0.0.0/8": ["::ffff:10.0.0.1", "64:ff9b::a00:1"],
    "169.254.0.0/16": ["::ffff:169.254.169.254", "64:ff9b::169.254.169.254"],
    "0.0.0.0/8": ["0.0.0.0", "::ffff:0.0.0.0", "64:ff9b::"],
    "240.0.0.0/4": ["255.255.255.255"],
    "::/96": ["::", "::1", "::127.0.0.1"],
    "::ffff:0:0:0/96": ["::ffff:0:127.0.0.1"],
    "2001::/23": ["2001:0:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe"],
    "2002::/16": ["2002:7f00:1::", "2002:a00:1::1"],
    "fe80::/10": ["fe80::1", "febf::1"],
    "ff00::/8": ["ff02::1", "ff0e::1"],
}

FORBIDDEN = [(one_of(network), network) for network in NON_PUBLIC_NETWORKS] + [
    (address, network) for network, addresses in DISGUISED.items() for address in addresses
]


class TestTheGate:
    def test_refuses_every_network_and_says_which(self) -> None:
        gate = AddressGate(AddressPolicy())
        for address, network in [*FORBIDDEN, ("fe80::1%eth0", "fe80::/10")]:
            with pytest.raises(AddressRefusedError) as info:
                gate.check(address)

            error = info.value
            expected = (str(ipaddress.ip_address(address)), network)
            assert expected == (error.address, error.network)
            for part in (*expected, NON_PUBLIC_NETWORKS[network], "addresses.allowed"):
                assert part in str(error)

    @pytest.mark.parametrize(
        "address",
        [
            "8.8.8.8",
            "172.32.0.1",
            "2001:4860:4860::8888",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            # On a network without IPv4, this is how 8.8.8.8 is reached.
            "64:ff9b::8.8.8.8",
        ],
    )
    def test_lets_public_addresses_pass(self, address: str) -> None:
        AddressGate(AddressPolicy()).check(address)

    @given(st.ip_addresses(v=6))
    def test_lets_no_ipv6_address_pass_that_is_not_global_unicast(
        self, address: IPv6Address
    ) -> None:
        if address in IPv6Network("2000::/3") or address in IPv6Network("64:ff9b::/96"):
            return  # the first is public; of the second, see FORBIDDEN
        if address.ipv4_mapped is not None:
            return
        with pytest.raises(AddressRefusedError):
            AddressGate(AddressPolicy()).check(address)

    @pytest.mark.parametrize(
        "address",
        ["1::1", "ff::1", "::1:0:0:1", "64:ff9b:2::1", "64:ff9b::1:0:0", "::fffe:8.8.8.8"],
    )
    def test_lets_nothing_pass_that_begins_like_an_ipv6_address_with_an_ipv4_address_in_it(
        self, address: str
    ) -> None:
        with pytest.raises(AddressRefusedError, match=r"::/8.*not assigned.*addresses\.allowed"):
            AddressGate(AddressPolicy()).check(address)
        AddressGate(AddressPolicy(allowed=("::/8",))).check(address)
        AddressGate(AddressPolicy(non_public=True)).check(address)

    def test_lets_allowed_win_over_blocked(self) -> None:
        gate = AddressGate(AddressPolicy(allowed=("10.1.0.0/16", "fe80::/10")))
        for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "fe80::1%eth0"):
            gate.check(address)
        with pytest.raises(AddressRefusedError):
            gate.check("10.2.0.1")

    @pytest.mark.parametrize("address", ["::ffff:10.0.0.1", "64:ff9b::10.0.0.1"])
    def test_to_allow_all_of_ipv6_is_not_to_allow_the_ipv4_in_it(self, address: str) -> None:
        with pytest.raises(AddressRefusedError):
            AddressGate(AddressPolicy(allowed=("::/0",))).check(address)

    def test_refuses_what_the_operator_blocks(self) -> None:
        gate = AddressGate(AddressPolicy(("8.8.8.0/24", "64:ff9b::/96"), non_public=True))
        gate.check("127.0.0.1")
        for address in ("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::1.1.1.1"):
            with pytest.raises(AddressRefusedError, match="blocked by policy"):
                gate.check(address)

    def test_refuses_one_network_more(self) -> None:
        gate = AddressGate(AddressPolicy(blocked=("8.8.8.0/24",)))
        gate.check("1.1.1.1")
        for address in ("8.8.8.8", "127.0.0.1"):
            with pytest.raises(AddressRefusedError):
                gate.check(address)


@pytest.fixture
def lookups_of(authority: Authority, transports: Callable[..., Any]) -> Callable[..., Any]:
    """The discovery's look-ups, with port 443 where a server of ours is."""

    def make(server: Server, dns: StaticDns) -> NetworkLookups:
        policy = authority.policy(addresses=ONLY_HERE)
        transport = transports(
            policy,
            dns,
            reroute=lambda address, port: (address, server.port if port == 443 else port),
        )
        return NetworkLookups(transport, policy)

    return make


def assert_refused(error: ForbiddenByPolicyError, address: str, network: str) -> None:
    assert (Stage.POLICY, Delivery.NOT_SENT) == (error.stage, error.delivery)
    assert "addresses.allowed" == error.setting
    assert not error.retryable
    for part in (str(ipaddress.ip_address(address)), network, "addresses.allowed"):
        assert part in error.message


def literal(address: str) -> str:
    return f"[{address}]" if ":" in address else address


class TestNoSocketIsMade:
    """For one address of every network, by each path that leads to a connection."""

    async def check_all(
        self,
        authority: Authority,
        transports: Callable[..., Any],
        request: Callable[[Any, StaticDns, str], Awaitable[Any]],
        **policy: Any,
    ) -> list[Attempt]:
        dns = StaticDns()
        transport = transports(authority.policy(addresses=AddressPolicy(), **policy), dns)
        for address, network in FORBIDDEN:
            error = await caught(request(transport, dns, address), ForbiddenByPolicyError)
            assert_refused(error, address, network)

    async def test_for_an_ip_literal(
        self, authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        async def request(transport: Any, _: StaticDns, address: str) -> None:
            server = resolved(
                name=literal(address), targets=(Target(address, 8448),), tls_name=address
            )
            await transport.exchange(server, PUT, limit=100, log=log)

        await self.check_all(authority, transports, request)

        assert [] == connects
        assert {False} == {attempt.sent for attempt in log}

    async def test_for_a_name_or_delegated_name(
        self, authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        async def request(transport: Any, dns: StaticDns, address: str) -> None:
            dns.names["remote.example"] = [address]
            server = resolved(targets=(Target("remote.example", 8448),))
            await transport.exchange(server, PUT, limit=100, log=log)

        await self.check_all(authority, transports, request)

        assert [] == connects

    async def test_for_srv_targets(
        self, authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        async def request(transport: Any, dns: StaticDns, address: str) -> None:
            dns.names["a.example"] = dns.names["b.example"] = [address]
            targets = (Target("a.example", 1), Target("b.example", 2))
            await transport.exchange(resolved(targets=targets), PUT, limit=100, log=log)

        await self.check_all(authority, transports, request)

        assert [] == connects

    async def test_for_a_web_server(
        self, authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        async def request(transport: Any, dns: StaticDns, address: str) -> None:
            dns.names["remote.example"] = [address]
            await transport.get(URL("https://remote.example/"), limit=100, log=log)

        await self.check_all(authority, transports, request)

        assert [] == connects

    async def test_for_what_a_proxy_would_connect_to(
        self, authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        async def request(transport: Any, dns: StaticDns, address: str) -> None:
            dns.names["remote.example"] = [address]
            server = resolved(targets=(Target("remote.example", 8448),))
            await transport.exchange(server, PUT, limit=100, log=log)

        for scheme in ("http", "socks5"):
            # Not even to the proxy, although that has an address which is forbidden to others.
            proxy = ProxyPolicy(f"{scheme}://127.0.0.1:1")
            await self.check_all(authority, transports, request, proxy=proxy)

        assert [] == connects

    @pytest.mark.parametrize("named", [False, True])
    async def test_for_a_redirect(
        self, authority: Authority, lookups_of: Any, connects: list[Any], *, named: bool
    ) -> None:
        target = ""

        async def redirects(visit: Any) -> None:
            await visit.request()
            await visit.send(
                f"HTTP/1.1 302 Found\r\nLocation: https://{target}/.well-known/matrix/server\r\n"
                "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )

        dns = StaticDns(remote_example=[HERE])
        server = Server(redirects, authority.server("remote.example"))
        async with server.running(HERE):
            lookups = lookups_of(server, dns)
            for address, network in FORBIDDEN:
                target = "other.example" if named else literal(address)
                dns.names["other.example"] = [address]
                answer = await lookups.well_known("remote.example")

                assert answer.delegated is None
                assert str(ipaddress.ip_address(address)) in answer.reason
                assert network in answer.reason

        assert {HERE} == {address[0] for address in connects}

    async def test_for_a_redirect_with_a_zone_id(
        self, authority: Authority, lookups_of: Any, connects: list[Any]
    ) -> None:
        answer = b"HTTP/1.1 302 Found\r\nLocation: https://[fe80::1%25lo]/\r\n\r\n"
        dns = StaticDns(remote_example=[HERE])
        server = Server(says(answer), authority.server("remote.example"))
        async with server.running(HERE):
            found = await lookups_of(server, dns).well_known("remote.example")

        assert found.delegated is None
        assert {HERE} == {address[0] for address in connects}


class TestAListener:
    async def test_sees_nothing_while_loopback_is_not_allowed(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running("127.0.0.1"):
            dns = StaticDns(remote_example=["127.0.0.1", "::ffff:127.0.0.1"])
            transport = transports(authority.policy(addresses=AddressPolicy()), dns)
            await caught(
                transport.exchange(resolved(server), PUT, limit=100, log=log),
                ForbiddenByPolicyError,
            )

            assert [] == server.visits

    async def test_is_reached_once_its_network_is_allowed(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running(HERE):
            transport = transports(
                authority.policy(addresses=ONLY_HERE), StaticDns(remote_example=[HERE])
            )
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert 200 == reply.status

    async def test_is_used_where_another_address_of_its_name_is_refused(
        self, authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running(HERE):
            dns = StaticDns(remote_example=["127.0.0.1", "10.0.0.1", HERE, "::1"])
            transport = transports(authority.policy(addresses=ONLY_HERE), dns)
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert [(HERE, server.port)] == connects

    async def test_is_used_where_another_srv_target_is_refused(
        self, authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running(HERE):
            dns = StaticDns(a_example=["10.0.0.1"], b_example=[HERE])
            targets = (Target("a.example", 8448), Target("b.example", server.port))
            transport = transports(authority.policy(addresses=ONLY_HERE), dns)
            reply = await transport.exchange(resolved(targets=targets), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert [(HERE, server.port)] == connects


async def test_a_name_that_changes_its_mind_gains_nothing(
    authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
) -> None:
    """DNS rebinding: what is judged is what is connected to; each connection is judged anew."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    server = Server(says(answer), authority.server("remote.example"))
    public = "198.41.0.4"
    async with server.running():
        dns = StaticDns(remote_example=[[public], ["127.0.0.1"]])
        transport = transports(
            authority.policy(addresses=AddressPolicy()),
            dns,
            # The public server is played by one of ours.
            reroute=lambda address, port: (
                ("127.0.0.1", port) if address == public else (address, 1)
            ),
        )
        target = resolved(server)
        reply = await transport.exchange(target, PUT, limit=100, log=log)

        assert 200 == reply.status
        assert ["remote.example"] == dns.asked

        error = await caught(
            transport.exchange(target, PUT, limit=100, log=log), ForbiddenByPolicyError
        )

        assert_refused(error, "127.0.0.1", "127.0.0.0/8")
        assert ["remote.example"] * 2 == dns.asked
        assert 1 == len(connects)


async def test_that_a_well_known_was_refused_stands_in_the_trace(
    authority: Authority, lookups_of: Any
) -> None:
    answer = b"HTTP/1.1 302 Found\r\nLocation: https://10.0.0.1/\r\nContent-Length: 0\r\n\r\n"
    server = Server(says(answer), authority.server("remote.example"))
    async with server.running(HERE):
        lookups = lookups_of(server, StaticDns(remote_example=[HERE]))
        found = await discover(parse_server_name("remote.example"), lookups, lambda _: 0)

    assert "6" == found.step
    (step,) = (step for step in found.trace if step.step == "3")
    for part in ("10.0.0.1", "10.0.0.0/8", "private use", "addresses.allowed"):
        assert part in step.answer
