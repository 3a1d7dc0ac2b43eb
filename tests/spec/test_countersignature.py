"""Only our event, signed by the invited user's server with a key that it publishes, is accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.errors import CountersignatureError, CountersignatureProblem, InviteError
from invite_client.spec import canonical_json, countersignature, events
from invite_client.spec.invites import Invite
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.server_keys import PublishedKey, ServerKeys
from invite_client.spec.signatures import SigningKey, sign_json

INVITED = "remote.example"
MakeInvite = Callable[..., Invite]
Problem = CountersignatureProblem


def countersign(invite: Invite, key: SigningKey, server: str = INVITED) -> dict[str, Any]:
    """What an honest server does."""
    event = invite.copy_event()
    event["signatures"].setdefault(server, {})[key.key_id] = key.sign(invite.signing_json)
    return event


def judge(invite: Invite, returned: dict[str, Any], keys: ServerKeys) -> dict[str, Any]:
    countersignature.key_ids(invite, returned)
    return countersignature.merge(invite, countersignature.verify(invite, returned, keys))


def problem(invite: Invite, returned: dict[str, Any], keys: ServerKeys) -> Problem:
    with pytest.raises(CountersignatureError) as caught:
        judge(invite, returned, keys)
    return caught.value.problem


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_an_honest_countersignature_is_accepted(
    version: str, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
) -> None:
    invite = make_invite(version, reason="come in")
    returned = countersign(invite, their_key)

    assert (their_key.key_id,) == countersignature.key_ids(invite, returned)
    assert returned == judge(invite, returned, their_keys)


class TestTheEvent:
    @pytest.mark.parametrize("version", ["1", "5", "6", "10", "12"])
    def test_may_differ_in_no_field(
        self,
        version: str,
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite(version)
        for name in {*invite.event, "surplus"} - {"signatures", "unsigned"}:
            returned = countersign(invite, their_key)
            returned[name] = "changed"
            with pytest.raises(CountersignatureError) as caught:
                judge(invite, returned, their_keys)

            assert Problem.EVENT_CHANGED == caught.value.problem
            assert (name,) == caught.value.fields
            assert name in str(caught.value)

    def test_may_lack_no_field(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        for name in set(invite.event) - {"signatures"}:
            returned = countersign(invite, their_key)
            del returned[name]
            with pytest.raises(CountersignatureError) as caught:
                judge(invite, returned, their_keys)

            assert (name,) == caught.value.fields

    @pytest.mark.parametrize("other", [2.0, True, 2**60, float("nan"), "\ud800", {1: 2}, object()])
    def test_is_compared_as_bytes_and_not_as_python_values(
        self,
        other: object,
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite("3")
        returned = countersign(invite, their_key) | {"depth": other}

        assert 2 == invite.event["depth"]
        assert Problem.EVENT_CHANGED == problem(invite, returned, their_keys)

    def test_may_not_be_another_that_we_once_signed(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite, other = make_invite(), make_invite(reason="other")

        assert Problem.EVENT_CHANGED == problem(invite, countersign(other, their_key), their_keys)

    @given(data=st.data())
    def test_with_one_bit_changed_is_refused_or_not_what_we_keep(
        self,
        data: st.DataObject,
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite("10", displayname="Bob")
        honest = countersign(invite, their_key)
        whole = bytearray(canonical_json.encode(honest))
        bit = data.draw(st.integers(0, len(whole) * 8 - 1))
        whole[bit // 8] ^= 1 << bit % 8
        try:
            returned = canonical_json.decode(bytes(whole), strict=False)
        except canonical_json.CanonicalJsonError:
            return
        try:
            merged = judge(invite, returned, their_keys)
        except InviteError:
            return

        # The change was in a place that is not believed: our signature, or a padding bit.
        assert {**honest, "signatures": None} == {**merged, "signatures": None}
        assert invite.event["signatures"].items() <= merged["signatures"].items()
        assert merged["signatures"].keys() == {"inviter.example", INVITED}

    def test_keeps_our_unsigned(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = countersign(invite, their_key) | {"unsigned": {"age": 1, "lie": 1.5}}

        assert "unsigned" not in judge(invite, returned, their_keys)


class TestTheSignatures:
    def test_must_be_there(self, make_invite: MakeInvite, their_keys: ServerKeys) -> None:
        invite = make_invite()
        returned = invite.copy_event()

        assert Problem.NOT_SIGNED == problem(invite, returned, their_keys)
        assert Problem.NOT_SIGNED == problem(invite, returned | {"signatures": {}}, their_keys)
        del returned["signatures"]
        assert Problem.NOT_SIGNED == problem(invite, returned, their_keys)

    def test_must_be_by_the_invited_server(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = countersign(invite, their_key, server="other.example")

        assert Problem.NOT_SIGNED == problem(invite, returned, their_keys)

    @pytest.mark.parametrize("bad", ["", "A", "A" * 86, "!" * 86, "\ud800", "A" * 10_000])
    def test_must_verify(
        self,
        bad: str,
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite()
        returned = countersign(invite, their_key)
        returned["signatures"][INVITED][their_key.key_id] = bad

        assert Problem.SIGNATURE_INVALID == problem(invite, returned, their_keys)

    def test_must_all_verify_that_are_by_known_keys(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        second = SigningKey.generate("second")
        keys = replace(
            their_keys,
            keys={**their_keys.keys, second.key_id: PublishedKey(second.verify_key, 2**50)},
        )
        invite = make_invite()
        returned = countersign(invite, their_key)
        returned["signatures"][INVITED][second.key_id] = their_key.sign(invite.signing_json)

        assert Problem.SIGNATURE_INVALID == problem(invite, returned, keys)

    def test_must_be_over_the_redacted_event(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite(reason="is redacted")
        returned = sign_json(invite.copy_event(), INVITED, their_key)

        assert Problem.SIGNATURE_INVALID == problem(invite, returned, their_keys)

    def test_must_be_by_a_published_key(
        self, make_invite: MakeInvite, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = countersign(invite, SigningKey.generate("unpublished"))

        assert Problem.KEY_NOT_PUBLISHED == problem(invite, returned, their_keys)

    def test_must_be_by_the_published_key_and_not_another_of_its_name(
        self, make_invite: MakeInvite, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = countersign(invite, SigningKey.generate("theirs"))

        assert Problem.SIGNATURE_INVALID == problem(invite, returned, their_keys)

    @pytest.mark.parametrize(
        ("version", "expected"),
        [(v, None if v in {"1", "2", "3", "4"} else Problem.KEY_EXPIRED) for v in ROOM_VERSIONS],
    )
    def test_must_be_by_a_key_that_was_valid_then_from_room_version_5_on(
        self,
        version: str,
        expected: Problem | None,
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite(version)
        expired = PublishedKey(their_key.verify_key, invite.origin_server_ts - 1, old=True)
        keys = replace(their_keys, keys={their_key.key_id: expired})
        returned = countersign(invite, their_key)

        if expected is None:
            assert returned == judge(invite, returned, keys)
        else:
            assert expected == problem(invite, returned, keys)

    def test_by_unknown_keys_are_skipped_beside_a_good_one(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = countersign(invite, their_key)
        returned["signatures"][INVITED]["ed25519:policy_server"] = "unknown"

        verified = countersignature.verify(invite, returned, their_keys)

        assert {their_key.key_id} == verified.keys()

    @pytest.mark.parametrize("malformed", [None, [], "x", 1, True])
    def test_that_are_malformed_are_refused(
        self, malformed: object, make_invite: MakeInvite, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = invite.copy_event()

        for bad in (malformed, {INVITED: malformed}, {INVITED: {"ed25519:theirs": malformed}}):
            if bad == {INVITED: {"ed25519:theirs": "x"}}:
                continue  # A string is of the right form; it is refused as a bad signature.
            found = problem(invite, returned | {"signatures": bad}, their_keys)
            assert Problem.SIGNATURES_MALFORMED == found

    def test_of_others_and_under_our_name_are_dropped(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        honest = countersign(invite, their_key)
        returned = countersign(invite, their_key)
        returned["signatures"]["inviter.example"] = {"ed25519:ours": "junk", "ed25519:x": []}
        returned["signatures"]["other.example"] = ["junk"]

        assert honest == judge(invite, returned, their_keys)

    @given(
        signatures=st.recursive(
            st.none() | st.booleans() | st.integers() | st.text() | st.just(INVITED),
            lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just(INVITED), inner),
        )
    )
    def test_in_any_form_are_refused_by_name(
        self, signatures: object, make_invite: MakeInvite, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = invite.copy_event() | {"signatures": signatures}

        assert isinstance(problem(invite, returned, their_keys), Problem)


def test_an_event_that_its_countersignature_makes_too_large_is_refused(
    make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
) -> None:
    size = len(make_invite(reason="").event_json)
    invite = make_invite(reason="x" * (events.MAX_EVENT_BYTES - size))

    assert events.MAX_EVENT_BYTES == len(invite.event_json)
    returned = countersign(invite, their_key)
    assert Problem.TOO_LARGE == problem(invite, returned, their_keys)
