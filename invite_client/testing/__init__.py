"""Homeservers that misbehave on demand, for the tests of those who send invites.

`LoopbackHomeserver` has real DNS, TLS and HTTP on loopback; it takes no privileges and no
configuration. `SimulatedHomeserver` has no sockets. Both check requests and events, and countersign,
as the specification asks; both can be told to lie and to fail:

    from invite_client import CountersignatureError
    from invite_client.testing import LoopbackHomeserver, badly_signed, make_invite

    async def test_a_forged_countersignature_is_refused():
        async with LoopbackHomeserver("remote.example", well_known="matrix.example:8449") as remote:
            remote.lies(badly_signed())
            async with remote.client() as client:
                with pytest.raises(CountersignatureError):
                    await client.send_invite(make_invite())
            assert 1 == remote.counts["v2"]

Needs the extra `testing`. Recipes are in ``docs/testing.md``.
"""

from invite_client.testing.certificates import (
    COMMON_NAME_ONLY,
    EXPIRED,
    SELF_SIGNED,
    UNKNOWN_CA,
    Certificate,
)
from invite_client.testing.clock import ManualClock
from invite_client.testing.faults import (
    BreaksOff,
    ClosesAfterAnswering,
    ClosesBeforeTls,
    DiesOnReuse,
    Drips,
    EndlessBody,
    Fault,
    GzipBomb,
    Hangs,
    HugeBody,
    LosesTheAnswer,
    ManyHeaders,
    NeverCompletesTheHandshake,
    Refuses,
    Resets,
    SaysRaw,
    Slow,
    TimesOut,
    Unreachable,
    Wire,
    WireFault,
)
from invite_client.testing.homeserver import Homeserver, Received
from invite_client.testing.lies import (
    HonestAnswer,
    Lie,
    adds_junk_signatures,
    adds_unsigned,
    badly_signed,
    changes,
    drops_signatures_of_the_inviter,
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
from invite_client.testing.loopback import Connection, LoopbackHomeserver, Srv, WellKnown
from invite_client.testing.nameserver import (
    NO_ANSWER,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    TRUNCATED,
    DnsFault,
    NameServer,
    Question,
)
from invite_client.testing.network import LoopbackNetwork
from invite_client.testing.rooms import INVITER, INVITER_KEY, RoomHistory, make_invite, make_room
from invite_client.testing.simulated import SimulatedFederation, SimulatedHomeserver

__all__ = [
    "COMMON_NAME_ONLY",
    "EXPIRED",
    "INVITER",
    "INVITER_KEY",
    "NO_ANSWER",
    "NXDOMAIN",
    "REFUSED",
    "SELF_SIGNED",
    "SERVFAIL",
    "TRUNCATED",
    "UNKNOWN_CA",
    "BreaksOff",
    "Certificate",
    "ClosesAfterAnswering",
    "ClosesBeforeTls",
    "Connection",
    "DiesOnReuse",
    "DnsFault",
    "Drips",
    "EndlessBody",
    "Fault",
    "GzipBomb",
    "Hangs",
    "Homeserver",
    "HonestAnswer",
    "HugeBody",
    "Lie",
    "LoopbackHomeserver",
    "LoopbackNetwork",
    "LosesTheAnswer",
    "ManualClock",
    "ManyHeaders",
    "NameServer",
    "NeverCompletesTheHandshake",
    "Question",
    "Received",
    "Refuses",
    "Resets",
    "RoomHistory",
    "SaysRaw",
    "SimulatedFederation",
    "SimulatedHomeserver",
    "Slow",
    "Srv",
    "TimesOut",
    "Unreachable",
    "WellKnown",
    "Wire",
    "WireFault",
    "adds_junk_signatures",
    "adds_unsigned",
    "badly_signed",
    "changes",
    "drops_signatures_of_the_inviter",
    "make_invite",
    "make_room",
    "malformed_signatures",
    "malformed_signatures_of_its_own",
    "removes",
    "returns_another_event",
    "signed_by",
    "signed_with",
    "signed_with_an_expired_key",
    "signed_with_an_unpublished_key",
    "signs_the_unredacted_event",
    "unsigned",
]
