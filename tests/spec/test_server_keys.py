"""Keys are believed if they are the server's own, all current ones signed, and for 7 days."""

from __future__ import annotations

import json
from collections.abc import Collection
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.errors import MalformedReplyError, Stage
from invite_client.spec import canonical_json, server_keys
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_keys import (
    SERVER_KEYS_REQUEST,
    ServerKeys,
    check_server_keys,
    notary_request,
    read_notary_reply,
    read_server_keys,
)
from invite_client.spec.signatures import SigningKey, VerifyKey, sign_json

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


def test_anybody_may_ask_for_them() -> None:
    expected = Request("GET", "/_matrix/key/v2/server", None, None, "GET server keys")

    assert expected == SERVER_KEYS_REQUEST


def test_current_and_old_keys_are_read() -> None:
    keys = read(response())

    assert {KEY.key_id: False, OLD.key_id: True} == {k: key.old for k, key in keys.keys.items()}
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


def test_an_old_key_is_not_valid_for_longer_than_7_days_from_the_fetch_either() -> None:
    future = {OLD.key_id: {"key": OLD.verify_key.base64, "expired_ts": NOW + 1000 * DAY}}
    keys = read(response(old_verify_keys=future))

    assert keys.verify_key(OLD.key_id, NOW + 7 * DAY)
    assert keys.verify_key(OLD.key_id, NOW + 7 * DAY + 1) is None


@pytest.mark.parametrize("timestamp", [0, -1, -(2**53) + 1])
def test_a_time_long_ago_is_a_time(timestamp: int) -> None:
    old = {OLD.key_id: {"key": OLD.verify_key.base64, "expired_ts": timestamp}}
    keys = read(response(valid_until_ts=timestamp, old_verify_keys=old))

    assert timestamp == keys.valid_until_ts
    assert keys.verify_key(KEY.key_id, NOW) is keys.verify_key(OLD.key_id, NOW) is None


def test_validity_is_ignored_where_the_room_version_ignores_it() -> None:
    keys = read(response(valid_until_ts=0))

    assert keys.verify_key(KEY.key_id, None)
    assert keys.verify_key(OLD.key_id, None)


def test_a_key_that_is_old_and_current_is_current() -> None:
    again = {KEY.key_id: {"key": KEY.verify_key.base64, "expired_ts": 1}}

    key = read(response(old_verify_keys=again)).keys[KEY.key_id]
    assert (False, True) == (key.old, key.was_valid_at(NOW))


def test_every_current_key_must_have_signed() -> None:
    both = {k.key_id: {"key": k.verify_key.base64} for k in (KEY, SECOND)}

    assert "not signed with ed25519:a_2" in refusal(response(KEY, verify_keys=both))
    assert read(response(KEY, SECOND, verify_keys=both)).verify_key(SECOND.key_id, NOW)


def test_what_is_signed_is_encoded_once_however_many_keys_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Else 200 KiB of keys hold the process for half a minute, which no deadline can end.
    body = response(
        KEY,
        SECOND,
        verify_keys={key.key_id: {"key": key.verify_key.base64} for key in (KEY, SECOND)},
    )
    encoded: list[object] = []
    encode = canonical_json.encode
    monkeypatch.setattr(canonical_json, "encode", lambda v: encoded.append(v) or encode(v))
    check_server_keys(body, NAME, fetched_at=NOW, maximum_validity=7 * DAY / 1000)

    assert 1 == len(encoded)


def test_of_more_current_keys_than_any_server_has_no_signature_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [SigningKey.generate(f"a_{number}") for number in range(21)]

    def published(count: int) -> dict[str, Any]:
        listed = {key.key_id: {"key": key.verify_key.base64} for key in keys[:count]}
        return response(*keys[:count], verify_keys=listed)

    assert 20 + 1 == len(read(published(20)).keys)  # and an old one
    too_many = published(21)
    monkeypatch.setattr(server_keys, "missing_signatures", None)
    assert "`verify_keys` has 21 ed25519 keys, 20 are read" in refusal(too_many)


def test_keys_signed_by_another_are_refused() -> None:
    impostor = SigningKey.generate("a_1")

    assert "not signed" in refusal(response(impostor))


def test_keys_signed_in_the_name_of_another_are_refused() -> None:
    body = response()
    signatures = body.pop("signatures")[NAME]

    assert "not signed" in refusal({**body, "signatures": {"other.example": signatures}})


@pytest.mark.parametrize("body", [b'"x": 1.5', b'"x": 9007199254740992', b'"x": 1, "x": 2'])
def test_what_is_not_canonical_json_is_refused(body: bytes) -> None:
    signed = canonical_json.encode(response())

    assert "not canonical JSON" in refusal(signed[:-1] + b", " + body + b"}")
    answer = b'{"server_keys": [' + canonical_json.encode(attested(response())) + b"], "
    assert "not canonical JSON" in refusal_of_notary(answer + body + b"}")


def test_another_servers_keys_are_refused() -> None:
    assert "'other.example'" in refusal(response(server_name="other.example"))


def test_base64_may_be_padded() -> None:
    padded = {KEY.key_id: {"key": KEY.verify_key.base64 + "="}}

    assert read(response(verify_keys=padded)).verify_key(KEY.key_id, NOW)


@pytest.mark.parametrize("entry", [{"key": SECOND.verify_key.base64}, {"n": 1}, None, "x", []])
@pytest.mark.parametrize("key_id", ["ed25519:a-1", "ed25519:", "ed25519", "rsa:1", ":", ""])
def test_keys_of_other_algorithms_are_left_out_whatever_their_form(
    key_id: str, entry: object
) -> None:
    keys = {KEY.key_id: {"key": KEY.verify_key.base64}, key_id: entry}

    assert key_id not in read(response(verify_keys=keys)).keys
    assert key_id not in read(response(old_verify_keys={key_id: entry})).keys
    assert "no usable" in refusal(response(verify_keys={key_id: entry}))


@pytest.mark.parametrize("text", ["", "AAAA", "!" * 43, "\u00e9" * 43])
def test_keys_that_nobody_can_use_are_left_out(text: str) -> None:
    keys = {KEY.key_id: {"key": KEY.verify_key.base64}, "ed25519:bad": {"key": text}}

    assert {KEY.key_id, OLD.key_id} == read(response(verify_keys=keys)).keys.keys()
    keys["ed25519:0_bad"] = keys.pop("ed25519:bad")  # before the others, in canonical JSON
    assert {KEY.key_id, OLD.key_id} == read(response(verify_keys=keys)).keys.keys()
    assert "no usable" in refusal(response(verify_keys={"ed25519:bad": {"key": text}}))


def test_a_key_that_anybody_could_sign_for_spoils_the_response() -> None:
    anybody = {"ed25519:0": {"key": "A" * 43}, KEY.key_id: {"key": KEY.verify_key.base64}}

    assert "not signed with ed25519:0" in refusal(response(verify_keys=anybody))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"valid_until_ts": "1"}, "`valid_until_ts`"),
        ({"valid_until_ts": True}, "`valid_until_ts`"),
        ({"valid_until_ts": None}, "`valid_until_ts`"),
        ({"old_verify_keys": {OLD.key_id: {"key": 1, "expired_ts": 1}}}, "has no `key`"),
        (
            {"old_verify_keys": {OLD.key_id: {"key": OLD.verify_key.base64, "expired_ts": True}}},
            "`expired_ts`",
        ),
        ({"verify_keys": []}, "`verify_keys` is not an object"),
        ({"verify_keys": {}}, "no usable"),
        ({"verify_keys": {"ed25519:1": None}}, "`verify_keys` has no `key` in 'ed25519:1'"),
        ({"verify_keys": {"ed25519:1": {"key": 1}}}, "`verify_keys` has no `key` in 'ed25519:1'"),
        ({"old_verify_keys": "x"}, "`old_verify_keys` is not an object"),
        ({"old_verify_keys": {OLD.key_id: {"key": OLD.verify_key.base64}}}, "`expired_ts`"),
    ],
)
def test_a_malformed_response_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(response(**changes))


@pytest.mark.parametrize("status", [201, 301, 404, 500])
def test_only_200_is_an_answer(status: int) -> None:
    assert str(status) in refusal(response(), status)


@pytest.mark.parametrize("from_notary", [False, True])
@pytest.mark.parametrize(
    ("status", "header", "retryable", "wait"),
    [
        (404, {"retry-after": "7"}, False, None),
        (429, {"retry-after": "7"}, True, 7.0),
        (500, {}, True, None),
        (503, {"retry-after": formatdate(NOW / 1000 + 9, usegmt=True)}, True, 9.0),
    ],
)
def test_a_status_that_passes_is_worth_another_try(
    status: int, header: dict[str, str], retryable: bool, wait: float | None, from_notary: bool
) -> None:
    reply = Reply(status, b"", header)
    with pytest.raises(MalformedReplyError) as caught:
        if from_notary:
            read_notary_reply(
                reply, NAME, notary="n", notary_keys=(), fetched_at=NOW, maximum_validity=1
            )
        else:
            read_server_keys(reply, NAME, fetched_at=NOW, maximum_validity=1)

    assert retryable == caught.value.retryable
    assert wait == (caught.value.retry_after and round(caught.value.retry_after))


@given(st.binary() | st.sampled_from([b"[]", b"null", b"{}", b'{"server_name":1}']))
def test_any_bytes_are_keys_or_an_error_of_ours(body: bytes) -> None:
    assert refusal(body)


def test_what_the_remote_wrote_is_quoted_on_one_line_and_cut_short() -> None:
    for changes in (
        {"server_name": "x\n" * 10_000},
        {"verify_keys": {"ed25519:" + "x" * 10**5: 1}},
    ):
        words = refusal(response(**changes))

        assert words.isprintable()
        assert len(words) < 300


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values, st.sampled_from(["", *response()]), json_values)
def test_any_value_is_keys_or_an_error_of_ours(whole: object, name: str, part: object) -> None:
    """Also from a store, where what is decoded need not be canonical JSON."""
    for value in (whole, response() | {name: part}):
        try:
            keys = check_server_keys(value, NAME, fetched_at=NOW, maximum_validity=7 * DAY / 1000)
        except MalformedReplyError as error:
            assert Stage.KEYS == error.stage
        else:
            assert KEY.verify_key == keys.keys[KEY.key_id].key


# --- Notaries -----------------------------------------------------------------------------------

NOTARY = "notary.example"
PINNED = SigningKey.generate("notary")


def attested(body: dict[str, Any], key: SigningKey = PINNED) -> dict[str, Any]:
    return sign_json(body, NOTARY, key)


def read_from_notary(
    answer: Any, pinned: Collection[VerifyKey] = (PINNED.verify_key,), status: int = 200
) -> ServerKeys:
    return read_notary_reply(
        Reply(status, answer if isinstance(answer, bytes) else json.dumps(answer).encode()),
        NAME,
        notary=NOTARY,
        notary_keys=pinned,
        fetched_at=NOW,
        maximum_validity=7 * DAY / 1000,
    )


def refusal_of_notary(answer: Any, status: int = 200) -> str:
    with pytest.raises(MalformedReplyError) as caught:
        read_from_notary(answer, status=status)
    assert Stage.KEYS == caught.value.stage
    assert NAME == caught.value.destination
    return str(caught.value)


def test_a_notary_is_asked_for_keys_that_are_valid_for_long_enough() -> None:
    request = notary_request(NAME, ["ed25519:a", "ed25519:b"], minimum_valid_until=NOW)

    assert ("POST", "/_matrix/key/v2/query") == (request.method, request.uri)
    assert request.authorization is None
    asked = {"minimum_valid_until_ts": NOW}
    assert {"server_keys": {NAME: {"ed25519:a": asked, "ed25519:b": asked}}} == json.loads(
        request.body or b""
    )


def test_a_notary_is_asked_for_all_keys_where_none_is_known() -> None:
    request = notary_request(NAME, (), minimum_valid_until=NOW)

    assert b'{"server_keys":{"remote.example":{}}}' == request.body


def test_what_both_have_signed_is_believed() -> None:
    keys = read_from_notary({"server_keys": [attested(response())]})

    assert KEY.verify_key == keys.verify_key(KEY.key_id, NOW)
    assert NAME == keys.server_name


def test_a_notary_without_a_pinned_key_is_believed_by_its_certificate() -> None:
    assert NAME == read_from_notary({"server_keys": [response()]}, pinned=()).server_name


def test_one_pinned_key_of_several_is_enough() -> None:
    other = SigningKey.generate("other")
    pinned = (other.verify_key, PINNED.verify_key)

    assert NAME == read_from_notary({"server_keys": [attested(response())]}, pinned).server_name


@pytest.mark.parametrize(
    "answer",
    [
        response(),
        attested(response(), SigningKey.generate("notary")),
        attested(response(), SigningKey.generate("unpinned")),
        attested(response()) | {"valid_until_ts": NOW + 2 * DAY},
    ],
)
def test_what_the_notary_has_not_signed_is_refused(answer: dict[str, Any]) -> None:
    assert "has not signed with a pinned key" in refusal_of_notary({"server_keys": [answer]})


def test_what_the_server_itself_has_not_signed_is_refused() -> None:
    forged = attested(response(SigningKey.generate("a_1")))

    assert "are not signed with ed25519:a_1" in refusal_of_notary({"server_keys": [forged]})


def test_of_several_answers_the_newest_good_one_counts() -> None:
    older = attested(response(valid_until_ts=NOW + 9 * DAY))
    both = {k.key_id: {"key": k.verify_key.base64} for k in (KEY, SECOND)}
    newer = attested(response(KEY, SECOND, verify_keys=both, valid_until_ts=NOW + 10 * DAY))
    unattested = response(valid_until_ts=NOW + 11 * DAY)
    forged = attested(response(SigningKey.generate("a_1"), valid_until_ts=NOW + 12 * DAY))
    others = attested(response(server_name="other.example"))
    for answers in ([older, newer], [newer, older]):
        keys = read_from_notary({"server_keys": [unattested, forged, others, 1, *answers]})

        assert keys.verify_key(SECOND.key_id, NOW)
        assert NOW + 7 * DAY == keys.valid_until_ts


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "the notary's answer is not canonical JSON"),
        (b"[" * 100_000, "the notary's answer is not canonical JSON"),
        ([], "sent no list of server keys"),
        ({}, "sent no list of server keys"),
        ({"server_keys": {}}, "sent no list of server keys"),
        ({"server_keys": []}, "knows no keys of the server"),
        ({"server_keys": [None, [], {}, "x"]}, "knows no keys of the server"),
        ({"server_keys": [attested(response(server_name="x"))]}, "knows no keys of the server"),
    ],
)
def test_a_malformed_answer_of_a_notary_is_refused(answer: Any, words: str) -> None:
    assert words in refusal_of_notary(answer)


@pytest.mark.parametrize("status", [201, 301, 404, 500])
def test_only_200_is_an_answer_of_a_notary(status: int) -> None:
    assert f"answered {status}" in refusal_of_notary({"server_keys": []}, status)


@given(
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | json_values.map(
        lambda value: json.dumps(
            {"server_keys": [value, {"server_name": NAME, "signatures": value}]}
        ).encode()
    )
)
def test_any_bytes_of_a_notary_are_an_error_of_ours(body: bytes) -> None:
    assert refusal_of_notary(body)
