"""What is signed is what the specification says; what is not signed so does not verify."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import pickle
from typing import Any

import pytest
import signedjson.key
import signedjson.sign
from hypothesis import given
from hypothesis import strategies as st

from invite_client.spec import events
from invite_client.spec.base64 import decode_base64, encode_unpadded
from invite_client.spec.canonical_json import CanonicalJsonError, encode
from invite_client.spec.room_versions import ROOM_VERSIONS, V1, V10, RoomVersion
from invite_client.spec.signatures import (
    SigningKey,
    VerifyKey,
    json_is_signed,
    sign_event,
    sign_json,
)

# Appendices § Cryptographic Test Vectors.
SEED = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"
NAME = "domain"
KEY = SigningKey.from_seed("1", SEED)
OTHER = SigningKey.from_seed("1", "A" * 43)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# --- Keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key_id",
    [
        "",
        "ed25519",
        "ed25519:",
        "ed25519:a-b",
        "ed25519:a b",
        "ed25519:a\n",
        "ed25519:é",
        "curve25519:a",
        "ED25519:a",
        "a",
        " ed25519:a",
        "ed25519:a:b",
        "ed25519:\ud800",
    ],
)
def test_a_key_id_outside_the_grammar_is_refused(key_id: str) -> None:
    with pytest.raises(ValueError, match="is not a key ID"):
        VerifyKey.from_base64(key_id, KEY.verify_key.base64)


@pytest.mark.parametrize("text", ["", "AAAA", "A" * 44, "A" * 86, "-" * 43, "!" * 43, "é" * 43])
def test_a_key_that_is_not_32_bytes_of_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        VerifyKey.from_base64("ed25519:a", text)


def test_a_published_key_may_be_padded() -> None:
    padded = VerifyKey.from_base64("ed25519:1", KEY.verify_key.base64 + "=")

    assert KEY.verify_key == padded
    assert hash(KEY.verify_key) == hash(padded)
    assert KEY.verify_key.base64 == padded.base64
    assert f"ed25519:1 {padded.base64}" == str(padded)


def test_keys_are_equal_if_id_and_key_are() -> None:
    renamed = VerifyKey.from_base64("ed25519:2", KEY.verify_key.base64)

    assert 3 == len({KEY.verify_key, renamed, OTHER.verify_key, copy.deepcopy(renamed)})
    assert KEY.verify_key == pickle.loads(pickle.dumps(KEY.verify_key))


@pytest.mark.parametrize("key", [KEY, KEY.verify_key])
def test_keys_do_not_change(key: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        key.key_id = "ed25519:other"


@pytest.mark.parametrize("version", ["", "a-b", "a b", "a\n", "é", "a:b", "../a"])
def test_a_version_outside_the_grammar_is_refused(version: str) -> None:
    for make in (SigningKey.generate, lambda v: SigningKey.from_seed(v, SEED)):
        with pytest.raises(ValueError, match="is not a key version"):
            make(version)


@pytest.mark.parametrize(
    "seed",
    [
        "",
        "AAAA",
        SEED + "AA",
        SEED[:20] + "!!" + SEED[20:],
        SEED[:20] + "\n" + SEED[20:],
        SEED.replace("+", "-"),
        "é" * 43,
        "A" * 86,
    ],
)
def test_a_seed_that_is_not_32_bytes_of_base64_is_refused_and_not_shown(seed: str) -> None:
    with pytest.raises(ValueError) as caught:
        SigningKey.from_seed("a", seed)

    error: BaseException | None = caught.value
    while error is not None:
        assert not seed or seed[:20] not in str(error)
        error = error.__cause__


def test_a_signing_key_never_shows_its_seed() -> None:
    shown = f"{KEY} {KEY!r} {[KEY]} {KEY.verify_key!r}"

    assert "ed25519:1" in shown
    assert SEED not in shown
    assert str(decode_base64(SEED)) not in shown
    for store in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(TypeError, match="is not pickled"):
            store(KEY)


def test_a_line_of_a_key_file_makes_the_same_key() -> None:
    key = SigningKey.generate("a_1")
    algorithm, version, seed = key.to_line().split(" ")

    assert ("ed25519", "a_1") == (algorithm, version)
    assert key.verify_key == SigningKey.from_seed(version, seed).verify_key

    # The last character of the specification's seed has bits to spare, which are set.
    expected = f"ed25519 1 {SEED[:-1]}0"
    assert expected == KEY.to_line() == SigningKey.from_seed("1", SEED + "=").to_line()


# --- Raw signatures -----------------------------------------------------------------------------

SIGNATURE = KEY.sign(b"data")


@pytest.mark.parametrize(
    "signature",
    [
        None,
        1,
        1.5,
        True,
        [],
        {},
        b"x",
        SIGNATURE.encode(),
        "",
        "A",
        "é",
        "\ud800",
        "A" * 86,
        SIGNATURE[:-2],
        SIGNATURE + "AA",
        SIGNATURE[:40] + "\n" + SIGNATURE[40:],
        SIGNATURE + " ",
        SIGNATURE + "===",
        OTHER.sign(b"data"),
        KEY.sign(b"date"),
    ],
)
def test_what_is_not_a_signature_does_not_verify(signature: object) -> None:
    assert not KEY.verify_key.verifies(b"data", signature)


def test_a_signature_verifies_padded_or_not() -> None:
    assert KEY.verify_key.verifies(b"data", SIGNATURE)
    assert KEY.verify_key.verifies(b"data", SIGNATURE + "==")


def test_a_signature_in_the_url_safe_alphabet_does_not_verify() -> None:
    data = next(bytes([n]) for n in range(256) if "+" in KEY.sign(bytes([n])))

    assert not KEY.verify_key.verifies(data, KEY.sign(data).replace("+", "-").replace("/", "_"))


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xff" * 32])
def test_a_key_that_anybody_could_sign_for_verifies_nothing(point: bytes) -> None:
    key = VerifyKey.from_base64("ed25519:a", encode_unpadded(point))

    assert not key.verifies(b"data", encode_unpadded(point + bytes(32)))
    assert not key.verifies(b"data", SIGNATURE)


@given(st.text(st.characters()) | st.binary(min_size=60, max_size=68).map(encode_unpadded))
def test_verifying_never_raises(signature: str) -> None:
    assert not KEY.verify_key.verifies(b"data", signature)


# --- Signed JSON --------------------------------------------------------------------------------


# Appendices § Cryptographic Test Vectors, JSON Signing.
@pytest.mark.parametrize(
    ("obj", "signature"),
    [
        (
            {},
            "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ",
        ),
        (
            {"one": 1, "two": "Two"},
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ],
)
def test_json_is_signed_as_in_the_specification(obj: dict[str, Any], signature: str) -> None:
    signed = sign_json(obj, NAME, KEY)

    assert {**obj, "signatures": {NAME: {"ed25519:1": signature}}} == signed
    assert json_is_signed(signed, NAME, KEY.verify_key)


def test_signing_adds_to_the_signatures_and_leaves_its_input_alone() -> None:
    obj = {"a": 1, "signatures": {NAME: {"ed25519:0": "x"}, "b": {"k": "y"}}, "unsigned": {"c": 2}}
    before = copy.deepcopy(obj)
    signed = sign_json(obj, NAME, KEY)

    assert before == obj
    assert {"a": 1, "unsigned": {"c": 2}} == {k: v for k, v in signed.items() if k != "signatures"}
    signature = sign_json({"a": 1}, NAME, KEY)["signatures"][NAME]["ed25519:1"]
    expected = {NAME: {"ed25519:0": "x", "ed25519:1": signature}, "b": {"k": "y"}}
    assert expected == signed["signatures"]


@pytest.mark.parametrize("value", [1.0, 2**53, "\ud800", (1,), b"x", {1: 1}, nested(5000)])
def test_only_canonical_json_is_signed(value: object) -> None:
    with pytest.raises(CanonicalJsonError):
        sign_json({"a": value}, NAME, KEY)


def test_whatever_the_depth_signing_and_checking_raise_nothing_else() -> None:
    signatures = {NAME: {"ed25519:1": SIGNATURE}}
    for depth in (*range(95, 105), *range(800, 1010)):  # Our bound, and the end of the stack.
        value = nested(depth)
        assert not json_is_signed({"a": value, "signatures": signatures}, NAME, KEY.verify_key)
        with contextlib.suppress(CanonicalJsonError):
            sign_json({"a": value}, NAME, KEY)


SIGNED = sign_json({"a": 1, "b": {"c": []}}, NAME, KEY)


@pytest.mark.parametrize(
    "signatures",
    [
        None,
        [],
        "x",
        1,
        {},
        {NAME: None},
        {NAME: []},
        {NAME: "ed25519:1"},
        {NAME: {}},
        *[{NAME: {"ed25519:1": value}} for value in (None, 1, [], "", "A" * 86, "é", SIGNATURE)],
        {NAME: {"ed25519:2": SIGNED["signatures"][NAME]["ed25519:1"]}},
        {"other": SIGNED["signatures"][NAME]},
    ],
)
def test_an_object_with_malformed_or_other_signatures_is_not_signed(signatures: Any) -> None:
    assert not json_is_signed({**SIGNED, "signatures": signatures}, NAME, KEY.verify_key)


@pytest.mark.parametrize(
    "change", [{"a": 2}, {"a": True}, {"a": 1.0}, {"b": {}}, {"d": 1}, {"d": "\ud800"}]
)
def test_a_changed_object_is_not_signed(change: dict[str, Any]) -> None:
    assert not json_is_signed({**SIGNED, **change}, NAME, KEY.verify_key)


@pytest.mark.parametrize("obj", [None, [], "x", 1, {}])
def test_what_is_no_signed_object_is_not_signed(obj: Any) -> None:
    assert not json_is_signed(obj, NAME, KEY.verify_key)


def test_floats_are_not_signed_json_whoever_signed_them() -> None:
    theirs = signedjson.key.decode_signing_key_base64("ed25519", "1", SEED)
    signed = signedjson.sign.sign_json({"a": 1.5}, NAME, theirs)

    assert not json_is_signed(signed, NAME, KEY.verify_key)


def test_another_key_of_the_same_id_did_not_sign() -> None:
    assert json_is_signed(SIGNED, NAME, KEY.verify_key)
    assert not json_is_signed(SIGNED, NAME, OTHER.verify_key)


def test_unsigned_and_others_signatures_are_not_covered() -> None:
    theirs = {**SIGNED["signatures"], "other": "junk"}

    assert json_is_signed({**SIGNED, "unsigned": 1, "signatures": theirs}, NAME, KEY.verify_key)


@given(json_values, json_values)
def test_checking_never_raises(signatures: Any, value: Any) -> None:
    for odd in (signatures, {NAME: signatures}, {NAME: {"ed25519:1": signatures}}):
        assert not json_is_signed({"a": value, "signatures": odd}, NAME, KEY.verify_key)


@given(st.dictionaries(text, json_values, max_size=4), text)
def test_what_was_signed_verifies(obj: dict[str, Any], name: str) -> None:
    obj = {k: v for k, v in obj.items() if k not in ("signatures", "unsigned")}
    signed = sign_json(obj, name, KEY)

    assert json_is_signed(signed, name, KEY.verify_key)
    assert KEY.verify_key.verifies(encode(obj), signed["signatures"][name]["ed25519:1"])
    assert not json_is_signed(signed, name + "x", KEY.verify_key)


# --- Signed events ------------------------------------------------------------------------------

# Appendices § Cryptographic Test Vectors, Event Signing.
MINIMAL = {
    "room_id": "!x:domain",
    "sender": "@a:domain",
    "origin": "domain",
    "origin_server_ts": 1000000,
    "signatures": {},
    "hashes": {},
    "type": "X",
    "content": {},
    "prev_events": [],
    "auth_events": [],
    "depth": 3,
    "unsigned": {"age_ts": 1000000},
}
REDACTABLE = {
    "content": {"body": "Here is the message content"},
    "event_id": "$0:domain",
    "origin": "domain",
    "origin_server_ts": 1000000,
    "type": "m.room.message",
    "room_id": "!r:domain",
    "sender": "@u:domain",
    "signatures": {},
    "unsigned": {"age_ts": 1000000},
}


@pytest.mark.parametrize(
    ("event", "sha256", "signature"),
    [
        (
            MINIMAL,
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        ),
        (
            REDACTABLE,
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ],
)
def test_events_are_signed_as_in_the_specification(
    event: dict[str, Any], sha256: str, signature: str
) -> None:
    before = copy.deepcopy(event)
    signed = sign_event(event, NAME, KEY, V1)

    expected = {"hashes": {"sha256": sha256}, "signatures": {NAME: {"ed25519:1": signature}}}
    assert {**event, **expected} == signed
    assert before == event


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=ROOM_VERSIONS)
def test_the_signature_is_over_the_redacted_event_with_its_hash(version: RoomVersion) -> None:
    event = {**REDACTABLE, "signatures": {"other": {"k": "x"}, NAME: {"ed25519:0": "y"}}}
    signed = sign_event(event, NAME, KEY, version)
    redacted = events.redact(signed, version)

    signature = signed["signatures"][NAME]["ed25519:1"]
    expected = {"other": {"k": "x"}, NAME: {"ed25519:0": "y", "ed25519:1": signature}}
    assert expected == signed["signatures"]
    assert KEY.verify_key.verifies(events.signing_bytes(signed, version), signature)
    assert json_is_signed(redacted, NAME, KEY.verify_key)
    assert not json_is_signed(signed, NAME, KEY.verify_key)
    assert events.content_hash(signed, version) == signed["hashes"]["sha256"]


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=ROOM_VERSIONS)
def test_events_of_old_rooms_are_signed_with_their_numbers(version: RoomVersion) -> None:
    event = {**MINIMAL, "depth": 2**60, "content": {"x": 1.5}}
    if version.strict_canonical_json:
        with pytest.raises(CanonicalJsonError):
            sign_event(event, NAME, KEY, version)
    else:
        signed = sign_event(event, NAME, KEY, version)
        signature = signed["signatures"][NAME]["ed25519:1"]
        assert KEY.verify_key.verifies(events.signing_bytes(signed, version), signature)


def test_an_event_that_is_no_json_is_not_signed() -> None:
    with pytest.raises(CanonicalJsonError):
        sign_event({**MINIMAL, "content": {"x": object()}}, NAME, KEY, V10)
