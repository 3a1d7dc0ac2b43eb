"""A network on loopback: names, ports and authorities, with or without addresses to spare."""

from __future__ import annotations

import socket

import pytest

from invite_client.errors import UnreachableError
from invite_client.policy import AddressPolicy, Retries, TlsPolicy
from invite_client.testing import (
    LoopbackHomeserver,
    LoopbackNetwork,
    Srv,
    WellKnown,
    make_invite,
    network,
)

pytestmark = [pytest.mark.loopback, pytest.mark.usefixtures("no_socket_is_left_behind")]


async def test_every_host_has_an_address_of_its_own_and_the_real_port() -> None:
    async with LoopbackNetwork() as net:
        (one,), (two,) = net.host("one.example"), net.host("two.example")
        assert one != two
        assert [one] == net.host("one.example")
        with net.listen(one, 8448) as first, net.listen(two, 8448) as second:
            assert {(one, 8448), (two, 8448)} == {first.getsockname(), second.getsockname()}


async def test_an_ip_literal_is_its_own_address() -> None:
    async with LoopbackNetwork() as net:
        assert ["::1"] == net.host("::1")
        assert ["127.9.9.9"] == net.host("127.9.9.9")
        assert [] == net.dns.questions


async def test_one_place_is_given_out_once() -> None:
    async with LoopbackNetwork() as net:
        (address,) = net.host("one.example")
        with net.listen(address, 8448), pytest.raises(OSError, match="taken in this network"):
            net.listen(address, 8448)
        net.close(address, 8448)
        net.listen(address, 8448).close()


async def test_a_port_that_is_taken_by_others_is_rerouted() -> None:
    async with LoopbackNetwork() as net:
        (address,) = net.host("one.example")
        with socket.socket() as other:
            other.bind((address, 8448))
            other.listen()
            with net.listen(address, 8448) as ours:
                assert 8448 != ours.getsockname()[1]
                assert ours.getsockname() == net.reroute(address, 8448)
        assert (address, 1234) == net.reroute(address, 1234)


async def test_an_ordinary_user_has_well_known_files_too(monkeypatch: pytest.MonkeyPatch) -> None:
    really = network._listening

    def unprivileged(address: str, port: int) -> socket.socket:
        if 0 < port < 1024:
            raise PermissionError(13, "Permission denied")
        return really(address, port)

    monkeypatch.setattr(network, "_listening", unprivileged)
    async with (
        LoopbackHomeserver(well_known="matrix.example:443") as remote,
        remote.client() as client,
    ):
        signed = await client.send_invite(make_invite())

        assert "3.2" == signed.resolved.step
        # What the client wanted, whatever the port that really listens.
        assert [443] == [request.port for request in remote.well_known_requests]
        assert {443} == {request.port for request in remote.requests}


class TestWhereLoopbackIsOneAddress:
    """macOS: 127.0.0.1, and nothing else of 127.0.0.0/8."""

    async def test_all_hosts_share_it(self) -> None:
        net = LoopbackNetwork(own_addresses=False)
        one = LoopbackHomeserver(
            "one.example",
            network=net,
            well_known=WellKnown("d.example", redirects=["https://www.one.example/x"]),
            srv=[Srv("down.example", 8448, 1, listens=False), Srv("srv.example", 8448, 2)],
        )
        two = LoopbackHomeserver("two.example", network=net)
        async with one, two, net.client() as client:
            signed = await client.send_invite(make_invite("@bob:one.example"))
            assert "3.3" == signed.resolved.step
            signed = await client.send_invite(make_invite("@bob:two.example"))
            assert "6" == signed.resolved.step

        assert (1, 1) == (one.counts["v2"], two.counts["v2"])
        assert {8448} == {request.port for request in [*one.requests, *two.requests]}
        assert 2 == len(one.well_known_requests)

    async def test_who_does_not_listen_refuses(self) -> None:
        net = LoopbackNetwork(own_addresses=False)
        async with LoopbackHomeserver(network=net) as remote:
            await remote.stops()
            policy = net.policy(retries=Retries(attempts=1))
            async with remote.client(policy=policy) as client:
                with pytest.raises(UnreachableError, match="8448"):
                    await client.send_invite(make_invite())


async def test_the_policy_is_that_of_the_network_but_for_what_is_asked_for() -> None:
    async with LoopbackNetwork() as net:
        policy = net.policy(fallback="unknown-endpoint", addresses=AddressPolicy())

        assert TlsPolicy(ca_file=str(net.ca_file)) == policy.tls
        assert (net.dns.address,) == policy.dns.nameservers
        assert AddressPolicy() == policy.addresses
        assert "unknown-endpoint" == policy.fallback


async def test_it_is_up_until_the_last_has_left() -> None:
    net = LoopbackNetwork()
    with pytest.raises(RuntimeError, match="async with"):
        net.policy()
    async with net:
        async with net:
            ca_file = net.ca_file
        assert ca_file.exists()
        net.transport()  # the network closes it
    assert not ca_file.exists()
    with pytest.raises(RuntimeError):
        net.policy()


async def test_what_fails_to_start_leaves_nothing() -> None:
    net = LoopbackNetwork()
    async with LoopbackHomeserver("[::1]", network=net):
        with pytest.raises(OSError, match="taken"):
            await LoopbackHomeserver("[::1]", network=net).__aenter__()
        assert net.ca_file.exists()
