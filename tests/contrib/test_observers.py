"""Several observers in the place of one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from invite_client.contrib import observers
from invite_client.observations import Observation
from tests.contrib import invites


async def test_each_is_told_everything_in_order() -> None:
    told: list[tuple[str, Observation]] = []
    await invites.retried(
        observers(lambda event: told.append(("a", event)), lambda event: told.append(("b", event)))
    )

    assert [event for name, event in told if name == "a"] == [e for n, e in told if n == "b"]
    assert ["a", "b"] * (len(told) // 2) == [name for name, _ in told]


async def test_what_one_raises_is_lost_on_no_other(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Observation] = []

    def broken(event: Observation) -> None:
        raise ZeroDivisionError

    await invites.signed(observers(broken, told.append))

    assert 7 == len(told)
    assert "an observer failed" in caplog.text


@pytest.mark.parametrize("library", ["prometheus_client", "opentelemetry"])
def test_who_does_not_use_an_adapter_does_not_pay_for_it(library: str) -> None:
    code = (
        "import sys, invite_client, invite_client.contrib, invite_client.contrib.logs; "
        f"assert {library!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
