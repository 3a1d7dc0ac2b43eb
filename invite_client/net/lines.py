"""One HTTP/1.1 connection: a request at a time, and its answer, read as it comes and bounded.

aiohttp parses; its client is not in between. What is written is what was signed, one write for head
and body, and an answer that comes whole is read in the same turn of the loop.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TypeAlias

from aiohttp import ClientPayloadError, StreamReader
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpResponseParser, RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError

from invite_client.errors import InviteError, MalformedReplyError, Stage, UnknownOutcomeError
from invite_client.net.bodies import Answer
from invite_client.net.proxies import Proxy
from invite_client.policy import Limits
from invite_client.spec.quoting import worded

__all__ = ["DiedSilentlyError", "Line", "Way"]

Way: TypeAlias = tuple[str, int, str, ssl.SSLContext, Proxy | None]
"""What two requests must have in common to go by one connection: host and port of the target,
certificate name, how the certificate is checked, proxy."""

_NO_BODY = frozenset({204, 304})  # RFC 9110 § 6.4.1
_SWITCHING_PROTOCOLS = 101
_MOST_WORDS = 200
"""Characters of what aiohttp says is wrong: it quotes, and not always as Python writes it."""
_BUFFER = 1024 * 1024
"""Bytes: more than a transport hands over at once. Each time, all is taken out."""


class DiedSilentlyError(Exception):
    """The connection ended, and no byte of an answer had come."""


class Line(BaseProtocol):
    """Our end of a connection, which knows where and to whom it leads."""

    def __init__(
        self, way: Way, address: str | None, limits: Limits, *, may_speak: bool = True
    ) -> None:
        """`may_speak`: whether the remote may answer before the first request has come."""
        super().__init__(asyncio.get_running_loop())
        self.way = way
        self.address = address
        self._limits = limits
        self._answer: Answer | None = None
        self._payload: StreamReader | None = None
        self._whole: asyncio.Future[None] | None = None
        self._heard = self._allowed = 0
        self._may_speak = may_speak
        self._said_before = b""
        self._is_spent = False

    @property
    def is_open(self) -> bool:
        """Whether a request may go by it. The last of a handshake may be on its way still."""
        return self.transport is not None and not self.transport.is_closing() and not self._is_spent

    @property
    def is_usable(self) -> bool:
        """Whether another request may go by it."""
        return (
            self.transport is not None
            and self.is_open
            # What is left of a request that was answered early would be taken for the next one.
            and not self.transport.get_write_buffer_size()
        )

    def close(self) -> None:
        """Close it at once: nobody waits for the remote's own goodbye."""
        self._is_spent = True
        if self.transport is not None:
            self.transport.abort()

    async def ask(self, request: bytes, answer: Answer) -> None:
        """Send a request, and return when `answer` is whole, or as whole as an error need be.

        The connection must be open. Raises `DiedSilentlyError`, `UnknownOutcomeError`,
        `MalformedReplyError`.
        """
        assert self.transport is not None  # noqa: S101  # it is open
        limits = self._limits
        # Limits on body and header do not see what comes before them ("100 Continue", for ever), nor
        # what stands around chunks, which may be smaller than the lines that announce them.
        self._allowed = 2 * answer.limit + limits.header_count * limits.header_bytes
        self._heard = 0
        self._answer, self._payload, self._may_speak = answer, None, False
        self._parser = HttpResponseParser(
            self,
            self._loop,
            _BUFFER,
            max_line_size=limits.header_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.header_count,
            payload_exception=ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,  # `Answer` does it, and counts
        )
        whole = self._whole = self._loop.create_future()
        try:
            self.transport.write(request)
            if self._said_before:
                said, self._said_before = self._said_before, b""
                self.transport.resume_reading()
                self.data_received(said)
            await whole
        except asyncio.CancelledError:
            self.close()
            if not whole.cancelled():
                whole.exception()  # nobody is left to be told
            raise
        finally:
            self._whole = self._answer = self._payload = self._parser = None

    # --- What comes -----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take what the remote says (`asyncio.Protocol`)."""
        if self._may_speak:
            # A request is on its way; then it is judged.
            self._said_before += data
            if self.transport is not None:
                self.transport.pause_reading()
            return
        if self._whole is None or self._whole.done() or self._answer is None:
            self.close()  # it speaks unasked: that would pass for the answer to the next request
            return
        self._heard += len(data)
        try:
            if self._heard > self._allowed:
                raise _malformed(f"the answer takes more than {self._allowed} bytes")
            self._read(data, self._answer)
        except MalformedReplyError as error:
            self._end(error)

    def _read(self, data: bytes, answer: Answer) -> None:
        assert self._parser is not None  # noqa: S101  # there is one since somebody asked
        try:
            messages, upgraded, rest = self._parser.feed_data(data)
        except HttpProcessingError as error:
            raise _malformed(
                f"the answer is not HTTP: {worded(error.message, _MOST_WORDS)}"
            ) from None
        except Exception as error:  # what else its parser may make of a stranger's bytes
            raise _malformed(
                f"the answer is not HTTP: {worded(str(error), _MOST_WORDS)}"
            ) from error
        for message, payload in messages:
            if message.code < 200 and message.code != _SWITCHING_PROTOCOLS:
                continue  # more is to come
            if answer.status:
                self._is_spent = True  # more than one answer
                break
            self._begin(message, payload, answer)
        self._is_spent |= upgraded or bool(rest)
        self._take(answer)

    def _begin(self, message: RawResponseMessage, payload: StreamReader, answer: Answer) -> None:
        self._is_spent |= message.should_close or message.code == _SWITCHING_PROTOCOLS
        self._payload = payload
        answer.begin(message.code, message.headers)

    def _take(self, answer: Answer) -> None:
        """Take what has come of the body, and see whether that was all."""
        payload = self._payload
        if payload is None:
            return
        error = payload.exception()
        if error is not None:
            raise _malformed(f"the answer is not HTTP: {worded(str(error), _MOST_WORDS)}")
        answer.add(payload.read_nowait())
        if payload.is_eof():
            answer.end()
            self._end()
        elif answer.status in _NO_BODY or answer.status == _SWITCHING_PROTOCOLS:
            self._is_spent = True
            self._end()

    def pause_reading(self) -> None:
        """Do not: what comes is taken out of aiohttp's buffer at once, and it is bounded."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Nothing was paused."""

    def eof_received(self) -> None:
        """Ask no more by it, and let the transport close it (`asyncio.Protocol`)."""
        self._is_spent = True

    def connection_lost(self, exc: BaseException | None) -> None:
        """Tell who waits (`asyncio.Protocol`)."""
        super().connection_lost(exc)
        self._is_spent = True
        whole, answer = self._whole, self._answer
        if whole is None or whole.done() or answer is None:
            return
        if not self._heard:
            whole.set_exception(DiedSilentlyError())
            return
        error: InviteError = _in_the_middle()  # unless what has come was all
        try:
            # The body of an answer without a length ends with the connection.
            if self._parser is not None:
                self._parser.feed_eof()
            self._take(answer)
        except MalformedReplyError as malformed:
            error = malformed
        except Exception as broken:  # noqa: BLE001  # aiohttp has several for a body that is not whole
            error.__cause__ = broken
        self._end(error)

    def give_up(self, why: str) -> None:
        """Wait no longer for the answer."""
        self._end(_unknown(why))

    def _end(self, error: InviteError | None = None) -> None:
        whole, answer = self._whole, self._answer
        if error is not None:
            self.close()
        if whole is None or whole.done() or answer is None:
            return
        # If the status says no, it is the answer; how the explanation ended does not change it.
        if error is None or answer.is_error:
            whole.set_result(None)
        else:
            whole.set_exception(error)


def _malformed(message: str) -> MalformedReplyError:
    return MalformedReplyError(message, stage=Stage.HTTP)


def _in_the_middle() -> UnknownOutcomeError:
    return _unknown("the connection ended in the middle of the answer")


def _unknown(message: str) -> UnknownOutcomeError:
    return UnknownOutcomeError(message, stage=Stage.HTTP, retryable=True)
