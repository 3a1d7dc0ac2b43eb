"""This project, as a host would use it: from the event that the host has, to the signed one.

    python -m benchmarks.ours DIRECTORY LOOP whole|send

``whole`` takes the event as a dict and checks it (`Invite.from_pdu`) for each invite; ``send`` times
`send_invite` alone.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.contender import AsyncioContender, run_loop, serve
from benchmarks.scenario import ORIGIN, Scenario
from invite_client import (
    AddressPolicy,
    DnsPolicy,
    Invite,
    InviteClient,
    Limits,
    Policy,
    TlsPolicy,
    read_signing_key,
)
from invite_client.net.http import HttpTransport


def policy(scenario: Scenario) -> Policy:
    """The settings that are timed, and checked: defaults, but for where the servers are.

    And but for the slots: every contender is driven at the concurrency of the case.
    """
    return Policy(
        tls=TlsPolicy(ca_file=scenario.ca_file),
        addresses=AddressPolicy(allowed=("127.0.0.0/8",)),
        dns=DnsPolicy(nameservers=("127.0.0.1",), port=scenario.dns_port),
        limits=Limits(concurrency=200, per_destination=200),
    )


class Whole:
    """From the host's event on."""

    def __init__(self, client: InviteClient) -> None:
        self.client = client

    def prepare(self, body: dict[str, Any]) -> Any:
        """Keep the host's dicts."""
        return body

    async def send(self, prepared: Any) -> None:
        """Check, and send."""
        invite = Invite.from_pdu(
            prepared["event"], prepared["room_version"], prepared["invite_room_state"]
        )
        await self.client.send_invite(invite)


class SendOnly:
    """From a checked invite on."""

    def __init__(self, client: InviteClient) -> None:
        self.client = client

    def prepare(self, body: dict[str, Any]) -> Any:
        """Make the invite, checked."""
        return Invite.from_request(body)

    async def send(self, prepared: Any) -> None:
        """Send."""
        await self.client.send_invite(prepared)


@asynccontextmanager
async def opened_client(scenario: Scenario) -> AsyncIterator[InviteClient]:
    """A client to which the ports 443 and 8448 are those of the scenario."""
    rules = policy(scenario)

    def reroute(host: str, port: int) -> tuple[str, int]:
        return host, scenario.port if port in (443, 8448) else port

    transport = HttpTransport(rules, reroute=reroute)
    key = read_signing_key(scenario.signing_key_file)
    try:
        async with InviteClient(ORIGIN, key, policy=rules, transport=transport) as client:
            yield client
    finally:
        await transport.aclose()


async def _main(scenario: Scenario, what: str) -> None:
    async with opened_client(scenario) as client:
        contender: AsyncioContender = Whole(client) if what == "whole" else SendOnly(client)
        await serve(contender, scenario)


if __name__ == "__main__":
    directory, loop, what = sys.argv[1:]
    scenario = Scenario.load(directory)
    run_loop(lambda: _main(scenario, what), uvloop=loop == "uvloop")
