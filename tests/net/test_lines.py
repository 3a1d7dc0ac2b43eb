"""What a connection makes of bytes: an answer, or one of our errors, and never another request's."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invite_client.errors import MalformedReplyError, UnknownOutcomeError
from invite_client.net.bodies import Answer
from invite_client.net.lines import DiedSilentlyError, Line
from invite_client.policy import Limits

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
WAY = ("remote.example", 8448, "remote.example", ssl.create_default_context(), None)
OURS = (MalformedReplyError, UnknownOutcomeError, DiedSilentlyError)


class FakeTransport(asyncio.Transport):
    """Ends when it is told to, as that of asyncio does: in the next turn of the loop."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self.line = line
        self.written = b""
        self.unsent = 0
        self.ended = False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        """What has been read is read."""

    def resume_reading(self) -> None:
        """And what was not comes."""

    def abort(self) -> None:
        self.hang_up()

    def hang_up(self, error: Exception | None = None) -> None:
        if not self.ended:
            self.ended = True
            asyncio.get_running_loop().call_soon(self.line.connection_lost, error)


def opened(**options: Any) -> tuple[Line, FakeTransport]:
    line = Line(WAY, "192.0.2.1:8448", Limits(), **options)
    transport = FakeTransport(line)
    line.connection_made(transport)
    return line, transport


async def told(line: Line, transport: FakeTransport, *pieces: bytes, ends: bool = False) -> Answer:
    """Ask, have the remote say these pieces, and return its answer."""
    answer = Answer(1000)
    asking = asyncio.create_task(line.ask(b"GET / HTTP/1.1\r\n\r\n", answer))
    await asyncio.sleep(0)
    for piece in pieces:
        if transport.ended:
            break
        line.data_received(piece)
    if ends:
        transport.hang_up()
    async with asyncio.timeout(5):
        await asking
    return answer


async def test_an_answer_may_come_byte_by_byte() -> None:
    line, transport = opened()
    answer = await told(line, transport, *(bytes([byte]) for byte in OK))

    assert (200, b"{}") == (answer.status, answer.reply.body)
    assert line.is_usable


@pytest.mark.parametrize(
    "answer",
    [
        OK + OK,
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        OK.replace(b"/1.1", b"/1.0"),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nrest",
    ],
    ids=["two answers", "says that it closes", "HTTP/1.0", "is no HTTP any more"],
)
async def test_no_request_goes_by_one_that(answer: bytes) -> None:
    line, transport = opened()
    read = await told(line, transport, answer)

    assert read.status in (200, 101)
    assert not line.is_usable


async def test_no_request_goes_by_one_that_has_not_taken_the_last_one_whole() -> None:
    line, transport = opened()
    transport.unsent = 1
    await told(line, transport, OK)

    assert line.is_open
    assert not line.is_usable


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_is_whole_at_once(status: int) -> None:
    line, transport = opened()
    answer = await told(line, transport, b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status)

    assert (status, b"") == (answer.status, answer.reply.body)


async def test_no_request_goes_by_one_whose_other_end_has_said_goodbye() -> None:
    """asyncio closes it a moment later: with TLS, there is a goodbye to be answered first."""
    line, transport = opened()
    await told(line, transport, OK)
    line.eof_received()

    assert not line.is_open


async def test_its_errors_hold_no_control_characters() -> None:
    line, transport = opened()
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(MalformedReplyError) as caught:
        await told(line, transport, start + b"\x1b[31m\r\n")

    assert str(caught.value).isprintable()


async def test_what_is_said_between_two_requests_ends_it() -> None:
    line, transport = opened()
    await told(line, transport, OK)
    line.data_received(OK)

    assert not line.is_usable
    assert transport.ended


class TestWhatIsSaidBeforeTheFirstRequest:
    async def test_is_its_answer(self) -> None:
        line, transport = opened()
        line.data_received(OK)
        answer = await told(line, transport)

        assert 200 == answer.status

    async def test_ends_one_that_waits_for_a_request(self) -> None:
        line, transport = opened(may_speak=False)
        line.data_received(OK)

        assert transport.ended


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", DiedSilentlyError),
        (b"H", UnknownOutcomeError),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", UnknownOutcomeError),
        (OK[:-1], UnknownOutcomeError),
    ],
)
async def test_who_has_begun_to_answer_has_had_the_request(
    said: bytes, kind: type[Exception]
) -> None:
    """Only of one that said nothing may it be thought that it was dead before."""
    line, transport = opened()
    with pytest.raises(kind):
        await told(line, transport, *filter(None, [said]), ends=True)


async def test_who_leaves_closes_it() -> None:
    line, transport = opened()
    asking = asyncio.create_task(line.ask(b"", Answer(9)))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    assert transport.ended


fields = st.sampled_from(
    [
        b"Content-Length: 2",
        b"Content-Length: 99999",
        b"Content-Length: -1",
        b"Content-Length: 2\r\nContent-Length: 3",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Content-Encoding: gzip",
        b"Content-Encoding: br",
        b"Connection: close",
        b"Connection: keep-alive, upgrade",
        b"Upgrade: h2c",
        b"X: \xff\x00",
        b"X",
        b" folded",
        b": empty",
    ]
)
pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 101 X\r\n",
            b"HTTP/1.0 404 \r\n",
            b"HTTP/1.1 999 \xe9\r\n",
            b"HTTP/9.9 200\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"{}",
            b"2\r\n{}\r\n",
            b"0\r\n\r\n",
            b"ffffffffffffffff\r\n",
            b"1;x=y\r\n{\r\n",
            b"x" * 2000,
        ]
    ),
    fields.map(lambda field: field + b"\r\n"),
)


@given(said=st.lists(pieces, max_size=12), together=st.booleans(), ends=st.booleans())
@example([b"HTTP/1.1 200 OK\r\n", b"Content-Encoding: gzip\r\n", b"\r\n", b"{}"], True, True)
def test_any_bytes_are_an_answer_or_one_of_our_errors(
    said: list[bytes], together: bool, ends: bool
) -> None:
    async def main() -> None:
        line, transport = opened()
        if together:
            said[:] = [b"".join(said)]
        # Where the remote neither answers nor ends, the time limit does.
        asyncio.get_running_loop().call_later(0.01, line.give_up, "no whole answer")
        try:
            answer = await told(line, transport, *filter(None, said), ends=ends)
        except OURS:
            assert not line.is_usable
        else:
            assert answer.status
            assert len(answer.reply.body) <= answer.limit

    asyncio.run(main())
