"""Keys are believed if they are the server's own, all current ones signed, and for 7 days."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.errors import MalformedReplyError, Stage
from invite_client.spec import canonical_json
from invite_client.spec.http import Reply
from invite_client.spec.server_keys import ServerKeys, read_server_keys
from invite_client.spec.signatures import SigningKey, sign_json

NAME = "remote.example"
NOW = 1_700_000_000_000
DAY = 24 * 3600 * 1000
KEY = SigningKey.generate("a_1")
SECOND = SigningKey.generate("a_2")
OLD = SigningKey.generate("old")


def response(*signers: SigningKey, **changes: Any) -> dict[str, Any]:
    body = {
        "server_name": NAME,
        "verify_keys": {KEY.key_id: {"key": KEY.verify_key.base64}},
        "old_verify_keys": {OLD.key_id: {"key": OLD.verify_key.base64, "expired_ts": NOW - DAY}},
        "valid_until_ts": NOW + DAY,
        **changes,
    }
    for signer in signers or (KEY,):
        body = sign_json(body, NAME, signer)
    return body


def read(body: Any, status: int = 200) -> ServerKeys:
    data = body if isinstance(body, bytes) else canonical_json.encode(body)
    return read_server_keys(
        Reply(status, data), NAME, fetched_at=NOW, maximum_validity=7 * DAY / 1000
    )


def refusal(body: Any, status: int = 200) -> str:
    with pytest.raises(MalformedReplyError) as caught:
        read(body, status)
    assert Stage.KEYS == caught.value.stage
    assert NAME == caught.value.destination
    return str(caught.value)


def test_current_and_old_keys_are_read() -> None:
    keys = read(response())

    assert {KEY.key_id, OLD.key_id} == keys.keys.keys()
    assert KEY.verify_key == keys.verify_key(KEY.key_id, NOW)
    assert keys.verify_key("ed25519:unknown", NOW) is None


def test_a_current_key_is_valid_until_it_says_so() -> None:
    keys = read(response())

    assert keys.verify_key(KEY.key_id, NOW + DAY)
    assert keys.verify_key(KEY.key_id, NOW + DAY + 1) is None


def test_no_key_is_valid_for_longer_than_7_days_from_the_fetch() -> None:
    keys = read(response(valid_until_ts=NOW + 1000 * DAY))

    assert NOW + 7 * DAY == keys.valid_until_ts
    assert keys.verify_key(KEY.key_id, NOW + 7 * DAY + 1) is None


def test_an_old_key_is_valid_up_to_its_expiry() -> None:
    keys = read(response())

    assert keys.verify_key(OLD.key_id, NOW - DAY)
    assert keys.verify_key(OLD.key_id, NOW - DAY + 1) is None


def test_validity_is_ignored_where_the_room_version_ignores_it() -> None:
    keys = read(response(valid_until_ts=0))

    assert keys.verify_key(KEY.key_id, None)
    assert keys.verify_key(OLD.key_id, None)


def test_a_key_that_is_old_and_current_is_current() -> None:
    again = {KEY.key_id: {"key": KEY.verify_key.base64, "expired_ts": 1}}

    assert read(response(old_verify_keys=again)).verify_key(KEY.key_id, NOW)


def test_every_current_key_must_have_signed() -> None:
    both = {k.key_id: {"key": k.verify_key.base64} for k in (KEY, SECOND)}

    assert "not signed with ed25519:a_2" in refusal(response(KEY, verify_keys=both))
    assert read(response(KEY, SECOND, verify_keys=both)).verify_key(SECOND.key_id, NOW)


def test_keys_signed_by_another_are_refused() -> None:
    impostor = SigningKey.generate("a_1")

    assert "not signed" in refusal(response(impostor))


def test_another_servers_keys_are_refused() -> None:
    assert "'other.example'" in refusal(response(server_name="other.example"))


def test_base64_may_be_padded() -> None:
    padded = {KEY.key_id: {"key": KEY.verify_key.base64 + "="}}

    assert read(response(verify_keys=padded)).verify_key(KEY.key_id, NOW)


@pytest.mark.parametrize("key_id", ["ed25519:a-1", "ed25519:", "ed25519", "rsa:1", ":", ""])
def test_keys_that_nobody_can_use_are_left_out(key_id: str) -> None:
    keys = {KEY.key_id: {"key": KEY.verify_key.base64}, key_id: {"key": SECOND.verify_key.base64}}

    assert key_id not in read(response(verify_keys=keys)).keys
    assert "no usable" in refusal(response(verify_keys={key_id: {"key": KEY.verify_key.base64}}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"valid_until_ts": "1"}, "`valid_until_ts`"),
        ({"valid_until_ts": True}, "`valid_until_ts`"),
        ({"verify_keys": []}, "`verify_keys` is not an object"),
        ({"verify_keys": {}}, "no usable"),
        ({"verify_keys": {"ed25519:1": None}}, "without a `key`"),
        ({"verify_keys": {"ed25519:1": {"key": 1}}}, "without a `key`"),
        ({"old_verify_keys": "x"}, "`old_verify_keys` is not an object"),
        ({"old_verify_keys": {OLD.key_id: {"key": OLD.verify_key.base64}}}, "`expired_ts`"),
    ],
)
def test_a_malformed_response_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(response(**changes))


@pytest.mark.parametrize("status", [201, 301, 404, 500])
def test_only_200_is_an_answer(status: int) -> None:
    assert str(status) in refusal(response(), status)


@given(st.binary() | st.sampled_from([b"[]", b"null", b"{}", b'{"server_name":1}']))
def test_any_bytes_are_keys_or_an_error_of_ours(body: bytes) -> None:
    assert refusal(body)
