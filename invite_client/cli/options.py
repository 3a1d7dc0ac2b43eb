"""The options that all sub-commands which use the network have in common, and what they come to."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import click

from invite_client.cli.files import BadInputError, check_ca_file
from invite_client.cli.homeserver_config import HomeserverConfig, read_homeserver_config
from invite_client.cli.output import Output
from invite_client.errors import InvalidInviteError
from invite_client.policy import Policy
from invite_client.signing_keys import read_signing_key
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.signatures import SigningKey

__all__ = ["Settings", "network_options"]

MAX_TIMEOUT = 24 * 3600
"""Seconds. Nobody waits for an invite longer than a day."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Settings:
    """What the common options, and the homeserver's configuration, come to."""

    policy: Policy
    output: Output
    server_name: str | None
    signing_key: str | None
    config: HomeserverConfig | None

    def identity(self) -> tuple[str, SigningKey]:
        """Return our server's name and key. Raises `BadInputError` or `InvalidInviteError`."""
        name = self.server_name or (self.config and self.config.server_name)
        if not name:
            raise BadInputError(
                "--server-name is missing: give the name of your server, or --homeserver-config"
            )
        try:
            name = str(parse_server_name(name))
        except InvalidInviteError as error:
            raise BadInputError(f"--server-name: {error.message}") from None
        if self.signing_key is not None:
            return name, read_signing_key(self.signing_key)
        if self.config is None:
            raise BadInputError(
                "--signing-key is missing: give your server's key file, or --homeserver-config"
            )
        return name, self.config.signing_key()


def network_options(*, identity: bool) -> Callable[[F], F]:
    """Add the common options to a sub-command, which gets them as `settings`.

    A sub-command that needs no identity takes its options all the same, and does not show them.
    """
    options = [
        click.option(
            "--server-name", metavar="NAME", hidden=not identity, help="The name of our server."
        ),
        click.option(
            "--signing-key",
            metavar="FILE",
            hidden=not identity,
            help="Our server's signing key: ed25519 <version> <base64 seed>.",
        ),
        click.option(
            "--homeserver-config",
            metavar="FILE",
            multiple=True,
            help="Synapse's homeserver.yaml (or a folder of such files): name, key, address and "
            "server lists, CAs and key servers are taken from there. Other options win over it. "
            "Repeatable.",
        ),
        click.option(
            "--ca-file",
            metavar="FILE",
            multiple=True,
            callback=_check_ca_files,
            help="Certificate authorities (PEM) to trust instead of the system's. Repeatable.",
        ),
        click.option(
            "--allow-address",
            metavar="CIDR",
            multiple=True,
            callback=_check_networks,
            help="A network that may be connected to although it is not public. Repeatable.",
        ),
        click.option(
            "--nameserver",
            metavar="IP[:PORT]",
            multiple=True,
            callback=_read_nameservers,
            help="A DNS server to ask instead of the system's; IPv6 in brackets. Repeatable.",
        ),
        click.option(
            "--timeout",
            metavar="SECONDS",
            type=float,
            callback=_check_timeout,
            help=f"How long it may take in all.  [default: {Policy().timeouts.total:g}]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text."),
    ]

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def with_settings(
            *arguments: Any,
            server_name: str | None,
            signing_key: str | None,
            homeserver_config: Sequence[str],
            ca_file: tuple[str, ...],
            allow_address: tuple[str, ...],
            nameserver: tuple[tuple[str, int], ...],
            timeout: float | None,
            as_json: bool,
            **others: Any,
        ) -> Any:
            output = Output(as_json=as_json)
            config = read_homeserver_config(homeserver_config) if homeserver_config else None
            policy = config.policy if config else Policy()
            for warning in config.warnings if config else ():
                output.note(f"warning: {warning}", "yellow")
            if ca_file:
                policy = replace(policy, tls=replace(policy.tls, ca_file=ca_file))
            allowed = (*policy.addresses.allowed, *allow_address)
            policy = replace(policy, addresses=replace(policy.addresses, allowed=allowed))
            if nameserver:
                addresses = tuple(address for address, _ in nameserver)
                dns = replace(policy.dns, nameservers=addresses, port=nameserver[0][1])
                policy = replace(policy, dns=dns)
            if timeout is not None:
                policy = replace(policy, timeouts=replace(policy.timeouts, total=timeout))
            settings = Settings(policy, output, server_name, signing_key, config)
            return function(*arguments, settings=settings, **others)

        command: Any = with_settings
        for option in reversed(options):
            command = option(command)
        return cast("F", command)

    return decorate


# --- Reading the values -------------------------------------------------------------------------


def _check_ca_files(
    _: click.Context, parameter: click.Parameter, paths: tuple[str, ...]
) -> tuple[str, ...]:
    for path in paths:
        fault = check_ca_file(path)
        if fault:
            raise click.BadParameter(fault, param=parameter)
    return paths


def _check_timeout(
    _: click.Context, parameter: click.Parameter, seconds: float | None
) -> float | None:
    if seconds is not None and not 0 < seconds <= MAX_TIMEOUT:
        raise click.BadParameter(
            f"must be more than 0 and at most {MAX_TIMEOUT} seconds", param=parameter
        )
    return seconds


def _check_networks(
    _: click.Context, parameter: click.Parameter, networks: tuple[str, ...]
) -> tuple[str, ...]:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise click.BadParameter(
                f"{error}; expected a network such as 10.0.0.0/8 or fd00::/8", param=parameter
            ) from None
    return networks


def _read_nameservers(
    _: click.Context, parameter: click.Parameter, texts: tuple[str, ...]
) -> tuple[tuple[str, int], ...]:
    found = []
    for text in texts:
        try:
            name = parse_server_name(text)  # the same grammar, less DNS names
        except InvalidInviteError:
            name = None
        if name is None or name.ip is None:
            raise click.BadParameter(
                f"{text!r} is not an IP address; expected one such as 192.0.2.1, 192.0.2.1:5353 "
                "or [2001:db8::1]:53",
                param=parameter,
            )
        found.append((str(name.ip), name.port or Policy().dns.port))
    if len({port for _, port in found}) > 1:
        raise click.BadParameter("all name servers must have the same port", param=parameter)
    return tuple(found)
