"""What an error says of the event, and not only of its last attempt: "not sent" means never."""

from __future__ import annotations

import pytest

from invite_client.errors import (
    Delivery,
    InviteError,
    InviteRejectedError,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.observations import FellBack, Observation, RetryScheduled
from invite_client.policy import Retries
from invite_client.testing import (
    ClosesBeforeTls,
    Hangs,
    LoopbackHomeserver,
    LosesTheAnswer,
    make_invite,
)

pytestmark = pytest.mark.loopback

REMOTE = "127.45.11.1"


async def refused_afterwards(remote: LoopbackHomeserver, version: str = "10") -> InviteError:
    """Send an invite; once it has been sent, nobody can be connected to any more."""

    def ends(event: Observation) -> None:
        if isinstance(event, RetryScheduled | FellBack):
            remote.fails(ClosesBeforeTls())

    # Keys that had come by then would leave a connection behind, by which it could be sent again.
    remote.fails(Hangs(), endpoint="keys")
    policy = remote.network.policy(retries=Retries(attempts=3, first_wait=0.01))
    async with remote.network.client(policy=policy, observer=ends) as client:
        with pytest.raises(InviteError) as caught:
            await client.send_invite(make_invite(f"@bob:{REMOTE}", version))
    assert not caught.value.attempts[-1].sent
    return caught.value


async def test_an_invite_that_may_have_arrived_is_unknown_also_if_the_remote_is_gone_then() -> None:
    async with LoopbackHomeserver(REMOTE) as remote:
        remote.fails(LosesTheAnswer(), times=1, endpoint="v2")
        error = await refused_afterwards(remote)

        assert 1 == len(remote.invites)
    assert isinstance(error, UnknownOutcomeError)
    assert (Delivery.UNKNOWN, True) == (error.delivery, error.retryable)
    assert isinstance(error.__cause__, UnreachableError)


async def test_an_answer_counts_for_more_than_that_the_remote_is_gone_then() -> None:
    async with LoopbackHomeserver(REMOTE) as remote:
        remote.answers(503, times=1, headers={"connection": "close"})
        error = await refused_afterwards(remote)

    assert isinstance(error, InviteRejectedError)
    assert (503, Delivery.ANSWERED) == (error.status, error.delivery)


async def test_what_v2_has_answered_was_sent_also_if_v1_cannot_be_asked() -> None:
    async with LoopbackHomeserver(REMOTE) as remote:
        remote.answers(404, endpoint="v2", headers={"connection": "close"})
        error = await refused_afterwards(remote, "1")

    assert isinstance(error, UnreachableError)
    assert (Delivery.ANSWERED, True) == (error.delivery, error.retryable)
