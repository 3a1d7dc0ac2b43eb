"""Which connection a request travels on, and what is said when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from yarl import URL

from invite_client.errors import (
    Attempt,
    Delivery,
    InvalidInviteError,
    MalformedReplyError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.net.dns import DnsFailedError
from invite_client.policy import Limits, Timeouts
from invite_client.spec.discovery import Target
from invite_client.spec.http import Request
from tests.conftest import open_sockets
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
    says,
)

BIG = Request(PUT.method, PUT.uri, b'"' + b"x" * 8_000_000 + b'"', PUT.authorization, "PUT")
"""More than fits into the buffers of a socket that nobody reads."""

QUICK = Timeouts(connect=0.4, request=0.4)
TOLERANCE = 5.0
"""Seconds by which a time limit may be missed: the machine may be busy with other tests."""


def dns(**names: Any) -> StaticDns:
    made = StaticDns(**names)
    made.names.setdefault("remote.example", ["127.0.0.1"])
    return made


@contextlib.contextmanager
def nobody_answers(address: str = "127.0.0.1") -> Iterator[int]:
    """A port where a SYN is lost: that of a listener whose queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((address, 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A port where nobody listens, and nobody else can."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


async def stalls(visit: Visit) -> None:
    """Accept, and never say anything: TLS, or an answer, never comes."""
    await visit.until_closed()


class TestAKeptAliveConnection:
    async def test_is_used_again(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            for request in (PUT, PUT, GET):
                await transport.exchange(resolved(server), request, limit=100, log=log)

        assert 1 == len(server.visits)
        assert 3 == len(server.requests)
        assert [f"127.0.0.1:{server.port}"] * 3 == [attempt.address for attempt in log]

    async def test_that_was_closed_meanwhile_is_not_used(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(says(OK), authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            await transport.exchange(resolved(server), PUT, limit=100, log=log)
            await server.visits[0].closed.wait()
            await asyncio.sleep(0.05)  # the FIN travels
            await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert [1, 1] == [len(visit.requests) for visit in server.visits]
        assert ["200", "200"] == [attempt.outcome for attempt in log]

    async def test_that_turns_out_dead_is_replaced_at_once_and_visibly(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        async def dies_on_reuse(visit: Visit) -> None:
            await visit.request()
            await visit.send(OK)
            if visit is not server.visits[-1] or len(server.visits) == 1:
                await visit.request()
                visit.writer.transport.abort()

        server = Server(dies_on_reuse, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            await transport.exchange(resolved(server), PUT, limit=100, log=log)
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert [2, 1] == [len(visit.requests) for visit in server.visits]
        assert ["200", "the kept-alive connection was dead", "200"] == [a.outcome for a in log]
        assert [True, True, True] == [attempt.sent for attempt in log]

    @pytest.mark.parametrize("again", [OK, b"HTTP/1.1 408 No\r\nContent-Length: 0\r\n\r\n"])
    async def test_whose_remote_has_waited_long_enough_is_replaced_once(
        self, again: bytes, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        """RFC 9110 § 15.5.9: a 408 may cross the request, and then says nothing of it."""

        async def times_out(visit: Visit) -> None:
            await visit.request()
            if len(server.visits) > 1:
                await visit.send(again)
                return
            await visit.send(OK)
            await visit.request()
            await visit.send(
                b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 4\r\n\r\nidle"
            )

        server = Server(times_out, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            await transport.exchange(resolved(server), PUT, limit=100, log=log)
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert (200, b"{}") == (reply.status, reply.body) or (408, b"") == (
            reply.status,
            reply.body,
        )
        assert [2, 1] == [len(visit.requests) for visit in server.visits]
        idle = "408, for the kept-alive connection was idle"
        assert ["200", idle, str(reply.status)] == [attempt.outcome for attempt in log]

    async def test_is_replaced_by_a_new_one_and_not_by_another_that_waited_as_long(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        all_are_here = asyncio.Barrier(3)

        async def dies_on_reuse(visit: Visit) -> None:
            await visit.request()
            if len(server.visits) <= 3:
                await all_are_here.wait()
                await visit.send(OK)
                await visit.request()
                visit.writer.transport.abort()
            else:
                await visit.send(OK)

        server = Server(dies_on_reuse, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            await asyncio.gather(
                *(transport.exchange(resolved(server), PUT, limit=9, log=[]) for _ in range(3))
            )
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert ["the kept-alive connection was dead", "200"] == [a.outcome for a in log]
        assert 5 == len(server.requests)

    async def test_that_dies_with_its_server_leaves_the_outcome_unknown(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        async def answers_once(visit: Visit) -> None:
            await visit.request()
            await visit.send(OK)
            await visit.request()
            stop.set()
            await stopped.wait()
            visit.writer.transport.abort()

        stop, stopped = asyncio.Event(), asyncio.Event()
        server = Server(answers_once, authority.server("remote.example"))
        listening = contextlib.AsyncExitStack()
        await listening.enter_async_context(server.running())
        transport = transports(authority.policy(), dns())
        await transport.exchange(resolved(server), PUT, limit=100, log=log)
        again = asyncio.create_task(transport.exchange(resolved(server), PUT, limit=100, log=log))
        await stop.wait()
        await listening.aclose()
        stopped.set()
        error = await caught(again, UnknownOutcomeError)

        assert (Delivery.UNKNOWN, True) == (error.delivery, error.retryable)
        assert "a kept-alive connection was dead, and then" in error.message
        assert "Connection refused" in error.message

    async def test_on_which_the_remote_spoke_unasked_is_not_used_again(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        """Else what it said would pass for the answer to the next request."""

        async def speaks_unasked(visit: Visit) -> None:
            await visit.request()
            await visit.send(OK)
            await asyncio.sleep(0)
            await visit.send(OK.replace(b"{}", b"no"))
            await visit.until_closed()

        server = Server(speaks_unasked, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            for _ in range(2):
                reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)
                await asyncio.sleep(0.05)  # what is said unasked arrives

                assert b"{}" == reply.body

        assert [1, 1] == [len(visit.requests) for visit in server.visits]


class TestARequestThatWasTaken:
    @pytest.mark.parametrize("goodbye", ["close", "abort"])
    async def test_and_not_answered_is_not_sent_twice(
        self, authority: Authority, transports: Any, log: list[Attempt], goodbye: str
    ) -> None:
        """aiohttp would: to it, PUT is idempotent. To ask again is for the retry policy."""

        async def hangs_up(visit: Visit) -> None:
            await visit.request()
            getattr(visit.writer.transport, goodbye)()

        server = Server(hangs_up, authority.server("remote.example"))
        other = Server(answers_ok, authority.server("remote.example"))
        async with server.running(), other.running():
            transport = transports(authority.policy(), dns())
            targets = tuple(Target("remote.example", s.port) for s in (server, other))
            error = await caught(
                transport.exchange(resolved(targets=targets), PUT, limit=100, log=log),
                UnknownOutcomeError,
            )

        assert (Stage.HTTP, Delivery.UNKNOWN, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )
        assert "the connection ended before the answer" == error.message
        assert 1 == len(server.requests)
        assert [] == other.visits  # nor by another target
        assert [True] == [attempt.sent for attempt in log]

    @pytest.mark.parametrize("status", [400, 401, 413, 429, 503])
    async def test_in_part_and_refused_is_refused(
        self, authority: Authority, transports: Any, log: list[Attempt], status: int
    ) -> None:
        """The remote need not read the body to know its answer."""

        async def refuses(visit: Visit) -> None:
            await visit.reader.readuntil(b"\r\n\r\n")
            await visit.send(
                b"HTTP/1.1 %d No\r\nRetry-After: 7\r\nContent-Length: 2\r\n"
                b"Connection: close\r\n\r\n{}" % status
            )

        server = Server(refuses, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            reply = await transport.exchange(resolved(server), BIG, limit=100, log=log)

        assert (status, b"{}", "7") == (reply.status, reply.body, reply.headers["retry-after"])
        assert [str(status)] == [attempt.outcome for attempt in log]

    async def test_is_answered_by_what_was_said_before_it(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        """A remote that answers before it has read: its answer is judged like any other."""

        async def speaks_first(visit: Visit) -> None:
            await visit.send(OK)
            await visit.until_closed()

        server = Server(speaks_first, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert 200 == reply.status


@pytest.mark.parametrize("babble", [b"\0" * 9, b"SSH-2.0-OpenSSH_9.6\r\n"])
async def test_a_remote_that_babbles_before_it_is_asked_is_not_one_that_is_down(
    authority: Authority, transports: Any, log: list[Attempt], babble: bytes
) -> None:
    async def babbles(visit: Visit) -> None:
        await visit.send(babble)
        await visit.request()

    server = Server(babbles, authority.server("remote.example"))
    async with server.running():
        transport = transports(authority.policy(), dns())
        error = await caught(
            transport.exchange(resolved(server), PUT, limit=100, log=log), MalformedReplyError
        )

    assert error.message.startswith("the answer is not HTTP")


async def test_a_signed_request_follows_no_redirect(
    authority: Authority, transports: Any, log: list[Attempt]
) -> None:
    for status in (301, 302, 303, 307, 308):
        there = Server(answers_ok, authority.server("remote.example"))
        async with there.running():
            location = f"https://remote.example:{there.port}/".encode()
            answer = b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
            here = Server(says(answer % (status, location)), authority.server("remote.example"))
            async with here.running():
                transport = transports(authority.policy(), dns())
                reply = await transport.exchange(resolved(here), PUT, limit=100, log=log)

        assert status == reply.status
        assert [] == there.visits


class TestTargets:
    async def test_are_tried_in_order_past_dns_tcp_and_tls_failures(
        self, authority: Authority, transports: Any, log: list[Attempt], refused_port: int
    ) -> None:
        wrong = Server(answers_ok, authority.server("other.example"))
        stalling = Server(stalls)
        good = Server(answers_ok, authority.server("remote.example"))
        unused = Server(answers_ok, authority.server("remote.example"))
        async with wrong.running(), stalling.running(), good.running(), unused.running():
            names = dns(
                refused_example=["127.0.0.1"],
                wrong_example=["127.0.0.1"],
                stalling_example=["127.0.0.1"],
                good_example=["127.0.0.1"],
                unused_example=["127.0.0.1"],
            )
            targets = (
                Target("absent.example", 8448),
                Target("refused.example", refused_port),
                Target("wrong.example", wrong.port),
                Target("stalling.example", stalling.port),
                Target("good.example", good.port),
                Target("unused.example", unused.port),
            )
            transport = transports(authority.policy(timeouts=QUICK), names)
            reply = await transport.exchange(resolved(targets=targets), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert [] == wrong.visits + unused.visits
        assert list(map(str, targets[:5])) == [attempt.target for attempt in log]
        assert [False, False, False, False, True] == [attempt.sent for attempt in log]
        # The three names: the target is where, the server name is who.
        assert ["remote.example"] == good.snis == wrong.snis
        assert b"\r\nHost: remote.example\r\n" in good.requests[0]

    async def test_are_never_raced(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        """Else a backup that is near would win over a main server that is far (RFC 2782)."""

        main = Server(answers_ok, authority.server("remote.example"))
        backup = Server(answers_ok, authority.server("remote.example"))
        # Later than the head start of happy eyeballs.
        async with main.running(late=0.4), backup.running("::1"):
            names = dns(main_example=["127.0.0.1"], backup_example=["::1"])
            targets = Target("main.example", main.port), Target("backup.example", backup.port)
            transport = transports(authority.policy(), names)
            await transport.exchange(resolved(targets=targets), PUT, limit=100, log=log)

        assert 1 == len(main.requests)
        assert [] == backup.visits

    async def test_that_all_fail_are_all_named(
        self, authority: Authority, transports: Any, log: list[Attempt], refused_port: int
    ) -> None:
        port = refused_port
        targets = Target("absent.example", 8448), Target("127.0.0.1", port), Target("10.0.0.1", 1)
        transport = transports(authority.policy(), dns())
        error = await caught(
            transport.exchange(resolved(targets=targets), PUT, limit=100, log=log),
            UnreachableError,
        )

        assert (
            "no target could be connected to: absent.example:8448: A absent.example: no such name; "
            f"127.0.0.1:{port}: Connection refused; 10.0.0.1:1: 10.0.0.1 is refused: it is in "
            "10.0.0.0/8, private use (RFC 1918); to permit it, add its network to addresses.allowed"
        ) == error.message
        assert (Delivery.NOT_SENT, True) == (error.delivery, error.retryable)
        assert [None, f"127.0.0.1:{port}", None] == [attempt.address for attempt in log]

    async def test_that_are_no_host_names_are_passed_over(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running():
            targets = Target("a b/../@x", 8448), Target("remote.example", server.port)
            transport = transports(authority.policy(), dns())
            reply = await transport.exchange(resolved(targets=targets), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert "is not a host name" in log[0].outcome


class TestTheAddressesOfATarget:
    @pytest.mark.parametrize("first", ["::1", "127.0.0.2"])
    async def test_are_raced(
        self, authority: Authority, transports: Any, log: list[Attempt], first: str
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        with nobody_answers("127.0.0.2") as port:
            async with server.running("127.0.0.1", port):
                # Nobody listens on [::1]; at 127.0.0.2 the SYN is lost.
                names = dns(remote_example=[first, "127.0.0.1"])
                transport = transports(authority.policy(), names)
                reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert [f"127.0.0.1:{port}"] == [attempt.address for attempt in log]

    async def test_may_be_of_ipv6_only(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running("::1"):
            transport = transports(authority.policy(), dns(remote_example=["::1"]))
            await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert [f"[::1]:{server.port}"] == [attempt.address for attempt in log]

    async def test_do_not_take_each_others_time(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        stalling = Server(stalls)
        good = Server(answers_ok, authority.server("remote.example"))
        async with stalling.running("127.0.0.1"), good.running("127.0.0.2", stalling.port):
            names = dns(remote_example=["127.0.0.1", "127.0.0.2"])
            transport = transports(authority.policy(timeouts=Timeouts(connect=0.6)), names)
            reply = await transport.exchange(resolved(good), PUT, limit=100, log=log)

        assert 200 == reply.status

    async def test_that_all_fail_are_all_named(
        self, authority: Authority, transports: Any, log: list[Attempt], refused_port: int
    ) -> None:
        port = refused_port
        transport = transports(authority.policy(), dns(remote_example=["127.0.0.1", "127.0.0.2"]))
        server = resolved(targets=(Target("remote.example", port),))
        error = await caught(transport.exchange(server, PUT, limit=100, log=log), UnreachableError)

        assert f"remote.example:{port}: Connection refused" == error.message
        assert (Stage.CONNECT, True) == (error.stage, error.retryable)
        assert [f"127.0.0.1:{port}, 127.0.0.2:{port}"] == [attempt.address for attempt in log]


class TestTime:
    """Each phase has its own limit, is told from the others, and leaves nothing behind."""

    @contextlib.asynccontextmanager
    async def measured(self, limit: float) -> AsyncIterator[None]:
        started = time.monotonic()
        yield
        assert limit <= time.monotonic() - started < limit + TOLERANCE

    async def test_for_dns(self, authority: Authority, transports: Any, log: list[Attempt]) -> None:
        class Hanging(StaticDns):
            async def addresses(self, hostname: str) -> Any:
                await asyncio.Event().wait()

        transport = transports(authority.policy(timeouts=QUICK), Hanging())
        server = resolved(targets=(Target("remote.example", 8448),))
        async with self.measured(QUICK.connect):
            error = await caught(
                transport.exchange(server, PUT, limit=100, log=log), UnreachableError
            )

        assert (Stage.DNS, Delivery.NOT_SENT, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )

    async def test_for_tcp(self, authority: Authority, transports: Any, log: list[Attempt]) -> None:
        with nobody_answers() as port:
            transport = transports(authority.policy(timeouts=QUICK), dns())
            server = resolved(targets=(Target("remote.example", port),))
            async with self.measured(QUICK.connect):
                error = await caught(
                    transport.exchange(server, PUT, limit=100, log=log), UnreachableError
                )

        assert f"remote.example:{port}: no connection within 0.4 s" == error.message
        assert (Stage.CONNECT, Delivery.NOT_SENT, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )
        assert [f"127.0.0.1:{port}"] == [attempt.address for attempt in log]

    async def test_for_tls(self, authority: Authority, transports: Any, log: list[Attempt]) -> None:
        server = Server(stalls)
        async with server.running():
            transport = transports(authority.policy(timeouts=QUICK), dns())
            async with self.measured(QUICK.connect):
                error = await caught(
                    transport.exchange(resolved(server), PUT, limit=100, log=log),
                    UnreachableError,
                )
            await asyncio.wait_for(server.visits[0].closed.wait(), TOLERANCE)

        assert (Stage.TLS, Delivery.NOT_SENT, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )

    @pytest.mark.parametrize("request_", [PUT, BIG, GET])
    async def test_for_an_answer(
        self, authority: Authority, transports: Any, log: list[Attempt], request_: Request
    ) -> None:
        async def silent(visit: Visit) -> None:
            # Nothing is read either, so that a big body does not go out whole.
            visit.writer.transport.pause_reading()
            await asyncio.Event().wait()

        server = Server(silent, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(timeouts=QUICK), dns())
            async with self.measured(QUICK.request):
                error = await caught(
                    transport.exchange(resolved(server), request_, limit=100, log=log),
                    UnknownOutcomeError,
                )

        assert "no whole answer within 0.4 s" == error.message
        assert (Stage.HTTP, Delivery.UNKNOWN, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )

    async def test_for_connecting_is_not_taken_from_the_answer(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        # To connect takes longer than there is for the answer, which then comes at once.
        timeouts = Timeouts(connect=20.0, request=1.0)
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running(late=1.5 * timeouts.request):
            transport = transports(authority.policy(timeouts=timeouts), dns())
            reply = await transport.exchange(resolved(server), PUT, limit=100, log=log)

        assert 200 == reply.status


async def test_a_name_server_that_fails_is_told_from_a_name_that_is_not_there(
    authority: Authority, transports: Any, log: list[Attempt]
) -> None:
    class Failing(StaticDns):
        async def addresses(self, hostname: str) -> Any:
            raise DnsFailedError("A remote.example: SERVFAIL")

    server = resolved(targets=(Target("remote.example", 8448),))
    for names, retryable in ((Failing(), True), (StaticDns(), False)):
        transport = transports(authority.policy(), names)
        error = await caught(transport.exchange(server, PUT, limit=100, log=log), UnreachableError)

        assert (Stage.DNS, retryable) == (error.stage, error.retryable)


@pytest.mark.parametrize("uri", ["/a b", "/a\r\nX: y", "/!room", "https://x/", "", "/a#b"])
async def test_a_path_that_is_not_encoded_is_not_sent(
    authority: Authority, transports: Any, log: list[Attempt], connects: list[Any], uri: str
) -> None:
    transport = transports(authority.policy(), dns())
    server = resolved(targets=(Target("127.0.0.1", 1),))
    await caught(
        transport.exchange(server, Request("PUT", uri, b"{}"), limit=100, log=log),
        InvalidInviteError,
    )

    assert [] == connects


class TestCancellation:
    async def test_at_any_moment_leaves_nothing_behind(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        """The fixtures around every test look for tasks and sockets."""

        async def answers(visit: Visit) -> None:
            await visit.request()
            await visit.send(OK[:-1])
            await visit.send(OK[-1:])
            await visit.until_closed()

        server = Server(answers, authority.server("remote.example"))
        async with server.running():
            finished = False
            turns = 0
            while not finished:
                turns += 1
                names = dns(remote_example=["::1", "127.0.0.1"])
                transport = transports(authority.policy(), names)
                task = asyncio.create_task(
                    transport.exchange(resolved(server), PUT, limit=100, log=log)
                )
                for _ in range(turns):
                    await asyncio.sleep(0.0005)
                finished = task.done()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await transport.aclose()

        assert turns > 3
        assert turns == len(log)

    async def test_of_a_handshake_closes_the_socket_at_once(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        server = Server(stalls)
        async with server.running():
            transport = transports(authority.policy(), dns())
            task = asyncio.create_task(
                transport.exchange(resolved(server), PUT, limit=100, log=log)
            )
            while not server.visits:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

            await asyncio.wait_for(server.visits[0].closed.wait(), TOLERANCE)
        assert ["ended from outside"] == [attempt.outcome for attempt in log]

    async def test_of_an_answer_closes_the_connection_at_once(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        """Without waiting for a goodbye of the remote, which never comes."""
        half_sent = asyncio.Event()

        async def half(visit: Visit) -> None:
            await visit.request()
            await visit.send(OK[:-1])
            visit.writer.transport.pause_reading()
            half_sent.set()
            await asyncio.Event().wait()

        server = Server(half, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), dns())
            task = asyncio.create_task(
                transport.exchange(resolved(server), PUT, limit=100, log=log)
            )
            await half_sent.wait()
            before = open_sockets()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0)

            assert 1 == len(before - open_sockets())


async def test_it_can_be_closed_while_a_request_is_under_way(
    authority: Authority, transports: Any, log: list[Attempt]
) -> None:
    server = Server(stalls, authority.server("remote.example"))
    async with server.running():
        transport = transports(authority.policy(), dns())
        task = asyncio.create_task(transport.exchange(resolved(server), PUT, limit=9, log=log))
        while not server.visits:
            await asyncio.sleep(0.01)
        await transport.aclose()
        await caught(task, UnknownOutcomeError)
        await transport.aclose()


async def test_closed_while_it_is_opened_no_other_target_is_tried(
    authority: Authority, transports: Any, log: list[Attempt]
) -> None:
    server = Server(stalls)
    async with server.running():
        transport = transports(authority.policy(), dns())
        where = resolved(targets=(Target("127.0.0.1", server.port),) * 2)
        task = asyncio.create_task(transport.exchange(where, PUT, limit=9, log=log))
        while not server.visits:
            await asyncio.sleep(0.01)
        await transport.aclose()
        server.visits[0].writer.transport.abort()
        error = await caught(task, UnreachableError)

    assert Delivery.NOT_SENT == error.delivery
    assert 1 == len(server.visits)


@pytest.mark.parametrize(
    "url", ["https://xn--mnchen-3ya.example:{}/", "https://münchen.example:{}/"]
)
async def test_an_internationalized_name_is_its_punycode(
    authority: Authority, transports: Any, log: list[Attempt], url: str
) -> None:
    name = "xn--mnchen-3ya.example"
    server = Server(answers_ok, authority.server(name))
    async with server.running():
        names = StaticDns()
        names.names[name] = ["127.0.0.1"]
        transport = transports(authority.policy(), names)
        await transport.get(URL(url.format(server.port)), limit=100, log=log)

    assert [name] == names.asked == server.snis
    assert f"\r\nHost: {name}:{server.port}\r\n".encode() in server.requests[0]


STRANGE = [".example", "a..example", "x" * 64 + ".example", "..", "-", "a.example..", "1" * 255]


class TestANameThatNobodyCanHave:
    """A web server may redirect to it, and it may be the target of an SRV record."""

    @pytest.mark.parametrize("name", STRANGE)
    async def test_has_no_certificate(
        self, authority: Authority, transports: Any, log: list[Attempt], name: str
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running():
            url = URL.build(
                scheme="https", authority=f"{name}:{server.port}", path="/", encoded=True
            )
            names = StaticDns()
            names.names[name] = ["127.0.0.1"]
            transport = transports(authority.policy(), names)
            error = await caught(transport.get(url, limit=100, log=log), UnreachableError)

        assert (Stage.TLS, Delivery.NOT_SENT) == (error.stage, error.delivery)
        assert [] == server.requests

    @pytest.mark.parametrize("name", STRANGE)
    async def test_may_well_be_a_target(
        self, authority: Authority, transports: Any, log: list[Attempt], name: str
    ) -> None:
        server = Server(answers_ok, authority.server("remote.example"))
        async with server.running():
            names = StaticDns()
            names.names[name] = ["127.0.0.1"]
            transport = transports(authority.policy(), names)
            targets = (Target(name, server.port),)
            reply = await transport.exchange(resolved(targets=targets), PUT, limit=100, log=log)

        assert 200 == reply.status


async def test_only_so_many_idle_connections_are_kept(
    authority: Authority, transports: Any, log: list[Attempt]
) -> None:
    """Those that were used last: a bulk run meets thousands of servers."""
    names = [f"d{number}.example" for number in range(4)]
    server = Server(answers_ok, authority.server(*names))
    resolver = dns()
    resolver.names.update({name: ["127.0.0.1"] for name in names})
    transport = transports(authority.policy(limits=Limits(idle_connections=2)), resolver)
    opened = []
    async with server.running():
        for number in (0, 1, 2, 3, 2, 3, 0, 1):
            where = resolved(server, name=names[number])
            await transport.exchange(where, GET, limit=100, log=log)
            opened.append(len(server.visits))

    assert [1, 2, 3, 4, 4, 4, 5, 6] == opened
