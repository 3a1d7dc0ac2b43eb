"""A real homeserver as a notary: the keys of a server that only it can reach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from invite_client import InviteClient, InviteError, KeyPolicy, Notary, Policy, UnreachableError
from invite_client.federation import FederationClient
from invite_client.interfaces import AttemptLog
from invite_client.net.http import HttpTransport
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Reply, Request
from invite_client.spec.signatures import SigningKey
from tests.interop.inviter import Inviter
from tests.interop.invites import invite_somebody, policy_for
from tests.interop.remote import Remote


class CutOff:
    """A transport by which one server cannot be reached."""

    def __init__(self, policy: Policy, server_name: str) -> None:
        self.inner = HttpTransport(policy)
        self.server_name = server_name

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        if server.server_name == self.server_name:
            raise UnreachableError("no route")
        return await self.inner.exchange(server, request, limit=limit, log=log)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def ask_notary(remote: Remote, inviter: Inviter) -> None:
    """See that the remote brings another server's keys, and is believed by its own key alone."""
    policy = policy_for(remote)
    async with InviteClient(inviter.server_name, inviter.signing_key, policy=policy) as client:
        # Synapse tells keys that it knows. It fetches others only where their IDs are given.
        await client.send_invite(await invite_somebody(remote, inviter))
        own = (await client.server_keys(remote.server_name)).keys
    pinned = {key_id: published.key.base64 for key_id, published in own.items()}
    forged = dict.fromkeys(pinned, SigningKey.generate("x").verify_key.base64)

    # Given a server that we cannot reach, and a notary that can
    transport = CutOff(policy, inviter.server_name)
    try:
        # When the notary has signed with the key that we know it by, then its word is taken
        trusting = replace(policy, keys=KeyPolicy(notaries=(Notary(remote.server_name, pinned),)))
        async with FederationClient(policy=trusting, transport=transport) as federation:
            keys = (await federation.server_keys(inviter.server_name)).keys
        expected = {key.key_id: key.verify_key.base64 for key in inviter.published}
        assert expected == {key_id: published.key.base64 for key_id, published in keys.items()}

        # When it has signed with another, then not
        trusting = replace(policy, keys=KeyPolicy(notaries=(Notary(remote.server_name, forged),)))
        async with FederationClient(policy=trusting, transport=transport) as federation:
            with pytest.raises(InviteError, match="no route"):
                await federation.server_keys(inviter.server_name)
    finally:
        await transport.aclose()
