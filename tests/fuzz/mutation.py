"""From inputs that are right to inputs that are almost right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

__all__ = ["mutate"]

# What JSON and header fields are made of: a change of whole tokens keeps more of the form than a
# change of bytes does, and so gets further into the parser.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[A-Za-z0-9_.+-]+|\s+|.', re.DOTALL)

_TOKENS: Sequence[bytes] = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"=", b";", b"\n", b"\r\n\r\n", b" ", b"\t",
    b"\0", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xef\xbb\xbf", "é\u202e\U0001f431".encode(),
    b"null", b"true", b"false", b"NaN", b"-Infinity", b"0", b"-0", b"-1", b"1", b"1.0", b"0.5",
    b"1e2", b"1e400", b"1e-400", b"9007199254740991", b"9007199254740992", b"9" * 30, b"9" * 401,
    b"9" * 5000, b'""', b'"\\ud800"', b'"\\u0000"', b'"\\udc00\\ud800"', b"[]", b"{}", b'{"":0}',
    b"[" * 60 + b"]" * 60, b"[" * 2000, b'{"a":' * 60, b'"' + b"x" * 2000 + b'"',
    b'"signatures"', b'"unsigned"', b'"event"', b'"hashes"', b'"remote.example"',
    b'"inviter.example"', b'"ed25519:theirs"', b'"ed25519:ours"', b'"ed25519:other"',
    b'"' + b"A" * 86 + b'"', b'"' + b"A" * 43 + b'"', b'"server_name"', b'"verify_keys"',
    b'"m.server"', b'"a.example:8448"', b'"[::1]"', b'"127.0.0.1"',
    b"200", b"301", b"400", b"404", b"429", b"503", b'"errcode"', b'"M_UNRECOGNIZED"',
    b'"retry_after_ms"', b"retry-after: ", b"cache-control: ", b"expires: ", b"age: ",
    b"max-age", b"no-store", b"Tue, 14 Nov 2023 22:13:30 GMT", b"0x10", b"X-Matrix ", b"origin",
)  # fmt: skip


def mutate(corpus: Sequence[bytes], chance: Random) -> bytes:
    """Return one of the inputs with a few changes; `chance` decides everything."""
    data = chance.choice(corpus)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        change = chance.choice((_change_tokens, _change_tokens, _change_bytes, _splice))
        data = change(data, corpus, chance)
    return data


def _change_tokens(data: bytes, _: Sequence[bytes], chance: Random) -> bytes:
    tokens = _TOKEN.findall(data)
    place = chance.randrange(len(tokens) + 1)
    match chance.randrange(5):
        case 0:
            tokens.insert(place, chance.choice(_TOKENS))
        case 1:
            tokens[place : place + 1] = [chance.choice(_TOKENS)]
        case 2:
            tokens[place : place + 1] = []
        case 3:
            tokens[place : place + 1] = chance.choices(tokens or _TOKENS, k=1)
        case _:
            end = place + chance.randrange(1, 12)
            tokens[place:place] = tokens[place:end]
    return b"".join(tokens)


def _change_bytes(data: bytes, _: Sequence[bytes], chance: Random) -> bytes:
    changed = bytearray(data or b"\0")
    place = chance.randrange(len(changed))
    match chance.randrange(4):
        case 0:
            changed[place] ^= 1 << chance.randrange(8)
        case 1:
            changed[place] = chance.randrange(256)
        case 2:
            del changed[place : place + chance.randrange(1, 20)]
        case _:
            del changed[place:]
    return bytes(changed)


def _splice(data: bytes, corpus: Sequence[bytes], chance: Random) -> bytes:
    other = chance.choice(corpus)
    start, end = sorted((chance.randrange(len(other) + 1), chance.randrange(len(other) + 1)))
    place = chance.randrange(len(data) + 1)
    return data[:place] + other[start:end] + data[place:]
