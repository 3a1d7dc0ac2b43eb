"""A real Dendrite: SQLite, its message queue within the process, TLS, no privileges.

No Python package brings one: `find_dendrite` looks where somebody has put it. `start_dendrite` runs
it with limits that do not get in the way of a test, and lets it connect to loopback alone.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.interop.remote import Remote, Software, running, write_tls_files

VARIABLE = "DENDRITE"
"""The environment variable that names the binary."""

_COMPONENTS_WITH_A_DATABASE = (
    "federation_api",
    "key_server",
    "media_api",
    "mscs",
    "relay_api",
    "room_server",
    "sync_api",
)


@dataclass(frozen=True, slots=True)
class Dendrite(Remote):
    """A running Dendrite."""


def find_dendrite() -> str | None:
    """Return the binary that the environment names, or that is on the PATH."""
    named = os.environ.get(VARIABLE)
    # It is started in a directory of its own.
    return os.path.abspath(named) if named else shutil.which("dendrite")


@contextmanager
def start_dendrite(directory: Path, ca: trustme.CA) -> Iterator[Dendrite]:
    """Run a Dendrite whose certificate is by `ca`, and which trusts that CA and no other."""
    binary = find_dendrite()
    if binary is None:
        raise FileNotFoundError(f"no dendrite on the PATH, and none in {VARIABLE}")
    files = write_tls_files(directory, ca)
    no_others = directory / "no-certificates"
    no_others.mkdir()

    def command(port: int) -> list[str]:
        return [
            binary,
            *("--config", str(_write_config(directory, port))),
            *("--http-bind-address", ""),
            *("--https-bind-address", f"127.0.0.1:{port}"),
            *("--tls-cert", str(files.certificate), "--tls-key", str(files.key)),
            "--really-enable-open-registration",
        ]

    software = Software(
        "Dendrite",
        command,
        ready="/_dendrite/monitor/health",
        directory=directory,
        ca_file=files.ca,
        # Where Go looks for certificate authorities. It verifies us as it would verify anybody.
        environment={"SSL_CERT_FILE": str(files.ca), "SSL_CERT_DIR": str(no_others)},
        log_file=directory / "output.txt",
        output=directory / "output.txt",
    )
    with running(software) as port:
        yield Dendrite(f"localhost:{port}", directory, files.ca, software.log_file)


def _write_config(directory: Path, port: int) -> Path:
    seed = base64.b64encode(secrets.token_bytes(32)).decode()
    (directory / "matrix_key.pem").write_text(
        "-----BEGIN MATRIX PRIVATE KEY-----\n"
        f"Key-ID: ed25519:d{secrets.token_hex(2)}\n\n"
        f"{seed}\n"
        "-----END MATRIX PRIVATE KEY-----\n"
    )
    config: dict[str, dict[str, object]] = {
        component: {"database": {"connection_string": f"file:{directory / component}.db"}}
        for component in _COMPONENTS_WITH_A_DATABASE
    }
    config["federation_api"] |= {
        "key_perspectives": [],
        "prefer_direct_fetch": True,
        "disable_tls_validation": False,
        "deny_networks": [],
        "allow_networks": ["127.0.0.0/8", "::1/128"],
    }
    config["media_api"] |= {"base_path": str(directory / "media")}
    config["global"] = {
        "server_name": f"localhost:{port}",
        "private_key": str(directory / "matrix_key.pem"),
        "trusted_third_party_id_servers": [],
        "report_stats": {"enabled": False},
        "jetstream": {"storage_path": str(directory / "jetstream"), "in_memory": True},
    }
    config["client_api"] = {
        "registration_disabled": False,
        "rate_limiting": {"enabled": False},
    }
    config["user_api"] = {
        "account_database": {"connection_string": f"file:{directory / 'accounts.db'}"},
        "bcrypt_cost": 4,
    }
    path = directory / "dendrite.yaml"
    # JSON is YAML.
    logging = [{"type": "std", "level": "info"}]
    path.write_text(json.dumps({"version": 2, **config, "logging": logging}, indent=1))
    return path
