"""The clock of this machine is the one that a host's tests have replaced."""

from __future__ import annotations

import time

import pytest

from invite_client.clock import SystemClock


@pytest.mark.parametrize("name", ["time", "monotonic"])
def test_a_time_that_a_host_freezes_is_frozen_here_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, name, lambda: 12.5)

    assert 12.5 == getattr(SystemClock(), name)()
