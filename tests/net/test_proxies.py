"""Through a proxy nothing changes but the way: the same gate, the same certificate, the same words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.request import proxy_bypass_environment

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from invite_client.errors import (
    Attempt,
    Delivery,
    ForbiddenByPolicyError,
    Stage,
    UnreachableError,
)
from invite_client.net.lookups import NetworkLookups
from invite_client.net.proxies import Routes
from invite_client.policy import AddressPolicy, ProxyPolicy, Timeouts
from invite_client.spec.discovery import Target
from tests.net.conftest import caught
from tests.net.proxy_servers import Proxying, proxy_server
from tests.net.servers import (
    PUT,
    Authority,
    Server,
    StaticDns,
    Visit,
    answers_ok,
    resolved,
)

SCHEMES = ("http", "socks5")
both = pytest.mark.parametrize("scheme", SCHEMES)
ONION = "inviteclientinviteclientinviteclientinviteclientinvitecl.onion"


@pytest.fixture
def ask(
    authority: Authority, transports: Callable[..., Any], log: list[Attempt]
) -> Callable[..., Any]:
    """Make a way to send requests through a proxy."""

    def ask(proxy: Server, scheme: str, credentials: str = "", **options: Any) -> Any:
        names = options.pop("dns", None) or StaticDns(remote_example=["127.0.0.1"])
        policy = ProxyPolicy(
            f"{scheme}://{credentials}127.0.0.1:{proxy.port}", bypass=options.pop("bypass", ())
        )
        transport = transports(authority.policy(proxy=policy, **options), names)

        async def exchange(server: Any) -> Any:
            return await transport.exchange(server, PUT, limit=1000, log=log)

        return exchange

    return ask


@pytest.fixture
async def remote(authority: Authority) -> AsyncIterator[Server]:
    async with Server(answers_ok, authority.server("remote.example")).running() as server:
        yield server


@both
class TestThroughATunnel:
    async def test_tls_is_with_the_remote_and_the_proxy_reads_nothing(
        self, ask: Any, remote: Server, log: list[Attempt], scheme: str
    ) -> None:
        proxying = Proxying()
        async with proxy_server(scheme, proxying).running() as proxy:
            send = ask(proxy, scheme)
            replies = [await send(resolved(remote)) for _ in range(2)]

        assert [200, 200] == [reply.status for reply in replies]
        assert ["remote.example"] == remote.snis
        assert b"\r\nHost: remote.example\r\n" in remote.requests[0]
        # The name was resolved here, and the address has passed the gate.
        assert [("127.0.0.1", remote.port)] == proxying.asked
        assert b"X-Matrix" not in proxying.said
        # One tunnel, used twice.
        assert 1 == len(proxy.visits)
        via = f"127.0.0.1:{remote.port} via the proxy 127.0.0.1:{proxy.port}"
        assert [via, via] == [attempt.address for attempt in log]

    async def test_the_certificate_is_that_of_the_name_and_not_of_the_target(
        self, ask: Any, remote: Server, log: list[Attempt], scheme: str
    ) -> None:
        dns = StaticDns(srv_example=["127.0.0.1"])
        targets = (Target("srv.example", remote.port),)
        async with proxy_server(scheme, Proxying()).running() as proxy:
            send = ask(proxy, scheme, dns=dns)
            reply = await send(resolved(targets=targets))
            other = resolved(name="other.example", targets=targets)
            error = await caught(send(other), UnreachableError)

        assert 200 == reply.status
        assert Stage.TLS == error.stage
        assert "expected one for other.example" in error.message
        assert ["remote.example", "other.example"] == remote.snis
        assert 1 == len(remote.requests)

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    async def test_an_ip_literal_is_verified_as_one(
        self, ask: Any, authority: Authority, scheme: str, address: str
    ) -> None:
        server = Server(answers_ok, authority.server(address))
        proxying = Proxying()
        async with server.running(address), proxy_server(scheme, proxying).running() as proxy:
            target = resolved(
                name=f"[{address}]" if ":" in address else address,
                targets=(Target(address, server.port),),
                tls_name=address,
            )
            await ask(proxy, scheme)(target)

        assert [(address, server.port)] == proxying.asked
        assert [None] == server.snis

    async def test_an_address_that_is_refused_is_not_asked_for(
        self, ask: Any, remote: Server, scheme: str
    ) -> None:
        proxying = Proxying()
        dns = StaticDns(remote_example=["10.0.0.1", "127.0.0.1", "::1"])
        async with proxy_server(scheme, proxying).running() as proxy:
            addresses = AddressPolicy(allowed=("127.0.0.1/32",))
            await ask(proxy, scheme, dns=dns, addresses=addresses)(resolved(remote))
            # But the proxy itself may be anywhere.
            send = ask(proxy, scheme, dns=dns, addresses=AddressPolicy())
            await caught(send(resolved(remote)), ForbiddenByPolicyError)

        assert [("127.0.0.1", remote.port)] == proxying.asked
        assert 1 == len(proxy.visits)

    async def test_the_next_address_is_tried_where_the_proxy_cannot_connect(
        self, ask: Any, remote: Server, scheme: str
    ) -> None:
        proxying = Proxying(refuses={"127.0.0.9": 502 if scheme == "http" else 5})
        dns = StaticDns(remote_example=["127.0.0.9", "127.0.0.1"])
        async with proxy_server(scheme, proxying).running() as proxy:
            reply = await ask(proxy, scheme, dns=dns)(resolved(remote))

        assert 200 == reply.status
        assert ["127.0.0.9", "127.0.0.1"] == [host for host, _ in proxying.asked]

    async def test_the_next_address_is_tried_where_tls_fails(
        self, ask: Any, authority: Authority, remote: Server, scheme: str
    ) -> None:
        wrong = Server(answers_ok, authority.server("other.example"))
        dns = StaticDns(remote_example=["127.0.0.2", "127.0.0.1"])
        async with (
            wrong.running("127.0.0.2", remote.port),
            proxy_server(scheme, Proxying()).running() as proxy,
        ):
            reply = await ask(proxy, scheme, dns=dns)(resolved(remote))

        assert 200 == reply.status
        assert [] == wrong.visits

    async def test_the_next_srv_target_is_tried(
        self, ask: Any, remote: Server, log: list[Attempt], scheme: str
    ) -> None:
        proxying = Proxying(refuses={"127.0.0.9": 502 if scheme == "http" else 5})
        dns = StaticDns(a_example=["127.0.0.9"], b_example=["127.0.0.1"])
        targets = (Target("a.example", 8448), Target("b.example", remote.port))
        async with proxy_server(scheme, proxying).running() as proxy:
            reply = await ask(proxy, scheme, dns=dns)(resolved(targets=targets))

        assert 200 == reply.status
        assert [False, True] == [attempt.sent for attempt in log]

    async def test_a_proxy_may_have_a_name(
        self, authority: Authority, transports: Any, remote: Server, scheme: str
    ) -> None:
        dns = StaticDns(remote_example=["127.0.0.1"], proxy_internal=["127.0.0.1"])
        async with proxy_server(scheme, Proxying()).running() as proxy:
            policy = authority.policy(proxy=ProxyPolicy(f"{scheme}://proxy.internal:{proxy.port}"))
            reply = await transports(policy, dns).exchange(
                resolved(remote), PUT, limit=1000, log=[]
            )

        assert 200 == reply.status
        assert {"remote.example", "proxy.internal"} == set(dns.asked)

    async def test_the_well_known_file_travels_too(
        self, authority: Authority, transports: Any, remote: Server, scheme: str
    ) -> None:
        proxying = Proxying(names={"127.0.0.1": ("127.0.0.1", remote.port)})
        async with proxy_server(scheme, proxying).running() as proxy:
            policy = authority.policy(proxy=ProxyPolicy(f"{scheme}://127.0.0.1:{proxy.port}"))
            transport = transports(policy, StaticDns(remote_example=["127.0.0.1"]))
            await NetworkLookups(transport, policy).well_known("remote.example")

        assert [("127.0.0.1", 443)] == proxying.asked
        assert remote.requests[0].startswith(b"GET /.well-known/matrix/server ")
        assert b"\r\nHost: remote.example\r\n" in remote.requests[0]

    async def test_cancelling_at_any_moment_leaves_nothing_behind(
        self, authority: Authority, transports: Any, remote: Server, scheme: str
    ) -> None:
        turns, finished = 0, False
        async with proxy_server(scheme, Proxying()).running() as proxy:
            policy = authority.policy(proxy=ProxyPolicy(f"{scheme}://127.0.0.1:{proxy.port}"))
            while not finished:
                turns += 1
                transport = transports(policy, StaticDns(remote_example=["127.0.0.1"]))
                task = asyncio.create_task(
                    transport.exchange(resolved(remote), PUT, limit=1000, log=[])
                )
                for _ in range(turns):
                    await asyncio.sleep(0.0005)
                finished = task.done()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await transport.aclose()

        assert turns > 3


@both
class TestCredentials:
    async def test_are_for_the_proxy_and_for_nobody_else(
        self, ask: Any, remote: Server, log: list[Attempt], scheme: str
    ) -> None:
        proxying = Proxying(credentials=("user@corp", "p:ss w/rd"))
        async with proxy_server(scheme, proxying).running() as proxy:
            await ask(proxy, scheme, "user%40corp:p%3Ass%20w%2Frd@")(resolved(remote))

        assert ["user@corp:p:ss w/rd"] == proxying.given
        assert b"roxy" not in remote.requests[0]
        assert "p:ss" not in repr(log)

    @pytest.mark.parametrize("given", ["", "user:s3cret@"])
    async def test_that_are_wrong_are_told_and_not_shown(
        self, ask: Any, remote: Server, log: list[Attempt], scheme: str, given: str
    ) -> None:
        async with proxy_server(scheme, Proxying(credentials=("u", "p"))).running() as proxy:
            error = await caught(ask(proxy, scheme, given)(resolved(remote)), UnreachableError)

        assert (Stage.CONNECT, Delivery.NOT_SENT, False) == (
            error.stage,
            error.delivery,
            error.retryable,
        )
        assert f"the proxy 127.0.0.1:{proxy.port} wants other credentials" in error.message
        cause: BaseException | None = error
        while cause is not None:
            assert "s3cret" not in f"{cause!r} {cause} {error.diagnosis()} {log!r}"
            cause = cause.__cause__ or cause.__context__

    async def test_that_nobody_asked_for_do_no_harm(
        self, ask: Any, remote: Server, scheme: str
    ) -> None:
        async with proxy_server(scheme, Proxying()).running() as proxy:
            reply = await ask(proxy, scheme, "user:password@")(resolved(remote))

        assert 200 == reply.status


def raw(answer: bytes) -> Callable[[Visit], Any]:
    async def behaviour(visit: Visit) -> None:
        await visit.reader.read(1)
        await visit.send(answer)
        await visit.until_closed()

    return behaviour


SOCKS_OK = b"\x05\x00" + b"\x05\x00\x00\x01" + b"\0" * 6


class TestAProxyThatFails:
    @pytest.mark.parametrize(
        "case",
        [
            ("http", b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "did not connect: status 502", True),
            ("http", b"HTTP/1.1 503 X\r\nA: b\r\n\r\nbody", "did not connect: status 503", True),
            ("http", b"HTTP/1.1 403 Forbidden\r\n\r\n", "did not connect: status 403", False),
            ("http", b"HTTP/1.1 302 X\r\n\r\n", "did not connect: status 302", False),
            ("http", b"SSH-2.0-x\r\n\r\n", "gave no answer that is HTTP", False),
            ("http", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, "gave no answer", True),
            ("http", b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n", "more than an answer", False),
            ("http", b"HTTP/1.1 200 OK\r\n\r\nx\r\n\r\n", "sent more than an answer", False),
            ("socks5", b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak SOCKS5", False),
            ("socks5", b"\x04\x00", "does not speak SOCKS5", False),
            ("socks5", b"\x05\x01", "wants other credentials", False),
            ("socks5", b"\x05\xff", "wants other credentials", False),
            ("socks5", b"\x05\x00\x05\x01\0\x01", "did not connect: general failure", True),
            ("socks5", b"\x05\x00\x05\x02\0\x01", "not allowed by its rules", False),
            ("socks5", b"\x05\x00\x05\x03\0\x01", "network unreachable", True),
            ("socks5", b"\x05\x00\x05\x04\0\x01", "host unreachable", True),
            ("socks5", b"\x05\x00\x05\x05\0\x01", "connection refused", True),
            ("socks5", b"\x05\x00\x05\x06\0\x01", "TTL expired", True),
            ("socks5", b"\x05\x00\x05\x07\0\x01", "command not supported", False),
            ("socks5", b"\x05\x00\x05\x08\0\x01", "kind of address not supported", False),
            ("socks5", b"\x05\x00\x05\xf0\0\x01", "did not connect: code 240", True),
            ("socks5", b"\x05\x00\x04\x00\0\x01", "does not speak SOCKS5", False),
            ("socks5", b"\x05\x00\x05\x00\0\x07", "does not speak SOCKS5", False),
        ],
    )
    async def test_is_named_as_the_one_that_failed(
        self, ask: Any, remote: Server, log: list[Attempt], case: tuple[str, bytes, str, bool]
    ) -> None:
        scheme, answer, words, retryable = case
        async with Server(raw(answer)).running() as proxy:
            error = await caught(ask(proxy, scheme)(resolved(remote)), UnreachableError)

        assert f"the proxy 127.0.0.1:{proxy.port} " in error.message
        assert words in error.message
        assert (Stage.CONNECT, Delivery.NOT_SENT, retryable) == (
            error.stage,
            error.delivery,
            error.retryable,
        )
        assert [] == remote.visits
        assert [False] == [attempt.sent for attempt in log]

    @both
    @pytest.mark.parametrize("after", [0, 1])
    async def test_by_hanging_up_is_tried_again_later(
        self, ask: Any, remote: Server, scheme: str, after: int
    ) -> None:
        async def hangs_up(visit: Visit) -> None:
            await visit.reader.read(after)

        async with Server(hangs_up).running() as proxy:
            error = await caught(ask(proxy, scheme)(resolved(remote)), UnreachableError)

        assert (Stage.CONNECT, Delivery.NOT_SENT, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )

    @both
    async def test_by_not_being_there_is_tried_again_later(
        self, ask: Any, remote: Server, scheme: str
    ) -> None:
        async with Server(raw(b"")).running() as proxy:
            pass
        error = await caught(ask(proxy, scheme)(resolved(remote)), UnreachableError)

        assert f"the proxy 127.0.0.1:{proxy.port}: Connection refused" in error.message
        assert (Stage.CONNECT, Delivery.NOT_SENT, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )

    @both
    async def test_by_not_being_found_is_not_the_remotes_fault(
        self, authority: Authority, transports: Any, remote: Server, scheme: str
    ) -> None:
        policy = authority.policy(proxy=ProxyPolicy(f"{scheme}://nowhere.internal:3128"))
        transport = transports(policy, StaticDns(remote_example=["127.0.0.1"]))
        error = await caught(
            transport.exchange(resolved(remote), PUT, limit=1000, log=[]), UnreachableError
        )

        assert "the proxy nowhere.internal:3128: A nowhere.internal: no such name" in error.message
        assert (Stage.DNS, Delivery.NOT_SENT) == (error.stage, error.delivery)

    @both
    @pytest.mark.parametrize("said", [0, 1])
    async def test_by_falling_silent_takes_no_more_than_the_time_to_connect(
        self, ask: Any, remote: Server, scheme: str, said: int
    ) -> None:
        first = {"http": b"HTTP/1.1 ", "socks5": b"\x05\x00"}[scheme][: said * 100]
        async with Server(raw(first)).running() as proxy:
            send = ask(proxy, scheme, timeouts=Timeouts(connect=0.3))
            async with asyncio.timeout(0.3 + 5):
                error = await caught(send(resolved(remote)), UnreachableError)
            await asyncio.wait_for(proxy.visits[0].closed.wait(), 5)

        assert (Stage.CONNECT, Delivery.NOT_SENT, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )

    async def test_leaves_what_follows_its_answer_to_the_remote(
        self, ask: Any, remote: Server
    ) -> None:
        """Not a byte more is read than is SOCKS's, though no remote speaks before us in TLS."""
        async with Server(raw(SOCKS_OK + b"not TLS")).running() as proxy:
            error = await caught(ask(proxy, "socks5")(resolved(remote)), UnreachableError)

        assert Stage.TLS == error.stage


class TestAnOnionName:
    @both
    @pytest.mark.parametrize("setting", ["url", "onion"])
    async def test_is_resolved_at_the_proxy_and_nowhere_else(
        self, authority: Authority, transports: Any, scheme: str, setting: str
    ) -> None:
        server = Server(answers_ok, authority.server(ONION))
        dns = StaticDns()
        async with server.running():
            proxying = Proxying(names={ONION: ("127.0.0.1", server.port)})
            async with proxy_server(scheme, proxying).running() as proxy:
                policy = ProxyPolicy(
                    **{setting: f"{scheme}://127.0.0.1:{proxy.port}"}, bypass=("onion",)
                )
                transport = transports(authority.policy(proxy=policy), dns)
                target = resolved(name=ONION, targets=(Target(ONION, 8448),))
                await transport.exchange(target, PUT, limit=1000, log=[])
                await transport.get(URL(f"https://{ONION}/"), limit=1000, log=[])

        assert [(ONION, 8448), (ONION, 443)] == proxying.asked
        assert [ONION, ONION] == server.snis
        assert [] == dns.asked

    async def test_needs_a_proxy(
        self, authority: Authority, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        dns = StaticDns(**{ONION.replace(".", "_"): ["127.0.0.1"]})
        transport = transports(authority.policy(), dns)
        for name in (ONION, ONION.upper(), ONION + "."):
            target = resolved(name=ONION, targets=(Target(name, 8448),))
            error = await caught(
                transport.exchange(target, PUT, limit=1000, log=log), UnreachableError
            )

            assert "proxy.onion" in error.message
            assert (Stage.DNS, False) == (error.stage, error.retryable)
        assert ([], []) == (dns.asked, connects)

    async def test_has_no_srv_records(
        self, authority: Authority, transports: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """RFC 7686: DNS is not asked for it, for that would tell whom we talk to."""

        async def srv(*_: Any) -> None:
            raise AssertionError("DNS was asked")

        dns = StaticDns()
        monkeypatch.setattr(dns, "srv", srv)
        policy = authority.policy()
        answer = await NetworkLookups(transports(policy, dns), policy).srv("_matrix._tcp", ONION)

        assert () == answer.records


PROXY = "http://proxy.internal:3128"


ENTRIES = [
    "example",
    ".example",
    "a.example",
    "A.Example:8",
    "example:9",
    "b.example",
    "le",
    "127.0.0.1",
]
HOSTS = ["example", "a.example", "b.A.example", "anexample", "127.0.0.1", "localhost"]


class TestTheRoute:
    @pytest.mark.parametrize(
        ("bypass", "names", "direct"),
        [
            ((), ("remote.example",), False),
            (("remote.example",), ("remote.example",), True),
            (("REMOTE.example",), ("remote.EXAMPLE.",), True),
            (("example",), ("remote.example",), True),
            ((".example",), ("remote.example",), True),
            ((".remote.example",), ("remote.example",), True),
            (("mote.example",), ("remote.example",), False),
            (("remote.example",), ("remote.example.org",), False),
            (("10.0.0.0/8",), ("10.1.2.3",), True),
            (("10.0.0.5/8",), ("10.1.2.3",), True),
            (("10.1.2.3",), ("10.1.2.3",), True),
            (("10.0.0.0/8",), ("11.1.2.3",), False),
            (("fd00::/8",), ("fd00::1",), True),
            (("::1",), ("0:0:0:0:0:0:0:1",), True),
            # By any of its names: target, delegated name, server name.
            (("srv.internal",), ("srv.internal", "matrix.example", "remote.example"), True),
            (("matrix.example",), ("srv.internal", "matrix.example", "remote.example"), True),
            (("remote.example",), ("srv.internal", "matrix.example", "remote.example"), True),
            (("10.0.0.0/8",), ("10.0.0.1", "matrix.example", "remote.example"), True),
            # By its port, as Python has it; with brackets, as curl has it.
            (("remote.example:8448",), ("remote.example",), True),
            (("remote.example:443",), ("remote.example",), False),
            ((".example:8448",), ("remote.example",), True),
            (("10.1.2.3:8448",), ("10.1.2.3",), True),
            (("10.1.2.3:443",), ("10.1.2.3",), False),
            (("[::1]:8448",), ("::1",), True),
            (("[::1]",), ("::1",), True),
            (("*",), ("remote.example",), True),
            (("*",), ("10.1.2.3",), True),
            ((), ("127.0.0.1", "localhost"), False),
        ],
    )
    def test_is_direct_for_what_is_listed(
        self, bypass: tuple[str, ...], names: tuple[str, ...], direct: bool
    ) -> None:
        routes = Routes(ProxyPolicy(PROXY, bypass=bypass))

        target, *others = names
        assert direct is (routes.proxy_for(target, 8448, *others) is None)

    @given(
        st.lists(st.sampled_from(ENTRIES), max_size=4), st.sampled_from(HOSTS), st.integers(1, 9)
    )
    def test_is_what_python_makes_of_no_proxy(
        self, entries: list[str], host: str, port: int
    ) -> None:
        routes = Routes(
            ProxyPolicy.from_environment({"https_proxy": PROXY, "no_proxy": ",".join(entries)})
        )
        expected = proxy_bypass_environment(f"{host}:{port}", {"no": ",".join(entries)})

        assert bool(expected) is (routes.proxy_for(host, port) is None)

    def test_of_an_onion_name_is_never_direct(self) -> None:
        routes = Routes(ProxyPolicy(PROXY, onion="socks5://127.0.0.1:9050", bypass=("onion",)))

        assert "the proxy 127.0.0.1:9050" == str(routes.proxy_for(ONION, 8448))
        assert "the proxy proxy.internal:3128" == str(routes.proxy_for("remote.example", 8448))
        assert "the proxy 127.0.0.1:9050" == str(
            Routes(ProxyPolicy(onion="socks5://127.0.0.1:9050")).proxy_for(
                ONION, 8448, "remote.example"
            )
        )

    @both
    async def test_directly_and_by_proxy_are_different_connections(
        self, ask: Any, authority: Authority, remote: Server, scheme: str
    ) -> None:
        proxying = Proxying()
        dns = StaticDns(hoster_example=["127.0.0.1"])
        targets = (Target("hoster.example", remote.port),)
        near = resolved(name="near.example", targets=targets, tls_name="remote.example")
        far = resolved(name="far.example", targets=targets, tls_name="remote.example")
        async with proxy_server(scheme, proxying).running() as proxy:
            send = ask(proxy, scheme, dns=dns, bypass=("near.example",))
            await send(near)
            assert [] == proxying.asked
            await send(far)

        assert 1 == len(proxying.asked)
        assert 2 == len(remote.visits)

    @both
    async def test_is_not_chosen_by_where_a_name_leads(
        self, ask: Any, remote: Server, scheme: str
    ) -> None:
        """Its zone is a stranger's: by it the stranger could go round the proxy, or learn of us."""
        proxying = Proxying()
        async with proxy_server(scheme, proxying).running() as proxy:
            await ask(proxy, scheme, bypass=("127.0.0.0/8",))(resolved(remote))

        assert 1 == len(proxying.asked)

    async def test_is_not_read_from_the_environment_unasked(
        self,
        authority: Authority,
        transports: Any,
        remote: Server,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        transport = transports(authority.policy(), StaticDns(remote_example=["127.0.0.1"]))
        reply = await transport.exchange(resolved(remote), PUT, limit=1000, log=[])

        assert 200 == reply.status


class TestThePolicy:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "proxy.internal:3128",
            "http://",
            "http://user:s3cret@proxy.internal",
            "http://user:s3cret@proxy.internal:0",
            "http://user:s3cret@proxy.internal:99999",
            "http://user:s3cret@proxy.internal:port",
            "https://user:s3cret@proxy.internal:3128",
            "socks4://user:s3cret@proxy.internal:3128",
            "socks5h://user:s3cret@proxy.internal:3128",
            "http://user:s3cret@proxy.internal:3128/path",
            "http://user:s3cret@proxy.internal:3128?query",
            "http://user:s3cret@[::1:3128",
            f"socks5://user:s3cret{'x' * 250}@proxy.internal:3128",
        ],
    )
    def test_names_the_setting_and_never_the_value(self, url: str) -> None:
        for setting in ("url", "onion"):
            with pytest.raises(ValueError, match=rf"^proxy\.{setting}") as info:
                ProxyPolicy(**{setting: url})

            assert "s3cret" not in str(info.value)
            assert info.value.__cause__ is None
            assert info.value.__suppress_context__ or info.value.__context__ is None

    def test_shows_no_credentials(self) -> None:
        policy = ProxyPolicy("http://user:s3cret@[::1]:3128")

        assert "s3cret" not in repr(policy)
        proxy = Routes(policy).proxy_for("x", 8448)
        assert "the proxy [::1]:3128" == str(proxy)
        assert "s3cret" not in repr(proxy)

    @pytest.mark.parametrize(
        ("environment", "url", "bypass"),
        [
            ({}, None, ()),
            ({"HTTP_PROXY": PROXY}, None, ()),
            ({"HTTPS_PROXY": PROXY}, PROXY, ()),
            ({"ALL_PROXY": PROXY}, PROXY, ()),
            ({"https_proxy": PROXY, "HTTPS_PROXY": "http://other:1"}, PROXY, ()),
            ({"HTTPS_PROXY": PROXY, "all_proxy": "http://other:1"}, PROXY, ()),
            ({"https_proxy": "", "HTTPS_PROXY": PROXY}, PROXY, ()),
            (
                {"HTTPS_PROXY": PROXY, "NO_PROXY": "localhost, .internal,10.0.0.0/8"},
                PROXY,
                ("localhost", ".internal", "10.0.0.0/8"),
            ),
            ({"HTTPS_PROXY": PROXY, "no_proxy": "a b"}, PROXY, ("a", "b")),
            ({"HTTPS_PROXY": PROXY, "no_proxy": "*"}, None, ("*",)),
            ({"https_proxy": "proxy.internal:3128"}, PROXY, ()),
        ],
    )
    def test_can_be_read_from_the_environment(
        self, environment: dict[str, str], url: str | None, bypass: tuple[str, ...]
    ) -> None:
        policy = ProxyPolicy.from_environment(environment)

        assert (url, bypass) == (policy.url, policy.bypass)

    def test_says_which_variable_is_wrong(self) -> None:
        with pytest.raises(ValueError, match=r"^ALL_PROXY must be") as info:
            ProxyPolicy.from_environment({"ALL_PROXY": "socks5h://user:s3cret@proxy:1"})

        assert "s3cret" not in str(info.value)
