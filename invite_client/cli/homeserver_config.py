"""Synapse's homeserver.yaml: what an operator has already said about federation.

What is not said there stays at the defaults of `Policy`, some of which are stricter than Synapse's.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, TypeGuard

from invite_client.cli.checks import check_ca_file, check_path, check_server_name, make_notary
from invite_client.cli.files import BadInputError, exists, read_bytes
from invite_client.cli.settings import POLICY_SETTINGS, Layer, Setting, make_policy
from invite_client.policy import Policy, ProxyPolicy, TlsPolicy
from invite_client.signing_keys import parse_signing_key, read_signing_key
from invite_client.spec.signatures import SigningKey

__all__ = ["HomeserverConfig", "read_homeserver_config"]

_ALWAYS_BLOCKED = ("0.0.0.0", "::")  # noqa: S104  # Synapse adds them to every list
_6TO4 = 0x2002 << 112
"""RFC 3056: 2002::/16 carries an IPv4 address in its next 32 bits."""
_UNVERIFIED = "federation_certificate_verification_whitelist"
_TLS_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3}
"""`federation_client_minimum_tls_version`, where it asks for more than our own minimum."""


@dataclass(frozen=True, slots=True)
class HomeserverConfig:
    """What was found."""

    server_name: str
    settings: Layer
    """What it says of the policy, and who we are."""
    warnings: tuple[str, ...]
    """Settings that are not followed."""
    _files: _MergedFiles

    @property
    def policy(self) -> Policy:
        """The policy that it comes to by itself."""
        names = self.settings.keys() & POLICY_SETTINGS.keys()
        return make_policy({name: self.settings[name].value for name in names})

    def signing_key(self) -> SigningKey:
        """Read the key. Only when it is needed: who may not read it may still resolve names."""
        return self._files.signing_key(self.server_name)

    @property
    def key_file(self) -> str:
        """The file in which the key stands."""
        return self._files.key_file(self.server_name)


def read_homeserver_config(paths: Sequence[str]) -> HomeserverConfig:
    """Read files, or folders of ``*.yaml`` files, as Synapse does: later ones win, key by key.

    Raises `BadInputError` with the file, the setting and what was expected.
    """
    settings = _MergedFiles()
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
        check_server_name(server_name)
    except ValueError as error:
        raise settings.bad("server_name", str(error)) from None
    found = {"server_name": settings.setting("server_name", server_name)}
    found["signing_key"] = settings.key_setting(server_name)
    for read in (_addresses, _servers, _tls, _notaries, _proxy):
        found |= read(settings)
    return HomeserverConfig(server_name, found, tuple(_warnings(settings)), settings)


class _MergedFiles:
    """The merged files, and which setting came from which."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._sources: dict[str, Path] = {}

    def add(self, file: Path) -> None:
        import yaml  # noqa: PLC0415  # needed by few, and it takes a while

        content = read_bytes(str(file))
        try:
            loaded = yaml.safe_load(content)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise BadInputError(f"{file} is not YAML: {error.problem}{where}") from None
        except Exception:  # noqa: BLE001  # a tag on a value that it does not fit raises anything
            raise BadInputError(f"{file} is not YAML") from None
        if loaded is None:
            return
        if not isinstance(loaded, dict):
            raise BadInputError(f"{file} is not a homeserver.yaml: expected settings by name")
        self._values |= loaded
        self._sources |= dict.fromkeys(loaded, file)

    def setting(self, name: str, value: Any) -> Setting:
        """Return a value with where it comes from."""
        return Setting(value, f"{self._sources[name]}: {name}")

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

    def secret(self, name: str) -> str | None:
        """Like `text`, for what no error may show."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.bad(name, "is not a string")
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
        try:
            check_path(path)
        except ValueError as error:
            raise self.bad(name, str(error)) from None
        beside = self._sources[name].parent / path
        return str(beside) if not exists(path) and exists(beside) else path

    def signing_key(self, server_name: str) -> SigningKey:
        inline = self.secret("signing_key")
        if inline is not None:
            return parse_signing_key(inline, f"signing_key in {self._sources['signing_key']}")
        return read_signing_key(self._path_of_key(server_name))

    def key_setting(self, server_name: str) -> Setting:
        """Return where the key is."""
        if "signing_key" in self:
            return self.setting("signing_key", "(the key itself is not shown)")
        by = "signing_key_path" if "signing_key_path" in self else "server_name"
        return self.setting(by, self._path_of_key(server_name))

    def key_file(self, server_name: str) -> str:
        """Return the file in which the key stands: its own, or the configuration."""
        inline = self._sources.get("signing_key")
        return self._path_of_key(server_name) if inline is None else str(inline)

    def _path_of_key(self, server_name: str) -> str:
        path = self.text("signing_key_path")
        if path is not None:
            return self.path("signing_key_path", path)
        return str(self._sources["server_name"].parent / f"{server_name}.signing.key")


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


# --- Each part of the policy --------------------------------------------------------------------


def _addresses(settings: _MergedFiles) -> dict[str, Setting]:
    found = {}
    # The older name spoke of federation alone, and knows no whitelist.
    name = "federation_ip_range_blacklist"
    if name not in settings:
        name = "ip_range_blacklist"
        whitelist = "ip_range_whitelist"
        allowed = tuple(map(str, settings.networks(whitelist)))
        if allowed:
            found["addresses.allowed"] = settings.setting(whitelist, allowed)
    if settings.texts(name) is None:
        return found
    blocked: list[str] = list(_ALWAYS_BLOCKED)
    for network in settings.networks(name):
        blocked.append(str(network))
        if isinstance(network, IPv4Network):
            # What carries the address inside an IPv6 one: 6to4, and IPv4-compatible (RFC 4291).
            inside, bits = int(network.network_address), network.prefixlen
            blocked.append(f"{IPv6Address(_6TO4 | inside << 80)}/{16 + bits}")
            blocked.append(f"{IPv6Address(inside)}/{96 + bits}")
    return {
        **found,
        "addresses.blocked": settings.setting(name, tuple(blocked)),
        # Synapse's list takes the place of its default.
        "addresses.non_public": settings.setting(name, True),
    }


def _servers(settings: _MergedFiles) -> dict[str, Setting]:
    name = "federation_domain_whitelist"
    allowed = settings.texts(name)
    return {} if allowed is None else {"servers.allowed": settings.setting(name, allowed)}


def _tls(settings: _MergedFiles) -> dict[str, Setting]:
    found = {}
    name = "federation_custom_ca_list"
    files = settings.texts(name)
    if files is not None:
        if not files:
            raise settings.bad(name, "is empty; name a file, or remove the setting")
        files = tuple(settings.path(name, file) for file in files)
        for index, file in enumerate(files):
            try:
                check_ca_file(file)
            except ValueError as error:
                raise settings.bad(name, str(error), f"[{index}]") from None
        found["tls.ca_file"] = settings.setting(name, files)
    name = "federation_client_minimum_tls_version"
    version = _TLS_VERSIONS.get(str(settings.get(name)))
    if version is not None:
        found["tls.minimum_version"] = settings.setting(name, version)
    unverified = tuple(
        # Synapse looks at the host name, we at the whole server name.
        form
        for entry in settings.texts(_UNVERIFIED) or ()
        if _names_somebody(entry)
        for form in (entry, f"{entry}:*")
    )
    if unverified:
        found["tls.unverified"] = settings.setting(_UNVERIFIED, unverified)
    return found


def _names_somebody(entry: str) -> bool:
    try:
        TlsPolicy(unverified=(entry,))
    except ValueError:
        return False
    return True


def _notaries(settings: _MergedFiles) -> dict[str, Setting]:
    name = "trusted_key_servers"
    entries = settings.get(name) or []
    if not isinstance(entries, list):
        raise settings.bad(name, f"is {entries!r:.50}, expected a list")
    notaries = []
    for index, entry in enumerate(entries):
        given = entry if isinstance(entry, dict) else {}
        try:
            notaries.append(make_notary(given.get("server_name"), given.get("verify_keys") or {}))
        except ValueError as error:
            raise settings.bad(name, str(error), f"[{index}]") from None
    return {"keys.notaries": settings.setting(name, tuple(notaries))} if notaries else {}


def _proxy(settings: _MergedFiles) -> dict[str, Setting]:
    """Synapse's `http_proxy` is for plain HTTP, which federation never uses."""
    found = {}
    name = "https_proxy"
    if name in settings:
        url = settings.secret(name)
        if url and "://" not in url:
            url = f"http://{url}"
        try:
            ProxyPolicy(url=url or None)
        except ValueError as error:
            raise settings.bad(name, str(error).removeprefix("proxy.url ")) from None
        found["proxy.url"] = settings.setting(name, url or None)
    name = "no_proxy_hosts"
    bypass = settings.texts(name)
    if bypass is not None:
        found["proxy.bypass"] = settings.setting(name, bypass)
    return found


def _warnings(settings: _MergedFiles) -> list[str]:
    found = [
        f"{_UNVERIFIED}: {entry!r} is not followed, for it names nobody, or nobody in particular: "
        "certificates are verified"
        for entry in settings.texts(_UNVERIFIED) or ()
        if not _names_somebody(entry)
    ]
    if settings.get("federation_verify_certificates") is False:
        found.append("federation_verify_certificates: false is not followed: they are verified")
    return found
