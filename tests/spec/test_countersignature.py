"""Only our event, signed by the invited user's server with a key that it publishes, is accepted."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.errors import (
    CountersignatureError,
    CountersignatureProblem,
    InviteError,
    UntrustedReplyError,
)
from invite_client.spec import canonical_json, countersignature, events
from invite_client.spec.base64 import decode_base64
from invite_client.spec.http import Reply
from invite_client.spec.invites import V1, V2, Endpoint, Invite
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
    needed = countersignature.judged(invite, returned)
    return countersignature.merge(invite, countersignature.verify(invite, needed, keys))


def judge_reply(
    invite: Invite, endpoint: Endpoint, body: bytes, keys: ServerKeys
) -> dict[str, Any]:
    """From the bytes of an answer to what may be kept: the whole way."""
    return judge(invite, endpoint.read_event(Reply(200, body)), keys)


def answer(endpoint: Endpoint, event: dict[str, Any]) -> bytes:
    container = {"event": event}
    return canonical_json.encode([200, container] if endpoint is V1 else container)


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


@pytest.mark.parametrize("spelling", ["Remote.EXAMPLE", "remote.example:8448", "[2001:DB8::1]"])
def test_the_name_of_the_invited_server_is_compared_as_it_is_written(
    spelling: str, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
) -> None:
    invite = make_invite(target=f"@bob:{spelling}")
    returned = countersign(invite, their_key, server=spelling)

    assert returned == judge(invite, returned, their_keys)
    other = countersign(invite, their_key, server=spelling.swapcase())  # another server
    assert Problem.NOT_SIGNED == problem(invite, other, their_keys)


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

    @pytest.mark.parametrize("name", ["origin", "membership", "prev_state", "redacts", "age_ts"])
    def test_may_differ_in_no_field_that_only_some_servers_write(
        self,
        name: str,
        make_invite: MakeInvite,
        our_key: SigningKey,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = Invite.sign({**make_invite().event, name: "ours"}, "10", our_key)
        honest = countersign(invite, their_key)

        assert "ours" == judge(invite, honest, their_keys)[name]
        assert Problem.EVENT_CHANGED == problem(invite, honest | {name: "theirs"}, their_keys)

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

    def test_may_not_have_so_many_fields_more_that_to_name_them_takes_memory(
        self, make_invite: MakeInvite
    ) -> None:
        invite = make_invite()
        junk = {"a" * 1000: 1, **{f"b{number}": 1 for number in range(100_000)}}
        returned = {**junk, **invite.copy_event(), "type": "m.room.name"}
        with pytest.raises(CountersignatureError) as caught:
            countersignature.key_ids(invite, returned)

        named = ("a" * 255, *sorted(f"b{number}" for number in range(19)), "type")
        assert named == caught.value.fields

    def test_may_not_be_another_that_we_once_signed(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite, other = make_invite(), make_invite(reason="other")

        assert Problem.EVENT_CHANGED == problem(invite, countersign(other, their_key), their_keys)

    @pytest.mark.parametrize(("version", "endpoint"), [("1", V1), ("10", V2), ("12", V2)])
    def test_with_any_one_bit_changed_is_refused_or_makes_no_difference(
        self,
        version: str,
        endpoint: Endpoint,
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite(version, displayname="Bob")
        honest = countersign(invite, their_key)
        body = answer(endpoint, honest | {"unsigned": {"age": 1}})

        assert honest == judge_reply(invite, endpoint, body, their_keys)
        refused = 0
        for bit in range(len(body) * 8):
            changed = bytearray(body)
            changed[bit // 8] ^= 1 << bit % 8
            try:
                kept = judge_reply(invite, endpoint, bytes(changed), their_keys)
            except InviteError:
                refused += 1
            else:
                # The change was in what is not believed: our signature, `unsigned`, a spare bit.
                assert honest == kept, bytes(changed)
        assert refused > len(body) * 6

    @given(
        body=st.binary()
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(st.sampled_from(["event", "signatures", INVITED]), inner)
            ),
        ).map(lambda value: json.dumps(value).encode())
    )
    def test_is_read_from_any_bytes_or_refused_with_an_error_of_ours(
        self, body: bytes, make_invite: MakeInvite, their_keys: ServerKeys
    ) -> None:
        for endpoint in (V1, V2):
            with pytest.raises(UntrustedReplyError):
                judge_reply(make_invite("1"), endpoint, body, their_keys)

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

    def test_that_are_there_are_named_if_none_is_theirs(
        self, make_invite: MakeInvite, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        for signatures, signers in (({}, "nobody"), ({"b": {}, "a": {}}, "a, b")):
            with pytest.raises(CountersignatureError) as caught:
                judge(invite, invite.copy_event() | {"signatures": signatures}, their_keys)

            assert str(caught.value).endswith(f"; the event is signed by {signers}")

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
        expired = PublishedKey(their_key.verify_key, invite.origin_server_ts - 1)
        keys = replace(their_keys, keys={their_key.key_id: expired})
        returned = countersign(invite, their_key)

        if expected is None:
            assert returned == judge(invite, returned, keys)
        else:
            assert expected == problem(invite, returned, keys)

    @pytest.mark.parametrize("version", ROOM_VERSIONS)
    def test_by_a_key_that_the_server_had_given_up_are_skipped_in_every_room_version(
        self,
        version: str,
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite(version)
        old = SigningKey.generate("old")
        returned = countersign(invite, old)

        def keys(expired_ts: int) -> ServerKeys:
            published = PublishedKey(old.verify_key, expired_ts, old=True)
            return replace(their_keys, keys={**their_keys.keys, old.key_id: published})

        assert returned == judge(invite, returned, keys(invite.origin_server_ts))
        assert Problem.KEY_EXPIRED == problem(invite, returned, keys(invite.origin_server_ts - 1))

        # … and skipped, they need not be good.
        honest = countersign(invite, their_key)
        beside = countersign(invite, their_key)
        beside["signatures"][INVITED][old.key_id] = "junk"
        assert honest == judge(invite, beside, keys(invite.origin_server_ts - 1))

    @pytest.mark.parametrize(("count", "refused"), [(20, False), (21, True), (100_000, True)])
    def test_may_not_be_so_many_that_to_judge_them_takes_long(
        self, count: int, refused: bool, make_invite: MakeInvite, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        invite = make_invite()
        key = SigningKey.generate("k")
        signature = key.sign(invite.signing_json)
        names = [f"ed25519:k{number}" for number in range(count)]
        returned = invite.copy_event()
        returned["signatures"][INVITED] = dict.fromkeys(names, signature)
        published = dict.fromkeys(names, PublishedKey(key.verify_key, 2**53))
        keys = ServerKeys(INVITED, published, 2**53, 0, {})
        judged: list[object] = []
        verified_bytes = countersignature.verified_bytes
        monkeypatch.setattr(
            countersignature,
            "verified_bytes",
            lambda *args: judged.append(args) or verified_bytes(*args),
        )

        if refused:
            assert Problem.SIGNATURES_MALFORMED == problem(invite, returned, keys)
            assert len(judged) <= 20
        else:
            assert set(names) == set(judge(invite, returned, keys)["signatures"][INVITED])

    @pytest.mark.parametrize(("count", "refused"), [(4999, False), (5000, True)])
    def test_by_unknown_keys_may_be_many_but_not_any_number(
        self,
        count: int,
        refused: bool,
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite()
        honest = countersign(invite, their_key)
        returned = countersign(invite, their_key)
        returned["signatures"][INVITED] |= {f"ed25519:k{number}": "" for number in range(count)}

        if refused:
            assert Problem.SIGNATURES_MALFORMED == problem(invite, returned, their_keys)
        else:
            assert honest == judge(invite, returned, their_keys)

    def test_of_another_algorithm_may_be_any_number(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = countersign(invite, their_key)
        returned["signatures"][INVITED] |= {f"other:{number}": "" for number in range(100)}

        assert judge(invite, returned, their_keys)

    def test_by_unknown_keys_are_skipped_beside_a_good_one(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = countersign(invite, their_key)
        good = returned["signatures"][INVITED]
        unknown = {"ed25519:policy_server": "unknown"}
        given_up = {"ed25519:old": "junk"}
        published = PublishedKey(SigningKey.generate("old").verify_key, 0, old=True)
        keys = replace(their_keys, keys={**their_keys.keys, "ed25519:old": published})
        # In whatever order they stand.
        for entry in ({**good, **unknown, **given_up}, {**unknown, **given_up, **good}):
            returned["signatures"][INVITED] = entry

            assert good == countersignature.verify(invite, returned, keys)

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
        junk=st.dictionaries(
            st.text() | st.from_regex(r"ed25519:[a-z]{1,3}", fullmatch=True),
            st.text(),
            max_size=19,  # with the good one as many as are looked at
        )
    )
    def test_beside_a_good_one_are_dropped_or_make_the_answer_refused(
        self,
        junk: dict[str, str],
        make_invite: MakeInvite,
        their_key: SigningKey,
        their_keys: ServerKeys,
    ) -> None:
        invite = make_invite()
        honest = countersign(invite, their_key)
        returned = countersign(invite, their_key)
        returned["signatures"][INVITED] = {**junk, **honest["signatures"][INVITED]}

        assert honest == judge(invite, returned, their_keys)

    @pytest.mark.parametrize("key_id", ["rsa:1", "ed25519", "ed25519:", "ed25519:a-b", ""])
    def test_of_another_algorithm_are_none(
        self, key_id: str, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        returned = invite.copy_event()
        returned["signatures"][INVITED] = {key_id: their_key.sign(invite.signing_json)}

        assert Problem.NOT_SIGNED == problem(invite, returned, their_keys)

    def test_are_kept_in_the_one_spelling_that_they_have(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        invite = make_invite()
        honest = countersign(invite, their_key)
        signature = honest["signatures"][INVITED][their_key.key_id]
        # 86 characters are 516 bits, of which the last 4 are to spare.
        spare = {signature[:-1] + last for last in string.ascii_letters + string.digits + "+/"}
        same = {other for other in spare if decode_base64(other) == decode_base64(signature)}

        assert 16 == len(same)
        for spelling in {*same, signature + "=="}:
            returned = countersign(invite, their_key)
            returned["signatures"][INVITED][their_key.key_id] = spelling
            assert honest == judge(invite, returned, their_keys)

    def test_of_the_invited_server_that_were_sent_are_kept(
        self, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
    ) -> None:
        """It may also be the room's policy server, whose signature the event must keep."""
        event = make_invite().copy_event()
        event["signatures"][INVITED] = {"ed25519:policy_server": "theirs"}
        invite = Invite.from_pdu(event, "10")
        returned = countersign(invite, their_key)

        assert returned == judge(invite, returned, their_keys)
        assert {their_key.key_id} == countersignature.verify(invite, returned, their_keys).keys()

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


@pytest.mark.parametrize("version", ROOM_VERSIONS)
def test_a_third_party_invite_is_verified_like_any_other(
    version: str, make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
) -> None:
    signed = {"mxid": f"@bob:{INVITED}", "token": "t", "signatures": {"id.example": {"k": "s"}}}
    invite = make_invite(version, third_party_invite={"display_name": "b", "signed": signed})
    honest = countersign(invite, their_key)

    assert honest == judge(invite, honest, their_keys)
    for change in ({"display_name": "c"}, {"signed": {**signed, "token": "u"}}):
        returned = countersign(invite, their_key)
        returned["content"]["third_party_invite"].update(change)
        assert Problem.EVENT_CHANGED == problem(invite, returned, their_keys)
    assert Problem.NOT_SIGNED == problem(invite, invite.copy_event(), their_keys)


def test_what_the_remote_wrote_is_quoted_on_one_line_and_cut_short(
    make_invite: MakeInvite, their_keys: ServerKeys
) -> None:
    invite = make_invite()
    forged = "x\n2023-11-14 all is well\x1b[2J"
    long_ones = {f"ed25519:k{number}{'x' * 10_000}": "" for number in range(20)}
    for returned in (
        invite.copy_event() | {forged: 1},
        invite.copy_event() | {"x" * 100_000: 1, **dict.fromkeys(long_ones, 1)},
        invite.copy_event() | {"signatures": {forged: {}}},
        invite.copy_event() | {"signatures": {INVITED: long_ones}},
    ):
        with pytest.raises(CountersignatureError) as caught:
            judge(invite, returned, their_keys)

        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 700


def test_an_event_that_its_countersignature_makes_too_large_is_refused(
    make_invite: MakeInvite, their_key: SigningKey, their_keys: ServerKeys
) -> None:
    size = len(make_invite(reason="").event_json)
    invite = make_invite(reason="x" * (events.MAX_EVENT_BYTES - size))

    assert events.MAX_EVENT_BYTES == len(invite.event_json)
    returned = countersign(invite, their_key)
    assert Problem.TOO_LARGE == problem(invite, returned, their_keys)

    signature = len(canonical_json.encode(returned)) - len(invite.event_json)
    invite = make_invite(reason="x" * (events.MAX_EVENT_BYTES - size - signature))
    returned = countersign(invite, their_key)
    assert events.MAX_EVENT_BYTES == len(canonical_json.encode(returned))
    assert returned == judge(invite, returned, their_keys)
