"""A real Synapse of its own, on loopback: SQLite, TLS, no privileges.

`start_synapse` runs the `matrix-synapse` that is installed beside the tests as a process of its
own, in a directory of its own, with limits that do not get in the way of a test. It is stopped by
its process ID.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import signedjson.key
import trustme

START_TIMEOUT = 90.0
"""Seconds until it must answer; it takes about 5 on an idle machine, more beside other tests."""
STOP_TIMEOUT = 20.0
"""Seconds until it must have ended before it is killed."""

_UNLIMITED = {"per_second": 10_000, "burst_count": 10_000}


@dataclass(frozen=True, slots=True)
class User:
    """A local user of the Synapse, logged in."""

    user_id: str
    access_token: str


@dataclass(frozen=True, slots=True)
class Synapse:
    """A running Synapse."""

    server_name: str
    """``localhost:port``, which is also where it listens."""
    directory: Path
    ca_file: Path
    pid: int

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
        return await self.client_api(
            "GET", "/_matrix/client/v3/sync?timeout=0", token=user.access_token
        )

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
        return (self.directory / "homeserver.log").read_text(encoding="utf-8", errors="replace")


@contextmanager
def start_synapse(
    directory: Path,
    ca: trustme.CA,
    *,
    defaults: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Synapse]:
    """Run a Synapse whose certificate is by `ca`, and which trusts that CA and no other.

    `defaults` are settings that are left as Synapse has them, `settings` are further ones, and
    `environment` is added to the process's own.
    """
    ca_file = directory / "ca.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    (directory / "settings.yaml").write_text(json.dumps(settings or {}))
    process, port = _start(directory, ca, ca_file, defaults, environment or {})
    try:
        yield Synapse(f"localhost:{port}", directory, ca_file, process.pid)
    finally:
        _stop(process)


def _start(
    directory: Path,
    ca: trustme.CA,
    ca_file: Path,
    defaults: Collection[str],
    environment: Mapping[str, str],
    *,
    attempts: int = 3,
) -> tuple[subprocess.Popen[bytes], int]:
    # The name of the server holds its port, so the port must be known before it listens. Somebody
    # else may take it meanwhile: then another is tried.
    for attempt in range(attempts):
        port = _free_port()
        config = _write_config(directory, port, ca, ca_file, defaults)
        with (directory / "output.txt").open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "synapse.app.homeserver"),
                    *("-c", str(config), "-c", str(directory / "settings.yaml")),
                ],
                cwd=directory,
                # The parent's -W and PYTHONWARNINGS are about our code, not about Synapse's.
                env={k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
                | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            healthy = _becomes_healthy(process, port, ca_file)
        except BaseException:
            _stop(process)
            raise
        if healthy:
            return process, port
        _stop(process)
        said = (directory / "output.txt").read_text(encoding="utf-8", errors="replace")
        log = directory / "homeserver.log"
        said += log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if "in use" not in said or attempt == attempts - 1:
            raise RuntimeError(f"Synapse did not start:\n{said[-4000:]}")
    raise AssertionError("unreachable")


def _becomes_healthy(process: subprocess.Popen[bytes], port: int, ca_file: Path) -> bool:
    tls = ssl.create_default_context(cafile=str(ca_file))
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls)
    )
    give_up = time.monotonic() + START_TIMEOUT
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with opener.open(f"https://localhost:{port}/health", timeout=2) as response:
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


def _write_config(
    directory: Path, port: int, ca: trustme.CA, ca_file: Path, defaults: Collection[str]
) -> Path:
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    chain = b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    (directory / "tls.pem").write_bytes(chain)
    certificate.private_key_pem.write_to_path(str(directory / "tls.key"))
    with (directory / "signing.key").open("w") as file:
        key = signedjson.key.generate_signing_key(f"s_{secrets.token_hex(2)}")
        signedjson.key.write_signing_keys(file, [key])
    # JSON is YAML.
    (directory / "log.yaml").write_text(
        json.dumps(
            {
                "version": 1,
                "formatters": {
                    "plain": {
                        "format": "%(asctime)s %(name)s:%(lineno)d %(levelname)s "
                        "%(request)s %(message)s"
                    }
                },
                "handlers": {
                    "file": {
                        "class": "logging.FileHandler",
                        "filename": str(directory / "homeserver.log"),
                        "formatter": "plain",
                        "encoding": "utf-8",
                    }
                },
                "root": {"level": "INFO", "handlers": ["file"]},
                "disable_existing_loggers": False,
            }
        )
    )
    config = {
        "server_name": f"localhost:{port}",
        "public_baseurl": f"https://localhost:{port}/",
        "pid_file": str(directory / "homeserver.pid"),
        "log_config": str(directory / "log.yaml"),
        "media_store_path": str(directory / "media"),
        "signing_key_path": str(directory / "signing.key"),
        "database": {"name": "sqlite3", "args": {"database": str(directory / "homeserver.db")}},
        "listeners": [
            {
                "port": port,
                "type": "http",
                "tls": True,
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["client", "federation"]}],
            }
        ],
        "tls_certificate_path": str(directory / "tls.pem"),
        "tls_private_key_path": str(directory / "tls.key"),
        # It verifies us as it would verify anybody, with the CA of the tests.
        "federation_custom_ca_list": [str(ca_file)],
        "federation_verify_certificates": True,
        "ip_range_blacklist": [],
        "trusted_key_servers": [],
        "suppress_key_server_warning": True,
        "report_stats": False,
        "macaroon_secret_key": secrets.token_hex(16),
        "form_secret": secrets.token_hex(16),
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "bcrypt_rounds": 4,
        "presence": {"enabled": False},
        "caches": {"sync_response_cache_duration": "0s"},
        "experimental_features": {"msc4155_enabled": True},
        "rc_registration": _UNLIMITED,
        "rc_message": _UNLIMITED,
        "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
        "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
        "rc_federation": {
            "window_size": 1000,
            "sleep_limit": 10_000,
            "sleep_delay": 1,
            "reject_limit": 10_000,
            "concurrent": 100,
        },
    }
    path = directory / "homeserver.yaml"
    told = {name: value for name, value in config.items() if name not in defaults}
    path.write_text(json.dumps(told, indent=1))
    return path
