"""Settings by name, each with where it comes from, and the policy that they come to.

A setting that is part of a `Policy` has the name that it has there: ``timeouts.total``.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, TypeAlias, get_type_hints
from urllib.parse import urlsplit

from invite_client.policy import Notary, Policy

__all__ = ["POLICY_SETTINGS", "Layer", "Setting", "default_settings", "make_policy", "shown"]


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and where it comes from."""

    value: Any
    source: str
    """``--timeout``, ``INVITE_CLIENT_TIMEOUT``, ``config.toml``, ``default`` …"""


Layer: TypeAlias = Mapping[str, Setting]
"""What one source says; of several, the first that says anything about a setting counts."""


def _policy_settings() -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, kind in get_type_hints(Policy).items():
        if is_dataclass(kind):
            settings |= {f"{name}.{key}": type_ for key, type_ in get_type_hints(kind).items()}
        else:
            settings[name] = kind
    return settings


POLICY_SETTINGS: Mapping[str, Any] = _policy_settings()
"""The type of every setting that is part of a policy."""


def make_policy(values: Mapping[str, Any]) -> Policy:
    """Return the default policy with these settings changed.

    Raises `ValueError`, which names the setting, for a value that it cannot have.
    """
    policy = Policy()
    parts: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    for name, value in values.items():
        part, _, key = name.partition(".")
        if key:
            parts.setdefault(part, {})[key] = value
        else:
            whole[part] = value
    for part, changes in parts.items():
        whole[part] = replace(getattr(policy, part), **changes)
    return replace(policy, **whole)


def default_settings() -> dict[str, Setting]:
    """Return every setting of a policy with its default."""
    policy = Policy()
    settings = {}
    for name in POLICY_SETTINGS:
        part, _, key = name.partition(".")
        value = getattr(policy, part)
        settings[name] = Setting(getattr(value, key) if key else value, "default")
    return settings


def shown(name: str, value: Any) -> Any:
    """Return a value as it may be shown: as JSON, and without a secret."""
    match value:
        case str() if name in ("proxy.url", "proxy.onion"):
            return _without_credentials(value)
        case tuple():
            return [shown(name, item) for item in value]
        case Notary(server_name=server_name, verify_keys=verify_keys):  # these are public
            return {"server_name": server_name, "verify_keys": dict(verify_keys)}
        case ssl.TLSVersion():
            return value.name.removeprefix("TLSv").replace("_", ".")
    return value


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    bare = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return f"{bare} (credentials are not shown)" if "@" in parts.netloc else bare
