"""§ Inviting to a room: when v1 is asked, and when it must not be."""

from __future__ import annotations

from typing import Literal

import pytest

from invite_client.errors import (
    InviteError,
    InviteRejectedError,
    MalformedReplyError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.policy import Policy, Retries
from invite_client.testing import LoopbackHomeserver, SimulatedHomeserver, changes, make_invite
from invite_client.testing.faults import Fault, LosesTheAnswer, Refuses

HTML = b"<html><body><h1>Not Found</h1></body></html>"
OLD, NEW = ("1", "2"), ("3", "10", "12")
Fallback = Literal["spec", "unknown-endpoint"]

ANSWERS = {
    "empty": {"body": b""},
    "HTML": {"body": HTML, "headers": {"content-type": "text/html"}},
    "M_UNRECOGNIZED": {"errcode": "M_UNRECOGNIZED"},
    "M_NOT_FOUND": {"errcode": "M_NOT_FOUND", "error": "No such room"},
}

every_answer = pytest.mark.parametrize("answer", ANSWERS)
every_status = pytest.mark.parametrize("status", [400, 404])


def refusing(status: int, answer: str) -> SimulatedHomeserver:
    """A server that knows v1, and answers v2 like this."""
    remote = SimulatedHomeserver()
    remote.answers(status, endpoint="v2", **ANSWERS[answer])  # type: ignore[arg-type]
    return remote


@every_answer
@every_status
@pytest.mark.parametrize("version", OLD)
async def test_in_an_old_room_any_400_or_404_leads_to_v1(
    version: str, status: int, answer: str
) -> None:
    remote = refusing(status, answer)
    async with remote.client() as client:
        signed = await client.send_invite(make_invite(version=version))

    assert "v1" == signed.endpoint
    assert (1, 1) == (remote.counts["v2"], remote.counts["v1"])


@every_answer
@every_status
@pytest.mark.parametrize("version", OLD)
async def test_if_told_so_only_an_unknown_endpoint_leads_to_v1(
    version: str, status: int, answer: str
) -> None:
    remote = refusing(status, answer)
    unknown = answer == "M_UNRECOGNIZED" or (status == 404 and answer in ("empty", "HTML"))
    async with remote.client(policy=Policy(fallback="unknown-endpoint")) as client:
        if unknown:
            signed = await client.send_invite(make_invite(version=version))
            assert "v1" == signed.endpoint
        else:
            with pytest.raises(InviteRejectedError) as caught:
                await client.send_invite(make_invite(version=version))
            assert status == caught.value.status

    assert (1, int(unknown)) == (remote.counts["v2"], remote.counts["v1"])


@every_answer
@every_status
@pytest.mark.parametrize("version", NEW)
@pytest.mark.parametrize("fallback", ["spec", "unknown-endpoint"])
async def test_in_a_newer_room_v1_is_never_asked(
    version: str, status: int, answer: str, fallback: Fallback
) -> None:
    remote = refusing(status, answer)
    async with remote.client(policy=Policy(fallback=fallback)) as client:
        with pytest.raises(InviteRejectedError) as caught:
            await client.send_invite(make_invite(version=version))

    error = caught.value
    assert (1, 0) == (remote.counts["v2"], remote.counts["v1"])
    assert status == error.status
    assert ANSWERS[answer].get("errcode") == error.errcode
    assert not error.retryable
    if status == 404:
        assert f"too old for room version {version}" in error.diagnosis()


@pytest.mark.parametrize("version", OLD)
async def test_an_answer_that_is_neither_400_nor_404_leads_nowhere(version: str) -> None:
    remote = SimulatedHomeserver()
    remote.answers(403, "M_UNRECOGNIZED", endpoint="v2")
    async with remote.client() as client:
        with pytest.raises(InviteRejectedError):
            await client.send_invite(make_invite(version=version))

    assert 0 == remote.counts["v1"]


async def test_what_v1_signs_is_verified_no_less() -> None:
    remote = SimulatedHomeserver(endpoints=("v1",))
    remote.lies(changes("depth", 999), endpoint="v1")
    async with remote.client() as client:
        with pytest.raises(Exception, match="differs from the one sent in depth") as caught:
            await client.send_invite(make_invite(version="1"))

    assert Stage.VERIFY == caught.value.stage  # type: ignore[attr-defined]


async def test_where_both_refuse_the_more_telling_answer_is_raised_and_has_the_other() -> None:
    remote = SimulatedHomeserver()
    remote.answers(404, "M_UNRECOGNIZED", endpoint="v2")
    remote.answers(403, "M_FORBIDDEN", "Not today", endpoint="v1")
    async with remote.client() as client:
        with pytest.raises(InviteRejectedError) as caught:
            await client.send_invite(make_invite(version="2"))

    assert (403, "M_FORBIDDEN", "Not today") == (
        caught.value.status,
        caught.value.errcode,
        caught.value.error,
    )
    assert caught.value.other is not None
    assert (404, "M_UNRECOGNIZED") == (caught.value.other.status, caught.value.other.errcode)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Refuses(), UnreachableError),
        (LosesTheAnswer(), UnknownOutcomeError),
    ],
    ids=str,
)
async def test_where_v1_fails_in_another_way_the_error_has_what_v2_said(
    fault: Fault, kind: type[InviteError]
) -> None:
    remote = SimulatedHomeserver()
    remote.answers(404, "M_UNRECOGNIZED", "No v2 here", endpoint="v2")
    remote.fails(fault, endpoint="v1")
    async with remote.client(policy=Policy(retries=Retries(attempts=1))) as client:
        with pytest.raises(kind) as caught:
            await client.send_invite(make_invite(version="1"))

    assert caught.value.other is not None
    assert 404 == caught.value.other.status
    assert "M_UNRECOGNIZED No v2 here" in caught.value.diagnosis()


async def test_where_v1_answers_nonsense_the_error_has_what_v2_said() -> None:
    remote = SimulatedHomeserver()
    remote.answers(404, "M_UNRECOGNIZED", endpoint="v2")
    remote.answers(200, body=b"{}", endpoint="v1")
    async with remote.client() as client:
        with pytest.raises(MalformedReplyError) as caught:
            await client.send_invite(make_invite(version="1"))

    assert caught.value.other is not None
    assert "M_UNRECOGNIZED" == caught.value.other.errcode


@pytest.mark.loopback
@pytest.mark.parametrize("version", OLD)
async def test_an_old_server_signs_by_v1_over_the_same_connection(
    version: str, no_socket_is_left_behind: None
) -> None:
    async with (
        LoopbackHomeserver("127.45.7.1", endpoints=("v1",)) as remote,
        remote.client() as client,
    ):
        signed = await client.send_invite(make_invite("@bob:127.45.7.1", version))

        assert "v1" == signed.endpoint
        v2, v1 = remote.requests_for("v2", "v1")
        assert v2.uri.replace("/v2/", "/v1/") == v1.uri
        assert [signed.invite.event_id] == list(remote.invites)
        # One connection for both, and one for the keys, which travel beside.
        assert len(remote.connections) <= 2


@pytest.mark.loopback
@pytest.mark.parametrize("version", NEW)
async def test_an_old_server_is_not_asked_by_v1_in_a_newer_room(
    version: str, no_socket_is_left_behind: None
) -> None:
    async with (
        LoopbackHomeserver("127.45.7.2", endpoints=("v1",)) as remote,
        remote.client() as client,
    ):
        with pytest.raises(InviteRejectedError, match="404"):
            await client.send_invite(make_invite("@bob:127.45.7.2", version))

        assert [] == remote.requests_for("v1")
