"""A real PostgreSQL of a test's own: on a socket in a temporary folder, without privileges."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

NOBODY = 65534
"""PostgreSQL does not run as root."""
START_TIMEOUT = 30.0


def binaries() -> Path:
    """The folder with the programs of the newest PostgreSQL; skips the test if there is none."""
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)
    )
    if not found or not (found[-1] / "initdb").exists():
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return found[-1]


@contextmanager
def running_postgres() -> Iterator[str]:
    """Run a PostgreSQL, and return how to connect to its only database."""
    programs = binaries()
    user: dict[str, Any] = {}
    # Not in pytest's folder, which is for its owner only.
    with tempfile.TemporaryDirectory(prefix="invite_client-") as folder:
        if os.geteuid() == 0:
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            os.chown(folder, NOBODY, NOBODY)
        data = Path(folder) / "data"
        subprocess.run(
            [
                *(programs / "initdb", "-D", data, "-A", "trust", "-U", "invites", "--no-sync"),
                *("-E", "UTF8", "--locale", "C.UTF-8"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **user,
        )
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    *(programs / "postgres", "-D", data, "-k", folder),
                    *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=100"),
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
                **user,
            )
        conninfo = f"host='{folder}' user=invites dbname=postgres"
        try:
            _wait_for(process, conninfo, Path(folder) / "log")
            yield conninfo
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nobody needs the data any more
            process.wait(START_TIMEOUT)


def _wait_for(process: subprocess.Popen[bytes], conninfo: str, log: Path) -> None:
    give_up = time.monotonic() + START_TIMEOUT
    while time.monotonic() < give_up and process.poll() is None:
        try:
            psycopg.connect(conninfo).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"PostgreSQL did not start:\n{log.read_text()[-2000:]}")
