"""What others wrote stands in our messages on one line, and takes little of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.spec.quoting import listed, quoted, worded
from invite_client.testing import INVITER_KEY

KEY_LINE = INVITER_KEY.to_line()
SEED = KEY_LINE.split()[-1]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "value", [10**5000, Unprintable(), [Unprintable()]], ids=lambda value: type(value).__name__
)
def test_a_value_that_cannot_be_shown_is_named_by_its_type(value: object) -> None:
    assert f"something of type {type(value).__name__}" == quoted(value)


def test_a_value_is_shown_as_python_writes_it_and_cut_short() -> None:
    assert "'a\\n\\x1b'" == quoted("a\n\x1b")
    assert 100 == len(quoted("x" * 1000))


@pytest.mark.parametrize(
    "value",
    [
        KEY_LINE,
        f" \t{KEY_LINE}\r\n",
        KEY_LINE.replace(" ", "\t"),
        KEY_LINE.replace(" ", "  \xa0\u2003"),
        f"\ufeff{KEY_LINE}=",
        f"signing_key: '{KEY_LINE}'",
        "x" * 76 + KEY_LINE,
        KEY_LINE[:-5],
        ["$a", {"key": KEY_LINE}],
    ],
)
def test_a_signing_key_is_not_shown(value: object) -> None:
    shown = quoted(value)

    assert "the line of a signing key file, which is not shown" == shown
    assert SEED[:5] not in shown


@pytest.mark.parametrize(
    "value",
    [f"ed25519:a_1 {SEED}", "ed25519 a_1 short", f"@ed25519:{SEED}", {"ed25519:a_1": SEED + SEED}],
)
def test_what_is_public_of_a_key_is_shown(value: object) -> None:
    assert repr(value)[:100] == quoted(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("M_FORBIDDEN", "M_FORBIDDEN"),
        ("Nö, 日本", "Nö, 日本"),
        (" a\r\nb\t\x1b[2J\x00c  d\u2028\u202e", "a b [2J c d"),
        ("\ud800", ""),
        ("", ""),
    ],
)
def test_a_text_loses_what_would_break_the_line(text: str, words: str) -> None:
    assert words == worded(text)


def test_a_text_is_cut_short() -> None:
    assert "x" * 100 == worded("x" * 100_000)
    assert "x" * 7 == worded("x" * 100_000, 7)


def test_a_long_list_is_counted() -> None:
    assert "" == listed([])
    assert "a, b" == listed(["a", "b"])
    assert "0, 1, 2, 3, 4 and 95 more" == listed(map(str, range(100)))


@given(st.text(st.characters()), st.lists(st.text(st.characters())))
def test_any_text_is_one_line(text: str, names: list[str]) -> None:
    for shown in (quoted(text), worded(text), listed(names)):
        assert shown.isprintable()
        shown.encode()
