"""The well-known file over real TLS and HTTP: anything but a valid answer means "there is none"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest

from invite_client.errors import InvalidInviteError, Stage, UnreachableError
from invite_client.federation import FederationClient
from invite_client.net.http import HttpTransport
from invite_client.net.lookups import NetworkLookups
from invite_client.policy import CachePolicy, DnsPolicy, Limits, Timeouts, TlsPolicy
from invite_client.spec.discovery import WellKnownAnswer
from invite_client.testing import (
    EXPIRED,
    NO_ANSWER,
    SELF_SIGNED,
    SERVFAIL,
    UNKNOWN_CA,
    Certificate,
    Drips,
    Hangs,
    LoopbackHomeserver,
    LoopbackNetwork,
    ManualClock,
    Srv,
    WellKnown,
    make_invite,
)
from tests.net.servers import Authority, Server, StaticDns, Visit

NAME, OTHER = "remote.example", "other.example"
FILE = "/.well-known/matrix/server"
VALID = b'{"m.server": "delegated.example:8449"}'
HOUR = 3600.0


class Web:
    """Web servers with pages, each known by ``https://host/path``."""

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.headers: list[str] = []

    def page(self, url: str, status: int = 200, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.pages[url] = "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    async def __call__(self, visit: Visit) -> None:
        while True:
            request = (await visit.request()).decode("latin-1")
            first, *headers = request.split("\r\n")
            host = next(h.partition(": ")[2] for h in headers if h.lower().startswith("host:"))
            url = f"https://{host}{first.split()[1]}"
            self.asked.append(url)
            self.headers += headers
            await visit.send(self.pages[url])


@pytest.fixture
def web() -> Web:
    return Web()


@pytest.fixture
async def server(web: Web, authority: Authority) -> AsyncIterator[Server]:
    names = (NAME, OTHER, "third.example")
    async with Server(web, authority.server(*names)).running() as running:
        yield running


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_700_000_000.0)  # 2023-11-14 22:13:20


@pytest.fixture
def lookups(
    server: Server,
    authority: Authority,
    transports: Callable[..., HttpTransport],
    clock: ManualClock,
) -> NetworkLookups:
    policy = authority.policy(
        limits=Limits(well_known_bytes=1000, redirects=3),
        timeouts=Timeouts(well_known=2.0),
        cache=CachePolicy(minimum=60),
    )
    home = ["127.0.0.1"]
    dns = StaticDns(
        remote_example=home, other_example=home, third_example=home, private_example=["10.0.0.1"]
    )
    transport = transports(policy, dns, reroute=lambda address, _: (address, server.port))
    return NetworkLookups(transport, policy, clock)


class TestAValidFile:
    async def test_delegates(self, lookups: NetworkLookups, web: Web, server: Server) -> None:
        web.page(f"https://{NAME}{FILE}", body=VALID)
        answer = await lookups.well_known(NAME)

        assert ("delegated.example:8449", "", False) == (
            str(answer.delegated),
            answer.reason,
            answer.absent,
        )
        assert [NAME] == server.snis
        assert not [header for header in web.headers if header.lower().startswith("authorization")]

    @pytest.mark.parametrize(
        ("headers", "kept"),
        [
            ({}, 24 * HOUR),
            ({"Cache_Control": "max-age=7200"}, 2 * HOUR),
            ({"Cache_Control": "max-age=99999999"}, 48 * HOUR),
            ({"Cache_Control": "max-age=0"}, 60),
            ({"Cache_Control": "no-store"}, 60),
            ({"Expires": "Tue, 14 Nov 2023 23:13:20 GMT"}, HOUR),
            ({"Expires": "0"}, 60),
        ],
    )
    async def test_is_kept_for_as_long_as_its_header_says(
        self,
        headers: dict[str, str],
        kept: float,
        lookups: NetworkLookups,
        web: Web,
        clock: ManualClock,
    ) -> None:
        web.page(f"https://{NAME}{FILE}", body=VALID, **headers)
        answer = await lookups.well_known(NAME)

        assert kept == answer.fresh_until - clock.time()

    async def test_may_say_that_it_is_something_else(
        self, lookups: NetworkLookups, web: Web
    ) -> None:
        web.page(f"https://{NAME}{FILE}", body=VALID, Content_Type="text/html")

        assert (await lookups.well_known(NAME)).delegated is not None


class TestAnythingElse:
    @pytest.mark.parametrize(
        ("status", "body", "reason"),
        [
            (200, b"", "not JSON"),
            (200, b"<html>", "not JSON"),
            (200, b"[]", "not a JSON object"),
            (200, b"{}", "no m.server"),
            (200, b'{"m.server": 7}', "not a string"),
            (200, b'{"m.server": null}', "no m.server"),
            (200, b'{"m.server": "https://delegated.example"}', "not a server name"),
            (200, b'{"m.server": "delegated.example:99999"}', "not a server name"),
            (200, b"[" * 900, "not JSON"),
            (200, b'{"m.server": "' + b"a" * 2000 + b'"}', "1000 bytes"),
            (204, b"", "status 204"),
            (304, b"", "status 304"),
            (403, VALID, "status 403"),
            (404, VALID, "status 404"),
            (410, VALID, "status 410"),
            (429, VALID, "status 429"),
            (500, VALID, "status 500"),
        ],
    )
    async def test_is_no_answer(
        self, status: int, body: bytes, reason: str, lookups: NetworkLookups, web: Web
    ) -> None:
        web.page(f"https://{NAME}{FILE}", status, body)
        answer = await lookups.well_known(NAME)

        assert answer.delegated is None
        assert reason in answer.reason
        assert (status in (404, 410)) == answer.absent

    async def test_is_no_answer_where_there_is_no_host(self, lookups: NetworkLookups) -> None:
        answer = await lookups.well_known("missing.example")

        assert (None, False) == (answer.delegated, answer.absent)
        assert "no such name" in answer.reason

    async def test_is_no_answer_where_the_address_is_refused(
        self, lookups: NetworkLookups, connects: list[Any]
    ) -> None:
        answer = await lookups.well_known("private.example")

        assert (None, []) == (answer.delegated, connects)
        assert "10.0.0.1" in answer.reason

    @pytest.mark.parametrize(
        "certificate", [EXPIRED, SELF_SIGNED, UNKNOWN_CA, Certificate.of("wrong.example")], ids=str
    )
    async def test_is_no_answer_under_a_wrong_certificate(self, certificate: Certificate) -> None:
        file = WellKnown("delegated.example:8449", certificate=certificate)
        answer, remote = await ask_loopback(file)

        assert (None, False) == (answer.delegated, answer.absent)
        assert "certificate" in answer.reason
        assert [] == remote.well_known_requests

    @pytest.mark.parametrize("fault", [Hangs(), Drips(interval=0.05)], ids=str)
    async def test_is_no_answer_if_it_takes_too_long(self, fault: Any) -> None:
        answer, _ = await ask_loopback(WellKnown("delegated.example:8449", fault=fault))

        assert (None, "no answer within 0.3 s") == (answer.delegated, answer.reason)


async def ask_loopback(file: WellKnown) -> tuple[WellKnownAnswer, LoopbackHomeserver]:
    async with LoopbackHomeserver(NAME, well_known=file) as remote:
        policy = remote.network.policy(timeouts=Timeouts(well_known=0.3))
        lookups = NetworkLookups(remote.network.transport(policy), policy)
        return await lookups.well_known(NAME), remote


class TestARedirect:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_is_followed_with_its_own_host_and_name(
        self, status: int, lookups: NetworkLookups, web: Web, server: Server
    ) -> None:
        web.page(f"https://{NAME}{FILE}", status, Location=f"https://{OTHER}/elsewhere?a=%20")
        web.page(f"https://{OTHER}/elsewhere?a=%20", body=VALID)
        answer = await lookups.well_known(NAME)

        assert "delegated.example:8449" == str(answer.delegated)
        assert [NAME, OTHER] == server.snis

    @pytest.mark.parametrize("location", ["/there", "there", "//remote.example/there"])
    async def test_may_be_relative(self, location: str, lookups: NetworkLookups, web: Web) -> None:
        web.page(f"https://{NAME}{FILE}", 302, Location=location)
        for url in (f"https://{NAME}/there", f"https://{NAME}/.well-known/matrix/there"):
            web.page(url, body=VALID)

        assert (await lookups.well_known(NAME)).delegated is not None

    async def test_counts_with_the_header_of_its_end(
        self, lookups: NetworkLookups, web: Web, clock: ManualClock
    ) -> None:
        web.page(
            f"https://{NAME}{FILE}", 301, Location=f"https://{OTHER}/", Cache_Control="max-age=1"
        )
        web.page(f"https://{OTHER}/", body=VALID, Cache_Control="max-age=7200")

        assert 2 * HOUR == (await lookups.well_known(NAME)).fresh_until - clock.time()

    @pytest.mark.parametrize("hops", [3, 4])
    async def test_is_followed_a_few_times(
        self, hops: int, lookups: NetworkLookups, web: Web
    ) -> None:
        urls = [f"https://{NAME}{FILE}", *(f"https://{OTHER}/{n}" for n in range(hops))]
        for url, following in pairwise(urls):
            web.page(url, 302, Location=following)
        web.page(urls[-1], body=VALID)
        answer = await lookups.well_known(NAME)

        assert (hops == 3) == (answer.delegated is not None)
        assert 4 == len(web.asked)

    async def test_that_leads_back_ends(self, lookups: NetworkLookups, web: Web) -> None:
        web.page(f"https://{NAME}{FILE}", 302, Location=FILE)
        answer = await lookups.well_known(NAME)

        assert (None, "more than 3 redirects") == (answer.delegated, answer.reason)
        assert 4 == len(web.asked)

    @pytest.mark.parametrize(
        ("location", "reason"),
        [
            ("http://other.example/", "not https"),
            ("ftp://other.example/", "not https"),
            ("https://user:password@other.example/", "credentials"),
            ("https://user@other.example/", "credentials"),
            ("", "not https"),
            ("https://[::1", "no URL"),
            ("https://9][@", "no URL"),  # which yarl takes for an IndexError
            ("https://xn--a-/", "xn--a-"),  # which looks like IDNA, and is none
            ("https://other.example:99999/", "no URL"),
            ("https://other.example:0/", "not https"),
        ],
    )
    async def test_that_leads_where_it_must_not_is_no_answer(
        self, location: str, reason: str, lookups: NetworkLookups, web: Web
    ) -> None:
        web.page(f"https://{NAME}{FILE}", 302, Location=location)
        answer = await lookups.well_known(NAME)

        assert answer.delegated is None
        assert reason in answer.reason
        assert [f"https://{NAME}{FILE}"] == web.asked

    @pytest.mark.parametrize(
        "location",
        [
            "https://10.0.0.1/",
            "https://[::ffff:10.0.0.1]/",
            "https://private.example/",
        ],
    )
    async def test_passes_the_gate(
        self, location: str, lookups: NetworkLookups, web: Web, connects: list[Any]
    ) -> None:
        web.page(f"https://{NAME}{FILE}", 302, Location=location)
        answer = await lookups.well_known(NAME)

        assert answer.delegated is None
        assert "10.0.0.0/8" in answer.reason
        assert not [to for to in connects if to[0] != "127.0.0.1"]


class TestSrv:
    async def test_records_have_the_time_of_the_zone(self, clock: ManualClock) -> None:
        async with LoopbackNetwork() as network:
            network.dns.add(f"_matrix-fed._tcp.{NAME}", "SRV", 1, 2, 3, "srv.example", ttl=100)
            policy = network.policy()
            lookups = NetworkLookups(network.transport(policy), policy, clock)
            answer = await lookups.srv("_matrix-fed._tcp", NAME)

        assert (1, clock.time() + 100) == (len(answer.records), answer.fresh_until)

    async def test_that_failed_are_an_error_that_may_pass(self) -> None:
        async with LoopbackNetwork() as network:
            network.dns.fails(f"_matrix-fed._tcp.{NAME}", SERVFAIL)
            policy = network.policy()
            lookups = NetworkLookups(network.transport(policy), policy)
            with pytest.raises(UnreachableError, match="SERVFAIL") as caught:
                await lookups.srv("_matrix-fed._tcp", NAME)

        assert (Stage.DNS, True) == (caught.value.stage, caught.value.retryable)


class TestFindingAServer:
    async def test_is_not_tried_with_authorities_that_cannot_be_read(self) -> None:
        """Our own fault is no answer of the remote, and must not lead to the next step."""
        async with LoopbackHomeserver(NAME) as remote:
            policy = remote.network.policy(tls=TlsPolicy(ca_file="nope.pem"))
            async with FederationClient(policy=policy) as federation:
                with pytest.raises(InvalidInviteError, match=r"nope\.pem") as caught:
                    await federation.resolve(NAME)

        assert "tls.ca_file" == caught.value.field

    async def test_that_takes_too_long_says_how_far_it_came(self) -> None:
        async with LoopbackNetwork() as network:
            network.dns.fails(f"_matrix._tcp.{NAME}", NO_ANSWER)
            network.host(NAME)
            policy = network.policy(timeouts=Timeouts(total=0.5))
            async with network.client(policy=policy) as client:
                with pytest.raises(UnreachableError, match=r"not finished within 0\.5 s") as caught:
                    await client.resolve(NAME)

        assert ["1", "2", "3", "4", "5"] == [step.step for step in caught.value.trace]
        assert "no answer yet" == caught.value.trace[-1].answer


class TestAWholeInvite:
    async def test_a_well_known_that_hangs_costs_its_own_budget_once_and_one_request(self) -> None:
        file = WellKnown("delegated.example:8449", fault=Hangs())
        remote = LoopbackHomeserver(NAME, well_known=file, srv=Srv("srv.example", 8450))
        # Where it is if its file cannot be read is by SRV of its own name.
        async with remote:
            remote.network.dns.add(f"_matrix-fed._tcp.{NAME}", "SRV", 1, 1, 8450, "srv.example")
            remote.certificate = Certificate.of(NAME)
            await remote.stops()
            await remote.starts()
            policy = remote.network.policy(timeouts=Timeouts(total=10.0, well_known=0.5))
            async with remote.client(policy=policy) as client:
                signed = [await client.send_invite(make_invite()) for _ in range(2)]

        assert ["4", "4"] == [one.resolved.step for one in signed]
        assert (1, 2) == (len(remote.well_known_requests), remote.counts["v2"])
        assert signed[0].seconds < 10.0

    async def test_all_is_looked_up_while_the_web_server_is_slow(self) -> None:
        async with LoopbackHomeserver(NAME, well_known=WellKnown(fault=Hangs())) as remote:
            dns = remote.network.dns
            policy = remote.network.policy(timeouts=Timeouts(total=20.0, well_known=15.0))
            async with remote.client(policy=policy) as client:
                asking = asyncio.create_task(client.resolve(NAME))
                wanted = [("_matrix-fed._tcp.", "SRV"), ("_matrix._tcp.", "SRV"), ("", "A")]
                async with asyncio.timeout(10):
                    while not all(dns.asked(f"{label}{NAME}", kind) for label, kind in wanted):
                        await asyncio.sleep(0.01)
                assert not asking.done()
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)

    async def test_an_address_is_asked_for_once_for_many_connections(self) -> None:
        async with LoopbackHomeserver(NAME) as remote, remote.client() as client:
            for _ in range(3):
                await client.send_invite(make_invite())
                await client._transport._pool.aclose()

        assert 1 < len({id(connection) for connection in remote.connections})
        assert 1 == remote.network.dns.asked(NAME, "A")

    async def test_a_server_that_has_moved_is_found_within_one_invite(self) -> None:
        """The address of before refuses: it is looked up anew, whatever its TTL."""
        async with (
            LoopbackNetwork() as network,
            LoopbackHomeserver(NAME, network=network) as before,
        ):
            policy = network.policy(
                dns=DnsPolicy(
                    nameservers=(network.dns.address,), port=network.dns.port, minimum_ttl=3600
                )
            )
            async with before.client(policy=policy) as client:
                await client.send_invite(make_invite())
                await before.stops()
                network.dns.remove(NAME)
                network._hosts.clear()  # so that its name gets a new address
                async with LoopbackHomeserver(NAME, before.signing_key, network=network) as after:
                    signed = await client.send_invite(make_invite())

        assert 1 == after.counts["v2"]
        assert signed.signatures
