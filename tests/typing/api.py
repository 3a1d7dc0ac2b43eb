"""The public API, used correctly. Type-checked, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

from invite_client import (
    AddressPolicy,
    BackOff,
    BackoffPolicy,
    BulkPolicy,
    CountersignatureError,
    CountersignatureProblem,
    Delivery,
    FederationClient,
    Invite,
    InviteClient,
    InviteError,
    InviteRejectedError,
    Limits,
    Outcome,
    Policy,
    RateLimitedError,
    ResolvedServer,
    Retries,
    Room,
    ServerKeys,
    SignedInvite,
    SigningKey,
    Stage,
    Timeouts,
    TlsPolicy,
    UnknownOutcomeError,
    read_signing_key,
)


async def send(event: dict[str, Any], state: list[dict[str, Any]], room: Room) -> None:
    key = read_signing_key("signing.key")
    assert_type(key, SigningKey)

    policy = Policy(
        timeouts=Timeouts(total=30.0),
        retries=Retries(attempts=2),
        limits=Limits(concurrency=10, per_destination=2),
        addresses=AddressPolicy(allowed=("10.0.0.0/8",)),
        tls=TlsPolicy(ca_file="ca.pem"),
        backoff=BackoffPolicy(after_failures=5, first=30.0),
        bulk=BulkPolicy(rate=10.0),
        fallback="unknown-endpoint",
    )
    async with InviteClient("inviter.example", key, policy=policy) as client:
        invite = Invite.from_pdu(event, room_version="10", room_state=state)
        assert_type(invite, Invite)
        built = Invite.build(room, target="@bob:remote.example", signing_key=key)
        signed = await client.send_invite(built)
        assert_type(await client.send_invite(built, ignore_backoff=True), SignedInvite)
        assert_type(await client.backoff("remote.example"), BackOff | None)
        assert_type(await client.reset_backoff("remote.example"), None)
        assert_type(signed, SignedInvite)
        assert_type(signed.event, dict[str, Any])
        assert_type(signed.signatures, Mapping[str, str])
        async with client.send_invites([invite, built]) as outcomes:
            async for outcome in outcomes:
                assert_type(outcome, Outcome)
                assert_type(outcome.invite, Invite | None)
                assert_type(outcome.signed, SignedInvite | None)
                assert_type(outcome.error, InviteError | None)
                assert_type(outcome.seconds, float)
        client.send_invites(map(Invite.from_request, []))
        assert_type(await client.resolve("matrix.org"), ResolvedServer)
        assert_type(await client.server_keys("matrix.org"), ServerKeys)
    async with FederationClient(policy=policy) as federation:
        assert_type(await federation.resolve("matrix.org"), ResolvedServer)


def answer(error: InviteError) -> tuple[int, dict[str, Any]]:
    assert_type(error.delivery, Delivery)
    assert_type(error.stage, Stage)
    assert_type(error.retryable, bool)
    assert_type(error.retry_after, float | None)
    match error:
        case RateLimitedError():
            assert_type(error.status, int)
        case InviteRejectedError():
            assert_type(error.errcode, str | None)
        case CountersignatureError():
            assert_type(error.problem, CountersignatureProblem)
        case UnknownOutcomeError():
            pass
        case _:
            pass
    status, body = error.client_response()
    return status, body
