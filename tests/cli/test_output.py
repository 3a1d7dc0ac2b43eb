"""What is printed harms no terminal, and can be read."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client import (
    CountersignatureError,
    CountersignatureProblem,
    ForbiddenByPolicyError,
    InviteRejectedError,
    RateLimitedError,
    UnreachableError,
)
from invite_client.cli.output import (
    Output,
    as_they_come,
    error_json,
    exit_code,
    one_line,
    plain,
    utc,
)


@given(st.text())
def test_only_what_can_be_printed_is_printed(text: str) -> None:
    shown = plain(text)

    assert all(c.isprintable() or c == "\n" for c in shown)
    assert plain(shown) == shown


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1


@pytest.mark.parametrize(
    ("milliseconds", "shown"),
    [
        (0, "1970-01-01 00:00:00 UTC"),
        (1_700_000_000_999, "2023-11-14 22:13:20 UTC"),
        (2**53, f"{2**53} ms since the epoch"),
        (-(2**70), f"{-(2**70)} ms since the epoch"),
    ],
)
def test_any_time_can_be_shown(milliseconds: int, shown: str) -> None:
    assert shown == utc(milliseconds)


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (
            InviteRejectedError("no", status=403, errcode="M_X"),
            1,
            {"status": 403, "errcode": "M_X"},
        ),
        (InviteRejectedError("no", status=500, retryable=True), 3, {"status": 500}),
        (RateLimitedError("later", retryable=True, retry_after=2.5), 3, {"retry_after": 2.5}),
        (UnreachableError("gone", retryable=False), 1, {"delivery": "not sent", "status": None}),
        (
            ForbiddenByPolicyError("no", setting="servers.allowed"),
            1,
            {"setting": "servers.allowed"},
        ),
        (
            CountersignatureError(
                "x", problem=CountersignatureProblem.EVENT_CHANGED, fields=("depth",)
            ),
            1,
            {"problem": "event changed", "fields": ["depth"]},
        ),
    ],
)
def test_an_error_is_told_with_all_that_its_kind_knows(
    error: Any, code: int, details: dict[str, Any]
) -> None:
    shown = json.loads(json.dumps(error_json(error), allow_nan=False))

    assert code == exit_code(error)
    assert type(error).__name__ == shown["class"]
    assert details.items() <= shown.items()


class Item(dict[str, int]):
    """One of which can be known whether it is still there."""


def test_an_array_is_printed_as_its_items_come(capsys: pytest.CaptureFixture[str]) -> None:
    given: list[weakref.ref[Item]] = []
    most_at_once = 0

    def items(number: int) -> Iterator[Item]:
        nonlocal most_at_once
        for value in range(number):
            given.append(weakref.ref(item := Item(value=value)))
            most_at_once = max(most_at_once, sum(one() is not None for one in given))
            yield item
            del item

    for number in (0, 1, 2, 50):
        Output(as_json=True).json({"items": as_they_come(items(number)), "more": [number]})
        plain = {"items": [{"value": value} for value in range(number)], "more": [number]}
        assert json.dumps(plain, indent=2) + "\n" == capsys.readouterr().out
    assert most_at_once <= 3
