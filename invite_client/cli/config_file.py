"""The command's own configuration: a TOML file in which every setting of a policy can be made.

server_name = "inviter.example"

[timeouts]
total = 30
"""

from __future__ import annotations

import codecs
import math
import os
import ssl
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from invite_client.cli.checks import (
    check_ca_file,
    check_key_file,
    check_path,
    check_server_name,
    make_notary,
)
from invite_client.cli.files import BadSettingError, exists, read_bytes
from invite_client.cli.settings import POLICY_SETTINGS, Setting, make_policy
from invite_client.policy import Notary

__all__ = ["default_config_file", "read_config_file"]

_OWN_SETTINGS: Mapping[str, Any] = {
    "server_name": str,
    "signing_key": str,
    "homeserver_config": str | tuple[str, ...],
    "store": str,
}
"""What is no part of a policy."""

_PATHS = frozenset({"signing_key", "homeserver_config", "store", "tls.ca_file"})

_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


def default_config_file() -> str | None:
    """Return the file that is read without being named, if it exists."""
    folder = os.environ.get("XDG_CONFIG_HOME") or _in_full("~/.config")
    path = Path(folder) / "invite_client" / "config.toml"
    return str(path) if exists(path) else None


def _in_full(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111  # a Path raises where there is no home


def read_config_file(path: str) -> dict[str, Setting]:
    """Return the settings of a file, by name.

    Raises `BadSettingError` that names the file, the table and the key, and shows no value: it may be
    a secret.
    """
    try:
        # Some editors put it there, and TOML 1.1 lets a reader pass it over.
        tables = tomllib.loads(read_bytes(path).removeprefix(codecs.BOM_UTF8).decode())
    except UnicodeDecodeError:
        raise BadSettingError(f"{path} is not TOML: it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise BadSettingError(f"{path} is not TOML: {error}") from None
    except ValueError:
        raise BadSettingError(f"{path} is not TOML: a number has too many digits") from None
    except RecursionError:
        raise BadSettingError(f"{path} is not TOML: it is nested too deeply") from None
    values: dict[str, Any] = {}
    for name, value in _flattened(tables, path):
        try:
            values[name] = _read(name, value, Path(path).parent)
        except ValueError as error:
            raise BadSettingError(f"{path}: {name}: {error}") from None
    try:
        make_policy({name: value for name, value in values.items() if name in POLICY_SETTINGS})
    except ValueError as error:
        raise BadSettingError(f"{path}: {error}") from None
    return {name: Setting(value, path) for name, value in values.items()}


def _flattened(tables: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    parts = {name.partition(".")[0] for name in POLICY_SETTINGS if "." in name}
    found: list[tuple[str, Any]] = []
    for name, value in tables.items():
        if name not in parts:
            found.append((name, value))
        elif isinstance(value, dict):
            found += [(f"{name}.{key}", item) for key, item in value.items()]
        else:
            raise BadSettingError(f"{path}: {name}: is {_kind(value)}, expected a table: [{name}]")
    known = {*_OWN_SETTINGS, *POLICY_SETTINGS}
    for name, _ in found:
        if name not in known:
            table, dot, _ = name.rpartition(".")
            others = sorted(
                {
                    other.removeprefix(table + dot)
                    for other in known
                    if other.startswith(table + dot)
                }
                if table
                else {*_OWN_SETTINGS, *parts, "fallback"}
            )
            raise BadSettingError(
                f"{path}: {name}: is not a setting; expected one of {', '.join(others)}"
            )
    return found


# --- Values -------------------------------------------------------------------------------------


def _read(name: str, value: object, folder: Path) -> Any:
    """Return a value of the type that the setting has. Raises `ValueError`."""
    found = _of_type(_OWN_SETTINGS.get(name) or POLICY_SETTINGS[name], value)
    match name:
        case "server_name":
            check_server_name(found)
        case "signing_key":
            check_key_file(found)
    if name in _PATHS and found is not None:
        for item in (found,) if isinstance(found, str) else found:
            check_path(item)
        # Relative to the file, for it is read from anywhere.
        if isinstance(found, tuple):
            found = tuple(str(folder / _in_full(item)) for item in found)
        else:
            found = str(folder / _in_full(found))
    if name == "tls.ca_file":
        for file in (found,) if isinstance(found, str) else found or ():
            check_ca_file(file)
    return found


def _of_type(type_: Any, value: object) -> Any:
    readers = [_READERS[alternative] for alternative in _alternatives(type_)]
    for _, read in readers:
        try:
            return read(value)
        except TypeError:
            continue
    expected = " or ".join(words for words, _ in readers)
    raise ValueError(f"is {_kind(value)}, expected {expected}")


def _alternatives(type_: Any) -> tuple[Any, ...]:
    if get_origin(type_) in (Union, UnionType):
        # A path is a string in a file.
        return tuple(kind for kind in get_args(type_) if kind != os.PathLike[str])
    return (str,) if get_origin(type_) is Literal else (type_,)


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    try:
        number = float(value)
    except OverflowError:
        raise TypeError from None
    if not math.isfinite(number):
        raise TypeError
    return number


def _whole_number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(_text(item) for item in value)


def _nothing(value: object) -> None:
    if value is not False:  # TOML has no null
        raise TypeError


def _tls_version(value: object) -> ssl.TLSVersion:
    if not isinstance(value, str) or value not in _TLS_VERSIONS:
        raise TypeError
    return _TLS_VERSIONS[value]


def _notaries(value: object) -> tuple[Notary, ...]:
    if not isinstance(value, list):
        raise TypeError
    notaries = []
    for index, entry in enumerate(value):
        match entry:
            case {"server_name": server_name, **others} if not others.keys() - {"verify_keys"}:
                try:
                    notaries.append(make_notary(server_name, others.get("verify_keys", {})))
                except ValueError as error:
                    raise ValueError(f"[{index}]: {error}") from None
            case _:
                raise TypeError
    return tuple(notaries)


_READERS: Mapping[Any, tuple[str, Callable[[object], Any]]] = {
    bool: ("true or false", _truth),
    float: ("a finite number", _number),
    int: ("a whole number", _whole_number),
    str: ("a string", _text),
    tuple[str, ...]: ("a list of strings", _texts),
    NoneType: ("false for none", _nothing),
    ssl.TLSVersion: ('"1.2" or "1.3"', _tls_version),
    tuple[Notary, ...]: ("tables with server_name and verify_keys", _notaries),
}
"""How a value of each type is read, and what is said of it."""

_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "a table",
}


def _kind(value: object) -> str:
    """What a value is. The value itself is not shown: where it was put may be a mistake."""
    return _KINDS.get(type(value), "a date or time")
