"""Each room version differs from the one before in what the specification says, and in no more."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
from typing import Any

import pytest

from invite_client.errors import InvalidInviteError
from invite_client.spec.room_versions import ROOM_VERSIONS, EventIdFormat, room_version

NUMBERS = [str(number) for number in range(1, 13)]


@pytest.mark.parametrize(
    "identifier",
    ["0", "13", "", " 1", "1 ", "01", "١", "org.example.1", 1, 1.0, True, None, [], {}],
)
def test_an_unknown_room_version_is_refused_by_name(identifier: object) -> None:
    with pytest.raises(InvalidInviteError, match=r"^room_version: ") as caught:
        room_version(identifier)

    assert "room_version" == caught.value.field


def test_a_refusal_quotes_little_of_what_it_refuses() -> None:
    with pytest.raises(InvalidInviteError) as caught:
        room_version("x" * 100_000)

    assert len(str(caught.value)) < 200


def test_all_stable_room_versions_are_known() -> None:
    assert NUMBERS == list(ROOM_VERSIONS)
    for identifier in NUMBERS:
        assert identifier == str(room_version(identifier)) == room_version(identifier).identifier


@pytest.mark.parametrize(
    ("trait", "value", "versions"),
    [
        ("event_id_format", EventIdFormat.IN_EVENT, {"1", "2"}),
        ("event_id_format", EventIdFormat.REFERENCE_HASH, {"3"}),
        ("event_id_format", EventIdFormat.REFERENCE_HASH_URL_SAFE, set(NUMBERS[3:])),
        ("event_references_have_hashes", True, {"1", "2"}),
        ("v1_invite_fallback", True, {"1", "2"}),
        ("enforce_key_validity", True, set(NUMBERS[4:])),
        ("strict_canonical_json", True, set(NUMBERS[5:])),
        ("room_id_is_create_event_id", True, {"12"}),
        ("requires_create_in_invite_state", True, {"12"}),
    ],
)
def test_a_trait_holds_for_these_versions(trait: str, value: Any, versions: set[str]) -> None:
    having = {name for name, rules in ROOM_VERSIONS.items() if getattr(rules, trait) == value}

    assert versions == having


def test_redaction_changed_in_versions_6_8_9_and_11() -> None:
    changed = [
        after
        for before, after in itertools.pairwise(NUMBERS)
        if ROOM_VERSIONS[before].redaction != ROOM_VERSIONS[after].redaction
    ]

    assert ["6", "8", "9", "11"] == changed


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=ROOM_VERSIONS)
def test_a_room_version_is_a_value(version: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        version.identifier = "x"

    assert version == pickle.loads(pickle.dumps(version)) == copy.deepcopy(version)
