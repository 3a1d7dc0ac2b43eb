"""An answer that may be endless, or a bomb: bounded, and counted after decompression."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

from invite_client.errors import MalformedReplyError, Stage
from invite_client.spec.http import Reply

__all__ = ["Answer"]

_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
"""Lets zlib find out which of the two it is."""
_PIECE = 64 * 1024
"""Bytes that are decompressed at once."""


class Answer:
    """One answer, as far as it has come: put together in `begin`, `add` and `end`.

    Each of them raises `MalformedReplyError`.
    """

    def __init__(self, limit: int) -> None:
        """At most `limit` bytes of body are kept; one more is too many."""
        self.limit = limit
        self.status: int = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._encoding = ""
        self._decoder: zlib._Decompress | None = None

    @property
    def is_error(self) -> bool:
        """Whether there is a status, and it says no. Then the body is only an explanation."""
        return self.status not in (0, 200)

    @property
    def reply(self) -> Reply:
        """The answer, as far as it has come."""
        return Reply(self.status, bytes(self._body), self._headers)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Take the status and the header."""
        self.status = status
        for name, value in headers.items():
            lower = name.lower()
            known = self._headers.get(lower)
            self._headers[lower] = value if known is None else f"{known}, {value}"
        self._encoding = self._headers.get("content-encoding", "").strip().lower()
        match self._encoding:
            case "" | "identity":
                pass
            # We ask for `identity`, which not every server heeds. aiohttp's own decompression was
            # not always bounded.
            case "gzip" | "x-gzip" | "deflate":
                self._decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
            case _:
                raise _malformed(
                    f"the answer is encoded as {self._encoding!r:.40}, which was not asked for"
                )

    def add(self, data: bytes) -> None:
        """Take a piece of the body."""
        try:
            for piece in (data,) if self._decoder is None else _decompress(self._decoder, data):
                self._body += piece
                if len(self._body) > self.limit:
                    del self._body[self.limit :]
                    raise _malformed(f"the answer is longer than {self.limit} bytes")
        except zlib.error:
            raise _malformed(f"the answer is not {self._encoding}") from None

    def end(self) -> None:
        """Take notice that this was all."""
        if self._decoder is not None and not self._decoder.eof:
            raise _malformed(f"the answer is not {self._encoding}: its end is missing")


def _decompress(decoder: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """Decompress piece by piece: who has had enough asks for no more."""
    while not decoder.eof:  # zlib would keep what follows, and copy it each time
        piece = decoder.decompress(data, _PIECE)
        yield piece
        data = decoder.unconsumed_tail
        if len(piece) < _PIECE:
            return


def _malformed(message: str) -> MalformedReplyError:
    return MalformedReplyError(message, stage=Stage.HTTP)
