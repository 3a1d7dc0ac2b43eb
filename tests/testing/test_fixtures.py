"""The fixtures that come with the package, in a project of somebody else's."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

PROJECT = """
import asyncio

from invite_client.testing import make_invite


def test_loopback(loopback_homeserver, loopback_network):
    async def main():
        one = loopback_homeserver("one.example", srv="srv.example:8449")
        two = loopback_homeserver("two.example")
        async with one, two, loopback_network.client() as client:
            for remote in (one, two):
                await client.send_invite(make_invite(f"@bob:{remote.server_name}"))
                assert 1 == remote.counts["v2"]

    asyncio.run(main())


def test_simulated(simulated_homeserver):
    async def main():
        async with simulated_homeserver.client() as client:
            await client.send_invite(make_invite())

    asyncio.run(main())
"""

NOTHING_IS_IMPORTED = """
import sys

def test_nothing_is_imported():
    assert [] == [name for name in sys.modules if name.split(".")[0] in ("invite_client", "aiohttp")]
"""


def run(directory: Path, project: str) -> str:
    (directory / "test_project.py").write_text(project)
    (directory / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    # Where the package is not installed anew since it has the plugin, it is named.
    installed = metadata.entry_points(group="pytest11", name="invite_client")
    named = [] if installed else ["-p", "pytest_invite_client"]
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:asyncio",
            *named,
            str(directory),
        ],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.stdout + result.stderr


@pytest.mark.loopback
def test_an_author_needs_no_more_than_the_fixtures(tmp_path: Path) -> None:
    assert "2 passed" in run(tmp_path, PROJECT)


def test_who_does_not_use_them_pays_nothing(tmp_path: Path) -> None:
    assert "1 passed" in run(tmp_path, NOTHING_IS_IMPORTED)
