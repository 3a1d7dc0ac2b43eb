"""Many invites to a Synapse whose limits are as it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import trustme

from invite_client import AddressPolicy, Invite, InviteClient, Policy, TlsPolicy
from invite_client.observations import Observation, Replied, RequestSent
from tests.interop.inviter import Inviter, create_room
from tests.interop.synapse import Synapse, start_synapse

pytestmark = [pytest.mark.interop, pytest.mark.slow]

# Over federation Synapse limits invites by the invited user: five at once, then three in 1,000 s.
# Nobody waits 333 s for a test, unless `INVITE_CLIENT_SYNAPSE_DEFAULTS` is set.
DEFAULTS = "INVITE_CLIENT_SYNAPSE_DEFAULTS" in os.environ
BURST = 5 if DEFAULTS else 2
QUICKER = {"per_user": {"per_second": 0.4, "burst_count": BURST}}


@pytest.fixture(scope="module")
def synapse(tmp_path_factory: pytest.TempPathFactory, interop_ca: trustme.CA) -> Iterator[Synapse]:
    if importlib.util.find_spec("synapse") is None:
        pytest.skip("needs matrix-synapse, which the extra `dev` brings")
    directory = tmp_path_factory.mktemp("synapse")
    settings = {} if DEFAULTS else {"rc_invites": QUICKER}
    with start_synapse(
        directory, interop_ca, defaults=["rc_invites"], settings=settings
    ) as running:
        yield running


@dataclass
class Conversation:
    """An observer that notes until when the remote wants no invites of a user, and who is early."""

    sent: int = 0
    limited: int = 0
    until: dict[str, float] = field(default_factory=dict)
    too_early: list[float] = field(default_factory=list)

    def __call__(self, event: Observation) -> None:
        now = time.monotonic()
        match event:
            case RequestSent(invite=invite):
                self.sent += 1
                if now < self.until.get(invite.target, now):
                    self.too_early.append(self.until[invite.target] - now)
            case Replied(invite=invite, reply=reply) if reply.status == 429:
                self.limited += 1
                seconds = json.loads(reply.body)["retry_after_ms"] / 1000
                self.until[invite.target] = now + seconds


@pytest.mark.timeout(900)
async def test_all_invites_arrive_and_every_limit_is_kept(
    synapse: Synapse, inviter: Inviter
) -> None:
    popular, *others = [await synapse.register() for _ in range(5)]
    rooms = [create_room(inviter, "10").snapshot() for _ in range(BURST + 2)]
    invites = [
        Invite.build(room, user.user_id, inviter.signing_key)
        for room, guests in [(room, [popular]) for room in rooms] + [(rooms[0], others)]
        for user in guests
    ]
    policy = Policy(
        tls=TlsPolicy(ca_file=str(synapse.ca_file)),
        addresses=AddressPolicy(allowed=("127.0.0.0/8", "::1/128")),
    )
    conversation = Conversation()
    async with (
        InviteClient(
            inviter.server_name, inviter.signing_key, policy=policy, observer=conversation
        ) as client,
        client.send_invites(invites) as outcomes,
    ):
        ended = [outcome async for outcome in outcomes]

    assert [None] * len(invites) == [outcome.error for outcome in ended]
    for room in rooms:
        assert await synapse.invite_state(popular, room.room_id)
    for user in others:
        assert await synapse.invite_state(user, rooms[0].room_id)
    # It did limit us, and was left alone with that user for as long as it asked for each time …
    assert conversation.limited
    assert [] == conversation.too_early
    assert conversation.sent == len(invites) + conversation.limited
    # … while nobody else had to wait.
    assert {popular.user_id} == {outcome.invite.target for outcome in ended[-2:] if outcome.invite}
