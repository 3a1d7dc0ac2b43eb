"""One Synapse for the session, and an inviting homeserver of its own for every test."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from invite_client import InviteClient, Policy
from tests.interop.inviter import Inviter, start_inviter
from tests.interop.invites import policy_for
from tests.interop.remote import Remote
from tests.interop.synapse import Synapse, start_synapse


@pytest.fixture(scope="session")
def interop_ca() -> trustme.CA:
    """The certificate authority that all servers here trust."""
    return trustme.CA()


@pytest.fixture
def certificate(interop_ca: trustme.CA, tmp_path: Path) -> str:
    """A certificate of `localhost` with its key, in one file."""
    file = tmp_path / "tls.pem"
    interop_ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(file))
    return str(file)


@pytest.fixture(scope="session")
def synapse(tmp_path_factory: pytest.TempPathFactory, interop_ca: trustme.CA) -> Iterator[Synapse]:
    """A real Synapse on loopback."""
    if importlib.util.find_spec("synapse") is None:
        pytest.skip("needs matrix-synapse, which the extra `dev` brings")
    with start_synapse(tmp_path_factory.mktemp("synapse"), interop_ca) as running:
        yield running


@pytest.fixture
async def inviter(interop_ca: trustme.CA) -> AsyncIterator[Inviter]:
    """Our homeserver, with a name and keys that no remote has ever seen."""
    async with start_inviter(interop_ca) as running:
        yield running


@pytest.fixture
def policy(remote: Remote) -> Policy:
    """With which the remote of a test, its fixture `remote`, can be invited from."""
    return policy_for(remote)


@pytest.fixture
async def client(inviter: Inviter, policy: Policy) -> AsyncIterator[InviteClient]:
    """The client of our homeserver."""
    async with InviteClient(inviter.server_name, inviter.signing_key, policy=policy) as client:
        yield client
