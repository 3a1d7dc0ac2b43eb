"""A real homeserver on loopback, as a process of its own, whatever its software.

`running` starts it on a free port, in a directory of its own, and stops it by its process ID.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import trustme

START_TIMEOUT = 90.0
"""Seconds until it must answer; it takes about 5 on an idle machine, more beside other tests."""
STOP_TIMEOUT = 20.0
"""Seconds until it must have ended before it is killed."""
START_ATTEMPTS = 3
"""How many ports are tried: between choosing one and listening there, somebody may take it."""


@dataclass(frozen=True, slots=True)
class User:
    """A local user of the remote, logged in."""

    user_id: str
    access_token: str


@dataclass(frozen=True, slots=True)
class Remote:
    """A running homeserver, as its own users see it."""

    server_name: str
    """``localhost:port``, which is also where it listens."""
    directory: Path
    ca_file: Path
    log_file: Path

    async def register(self, localpart: str | None = None) -> User:
        """Make a user; without a name, one that nobody else has."""
        localpart = localpart or f"user{secrets.token_hex(6)}"
        answer = await self.client_api(
            "POST",
            "/_matrix/client/v3/register",
            {
                "username": localpart,
                "password": secrets.token_hex(8),
                "auth": {"type": "m.login.dummy"},
            },
        )
        return User(answer["user_id"], answer["access_token"])

    async def sync(self, user: User) -> dict[str, Any]:
        """Return the user's initial sync."""
        path = "/_matrix/client/v3/sync?timeout=0"
        answer: dict[str, Any] = await self.client_api("GET", path, token=user.access_token)
        return answer

    async def invite_state(self, user: User, room_id: str) -> list[dict[str, Any]]:
        """Return the stripped state of a room that the user is invited to, as their client sees it.

        Empty if the user is not invited.
        """
        invites = (await self.sync(user)).get("rooms", {}).get("invite", {})
        if room_id not in invites:
            return []
        events: list[dict[str, Any]] = invites[room_id]["invite_state"]["events"]
        return events

    async def set_account_data(self, user: User, kind: str, content: dict[str, Any]) -> None:
        """Set a piece of the user's global account data."""
        path = f"/_matrix/client/v3/user/{quote(user.user_id)}/account_data/{quote(kind)}"
        await self.client_api("PUT", path, content, token=user.access_token)

    async def client_api(
        self, method: str, path: str, body: Any = None, *, token: str | None = None
    ) -> Any:
        """Call the Client-Server API and return the JSON of a 200."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        tls = ssl.create_default_context(cafile=str(self.ca_file))
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
            session.request(
                method, f"https://{self.server_name}{path}", json=body, headers=headers, ssl=tls
            ) as response,
        ):
            text = await response.text()
            assert response.status == 200, f"{method} {path}: {response.status} {text}"
            return json.loads(text)

    def log(self) -> str:
        """Return what it has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class Files:
    """What a remote needs to serve TLS, and to trust the CA of the tests."""

    ca: Path
    certificate: Path
    """The chain, the leaf first."""
    key: Path


def write_tls_files(directory: Path, ca: trustme.CA) -> Files:
    """Write the certificate of `localhost` by `ca`, and the CA's own, into `directory`."""
    files = Files(directory / "ca.pem", directory / "tls.pem", directory / "tls.key")
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    files.certificate.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(files.key))
    ca.cert_pem.write_to_path(str(files.ca))
    return files


@dataclass(frozen=True, slots=True)
class Software:
    """How a homeserver is started."""

    name: str
    command: Callable[[int], Sequence[str]]
    """Writes the configuration for a port, and returns the command line for it."""
    ready: str
    """The path that is answered with 200 when it is well."""
    directory: Path
    ca_file: Path
    environment: Mapping[str, str]
    log_file: Path
    output: Path
    """For what it says on its standard output and error."""


@contextmanager
def running(software: Software) -> Iterator[int]:
    """Run it for the block; yields its port, once it is well."""
    process, port = _start(software)
    try:
        yield port
    finally:
        _stop(process)


def _start(software: Software) -> tuple[subprocess.Popen[bytes], int]:
    # The name of the server holds its port, so the port must be known before it listens. Somebody
    # else may take it meanwhile: then another is tried.
    said = ""
    for _ in range(START_ATTEMPTS):
        port = _free_port()
        command = software.command(port)
        with software.output.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=software.directory,
                # The parent's -W and PYTHONWARNINGS are about our code, not about other people's.
                env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
                | dict(software.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            healthy = _becomes_healthy(
                process, f"https://localhost:{port}{software.ready}", software
            )
        except BaseException:
            _stop(process)
            raise
        if healthy:
            return process, port
        _stop(process)
        said = "".join(
            file.read_text(encoding="utf-8", errors="replace")
            for file in dict.fromkeys((software.output, software.log_file))
            if file.exists()
        )
        if "in use" not in said:
            break
    raise RuntimeError(f"{software.name} did not start:\n{said[-4000:]}")


def _becomes_healthy(process: subprocess.Popen[bytes], url: str, software: Software) -> bool:
    tls = ssl.create_default_context(cafile=str(software.ca_file))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
    )
    give_up = time.monotonic() + START_TIMEOUT
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with opener.open(url, timeout=2) as response:
                if response.status == 200:
                    return True
        except urllib.error.HTTPError as error:
            error.close()
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
