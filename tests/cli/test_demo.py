"""`demo`: a stranger's first look, and a test of the installation."""

from __future__ import annotations

from typing import Any

import pytest

from invite_client.cli import demo
from invite_client.testing import HonestAnswer, LoopbackNetwork
from tests.cli.calling import Invoke


def test_shows_a_verified_v2_invite_a_verified_fallback_and_a_refused_forgery(
    invoke: Invoke,
) -> None:
    result = invoke("demo")

    assert (0, "") == (result.code, result.err)
    shown = " ".join(result.out.split())
    for words in (
        # 1. Behind .well-known delegation
        "m.server is matrix.modern.example:8449 (it delegates)",
        "decided by step 3.2",
        "PUT https://matrix.modern.example:8449/_matrix/federation/v2/invite /%21",
        "Host: matrix.modern.example:8449 Authorization: X-Matrix",
        'origin="inviter.example", destination="modern.example", key="ed25519:ours", sig="',
        # 2. By the older endpoint
        "M_UNRECOGNIZED",
        "This server does not know v2. The room is of version 1,",
        "PUT https://old.example:8448/_matrix/federation/v1/invite",
        '[200, {"event": {…}}], the event with one more signature: old.example',
        # 3. The forgery
        "✗ signature invalid",
        "✓ @bob:modern.example signed by v2 and verified as it must be",
        "✓ @carol:old.example signed by v1 and verified as it must be",
        "✓ @dave:forger.example refused: signature invalid as it must be",
    ):
        assert words in shown
    assert all(len(line) <= 80 for line in result.out.splitlines())
    assert "\x1b" not in result.out


def test_tells_the_same_as_json(invoke: Invoke) -> None:
    result = invoke("demo", "--json")

    assert (0, "") == (result.code, result.err)
    assert result.json["passed"] is True
    assert ["v2", "v1", None] == [invite.get("endpoint") for invite in result.json["invites"]]
    assert all(invite["passed"] for invite in result.json["invites"])
    assert "signature invalid" == result.json["invites"][2]["error"]["problem"]


@pytest.mark.parametrize(
    ("called", "found", "told"),
    [
        (".venv/bin/invite-client", None, ".venv/bin/invite-client resolve"),
        (".venv/bin/invite-client", "/usr/bin/invite-client", ": invite-client resolve"),
        ("-c", None, ": invite-client resolve"),
    ],
)
def test_names_what_comes_next_as_it_can_be_typed(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, called: str, found: str | None, told: str
) -> None:
    monkeypatch.setattr(demo.sys, "argv", [called, "demo"])
    monkeypatch.setattr(demo.shutil, "which", lambda _: found)

    assert told in invoke("demo").out


def test_works_where_ports_and_addresses_are_not_free(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary user may not listen on port 443; on macOS, 127.0.0.0/8 is one address."""
    monkeypatch.setattr(demo, "LoopbackNetwork", lambda: LoopbackNetwork(own_addresses=False))

    assert 0 == invoke("demo").code


def test_fails_if_the_forgery_is_not_noticed(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def honest(answer: HonestAnswer) -> Any:
        return answer.event

    monkeypatch.setattr(demo, "badly_signed", lambda: honest)
    result = invoke("demo")

    assert 1 == result.code
    shown = " ".join(result.out.split())
    assert "✗ @dave:forger.example signed by v2 and verified expected: refused" in shown


def test_fails_with_a_word_where_there_are_no_sockets(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoNetwork(LoopbackNetwork):
        async def __aenter__(self) -> Any:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(demo, "LoopbackNetwork", NoNetwork)
    result = invoke("demo", "--json")

    assert (1, "") == (result.code, result.out)
    assert "the demo needs sockets on loopback: [Errno 1] Operation not permitted" in result.err
