"""Any bytes of a stranger are a value, or an error of ours; here for a moment, by hand for hours."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.__main__ import main
from tests.fuzz.mutation import mutate
from tests.fuzz.targets import TARGETS, Target

EACH = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


@EACH
def test_what_is_right_is_accepted(target: Target) -> None:
    assert [] == [data for data in target.corpus if not target.run(data)]


@EACH
@given(chance=st.randoms(use_true_random=False))
def test_what_is_almost_right_is_a_value_or_an_error_of_ours(
    target: Target, chance: Random
) -> None:
    target.run(mutate(target.corpus, chance))


@EACH
@given(data=st.binary())
def test_what_is_quite_wrong_is_too(target: Target, data: bytes) -> None:
    target.run(data)


def test_the_same_seed_makes_the_same_inputs() -> None:
    corpus = TARGETS[0].corpus
    once, again = ([mutate(corpus, chance) for _ in range(50)] for chance in (Random(1), Random(1)))

    assert once == again
    assert len(set(once)) > 40


def test_a_run_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["--inputs", "600", "--seed", "1"])

    lines = capsys.readouterr().out.splitlines()
    assert [f"{target.name}: 50 inputs" for target in TARGETS] == [
        line.rpartition(" inputs")[0] + " inputs" for line in lines
    ]


def test_a_bug_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    def trips(data: bytes) -> bool:
        return b"{" in data and data.index(b"}") > 0

    assert 1 == main(["--inputs", "5000"], [Target("buggy", [b"{}"], trips)])
    assert "a bug is found by b'{" in capsys.readouterr().out
