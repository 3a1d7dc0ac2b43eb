"""Names over real DNS: what is absent, what failed, and for how long an answer is kept."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from invite_client.net.dns import Dns, DnsAbsentError, DnsFailedError
from invite_client.policy import DnsPolicy
from invite_client.spec.srv import SrvRecord
from invite_client.testing import NO_ANSWER, REFUSED, SERVFAIL, TRUNCATED, ManualClock, NameServer

FED = "_matrix-fed._tcp"
NAME = "remote.example"

MakeDns = Callable[..., Dns]


@pytest.fixture
async def zone() -> AsyncIterator[NameServer]:
    server = NameServer(ttl=60, negative_ttl=60)
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    return tmp_path / "hosts"


@pytest.fixture
def make_dns(zone: NameServer, hosts: Path, clock: ManualClock) -> MakeDns:
    def make(**options: Any) -> Dns:
        policy = {"nameservers": (zone.address,), "port": zone.port, "timeout": 5.0, **options}
        return Dns(DnsPolicy(**policy), hosts, clock=clock)

    return make


@pytest.fixture
def dns(make_dns: MakeDns) -> Dns:
    return make_dns()


async def found(dns: Dns, name: str = NAME) -> list[str]:
    return [str(address) for address in await dns.addresses(name)]


class TestAddresses:
    async def test_are_those_of_both_families(self, dns: Dns, zone: NameServer) -> None:
        zone.add(NAME, "A", "192.0.2.1")
        zone.add(NAME, "AAAA", "2001:db8::1")

        assert ["2001:db8::1", "192.0.2.1"] == await found(dns)

    async def test_follow_aliases(self, dns: Dns, zone: NameServer) -> None:
        zone.add(NAME, "CNAME", "alias.example")
        zone.add("alias.example", "CNAME", "host.example")
        zone.add("host.example", "A", "192.0.2.1")

        assert ["192.0.2.1"] == await found(dns)

    @pytest.mark.parametrize("fault", [SERVFAIL, REFUSED, NO_ANSWER], ids=str)
    async def test_of_one_family_do_not_suffer_from_the_other(
        self, fault: Any, make_dns: MakeDns, zone: NameServer
    ) -> None:
        zone.add(NAME, "A", "192.0.2.1")
        zone.fails(NAME, fault, kind="AAAA")

        assert ["192.0.2.1"] == await found(make_dns(timeout=1.0))

    async def test_that_are_too_many_for_udp_are_asked_for_by_tcp(
        self, dns: Dns, zone: NameServer
    ) -> None:
        zone.add(NAME, "A", "192.0.2.1")
        zone.fails(NAME, TRUNCATED)

        assert ["192.0.2.1"] == await found(dns)

    async def test_of_one_host_are_bounded(self, make_dns: MakeDns, zone: NameServer) -> None:
        for last in range(10):
            zone.add(NAME, "A", f"192.0.2.{last}")

        assert 4 == len(await found(make_dns(records=4)))

    @pytest.mark.parametrize("exists", [True, False])
    async def test_that_are_absent_are_not_failed(
        self, exists: bool, dns: Dns, zone: NameServer
    ) -> None:
        if exists:
            zone.add(f"{FED}.{NAME}", "SRV", 1, 1, 7, "srv.example")

        with pytest.raises(DnsAbsentError, match="no such record" if exists else "no such name"):
            await dns.addresses(NAME)

    @pytest.mark.parametrize(
        ("fault", "words"),
        [(SERVFAIL, "SERVFAIL"), (REFUSED, "REFUSED"), (NO_ANSWER, "answered within 0.3 s")],
        ids=str,
    )
    async def test_that_failed_are_not_absent(
        self, fault: Any, words: str, make_dns: MakeDns, zone: NameServer
    ) -> None:
        zone.fails(NAME, fault)

        with pytest.raises(DnsFailedError, match=words):
            await make_dns(timeout=0.3).addresses(NAME)

    async def test_of_which_one_family_is_absent_and_one_failed_are_not_absent(
        self, dns: Dns, zone: NameServer
    ) -> None:
        zone.add(NAME, "CNAME", "nowhere.example")
        zone.fails(NAME, SERVFAIL, kind="A")

        with pytest.raises(DnsFailedError):
            await dns.addresses(NAME)

    async def test_of_tor_are_asked_of_nobody(self, dns: Dns, zone: NameServer) -> None:
        with pytest.raises(DnsAbsentError, match="Tor"):
            await dns.addresses("secret.onion")
        assert () == (await dns.srv(FED, "secret.onion")).records

        assert [] == zone.questions

    async def test_without_a_name_server_say_which_setting_is_missing(
        self, monkeypatch: pytest.MonkeyPatch, hosts: Path
    ) -> None:
        import dns.resolver

        def unconfigured(*_: Any, **__: Any) -> None:
            raise dns.resolver.NoResolverConfiguration

        monkeypatch.setattr(dns.resolver.BaseResolver, "read_resolv_conf", unconfigured)
        with pytest.raises(DnsFailedError, match=r"dns\.nameservers"):
            await Dns(DnsPolicy(), hosts).addresses(NAME)


class TestWithoutDns:
    async def test_the_hosts_file_comes_first(
        self, dns: Dns, zone: NameServer, hosts: Path
    ) -> None:
        hosts.write_text("192.0.2.7 Other.Example Remote.Example # comment\nnonsense remote\n")
        zone.add(NAME, "A", "192.0.2.1")

        assert ["192.0.2.7"] == await found(dns)
        assert [] == zone.questions

    async def test_the_hosts_file_is_read_again(
        self, dns: Dns, zone: NameServer, hosts: Path, clock: ManualClock
    ) -> None:
        hosts.write_text(f"192.0.2.7 {NAME}")
        await found(dns)
        hosts.write_text(f"192.0.2.8 {NAME}")
        clock.advance(31)

        assert ["192.0.2.8"] == await found(dns)

    @pytest.mark.parametrize("name", ["localhost", "a.localhost", "LOCALHOST."])
    async def test_localhost_is_this_machine(self, name: str, dns: Dns, zone: NameServer) -> None:
        assert {"127.0.0.1", "::1"} == set(await found(dns, name))
        assert [] == zone.questions


class TestRememberedAddresses:
    async def test_are_asked_for_once_within_their_ttl(
        self, dns: Dns, zone: NameServer, clock: ManualClock
    ) -> None:
        zone.add(NAME, "A", "192.0.2.1", ttl=100)
        for name in (NAME, "REMOTE.example", f"{NAME}."):
            await found(dns, name)
        assert 1 == zone.asked(NAME, "A")

        clock.advance(101)
        await found(dns)
        assert 2 == zone.asked(NAME, "A")

    @pytest.mark.parametrize(("ttl", "kept"), [(0, 30), (7, 30), (100_000, 3600)])
    async def test_have_a_floor_and_a_ceiling(
        self, ttl: int, kept: float, dns: Dns, zone: NameServer, clock: ManualClock
    ) -> None:
        zone.add(NAME, "A", "192.0.2.1", ttl=ttl)
        zone.add(NAME, "AAAA", "2001:db8::1", ttl=ttl)
        await found(dns)
        clock.advance(kept - 1)
        await found(dns)
        assert 1 == zone.asked(NAME, "A")

        clock.advance(2)
        await found(dns)
        assert 2 == zone.asked(NAME, "A")

    async def test_live_as_long_as_the_shortest_of_a_chain(
        self, dns: Dns, zone: NameServer, clock: ManualClock
    ) -> None:
        zone.add(NAME, "CNAME", "host.example", ttl=40)
        zone.add("host.example", "A", "192.0.2.1", ttl=3000)
        await found(dns)
        clock.advance(41)
        await found(dns)

        assert 2 == zone.asked(NAME, "A")

    async def test_that_are_half_an_answer_live_for_the_shortest_time(
        self, dns: Dns, zone: NameServer, clock: ManualClock
    ) -> None:
        zone.add(NAME, "A", "192.0.2.1", ttl=3000)
        zone.add(NAME, "AAAA", "2001:db8::1", ttl=3000)
        zone.fails(NAME, SERVFAIL, kind="AAAA", times=1)
        assert ["192.0.2.1"] == await found(dns)
        clock.advance(31)

        assert ["2001:db8::1", "192.0.2.1"] == await found(dns)

    @pytest.mark.parametrize(("negative_ttl", "kept"), [(0, 30), (100, 100), (86400, 300)])
    async def test_remember_an_absence(
        self, negative_ttl: int, kept: float, dns: Dns, zone: NameServer, clock: ManualClock
    ) -> None:
        zone.negative_ttl = negative_ttl
        for _ in range(2):
            with pytest.raises(DnsAbsentError):
                await dns.addresses(NAME)
        assert 1 == zone.asked(NAME, "A")

        zone.add(NAME, "A", "192.0.2.1")
        clock.advance(kept + 1)
        assert ["192.0.2.1"] == await found(dns)

    @pytest.mark.parametrize("forgotten", [True, False])
    async def test_remember_a_failure_for_a_moment(
        self, forgotten: bool, dns: Dns, zone: NameServer, clock: ManualClock
    ) -> None:
        """Who asked ahead has spared who asks next the wait; who tries again forgets first."""
        zone.add(NAME, "A", "192.0.2.1")
        zone.fails(NAME, SERVFAIL, times=2)
        for _ in range(2):
            with pytest.raises(DnsFailedError, match="SERVFAIL"):
                await dns.addresses(NAME)
        assert 1 == zone.asked(NAME, "A")

        if forgotten:
            dns.forget(NAME)
        else:
            clock.advance(1)
        assert ["192.0.2.1"] == await found(dns)

    async def test_serve_after_their_time_while_no_name_server_answers(
        self, make_dns: MakeDns, zone: NameServer, clock: ManualClock
    ) -> None:
        dns = make_dns(stale=1000)
        zone.add(NAME, "A", "192.0.2.1", ttl=60)
        await found(dns)
        zone.fails(NAME, SERVFAIL)
        clock.advance(900)
        for _ in range(3):
            assert ["192.0.2.1"] == await found(dns)
        assert 2 == zone.asked(NAME, "A")

        clock.advance(200)
        with pytest.raises(DnsFailedError):
            await dns.addresses(NAME)

    async def test_that_are_forgotten_are_asked_for_anew(self, dns: Dns, zone: NameServer) -> None:
        zone.add(NAME, "A", "192.0.2.1", ttl=3600)
        await found(dns)
        zone.remove(NAME)
        zone.add(NAME, "A", "192.0.2.2", ttl=3600)
        dns.forget(f"{NAME.upper()}.")

        assert ["192.0.2.2"] == await found(dns)

    async def test_are_bounded(self, make_dns: MakeDns, zone: NameServer) -> None:
        dns = make_dns(remembered_hosts=2)
        for name in ("a.example", "b.example", "c.example"):
            zone.add(name, "A", "192.0.2.1")
            await found(dns, name)
        await found(dns, "c.example")
        await found(dns, "a.example")

        assert (2, 1) == (zone.asked("a.example", "A"), zone.asked("c.example", "A"))

    async def test_are_asked_for_once_for_all_who_want_them(
        self, dns: Dns, zone: NameServer
    ) -> None:
        zone.add(NAME, "A", "192.0.2.1")
        callers = [asyncio.create_task(found(dns)) for _ in range(5)]
        callers[0].cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)

        assert [["192.0.2.1"]] * 4 == results[1:]
        assert (1, 1) == (zone.asked(NAME, "A"), zone.asked(NAME, "AAAA"))

    async def test_fail_with_an_error_for_each_who_waited(self, dns: Dns, zone: NameServer) -> None:
        zone.fails(NAME, SERVFAIL)
        errors = await asyncio.gather(found(dns), found(dns), return_exceptions=True)

        assert [DnsFailedError, DnsFailedError] == [type(error) for error in errors]
        assert errors[0] is not errors[1]

    @pytest.mark.usefixtures("no_socket_is_left_behind")
    async def test_leave_nothing_when_who_wants_them_goes(self, dns: Dns, zone: NameServer) -> None:
        zone.fails(NAME, NO_ANSWER)
        caller = asyncio.create_task(found(dns))
        while not zone.questions:
            await asyncio.sleep(0.001)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller


class TestSrv:
    async def test_records_are_returned_as_they_are(self, dns: Dns, zone: NameServer) -> None:
        zone.add(f"{FED}.{NAME}", "SRV", 10, 5, 8449, "srv.example", ttl=100)
        answer = await dns.srv(FED, NAME)

        assert ((SrvRecord(10, 5, 8449, "srv.example"),), 100) == (answer.records, answer.ttl)

    async def test_a_single_dot_stays(self, dns: Dns, zone: NameServer) -> None:
        zone.add(f"{FED}.{NAME}", "SRV", 0, 0, 0, ".")

        assert (SrvRecord(0, 0, 0, "."),) == (await dns.srv(FED, NAME)).records

    @pytest.mark.parametrize(("ttl", "kept"), [(0, 30), (100_000, 3600)])
    async def test_times_have_a_floor_and_a_ceiling(
        self, ttl: int, kept: float, dns: Dns, zone: NameServer
    ) -> None:
        zone.add(f"{FED}.{NAME}", "SRV", 10, 5, 8449, "srv.example", ttl=ttl)

        assert kept == (await dns.srv(FED, NAME)).ttl

    @pytest.mark.parametrize(("negative_ttl", "kept"), [(0, 30), (100, 100), (86400, 300)])
    async def test_absence_is_an_answer_with_a_time(
        self, negative_ttl: int, kept: float, dns: Dns, zone: NameServer
    ) -> None:
        zone.negative_ttl = negative_ttl
        answer = await dns.srv(FED, NAME)

        assert ((), kept) == (answer.records, answer.ttl)

    async def test_of_too_many_records_the_first_to_be_tried_stay(
        self, make_dns: MakeDns, zone: NameServer
    ) -> None:
        for number in reversed(range(100)):
            zone.add(f"{FED}.{NAME}", "SRV", number, 1, 8448, f"t{number}.example")
        answer = await make_dns(records=3).srv(FED, NAME)

        assert [0, 1, 2] == [record.priority for record in answer.records]

    @pytest.mark.parametrize("fault", [SERVFAIL, REFUSED, NO_ANSWER], ids=str)
    async def test_a_failure_is_not_an_absence(
        self, fault: Any, make_dns: MakeDns, zone: NameServer
    ) -> None:
        zone.fails(f"{FED}.{NAME}", fault)

        with pytest.raises(DnsFailedError, match=f"SRV {FED}.{NAME}"):
            await make_dns(timeout=0.3).srv(FED, NAME)

    async def test_of_a_name_too_long_for_a_service_before_it_there_are_none(
        self, dns: Dns, zone: NameServer
    ) -> None:
        name = ".".join(["a" * 61] * 4)

        assert () == (await dns.srv(FED, name)).records
        assert [] == zone.questions


async def test_a_dead_name_server_costs_half_the_time(zone: NameServer, hosts: Path) -> None:
    zone.add(NAME, "A", "192.0.2.1")
    policy = DnsPolicy(nameservers=("127.9.9.9", zone.address), port=zone.port, timeout=1.0)

    assert [ip_address("192.0.2.1")] == await Dns(policy, hosts).addresses(NAME)


@pytest.mark.parametrize("form", ["{}:{}", "[::ffff:{}]:{}"])
async def test_a_name_server_may_have_a_port_of_its_own(
    zone: NameServer, hosts: Path, form: str
) -> None:
    zone.add(NAME, "A", "192.0.2.1")
    policy = DnsPolicy(nameservers=("127.9.9.9", form.format(zone.address, zone.port)), timeout=1.0)

    assert [ip_address("192.0.2.1")] == await Dns(policy, hosts).addresses(NAME)


async def test_who_cannot_even_ask_knows_nothing(
    make_dns: MakeDns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a descriptor to find out whom to ask, as it does to ask."""

    def no_descriptor(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("invite_client.net.questions.NameServers.__init__", no_descriptor)
    dns = make_dns()

    with pytest.raises(DnsFailedError, match="Too many open files"):
        await dns.srv("_matrix._tcp", "remote.example")
    with pytest.raises(DnsFailedError, match="Too many open files"):
        await dns.addresses("remote.example")
