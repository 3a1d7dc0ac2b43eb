"""A well-known file delegates, or it does not: it is never an error of its own."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.policy import CachePolicy
from invite_client.spec.well_known import (
    WellKnownError,
    failure_lifetime,
    lifetime,
    read_well_known,
)

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT
HOUR, DAY = 3600.0, 24 * 3600.0
POLICY = CachePolicy(default=24 * HOUR, maximum=48 * HOUR, minimum=60.0)


def refusal(body: bytes, status: int = 200) -> str:
    with pytest.raises(WellKnownError) as caught:
        read_well_known(status, body)
    return str(caught.value)


# --- The body -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [100, 201, 203, 204, 206, 301, 304, 400, 404, 418, 500, 503])
def test_only_status_200_is_an_answer(status: int) -> None:
    assert f"status {status}" == refusal(b'{"m.server":"a.example"}', status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{",
        b"a.example",
        b'{"m.server":"a.example"}}',
        b'\xef\xbb\xbf{"m.server":"a.example"}',
        b'{"m.server":"a.example\xff"}',
        '{"m.server":"a.example"}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert "not JSON" == refusal(body)


@pytest.mark.parametrize("body", [b"null", b"true", b"1", b'"a.example"', b'["a.example"]'])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    assert "not a JSON object" == refusal(body)


@pytest.mark.parametrize("body", [b"{}", b'{"m.server":null}', b'{"server":"a.example"}'])
def test_a_missing_name_is_refused(body: bytes) -> None:
    assert "no m.server" == refusal(body)


@pytest.mark.parametrize("value", [1, True, [], {}, ["a.example"]])
def test_a_name_that_is_no_string_is_refused(value: object) -> None:
    assert "m.server is not a string" == refusal(json.dumps({"m.server": value}).encode())


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a.example",
        "a.example/",
        "https://a.example",
        "a.example:0",
        "a.example:65536",
        "a_b.example",
        "::1",
        "a.example\r\nHost: b.example",
        "\ud800",
        "x" * 60_000,
    ],
)
def test_a_name_outside_the_grammar_is_refused(name: str) -> None:
    words = refusal(json.dumps({"m.server": name}).encode())

    assert words.startswith("m.server is not a server name: ")
    assert words.isprintable()
    assert len(words) < 150


@pytest.mark.parametrize("name", ["a.example", "A.example:8448", "192.0.2.1", "[2001:db8::1]:1"])
def test_a_server_name_is_read(name: str) -> None:
    assert name == str(read_well_known(200, json.dumps({"m.server": name}).encode()))


def test_other_keys_and_numbers_are_of_no_importance() -> None:
    body = b' {"x": 1.5, "y": NaN, "m.server": "a.example", "z": {"m.server": "b.example"}}\n'

    assert "a.example" == str(read_well_known(200, body))


@given(st.integers(100, 599) | st.just(200), st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_name_or_no_delegation(status: int, body: bytes) -> None:
    with contextlib.suppress(WellKnownError):
        read_well_known(status, body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(st.characters()),
        lambda inner: st.lists(inner) | st.dictionaries(st.just("m.server") | st.text(), inner),
    )
)
def test_any_json_is_a_name_or_no_delegation(value: object) -> None:
    with contextlib.suppress(WellKnownError):
        read_well_known(200, json.dumps(value).encode())


# --- How long it may be used --------------------------------------------------------------------


def asked(**headers: str) -> float:
    return lifetime({k.replace("_", "-"): v for k, v in headers.items()}, NOW, POLICY)


def test_an_answer_that_does_not_say_is_used_for_a_day() -> None:
    assert 24 * HOUR == asked() == asked(cache_control="public") == asked(age="5")


@pytest.mark.parametrize(
    ("control", "seconds"),
    [
        ("max-age=7200", 2 * HOUR),
        ("Max-Age=7200", 2 * HOUR),
        ("public, max-age=7200, must-revalidate", 2 * HOUR),
        ("public,max-age=7200", 2 * HOUR),
        ('max-age="7200"', 2 * HOUR),
        ("max-age = 7200", 2 * HOUR),
        ("max-age=0007200", 2 * HOUR),
        ("max-age=7200, max-age=60", 2 * HOUR),
        (",, max-age=7200,,", 2 * HOUR),
        ("max-age=172801", 48 * HOUR),
        ("max-age=" + "9" * 5000, 48 * HOUR),
        ("max-age=0", 60.0),
        ("max-age=59", 60.0),
        ("max-age=", 60.0),
        ("max-age", 60.0),
        ("max-age=-1", 60.0),
        ("max-age=soon", 60.0),
        ("max-age=1.5e9", 60.0),
        ("max-age=٧٢٠٠", 60.0),
        ("no-store", 60.0),
        ("no-cache", 60.0),
        ("NO-CACHE, max-age=7200", 60.0),
        ("max-age=7200, no-store", 60.0),
        ("s-maxage=7200", 24 * HOUR),
        ("x-max-age=7200", 24 * HOUR),
        ('private="a, max-age=7200, b"', 24 * HOUR),
        ('private="a, no-store", max-age=7200', 2 * HOUR),
        ('max-age="7200', 60.0),
        ("", 24 * HOUR),
    ],
)
def test_cache_control_says_for_how_long(control: str, seconds: float) -> None:
    assert seconds == asked(cache_control=control)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"expires": "Wed, 15 Nov 2023 00:13:20 GMT"}, 2 * HOUR),
        # The two clocks need not agree: what counts is how long after its own date.
        (
            {
                "date": "Mon, 01 Jan 2001 00:00:00 GMT",
                "expires": "Mon, 01 Jan 2001 02:00:00 GMT",
            },
            2 * HOUR,
        ),
        ({"date": "soon", "expires": "Wed, 15 Nov 2023 00:13:20 GMT"}, 2 * HOUR),
        (
            {
                "date": "Thu, 01 Jan 1970 00:00:00 GMT",
                "expires": "Thu, 01 Jan 1970 02:00:00 GMT",
            },
            2 * HOUR,
        ),
        ({"expires": "Fri, 31 Dec 9999 23:59:59 GMT"}, 48 * HOUR),
        ({"expires": "Tue, 14 Nov 2023 22:13:19 GMT"}, 60.0),
        ({"expires": "0"}, 60.0),
        ({"expires": "-1"}, 60.0),
        ({"expires": ""}, 60.0),
        ({"expires": "0", "cache-control": "max-age=7200"}, 2 * HOUR),
        ({"expires": "Wed, 15 Nov 2023 00:13:20 GMT", "cache-control": "public"}, 2 * HOUR),
        ({"expires": "Wed, 15 Nov 2023 00:13:20 GMT", "cache-control": "no-store"}, 60.0),
    ],
)
def test_expires_says_until_when(headers: dict[str, str], seconds: float) -> None:
    assert seconds == lifetime(headers, NOW, POLICY)


@pytest.mark.parametrize(
    ("age", "seconds"),
    [
        ("0", 2 * HOUR),
        ("3600", HOUR),
        ("7200", 60.0),
        ("9" * 5000, 60.0),
        ("-1", 2 * HOUR),
        ("old", 2 * HOUR),
    ],
)
def test_the_time_spent_in_caches_counts(age: str, seconds: float) -> None:
    assert seconds == asked(cache_control="max-age=7200", age=age)
    assert 60.0 == asked(cache_control="max-age=" + "9" * 5000, age="9" * 5000)


@pytest.mark.parametrize(
    "headers",
    [
        {"cache-control": "no-store"},
        {"cache-control": "no-cache"},
        {"cache-control": "max-age=0"},
        {"cache-control": "max-age=soon"},
        {"cache-control": "max-age=10", "age": "10"},
        {"cache-control": "max-age=" + "9" * 5000, "age": "9" * 5000},
        {"expires": "0"},
        {"expires": "Tue, 14 Nov 2023 22:13:19 GMT"},
    ],
)
def test_without_a_floor_nothing_is_kept_that_is_not_to_be(headers: dict[str, str]) -> None:
    assert 0.0 == lifetime(headers, NOW, CachePolicy(minimum=0))


headers = st.dictionaries(
    st.sampled_from(["cache-control", "expires", "date", "age"]),
    st.text(st.characters())
    | st.text(alphabet='maxgenostrch-=,"0123456789 ')
    | st.integers().map("max-age={}".format),
)


@given(headers, st.floats(0, 2**40))
def test_any_headers_give_a_time_within_the_policy(headers: dict[str, str], now: float) -> None:
    assert POLICY.minimum <= lifetime(headers, now, POLICY) <= POLICY.maximum


@pytest.mark.timeout(10)
@pytest.mark.parametrize("junk", ['"', 'a="', "a=", " ", ",", "=", "a ", "max-age=1", 'a="b",'])
def test_a_long_header_takes_no_long_time(junk: str) -> None:
    assert asked(cache_control=junk * 20_000)


# --- Failures -----------------------------------------------------------------------------------


def test_a_failure_is_remembered_for_twice_as_long_each_time_up_to_an_hour() -> None:
    policy = CachePolicy(failure_first=60.0, failure_maximum=HOUR)

    assert [60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, HOUR, HOUR] == [
        failure_lifetime(failures, policy) for failures in range(1, 9)
    ]
    assert HOUR == failure_lifetime(10**9, policy)
