"""Where settings come from: of several sources, the first that says anything counts.

Options and their variables, the command's own configuration file, homeserver.yaml, the environment
(proxies only), defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from invite_client.cli.config_file import default_config_file, read_config_file
from invite_client.cli.files import BadInputError
from invite_client.cli.homeserver_config import HomeserverConfig, read_homeserver_config
from invite_client.cli.settings import Layer, Setting, default_settings
from invite_client.policy import ProxyPolicy

__all__ = ["collect"]

_NOTHING = {
    name: Setting(None, "default")
    for name in ("config", "homeserver_config", "server_name", "signing_key", "store")
}


def collect(said: Layer, *, with_homeserver: bool) -> tuple[Layer, HomeserverConfig | None]:
    """Return all settings, each from where it counts, and homeserver.yaml if it was read.

    `said` is what the options say. Raises `BadInputError`.
    """
    path = said["config"].value if "config" in said else default_config_file()
    file = read_config_file(path) if path else {}

    config, homeserver = None, dict[str, Setting]()
    paths = {**file, **said}.get("homeserver_config")
    if with_homeserver and paths is not None:
        given = paths.value
        config = read_homeserver_config([given] if isinstance(given, str) else given)
        homeserver = dict(config.settings)

    settings = {**homeserver, **file, **said}
    name = "addresses.allowed"
    below = file.get(name) or homeserver.get(name)
    if name in said and below:
        # One more hole in a fence does not close the others.
        both = (*below.value, *said[name].value)
        settings[name] = Setting(both, f"{below.source}, {said[name].source}")
    if path:
        settings.setdefault("config", Setting(path, "default"))
    return {**_NOTHING, **default_settings(), **_environment(settings), **settings}, config


def _environment(settings: Layer) -> Layer:
    """Return the proxy that all programs on this system are to use, unless one is named for this.

    Synapse does the same, below what its homeserver.yaml says.
    """
    environment: Mapping[str, str] = os.environ
    if "proxy.url" in settings:
        environment = {name: os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")}
    try:
        proxy = ProxyPolicy.from_environment(environment)
    except ValueError as error:
        raise BadInputError(str(error)) from None
    found = {}
    if proxy.url is not None:
        found["proxy.url"] = Setting(proxy.url, "https_proxy or all_proxy")
    if proxy.bypass:
        found["proxy.bypass"] = Setting(proxy.bypass, "no_proxy")
    return found
