"""Diagnoses are told of every TLS handshake, whatever it came to."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import pytest

from invite_client.errors import UnreachableError
from invite_client.federation import FederationClient
from invite_client.net.handshakes import Handshake
from invite_client.net.http import HttpTransport
from invite_client.policy import TlsPolicy
from invite_client.spec.discovery import Target
from invite_client.testing import (
    EXPIRED,
    SELF_SIGNED,
    UNKNOWN_CA,
    Certificate,
    ClosesBeforeTls,
    LoopbackHomeserver,
)

NAME = "remote.example"


async def handshakes(remote: LoopbackHomeserver, **tls: Any) -> list[Handshake]:
    """Ask a server for its keys, and return what is told."""
    seen: list[Handshake] = []
    network = remote.network
    policy = network.policy(tls=TlsPolicy(ca_file=str(network.ca_file), **tls))
    transport = HttpTransport(policy, reroute=network.reroute, on_handshake=seen.append)
    async with FederationClient(policy=policy, transport=transport) as federation:
        with suppress(UnreachableError):
            await federation.server_keys(NAME)
    await transport.aclose()
    return seen


async def test_one_that_succeeded_is_told_up_to_the_authority() -> None:
    async with LoopbackHomeserver(NAME, well_known="other.example:8449") as remote:
        web, handshake = await handshakes(remote)

    assert Target(NAME, 443) == web.target
    assert Target("other.example", 8449) == handshake.target
    assert f"{remote.network.host('other.example')[0]}:8449" == handshake.address
    assert ("other.example", True) == (handshake.tls_name, handshake.checked)
    assert ("TLSv1.3", None) == (handshake.version, handshake.problem)
    leaf, root = handshake.chain
    assert ("other.example",) == leaf.names
    assert leaf.issuer == root.subject == root.issuer
    assert leaf.not_before is not None
    assert leaf.not_after is not None
    assert leaf.not_before < time.time() < leaf.not_after


@pytest.mark.parametrize(
    ("certificate", "problem"),
    [(EXPIRED, 10), (SELF_SIGNED, 18), (UNKNOWN_CA, 20), (Certificate.of("b.example"), 62)],
)
async def test_one_that_failed_is_told_with_what_was_shown(
    certificate: Certificate, problem: int
) -> None:
    async with LoopbackHomeserver(NAME, certificate=certificate) as remote:
        (handshake,) = await handshakes(remote)

    assert (None, problem, True) == (handshake.version, handshake.problem, handshake.checked)
    assert 1 == len(handshake.chain)


async def test_one_in_which_nothing_was_shown_is_told() -> None:
    async with LoopbackHomeserver(NAME) as remote:
        remote.fails(ClosesBeforeTls())
        (handshake,) = await handshakes(remote)

    assert (None, (), None) == (handshake.version, handshake.chain, handshake.problem)


async def test_one_that_is_not_checked_is_told_as_such() -> None:
    async with LoopbackHomeserver(NAME, certificate=SELF_SIGNED) as remote:
        (handshake,) = await handshakes(remote, unverified=(NAME,))

    assert not handshake.checked
    assert handshake.version is not None
    assert 1 == len(handshake.chain)
