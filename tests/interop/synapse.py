"""A real Synapse: SQLite, TLS, no privileges.

`start_synapse` runs the `matrix-synapse` that is installed beside the tests, with limits that do
not get in the way of a test.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import signedjson.key
import trustme

from tests.interop.remote import Files, Remote, Software, running, write_tls_files

_UNLIMITED = {"per_second": 10_000, "burst_count": 10_000}


@dataclass(frozen=True, slots=True)
class Synapse(Remote):
    """A running Synapse."""


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
    files = write_tls_files(directory, ca)
    further = directory / "settings.yaml"
    further.write_text(json.dumps(settings or {}))

    def command(port: int) -> list[str]:
        config = _write_config(directory, port, files, defaults)
        program = [sys.executable, "-m", "synapse.app.homeserver"]
        return [*program, "-c", str(config), "-c", str(further)]

    software = Software(
        "Synapse",
        command,
        ready="/health",
        directory=directory,
        ca_file=files.ca,
        environment=environment or {},
        log_file=directory / "homeserver.log",
        output=directory / "output.txt",
    )
    with running(software) as port:
        yield Synapse(f"localhost:{port}", directory, files.ca, software.log_file)


def _write_config(directory: Path, port: int, files: Files, defaults: Collection[str]) -> Path:
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
        "tls_certificate_path": str(files.certificate),
        "tls_private_key_path": str(files.key),
        # It verifies us as it would verify anybody, with the CA of the tests.
        "federation_custom_ca_list": [str(files.ca)],
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
