"""Dates and times in a reply's header are read as HTTP has them, or not at all."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.spec.http import read_date, read_seconds


@pytest.mark.parametrize(
    "text",
    [
        "Sun, 06 Nov 1994 08:49:37 GMT",  # RFC 9110 § 5.6.7: the three forms
        "Sunday, 06-Nov-94 08:49:37 GMT",
        "Sun Nov  6 08:49:37 1994",
        "Sun, 06 Nov 1994 08:49:37 -0000",
        "Sun, 06 Nov 1994 09:49:37 +0100",
    ],
)
def test_a_date_is_read(text: str) -> None:
    assert 784111777.0 == read_date(text)


def test_a_date_without_a_zone_is_in_utc_wherever_this_machine_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "XXX-12")  # where it is 12 hours later than in UTC
    time.tzset()
    try:
        assert 784111777.0 == read_date("Sun Nov  6 08:49:37 1994")
        assert 784111777.0 == read_date("Sun, 06 Nov 1994 08:49:37 -0000")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "soon",
        "GMT",
        "Sun, 99 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 99999 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 +9999999999999999999",
        "Sun, 06 Nov 1994 " + "9" * 5000 + ":00:00 GMT",
        "194 Nov 2023 22:13:30 -08020280202323 0 0",
        "\ud800",
    ],
)
def test_what_is_no_date_is_none(text: str) -> None:
    assert read_date(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("7", 7.0), (" 7\t", 7.0), ("007", 7.0), ("9" * 5000, math.inf)],
)
def test_seconds_are_read(text: str, seconds: float) -> None:
    assert seconds == read_seconds(text)


@pytest.mark.parametrize("text", ["", " ", "-1", "+1", "1.5", "1e3", "٧", "²", "1 2", "7\n", "inf"])
def test_what_is_no_number_of_seconds_is_none(text: str) -> None:
    assert read_seconds(text) is None


@given(st.text(st.characters()) | st.text(alphabet="0123456789:,-+ SunNovGMT().\n"))
def test_any_text_is_a_time_or_none(text: str) -> None:
    for read in (read_date, read_seconds):
        found = read(text)
        assert found is None or isinstance(found, float)
