"""What the tests of the network edge share: an authority, and nothing left behind."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trustme

from invite_client.errors import Attempt
from invite_client.net.http import HttpTransport
from invite_client.policy import Policy
from tests.net.servers import Authority, StaticDns


@pytest.fixture(autouse=True)
def nothing_is_left_behind(no_socket_is_left_behind: None) -> None:
    """Every test here opens sockets, and every socket is closed after it."""


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca = trustme.CA()
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    return Authority(ca, ca_file)


@pytest.fixture
def log() -> list[Attempt]:
    return []


@pytest.fixture
async def transports() -> AsyncIterator[Callable[..., HttpTransport]]:
    """Make transports that are closed after the test."""
    async with AsyncExitStack() as stack:

        def make(policy: Policy, dns: Any = None, **options: Any) -> HttpTransport:
            transport = HttpTransport(policy, dns or StaticDns(), **options)
            stack.push_async_callback(transport.aclose)
            return transport

        yield make


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that a socket was told to connect to. No SYN without one."""
    seen: list[Any] = []
    connect = socket.socket.connect

    def recorded(self: socket.socket, address: Any) -> None:
        seen.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", recorded)
    return seen


async def caught(awaitable: Awaitable[Any], kind: type[BaseException]) -> Any:
    with pytest.raises(kind) as info:
        await awaitable
    return info.value
