"""What a host's own parts raise of the system's errors becomes ours; a bug stays one."""

from __future__ import annotations

from typing import Any

import pytest

from invite_client import Delivery, InviteClient, InviteError
from invite_client.errors import (
    CountersignatureError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.testing import SimulatedHomeserver, make_invite

NAME = "remote.example"


class Raises:
    """A transport, resolver or key ring, all of whose work fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def exchange(self, *_: Any, **__: Any) -> Any:
        raise self.error

    resolve = verify_keys = server_keys = exchange

    async def prefetch(self, *_: Any) -> None:
        """Keys are not had sooner."""

    forget = prefetch

    async def aclose(self) -> None:
        raise AssertionError("what is given stays open")


def client_with(remote: SimulatedHomeserver, part: str, error: Exception) -> InviteClient:
    return remote.client(**{part: Raises(error)})


@pytest.mark.parametrize(
    "raised",
    [TimeoutError(), ConnectionResetError(104, "reset"), OSError("odd")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    ("part", "kind", "stage", "delivery"),
    [
        ("transport", UnknownOutcomeError, Stage.HTTP, Delivery.UNKNOWN),
        ("resolver", UnreachableError, Stage.DNS, Delivery.NOT_SENT),
        ("keyring", CountersignatureError, Stage.KEYS, Delivery.ANSWERED),
    ],
)
async def test_an_error_of_the_system_becomes_one_of_ours(
    part: str, kind: type[InviteError], stage: Stage, delivery: Delivery, raised: Exception
) -> None:
    remote = SimulatedHomeserver(NAME)
    async with client_with(remote, part, raised) as client:
        with pytest.raises(kind) as caught:
            await client.send_invite(make_invite())

    error = caught.value
    assert (stage, delivery, True) == (error.stage, error.delivery, error.retryable)
    assert type(raised).__name__ in error.message


@pytest.mark.parametrize("part", ["transport", "resolver", "keyring"])
@pytest.mark.parametrize("ours", [True, False])
async def test_what_is_ours_or_a_bug_is_let_through(part: str, ours: bool) -> None:
    raised = UnreachableError("no", stage=Stage.TLS) if ours else LookupError("a bug")
    remote = SimulatedHomeserver(NAME)
    async with client_with(remote, part, raised) as client:
        with pytest.raises(InviteError if ours else LookupError) as caught:
            await client.send_invite(make_invite())

    assert raised in (caught.value, caught.value.__cause__)


@pytest.mark.parametrize(("part", "what"), [("resolver", "resolve"), ("keyring", "server_keys")])
async def test_so_it_is_for_what_is_asked_beside_invites(part: str, what: str) -> None:
    remote = SimulatedHomeserver(NAME)
    async with client_with(remote, part, TimeoutError()) as client:
        with pytest.raises(UnreachableError, match="TimeoutError"):
            await getattr(client, what)(NAME)
