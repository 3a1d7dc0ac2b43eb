"""The gate that every connection passes: may this address be connected to?

A remote server's name, well-known file, SRV records and redirects are chosen by strangers, who may
point any of them at our own network. The gate is asked at the moment of connecting, with the very
address that is connected to, so a name that changes its mind between two look-ups gains nothing.
"""

from __future__ import annotations

import errno
import ipaddress
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from invite_client.policy import NON_PUBLIC_NETWORKS, AddressPolicy

__all__ = ["AddressGate", "AddressRefusedError"]

_NAT64 = IPv6Network("64:ff9b::/96")
"""RFC 6052: carries an IPv4 address. On a network without IPv4 it is the only way out, so what
counts is the address inside."""
_RESERVED = IPv6Network("::/8")
"""RFC 4291 § 2.4: what does not carry an IPv4 address is nobody's. A list of networks cannot say
"but for"."""


class AddressRefusedError(PermissionError):
    """The policy refuses an address. An `OSError`, for these pass through other people's code."""

    def __init__(self, address: IPv4Address | IPv6Address, network: str, reason: str) -> None:
        super().__init__(errno.EACCES, f"{address} is in {network}: {reason}")
        self.address: str = str(address)
        self.network = network
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.address} is refused: it is in {self.network}, {self.reason}; "
            "to permit it, add its network to addresses.allowed"
        )


class AddressGate:
    """Judges addresses by an `AddressPolicy`; `allowed` wins over `blocked`."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._allowed = [ipaddress.ip_network(network) for network in policy.allowed]
        blocked = dict.fromkeys(policy.blocked, "blocked by policy")
        if not policy.non_public:
            blocked |= NON_PUBLIC_NETWORKS
        self._blocked = [(ipaddress.ip_network(n), reason) for n, reason in blocked.items()]
        self._non_public = policy.non_public

    def check(self, address: str | IPv4Address | IPv6Address) -> None:
        """Raise `AddressRefusedError` if the address must not be connected to."""
        given = ipaddress.ip_address(address) if isinstance(address, str) else address
        # Each form must pass by itself: to allow ::/0 is not to allow ::ffff:10.0.0.1.
        forms = _forms(given)
        for form in forms:
            if any(form in network for network in self._allowed):
                continue
            for network, reason in self._blocked:
                if form in network:
                    raise AddressRefusedError(given, str(network), reason)
            if not self._non_public and len(forms) == 1 and form in _RESERVED:
                raise AddressRefusedError(given, str(_RESERVED), "not assigned (RFC 4291)")


def _forms(address: IPv4Address | IPv6Address) -> tuple[IPv4Address | IPv6Address, ...]:
    """The address, and the IPv4 address that is reached by connecting to it, if it carries one."""
    if isinstance(address, IPv4Address):
        return (address,)
    # A zone ID (fe80::1%eth0) chooses an interface of ours; no network contains one.
    bare = IPv6Address(int(address))
    if bare.ipv4_mapped is not None:
        return (bare, bare.ipv4_mapped)
    if bare in _NAT64:
        return (bare, IPv4Address(int(bare) & 0xFFFFFFFF))
    return (bare,)
