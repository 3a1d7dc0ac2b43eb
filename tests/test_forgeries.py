"""A remote that forges, over real sockets: every forgery is refused, by its own name."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invite_client.client import InviteClient
from invite_client.errors import (
    CountersignatureError,
    CountersignatureProblem,
    Delivery,
    InviteError,
)
from invite_client.spec.invites import Invite, SignedInvite
from invite_client.spec.server_keys import ServerKeys
from invite_client.spec.signatures import SigningKey
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    Lie,
    LoopbackHomeserver,
    SimulatedHomeserver,
    adds_junk_signatures,
    adds_unsigned,
    badly_signed,
    changes,
    drops_signatures_of_the_inviter,
    make_invite,
    make_room,
    malformed_signatures,
    malformed_signatures_of_its_own,
    removes,
    returns_another_event,
    signed_by,
    signed_with,
    signed_with_an_expired_key,
    signed_with_an_unpublished_key,
    signs_the_unredacted_event,
    unsigned,
)

REMOTE = "127.45.8.1"
BOB = f"@bob:{REMOTE}"
P = CountersignatureProblem


@pytest.fixture
async def remote() -> AsyncIterator[LoopbackHomeserver]:
    async with LoopbackHomeserver(REMOTE) as server:
        yield server


@pytest.fixture
async def client(remote: LoopbackHomeserver) -> AsyncIterator[InviteClient]:
    async with remote.client() as made:
        yield made


async def refused(client: InviteClient, invite: Invite) -> CountersignatureError:
    """Send an invite whose answer must not be believed."""
    with pytest.raises(CountersignatureError) as caught:
        await client.send_invite(invite)
    assert Delivery.ANSWERED == caught.value.delivery
    assert not caught.value.retryable
    assert 502 == caught.value.client_response().status
    return caught.value


# --- Signatures ---------------------------------------------------------------------------------

OTHER = SigningKey.generate("theirs")  # the very ID of the key that the remote publishes

SIGNATURES = [
    pytest.param(unsigned(), P.NOT_SIGNED, id="no countersignature"),
    pytest.param(badly_signed(), P.SIGNATURE_INVALID, id="of something else"),
    pytest.param(signed_with(OTHER), P.SIGNATURE_INVALID, id="another key under the same ID"),
    pytest.param(signs_the_unredacted_event(), P.SIGNATURE_INVALID, id="of the whole event"),
    pytest.param(signed_by("other.example"), P.NOT_SIGNED, id="by another server"),
    pytest.param(signed_by(INVITER), P.NOT_SIGNED, id="under our own name"),
    pytest.param(signed_with_an_unpublished_key(), P.KEY_NOT_PUBLISHED, id="unpublished key"),
    pytest.param(malformed_signatures(None), P.SIGNATURES_MALFORMED, id="signatures: null"),
    pytest.param(malformed_signatures([]), P.SIGNATURES_MALFORMED, id="signatures: list"),
    pytest.param(malformed_signatures({}), P.NOT_SIGNED, id="signatures: empty"),
    pytest.param(malformed_signatures_of_its_own([]), P.SIGNATURES_MALFORMED, id="entry: list"),
    pytest.param(malformed_signatures_of_its_own({}), P.NOT_SIGNED, id="entry: empty"),
    pytest.param(
        malformed_signatures_of_its_own({"ed25519:theirs": 1}),
        P.SIGNATURES_MALFORMED,
        id="signature: number",
    ),
    pytest.param(
        malformed_signatures_of_its_own({"ed25519:theirs": "?"}),
        P.SIGNATURE_INVALID,
        id="signature: not base64",
    ),
    pytest.param(removes("signatures"), P.NOT_SIGNED, id="no signatures"),
]


@pytest.mark.loopback
@pytest.mark.parametrize("version", ["1", "12"])
@pytest.mark.parametrize(("lie", "problem"), SIGNATURES)
async def test_a_signature_that_proves_nothing_is_refused(
    lie: Lie,
    problem: CountersignatureProblem,
    version: str,
    remote: LoopbackHomeserver,
    client: InviteClient,
) -> None:
    # With the name displayed, more than what is signed is in the event.
    remote.lies(lie)
    error = await refused(client, make_invite(BOB, version, displayname="Bob"))

    assert problem is error.problem
    assert 1 == remote.counts["v2"] + remote.counts["v1"]


@pytest.mark.loopback
@pytest.mark.parametrize("version", ["1", "4", "5", "10", "12"])
async def test_a_key_that_its_server_has_given_up_before_is_refused(
    version: str, remote: LoopbackHomeserver, client: InviteClient
) -> None:
    remote.lies(signed_with_an_expired_key())
    error = await refused(client, make_invite(BOB, version))

    assert P.KEY_EXPIRED is error.problem


@pytest.mark.loopback
@pytest.mark.parametrize("version", ["5", "6", "10", "12"])
async def test_a_key_that_is_published_as_past_its_time_is_refused(
    version: str, remote: LoopbackHomeserver, client: InviteClient
) -> None:
    remote.key_validity = -3600
    error = await refused(client, make_invite(BOB, version))

    assert P.KEY_EXPIRED is error.problem


@pytest.mark.loopback
@pytest.mark.parametrize("version", ["1", "4"])
async def test_a_key_past_its_time_is_believed_where_the_room_version_does_not_ask(
    version: str, remote: LoopbackHomeserver, client: InviteClient
) -> None:
    remote.key_validity = -3600
    signed = await client.send_invite(make_invite(BOB, version))

    assert [remote.signing_key.key_id] == list(signed.signatures)


@pytest.mark.loopback
async def test_keys_that_cannot_be_had_are_asked_for_again_later(
    remote: LoopbackHomeserver, client: InviteClient
) -> None:
    remote.answers(500, endpoint="keys")
    with pytest.raises(CountersignatureError) as caught:
        await client.send_invite(make_invite(BOB))

    assert P.KEYS_UNAVAILABLE is caught.value.problem
    assert caught.value.retryable


# --- The event ----------------------------------------------------------------------------------

FIELDS: dict[str, Any] = {
    "type": "m.room.create",
    "room_id": "!other:inviter.example",
    "sender": "@mallory:inviter.example",
    "state_key": f"@mallory:{REMOTE}",
    "content": {"membership": "join"},
    "origin_server_ts": 1,
    "depth": 7777,
    "prev_events": [],
    "auth_events": ["$other"],
    "hashes": {"sha256": "A" * 43},
    "origin": "inviter.example",  # not there at first
    "redacts": "$other",
}


@pytest.mark.loopback
@pytest.mark.parametrize("version", ["1", "12"])
@pytest.mark.parametrize("field", FIELDS)
async def test_an_event_with_any_field_changed_is_refused(
    field: str, version: str, remote: LoopbackHomeserver, client: InviteClient
) -> None:
    remote.lies(changes(field, FIELDS[field]))
    error = await refused(client, make_invite(BOB, version))

    assert P.EVENT_CHANGED is error.problem
    assert field in error.fields
    assert {field, "hashes"} >= set(error.fields)


@pytest.mark.loopback
@pytest.mark.parametrize("field", sorted(set(FIELDS) - {"origin", "redacts"}))
async def test_an_event_with_any_field_removed_is_refused(
    field: str, remote: LoopbackHomeserver, client: InviteClient
) -> None:
    remote.lies(removes(field))
    error = await refused(client, make_invite(BOB))

    assert P.EVENT_CHANGED is error.problem
    assert field in error.fields


@pytest.mark.loopback
async def test_what_only_looks_equal_to_python_is_refused(
    remote: LoopbackHomeserver, client: InviteClient
) -> None:
    remote.lies(changes("content", {"membership": "invite", "is_direct": 1}))
    error = await refused(client, make_invite(BOB, is_direct=True))

    assert P.EVENT_CHANGED is error.problem
    assert ("content", "hashes") == error.fields


@pytest.mark.loopback
async def test_another_event_that_we_once_signed_is_refused(
    remote: LoopbackHomeserver, client: InviteClient
) -> None:
    room = make_room()
    earlier = Invite.build(room, BOB, INVITER_KEY, origin_server_ts=1_700_000_000_000)
    remote.lies(returns_another_event(earlier.event))
    error = await refused(client, Invite.build(room, BOB, INVITER_KEY))

    assert P.EVENT_CHANGED is error.problem


# --- What is dropped ----------------------------------------------------------------------------


@pytest.mark.loopback
@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(drops_signatures_of_the_inviter(), id="without our signature"),
        pytest.param(adds_unsigned({"invite_room_state": [], "age": 3}), id="with unsigned"),
    ],
)
async def test_what_is_beside_the_signature_is_not_taken(
    lie: Lie, remote: LoopbackHomeserver, client: InviteClient
) -> None:
    invite = make_invite(BOB)
    remote.lies(lie)
    signed = await client.send_invite(invite)

    ours = invite.event["signatures"]
    theirs = {REMOTE: dict(signed.signatures)}
    assert {**invite.event, "signatures": {**ours, **theirs}} == signed.event


@pytest.mark.loopback
async def test_a_junk_signature_beside_a_good_one_is_refused_if_its_key_is_known(
    remote: LoopbackHomeserver, client: InviteClient
) -> None:
    """Every signature by a known, valid key must verify; one by an unknown key says nothing."""
    remote.published_keys.append(SigningKey.generate("junk"))
    remote.lies(adds_junk_signatures())
    error = await refused(client, make_invite(BOB))

    assert P.SIGNATURE_INVALID is error.problem


@pytest.mark.loopback
async def test_junk_signatures_are_dropped(
    remote: LoopbackHomeserver, client: InviteClient
) -> None:
    invite = make_invite(BOB)
    remote.lies(adds_junk_signatures())
    signed = await client.send_invite(invite)

    assert {INVITER, REMOTE} == set(signed.event["signatures"])
    assert invite.event["signatures"][INVITER] == signed.event["signatures"][INVITER]
    assert [remote.signing_key.key_id] == list(signed.event["signatures"][REMOTE])


class _Looks:
    """A key ring that looks, when it is asked, for what is held meanwhile."""

    def __init__(self, keys: ServerKeys) -> None:
        self.keys = keys
        self.held: list[object] = []

    async def prefetch(self, _: object) -> None:
        """They are here."""

    async def verify_keys(self, *_: object) -> ServerKeys:
        self.held = [x for x in gc.get_objects() if isinstance(x, dict) and "junk of theirs" in x]
        return self.keys

    async def server_keys(self, _: object) -> ServerKeys:
        return self.keys

    async def aclose(self) -> None:
        """Nothing is open."""


async def test_what_is_not_judged_is_not_held_until_the_keys_are_here() -> None:
    remote = SimulatedHomeserver()
    async with remote.client() as client:
        looks = _Looks(await client.server_keys("remote.example"))
    remote.lies(
        lambda honest: {
            **honest.event,
            "signatures": {**honest.event["signatures"], "x.example": {"junk of theirs": [[]]}},
            "unsigned": {"junk of theirs": [[]]},
        }
    )
    async with remote.client(keyring=looks) as client:
        await client.send_invite(make_invite())

    assert [] == looks.held


# --- Anything at all ----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["remote.example", INVITER, "ed25519:theirs"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(value=JSON)
async def test_whatever_stands_in_signatures_nothing_is_merged(value: Any) -> None:
    remote = SimulatedHomeserver()
    remote.lies(malformed_signatures(value))
    async with remote.client() as client:
        error = await refused(client, make_invite())

    assert error.problem in {
        P.SIGNATURES_MALFORMED,
        P.NOT_SIGNED,
        P.SIGNATURE_INVALID,
        P.KEY_NOT_PUBLISHED,
    }


@given(data=st.data())
@settings(max_examples=200)
async def test_one_changed_bit_of_an_answer_is_never_kept(data: st.DataObject) -> None:
    invite, remote = make_invite(), SimulatedHomeserver()
    async with remote.client() as client:
        honest = await client.send_invite(invite)
        (put,) = remote.requests_for("v2")
        answer = bytearray(remote.receive(put).body)
        bit = data.draw(st.integers(0, len(answer) * 8 - 1))
        answer[bit // 8] ^= 1 << bit % 8
        remote.answers(200, body=bytes(answer))
        outcome: SignedInvite | InviteError
        try:
            outcome = await client.send_invite(invite)
        except InviteError as error:
            outcome = error

    # The bit may have been in what is not looked at: our own signature, say.
    if isinstance(outcome, SignedInvite):
        assert honest.event == outcome.event


@given(body=st.binary(max_size=200) | JSON.map(lambda value: repr(value).encode()))
async def test_whatever_the_answer_it_is_a_signed_invite_or_an_invite_error(body: bytes) -> None:
    remote = SimulatedHomeserver()
    remote.answers(200, body=body)
    async with remote.client() as client:
        with pytest.raises(InviteError):
            await client.send_invite(make_invite())
