"""Canonical JSON has one spelling for each value, and refuses everything that has none."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import canonicaljson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from invite_client.spec import canonical_json
from invite_client.spec.canonical_json import (
    MAX_DEPTH,
    MAX_INTEGER,
    CanonicalJsonError,
    decode,
    decode_own,
    encode,
)


@pytest.fixture(params=["orjson", "standard library"], scope="module", autouse=True)
def encoder(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything here holds whether orjson (the extra `speed`) is installed or not."""
    with pytest.MonkeyPatch.context() as patched:
        if request.param == "orjson":
            pytest.importorskip("orjson")
        else:
            patched.setattr(canonical_json, "_encode_strict", canonical_json._encode)
            patched.setattr(canonical_json, "_decode_strict", json.loads)
            patched.setattr(canonical_json, "_decode_plain", None)
        yield request.param


text = st.text(st.characters(exclude_categories=("Cs",)))
integers = st.integers(-MAX_INTEGER, MAX_INTEGER)
floats = st.floats(allow_nan=False, allow_infinity=False)


def values(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner) | st.dictionaries(text, inner),
        max_leaves=20,
    )


strict_values = values(integers)
lenient_values = values(integers | st.integers(-(2**200), 2**200) | floats)
# What no JSON has, and what Python's own encoder would turn into something else.
huge = st.sampled_from([5000, 6000]).map(lambda digits: 10**digits)  # Its repr() raises.
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | huge
    | st.builds(object),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(st.text() | st.integers() | st.none() | huge, inner)
    ),
    max_leaves=10,
)


def nested(depth: int, wrap: Any = lambda value: [value]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


# --- Hostile bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"{}{}",
        b'{"a":1,}',
        b"{'a':1}",
        b"{a:1}",
        b"[1] // x",
        b"[01]",
        b"[-01]",
        b"[+1]",
        b"[.5]",
        b"[1.]",
        b"[NaN]",
        b"[Infinity]",
        b"[-Infinity]",
        b"[1e999]",
        b"[" + b"9" * 401 + b"]",
        b"[" + b"9" * 5000 + b"]",
        b"[-" + b"9" * 5000 + b"]",
        b'"\n"',
        b'"\x00"',
        b'"\\x41"',
        b'"\\B"',
        b'{"a":1,"a":1}',
        b'{"a":1,"\\u0061":2}',
        b'{"b":{"a":1,"c":2,"a":1}}',
        b'"\\ud800"',
        b'"\\uDC00"',
        b'"\\udc00\\ud800"',
        b'{"\\ud800":1}',
        b'["\\\\\\ud800"]',
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xc0\x80"',
        b'"\xed\xa0\x80"',
        "{}".encode("utf-16"),
        "{}".encode("utf-16-le"),
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_json_is_refused_in_every_room_version(data: bytes, strict: bool) -> None:
    with pytest.raises(CanonicalJsonError):
        decode(data, strict=strict)


@pytest.mark.parametrize(
    "number",
    [
        b"9007199254740992",
        b"-9007199254740992",
        b"99999999999999999999",
        b"1.0",
        b"-0.0",
        b"1.5",
        b"1.5e1",
        b"1e16",
        b"1e400",
        b"1e-1",
        b"1e999999999999999",
        b"1e-99999999999999",
        b"10000000000000000e1",
        b"100000000000000000000e-20",
    ],
)
def test_what_is_not_an_integer_in_range_is_refused_since_version_6(number: bytes) -> None:
    with pytest.raises(CanonicalJsonError, match="is not an integer"):
        decode(b'{"a":' + number + b"}")


@pytest.mark.parametrize(
    ("number", "value"),
    [
        (b"9007199254740992", 2**53),
        (b"-99999999999999999999", -99999999999999999999),
        (b"1.0", 1.0),
        (b"1e10", 1e10),
        (b"-1.5E-3", -0.0015),
    ],
)
def test_old_events_hold_other_numbers(number: bytes, value: float) -> None:
    read = decode(number, strict=False)

    assert (type(value), value) == (type(read), read)


def test_a_duplicate_among_many_keys_is_found_in_one_pass() -> None:
    # As large as an answer may be. To count each key among all others would take minutes.
    keys = [f"{number:06}" for number in range(90_000)]
    data = ",".join(f'"{key}":0' for key in [*keys, keys[-1]])

    with pytest.raises(CanonicalJsonError, match=keys[-1]):
        decode(f"{{{data}}}".encode())


def test_a_message_quotes_little_of_what_it_refuses() -> None:
    for data in (
        b"[" + b"9" * 5000 + b"]",
        b"1." + b"0" * 5000,
        b'{"%s":1,"%s":1}' % ((b"x" * 5000,) * 2),
    ):
        with pytest.raises(CanonicalJsonError) as caught:
            decode(data)

        assert len(str(caught.value)) < 120


@given(st.binary(), st.booleans())
def test_any_bytes_are_a_value_or_an_error(data: bytes, strict: bool) -> None:
    with contextlib.suppress(CanonicalJsonError):
        decode(data, strict=strict)


@given(st.text(alphabet='{}[]:,"\\ud8cDC0019-+.eEtrufalsn \n'), st.booleans())
def test_anything_like_json_is_a_value_that_can_be_encoded_or_an_error(
    data: str, strict: bool
) -> None:
    try:
        value = decode(data.encode(), strict=strict)
    except CanonicalJsonError:
        return
    assert value == decode(encode(value, strict=strict), strict=strict)


# --- Hostile values -----------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        10**400,
        -(10**400),
        10**5000,
        (1, 2),
        {1, 2},
        b"bytes",
        bytearray(b"bytes"),
        object(),
        Unprintable(),
        "\ud800",
        {"\udfff": 1},
        {1: 1},
        {None: 1},
        {True: 1},
        {b"a": 1},
        {10**5000: 1},
        {Unprintable(): 1},
        type("Text", (str,), {})("a"),
        type("Number", (int,), {})(1),
        type("Array", (list,), {})(),
        type("Object", (dict,), {})(),
        nested(100_000),
        nested(100_000, lambda value: {"a": value}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_does_not_have_is_refused_wherever_it_stands(value: Any, strict: bool) -> None:
    for whole in (value, [value], {"a": value}, {"a": [value]}):
        with pytest.raises(CanonicalJsonError):
            encode(whole, strict=strict)


def test_what_holds_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)

    with pytest.raises(CanonicalJsonError, match="nested too deeply"):
        encode(circle)


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}])
def test_the_depth_is_bounded_wherever_the_caller_stands(wrap: Any) -> None:
    def standing_deeper(calls: int, value: Any) -> bytes:
        return standing_deeper(calls - 1, value) if calls else encode(value)

    for calls in (0, 300):
        assert standing_deeper(calls, nested(MAX_DEPTH, wrap))
        with pytest.raises(CanonicalJsonError, match="nested too deeply"):
            standing_deeper(calls, nested(MAX_DEPTH + 1, wrap))

    assert encode(nested(MAX_DEPTH + 1, wrap), depth=MAX_DEPTH + 1)


@pytest.mark.parametrize("number", [2**53, -(2**53), 1.0, 0.0, -0.0, 1.5, 1e300])
def test_only_integers_in_range_are_written_since_version_6(number: float) -> None:
    with pytest.raises(CanonicalJsonError):
        encode({"a": number})

    assert json.dumps(number).encode() == encode(number, strict=False)


@given(anything, st.booleans())
def test_any_python_value_is_encoded_or_an_error(value: Any, strict: bool) -> None:
    try:
        encoded = encode(value, strict=strict)
    except CanonicalJsonError:
        return
    assert encoded == encode(decode(encoded, strict=strict), strict=strict)


# --- The one spelling ---------------------------------------------------------------------------

# Appendices § Canonical JSON, Examples; the last is "-0 and 1e10".
EXAMPLES = [
    ("{}", "{}"),
    ('{ "one": 1, "two": "Two" }', '{"one":1,"two":"Two"}'),
    ('{ "b": "2", "a": "1" }', '{"a":"1","b":"2"}'),
    ('{"b":"2","a":"1"}', '{"a":"1","b":"2"}'),
    (
        (
            '{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {'
            '"display_name": "John Doe", "three_pids": ['
            '{"medium": "email", "address": "john.doe@example.org"},'
            '{"medium": "msisdn", "address": "123456789"}]}}}'
        ),
        (
            '{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe",'
            '"three_pids":[{"address":"john.doe@example.org","medium":"email"},'
            '{"address":"123456789","medium":"msisdn"}]},"success":true}}'
        ),
    ),
    ('{"a": "日本語"}', '{"a":"日本語"}'),
    ('{"本": 2, "日": 1}', '{"日":1,"本":2}'),
    ('{"a": "\\u65E5"}', '{"a":"日"}'),
    ('{"a": null}', '{"a":null}'),
    ('{"a": -0, "b": 1e10}', '{"a":0,"b":10000000000}'),
]


@pytest.mark.parametrize(("given_text", "canonical"), EXAMPLES)
def test_the_examples_of_the_specification(given_text: str, canonical: str) -> None:
    assert canonical.encode() == encode(decode(given_text.encode()))


@pytest.mark.parametrize(
    ("value", "canonical"),
    [
        ({"\U0001f431": 1, "\uffff": 2}, '{"\uffff":2,"\U0001f431":1}'),
        ({"a": {"z": 1, "b": 2}, "A": [3, 1]}, '{"A":[3,1],"a":{"b":2,"z":1}}'),
        ("\x00\x07\b\t\n\x0b\f\r\x1f", r'"\u0000\u0007\b\t\n\u000b\f\r\u001f"'),
        ('"\\/\x7f\u2028', '"\\"\\\\/\x7f\u2028"'),
        ([MAX_INTEGER, -MAX_INTEGER], "[9007199254740991,-9007199254740991]"),
    ],
)
def test_keys_stand_by_code_point_and_escapes_are_the_shortest(value: Any, canonical: str) -> None:
    assert canonical.encode() == encode(value)


@pytest.mark.parametrize(
    ("spelling", "value"), [(b"1e2", 100), (b"10e-1", 1), (b"-0e0", 0), (b"0e-1000", 0)]
)
def test_an_integer_may_be_spelled_with_an_exponent(spelling: bytes, value: int) -> None:
    read = decode(spelling)

    assert (int, value) == (type(read), read)


def test_surrogates_in_pairs_are_a_character() -> None:
    assert "\U0001f431" == decode(b'"\\ud83d\\udc31"')


def test_what_is_equal_to_python_is_not_the_same_json() -> None:
    spellings = {encode(value, strict=False) for value in (1, 1.0, True)}

    assert {b"1", b"1.0", b"true"} == spellings


@given(strict_values)
def test_what_was_encoded_decodes_to_the_same(value: Any) -> None:
    assert value == decode(encode(value))
    assert encode(value) == encode(decode(encode(value)))


@given(lenient_values)
def test_our_own_encoding_is_decoded_to_the_same_without_a_check(value: Any) -> None:
    encoded = encode(value, strict=False)

    # repr() tells 1 from 1.0 and True.
    assert repr(decode(encoded, strict=False)) == repr(decode_own(encoded))
    assert encoded == encode(decode_own(encoded), strict=False, checked=True)


@given(strict_values)
def test_our_own_strict_encoding_is_decoded_to_the_same_without_a_check(value: Any) -> None:
    assert repr(decode(encode(value))) == repr(decode_own(encode(value), strict=True))


@given(lenient_values)
def test_what_was_encoded_leniently_decodes_to_the_same(value: Any) -> None:
    encoded = encode(value, strict=False)

    assert encoded == encode(decode(encoded, strict=False), strict=False)


@given(strict_values)
def test_strict_values_are_the_same_bytes_leniently_and_to_the_reference_library(
    value: Any,
) -> None:
    assert (
        canonicaljson.encode_canonical_json(value) == encode(value) == encode(value, strict=False)
    )


@given(lenient_values)
def test_old_numbers_are_written_as_peers_write_them(value: Any) -> None:
    assert canonicaljson.encode_canonical_json(value) == encode(value, strict=False)


@given(strict_values)
def test_every_spelling_of_a_value_decodes_to_it(value: Any) -> None:
    escaped = json.dumps(value, indent=1, ensure_ascii=True).encode()

    assert encode(value) == encode(decode(escaped))


# --- Two decoders, one reading ------------------------------------------------------------------

fragments = st.sampled_from(
    ["1", "-0", "0", "1e2", "1E+2", "2.0", "9007199254740992", '"a"', '"\\u0061"', '"é"', "null"]
)
compact_json = st.recursive(
    fragments,
    lambda inner: (
        st.lists(inner).map(lambda items: f"[{','.join(items)}]")
        # Few keys, so that some are equal, and one of two spellings.
        | st.lists(st.tuples(st.sampled_from(['"a"', '"b"', '"\\u0061"', '""']), inner)).map(
            lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items) + "}"
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
# What one of the equal keys takes away, a number that grows puts back.
@example('{"a":1,"a":1,"b":1e5}', True)
@example('{"a":-0,"a":1e15}', False)
@example('{"a":1,"a":2}', False)
@given(compact_json, st.booleans())
def test_both_take_the_same_text_for_the_same_value(text: str, strict: bool) -> None:
    def read() -> object:
        try:
            return repr(decode(text.encode(), strict=strict))
        except CanonicalJsonError as error:
            return str(error), type(error)

    found = read()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(canonical_json, "_decode_plain", None)
        assert read() == found


# --- Two encoders, one spelling -----------------------------------------------------------------


def same_or_refused(value: Any) -> None:
    """Both write the same bytes, or the gate lets the value pass to neither."""
    try:
        expected = canonical_json._encode(value)
    except UnicodeEncodeError:
        with pytest.raises(CanonicalJsonError, match="lone surrogate"):
            encode(value)
        return
    assert expected == canonicaljson.encode_canonical_json(value)
    assert expected == canonical_json._encode_strict(value) == encode(value)
    assert expected == encode(value, checked=True)


@settings(max_examples=200)
@example(
    {"\uffff": 1, "\U0001f600": 2, "\ud7ff": 3, "\x7f": '\x00\x1f\u2028\u2029\x7f\\"/\b\f\n\r\t'}
)
@example([{"\ud800": 1}, "\udfff"])
@example([MAX_INTEGER, -MAX_INTEGER, 0, True, False, None, "", {}, []])
@given(
    st.recursive(
        st.none() | st.booleans() | integers | st.text(st.characters(exclude_categories=())),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner)
        ),
        max_leaves=30,
    )
)
def test_what_passes_the_strict_gate_is_written_the_same_by_both(value: Any) -> None:
    same_or_refused(value)


@given(st.dictionaries(st.text(st.characters(min_codepoint=0xD000)), st.none(), min_size=2))
def test_keys_stand_by_code_point_to_both(value: Any) -> None:
    same_or_refused(value)


@pytest.mark.parametrize("depth", [1, 99, 100, 103, 250, 254, 255, 256, 400])
def test_what_is_deeper_than_one_of_them_goes_is_written_by_the_other(depth: int) -> None:
    for wrap in (lambda value: [value], lambda value: {"a": value}):
        value = nested(depth, wrap)
        expected = canonicaljson.encode_canonical_json(value)

        assert expected == encode(value, depth=depth) == encode(value, checked=True)


def test_what_only_old_rooms_have_is_not_given_to_orjson(monkeypatch: pytest.MonkeyPatch) -> None:
    def given_to_it(_value: Any) -> bytes:
        pytest.fail("it was")

    monkeypatch.setattr(canonical_json, "_encode_strict", given_to_it)
    for number in (1.5, 1e22, -0.0, 2**53, 2**64, -(2**70), 10**399):
        for value in (number, [number], {"a": [number]}):
            with pytest.raises(CanonicalJsonError):
                encode(value)
            expected = canonicaljson.encode_canonical_json(value)
            assert expected == encode(value, strict=False)
            assert expected == encode(value, strict=False, checked=True)


_WITHOUT = """
import sys
sys.modules["orjson"] = None
from invite_client.spec import canonical_json
assert canonical_json._encode_strict is canonical_json._encode
sys.stdout.buffer.write(canonical_json.encode({"b": [1, None, "\\u2028"], "a": "é\\x1f"}))
"""


def test_orjson_need_not_be_there() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT], check=True, capture_output=True)

    assert '{"a":"é\\u001f","b":[1,null,"\u2028"]}'.encode() == done.stdout
