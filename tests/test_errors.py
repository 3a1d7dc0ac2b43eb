"""Every error tells the truth in three voices: to a log, to a person, to a homeserver's client."""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import Any

import pytest

from invite_client import Policy, ServerPolicy, Timeouts, errors
from invite_client.errors import (
    Attempt,
    CountersignatureError,
    CountersignatureProblem,
    Delivery,
    ForbiddenByPolicyError,
    InvalidInviteError,
    InviteError,
    InviteRejectedError,
    MalformedReplyError,
    RateLimitedError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
    UntrustedReplyError,
)
from invite_client.testing import (
    Fault,
    Hangs,
    LosesTheAnswer,
    Refuses,
    SimulatedHomeserver,
    make_invite,
)

ATTEMPT = Attempt("PUT v2 invite", "remote.example:8448", "connection refused", "192.0.2.1:8448")
ONE_OF_EACH: list[InviteError] = [
    InvalidInviteError("is missing", field="event.sender"),
    ForbiddenByPolicyError("127.0.0.1 is loopback", setting="addresses.allowed"),
    UnreachableError("no route", destination="remote.example", attempts=[ATTEMPT]),
    UnknownOutcomeError("the connection was closed", retryable=True),
    InviteRejectedError("answered 403", status=403, errcode="M_FORBIDDEN", error="No."),
    RateLimitedError("answered 429", status=429, retryable=True, retry_after=2.5),
    MalformedReplyError("not JSON"),
    CountersignatureError("by nobody", problem=CountersignatureProblem.NOT_SIGNED),
]
each = pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda e: type(e).__name__)


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (InvalidInviteError, (InviteError, ValueError)),
        (ForbiddenByPolicyError, (InviteError, PermissionError)),
        (UnreachableError, (InviteError, ConnectionError)),
        (UnknownOutcomeError, (InviteError, ConnectionError)),
        (RateLimitedError, (InviteRejectedError, InviteError)),
        (MalformedReplyError, (UntrustedReplyError, InviteError)),
        (CountersignatureError, (UntrustedReplyError, InviteError)),
    ],
)
def test_the_tree_is_the_one_that_callers_catch(
    error: type[InviteError], kinds: tuple[type[Exception], ...]
) -> None:
    assert all(issubclass(error, kind) for kind in kinds)


@pytest.mark.parametrize(
    ("error", "delivery"),
    [
        *((error, Delivery.NOT_SENT) for error in ONE_OF_EACH[:3]),
        (ONE_OF_EACH[3], Delivery.UNKNOWN),
        *((error, Delivery.ANSWERED) for error in ONE_OF_EACH[4:]),
    ],
)
def test_each_says_whether_the_invite_arrived(error: InviteError, delivery: Delivery) -> None:
    assert delivery == error.delivery


@each
def test_each_is_one_line_for_a_log(error: InviteError) -> None:
    assert error.message in str(error)
    assert "\n" not in str(error)


def test_the_destination_leads_the_line() -> None:
    assert "remote.example: no route" == str(ONE_OF_EACH[2])


def test_the_destination_does_not_stand_twice() -> None:
    message = "remote.example:8448: Connection refused"

    assert message == str(UnreachableError(message, destination="remote.example"))


@each
def test_each_explains_itself_to_a_person(error: InviteError) -> None:
    text = error.diagnosis()

    assert error.message in text
    assert f"Stage: {error.stage}" in text
    assert all(str(attempt) in text for attempt in error.attempts)
    assert ("can be sent again" in text) is error.retryable


def test_a_wait_that_the_remote_asked_for_is_told() -> None:
    assert "sent again after 3 s" in ONE_OF_EACH[5].diagnosis()
    assert "sent again later" in ONE_OF_EACH[3].diagnosis()


@pytest.mark.parametrize(
    ("wait", "told"), [(0.4, "1 s"), (70.4, "71 s"), (70.0, "70 s"), (float("inf"), "inf s")]
)
def test_who_waits_as_long_as_is_told_has_waited_long_enough(wait: float, told: str) -> None:
    error = RateLimitedError("answered 429", status=429, retryable=True, retry_after=wait)

    assert f"sent again after {told}." in error.diagnosis()


def test_advice_is_the_kinds_own_unless_there_is_better() -> None:
    lost = UnknownOutcomeError("x", retryable=True).diagnosis()
    assert "A server that has stored the invite already" in lost
    assert 1 == lost.count("again")
    assert UnknownOutcomeError("x", advice="Do that.").diagnosis().endswith("Do that.")


def test_an_attempt_says_where_and_how_long() -> None:
    assert (
        "PUT v2 invite to remote.example:8448 (192.0.2.1:8448): connection refused after 0.00 s"
        == str(ATTEMPT)
    )
    assert "GET to x: 200 after 1.50 s" == str(Attempt("GET", "x", "200", seconds=1.5))


@each
@pytest.mark.parametrize("again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_each_survives_a_queue(error: InviteError, again: Any) -> None:
    other = again(error)

    assert type(error) is type(other)
    assert vars(error) == vars(other)
    assert (str(error), error.args) == (str(other), other.args)


REJECTIONS: list[tuple[int, str | None, int, str]] = [
    (403, "M_FORBIDDEN", 403, "M_FORBIDDEN"),
    (403, "M_INVITE_BLOCKED", 403, "M_INVITE_BLOCKED"),
    (403, None, 403, "M_FORBIDDEN"),
    (400, "M_INCOMPATIBLE_ROOM_VERSION", 400, "M_INCOMPATIBLE_ROOM_VERSION"),
    (400, "M_UNSUPPORTED_ROOM_VERSION", 400, "M_INCOMPATIBLE_ROOM_VERSION"),
    (400, "M_MISSING_PARAM", 502, "M_UNKNOWN"),
    (400, "M_INVALID_PARAM", 502, "M_UNKNOWN"),
    (400, "M_BAD_JSON", 502, "M_UNKNOWN"),
    (400, "M_UNRECOGNIZED", 502, "M_UNKNOWN"),
    (400, "ORG_EXAMPLE_OWN", 400, "ORG_EXAMPLE_OWN"),
    (400, None, 502, "M_UNKNOWN"),
    (401, "M_UNAUTHORIZED", 502, "M_UNKNOWN"),
    (404, "M_NOT_FOUND", 502, "M_UNKNOWN"),
    (500, "M_UNKNOWN", 502, "M_UNKNOWN"),
    (503, None, 502, "M_UNKNOWN"),
]


@pytest.mark.parametrize(("status", "errcode", "told", "as_errcode"), REJECTIONS)
def test_a_rejection_is_told_to_our_client_as_the_specification_asks(
    status: int, errcode: str | None, told: int, as_errcode: str
) -> None:
    error = InviteRejectedError("x", status=status, errcode=errcode, error="words")
    response = error.client_response()

    assert (told, as_errcode, "words") == (response.status, response.errcode, response.error)


def test_the_room_version_that_is_too_new_is_passed_on() -> None:
    error = InviteRejectedError(
        "x", status=400, errcode="M_INCOMPATIBLE_ROOM_VERSION", room_version="12"
    )
    status, body = error.client_response()

    assert (400, "12") == (status, body["room_version"])
    error.room_version = None
    assert "room_version" not in error.client_response().body


@pytest.mark.parametrize(
    ("error", "status", "errcode"),
    [
        (InviteError("x"), 502, "M_UNKNOWN"),
        (ONE_OF_EACH[0], 500, "M_UNKNOWN"),
        (ONE_OF_EACH[1], 403, "M_FORBIDDEN"),
        (ONE_OF_EACH[2], 502, "M_UNKNOWN"),
        (ONE_OF_EACH[3], 504, "M_UNKNOWN"),
        (ONE_OF_EACH[5], 429, "M_LIMIT_EXCEEDED"),
        (RateLimitedError("x"), 429, "M_LIMIT_EXCEEDED"),
        (ONE_OF_EACH[6], 502, "M_UNKNOWN"),
        (ONE_OF_EACH[7], 502, "M_UNKNOWN"),
    ],
)
def test_the_other_kinds_are_told_as_what_they_mean_for_a_client(
    error: InviteError, status: int, errcode: str
) -> None:
    response = error.client_response()

    assert (status, errcode) == (response.status, response.errcode)
    assert response.error


def test_a_rate_limit_is_passed_on_in_milliseconds() -> None:
    assert 2500 == ONE_OF_EACH[5].client_response().body["retry_after_ms"]
    assert "retry_after_ms" not in RateLimitedError("x").client_response().body


def test_the_page_of_errors_is_complete() -> None:
    kinds = {name for name in errors.__all__ if name.endswith("Error")}

    assert kinds == {type(e).__name__ for e in ONE_OF_EACH} | {"InviteError", "UntrustedReplyError"}


def test_a_stage_is_a_word() -> None:
    assert "well-known" == f"{Stage.WELL_KNOWN}"


def test_an_attempt_names_its_target_once() -> None:
    attempt = Attempt("connect", "a.example:8448", "a.example:8448: Connection refused")

    assert "connect to a.example:8448: Connection refused after 0.00 s" == str(attempt)


# --- Where no invite was sent -------------------------------------------------------------------

NAME = "remote.example"


def speaks_of_an_invite(error: InviteError) -> bool:
    return any(word in error.diagnosis() for word in ("invite", "event", "sent"))


@pytest.mark.parametrize(
    ("status", "body", "stage"),
    [(403, b"{}", Stage.KEYS), (200, b"{}", Stage.KEYS), (200, b" " * 300_000, Stage.HTTP)],
)
async def test_keys_that_are_refused_are_no_invite_that_arrived(
    status: int, body: bytes, stage: Stage
) -> None:
    remote = SimulatedHomeserver(NAME)
    remote.answers(status, body=body, endpoint="keys")

    with pytest.raises(MalformedReplyError) as caught:
        await remote.client().server_keys(NAME)

    assert not speaks_of_an_invite(caught.value)
    assert (
        f"Stage: {stage}.\n  - GET server keys to remote.example:8448" in caught.value.diagnosis()
    )


@pytest.mark.parametrize("fault", [Refuses(), LosesTheAnswer(), Hangs()])
async def test_keys_that_do_not_come_are_no_invite_that_was_lost(fault: Fault) -> None:
    remote = SimulatedHomeserver(NAME)
    remote.fails(fault, endpoint="keys")
    client = remote.client(policy=Policy(timeouts=Timeouts(total=0.05)))

    with pytest.raises(InviteError) as caught:
        await client.server_keys(NAME)

    assert caught.value.retryable
    assert not speaks_of_an_invite(caught.value)
    assert "\nIt can be tried again later." in caught.value.diagnosis()
    # What is remembered of it counts as what it is when the next one asks.
    with pytest.raises(InviteError) as caught:
        await client.server_keys(NAME)
    assert not speaks_of_an_invite(caught.value)


@pytest.mark.parametrize("name", ["elsewhere.example", "blocked.example", "a_b"])
async def test_a_server_that_is_not_found_is_no_invite_that_was_not_sent(name: str) -> None:
    policy = Policy(servers=ServerPolicy(blocked=("blocked.example",)))
    client = SimulatedHomeserver(NAME).client(policy=policy)

    for question in (client.resolve, client.server_keys):
        with pytest.raises(InviteError) as caught:
            await question(name)
        assert not speaks_of_an_invite(caught.value)
        assert f"Stage: {caught.value.stage}." == caught.value.diagnosis().splitlines()[1]


async def test_who_waits_for_the_same_answer_with_an_invite_is_told_of_it() -> None:
    # Given one error for all who ask where a server is
    cause = OSError("no route")
    shared = UnreachableError("not found", stage=Stage.DNS, advice="Restart the name server.")
    shared.__cause__ = cause

    class Raises:
        async def resolve(self, _: object) -> Any:
            raise shared

    client = SimulatedHomeserver(NAME).client(resolver=Raises())

    # When somebody asks just that, and somebody else for an invite
    with pytest.raises(UnreachableError) as asked:
        await client.resolve(NAME)
    with pytest.raises(UnreachableError) as sent:
        await client.send_invite(make_invite())

    # Then each is told what concerns them, and why it is so
    assert "The invite was not sent." not in asked.value.diagnosis()
    assert "The invite was not sent." in sent.value.diagnosis()
    for error in (asked.value, sent.value):
        assert error.__cause__ is cause
        assert error.diagnosis().endswith("Restart the name server.")


async def test_where_it_was_raised_is_told_where_no_invite_was_sent() -> None:
    class Raises:
        async def resolve(self, _: object) -> Any:
            return self.fail_at_the_bottom()

        def fail_at_the_bottom(self) -> None:
            raise UnreachableError("not found")

    with pytest.raises(UnreachableError) as caught:
        await SimulatedHomeserver(NAME).client(resolver=Raises()).resolve(NAME)

    frames = traceback.extract_tb(caught.value.__traceback__)
    assert "fail_at_the_bottom" == frames[-1].name


async def test_keys_that_are_missing_for_an_invite_say_that_it_arrived() -> None:
    remote = SimulatedHomeserver(NAME)
    remote.answers(403, body=b"{}", endpoint="keys")

    with pytest.raises(CountersignatureError) as caught:
        await remote.client().send_invite(make_invite())

    assert "The remote server received the invite." in caught.value.diagnosis()
