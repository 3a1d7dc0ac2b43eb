"""Logs: who reads them finds every request and every end, and nothing that is nobody's business."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import pytest

from invite_client.contrib.logs import LogObserver
from invite_client.testing import INVITER_KEY, LoopbackHomeserver, make_invite
from tests.contrib import invites

LOGGER = "invite_client.invites"


class Lines(logging.Handler):
    """A handler that keeps ``LEVEL message``, with the parts that differ from run to run replaced."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname} {record.getMessage()}"
        for pattern, word in (
            (r"PUT-\d+", "PUT-N"),
            (r"\$[A-Za-z0-9_-]{43}(:\S+)?", "$event"),
            (r"\d+\.\d\d s", "T s"),
            (r"\d+ bytes", "B bytes"),
            (r"ed25519:\w+", "KEY"),
        ):
            line = re.sub(pattern, word, line)
        self.lines.append(line)

    def at_least(self, level: str) -> list[str]:
        return [line for line in self.lines if line.startswith(level)]


@pytest.fixture
def log() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger(LOGGER)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(before)


HEAD = "{PUT-N} [remote.example]"


async def test_a_signed_invite_is_a_request_and_an_end(log: Lines) -> None:
    await invites.signed(LogObserver())

    expected = [
        f"INFO {HEAD} PUT v2 invite: 200, B bytes in T s",
        f"INFO {HEAD} signed with KEY in T s: $event of @bob:remote.example",
    ]
    assert expected == log.lines


async def test_a_fallback_says_why_there_are_two_requests(log: Lines) -> None:
    await invites.fallen_back(LogObserver())

    expected = [
        f"INFO {HEAD} PUT v2 invite: 404, B bytes in T s",
        f"INFO {HEAD} the answer 404 may mean that v2 is not known: on to v1",
        f"INFO {HEAD} PUT v1 invite: 200, B bytes in T s",
        f"INFO {HEAD} signed with KEY in T s: $event of @bob:remote.example",
    ]
    assert expected == log.lines


async def test_a_rejection_is_a_warning_on_one_line(log: Lines) -> None:
    await invites.rejected(LogObserver())

    expected = [
        f"INFO {HEAD} PUT v2 invite: 403, B bytes in T s",
        (
            f"WARNING {HEAD} not signed after T s: $event of @bob:remote.example: "
            "InviteRejectedError: the v2 invite was answered 403: M_FORBIDDEN no "
            "{PUT-N} [remote.example] signed (delivery: answered)"
        ),
    ]
    assert expected == log.lines


async def test_a_retry_says_why_and_when(log: Lines) -> None:
    await invites.retried(LogObserver())

    lost = "the connection ended before the answer"
    limited = "the v2 invite was answered 429: M_LIMIT_EXCEEDED M_LIMIT_EXCEEDED"
    expected = [
        f"INFO {HEAD} PUT v2 invite: {lost}, after T s",
        f"INFO {HEAD} attempt 1 failed ({lost}); once more in T s",
        f"INFO {HEAD} PUT v2 invite: 429, B bytes in T s",
        f"INFO {HEAD} attempt 2 failed ({limited}); once more in T s",
        f"INFO {HEAD} PUT v2 invite: 200, B bytes in T s",
        f"INFO {HEAD} signed with KEY in T s: $event of @bob:remote.example",
    ]
    assert expected == log.lines


async def test_a_forgery_is_a_warning_that_names_the_problem(log: Lines) -> None:
    await invites.forged(LogObserver())

    expected = (
        f"WARNING {HEAD} not signed after T s: $event of @bob:remote.example: "
        "CountersignatureError: signature invalid: the signature with KEY is not one of this "
        "event (delivery: answered)"
    )
    assert [expected] == log.at_least("WARNING")


async def test_a_cancelled_invite_has_an_end_too(log: Lines) -> None:
    await invites.abandoned(LogObserver())

    expected = [
        f"INFO {HEAD} PUT v2 invite: ended from outside, after T s",
        f"WARNING {HEAD} ended from outside after T s: $event of @bob:remote.example",
    ]
    assert expected == log.lines


@pytest.mark.loopback
async def test_a_request_names_the_address_that_answered(log: Lines) -> None:
    async with LoopbackHomeserver() as remote, remote.client(observer=LogObserver()) as client:
        await client.send_invite(make_invite())
        address, port = remote.requests[0].address, remote.requests[0].port

    expected = f"INFO {HEAD} PUT v2 invite: 200, B bytes in T s from {address}:{port}"
    assert expected == log.lines[0]


async def test_at_debug_every_step_is_told(log: Lines) -> None:
    logging.getLogger(LOGGER).setLevel(logging.DEBUG)
    await invites.signed(LogObserver())

    told = [line.split(HEAD)[1].split()[0] for line in log.at_least("DEBUG")]
    assert ["to", "has", "resolved", "PUT", "keys"] == told


async def test_no_line_holds_a_secret_or_the_rooms_state(log: Lines) -> None:
    logging.getLogger(LOGGER).setLevel(logging.DEBUG)
    sent = await invites.all_of_them(LogObserver())

    text = "\n".join(log.lines)
    assert INVITER_KEY.to_line().split()[2] not in text
    assert "X-Matrix" not in text
    assert "Tea at five" not in text  # the name of the room
    for invite in sent:
        for signatures in invite.event["signatures"].values():
            for signature in signatures.values():
                assert signature not in text


async def test_all_lines_of_one_invite_have_one_tag(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    await invites.retried(LogObserver())
    await invites.signed(LogObserver())

    tags = [record.getMessage().split("}")[0] for record in caplog.records]
    assert [6, 2] == [tags.count(tag) for tag in dict.fromkeys(tags)]


async def test_a_logger_of_ones_own_can_be_given(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "homeserver")
    await invites.signed(LogObserver(logging.getLogger("homeserver.federation")))

    assert {"homeserver.federation"} == {record.name for record in caplog.records}
