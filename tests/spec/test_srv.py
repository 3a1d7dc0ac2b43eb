"""RFC 2782: the lowest priority first, and within it each target as often as its weight says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.spec.srv import SrvRecord, in_order

records = st.lists(
    st.builds(
        SrvRecord,
        st.integers(0, 3) | st.integers(0, 65_535),
        st.integers(0, 3) | st.integers(0, 65_535),
        st.integers(0, 65_535),
        st.sampled_from(["a.example", "b.example", "."]),
    ),
    max_size=8,
)


def record(name: str, priority: int = 0, weight: int = 0) -> SrvRecord:
    return SrvRecord(priority, weight, 8448, f"{name}.example")


def lowest(_: int) -> int:
    return 0


def highest(most: int) -> int:
    return most


def first_tries(group: list[SrvRecord], times: int = 20_000) -> Counter[SrvRecord]:
    chance = random.Random(2782)
    return Counter(in_order(group, lambda most: chance.randint(0, most))[0] for _ in range(times))


def test_no_records_are_in_order() -> None:
    assert [] == in_order([], highest)


@given(records, st.randoms(use_true_random=False))
def test_every_record_is_tried_once_and_priorities_ascend(
    group: list[SrvRecord], chance: random.Random
) -> None:
    ordered = in_order(group, lambda most: chance.randint(0, most))

    assert Counter(group) == Counter(ordered)
    assert sorted(r.priority for r in group) == [r.priority for r in ordered]


@given(records)
def test_the_order_of_the_answer_does_not_decide(group: list[SrvRecord]) -> None:
    weighted = [r for r in group if r.weight]
    for chance in (lowest, highest):
        forwards, backwards = in_order(weighted, chance), in_order(weighted[::-1], chance)

        assert [(r.priority, r.weight) for r in forwards] == [
            (r.priority, r.weight) for r in backwards
        ]


def test_a_draw_is_from_0_to_the_sum_of_the_weights_that_are_left() -> None:
    drawn_from: list[int] = []

    def chance(most: int) -> int:
        drawn_from.append(most)
        return most

    ordered = in_order([record("a", 1, 2), record("b", 1, 3), record("c", 0, 7)], chance)

    assert [record("c", 0, 7), record("b", 1, 3), record("a", 1, 2)] == ordered
    assert [7, 5, 2] == drawn_from


@pytest.mark.parametrize(
    ("drawn", "first"), [(0, "zero"), (1, "one"), (2, "three"), (3, "three"), (4, "three")]
)
def test_the_first_running_sum_that_reaches_the_draw_is_chosen(drawn: int, first: str) -> None:
    group = [record("three", weight=3), record("one", weight=1), record("zero")]
    draws = iter([drawn, 0, 0])

    assert f"{first}.example" == in_order(group, lambda _: next(draws))[0].target


def test_shares_are_those_of_the_weights() -> None:
    group = [record("a", weight=100), record("b", weight=300), record("c", weight=600)]
    tries = first_tries(group)

    for each in group:
        assert each.weight / 1000 == pytest.approx(tries[each] / 20_000, abs=0.015)


def test_weight_0_has_a_small_share_beside_other_weights() -> None:
    zero, ten = record("zero"), record("ten", weight=10)
    tries = first_tries([ten, zero])

    # One draw of the eleven from 0 to 10.
    assert 1 / 11 == pytest.approx(tries[zero] / 20_000, abs=0.01)


def test_a_greater_weight_is_of_no_use_at_a_higher_priority() -> None:
    first, second = record("first", 1, 0), record("second", 2, 65_535)

    assert {first: 1000} == first_tries([second, first], times=1000)


@pytest.mark.parametrize("chance", [lowest, highest])
def test_where_no_record_has_a_weight_there_is_nothing_to_choose(
    chance: Callable[[int], int],
) -> None:
    group = [record("a"), record("b"), record("c")]

    assert group == in_order(group, chance)
