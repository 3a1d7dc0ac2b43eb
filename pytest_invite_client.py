"""Fixtures for pytest, which come with the package: homeservers that misbehave on demand.

A module of its own, beside the package, and nothing is imported before a test asks for it: pytest
loads this at its start, in every project, and the package would be counted as loaded before the
coverage of its tests is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from invite_client.testing import LoopbackHomeserver, LoopbackNetwork, SimulatedHomeserver


@pytest.fixture
def loopback_network() -> LoopbackNetwork:
    """Return a network on loopback; it is up while a homeserver is, or ``async with`` it."""
    from invite_client.testing import LoopbackNetwork  # noqa: PLC0415

    return LoopbackNetwork()


@pytest.fixture
def loopback_homeserver(loopback_network: LoopbackNetwork) -> Callable[..., LoopbackHomeserver]:
    """Return a maker of homeservers with real DNS, TLS and HTTP, all in one network.

    async with loopback_homeserver("remote.example", srv="srv.example:8449") as remote: ...
    """
    from invite_client.testing import LoopbackHomeserver  # noqa: PLC0415

    return partial(LoopbackHomeserver, network=loopback_network)


@pytest.fixture
def simulated_homeserver() -> SimulatedHomeserver:
    """Return a homeserver without sockets: ``remote.example``."""
    from invite_client.testing import SimulatedHomeserver  # noqa: PLC0415

    return SimulatedHomeserver()
