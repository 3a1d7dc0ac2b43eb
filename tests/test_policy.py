"""What a policy cannot mean is refused where it is made, by the name of the setting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from invite_client import (
    DnsPolicy,
    Invite,
    KeyPolicy,
    Limits,
    MalformedReplyError,
    Policy,
    ProxyPolicy,
    TlsPolicy,
)
from invite_client.net.tls import unverified_names
from invite_client.spec.http import Reply
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    RoomHistory,
    SimulatedHomeserver,
    make_invite,
)
from invite_client.testing.homeserver import Received


class TestNameServers:
    @pytest.mark.parametrize(
        ("text", "server"),
        [
            ("192.0.2.1", ("192.0.2.1", 54)),
            ("192.0.2.1:5353", ("192.0.2.1", 5353)),
            ("2001:db8::1", ("2001:db8::1", 54)),
            ("[2001:db8::1]", ("2001:db8::1", 54)),
            ("[2001:DB8::1]:1", ("2001:db8::1", 1)),
            ("fe80::1%eth0", ("fe80::1%eth0", 54)),
        ],
    )
    def test_have_a_port_of_their_own_or_the_common_one(
        self, text: str, server: tuple[str, int]
    ) -> None:
        assert (server,) == DnsPolicy(nameservers=(text,), port=54).servers

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "dns.example",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "192.0.2.1:",
            "192.0.2:53",
            "[192.0.2.1]:53",
            "[2001:db8::1",
            "[::1]:53 ",
            "https://192.0.2.1",
        ],
    )
    def test_are_addresses(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"dns\.nameservers: .* is not an IP address"):
            DnsPolicy(nameservers=(text,))


class TestServersWhoseCertificateIsNotChecked:
    @pytest.mark.parametrize(
        ("entry", "name", "matches"),
        [
            ("lab.example", "LAB.example", True),
            ("lab.example", "lab.example:8449", False),
            ("lab.example:*", "lab.example:8449", True),
            ("lab.example", "xlab.example", False),
            ("lab.example", "labxexample", False),
            ("*.lab.example", "a.b.lab.example", True),
            ("*.lab.example", "lab.example", False),
            ("*.lab.example", "a.lab.example.net", False),
            ("lab?.example", "lab1.example", True),
            ("lab?.example", "lab.example", False),
            ("[2001:db8::1]:8448", "[2001:db8::1]:8448", True),
            ("lab.example.", "lab.example.", True),
        ],
    )
    def test_are_named_with_wildcards_or_without(
        self, entry: str, name: str, matches: bool
    ) -> None:
        names = unverified_names(TlsPolicy(unverified=("other.example", entry)))

        assert matches == (names.fullmatch(name) is not None)

    def test_are_none_by_default(self) -> None:
        assert unverified_names(TlsPolicy()).fullmatch("") is None

    @pytest.mark.parametrize(
        "entry", ["*", "*.*", "*:8448", "*.", "lab*", "lab.example.*", "", "?"]
    )
    def test_are_named_one_by_one_or_by_their_domain(self, entry: str) -> None:
        with pytest.raises(ValueError, match=r"tls\.unverified: .* names nobody in particular"):
            TlsPolicy(unverified=(entry,))


def test_what_is_to_be_reached_directly_is_known_also_if_the_proxy_is_named_elsewhere() -> None:
    assert ProxyPolicy(bypass=("lan",)) == ProxyPolicy.from_environment({"no_proxy": "lan"})


class Fills(SimulatedHomeserver):
    """One whose answers to invites have a certain length."""

    length = 0

    def receive(self, received: Received) -> Reply:
        reply = super().receive(received)
        fills = received.endpoint in ("v2", "v1")
        return replace(reply, body=reply.body.ljust(self.length)) if fills else reply


class RepeatsTheRoom(SimulatedHomeserver):
    """One that returns the room's state, too, and escapes what could be taken for HTML."""

    def receive(self, received: Received) -> Reply:
        def lie(honest: Any) -> Any:
            state = list(honest.invite.invite_room_state)
            return {**honest.event, "unsigned": {"invite_room_state": state}}

        self.lies(lie, times=1, endpoint=received.endpoint)
        reply = super().receive(received)
        return replace(reply, body=reply.body.replace(b"<", rb"\u003c"))


class TestReplies:
    async def test_may_repeat_all_that_was_sent_however_it_is_spelled(self) -> None:
        # Given a room whose state is longer than an answer may be, if it is spelled at its longest
        history = RoomHistory.create(INVITER, INVITER_KEY, "12")
        for n in range(4):
            history.add("m.room.topic", {"topic": "<" * 60_000}, str(n))
        room = replace(history.snapshot(), invite_room_state=list(history.state.values()))
        invite = Invite.build(room, "@bob:remote.example", INVITER_KEY)

        signed = await RepeatsTheRoom().client().send_invite(invite)

        assert signed.signatures

    async def test_are_bounded_by_what_was_sent(self) -> None:
        remote, invite = Fills(), make_invite()
        client = remote.client(policy=Policy(limits=Limits(reply_bytes=100)))
        await client.send_invite(invite)
        longest = 100 + 6 * len(remote.requests_for("v2")[0].body)

        remote.length = longest
        await client.send_invite(invite)

        remote.length = longest + 1
        with pytest.raises(MalformedReplyError, match=f"is longer than {longest} bytes"):
            await client.send_invite(invite)


class TestKeys:
    @pytest.mark.parametrize("seconds", [604_800.1, 10**9, float("inf"), float("nan"), 0, -1])
    def test_are_believed_for_7_days_at_most(self, seconds: float) -> None:
        with pytest.raises(ValueError, match=r"keys\.maximum_validity must be "):
            KeyPolicy(maximum_validity=seconds)

    def test_may_be_believed_for_less(self) -> None:
        assert 60 == KeyPolicy(maximum_validity=60).maximum_validity
        assert 7 * 86_400 == KeyPolicy(maximum_validity=7 * 86_400).maximum_validity
