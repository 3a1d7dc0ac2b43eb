"""What may be sent as an invite, how it is sent, and what an answer means."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invite_client.errors import (
    InvalidInviteError,
    InviteRejectedError,
    MalformedReplyError,
    RateLimitedError,
)
from invite_client.spec import canonical_json, events, invite_rules
from invite_client.spec.http import Reply
from invite_client.spec.invites import (
    V1,
    V2,
    Invite,
    Room,
    falls_back_to_v1,
    more_telling,
    rejection,
)
from invite_client.spec.room_versions import ROOM_VERSIONS
from invite_client.spec.signatures import SigningKey, sign_event
from invite_client.spec.x_matrix import parse_authorization, signed_bytes

INVITER = "inviter.example"
NOW = 1_700_000_000.0
MakeInvite = Callable[..., Invite]
MakeRoom = Callable[[str], Room]
FALLBACK = {"1", "2"}

huge = st.sampled_from([5000, 6000]).map(lambda digits: 10**digits)  # Its repr() raises.
# What a host may hand over by mistake, beyond what JSON has.
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | huge
    | st.floats()
    | st.text(st.characters())
    | st.binary()
    | st.builds(object),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.dictionaries(st.text(st.characters()) | st.integers() | huge, inner)
        | st.dictionaries(st.text(), inner).map(MappingProxyType)
    ),
    max_leaves=10,
)
FOREVER = (2**53 - 1) / 1000


class TestBuilding:
    @pytest.mark.parametrize("version", ROOM_VERSIONS)
    def test_gives_an_event_that_is_taken_again_unchanged(
        self, version: str, make_invite: MakeInvite
    ) -> None:
        built = make_invite(version, displayname="Bob")
        taken = Invite.from_pdu(built.event, version, built.invite_room_state)

        assert built == taken
        assert built == Invite.from_request(json.loads(json.dumps(built.to_request())))
        assert ("@bob:remote.example", "remote.example") == (built.target, str(built.destination))
        assert (f"@alice:{INVITER}", INVITER) == (built.sender, str(built.origin))

    def test_from_a_request_it_is_signed_with_the_key_that_is_given(
        self, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        built = make_invite()
        body = built.to_request()
        body["event"] = {
            name: value
            for name, value in built.event.items()
            if name not in ("hashes", "signatures")
        }

        assert built == Invite.from_request(body, our_key)
        with pytest.raises(InvalidInviteError, match="hashes"):
            Invite.from_request(body)

    def test_says_now_if_no_time_is_given(self, make_room: MakeRoom, our_key: SigningKey) -> None:
        built = Invite.build(make_room("10"), "@bob:remote.example", our_key)

        assert built.origin_server_ts > NOW * 1000

    @pytest.mark.parametrize("membership", ["join", "Invite", "", None, 5, ["invite"]])
    def test_cannot_be_told_to_do_anything_but_invite(
        self, membership: Any, make_invite: MakeInvite
    ) -> None:
        assert "invite" == make_invite(membership="invite").event["content"]["membership"]
        with pytest.raises(InvalidInviteError, match=r'expected "invite"$') as caught:
            make_invite(membership=membership)

        assert "content.membership" == caught.value.field

    def test_gives_room_version_1_events_distinct_ids(self, make_invite: MakeInvite) -> None:
        first, second = make_invite("1"), make_invite("1", reason="other")

        assert first.event_id.startswith("$")
        assert first.event_id.endswith(f":{INVITER}")
        assert first.event_id != second.event_id

    def test_keeps_an_event_id_that_is_there(
        self, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        event = make_invite("2").event | {"event_id": f"$mine:{INVITER}"}

        assert f"$mine:{INVITER}" == Invite.sign(event, "2", our_key, ()).event_id

    def test_shows_what_it_is_and_nothing_more(self, make_invite: MakeInvite) -> None:
        invite = make_invite(reason="private")

        assert f"<Invite {invite.event_id} of {invite.target} to {invite.room_id}>" == repr(invite)

    def test_copies_what_it_is_given(self, make_invite: MakeInvite) -> None:
        given = make_invite().copy_event()
        invite = Invite.from_pdu(given, "10", ())
        given["content"]["membership"] = "ban"

        assert "invite" == invite.event["content"]["membership"]

    def test_of_something_that_is_not_json_is_refused(
        self, make_room: MakeRoom, our_key: SigningKey
    ) -> None:
        with pytest.raises(InvalidInviteError, match=r"^event\.content\.reason: "):
            Invite.build(make_room("10"), "@bob:remote.example", our_key, content={"reason": 1.5})
        for content in (["reason"], "reason", 1, {1: "reason"}, [], "", 0, False):
            with pytest.raises(InvalidInviteError, match=r"^content: must be a JSON object"):
                Invite.build(
                    make_room("10"),
                    "@bob:remote.example",
                    our_key,
                    content=content,  # type: ignore[arg-type]
                )

    def test_needs_a_room_and_a_key(self, make_room: MakeRoom, our_key: SigningKey) -> None:
        room, target, line = make_room("10"), "@bob:remote.example", our_key.to_line()
        for wrong_room in (None, {}, dataclasses.asdict(room)):
            with pytest.raises(InvalidInviteError, match=r"^room: is .* expected a Room$"):
                Invite.build(wrong_room, target, our_key)  # type: ignore[arg-type]
        for wrong_key in (None, line, line.encode(), our_key.verify_key):
            with pytest.raises(InvalidInviteError, match=r"^signing_key: must be a SigningKey$"):
                Invite.build(room, target, wrong_key)  # type: ignore[arg-type]

    def test_takes_third_party_invites_untouched(self, make_invite: MakeInvite) -> None:
        third_party = {"display_name": "b", "signed": {"mxid": "@bob:x", "token": "t"}}
        invite = make_invite("11", third_party_invite=third_party)

        assert third_party == invite.event["content"]["third_party_invite"]
        redacted = json.loads(invite.signing_json)
        assert {"signed": third_party["signed"]} == redacted["content"]["third_party_invite"]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


BAD_EVENTS: list[tuple[str, str, dict[str, Any]]] = [
    ("type", "event.type", {"type": "m.room.message"}),
    ("no type", "event.type", {"type": None}),
    ("no content", "event.content", {"content": None}),
    ("join", "event.content.membership", {"content": {"membership": "join"}}),
    ("no membership", "event.content.membership", {"content": {}}),
    ("no sender", "event.sender", {"sender": None}),
    ("sender without server", "event.sender", {"sender": "@alice"}),
    ("no target", "event.state_key", {"state_key": None}),
    ("target of a bad server", "event.state_key", {"state_key": "@bob:bad_server"}),
    ("target of the same server", "event.state_key", {"state_key": f"@bob:{INVITER}"}),
    ("same server in other case", "event.state_key", {"state_key": "@bob:Inviter.EXAMPLE"}),
    ("same server with a dot", "event.state_key", {"state_key": f"@bob:{INVITER}."}),
    ("target with NUL", "event.state_key", {"state_key": "@b\0b:remote.example"}),
    ("target as list", "event.state_key", {"state_key": ["@bob:remote.example"]}),
    ("no time", "event.origin_server_ts", {"origin_server_ts": None}),
    ("time as text", "event.origin_server_ts", {"origin_server_ts": "1"}),
    ("time as bool", "event.origin_server_ts", {"origin_server_ts": True}),
    ("negative time", "event.origin_server_ts", {"origin_server_ts": -1}),
    ("negative depth", "event.depth", {"depth": -1}),
    ("depth as bool", "event.depth", {"depth": True}),
    ("unsigned", "event.unsigned", {"unsigned": []}),
    ("no room", "event.room_id", {"room_id": None}),
    ("room without sigil", "event.room_id", {"room_id": "room:example.org"}),
    ("room without server", "event.room_id", {"room_id": "!room"}),
    ("room with an empty server", "event.room_id", {"room_id": "!room:"}),
    ("room with NUL", "event.room_id", {"room_id": "!ro\0m:example.org"}),
    ("event ID as room ID", "event.room_id", {"room_id": "$room:example.org"}),
    ("event ID", "event.event_id", {"event_id": "$x:y"}),
    ("prev_events", "event.prev_events", {"prev_events": None}),
    ("prev_events of version 1", "event.prev_events[0]", {"prev_events": [["$x", {}]]}),
    ("auth_events", "event.auth_events[0]", {"auth_events": [1]}),
    ("room ID in auth_events", "event.auth_events[1]", {"auth_events": ["$x", "!x"]}),
    ("many auth_events", "event.auth_events", {"auth_events": ["$x"] * 11}),
    ("many prev_events", "event.prev_events", {"prev_events": ["$x"] * 21}),
    ("long room ID", "event.room_id", {"room_id": "!" + "r" * 255 + ":x"}),
    ("too large", "event", {"content": {"membership": "invite", "reason": "x" * 65_536}}),
    ("no hashes", "event.hashes", {"hashes": None}),
    ("no sha256", "event.hashes.sha256", {"hashes": {}}),
    ("hash of another event", "event.hashes.sha256", {"origin_server_ts": 1}),
    ("no signatures", "event.signatures", {"signatures": None}),
    ("no signature of ours", "event.signatures", {"signatures": {"x": {"ed25519:1": "s"}}}),
    ("empty signature of ours", "event.signatures", {"signatures": {INVITER: {}}}),
    ("our name only", f"event.signatures.{INVITER}", {"signatures": {INVITER: None}}),
    ("number as signature", f"event.signatures.{INVITER}", {"signatures": {INVITER: {"k": 1}}}),
    (
        "others' name only",
        "event.signatures.x y",
        {"signatures": {"x\ny": [], INVITER: {"k": "s"}}},
    ),
]


def resigned(event: dict[str, Any], version: str, key: SigningKey) -> dict[str, Any]:
    return sign_event(event, INVITER, key, ROOM_VERSIONS[version])


class TestTaking:
    @pytest.mark.parametrize(
        ("field", "changes"), [b[1:] for b in BAD_EVENTS], ids=[b[0] for b in BAD_EVENTS]
    )
    def test_a_wrong_event_names_the_field(
        self, field: str, changes: dict[str, Any], make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        event = make_invite("10").copy_event() | changes
        event = {name: value for name, value in event.items() if value is not None}
        if "hashes" in event and "hash" not in field and field != "event.hashes.sha256":
            event["hashes"] = {"sha256": events.content_hash(event, ROOM_VERSIONS["10"])}
        with pytest.raises(InvalidInviteError) as caught:
            Invite.from_pdu(event, "10", ())

        assert field == caught.value.field
        assert str(caught.value).startswith(f"{field}: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("version", "field", "changes"),
        [
            ("1", "event.event_id", {"event_id": 1}),
            ("1", "event.event_id", {"event_id": "$without-server"}),
            ("2", "event.prev_events[0]", {"prev_events": ["$x:y"]}),
            ("2", "event.auth_events[0]", {"auth_events": [["$x:y", "sha256"]]}),
            ("2", "event.auth_events[0]", {"auth_events": [["$x:y", {}, {}]]}),
            ("1", "event.prev_events[0]", {"prev_events": [["x:y", {}]]}),
            ("1", "event.prev_events[0]", {"prev_events": [[1, {}]]}),
            ("1", "event.event_id", {"event_id": f"!x:{INVITER}"}),
            ("1", "event.event_id", {"event_id": "$x:other.example"}),
            ("5", "event.depth", {"depth": 2**63}),
            ("3", "event.origin_server_ts", {"origin_server_ts": 1.0}),
            ("12", "event.room_id", {"room_id": "!" + "+" * 43}),
            ("12", "event.room_id", {"room_id": "!" + "A" * 44}),
            ("12", "event.room_id", {"room_id": f"!room:{INVITER}"}),
            ("12", "event.room_id", {"room_id": "!short"}),
        ],
    )
    def test_the_form_is_that_of_the_room_version(
        self,
        version: str,
        field: str,
        changes: dict[str, Any],
        make_invite: MakeInvite,
        our_key: SigningKey,
    ) -> None:
        event = resigned(make_invite(version).copy_event() | changes, version, our_key)
        with pytest.raises(InvalidInviteError) as caught:
            Invite.from_pdu(event, version, make_invite(version).invite_room_state)

        assert field == caught.value.field

    def test_the_create_event_is_implied_in_room_version_12(
        self, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        invite = make_invite("12")
        event = invite.copy_event() | {"auth_events": ["$" + invite.room_id[1:]]}
        with pytest.raises(InvalidInviteError) as caught:
            Invite.from_pdu(resigned(event, "12", our_key), "12", invite.invite_room_state)

        assert "event.auth_events" == caught.value.field

    @pytest.mark.parametrize("event", [None, [], "x", 1])
    def test_an_event_is_an_object(self, event: Any) -> None:
        with pytest.raises(InvalidInviteError, match=r"^event: must be a JSON object"):
            Invite.from_pdu(event, "10")

    def test_an_event_id_may_be_of_another_server_that_signed_too(
        self, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        event = resigned(
            make_invite("1").copy_event() | {"event_id": "$x:other.example"}, "1", our_key
        )
        event["signatures"]["other.example"] = {"ed25519:other": "their signature"}

        assert "$x:other.example" == Invite.from_pdu(event, "1").event_id

    def test_the_entry_of_the_invited_server_in_signatures_is_an_object(
        self, make_invite: MakeInvite
    ) -> None:
        event = make_invite().copy_event()
        event["signatures"]["remote.example"] = "x"
        with pytest.raises(InvalidInviteError, match=r"signatures.remote.example"):
            Invite.from_pdu(event, "10", ())

    @pytest.mark.parametrize("version", ["13", "", "01", None, 10, "org.matrix.msc1"])
    def test_the_room_version_is_known(self, version: Any, make_invite: MakeInvite) -> None:
        with pytest.raises(InvalidInviteError) as caught:
            Invite.from_pdu(make_invite().event, version)

        assert "room_version" == caught.value.field

    @given(
        anything
        | st.fixed_dictionaries(
            {
                "room_version": st.sampled_from(["1", "10", "12"]) | anything,
                "event": st.just({}) | anything,
            },
            optional={"invite_room_state": anything},
        )
    )
    def test_any_request_is_an_invite_or_an_error_of_ours(self, body: object) -> None:
        with pytest.raises(InvalidInviteError) as caught:
            Invite.from_request(body)

        assert str(caught.value).isprintable()

    @given(data=st.data())
    def test_an_honest_request_with_anything_in_any_place_is_too(
        self, data: st.DataObject, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        version = data.draw(st.sampled_from(["1", "5", "10", "12"]))
        body = json.loads(json.dumps(make_invite(version).to_request()))
        place: Any = body
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            inner = place[key]
            if not (isinstance(inner, (dict, list)) and inner and data.draw(st.booleans())):
                break
            place = inner
        place[key] = data.draw(anything)
        for key_to_sign in (None, our_key):
            try:
                invite = Invite.from_request(body, key_to_sign)
            except InvalidInviteError as error:
                assert str(error).isprintable()
                continue
            # What was taken can be sent, on one way or the other, and its twin is the same.
            for endpoint in (V2, V1):
                assert endpoint.request(invite, our_key).uri.isascii()
            assert repr(invite).isprintable()
            assert invite == Invite.from_request(invite.to_request())
            invite.to_request()["event"]["content"]["membership"] = "join"  # a copy of it
            assert "invite" == invite.to_request()["event"]["content"]["membership"]

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"event": {}}, "room_version"),
            ({"room_version": "10"}, "event"),
            ({"room_version": "10", "event": {}, "extra": 1}, "extra"),
            ([], "request"),
            ("{}", "request"),
            (b"", "request"),
            (b"\xff", "request"),
            (b'{"event": 1, "event": 2}', "request"),
            (b'"{}"', "request"),
            (b'{"room_version": "10"}', "event"),
        ],
    )
    def test_a_request_has_three_fields(self, body: Any, field: str) -> None:
        with pytest.raises(InvalidInviteError) as caught:
            Invite.from_request(body)

        assert field == caught.value.field

    def test_a_request_may_be_its_bytes(self, make_invite: MakeInvite) -> None:
        invite = make_invite()

        assert invite == Invite.from_request(json.dumps(invite.to_request()).encode())


class TestTheTarget:
    @pytest.mark.parametrize(
        "localpart",
        [
            "",
            "Bob",
            "b/o/b",
            "b ob",
            "b%2Fob",
            "日本",
            "\U0001f431",
            "b\r\nX",
            "..",
            "@bob",
            "\x1b",
        ],
    )
    def test_may_have_any_historical_localpart(
        self, localpart: str, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        for version in ("1", "12"):
            invite = make_invite(version, f"@{localpart}:remote.example:8448")

            assert "remote.example:8448" == str(invite.destination)
            for endpoint in (V1, V2):
                request = endpoint.request(invite, our_key)
                assert (request.uri + (request.authorization or "")).isprintable()
            assert repr(invite).isprintable()

    @pytest.mark.parametrize("server", ["remote.example.", "Remote.Example", "[::1]", "1.2.3.4:1"])
    def test_keeps_the_name_of_its_server_as_it_is_written(
        self, server: str, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        invite = make_invite("10", f"@bob:{server}")

        assert server == str(invite.destination)
        authorization = V2.request(invite, our_key).authorization or ""
        assert server == parse_authorization(authorization).destination


class TestDepth:
    def test_of_an_event_and_its_state_may_be_100(
        self, make_room: MakeRoom, our_key: SigningKey
    ) -> None:
        for version in ROOM_VERSIONS:
            room = make_room(version)
            (create,) = room.invite_room_state
            deep = {"topic": nested(98)}
            topic = {**create, "type": "m.room.topic", "room_id": room.room_id, "content": deep}
            room = dataclasses.replace(room, invite_room_state=[create, topic])
            content = {"reason": nested(98)}
            invite = Invite.build(room, "@bob:remote.example", our_key, content=content)

            for endpoint, wrap in ((V2, b'{"event":%s}'), (V1, b'[200,{"event":%s}]')):
                assert endpoint.request(invite, our_key).body
                assert invite.event == endpoint.read_event(Reply(200, wrap % invite.event_json))

    def test_of_more_is_refused(self, make_invite: MakeInvite) -> None:
        for depth in (99, 500, 950, 990, 1010):
            with pytest.raises(InvalidInviteError, match=r"^event.* nested too deeply"):
                make_invite("10", reason=nested(depth))
            event = make_invite("10").copy_event() | {"unsigned": {"x": nested(depth)}}
            with pytest.raises(InvalidInviteError, match=r"^event.* nested too deeply"):
                Invite.from_pdu(event, "10")


class TestBytes:
    """Each part is encoded once, checked once, and used wherever it is needed."""

    @pytest.mark.parametrize("version", ROOM_VERSIONS)
    def test_are_the_canonical_json_of_what_they_stand_for(
        self, version: str, make_invite: MakeInvite
    ) -> None:
        invite = make_invite(version, displayname="é\u2028\U0001f600\x7f\n")
        rules = ROOM_VERSIONS[version]
        compared = {k: v for k, v in invite.event.items() if k not in ("signatures", "unsigned")}

        assert canonical_json.encode(invite.event) == invite.event_json
        assert canonical_json.encode(list(invite.invite_room_state)) == invite.state_json
        assert canonical_json.encode(compared) == invite.compared_json
        assert events.signing_bytes(invite.event, rules) == invite.signing_json
        assert events.event_id(invite.event, rules) == invite.event_id
        assert events.content_hash(invite.event, rules) == invite.event["hashes"]["sha256"]
        assert canonical_json.encode(invite.to_request()) == V2.body(invite)

    @pytest.mark.parametrize("version", ["1", "5"])
    def test_hold_the_numbers_of_old_rooms(
        self, version: str, make_room: MakeRoom, our_key: SigningKey
    ) -> None:
        room = make_room(version)
        numbers = {"a": 1.5, "b": 1e22, "c": -0.0, "d": 2**70, "e": -(10**399)}
        (create,) = room.invite_room_state
        state = [{**create, "content": {**create["content"], "x": numbers}}]
        room = dataclasses.replace(room, invite_room_state=state)
        invite = Invite.build(room, "@bob:remote.example", our_key, content={"x": numbers})

        assert repr(numbers) == repr(invite.event["content"]["x"])
        assert repr(numbers) == repr(invite.invite_room_state[0]["content"]["x"])
        assert canonical_json.encode(invite.to_request(), strict=False) == V2.body(invite)

    def test_do_not_change_with_what_was_given(self, make_invite: MakeInvite) -> None:
        event, state = make_invite().copy_event(), list(make_invite().invite_room_state)
        invite = Invite.from_pdu(event, "10", state)
        before = invite.to_request(), V2.body(invite)

        event["content"]["membership"] = "ban"
        state[0]["content"]["room_version"] = "11"
        invite.invite_room_state[0]["content"].clear()
        invite.copy_event()["content"].clear()
        assert before == (invite.to_request(), V2.body(invite))

    @pytest.mark.parametrize("value", ["\ud800", 1.5, 2**53, (1,), b"x", {1: 2}])
    def test_of_room_state_are_json(self, value: object, make_invite: MakeInvite) -> None:
        invite = make_invite()
        for name in ("type", "content", "x"):
            state = [*invite.invite_room_state, {**invite.invite_room_state[0], name: [value]}]
            with pytest.raises(InvalidInviteError, match="is not canonical JSON") as caught:
                Invite.from_pdu(invite.event, "10", state)
            assert f"invite_room_state[1].{name}[0]" == caught.value.field

    @pytest.mark.parametrize(
        ("content", "field"),
        [
            ({"x": 1.5}, ".x"),
            ({"x": {"y": [1, {"\n": 2**53}]}}, ".x.y[1]."),
            ({"x": {1: 2}}, ".x"),
            ({"x": {10**5000: 1.5}}, ".x"),
            ({"\ud800": 1}, ""),
            ({"a": {"b": {"c": {"d": {"e": 1.5}}}}}, ".a.b.c.d"),
        ],
    )
    def test_that_are_not_json_are_named(
        self, content: Any, field: str, make_invite: MakeInvite
    ) -> None:
        event = {**make_invite().event, "content": {"membership": "invite", **content}}
        with pytest.raises(InvalidInviteError, match="is not canonical JSON") as caught:
            Invite.from_pdu(event, "10")

        assert f"event.content{field}" == caught.value.field


class TestRoomState:
    def test_comes_from_unsigned_where_none_is_given(self, make_invite: MakeInvite) -> None:
        invite = make_invite()
        state = list(invite.invite_room_state)
        event = invite.copy_event() | {"unsigned": {"invite_room_state": state}}

        assert invite.invite_room_state == Invite.from_pdu(event, "10").invite_room_state

    def test_without_the_create_event_is_warned_of(self, make_invite: MakeInvite) -> None:
        assert () == make_invite().warnings
        (warning,) = Invite.from_pdu(make_invite().event, "10", ()).warnings
        assert "m.room.create" in warning

    def test_without_the_create_event_is_refused_in_room_version_12(
        self, make_invite: MakeInvite
    ) -> None:
        with pytest.raises(InvalidInviteError, match=r"^invite_room_state: .*m.room.create"):
            Invite.from_pdu(make_invite("12").event, "12", ())

    def test_may_be_stripped_before_room_version_12(self, make_invite: MakeInvite) -> None:
        for version in ROOM_VERSIONS:
            invite = make_invite(version)
            stripped = [
                {name: entry[name] for name in ("type", "sender", "state_key", "content")}
                for entry in invite.invite_room_state
            ]
            if version == "12":
                with pytest.raises(InvalidInviteError, match="stripped state is not enough"):
                    Invite.from_pdu(invite.event, version, stripped)
            else:
                (warning,) = Invite.from_pdu(invite.event, version, stripped).warnings
                assert "stripped state is not enough; some servers refuse that" in warning

    @pytest.mark.parametrize("version", ROOM_VERSIONS)
    def test_of_another_room_is_refused_in_room_version_12_and_warned_of_before(
        self, version: str, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        invite = make_invite(version)
        (create,) = invite.invite_room_state
        name = {**create, "type": "m.room.name", "room_id": "!other:example.org"}
        if version == "12":
            with pytest.raises(InvalidInviteError, match=r"^invite_room_state\[1\]\.room_id: "):
                Invite.from_pdu(invite.event, version, [create, name])
        else:
            (warning,) = Invite.from_pdu(invite.event, version, [create, name]).warnings
            assert "invite_room_state[1].room_id: is '!other:example.org'" in warning

    @pytest.mark.parametrize("version", ["2", "11", "12"])
    def test_with_another_room_version_is_refused_in_room_version_12_and_warned_of_before(
        self, version: str, make_invite: MakeInvite
    ) -> None:
        invite = make_invite(version)
        (create,) = invite.invite_room_state
        for content in ({"room_version": "9"}, {}):
            state = [{**create, "content": content}]
            if version == "12":
                with pytest.raises(InvalidInviteError, match=r"\.content\.room_version: is '[91]'"):
                    Invite.from_pdu(invite.event, version, state)
            else:
                (warning,) = Invite.from_pdu(invite.event, version, state).warnings
                assert f"expected '{version}', the room's version" in warning

    def test_warnings_are_few(self, make_invite: MakeInvite) -> None:
        entry = {"type": "m.room.name", "sender": "@a:b", "state_key": "", "content": {}}
        warnings = Invite.from_pdu(make_invite().event, "10", [entry] * 50).warnings

        assert 2 == len(warnings)
        assert "invite_room_state[0].hashes" in warnings[0]
        assert "must contain the m.room.create event" in warnings[1]

    def test_holds_a_create_event_without_a_room_id_in_room_version_12(
        self, make_invite: MakeInvite
    ) -> None:
        invite = make_invite("12")
        (create,) = invite.invite_room_state
        state = [{**create, "room_id": invite.room_id}]
        with pytest.raises(InvalidInviteError, match="nothing: its own hash is the room ID"):
            Invite.from_pdu(invite.event, "12", state)

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"depth": "1"}, "depth"),
            ({"origin_server_ts": -1}, "origin_server_ts"),
            ({"prev_events": None}, "prev_events"),
            ({"event_id": "$x:y"}, "event_id"),
            ({"hashes": []}, "hashes"),
            ({"signatures": "x"}, "signatures"),
        ],
    )
    def test_has_the_form_of_the_room_version(
        self, change: dict[str, Any], field: str, make_invite: MakeInvite
    ) -> None:
        invite = make_invite("12")
        (create,) = invite.invite_room_state
        with pytest.raises(InvalidInviteError) as caught:
            Invite.from_pdu(invite.event, "12", [{**create, **change}])

        assert f"invite_room_state[0].{field}" == caught.value.field

    def test_is_of_the_room_in_room_version_12(
        self, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        invite = make_invite("12")
        (create,) = invite.invite_room_state
        other = resigned({**create, "depth": 7}, "12", our_key)
        name = resigned({**create, "type": "m.room.name", "room_id": "!" + "x" * 43}, "12", our_key)
        for state in ([other], [create, name]):
            with pytest.raises(InvalidInviteError, match=r"invite_room_state\[.\].room_id: "):
                Invite.from_pdu(invite.event, "12", state)

    @pytest.mark.parametrize(
        ("state", "field"),
        [
            ("text", "invite_room_state"),
            ({}, "invite_room_state"),
            (7, "invite_room_state"),
            ([1], "invite_room_state[0]"),
            ([{}], "invite_room_state[0].type"),
            ([{"type": "t", "sender": "s"}], "invite_room_state[0].state_key"),
            ([{"type": "t", "sender": "s", "state_key": ""}], "invite_room_state[0].content"),
            ([{"type": 1.5}], "invite_room_state[0].type"),
        ],
    )
    def test_that_is_malformed_names_the_field(
        self, state: Any, field: str, make_invite: MakeInvite
    ) -> None:
        with pytest.raises(InvalidInviteError) as caught:
            Invite.from_pdu(make_invite().event, "10", state)

        assert field == caught.value.field


class TestRoom:
    def test_is_read_from_json(self, make_room: MakeRoom) -> None:
        room = make_room("10")
        value = {name: getattr(room, name) for name in Room.__slots__}

        assert room == Room.from_json(value)
        del value["invite_room_state"]
        assert () == Room.from_json(value).invite_room_state

    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"surplus": 1}, "room.surplus"),
            ({"room_id": 1}, "room.room_id"),
            ({"prev_events": {}}, "room.prev_events"),
            ({"invite_room_state": None}, "room.invite_room_state"),
            ({"depth": "1"}, "room.depth"),
        ],
    )
    def test_that_is_malformed_names_the_field(
        self, changes: dict[str, Any], field: str, make_room: MakeRoom
    ) -> None:
        room = make_room("10")
        value = {name: getattr(room, name) for name in Room.__slots__} | changes
        with pytest.raises(InvalidInviteError) as caught:
            Room.from_json(value)

        assert field == caught.value.field

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("room_version", 10, "is 10, expected a string"),
            ("sender", None, "is nothing, expected a string"),
            ("depth", True, "is True, expected a whole number"),
            ("prev_events", "$a", "is '$a', expected a list"),
            ("auth_events", None, "is nothing, expected a list"),
            ("auth_events", {"$a"}, "is {'$a'}, expected a list"),
            ("invite_room_state", b"[]", "is b'[]', expected a list"),
        ],
    )
    def test_is_refused_where_it_is_made(
        self, name: str, value: Any, words: str, make_room: MakeRoom
    ) -> None:
        with pytest.raises(InvalidInviteError) as caught:
            dataclasses.replace(make_room("10"), **{name: value})

        assert f"room.{name}: {words}" == caught.value.message

    @given(anything)
    def test_is_read_from_anything_or_refused(self, value: object) -> None:
        with pytest.raises(InvalidInviteError) as caught:
            Room.from_json(value)

        assert str(caught.value).isprintable()

    @given(data=st.data())
    def test_makes_an_invite_or_an_error_of_ours_whatever_is_in_it(
        self, data: st.DataObject, make_room: MakeRoom, our_key: SigningKey
    ) -> None:
        room = make_room(data.draw(st.sampled_from(["1", "10", "12"])))
        value = {name: getattr(room, name) for name in Room.__slots__}
        value[data.draw(st.sampled_from(Room.__slots__))] = data.draw(anything)
        try:
            invite = Invite.build(Room.from_json(value), "@bob:remote.example", our_key)
        except InvalidInviteError as error:
            assert str(error).isprintable()
        else:
            assert invite == Invite.from_pdu(
                invite.event, str(invite.room_version), invite.invite_room_state
            )

    def test_that_is_incomplete_or_no_object_is_refused(self) -> None:
        with pytest.raises(InvalidInviteError, match=r"^room.room_id: is missing"):
            Room.from_json({})
        with pytest.raises(InvalidInviteError, match=r"^room: must be a JSON object"):
            Room.from_json([])


class TestRequests:
    @pytest.mark.parametrize("endpoint", [V2, V1], ids=["v2", "v1"])
    @pytest.mark.parametrize("version", ROOM_VERSIONS)
    def test_are_canonical_and_signed_as_sent(
        self, version: str, endpoint: Any, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        invite = make_invite(version)
        request = endpoint.request(invite, our_key)
        credentials = parse_authorization(request.authorization)

        assert request.body == canonical_json.encode(json.loads(request.body))
        assert (INVITER, "remote.example") == (credentials.origin, credentials.destination)
        assert our_key.key_id == credentials.key_id
        signed = signed_bytes("PUT", request.uri, INVITER, "remote.example", request.body)
        assert our_key.verify_key.verifies(signed, credentials.signature)

    def test_percent_encode_each_segment_once(
        self, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        event = make_invite("3").copy_event() | {"room_id": "!a/b+c%2F?#:inviter.example"}
        invite = Invite.sign(event, "3", our_key, ())
        uri = V2.request(invite, our_key).uri
        room_id, event_id = uri.removeprefix("/_matrix/federation/v2/invite/").split("/")

        assert "%21a%2Fb%2Bc%252F%3F%23%3Ainviter.example" == room_id
        assert event_id.startswith("%24")

    def test_of_v2_have_three_fields(self, make_invite: MakeInvite, our_key: SigningKey) -> None:
        invite = make_invite("10")

        assert invite.to_request() == json.loads(V2.request(invite, our_key).body)

    def test_of_v1_are_the_event_with_the_room_state_in_unsigned(
        self, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        invite = make_invite("1")
        body = json.loads(V1.request(invite, our_key).body)

        assert {"invite_room_state": list(invite.invite_room_state)} == body.pop("unsigned")
        assert invite.event == body

    def test_leave_what_else_is_unsigned_alone(
        self, make_invite: MakeInvite, our_key: SigningKey
    ) -> None:
        event = make_invite("2").copy_event()
        event["unsigned"] = {"age": 1, "invite_room_state": "replaced"}
        invite = Invite.from_pdu(event, "2", ())

        assert {"age": 1, "invite_room_state": []} == json.loads(
            V1.request(invite, our_key).body or b""
        )["unsigned"]
        assert invite.event == json.loads(V2.request(invite, our_key).body or b"")["event"] == event


class TestReading:
    def test_v2_answers_with_a_container(self) -> None:
        assert {"a": 1} == V2.read_event(Reply(200, b'{"event": {"a": 1}}'))

    def test_v1_answers_with_a_status_and_a_container(self) -> None:
        assert {"a": 1} == V1.read_event(Reply(200, b'[200, {"event": {"a": 1}}]'))

    @pytest.mark.parametrize("endpoint", [V2, V1], ids=["v2", "v1"])
    @pytest.mark.parametrize(
        "body",
        [
            b"", b"<html>", b"null", b"[]", b"{}", b"1", b'"event"', b'{"event": []}',
            b'{"event": null}', b"[200]", b'[200, {"event": 1}]', b"[200, {}]", b"[200, 200]",
            b'[403, {"event": {}}]', b'[true, {"event": {}}]', b'["200", {"event": {}}]',
            b'[200, {"event": {}}, 1]', b'{"event": {}, "event": {}}', b"\xff", b"[" * 100_000,
        ],
    )  # fmt: skip
    def test_anything_else_is_a_named_error(self, endpoint: Any, body: bytes) -> None:
        with pytest.raises(MalformedReplyError, match=f"the answer to the {endpoint.name} invite"):
            endpoint.read_event(Reply(200, body))

    @given(st.binary())
    def test_any_bytes_are_an_event_or_an_error_of_ours(self, body: bytes) -> None:
        for endpoint in (V1, V2):
            with pytest.raises(MalformedReplyError):
                endpoint.read_event(Reply(200, body))


UNKNOWN = b'{"errcode":"M_UNRECOGNIZED","error":"?"}'
NOT_FOUND = b'{"errcode":"M_NOT_FOUND"}'
FORBIDDEN = b'{"errcode":"M_FORBIDDEN"}'


class TestFallingBack:
    @pytest.mark.parametrize("body", [b"", b"<html>", UNKNOWN, NOT_FOUND, FORBIDDEN, b"[]"])
    @pytest.mark.parametrize("status", [400, 404])
    @pytest.mark.parametrize("version", ROOM_VERSIONS)
    def test_happens_on_400_and_404_in_room_versions_1_and_2(
        self, version: str, status: int, body: bytes
    ) -> None:
        assert (version in FALLBACK) is falls_back_to_v1(
            Reply(status, body), ROOM_VERSIONS[version]
        )

    @pytest.mark.parametrize("status", [200, 301, 401, 403, 405, 410, 429, 500, 502])
    def test_happens_on_nothing_else(self, status: int) -> None:
        assert not falls_back_to_v1(Reply(status, UNKNOWN), ROOM_VERSIONS["1"])

    @pytest.mark.parametrize(
        ("status", "body", "expected"),
        [
            (404, b"", True),
            (404, b"<html>", True),
            (404, UNKNOWN, True),
            (400, UNKNOWN, True),
            (404, NOT_FOUND, False),
            (404, b'{"errcode": 5}', True),
            (400, b"", False),
            (400, FORBIDDEN, False),
        ],
    )
    def test_can_be_narrowed_to_unknown_endpoints(
        self, status: int, body: bytes, expected: bool
    ) -> None:
        reply = Reply(status, body)

        assert expected is falls_back_to_v1(reply, ROOM_VERSIONS["2"], "unknown-endpoint")


class TestRejections:
    def rejected(
        self, invite: Invite, status: int, body: object = None, **headers: str
    ) -> InviteRejectedError:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = Reply(status, json.dumps(body).encode(), named)
        error = rejection(reply, V2, invite, now=NOW)
        assert isinstance(error, InviteRejectedError)
        return error

    def test_keep_the_words_of_the_remote(self, make_invite: MakeInvite) -> None:
        words = {"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "Nö", "room_version": "12"}
        error = self.rejected(make_invite(), 400, words)

        assert (400, "M_INCOMPATIBLE_ROOM_VERSION", "Nö", "12") == (
            error.status, error.errcode, error.error, error.room_version,
        )  # fmt: skip
        assert not error.retryable

    @pytest.mark.parametrize(
        ("errcode", "version"),
        [
            ("M_INCOMPATIBLE_ROOM_VERSION", {}),
            ("M_INCOMPATIBLE_ROOM_VERSION", {"room_version": 10}),
            ("M_UNSUPPORTED_ROOM_VERSION", {}),
        ],
    )
    def test_name_the_room_version_that_is_not_supported_even_if_the_remote_does_not(
        self, errcode: str, version: dict[str, Any], make_invite: MakeInvite
    ) -> None:
        error = self.rejected(make_invite("11"), 400, {"errcode": errcode, **version})
        status, body = error.client_response()

        assert (400, "M_INCOMPATIBLE_ROOM_VERSION") == (status, body["errcode"])
        assert "11" == body["room_version"]

    def test_show_the_words_of_the_remote_on_one_line(self, make_invite: MakeInvite) -> None:
        error = "no\n2023-11-14 all is well\x1b[2J" + "x" * 100_000
        rejected = self.rejected(make_invite(), 403, {"errcode": "M_\nX", "error": error})

        assert ("M_\nX", error) == (rejected.errcode, rejected.error)
        assert str(rejected).isprintable()
        assert len(str(rejected)) < 300

    @pytest.mark.parametrize("body", [None, [], {"errcode": 1, "error": []}, "text"])
    def test_bear_any_body(self, body: object, make_invite: MakeInvite) -> None:
        error = self.rejected(make_invite(), 403, body)

        assert (None, None) == (error.errcode, error.error)

    @pytest.mark.parametrize(
        ("body", "shown"),
        [
            (
                b'{"message": "Unrecognised server name"}',
                ': {"message": "Unrecognised server name"}',
            ),
            (b"<h1>\r\n Bad\xff\x1b[2J Gateway</h1>", ": <h1> Bad\ufffd [2J Gateway</h1>"),
            (b"x" * 1_000_000, f": {'x' * 200}"),
            (b" \n", ""),
            (b"", ""),
        ],
        ids=["JSON", "HTML", "long", "blank", "none"],
    )
    def test_show_what_came_instead_of_a_matrix_error(
        self, body: bytes, shown: str, make_invite: MakeInvite
    ) -> None:
        error = rejection(Reply(400, body), V2, make_invite(), now=NOW)

        expected = f"the v2 invite was answered 400 without a Matrix error{shown}"
        assert expected == error.message
        assert isinstance(error, InviteRejectedError)
        assert (None, None) == (error.errcode, error.error)

    @pytest.mark.parametrize("status", [100, 201, 204, 301, 302, 307, 308, 600, 999])
    def test_are_errors_and_nothing_else(self, status: int, make_invite: MakeInvite) -> None:
        error = rejection(Reply(status, b"{}"), V2, make_invite(), now=NOW)

        assert isinstance(error, MalformedReplyError)

    @pytest.mark.parametrize(
        ("status", "retryable"),
        [
            (429, True),
            (500, True),
            (503, True),
            (400, False),
            (403, False),
            (404, False),
            (408, False),
        ],
    )
    def test_can_be_retried_where_the_remote_may_change_its_mind(
        self, status: int, retryable: bool, make_invite: MakeInvite
    ) -> None:
        error = self.rejected(make_invite(), status)

        assert retryable is error.retryable
        assert (status == 429) is isinstance(error, RateLimitedError)

    @pytest.mark.parametrize(
        ("header", "body", "expected"),
        [
            ("7", {}, 7.0),
            ("0", {}, 0.0),
            ("9" * 5000, {}, FOREVER),
            (" 7\t", {}, 7.0),
            ("7", {"retry_after_ms": 10**300}, FOREVER),
            ("Fri, 31 Dec 9999 23:59:59 GMT", {}, 253402300799 - NOW),
            ("Tue, 14 Nov 2023 22:13:30", {}, 10.0),
            ("Tuesday, 14-Nov-23 22:13:30 GMT", {}, 10.0),
            ("Tue Nov 14 22:13:30 2023", {}, 10.0),
            ("Tue, 14 Nov 2023 22:13:30 GMT", {}, 10.0),
            ("Tue, 14 Nov 2023 22:13:30 -0000", {}, 10.0),
            ("Tue, 14 Nov 2023 22:00:00 GMT", {}, 0.0),
            ("-5", {}, None),
            ("soon", {}, None),
            ("٧", {}, None),
            ("Tue, 99 Nov 99999 22:13:30 GMT", {}, None),
            ("", {"retry_after_ms": 2500}, 2.5),
            ("7", {"retry_after_ms": 2500}, 7.0),
            ("1", {"retry_after_ms": 2500}, 2.5),
            ("", {"retry_after_ms": -1}, 0.0),
            ("", {"retry_after_ms": 10**300}, FOREVER),
            ("", {"retry_after_ms": 1.5}, None),
            ("", {"retry_after_ms": True}, None),
            ("", {"retry_after_ms": "1"}, None),
            ("", {}, None),
        ],
    )
    def test_say_how_long_to_wait(
        self, header: str, body: object, expected: float | None, make_invite: MakeInvite
    ) -> None:
        assert expected == self.rejected(make_invite(), 429, body, retry_after=header).retry_after

    def test_advise_what_to_check_on_401(self, make_invite: MakeInvite) -> None:
        assert "clock" in self.rejected(make_invite(), 401).diagnosis()

    def test_say_that_the_remote_is_too_old_on_404_where_there_is_no_v1(
        self, make_invite: MakeInvite
    ) -> None:
        assert "too old for room version 10" in self.rejected(make_invite("10"), 404).diagnosis()
        assert "too old" not in self.rejected(make_invite("1"), 404).diagnosis()

    @pytest.mark.parametrize(
        ("v2", "v1", "telling"),
        [
            ((404, None), (403, "M_FORBIDDEN"), "v1"),
            ((400, "M_INVALID_PARAM"), (404, None), "v2"),
            ((400, "M_FORBIDDEN"), (404, "M_UNRECOGNIZED"), "v2"),
            ((404, "M_UNRECOGNIZED"), (404, None), "v1"),
            ((400, "M_BAD_JSON"), (403, "M_FORBIDDEN"), "v1"),
            ((400, "M_BAD_JSON"), (503, None), "v1"),
        ],
    )
    def test_of_both_endpoints_give_the_more_telling(
        self,
        v2: tuple[int, str | None],
        v1: tuple[int, str | None],
        telling: str,
        make_invite: MakeInvite,
    ) -> None:
        first, second = (
            self.rejected(make_invite(), status, {"errcode": errcode})
            for status, errcode in (v2, v1)
        )
        raised = more_telling(first, second)

        assert (first if telling == "v2" else second) is raised
        assert (second if telling == "v2" else first) is raised.other


# --- Events of the room's state that are seen to be right at one look ----------------------------

odd = st.sampled_from(
    [
        None, True, 0, -1, 2**53 - 1, 2**53, 2**63, 1.0, "", "$", "$a", "a", "!other:inviter.example",
        "m.room.create", "\ud800", [], ["$a"], ["a"], ["$a", 1], ["$a"] * 11, ["$a"] * 21, (), {},
        {"a": 1.5}, {"a": 2**60}, {"a": ["\udfff"]}, {1: 2}, {"a": ()},
    ]
)  # fmt: skip
deep: dict[str, Any] = {}
for _ in range(canonical_json.MAX_DEPTH - 1):
    deep = {"a": deep}
names = st.sampled_from(
    [
        "type", "sender", "state_key", "room_id", "content", "origin_server_ts", "depth",
        "prev_events", "auth_events", "hashes", "signatures", "unsigned", "event_id", "other",
    ]
)  # fmt: skip
changes = st.dictionaries(names, odd | st.just(...) | st.just(deep) | st.just({"a": deep}))


@given(st.sampled_from(["1", "3", "5", "10", "11", "12"]), changes, st.booleans())
@example("10", {"other": 1.5}, False)
@example("10", {"other": 1.5, "unsigned": ...}, True)
@example("10", {"unsigned": None}, False)
@example("10", {"content": {"a": deep}}, False)
@example("12", {"auth_events": ["$a"]}, True)
def test_one_look_finds_what_the_checks_find(
    make_invite: MakeInvite, our_key: SigningKey, version: str, changed: dict[str, Any], own: bool
) -> None:
    invite = make_invite(version)
    rules = ROOM_VERSIONS[version]
    create = invite.invite_room_state[0]
    state = {
        **{k: v for k, v in invite.event.items() if k not in ("hashes", "signatures")},
        "type": "m.room.name",
        "state_key": "",
        "content": {"name": "A room"},
    }
    state = {**sign_event(state, INVITER, our_key, rules), "unsigned": {}}
    for name, value in changed.items():
        if value is ...:
            state.pop(name, None)
        else:
            state[name] = value
    if own and rules.room_id_is_create_event_id:
        state["auth_events"] = ["$" + invite.room_id[1:]]

    def taken() -> object:
        try:
            made = Invite.from_pdu(invite.event, version, [create, state])
        except InvalidInviteError as error:
            return str(error)
        return made.state_json, made.warnings

    found = taken()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(invite_rules, "_is_evident_pdu", lambda *_: False)
        assert taken() == found
