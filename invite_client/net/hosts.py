"""The names that this machine knows without DNS: those of its hosts file, and its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TypeAlias

from invite_client.interfaces import Clock

__all__ = ["HOSTS_FILE", "Address", "Hosts"]

Address: TypeAlias = IPv4Address | IPv6Address

HOSTS_FILE = Path("/etc/hosts")
_LOOPBACK: tuple[Address, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
_READ_EVERY = 1.0
"""Seconds for which it is not read again: a run over many names asks hundreds of times in one."""


class Hosts:
    """A hosts file, read again when it is asked."""

    def __init__(self, file: Path, clock: Clock) -> None:
        """Read nothing yet. Without the file there are no such names."""
        self._file = file
        self._clock = clock
        self._names: dict[str, list[Address]] = {}
        self._read_at = -math.inf

    def addresses(self, name: str) -> Sequence[Address]:
        """Return what a name, in lower case without last dot, stands for; mostly nothing."""
        now = self._clock.monotonic()
        if now - self._read_at >= _READ_EVERY:
            self._names, self._read_at = self._read(), now
        found = self._names.get(name)
        if found is None and (name == "localhost" or name.endswith(".localhost")):
            return _LOOPBACK  # RFC 6761 § 6.3
        return found or ()

    def _read(self) -> dict[str, list[Address]]:
        try:
            lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return {}
        found: dict[str, list[Address]] = {}
        for line in lines:
            match line.partition("#")[0].split():
                case [literal, *names] if names:
                    try:
                        address = ip_address(literal)
                    except ValueError:
                        continue
                    for name in dict.fromkeys(name.lower() for name in names):
                        found.setdefault(name, []).append(address)
        return found
