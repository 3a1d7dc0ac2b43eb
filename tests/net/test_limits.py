"""However much a remote says, and however slowly: little memory, little time, one exact error."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import gzip
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from invite_client.errors import (
    Attempt,
    Delivery,
    MalformedReplyError,
    Stage,
    UnknownOutcomeError,
)
from invite_client.policy import Limits, Timeouts
from tests.net.conftest import caught
from tests.net.servers import (
    OK,
    PUT,
    Authority,
    Behaviour,
    Server,
    StaticDns,
    Visit,
    resolved,
    says,
)

MEBIBYTE = 1024 * 1024
GROWTH = 5 * MEBIBYTE
"""By how much the whole process may grow, server included, while it reads one answer."""
HUGE = 200 * MEBIBYTE
QUICK = Timeouts(connect=0.5, request=0.5)
TOLERANCE = 5.0
"""Seconds by which a time limit may be missed: the machine may be busy with other tests."""
LIMIT = MEBIBYTE


def peak() -> int:
    """The most memory that this process has had since `forget_peak`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    try:
        yield
    finally:
        assert peak() - before < GROWTH


@contextlib.asynccontextmanager
async def in_time(limit: float) -> AsyncIterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < limit + TOLERANCE


@functools.cache
def bomb(size: int = HUGE) -> bytes:
    packer = zlib.compressobj(zlib.Z_BEST_SPEED, wbits=31)
    return b"".join([packer.compress(b" " * MEBIBYTE) for _ in range(size // MEBIBYTE)]) + (
        packer.flush()
    )


def head(status: int, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} X", *lines, "", ""]).encode("latin-1")


def floods(first: bytes, again: bytes) -> Behaviour:
    """Say something, and then something else for ever."""

    async def behaviour(visit: Visit) -> None:
        await visit.request()
        await visit.send(first)
        while True:
            await visit.send(again)

    return behaviour


CHUNK = b"10000\r\n" + b" " * 65536 + b"\r\n"
CHUNKED = "Transfer-Encoding: chunked"
GZIPPED = gzip.compress(b"{}", mtime=0)


@pytest.fixture
def ask(authority: Authority, transports: Any, log: list[Attempt]) -> Any:
    """Send a request to a server that behaves so."""
    shown = authority.server("remote.example")

    async def ask(
        behaviour: Behaviour, limit: int = LIMIT, *, frugal: bool = False, **policy: Any
    ) -> Any:
        server = Server(behaviour, shown)
        async with server.running():
            names = StaticDns(remote_example=["127.0.0.1"])
            policy.setdefault("timeouts", QUICK)
            transport = transports(authority.policy(**policy), names)
            transport._context(verify=True)  # takes memory, too
            measured = little_memory() if frugal else contextlib.nullcontext()
            try:
                with measured:
                    return await transport.exchange(resolved(server), PUT, limit=limit, log=log)
            finally:
                await transport.aclose()
                assert 1 == len(server.requests)

    return ask


class TestABodyThatIsTooLong:
    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(floods(head(200, CHUNKED), CHUNK), id="endless"),
            pytest.param(floods(head(200), b" " * 65536), id="endless, until it closes"),
            pytest.param(
                floods(head(200, f"Content-Length: {HUGE}"), b" " * 65536), id="200 MiB, announced"
            ),
            pytest.param(
                says(
                    head(200, "Content-Encoding: gzip", f"Content-Length: {len(bomb())}") + bomb()
                ),
                id="bomb",
            ),
            pytest.param(floods(head(200, "Content-Encoding: gzip"), bomb()), id="endless bombs"),
        ],
    )
    async def test_is_an_answer_that_cannot_be_used(
        self, ask: Any, log: list[Attempt], behaviour: Behaviour
    ) -> None:
        async with in_time(QUICK.request):
            asking = ask(behaviour, frugal=True, timeouts=Timeouts())
            error = await caught(asking, MalformedReplyError)

        assert f"the answer is longer than {LIMIT} bytes" == error.message
        assert (Stage.HTTP, Delivery.ANSWERED, False) == (
            error.stage,
            error.delivery,
            error.retryable,
        )
        assert [error.message] == [attempt.outcome for attempt in log]

    @pytest.mark.parametrize("status", [403, 404, 429, 500])
    @pytest.mark.parametrize("kind", ["endless", "announced", "bomb"])
    async def test_and_explains_an_error_is_cut(
        self, ask: Any, log: list[Attempt], status: int, kind: str
    ) -> None:
        """The status is the answer, and `Retry-After` may be part of it."""
        more = {
            "endless": (CHUNKED, CHUNK),
            "announced": (f"Content-Length: {HUGE}", b" " * 65536),
            "bomb": ("Content-Encoding: gzip", bomb()),
        }
        line, again = more[kind]
        behaviour = floods(head(status, "Retry-After: 7", line), again)
        reply = await ask(behaviour, frugal=True, timeouts=Timeouts())

        assert (status, LIMIT, "7") == (
            reply.status,
            len(reply.body),
            reply.headers["retry-after"],
        )
        assert [str(status)] == [attempt.outcome for attempt in log]

    async def test_by_one_byte_is_too_long(self, ask: Any) -> None:
        for body in (b"x" * 100, gzip.compress(b"x" * 100)):
            encoding = "identity" if body.startswith(b"x") else "gzip"
            answer = head(200, f"Content-Length: {len(body)}", f"Content-Encoding: {encoding}")
            reply = await ask(says(answer + body), limit=100)

            assert b"x" * 100 == reply.body
            await caught(ask(says(answer + body), limit=99), MalformedReplyError)


class TestAnEncodedBody:
    """We ask for none; some servers send it all the same."""

    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("gzip", GZIPPED),
            ("x-gzip", GZIPPED),
            ("GZIP", GZIPPED),
            ("deflate", zlib.compress(b"{}")),
            ("identity", b"{}"),
            ("", b"{}"),
        ],
    )
    async def test_is_decoded(self, ask: Any, encoding: str, body: bytes) -> None:
        answer = head(200, f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}")
        reply = await ask(says(answer + body))

        assert b"{}" == reply.body

    @pytest.mark.parametrize(
        ("encoding", "body", "words"),
        [
            ("gzip", b"{}", "the answer is not gzip"),
            ("gzip", GZIPPED[:-3], "the answer is not gzip: its end is missing"),
            ("br", b"{}", "the answer is encoded as 'br', which was not asked for"),
            ("gzip, gzip", b"{}", "the answer is encoded as 'gzip, gzip'"),
        ],
    )
    async def test_that_cannot_be_decoded_is_an_answer_that_cannot_be_used(
        self, ask: Any, encoding: str, body: bytes, words: str
    ) -> None:
        lines = f"Content-Encoding: {encoding}", f"Content-Length: {len(body)}"
        error = await caught(ask(says(head(200, *lines) + body)), MalformedReplyError)
        reply = await ask(says(head(403, *lines) + body))

        assert error.message.startswith(words)
        assert 403 == reply.status


class TestAHeader:
    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(
                says(head(200, *(f"X-{n}: 0" for n in range(10_000)), "Content-Length: 0")),
                id="10,000 fields",
            ),
            pytest.param(floods(b"HTTP/1.1 200 OK\r\n", b"X: 0\r\n" * 10_000), id="endless fields"),
            pytest.param(floods(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536), id="endless value"),
            pytest.param(floods(b"HTTP/1.1 200 OK\r\n", b"x" * 65536), id="endless name"),
            pytest.param(floods(b"HTTP/1.1 200 ", b"x" * 65536), id="endless reason"),
            pytest.param(floods(b"", b"\0" * 65536), id="no header at all"),
            pytest.param(
                says(head(200, f"X: {'x' * 8193}", "Content-Length: 0")), id="one long field"
            ),
        ],
    )
    async def test_that_is_too_long_is_not_the_status_400(
        self, ask: Any, log: list[Attempt], behaviour: Behaviour
    ) -> None:
        """aiohttp says 400, which would be the remote's word that it does not know v2."""
        async with in_time(QUICK.request):
            error = await caught(ask(behaviour, frugal=True), MalformedReplyError)

        assert error.message.startswith("the answer is not HTTP")
        assert (Stage.HTTP, Delivery.ANSWERED, False) == (
            error.stage,
            error.delivery,
            error.retryable,
        )
        assert [True] == [attempt.sent for attempt in log]

    async def test_has_as_many_fields_as_are_allowed_and_no_more(self, ask: Any) -> None:
        def fields(count: int) -> Behaviour:
            return says(head(200, *(f"X-{n}: 0" for n in range(count - 1)), "Content-Length: 0"))

        limits = Limits(header_count=10)
        reply = await ask(fields(10), limits=limits)
        assert 10 == len(reply.headers)
        await caught(ask(fields(11), limits=limits), MalformedReplyError)

    async def test_has_lines_as_long_as_are_allowed_and_no_longer(self, ask: Any) -> None:
        limits = Limits(header_bytes=1000)
        reply = await ask(says(head(200, f"X: {'x' * 990}", "Content-Length: 0")), limits=limits)
        assert 990 == len(reply.headers["x"])
        await caught(
            ask(says(head(200, f"X: {'x' * 1001}", "Content-Length: 0")), limits=limits),
            MalformedReplyError,
        )


class TestAFlood:
    """What neither the limit on the body nor that on the header can see."""

    @pytest.mark.parametrize(
        "behaviour",
        [
            pytest.param(floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000), id="100s"),
            pytest.param(
                floods(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 2000), id="103s"
            ),
            pytest.param(floods(head(200, CHUNKED) + b"2;", b"x" * 65536), id="chunk extension"),
            pytest.param(
                floods(head(200, CHUNKED) + b"2\r\n{}\r\n0\r\n", b"X: 0\r\n" * 10_000),
                id="trailers",
            ),
            pytest.param(
                floods(head(200, CHUNKED) + b"2\r\n{}\r\n0\r\nX: ", b"x" * 65536),
                id="a trailer",
            ),
        ],
    )
    async def test_is_stopped_before_the_time_is_up(
        self, ask: Any, log: list[Attempt], behaviour: Behaviour
    ) -> None:
        asking = ask(behaviour, frugal=True, timeouts=Timeouts())
        error = await caught(asking, MalformedReplyError)

        assert (Stage.HTTP, Delivery.ANSWERED, False) == (
            error.stage,
            error.delivery,
            error.retryable,
        )
        assert [True] == [attempt.sent for attempt in log]

    async def test_on_a_kept_alive_connection_is_not_taken_for_a_dead_one(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        async def behaviour(visit: Visit) -> None:
            await visit.request()
            await visit.send(OK)
            await floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000)(visit)

        server = Server(behaviour, authority.server("remote.example"))
        async with server.running():
            transport = transports(authority.policy(), StaticDns(remote_example=["127.0.0.1"]))
            await transport.exchange(resolved(server), PUT, limit=LIMIT, log=log)
            await caught(
                transport.exchange(resolved(server), PUT, limit=LIMIT, log=log),
                MalformedReplyError,
            )

        assert 2 == len(server.requests) == len(log)

    async def test_is_not_what_a_few_early_hints_are(self, ask: Any) -> None:
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 10
        reply = await ask(says(hints + head(200, "Content-Length: 2") + b"{}"))

        assert b"{}" == reply.body

    async def test_is_not_a_body_in_the_smallest_chunks(self, ask: Any) -> None:
        reply = await ask(says(head(200, CHUNKED) + b"1\r\nx\r\n" * 1000 + b"0\r\n\r\n"))

        assert b"x" * 1000 == reply.body


class TestAnAnswerThatDoesNotEnd:
    """Its time runs out, and nothing piles up meanwhile."""

    @pytest.mark.parametrize("started", [b"", head(200, "Content-Length: 1000")])
    async def test_but_drips(self, ask: Any, started: bytes) -> None:
        async def drips(visit: Visit) -> None:
            await visit.request()
            await visit.send(started)
            for byte in b"HTTP/1.1 200 OK" * 100:
                await visit.send(bytes([byte]))
                await asyncio.sleep(0.05)

        async with in_time(QUICK.request):
            error = await caught(ask(drips), UnknownOutcomeError)

        assert "no whole answer within 0.5 s" == error.message
        assert (Stage.HTTP, Delivery.UNKNOWN, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )

    @pytest.mark.parametrize("ending", ["drips", "stops", "closes", "resets", "is no chunk"])
    async def test_but_has_said_no_is_a_no(self, ask: Any, log: list[Attempt], ending: str) -> None:
        async def refuses(visit: Visit) -> None:
            await visit.request()
            await visit.send(head(429, "Retry-After: 7", CHUNKED) + b'2\r\n{"\r\n')
            await asyncio.sleep(0.05)
            match ending:
                case "drips":
                    while True:
                        await visit.send(b"1\r\nx\r\n")
                        await asyncio.sleep(0.05)
                case "stops":
                    await visit.until_closed()
                case "resets":
                    visit.writer.transport.abort()
                case "is no chunk":
                    await visit.send(b"zz\r\n")

        async with in_time(QUICK.request):
            reply = await ask(refuses)

        assert (429, "7") == (reply.status, reply.headers["retry-after"])
        assert reply.body.startswith(b'{"')
        assert ["429"] == [attempt.outcome for attempt in log]

    @pytest.mark.parametrize(
        "answer",
        [
            head(200, "Content-Length: 10") + b"{}",
            head(200, CHUNKED) + b"2\r\n{}\r\n",
            head(200, CHUNKED) + b"9\r\n{}",
        ],
    )
    async def test_but_breaks_off_leaves_the_outcome_unknown(self, ask: Any, answer: bytes) -> None:
        error = await caught(ask(says(answer)), UnknownOutcomeError)

        assert "the connection ended in the middle of the answer" == error.message
        assert (Stage.HTTP, Delivery.UNKNOWN, True) == (
            error.stage,
            error.delivery,
            error.retryable,
        )


class TestAnAnswerThatIsNotHttp:
    @pytest.mark.parametrize(
        "answer",
        [
            b"hello\r\n\r\n",
            b"HTTP/1.1 OK\r\n\r\n",
            b"HTTP/1.1 2000 OK\r\n\r\n",
            b"HTTP/1.1 -200 OK\r\n\r\n",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" + b"\0" * 18,  # the SETTINGS of HTTP/2
            head(200, "no colon"),
            head(200, "Content-Length: -1"),
            head(200, "Content-Length: 1", "Content-Length: 2") + b"{}",
            head(200, "Content-Length: 0x2") + b"{}",
            head(200, "Content-Length: 2", CHUNKED) + b"0\r\n\r\n",
            head(200, "X: a\0b"),
            head(200, CHUNKED) + b"zz\r\n{}\r\n0\r\n\r\n",
            head(200, CHUNKED) + b"2\r\n{}}}}\r\n0\r\n\r\n",
            head(200, CHUNKED) + b"-2\r\n{}\r\n0\r\n\r\n",
        ],
        ids=repr,
    )
    async def test_is_an_answer_that_cannot_be_used(self, ask: Any, answer: bytes) -> None:
        error = await caught(ask(says(answer)), MalformedReplyError)

        assert error.message.startswith("the answer is not HTTP")
        assert (Stage.HTTP, Delivery.ANSWERED) == (error.stage, error.delivery)
        assert "\n" not in error.message

    @pytest.mark.parametrize(
        "later", [b"zz\r\n{}\r\n", b"2\r\n{}}}}\r\n", b"0\r\nno colon\r\n\r\n"]
    )
    async def test_any_more_is_one_at_once(self, ask: Any, later: bytes) -> None:
        async def behaviour(visit: Visit) -> None:
            await visit.request()
            await visit.send(head(200, CHUNKED) + b"2\r\n{}\r\n")
            await asyncio.sleep(0.05)
            await visit.send(later)
            await visit.until_closed()

        error = await caught(ask(behaviour, timeouts=Timeouts()), MalformedReplyError)

        assert error.message.startswith("the answer is not HTTP")

    @pytest.mark.parametrize(
        ("answer", "status"),
        [
            (b"HTTP/0.9 200 OK\r\n\r\n{}", 200),
            (b"HTTP/1.0 200 OK\r\n\r\n{}", 200),
            (b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\n{}", 200),
            (head(204), 204),
            (head(304), 304),
            (head(101, "Upgrade: x", "Connection: upgrade") + b"\0" * 100_000, 101),
            (head(599, "Content-Length: 0"), 599),
            (head(200, "Set-Cookie: a=b; Path=\xff", "Content-Length: 2") + b"{}", 200),
            (b"HTTP/1.1 100 Continue\r\n\r\n" + head(200, "Content-Length: 2") + b"{}", 200),
        ],
        ids=repr,
    )
    async def test_is_told_from_one_that_only_looks_odd(
        self, ask: Any, answer: bytes, status: int
    ) -> None:
        reply = await ask(says(answer))

        assert status == reply.status

    async def test_repeated_fields_are_one(self, ask: Any) -> None:
        reply = await ask(says(head(200, "X: a", "x: b", "Content-Length: 0")))

        assert "a, b" == reply.headers["x"]
