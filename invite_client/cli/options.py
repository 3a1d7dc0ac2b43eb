"""The options that all sub-commands which use the network have in common, and what they come to.

What an option says wins over what its variable says (``--ca-file``, `INVITE_CLIENT_CA_FILE`), that
over the command's own configuration file, that over homeserver.yaml, and that over the defaults.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.core import ParameterSource

from invite_client.cli.checks import check_ca_file, check_key_file
from invite_client.cli.files import BadInputError, BadSettingError, FileName, exists
from invite_client.cli.homeserver_config import HomeserverConfig
from invite_client.cli.numbers import Number
from invite_client.cli.output import Output
from invite_client.cli.settings import POLICY_SETTINGS, Layer, Setting, make_policy
from invite_client.cli.show_config import show_settings
from invite_client.cli.sources import collect
from invite_client.errors import InvalidInviteError
from invite_client.policy import Policy
from invite_client.signing_keys import read_signing_key
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.signatures import SigningKey
from invite_client.stores.sqlite import SqliteStore

__all__ = ["Command", "Settings", "network_options", "store_options"]

MAX_TIMEOUT = 24 * 3600
"""Seconds. Nobody waits for an invite longer than a day."""

_PREFIX = "INVITE_CLIENT_"
_SHOWING = "invite_client.show_config"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Settings:
    """What the common options, the environment and the configuration come to."""

    policy: Policy
    output: Output
    server_name: str | None
    signing_key: str | None
    config: HomeserverConfig | None
    store: str | None = None

    def identity(self) -> tuple[str, SigningKey]:
        """Return our server's name and key. Raises `BadInputError` or `InvalidInviteError`."""
        if not self.server_name:
            raise BadInputError(
                "--server-name is missing: give the name of your server, or --homeserver-config"
            )
        try:
            name = str(parse_server_name(self.server_name))
        except InvalidInviteError as error:
            message = error.message.removeprefix("server name: ")
            raise BadInputError(f"--server-name: {message}") from None
        if self.signing_key is not None:
            key = read_signing_key(self.signing_key)
            self._warn_of_readers(self.signing_key)
            return name, key
        if self.config is None:
            raise BadInputError(
                "--signing-key is missing: give your server's key file, or --homeserver-config"
            )
        key = self.config.signing_key()
        self._warn_of_readers(self.config.key_file)
        return name, key

    @property
    def key_file(self) -> str | None:
        """The file in which the signing key stands, if one is named."""
        if self.signing_key is not None or self.config is None:
            return self.signing_key
        return self.config.key_file

    def _warn_of_readers(self, key_file: str) -> None:
        """Whoever reads a signing key can speak for the whole server."""
        try:
            mode = Path(key_file).stat().st_mode
        except OSError:  # it was there a moment ago
            return
        if os.name == "posix" and stat.S_ISREG(mode) and mode & (stat.S_IROTH | stat.S_IWOTH):
            self.output.note(
                f"warning: {key_file} holds the signing key, and every user of this machine may "
                f"read or change it: chmod o= {key_file}",
                "yellow",
            )

    @asynccontextmanager
    async def open_store(self) -> AsyncIterator[SqliteStore | None]:
        """Open the store, if there is to be one that outlives this process, and close it.

        Raises `InvalidInviteError` if the file cannot be used.
        """
        if self.store is None:
            yield None
            return
        store = SqliteStore(self.store)
        try:
            await store.purge(time.time())
            yield store
        finally:
            await store.aclose()

    @asynccontextmanager
    async def existing_store(self) -> AsyncIterator[SqliteStore]:
        """Open a store that must be there. Raises `BadInputError` or `InvalidInviteError`."""
        if self.store is None:
            raise BadInputError("--store is missing: name the file that send or bulk was given")
        store = SqliteStore(_existing(self.store))
        try:
            yield store
        finally:
            await store.aclose()

    async def still_stored(self, deleted: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return which of these kinds and keys the file holds: deleting them may have been in vain.

        Where a store fails it says so to nobody who uses it, and so the file is opened anew.
        """
        async with self.existing_store() as store:
            kinds = {kind for kind, _ in deleted}
            there = {(kind, key) async for kind, key, _ in store.entries(*kinds)}
        return there.intersection(deleted)

    def raise_for_rest(self, rest: int, number: int) -> None:
        """Raise `ClickException` if not all is forgotten that should be."""
        if rest:
            raise click.ClickException(
                f"{rest} of {number} not forgotten: {self.store} could not be written, or somebody "
                "who uses it has learned the same anew"
            )


def _existing(path: str) -> str:
    if not exists(path):
        raise BadInputError(f"{path} does not exist")
    return path


class Command(click.Command):
    """One that needs no arguments where it is only asked for its settings."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the parameters; see `click.Command`."""
        parameters = super().get_params(ctx)
        if not ctx.meta.get(_SHOWING):
            return parameters
        return [_optional(parameter) for parameter in parameters]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line; see `click.Command`."""
        ctx.meta[_SHOWING] = "--show-config" in args
        return super().parse_args(ctx, args)


def _optional(parameter: click.Parameter) -> click.Parameter:
    if isinstance(parameter, click.Argument):
        parameter = copy(parameter)
        parameter.required = False
    return parameter


# --- The options --------------------------------------------------------------------------------


class _Option(click.Option):
    """One whose value may also come from a variable of the environment."""

    @property
    def setting(self) -> str:
        """What it is called elsewhere."""
        return _SETTINGS.get(str(self.name), str(self.name))

    def source(self, ctx: click.Context) -> ParameterSource | None:
        """Return where the value comes from."""
        return ctx.get_parameter_source(str(self.name))

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Name what a bad value comes from; see `click.Parameter`."""
        if ctx is not None and self.source(ctx) is ParameterSource.ENVIRONMENT:
            return str(self.envvar)
        return super().get_error_hint(ctx)


_SETTINGS = {
    "ca_file": "tls.ca_file",
    "allow_address": "addresses.allowed",
    "nameserver": "dns.nameservers",
    "proxy": "proxy.url",
    "onion_proxy": "proxy.onion",
    "timeout": "timeouts.total",
}


def _check_ca_files(
    _: click.Context, parameter: click.Parameter, paths: tuple[str, ...]
) -> tuple[str, ...]:
    for path in paths:
        try:
            check_ca_file(path)
        except ValueError as error:
            raise click.BadParameter(str(error), param=parameter) from None
    return paths


def _check_key_file(_: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    try:
        check_key_file(path or "")
    except ValueError as error:
        raise click.BadParameter(str(error), param=parameter) from None
    return path


def _check_setting(_: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Say by the name of the option, and at once, what a policy says of its value."""
    assert isinstance(parameter, _Option)  # noqa: S101  # all are
    try:
        make_policy({parameter.setting: value})
    except ValueError as error:
        message = str(error).removeprefix(parameter.setting).lstrip(": ")
        raise click.BadParameter(message, param=parameter) from None
    return value


def _read_proxy(context: click.Context, parameter: click.Parameter, url: str | None) -> Any:
    return _check_setting(context, parameter, None if url == "none" else url)


_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "--server-name": {"metavar": "NAME", "help": "The name of our server."},
    "--signing-key": {
        "metavar": "FILE",
        "type": FileName(),
        "callback": _check_key_file,
        "help": "Our server's signing key: ed25519 <version> <base64 seed>.",
    },
    "--config": {
        "metavar": "FILE",
        "type": FileName(),
        "help": "A TOML file of settings.  [default: ~/.config/invite_client/config.toml]",
    },
    "--homeserver-config": {
        "metavar": "FILE",
        "type": FileName(),
        "multiple": True,
        "help": "Synapse's homeserver.yaml (or a folder of such files): name, key, address and "
        "server lists, CAs, key servers and proxy are taken from there. Repeatable.",
    },
    "--store": {
        "metavar": "FILE",
        "type": FileName(),
        "help": "Where keys, look-ups and back-off are remembered; made if need be.",
    },
    "--ca-file": {
        "metavar": "FILE",
        "type": FileName(),
        "multiple": True,
        "callback": _check_ca_files,
        "help": "Certificate authorities (PEM) to trust instead of the system's. Repeatable.",
    },
    "--allow-address": {
        "metavar": "CIDR",
        "multiple": True,
        "callback": _check_setting,
        "help": "A network that may be connected to although it is not public. Repeatable.",
    },
    "--nameserver": {
        "metavar": "IP[:PORT]",
        "multiple": True,
        "callback": _check_setting,
        "help": "A DNS server to ask instead of the system's. Repeatable.",
    },
    "--proxy": {
        "metavar": "URL",
        "callback": _read_proxy,
        "help": "http://host:port or socks5://host:port to go through; none for the direct way, "
        "whatever https_proxy says.",
    },
    "--onion-proxy": {
        "metavar": "URL",
        "callback": _read_proxy,
        "help": "The same for .onion names only, such as Tor's socks5://127.0.0.1:9050.",
    },
    "--timeout": {
        "metavar": "SECONDS",
        "type": Number(min=0, min_open=True, max=MAX_TIMEOUT),
        "help": "How long it may take in all; in `bulk`, each send of an invite.  "
        f"[default: {Policy().timeouts.total:g}]",
    },
}
_IDENTITY = ("--server-name", "--signing-key")


def _variable(option: str) -> str:
    return _PREFIX + option.removeprefix("--").replace("-", "_").upper()


def network_options(*, identity: bool) -> Callable[[F], F]:
    """Add the common options to a sub-command, which gets them as `settings`.

    A sub-command that needs no identity takes its options all the same, and does not show them.
    """
    return _with_settings(_OPTIONS, hidden=() if identity else _IDENTITY)


def store_options() -> Callable[[F], F]:
    """Add the options of a sub-command that looks into a store, which gets them as `settings`."""
    store = {**_OPTIONS["--store"], "help": "The file in which it is all remembered."}
    return _with_settings({"--config": _OPTIONS["--config"], "--store": store})


def _with_settings(
    described: Mapping[str, Mapping[str, Any]], hidden: Sequence[str] = ()
) -> Callable[[F], F]:
    options = [
        *(
            click.option(name, cls=_Option, envvar=_variable(name), hidden=name in hidden, **how)
            for name, how in described.items()
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text."),
        click.option(
            "--show-config",
            is_flag=True,
            help="Only show every setting, and where it comes from.",
        ),
    ]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def with_settings(*arguments: Any, as_json: bool, show_config: bool, **values: Any) -> Any:
            context = click.get_current_context()
            given = [option for option in context.command.params if isinstance(option, _Option)]
            output = Output(as_json=as_json)
            said = _said(context, {option: values.pop(str(option.name)) for option in given})
            _warn_of_variables(output)
            layer, config = collect(said, with_homeserver="--homeserver-config" in described)
            for warning in config.warnings if config else ():
                output.note(f"warning: {warning}", "yellow")
            if show_config:
                show_settings(output, layer)
                return 0
            return function(*arguments, settings=_settings(layer, config, output), **values)

        command: Any = with_settings
        for option in reversed(options):
            command = option(command)
        return cast("F", command)

    return decorate


# --- Where settings come from -------------------------------------------------------------------


def _said(context: click.Context, values: Mapping[_Option, Any]) -> Layer:
    """Return what options say, and where they say nothing, their variables."""
    found = {}
    for option, value in values.items():
        match option.source(context):
            case ParameterSource.COMMANDLINE:
                found[option.setting] = Setting(value, option.opts[0])
            case ParameterSource.ENVIRONMENT:
                found[option.setting] = Setting(value, str(option.envvar))
    return found


def _warn_of_variables(output: Output) -> None:
    for name in sorted(os.environ.keys() - set(map(_variable, _OPTIONS))):
        if name.startswith(_PREFIX):
            output.note(f"warning: {name} is no variable of this command", "yellow")


def _settings(layer: Layer, config: HomeserverConfig | None, output: Output) -> Settings:
    key_file = layer["signing_key"]
    # If it is the configuration's, that reads it, and only if need be.
    is_theirs = config is not None and key_file is config.settings["signing_key"]
    try:
        policy = make_policy({name: layer[name].value for name in POLICY_SETTINGS})
    except ValueError as error:
        # It begins with the setting, which whoever wrote it may know by another name.
        name = re.split("[ :]", str(error), maxsplit=1)[0]
        raise BadSettingError(f"{layer[name].source}: {error}") from None
    return Settings(
        policy=policy,
        output=output,
        server_name=layer["server_name"].value,
        signing_key=None if is_theirs else key_file.value,
        config=config,
        store=layer["store"].value,
    )
