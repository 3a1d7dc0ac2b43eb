"""What led nowhere, or not to a homeserver, is looked up anew; what led to one is kept."""

from __future__ import annotations

import pytest

from invite_client import InviteError, Policy, Retries
from invite_client.spec.server_names import ServerName
from invite_client.testing import (
    LosesTheAnswer,
    Refuses,
    SimulatedFederation,
    SimulatedHomeserver,
    make_invite,
)

NAME = "remote.example"


class Federation(SimulatedFederation):
    """Counts what it is told to forget."""

    forgotten = 0

    async def forget(self, name: ServerName) -> None:
        assert NAME == str(name)
        self.forgotten += 1


async def forgotten(remote: SimulatedHomeserver, version: str = "10") -> int:
    federation = Federation(remote)
    policy = Policy(retries=Retries(attempts=1))
    async with federation.client(policy=policy) as client:
        with pytest.raises(InviteError):
            await client.send_invite(make_invite(version=version))
    return federation.forgotten


@pytest.fixture
def remote() -> SimulatedHomeserver:
    return SimulatedHomeserver(NAME)


async def test_what_leads_nowhere_is_forgotten(remote: SimulatedHomeserver) -> None:
    remote.fails(Refuses(), endpoint="v2")

    assert 1 == await forgotten(remote)


@pytest.mark.parametrize("version", ["1", "10"])
@pytest.mark.parametrize(
    ("status", "body"), [(404, b"<html>"), (404, b""), (404, b"{}"), (502, b"<html>"), (302, b"")]
)
async def test_what_leads_to_no_homeserver_is_forgotten(
    status: int, body: bytes, version: str, remote: SimulatedHomeserver
) -> None:
    remote.answers(status, body=body, endpoint="v2")
    remote.answers(status, body=body, endpoint="v1")

    assert 1 == await forgotten(remote, version)


async def test_what_leads_to_a_web_page_is_forgotten(remote: SimulatedHomeserver) -> None:
    remote.answers(200, body=b"<html>", endpoint="v2")

    assert 1 == await forgotten(remote)


@pytest.mark.parametrize(
    ("status", "errcode"),
    [(403, "M_FORBIDDEN"), (404, "M_UNRECOGNIZED"), (429, "M_LIMIT_EXCEEDED"), (500, "M_UNKNOWN")],
)
async def test_what_leads_to_a_homeserver_is_kept(
    status: int, errcode: str, remote: SimulatedHomeserver
) -> None:
    remote.answers(status, errcode, endpoint="v2")

    assert 0 == await forgotten(remote)


async def test_an_answer_that_is_lost_says_nothing_of_the_way(remote: SimulatedHomeserver) -> None:
    remote.fails(LosesTheAnswer(), endpoint="v2")

    assert 0 == await forgotten(remote)
