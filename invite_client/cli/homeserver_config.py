"""Synapse's homeserver.yaml: what an operator has already said about federation.

What is not said there stays at the defaults of `Policy`, some of which are stricter than Synapse's.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, TypeGuard

from invite_client.cli.files import BadInputError, check_ca_file, read_bytes
from invite_client.errors import InvalidInviteError
from invite_client.policy import (
    AddressPolicy,
    KeyPolicy,
    Notary,
    Policy,
    ServerPolicy,
    TlsPolicy,
)
from invite_client.signing_keys import parse_signing_key, read_signing_key
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.signatures import SigningKey, VerifyKey

__all__ = ["HomeserverConfig", "read_homeserver_config"]

_ALWAYS_BLOCKED = ("0.0.0.0", "::")  # noqa: S104  # Synapse adds them to every list
_6TO4 = 0x2002 << 112
"""RFC 3056: 2002::/16 carries an IPv4 address in its next 32 bits."""
_TLS_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3}
"""`federation_client_minimum_tls_version`, where it asks for more than our own minimum."""


@dataclass(frozen=True, slots=True)
class HomeserverConfig:
    """What was found."""

    server_name: str
    policy: Policy
    warnings: tuple[str, ...]
    """Settings that are not followed."""
    _settings: _Settings

    def signing_key(self) -> SigningKey:
        """Read the key. Only when it is needed: who may not read it may still resolve names."""
        return self._settings.signing_key(self.server_name)


def read_homeserver_config(paths: Sequence[str]) -> HomeserverConfig:
    """Read files, or folders of ``*.yaml`` files, as Synapse does: later ones win, key by key.

    Raises `BadInputError` with the file, the setting and what was expected.
    """
    settings = _Settings()
    for path in paths:
        folder = Path(path)
        files = sorted(folder.glob("*.yaml")) if folder.is_dir() else [folder]
        if not files:
            raise BadInputError(f"--homeserver-config: {path} is a folder without *.yaml files")
        for file in files:
            settings.add(file)
    server_name = settings.text("server_name")
    if server_name is None:
        raise BadInputError(f"{paths[-1]}: server_name is missing")
    try:
        parse_server_name(server_name)
    except InvalidInviteError as error:
        raise settings.bad("server_name", error.message.removeprefix("server name: ")) from None
    policy = Policy(
        addresses=_addresses(settings),
        servers=ServerPolicy(allowed=settings.texts("federation_domain_whitelist")),
        tls=_tls(settings),
        keys=replace(KeyPolicy(), notaries=_notaries(settings)),
    )
    return HomeserverConfig(server_name, policy, tuple(_warnings(settings)), settings)


class _Settings:
    """The merged files, and which setting came from which."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._sources: dict[str, Path] = {}

    def add(self, file: Path) -> None:
        import yaml  # noqa: PLC0415  # needed by few, and it takes a while

        try:
            loaded = yaml.safe_load(read_bytes(str(file)))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise BadInputError(f"{file} is not YAML: {error.problem}{where}") from None
        except (yaml.YAMLError, RecursionError, ValueError):
            raise BadInputError(f"{file} is not YAML") from None
        if loaded is None:
            return
        if not isinstance(loaded, dict):
            raise BadInputError(f"{file} is not a homeserver.yaml: expected settings by name")
        self._values |= loaded
        self._sources |= dict.fromkeys(loaded, file)

    def bad(self, name: str, message: str, part: str = "") -> BadInputError:
        return BadInputError(f"{self._sources[name]}: {name}{part}: {message}")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> Any:
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.bad(name, f"is {value!r:.50}, expected a string")
        return value

    def texts(self, name: str) -> tuple[str, ...] | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not _is_texts(value):
            raise self.bad(name, f"is {value!r:.50}, expected a list of strings")
        return tuple(value)

    def networks(self, name: str) -> tuple[IPv4Network | IPv6Network, ...]:
        found = []
        for index, text in enumerate(self.texts(name) or ()):
            try:
                found.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                message = f"{text!r:.50} is not a network; expected one such as 10.0.0.0/8"
                raise self.bad(name, message, f"[{index}]") from None
        return tuple(found)

    def path(self, name: str, path: str) -> str:
        """Synapse looks in its working directory, which need not be ours."""
        beside = self._sources[name].parent / path
        return str(beside) if not Path(path).exists() and beside.exists() else path

    def signing_key(self, server_name: str) -> SigningKey:
        inline = self.text("signing_key")
        if inline is not None:
            return parse_signing_key(inline, f"signing_key in {self._sources['signing_key']}")
        path = self.text("signing_key_path")
        if path is not None:
            return read_signing_key(self.path("signing_key_path", path))
        folder = self._sources["server_name"].parent
        return read_signing_key(folder / f"{server_name}.signing.key")


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# --- Each part of the policy --------------------------------------------------------------------


def _addresses(settings: _Settings) -> AddressPolicy:
    # The older name spoke of federation alone, and knows no whitelist.
    name = "federation_ip_range_blacklist"
    allowed: tuple[str, ...] = ()
    if name not in settings:
        name = "ip_range_blacklist"
        allowed = tuple(map(str, settings.networks("ip_range_whitelist")))
    if settings.texts(name) is None:
        return AddressPolicy(allowed=allowed)
    blocked: list[str] = list(_ALWAYS_BLOCKED)
    for network in settings.networks(name):
        blocked.append(str(network))
        if isinstance(network, IPv4Network):
            # What carries the address inside an IPv6 one: 6to4, and IPv4-compatible (RFC 4291).
            inside, bits = int(network.network_address), network.prefixlen
            blocked.append(f"{IPv6Address(_6TO4 | inside << 80)}/{16 + bits}")
            blocked.append(f"{IPv6Address(inside)}/{96 + bits}")
    return AddressPolicy(blocked=tuple(blocked), allowed=allowed)


def _tls(settings: _Settings) -> TlsPolicy:
    name = "federation_custom_ca_list"
    files = settings.texts(name)
    if files is not None:
        if not files:
            raise settings.bad(name, "is empty; name a file, or remove the setting")
        files = tuple(settings.path(name, file) for file in files)
        for index, file in enumerate(files):
            fault = check_ca_file(file)
            if fault:
                raise settings.bad(name, fault, f"[{index}]")
    version = str(settings.get("federation_client_minimum_tls_version"))
    default = TlsPolicy()
    unverified = settings.texts("federation_certificate_verification_whitelist") or ()
    return TlsPolicy(
        ca_file=files,
        minimum_version=_TLS_VERSIONS.get(version, default.minimum_version),
        unverified=tuple(entry for entry in unverified if not _is_pattern(entry)),
    )


def _notaries(settings: _Settings) -> tuple[Notary, ...]:
    name = "trusted_key_servers"
    entries = settings.get(name) or []
    if not isinstance(entries, list):
        raise settings.bad(name, f"is {entries!r:.50}, expected a list")
    notaries = []
    for index, entry in enumerate(entries):
        part = f"[{index}]"
        match entry:
            case {"server_name": str(server_name)}:
                keys = entry.get("verify_keys") or {}
            case _:
                raise settings.bad(name, "has no server_name", part)
        try:
            parse_server_name(server_name)
            if not isinstance(keys, dict):
                raise ValueError("verify_keys is not a mapping of key IDs to keys")  # noqa: TRY004
            for key_id, key in keys.items():
                VerifyKey.from_base64(str(key_id), str(key))
        except ValueError as error:  # an `InvalidInviteError` is one
            raise settings.bad(name, str(error), part) from None
        notaries.append(Notary(server_name, keys))
    return tuple(notaries)


def _is_pattern(entry: str) -> bool:
    return "*" in entry or "?" in entry


def _warnings(settings: _Settings) -> list[str]:
    name = "federation_certificate_verification_whitelist"
    found = [
        f"{name}: wildcards are not followed: certificates are verified for {entry!r}"
        for entry in settings.texts(name) or ()
        if _is_pattern(entry)
    ]
    if settings.get("federation_verify_certificates") is False:
        found.append("federation_verify_certificates: false is not followed: they are verified")
    return found
