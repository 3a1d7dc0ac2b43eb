"""Appendices § Canonical JSON: a strict gate in both directions.

Room versions 1 to 5 let events hold numbers that canonical JSON does not have ("strict canonical
JSON" begins with version 6), so both functions can be told to be lenient about numbers. About
nothing else: duplicate keys, lone surrogates and bytes that are not UTF-8 are refused always.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

__all__ = [
    "MAX_DEPTH",
    "MAX_INTEGER",
    "CanonicalJsonError",
    "check",
    "decode",
    "decode_own",
    "encode",
]

MAX_INTEGER = 2**53 - 1
"""Integers are in the range ±(2^53 − 1)."""
MAX_DEPTH = 100
"""Arrays and objects within each other in what we write. Servers built on serde_json read 127 at
most; and without a bound of our own the answer would depend on how deep the caller's stack is."""


class CanonicalJsonError(ValueError):
    """The value, or the bytes, are not canonical JSON."""


def encode(
    value: Any, *, strict: bool = True, depth: int = MAX_DEPTH, checked: bool = False
) -> bytes:
    """Return the canonical encoding of a JSON value. Raises `CanonicalJsonError`.

    What is `checked` has passed this gate before, or is made of parts that have, and is not checked
    again.
    """
    try:
        if not checked:
            check(value, strict=strict, depth=depth)
        return _encode_strict(value) if strict else _encode(value)
    except UnicodeEncodeError:
        raise CanonicalJsonError("a string holds a lone surrogate") from None


def decode(data: bytes, *, strict: bool = True) -> Any:
    """Return the value of JSON text. Raises `CanonicalJsonError`.

    White space and the order of keys are free, as in any JSON. So is the spelling of an integer,
    as in the specification's own example: `-0` is 0 and `1e10` is 10000000000.
    """
    if _decode_plain is not None:
        # Where it raises, the text may be right for all that; or what is wrong shall be told.
        with suppress(ValueError, TypeError):
            return _decode_plain(data)
    try:
        value = (_STRICT if strict else _LENIENT).decode(data.decode("utf-8"))
        # `\ud800` is ASCII in the text, and becomes what no UTF-8 can hold.
        if _SURROGATE.search(data):
            _encode(value)
    except CanonicalJsonError:
        raise
    except RecursionError:
        raise CanonicalJsonError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise CanonicalJsonError(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise CanonicalJsonError("a string holds a lone surrogate") from None
    except json.JSONDecodeError as error:
        raise CanonicalJsonError(
            f"{error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    return value


def decode_own(data: bytes, *, strict: bool = False) -> Any:
    """Return the value of what `encode` has made, as strictly: of that, nothing is checked again."""
    return _decode_strict(data) if strict else json.loads(data)


def check(value: Any, *, strict: bool = True, depth: int = MAX_DEPTH) -> None:
    """Refuse what the encoder of the standard library would let pass, or change.

    Raises `CanonicalJsonError`. Lone surrogates are left to the encoder; where that is orjson, so are
    keys that are not strings.
    """
    kind = type(value)
    if kind is dict or kind is list:
        _check_items(value, strict, depth, not strict or _encode_strict is _encode)
    elif kind is not str:
        _check_scalar(value, strict)


def _check_items(value: Any, strict: bool, depth: float, with_keys: bool) -> None:
    if not depth:
        raise CanonicalJsonError("nested too deeply")
    depth -= 1
    if type(value) is dict:
        if with_keys:
            for key in value:
                if type(key) is not str:
                    # Its text is not shown: to make it may fail, as it does for a huge integer.
                    raise CanonicalJsonError(f"a key is not a string but {type(key).__name__}")
        value = value.values()
    for item in value:
        # Most are strings or small numbers, and a call for each would double the time.
        kind = type(item)
        if kind is str:
            continue
        if kind is dict or kind is list:
            _check_items(item, strict, depth, with_keys)
        elif kind is not int or not -MAX_INTEGER <= item <= MAX_INTEGER:
            _check_scalar(item, strict)


def _check_scalar(value: Any, strict: bool) -> None:
    kind = type(value)
    if kind is bool or value is None:
        return
    if kind is int:
        if strict and not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise CanonicalJsonError("an integer is not in the range ±(2^53 − 1)")
        if not strict and not -_HUGE < value < _HUGE:
            raise CanonicalJsonError("an integer has too many digits")
    elif kind is float:
        if strict:
            raise CanonicalJsonError(f"{value!r} is not an integer")
        if not math.isfinite(value):
            raise CanonicalJsonError(f"{value!r} is not a number in JSON")
    else:
        raise CanonicalJsonError(f"{kind.__name__} is not a JSON type")


_HUGE = 10**400
"""Beyond the range of a double even lenient peers read no integer."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

_ENCODER = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)


def _encode(value: Any) -> bytes:
    return _ENCODER.encode(value).encode("utf-8")


_decode_strict: Callable[[bytes], Any] = json.loads
_decode_plain: Callable[[bytes], Any] | None = None

try:
    import orjson
except ImportError:  # pragma: no cover  # It comes with the extra `speed`; a test runs without it.
    _encode_strict = _encode
else:
    # What has passed the strict gate: nothing that a reader could understand in two ways.
    _decode_strict = orjson.loads

    def _encode_strict(value: Any) -> bytes:
        """Encode what has passed the strict gate: of that, orjson writes the same bytes sooner."""
        try:
            return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError:  # a key, a lone surrogate, or deeper than orjson goes
            _check_items([value], strict=True, depth=math.inf, with_keys=True)
            return _encode(value)

    def _decode_as_written(data: bytes) -> Any:
        """Return the value of text as most servers write it; raise for any other.

        Of equal keys orjson keeps the last, and says nothing. But what it has read without white
        space, escapes that need not be and numbers that are not integers, it writes in as many bytes
        if it has kept everything, and in fewer if not: in more, it writes only such numbers.
        """
        value = orjson.loads(data)
        check(value)
        if len(orjson.dumps(value)) != len(data):
            raise ValueError
        return value

    _decode_plain = _decode_as_written


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        # One pass: whoever sent it chooses how many there are.
        counts = Counter(key for key, _ in pairs)
        duplicate = next(key for key, count in counts.items() if count > 1)
        raise CanonicalJsonError(f"the key {duplicate!r:.50} stands twice in one object")
    return value


def _strict_int(text: str) -> int:
    # 16 digits and a sign are enough for 2^53; more need not be converted to be refused.
    if len(text) > 17 or not -MAX_INTEGER <= (number := int(text)) <= MAX_INTEGER:
        raise CanonicalJsonError(f"{text:.30} is not an integer in the range ±(2^53 − 1)")
    return number


def _lenient_int(text: str) -> int:
    if len(text) > 400:
        raise CanonicalJsonError("an integer has too many digits")
    return int(text)


def _strict_float(text: str) -> int:
    # The specification's own example turns 1e10 into 10000000000: an integer, oddly written. A
    # decimal point makes it a float, and these are not permitted.
    if "." not in text and len(text) <= 17:
        number = Decimal(text)
        if number.adjusted() < 17 and number == (integer := int(number)):
            return _strict_int(str(integer))
    raise CanonicalJsonError(f"{text:.30} is not an integer")


def _lenient_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise CanonicalJsonError(f"{text:.30} is out of range")
    return number


def _constant(text: str) -> float:
    raise CanonicalJsonError(f"{text} is not JSON")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_strict_int,
    parse_float=_strict_float,
    parse_constant=_constant,
)
_LENIENT = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_lenient_int,
    parse_float=_lenient_float,
    parse_constant=_constant,
)
