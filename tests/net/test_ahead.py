"""Connections that are opened on a guess: a right one is there when it is needed, a wrong one is no loss.

Nothing of a request is sent by one that no request has taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from invite_client import InviteClient, Limits, Policy
from invite_client.errors import (
    Attempt,
    ForbiddenByPolicyError,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.net import ahead
from invite_client.net.handshakes import Handshake
from invite_client.net.http import HttpTransport
from invite_client.policy import AddressPolicy, ProxyPolicy
from invite_client.spec.discovery import Target
from invite_client.testing import (
    Hangs,
    LoopbackHomeserver,
    LoopbackNetwork,
    Srv,
    WellKnown,
    make_invite,
)
from invite_client.testing.faults import Wire, WireFault, encode
from tests.net.conftest import caught
from tests.net.servers import (
    GET,
    OK,
    PUT,
    Authority,
    Server,
    StaticDns,
    Visit,
    answers_ok,
    resolved,
)

NAME = "remote.example"


@dataclass
class Handshakes:
    """Those that the client has gone through, to be waited for."""

    seen: list[Handshake] = field(default_factory=list)
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, handshake: Handshake) -> None:
        self.seen.append(handshake)
        self._told.set()

    def at(self, host: str, port: int) -> int:
        return sum(handshake.target == Target(host, port) for handshake in self.seen)

    async def until(self, count: int, host: str, port: int) -> None:
        """Wait for so many there, and for what comes of them."""
        async with asyncio.timeout(5):
            while self.at(host, port) < count:
                await self._told.wait()
                self._told.clear()
        await turns()


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def handshakes() -> Handshakes:
    return Handshakes()


# --- By one transport ---------------------------------------------------------------------------


async def reads_on(visit: Visit) -> None:
    """Answer requests, and note when the client goes."""
    with suppress(asyncio.IncompleteReadError):
        await answers_ok(visit)


@asynccontextmanager
async def opened_ahead(
    authority: Authority,
    transports: Callable[..., HttpTransport],
    handshakes: Handshakes,
    behaviour: Any = reads_on,
    **policy: Any,
) -> AsyncIterator[tuple[Server, HttpTransport, Any]]:
    """A server, a transport, and a connection that is there before there is a request."""
    server = Server(behaviour, authority.server(NAME))
    dns = StaticDns(**{NAME: ["127.0.0.1"]})
    async with server.running():
        transport = transports(authority.policy(**policy), dns, on_handshake=handshakes)
        opening = transport.open_ahead(resolved(server))
        await handshakes.until(1, NAME, server.port)
        yield server, transport, opening


class TestARequest:
    async def test_goes_by_what_is_there(
        self,
        authority: Authority,
        transports: Any,
        handshakes: Handshakes,
        log: list[Attempt],
    ) -> None:
        async with opened_ahead(authority, transports, handshakes) as (server, transport, opening):
            assert [] == server.requests
            for _ in range(2):
                await transport.exchange(resolved(server), PUT, limit=100, log=log)
            await opening.give_up()  # which is no longer the guess's to give up
            await transport.exchange(resolved(server), PUT, limit=100, log=log)

            assert [NAME] == server.snis
            assert 3 == len(server.visits[0].requests)
            assert [f"127.0.0.1:{server.port}"] * 3 == [attempt.address for attempt in log]

    async def test_to_another_target_opens_its_own(
        self, authority: Authority, transports: Any, handshakes: Handshakes, log: list[Attempt]
    ) -> None:
        async with (
            opened_ahead(authority, transports, handshakes) as (server, transport, _),
            Server(reads_on, authority.server(NAME)).running() as other,
        ):
            await transport.exchange(resolved(other), PUT, limit=100, log=log)

            assert (0, 1) == (len(server.requests), len(other.requests))

    @pytest.mark.parametrize(
        "other", [{"tls_name": "other.example"}, {"name": "other.example"}], ids=str
    )
    async def test_that_wants_another_certificate_opens_its_own(
        self,
        authority: Authority,
        transports: Any,
        handshakes: Handshakes,
        log: list[Attempt],
        other: dict[str, str],
    ) -> None:
        async with opened_ahead(authority, transports, handshakes) as (server, transport, _):
            transport.dns.names["other.example"] = ["127.0.0.1"]
            where = resolved(server, **other)
            await caught(transport.exchange(where, PUT, limit=100, log=log), UnreachableError)

            assert [] == server.requests
            assert [NAME, "other.example"] == server.snis

    async def test_joins_what_is_on_its_way(
        self, authority: Authority, transports: Any, handshakes: Handshakes, log: list[Attempt]
    ) -> None:
        server = Server(reads_on, authority.server(NAME))
        async with server.running(late=0.05):
            transport = transports(authority.policy(), StaticDns(**{NAME: ["127.0.0.1"]}))
            transport.open_ahead(resolved(server))
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

            assert 200 == reply.status
            assert [NAME] == server.snis

    async def test_that_has_joined_fails_as_if_it_were_its_own(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(reads_on, authority.server("other.example"))
        async with server.running(late=0.05):
            transport = transports(authority.policy(), StaticDns(**{NAME: ["127.0.0.1"]}))
            transport.open_ahead(resolved(server))
            exchange = transport.exchange(resolved(server), PUT, limit=100, log=log)
            error = await caught(exchange, UnreachableError)

        assert "other.example" in error.message
        assert [f"127.0.0.1:{server.port}"] == [attempt.address for attempt in log]
        assert [NAME] == server.snis

    async def test_that_has_joined_and_is_cancelled_takes_it_with_it(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(Visit.until_closed)  # no handshake is answered
        async with server.running():
            transport = transports(authority.policy(), StaticDns(**{NAME: ["127.0.0.1"]}))
            transport.open_ahead(resolved(server))
            exchange = transport.exchange(resolved(server), PUT, limit=100, log=log)
            request = asyncio.create_task(exchange)
            while not server.visits:
                await asyncio.sleep(0.001)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            async with asyncio.timeout(5):
                await server.visits[0].closed.wait()

        assert 1 == len(server.visits)

    async def test_opens_its_own_where_the_guess_has_failed(
        self, authority: Authority, transports: Any, handshakes: Handshakes, log: list[Attempt]
    ) -> None:
        wrong, right = authority.server("other.example"), authority.server(NAME)
        server = Server(reads_on, wrong)
        dns = StaticDns(**{NAME: ["127.0.0.1"]})
        transport = transports(authority.policy(), dns, on_handshake=handshakes)
        async with server.running():
            transport.open_ahead(resolved(server))
            await handshakes.until(1, NAME, server.port)
        mended = Server(reads_on, right)
        async with mended.running(port=server.port):
            reply = await transport.exchange(resolved(mended), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert ["200"] == [attempt.outcome for attempt in log]

    @pytest.mark.parametrize("says", [b"", OK], ids=["hangs up", "speaks unasked"])
    async def test_opens_its_own_where_the_remote_did_not_wait(
        self,
        authority: Authority,
        transports: Any,
        handshakes: Handshakes,
        log: list[Attempt],
        says: bytes,
    ) -> None:
        async def first_does_not_wait(visit: Visit) -> None:
            if len(server.visits) > 1:
                await reads_on(visit)
            elif says:
                await visit.send(says)
                await visit.until_closed()

        server = Server(first_does_not_wait, authority.server(NAME))
        async with server.running():
            dns = StaticDns(**{NAME: ["127.0.0.1"]})
            transport = transports(authority.policy(), dns, on_handshake=handshakes)
            opening = transport.open_ahead(resolved(server))
            await handshakes.until(1, NAME, server.port)
            async with asyncio.timeout(5):
                await server.visits[0].closed.wait()
                while opening._line.is_open:  # what the remote does must get here
                    await asyncio.sleep(0.001)
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

            assert 200 == reply.status
            assert [0, 1] == [len(visit.requests) for visit in server.visits]

    @pytest.mark.parametrize("waited_too_long", [False, True])
    async def test_is_sent_once_more_only_where_the_wait_may_have_been_too_long(
        self,
        authority: Authority,
        transports: Any,
        handshakes: Handshakes,
        monkeypatch: pytest.MonkeyPatch,
        waited_too_long: bool,
    ) -> None:
        visits: list[Visit] = []

        async def first_hangs_up(visit: Visit) -> None:
            visits.append(visit)
            if len(visits) > 1:
                await reads_on(visit)
            else:
                await visit.request()
                visit.writer.transport.abort()

        monkeypatch.setattr(ahead, "_WELL_FOR", 0.0 if waited_too_long else 60.0)
        async with opened_ahead(authority, transports, handshakes, first_hangs_up) as (
            server,
            transport,
            _,
        ):
            exchange = transport.exchange(resolved(server), PUT, limit=100, log=[])
            if waited_too_long:
                assert 200 == (await exchange).status
            else:
                assert (await caught(exchange, UnknownOutcomeError)).retryable

            assert (2 if waited_too_long else 1) == len(server.requests)


class TestAConnectionThatNobodyTakes:
    async def test_is_closed_when_it_is_given_up(
        self, authority: Authority, transports: Any, handshakes: Handshakes
    ) -> None:
        async with opened_ahead(authority, transports, handshakes) as (server, _, opening):
            await opening.give_up()
            await asyncio.wait_for(server.visits[0].closed.wait(), 5)

    async def test_is_closed_with_the_transport(
        self, authority: Authority, transports: Any, handshakes: Handshakes
    ) -> None:
        async with opened_ahead(authority, transports, handshakes) as (server, transport, _):
            await transport.aclose()
            await asyncio.wait_for(server.visits[0].closed.wait(), 5)

    async def test_is_closed_after_a_while(
        self,
        authority: Authority,
        transports: Any,
        handshakes: Handshakes,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(ahead, "KEPT_FOR", 0.01)
        async with opened_ahead(authority, transports, handshakes) as (server, _, __):
            await asyncio.wait_for(server.visits[0].closed.wait(), 5)

    async def test_is_given_up_on_its_way(self, authority: Authority, transports: Any) -> None:
        server = Server(Visit.until_closed)
        async with server.running():
            transport = transports(authority.policy(), StaticDns(**{NAME: ["127.0.0.1"]}))
            opening = transport.open_ahead(resolved(server))
            while not server.visits:
                await asyncio.sleep(0.001)
            await opening.give_up()
            await asyncio.wait_for(server.visits[0].closed.wait(), 5)


class TestNothingIsOpened:
    async def test_to_an_address_that_is_refused(
        self, transports: Any, connects: list[Any], log: list[Attempt]
    ) -> None:
        transport = transports(Policy(), StaticDns(**{NAME: ["127.0.0.1"]}))
        where = resolved(targets=(Target(NAME, 8448),))
        transport.open_ahead(where)
        await turns()
        await caught(transport.exchange(where, PUT, limit=100, log=log), ForbiddenByPolicyError)

        assert [] == connects

    @pytest.mark.parametrize(
        ("host", "proxy"),
        [
            (NAME, ProxyPolicy("http://127.0.0.1:1")),
            ("abc.onion", ProxyPolicy(onion="socks5://127.0.0.1:1")),
            ("abc.onion", ProxyPolicy()),
        ],
    )
    async def test_where_there_is_no_direct_way(
        self, transports: Any, host: str, proxy: ProxyPolicy
    ) -> None:
        transport = transports(Policy(proxy=proxy))

        assert transport.open_ahead(resolved(targets=(Target(host, 8448),))) is None

    async def test_where_there_is_a_connection_already(
        self, authority: Authority, transports: Any, handshakes: Handshakes, log: list[Attempt]
    ) -> None:
        async with opened_ahead(authority, transports, handshakes) as (server, transport, _):
            await transport.exchange(resolved(server), GET, limit=100, log=log)

            assert transport.open_ahead(resolved(server)) is None

    async def test_after_the_end(
        self, authority: Authority, transports: Any, connects: list[Any]
    ) -> None:
        transport = transports(authority.policy(), StaticDns(**{NAME: ["127.0.0.1"]}))
        await transport.aclose()
        transport.open_ahead(resolved(targets=(Target(NAME, 8448),)))
        await turns()

        assert [] == connects

    async def test_beyond_the_limit(
        self, authority: Authority, transports: Any, handshakes: Handshakes
    ) -> None:
        limits = Limits(connections_ahead=1)
        async with opened_ahead(authority, transports, handshakes, limits=limits) as (
            server,
            transport,
            opening,
        ):
            assert transport.open_ahead(resolved(server)) is None
            await opening.give_up()
            assert transport.open_ahead(resolved(server)) is not None


# --- By a client --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HeldBack(WireFault):
    """The answer comes when it may."""

    may_come: asyncio.Event
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, wire: Wire) -> None:
        self.asked.set()
        await self.may_come.wait()
        await wire.send(encode(wire.reply))


@asynccontextmanager
async def client_of(
    remote: LoopbackHomeserver, handshakes: Handshakes, **overrides: Any
) -> AsyncIterator[InviteClient]:
    network = remote.network
    policy = network.policy(**overrides)
    transport = HttpTransport(policy, reroute=network.reroute, on_handshake=handshakes)
    try:
        async with remote.client(policy=policy, transport=transport) as client:
            yield client
    finally:
        await transport.aclose()


@pytest.mark.loopback
class TestAFirstInvite:
    @pytest.mark.parametrize(
        ("srv", "target"),
        [
            (Srv("srv.example", 7008), ("srv.example", 7008)),
            (Srv("srv.example", 7009, service="_matrix._tcp"), ("srv.example", 7009)),
            ((), (NAME, 8448)),
        ],
        ids=["SRV", "legacy SRV", "8448"],
    )
    async def test_finds_its_connections_when_there_is_no_well_known_file(
        self, handshakes: Handshakes, srv: Any, target: tuple[str, int]
    ) -> None:
        # Given a web server that takes its time to say that there is no file
        may_come = asyncio.Event()
        none = WellKnown(status=404, body=b"", fault=HeldBack(may_come))
        async with (
            LoopbackHomeserver(NAME, well_known=none, srv=srv) as remote,
            client_of(remote, handshakes) as client,
        ):
            # When an invite is sent, and the connections are there first
            sending = asyncio.create_task(client.send_invite(make_invite()))
            await handshakes.until(2, *target)
            assert [] == remote.requests
            may_come.set()
            await sending

            # Then the invite goes by one, the key request by the other, and there is no third
            connections = [c for c in remote.connections if c.port == target[1]]
            assert [NAME] * 2 == [connection.sni for connection in connections]
            assert [1, 1] == [connection.requests for connection in connections]

            # And another invite needs none
            await client.send_invite(make_invite())
            assert 2 == handshakes.at(*target)

    async def test_closes_them_at_once_when_there_is_a_well_known_file(
        self, handshakes: Handshakes
    ) -> None:
        may_come = asyncio.Event()
        elsewhere = WellKnown("other.example:8449", fault=HeldBack(may_come))
        async with (
            LoopbackNetwork() as network,
            LoopbackHomeserver(NAME, well_known=elsewhere, network=network) as remote,
            LoopbackHomeserver(f"{NAME}:8448", network=network) as guessed,
            client_of(remote, handshakes) as client,
        ):
            remote.fails(Hangs(), endpoint="v2")
            sending = asyncio.create_task(client.send_invite(make_invite()))
            await handshakes.until(2, NAME, 8448)
            may_come.set()
            # While the invite is still on its way
            async with asyncio.timeout(5):
                await guessed.until_quiet()
            assert not sending.done()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

            assert [0, 0] == [connection.bytes_received for connection in guessed.connections]
            assert {"v2", "keys"} >= set(remote.counts)

    @pytest.mark.parametrize("refused_by", ["remote", "policy"])
    async def test_is_not_harmed_by_a_guess_that_is_refused(
        self, handshakes: Handshakes, refused_by: str
    ) -> None:
        async with LoopbackNetwork() as network:
            (guessed,) = network.host("srv.example")
            network.dns.add(f"_matrix-fed._tcp.{NAME}", "SRV", 1, 1, 7010, "srv.example")
            held = HeldBack(asyncio.Event())
            elsewhere = WellKnown("other.example:8449", fault=held)
            async with LoopbackHomeserver(NAME, well_known=elsewhere, network=network) as remote:
                allowed = [*network.host(NAME), *network.host("other.example")]
                if refused_by == "remote":
                    allowed.append(guessed)
                policy = network.policy(addresses=AddressPolicy(allowed=tuple(allowed)))
                transport = network.transport(policy)
                async with remote.client(policy=policy, transport=transport) as client:
                    sending = asyncio.create_task(client.send_invite(make_invite()))
                    await held.asked.wait()
                    await transport.dns.addresses("srv.example")
                    await turns()
                    held.may_come.set()
                    signed = await sending

        assert "3.2" == signed.resolved.step

    async def test_that_is_cancelled_closes_them(self, handshakes: Handshakes) -> None:
        held = HeldBack(asyncio.Event())
        none = WellKnown(status=404, body=b"", fault=held)
        async with (
            LoopbackHomeserver(NAME, well_known=none) as remote,
            client_of(remote, handshakes) as client,
        ):
            before = asyncio.all_tasks()
            sending = asyncio.create_task(client.send_invite(make_invite()))
            await handshakes.until(2, NAME, 8448)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            held.may_come.set()
            async with asyncio.timeout(5):
                await remote.until_quiet()

            assert set() == {task for task in asyncio.all_tasks() - before if not task.done()}
            assert [] == remote.requests

    async def test_that_is_cancelled_at_any_moment_leaves_none_waiting(self) -> None:
        finished, moments = False, 0
        none = WellKnown(status=404, body=b"")
        async with LoopbackHomeserver(NAME, well_known=none) as remote:
            policy = remote.network.policy()
            while not finished:
                moments += 1
                transport = remote.network.transport(policy)
                async with remote.client(policy=policy, transport=transport) as client:
                    sending = asyncio.create_task(client.send_invite(make_invite()))
                    for _ in range(moments):
                        await asyncio.sleep(0.0005)
                    finished = sending.done()
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
                    assert [] == transport._ahead._waiting
                await transport.aclose()

        assert moments > 3


def has_guessed(network: LoopbackNetwork) -> bool:
    """Whether the guess has come to its end: both SRV look-ups have been answered."""
    return len([question for question in network.dns.questions if question.kind == "SRV"]) > 1


@pytest.mark.loopback
class TestNoConnectionIsOpenedOnAGuess:
    @pytest.mark.parametrize("way", ["bulk run", "off", "resolve", "server_keys"])
    async def test_but_for_a_single_invite(self, way: str) -> None:
        held = HeldBack(asyncio.Event())
        elsewhere = WellKnown("other.example:8449", fault=held)
        limits = Limits(connections_ahead=0 if way == "off" else 20)

        async def goes_about_it(client: InviteClient) -> None:
            match way:
                case "bulk run":
                    async with client.send_invites([make_invite()]) as outcomes:
                        assert [True] == [outcome.signed is not None async for outcome in outcomes]
                case "off":
                    await client.send_invite(make_invite())
                case "resolve":
                    await client.resolve(NAME)
                case "server_keys":
                    await client.server_keys(NAME)

        async with (
            LoopbackNetwork() as network,
            LoopbackHomeserver(NAME, well_known=elsewhere, network=network) as remote,
            LoopbackHomeserver(f"{NAME}:8448", network=network) as guessed,
        ):
            policy = network.policy(limits=limits)
            transport = network.transport(policy)
            async with remote.client(policy=policy, transport=transport) as client:
                going = asyncio.create_task(goes_about_it(client))
                async with asyncio.timeout(5):
                    await held.asked.wait()
                    while way in ("resolve", "server_keys") and not has_guessed(network):
                        await asyncio.sleep(0.001)
                await transport.dns.addresses(NAME)
                await turns()
                # Who sends without haste looks nothing up on a guess either.
                assert has_guessed(network) == (way in ("resolve", "server_keys"))
                held.may_come.set()
                await going

            assert [] == guessed.connections


@pytest.mark.loopback
class TestWhileManyServersAreWrittenTo:
    @pytest.mark.parametrize(("ahead", "opened"), [(4, [2, 2]), (3, [1, 1]), (0, [1, 1])])
    async def test_the_keys_come_by_the_connection_of_the_invite(
        self, ahead: int, opened: list[int]
    ) -> None:
        names = ["one.example:7001", "two.example:7002"]
        async with LoopbackNetwork() as network, AsyncExitStack() as stack:
            remotes = [
                await stack.enter_async_context(LoopbackHomeserver(name, network=network))
                for name in names
            ]
            policy = network.policy(limits=Limits(connections_ahead=ahead))
            transport = network.transport(policy)
            stack.push_async_callback(transport.aclose)
            async with remotes[0].client(policy=policy, transport=transport) as client:
                await asyncio.gather(
                    *(client.send_invite(make_invite(f"@bob:{name}")) for name in names)
                )

            assert opened == [len(remote.connections) for remote in remotes]
            assert [1] * 2 == [remote.counts["keys"] for remote in remotes]
