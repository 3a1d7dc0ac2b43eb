"""Reads an answer that may be endless, or a bomb: bounded, and counted after decompression."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import aiohttp

from invite_client.errors import MalformedReplyError, Stage
from invite_client.spec.http import Reply

__all__ = ["ReplyReader"]

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""Lets zlib find out which of the two it is."""
_PIECE = 64 * 1024
"""Bytes that are decompressed at once."""


class ReplyReader:
    """Reads one answer; `reply` is what has come of it so far."""

    def __init__(self, limit: int) -> None:
        """At most `limit` bytes of body are kept."""
        self._limit = limit
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    @property
    def is_error(self) -> bool:
        """Whether there is a status, and it says no. Then the body is only an explanation."""
        return self._status not in (0, 200)

    @property
    def reply(self) -> Reply:
        """The answer, as far as it has come."""
        return Reply(self._status, bytes(self._body), self._headers)

    async def read(self, response: aiohttp.ClientResponse) -> Reply:
        """Read the whole answer; of one that says no, as much as the limit and the remote allow.

        Raises `MalformedReplyError`, and whatever aiohttp raises if the connection fails.
        """
        self._status = response.status
        for name, value in response.headers.items():
            lower = name.lower()
            known = self._headers.get(lower)
            self._headers[lower] = value if known is None else f"{known}, {value}"
        try:
            await self._read_body(response)
        except MalformedReplyError:
            response.close()  # not released: the rest of it is never read
            if not self.is_error:
                raise
        return self.reply

    async def _read_body(self, response: aiohttp.ClientResponse) -> None:
        encoding = self._headers.get("content-encoding", "").strip().lower()
        match encoding:
            case "" | "identity":
                decoder = None
            # We ask for `identity`, which not every server heeds. aiohttp's own decompression was
            # not always bounded.
            case "gzip" | "x-gzip" | "deflate":
                decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
            case _:
                raise _malformed(
                    f"the answer is encoded as {encoding!r:.40}, which was not asked for"
                )
        try:
            async for chunk in response.content.iter_any():
                for piece in (chunk,) if decoder is None else _decompress(decoder, chunk):
                    self._body += piece
                    if len(self._body) > self._limit:
                        del self._body[self._limit :]
                        raise _malformed(f"the answer is longer than {self._limit} bytes")
        except zlib.error:
            raise _malformed(f"the answer is not {encoding}") from None
        if decoder is not None and not decoder.eof:
            raise _malformed(f"the answer is not {encoding}: its end is missing")


def _decompress(decoder: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """Decompress piece by piece: who has had enough asks for no more."""
    while True:
        piece = decoder.decompress(data, _PIECE)
        yield piece
        data = decoder.unconsumed_tail
        if len(piece) < _PIECE:
            return


def _malformed(message: str) -> MalformedReplyError:
    return MalformedReplyError(message, stage=Stage.HTTP)
