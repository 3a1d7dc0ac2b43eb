"""What a homeserver was told comes in order: counted things first, then what holds for ever."""

from __future__ import annotations

import pytest

from invite_client.testing.script import Script


def test_what_is_counted_comes_in_order_and_ends() -> None:
    script: Script[str] = Script()
    script.tell("a", None, 2)
    script.tell("b", None, 1)

    assert ["a", "a", "b", None] == [script.next("v2") for _ in range(4)]


def test_what_holds_for_ever_comes_after_what_is_counted() -> None:
    script: Script[str] = Script()
    script.tell("for ever", None, None)
    script.tell("once", None, 1)

    assert ["once", "for ever", "for ever"] == [script.next("v1") for _ in range(3)]


def test_of_two_things_for_ever_the_later_holds() -> None:
    script: Script[str] = Script()
    script.tell("any", None, None)
    script.tell("v2", "v2", None)

    assert ("v2", "any") == (script.next("v2"), script.next("v1"))


def test_what_is_for_an_invite_is_not_spent_on_the_keys_beside_it() -> None:
    script: Script[str] = Script()
    script.tell("once", None, 1)

    assert (None, None, "once") == (script.next("keys"), script.next("version"), script.next("v2"))


def test_what_is_for_one_endpoint_concerns_no_other() -> None:
    script: Script[str] = Script()
    script.tell("keys", "keys", 1)

    assert (None, "keys", None) == (script.next("v2"), script.next("keys"), script.next("keys"))


@pytest.mark.parametrize("times", [0, -1])
def test_less_than_once_is_refused(times: int) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        Script[str]().tell("never", None, times)


def test_everything_can_be_forgotten() -> None:
    script: Script[str] = Script()
    script.tell("once", None, 1)
    script.tell("for ever", None, None)
    script.clear()

    assert script.next("v2") is None
