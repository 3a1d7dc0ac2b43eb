"""Every number and every switch, each with its reason.

A `Policy` is a value: build one, pass it to `InviteClient`, share it freely. All durations are
seconds, all sizes are bytes. The defaults are safe on the public internet.

What makes no sense is refused where it is made, by a `ValueError` that names the setting. Numbers are
finite, lists become tuples.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from urllib.parse import unquote_to_bytes, urlsplit

__all__ = [
    "NON_PUBLIC_NETWORKS",
    "AddressPolicy",
    "BackoffPolicy",
    "BulkPolicy",
    "CachePolicy",
    "DnsPolicy",
    "KeyPolicy",
    "Limits",
    "Notary",
    "Policy",
    "ProxyPolicy",
    "Retries",
    "ServerPolicy",
    "Timeouts",
    "TlsPolicy",
]

NON_PUBLIC_NETWORKS: dict[str, str] = {
    # IPv4, from the IANA special-purpose registry.
    "0.0.0.0/8": "this network (RFC 791)",
    "10.0.0.0/8": "private use (RFC 1918)",
    "100.64.0.0/10": "shared address space of carriers (RFC 6598)",
    "127.0.0.0/8": "loopback (RFC 1122)",
    "169.254.0.0/16": "link local, where clouds keep their metadata (RFC 3927)",
    "172.16.0.0/12": "private use (RFC 1918)",
    "192.0.0.0/24": "IETF protocol assignments (RFC 6890)",
    "192.0.2.0/24": "documentation (RFC 5737)",
    "192.88.99.0/24": "6to4 relay anycast, deprecated (RFC 7526)",
    "192.168.0.0/16": "private use (RFC 1918)",
    "198.18.0.0/15": "benchmarking (RFC 2544)",
    "198.51.100.0/24": "documentation (RFC 5737)",
    "203.0.113.0/24": "documentation (RFC 5737)",
    "224.0.0.0/4": "multicast (RFC 5771)",
    "240.0.0.0/4": "reserved, and broadcast (RFC 1112, RFC 919)",
    # IPv6. Of IPv4-mapped and NAT64 addresses the gate judges the IPv4 address that they carry
    # (net/addresses.py); the other forms that carry one are refused whatever it is.
    "::/96": "unspecified, loopback, IPv4-compatible (RFC 4291)",
    "::ffff:0:0:0/96": "IPv4-translated (RFC 2765)",
    "64:ff9b:1::/48": "local-use NAT64 (RFC 8215)",
    "100::/64": "discard only (RFC 6666)",
    "2001::/23": "IETF protocol assignments, Teredo among them (RFC 2928, RFC 4380)",
    "2001:db8::/32": "documentation (RFC 3849)",
    "2002::/16": "6to4, deprecated (RFC 3056, RFC 7526)",
    "3fff::/20": "documentation (RFC 9637)",
    "5f00::/16": "segment routing (RFC 9602)",
    "fc00::/7": "unique local (RFC 4193)",
    "fe80::/10": "link local (RFC 4291)",
    "fec0::/10": "site local, deprecated (RFC 3879)",
    "ff00::/8": "multicast (RFC 4291)",
    # Global unicast is 2000::/3 (RFC 4291 § 2.4). What is routed of the rest is somebody's own:
    # overlays, leftovers of old plans.
    "100::/8": "not assigned (RFC 4291)",
    "200::/7": "not assigned, once NSAP (RFC 4048)",
    "400::/6": "not assigned (RFC 4291)",
    "800::/5": "not assigned (RFC 4291)",
    "1000::/4": "not assigned (RFC 4291)",
    "4000::/2": "not assigned (RFC 4291)",
    "8000::/2": "not assigned (RFC 4291)",
    "c000::/3": "not assigned (RFC 4291)",
    "e000::/4": "not assigned (RFC 4291)",
    "f000::/5": "not assigned (RFC 4291)",
    "f800::/6": "not assigned (RFC 4291)",
    "fe00::/9": "not assigned (RFC 4291)",
}
"""Networks that a stranger's server must never make us connect to, and why.

`ipaddress.is_global` is not this list: it calls multicast, NAT64 and 6to4 global.
"""


# --- What makes sense ---------------------------------------------------------------------------

_TOO_LARGE = 2**63
"""Some numbers are handed to C code, which has 64 bits for them; and none of a larger size is meant."""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_texts(values: Iterable[object]) -> bool:
    return all(isinstance(value, str) for value in values)


_TYPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "None": ("None", lambda value: value is None),
    "bool": ("True or False", lambda value: isinstance(value, bool)),
    "int": (
        "a whole number below 2**63",
        lambda value: isinstance(value, int) and _is_number(value) and value < _TOO_LARGE,
    ),
    "float": (
        "a number below 2**63",  # which NaN is not
        lambda value: _is_number(value) and value < _TOO_LARGE,
    ),
    "str": ("a string", lambda value: isinstance(value, str)),
    "os.PathLike[str]": ("a path", lambda value: isinstance(value, os.PathLike)),
    "tuple[str, ...]": (
        "a tuple of strings",
        lambda value: isinstance(value, tuple) and _are_texts(value),
    ),
    "Mapping[str, str]": (
        "a mapping of strings to strings",
        lambda value: isinstance(value, Mapping) and _are_texts((*value, *value.values())),
    ),
    "tuple[Notary, ...]": (
        "a tuple of Notary",
        lambda value: isinstance(value, tuple) and all(isinstance(one, Notary) for one in value),
    ),
    # RFC 8996 retired what is older: Python warns of it, and OpenSSL may not have it.
    "ssl.TLSVersion": (
        "ssl.TLSVersion.TLSv1_2 or TLSv1_3",
        lambda value: isinstance(value, ssl.TLSVersion) and value >= ssl.TLSVersion.TLSv1_2,
    ),
}
"""Of every type that a field has: what is expected, and what fits."""


def _check(
    owner: str, part: Any, *may_be_0: str, at_most: Mapping[str, str | float] | None = None
) -> None:
    """Raise `ValueError` for a field that is not of its type, or for a number out of its range.

    Numbers are greater than 0 but for those that `may_be_0`; `at_most` a number, or another field.
    """
    defaults = {}
    for one in fields(part):
        defaults[one.name] = one.default
        value = getattr(part, one.name)
        if "tuple[" in one.type and isinstance(value, list | set | frozenset):
            value = tuple(value)  # which nobody changes, and which has a hash
            object.__setattr__(part, one.name, value)
        types = [_TYPES[name] for name in one.type.split(" | ")]
        if not any(fits(value) for _, fits in types):
            expected = "be " + " or ".join(words for words, _ in types)
        elif not _is_number(value) or value > 0 or (value == 0 and one.name in may_be_0):
            continue
        else:
            expected = "not be negative" if one.name in may_be_0 else "be greater than 0"
        # What `repr` leaves out is a secret, whatever is there instead.
        found = _shown(value) if one.repr else type(value).__name__
        raise ValueError(f"{owner}.{one.name} must {expected}, not {found}")
    for name, limit in (at_most or {}).items():
        value, most, words = getattr(part, name), limit, repr(limit)
        if isinstance(limit, str):
            if value == defaults[name]:
                continue  # It gives way: the upper bound counts.
            most = getattr(part, limit)
            words = f"{owner}.{limit} ({most!r})"
        if value > most:
            raise ValueError(f"{owner}.{name} must be at most {words}, not {value!r}")


def _shown(value: object) -> str:
    kind = type(value).__name__
    try:
        shown = repr(value)
    except Exception:  # noqa: BLE001  # the value decides: an int of 5,000 digits is a ValueError
        return kind
    # Credentials of a proxy, or a line of a signing key file, that were put at a wrong place.
    is_secret = "@" in shown or "ed25519" in shown
    return f"{kind} (not shown)" if is_secret else " ".join(shown[:100].split())


def _check_entries(
    setting: str, entries: Iterable[Any], read: Callable[[Any], object], what: str, expected: str
) -> None:
    for entry in entries:
        if not _can(read, entry):
            raise ValueError(f"{setting}: {_shown(entry)} is not {what}; expected {expected}")


def _can(read: Callable[[Any], object], entry: object) -> bool:
    try:
        read(entry)
    except ValueError:
        return False
    return True


# Compiled when they are asked for: most policies say nothing that is looked at by them.
_HOST_AND_PORT = r"(?:\[([0-9A-Fa-f:.]+)\]|([^:]+))(?::([0-9]{1,5}))?"
_LABELS = r"[0-9A-Za-z-]{1,63}(?:\.[0-9A-Za-z-]{1,63})*\.?"
_HOST = r"[0-9A-Za-z_-][0-9A-Za-z_.-]*"
"""Less strict: on a LAN there are names with underscores."""
_PINNED_KEY = r"ed25519:[0-9A-Za-z_]+ [0-9A-Za-z+/]{43}={0,2}"


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Split what may have a port; an IPv6 address has brackets. Raises `ValueError`."""
    match = re.fullmatch(_HOST_AND_PORT, text)
    if match is None:
        raise ValueError
    port = None if match[3] is None else int(match[3])
    if port is not None and not 0 < port < 2**16:
        raise ValueError
    return str(ipaddress.IPv6Address(match[1])) if match[1] else match[2], port


def _server_name(text: str) -> None:
    """Appendices § Server Name, as `spec/server_names.py` has it. Raises `ValueError`."""
    host, _ = _host_and_port(text)
    if ":" in host:
        return
    if host.removesuffix(".").rpartition(".")[2].isdigit():
        ipaddress.IPv4Address(host)
    elif len(host) > 255 or not re.fullmatch(_LABELS, host):
        raise ValueError


_A_SERVER_NAME = (_server_name, "a server name", "one such as matrix.org or [2001:db8::1]:8448")


def _bypass(text: str) -> None:
    """One entry of `ProxyPolicy.bypass`. Raises `ValueError`."""
    if not _can(ipaddress.ip_interface, text):
        host, _ = _host_and_port(text)
        if ":" not in host and host != "*" and not re.fullmatch(_HOST, host.lstrip(".")):
            ipaddress.ip_interface(host)


def _nameserver(text: str, default_port: int) -> tuple[str, int]:
    """The address and the port of a name server. Raises `ValueError`."""
    host, port = (text, None) if _can(ipaddress.ip_address, text) else _host_and_port(text)
    return str(ipaddress.ip_address(host)), port or default_port


def _file(path: str | os.PathLike[str]) -> None:
    if not os.fsencode(path) or b"\0" in os.fsencode(path):
        raise ValueError


# --- The settings -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long things may take, in seconds."""

    total: float = 60.0
    """One `send_invite`, whatever happens inside. Synapse gives a federation request 60 s."""
    well_known: float = 10.0
    """The whole walk to a well-known file, redirects included. It comes before everything else,
    so a server that hangs there must not eat the budget of the invite."""
    connect: float = 10.0
    """One target: its addresses looked up and raced, TCP, proxy and TLS handshakes. Linux repeats a
    lost SYN after 1, 3 and 7 s, so 10 s sees three of them lost."""
    request: float = 30.0
    """One request on a connection that stands, until the whole answer is there. The remote may ask
    others (a policy server, a spam checker) before it signs."""

    def __post_init__(self) -> None:
        _check("timeouts", self)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often, and after how long, the same event is sent again within one `send_invite`."""

    attempts: int = 4
    """Requests for one invite at most, the first included: enough for a restart of the remote."""
    first_wait: float = 0.5
    """Upper bound of the first wait; each later one is twice as long, and all are jittered."""
    max_wait: float = 30.0
    """Upper bound of any wait that the remote has not asked for. A `Retry-After` is waited for where
    `timeouts.total` lets it; else it is the caller's to keep: it is reported."""

    def __post_init__(self) -> None:
        _check("retries", self, "first_wait", at_most={"first_wait": "max_wait"})


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be under way, and how much a remote may make us read."""

    concurrency: int = 100
    """Invites under way at once. Each holds one socket; 1024 descriptors are a common limit."""
    per_destination: int = 4
    """Invites under way at once to one server name, so that a bulk run hammers nobody."""
    reply_bytes: int = 1024 * 1024
    """An answer to an invite, decompressed, beside six times the bytes of the request: what was sent
    may come back (some repeat the room's state in `unsigned`), and JSON that escapes every character
    has six times as many. What a server adds is little: signatures, `unsigned`."""
    well_known_bytes: int = 64 * 1024
    """A well-known file, decompressed. A real one has about 40 bytes; Synapse reads 50 KiB."""
    idle_connections: int = 100
    """Connections that are kept, for some seconds, until the next request by the same way. Each
    costs about 30 KiB, and a descriptor; 300 KiB where the event loop cannot watch sockets, and
    asyncio's own TLS has its buffers. As many TLS sessions are kept, to go on with."""
    connections_ahead: int = 20
    """Connections opened at once on a guess: while a server is asked for its well-known file, to where
    it is if it has none. A first invite is then sooner by two round trips; each opens two, one of
    them for the keys, so this is for ten servers. Where there is a file they are closed unused: while
    invites to more than ten are under way, and in bulk runs, nobody opens any, and the keys come
    after the invite, by its connection. 0: so it always is."""
    key_bytes: int = 256 * 1024
    """A server's keys, decompressed: about 2,000 old keys."""
    header_bytes: int = 8 * 1024
    """One line or field of a reply's header, the usual limit of web servers."""
    header_count: int = 128
    """Fields of a reply's header."""
    redirects: int = 5
    """Redirects on the way to a well-known file. Browsers follow 20; a real one needs 1 or 2."""
    cached_servers: int = 10_000
    """Resolved servers and server keys that the memory stores keep, about 2 KiB each."""

    def __post_init__(self) -> None:
        _check("limits", self, "connections_ahead")


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which IP addresses may be connected to: public ones, unless `blocked`; `allowed` wins."""

    blocked: tuple[str, ...] = ()
    """Networks that are refused beside those that are not public, as CIDR."""
    allowed: tuple[str, ...] = ()
    """Networks that are let through all the same, as CIDR: for federation on a LAN."""
    non_public: bool = False
    """Whether networks that are not public are let through, all but the `blocked` ones. Strangers choose
    where our requests go: this is for hosts with a list of their own, such as Synapse's."""

    def __post_init__(self) -> None:
        _check("addresses", self)
        for name in ("blocked", "allowed"):
            _check_entries(
                f"addresses.{name}",
                getattr(self, name),
                ipaddress.ip_network,
                "a network",
                "one such as 10.0.0.0/8, with no host bits set",
            )


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """Which server names may be invited from.

    Compared is where they lead: case and the dot of an absolute name do not count, the port does.
    """

    allowed: tuple[str, ...] | None = None
    """If given, only these (Synapse: `federation_domain_whitelist`)."""
    blocked: tuple[str, ...] = ()
    """Never these, even where they are allowed."""

    def __post_init__(self) -> None:
        _check("servers", self)
        _check_entries("servers.allowed", self.allowed or (), *_A_SERVER_NAME)
        _check_entries("servers.blocked", self.blocked, *_A_SERVER_NAME)


@dataclass(frozen=True, slots=True)
class TlsPolicy:
    """How the certificate of a remote is checked."""

    ca_file: str | os.PathLike[str] | tuple[str, ...] | None = None
    """A PEM file of certificate authorities, or several, used instead of the system's."""
    minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    """RFC 8996 retired TLS 1.0 and 1.1."""
    unverified: tuple[str, ...] = ()
    """Server names whose homeserver's certificate is not checked, compared without regard to case;
    ``*`` stands for any characters and ``?`` for one, but not in the last label: ``*.lab.example``.
    Anybody on the way can read and answer. A well-known file without a valid certificate still
    counts for nothing."""

    def __post_init__(self) -> None:
        _check("tls", self)
        if self.ca_file == ():
            raise ValueError("tls.ca_file must name a file, or be None for the system's")
        files = self.ca_file if isinstance(self.ca_file, tuple) else (self.ca_file,)
        _check_entries(
            "tls.ca_file",
            () if self.ca_file is None else files,
            _file,
            "the name of a file",
            "one of certificates, or None for the system's",
        )
        for entry in self.unverified:
            # Checking can be turned off for servers, not altogether.
            hostname = entry.partition(":")[0].removesuffix(".")
            label = hostname.rpartition(".")[2]
            if not label or "*" in label or "?" in label:
                raise ValueError(
                    f"tls.unverified: {_shown(entry)} names nobody in particular; expected a server "
                    "name, with * and ? before its last dot only"
                )
            if not _can(_server_name, re.sub(r"[*?]", "1", entry)):
                raise ValueError(
                    f"tls.unverified: {_shown(entry)} is not a server name; expected one such as "
                    "lab.example or *.lab.example:*"
                )


@dataclass(frozen=True, slots=True)
class DnsPolicy:
    """Whom to ask for SRV, A and AAAA records."""

    nameservers: tuple[str, ...] = ()
    """Name servers: ``192.0.2.1``, ``192.0.2.1:5353``, ``2001:db8::1``, ``[2001:db8::1]:5353``; empty
    means those of the system."""
    port: int = 53
    """The port of those `nameservers` that name none."""
    timeout: float = 5.0
    """One question, all name servers and repeats included. Resolvers give up on an unreachable
    zone after about as long."""
    minimum_ttl: float = 30.0
    """Seconds for which an answer is kept at least, against zones with a TTL of 0."""
    maximum_ttl: float = 3600.0
    """Seconds for which an answer is kept at most, against zones with a TTL of a week."""
    maximum_negative_ttl: float = 300.0
    """Seconds for which it is kept at most that there is no such record: who has just added one
    does not want to wait (RFC 2308 § 5 recommends 1 to 3 hours as the limit)."""
    failure_ttl: float = 1.0
    """Seconds for which it is kept that no name server answered: who asked ahead has spared who
    asks next the wait (RFC 9520 § 3.2: at least 1 s)."""
    stale: float = 24 * 3600.0
    """Seconds for which an address may serve after its time while no name server answers
    (RFC 8767 § 5 suggests 1 to 3 days)."""
    records: int = 32
    """Records of one answer that are used: a zone must not make us knock on a thousand doors."""
    remembered_hosts: int = 10_000
    """Hosts whose addresses are kept in memory, about 1 KiB each."""

    def __post_init__(self) -> None:
        _check(
            "dns",
            self,
            "minimum_ttl",
            "maximum_ttl",
            "maximum_negative_ttl",
            "failure_ttl",
            "stale",
            at_most={"port": 2**16 - 1, "minimum_ttl": "maximum_ttl"},
        )
        _check_entries(
            "dns.nameservers",
            self.nameservers,
            lambda text: _nameserver(text, self.port),
            "an IP address",
            "one such as 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:5353",
        )

    @property
    def servers(self) -> tuple[tuple[str, int], ...]:
        """The address and the port of each of the `nameservers`."""
        return tuple(_nameserver(text, self.port) for text in self.nameservers)


@dataclass(frozen=True, slots=True)
class ProxyPolicy:
    """The way out, where there is no direct one. Nothing of this is read from the environment.

    Names are resolved here, and the proxy is asked for an address that has passed
    `AddressPolicy`; only `.onion` names are resolved at the proxy. The proxy itself may have any
    address.
    """

    url: str | None = field(default=None, repr=False)
    """``http://[user:password@]host:port`` (HTTP CONNECT) or ``socks5://…``; never shown."""
    onion: str | None = field(default=None, repr=False)
    """The same for `.onion` names only, such as Tor's ``socks5://127.0.0.1:9050``; without it they
    go to `url`."""
    bypass: tuple[str, ...] = ()
    """What is reached directly (`NO_PROXY`): names, each with all names below it, addresses and
    networks (CIDR), with ``:port`` for that port only; ``*`` for everything. Compared with the
    server name, the delegated name and the target. Loopback is no exception, as with curl."""

    def __post_init__(self) -> None:
        _check("proxy", self)
        for setting, url in (("proxy.url", self.url), ("proxy.onion", self.onion)):
            if url is not None:
                _proxy_url(setting, url)
        _check_entries(
            "proxy.bypass",
            self.bypass,
            _bypass,
            "a name, an address or a network",
            "one such as lan, 10.0.0.0/8 or [2001:db8::1]:8448, or *",
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> ProxyPolicy:
        """Read `https_proxy`, else `all_proxy`, and `no_proxy`, in small letters or capitals.

        A proxy without a scheme is one of HTTP, and forms of `no_proxy` that are not those of `bypass`
        are passed over, as curl has it.

        Raises `ValueError`, which names the variable, if that is no proxy that can be used.
        """
        given = os.environ if environment is None else environment
        names = [
            spelled for name in ("https_proxy", "all_proxy") for spelled in (name, name.upper())
        ]
        found = next((name for name in names if given.get(name)), None)
        listed = given.get("no_proxy") or given.get("NO_PROXY") or ""
        # The variable is for all programs, and to some of them `*.lan` means something.
        bypass = tuple(one for one in listed.replace(",", " ").split() if _can(_bypass, one))
        if "*" in bypass:
            return cls(bypass=("*",))
        if found is None:
            return cls(bypass=bypass)
        url = given[found] if "://" in given[found] else f"http://{given[found]}"
        _proxy_url(found, url)
        return cls(url=url, bypass=bypass)


def _proxy_url(setting: str, url: str) -> None:
    """Check the URL of a proxy. It may hold a password, so no error shows it."""
    expected = ValueError(
        f"{setting} must be http://[user:password@]host:port or socks5://…; names are resolved "
        "here, so there is no socks5h://"
    )
    try:
        url.encode()  # a lone surrogate is found out
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise expected from None
    if parts.scheme not in ("http", "socks5") or not port:
        raise expected
    if not re.fullmatch(_HOST, host) and not _can(ipaddress.IPv6Address, host):
        raise expected
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise expected
    for part in (parts.username, parts.password):
        # RFC 1929 has one byte for the length of each.
        if part is not None and not 1 <= len(unquote_to_bytes(part)) <= 255:
            raise ValueError(f"{setting}: user and password must have 1 to 255 bytes")


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """How long what was discovered may be used, in seconds (§ Resolving server names, step 3)."""

    default: float = 24 * 3600.0
    """A well-known answer without cache headers: the specification's recommendation."""
    maximum: float = 48 * 3600.0
    """Any well-known answer: the specification's recommendation."""
    minimum: float = 60.0
    """Any well-known answer, `no-store` and `max-age=0` included: one file is not asked for twice
    while one bulk run is under way (Synapse: 300 s)."""
    failure_first: float = 60.0
    """A failed well-known; each further failure in a row doubles it."""
    failure_maximum: float = 3600.0
    """A failed well-known at most: "up to an hour"."""
    remember_valid: float = 24 * 3600.0
    """After it expired, how long a valid delegation survives failures to renew it: a web server
    that restarts must not send federation elsewhere."""
    stale: float = 300.0
    """After it expired, how long a valid delegation is still served at once, while it is asked for
    again in the background: nobody waits for what almost never changes."""
    jitter: float = 0.1
    """Lifetimes are shortened by up to this part, so that what was learned together does not
    expire together."""
    store_patience: float = 1.0
    """Seconds that a store is given for each call: to look things up anew takes about as long."""

    def __post_init__(self) -> None:
        _check(
            "cache",
            self,
            "default",
            "maximum",
            "minimum",
            "remember_valid",
            "stale",
            "jitter",
            at_most={"minimum": "maximum", "failure_first": "failure_maximum", "jitter": 1},
        )


@dataclass(frozen=True, slots=True)
class Notary:
    """A server that is trusted to know other servers' keys."""

    server_name: str
    """Its server name."""
    verify_keys: Mapping[str, str] = field(default_factory=dict)
    """Its pinned keys: key ID to base64. One of them must have signed what it says. Without any, it
    is believed by its TLS certificate alone."""

    def __post_init__(self) -> None:
        _check("notary", self)
        _check_entries("notary.server_name", (self.server_name,), *_A_SERVER_NAME)
        for number, (key_id, key) in enumerate(self.verify_keys.items(), 1):
            if not re.fullmatch(_PINNED_KEY, f"{key_id} {key}"):
                # It is not shown: it may be the other half of the pair.
                raise ValueError(
                    f"notary.verify_keys: number {number} is not a public key; expected an ID such as "
                    "ed25519:a_1, and the 32 bytes of the key in base64"
                )


_LONGEST_VALIDITY = 7 * 24 * 3600.0
"""§ Publishing Keys: "Servers MUST use the lesser of this field and 7 days into the future"."""


@dataclass(frozen=True, slots=True)
class KeyPolicy:
    """How other servers' signing keys are obtained and kept."""

    maximum_validity: float = _LONGEST_VALIDITY
    """Seconds after the fetch beyond which no published `valid_until_ts` is believed: 7 days, or
    less; the specification allows no more (§ Publishing Keys)."""
    failure_memory: float = 60.0
    """Seconds during which a failed fetch is not repeated for the same server."""
    notaries: tuple[Notary, ...] = ()
    """Who is asked when a server does not answer for its own keys; nobody, unless you trust one."""
    hedge_after: float = 3.0
    """Seconds that a server has to answer for its own keys before notaries are asked beside it:
    most answer within one."""

    def __post_init__(self) -> None:
        _check(
            "keys",
            self,
            "failure_memory",
            "hedge_after",
            at_most={"maximum_validity": _LONGEST_VALIDITY},
        )


@dataclass(frozen=True, slots=True)
class BackoffPolicy:
    """When a destination that fails is left alone: its invites are refused without being sent."""

    after_failures: int | None = 3
    """Sends in a row, retries included, that must have failed before (not reachable, no answer,
    502, 503, 504, 429): one that fails, and one more, may be sent again by hand at once. None: they
    are counted, and nothing is refused."""
    first: float = 60.0
    """Seconds of the first back-off: the restart of a homeserver takes about that. Each further
    failure doubles it; a `Retry-After` may make it longer."""
    maximum: float = 3600.0
    """Seconds of any back-off: who has come back is found within the hour."""
    remember: float = 24 * 3600.0
    """Seconds after which failures are forgotten that no other has followed."""

    def __post_init__(self) -> None:
        _check("backoff", self, "remember", at_most={"first": "maximum"})


@dataclass(frozen=True, slots=True)
class BulkPolicy:
    """How `send_invites` goes about many invites. How many at once is in `Limits`."""

    look_ahead: int = 1000
    """Invites in memory: taken from the input, and not yet handed out as outcomes. About 25 KiB
    each, so 25 MiB. It is also how many destinations may be failing at once before the others
    must wait, so it should be well above `limits.concurrency`."""
    rate: float | None = None
    """Sends per second at most, evenly spaced; None for as many as `Limits` allow."""
    attempts: int = 5
    """Sends of one invite that may fail with a fault that may pass (not reachable, 5xx): by then
    its destination has rested four times, for 15 s in all at least half of that."""
    deferrals: int = 50
    """Sends of one invite that may be answered with a time to come back at (429). Where a server
    limits fairly an invite needs two or three; one that has had fifty is singled out."""
    longest_deferral: float = 600.0
    """Seconds that one invite is put off at a time at most; with more it ends with that error.
    Synapse asks for up to 333 s: three invites in 1,000 s are what one user is allowed."""
    first_wait: float = 1.0
    """Seconds that a destination rests after its first failure, at most; each further one in a row
    doubles it, and all are jittered down to a half. One that names a time itself gets that."""
    max_wait: float = 60.0
    """Seconds that a failing destination rests at most, unless it asks for more: a homeserver that
    has come back is found within a minute."""
    patience: float = 600.0
    """Seconds during which a destination may do nothing but fail before it is given up, rests that
    it asks for included. The restart of a large homeserver takes minutes; what is down longer is
    for another run."""
    patience_when_full: float = 60.0
    """The same, while the look-ahead is full, and the others may be waiting behind it."""
    slow_after: float = 5.0
    """Seconds after which an answer is slow: a server that needs them is overloaded, and gets one
    invite at a time."""
    kept_for_prompt: float = 0.2
    """The part of `limits.concurrency` that is kept for destinations that answer promptly, however
    many others hang in a timeout."""

    def __post_init__(self) -> None:
        _check(
            "bulk",
            self,
            "longest_deferral",
            "first_wait",
            "patience",
            "patience_when_full",
            "kept_for_prompt",
            at_most={"first_wait": "max_wait"},
        )
        if not self.kept_for_prompt < 1:
            raise ValueError(
                f"bulk.kept_for_prompt must be less than 1, not {self.kept_for_prompt!r}"
            )


@dataclass(frozen=True, slots=True)
class Policy:
    """Everything that can be set about an `InviteClient`."""

    timeouts: Timeouts = Timeouts()
    retries: Retries = Retries()
    limits: Limits = Limits()
    addresses: AddressPolicy = AddressPolicy()
    servers: ServerPolicy = ServerPolicy()
    tls: TlsPolicy = TlsPolicy()
    dns: DnsPolicy = DnsPolicy()
    proxy: ProxyPolicy = ProxyPolicy()
    cache: CachePolicy = CachePolicy()
    keys: KeyPolicy = KeyPolicy()
    backoff: BackoffPolicy = BackoffPolicy()
    bulk: BulkPolicy = BulkPolicy()
    fallback: Literal["spec", "unknown-endpoint"] = "spec"
    """When an invite is sent again by v1 (room versions 1 and 2 only): on any 400 or 404, as the
    specification says, or only where the answer shows that the remote does not know v2."""

    def __post_init__(self) -> None:
        for part in fields(self):
            value, expected = getattr(self, part.name), type(part.default)
            if not isinstance(value, expected):
                # What it is instead may hold a secret.
                raise ValueError(  # noqa: TRY004  # as of all that is wrong with a policy
                    f"{part.name} must be of type {expected.__name__}, not {type(value).__name__}"
                )
        if self.fallback not in ("spec", "unknown-endpoint"):
            raise ValueError(
                f'fallback must be "spec" or "unknown-endpoint", not {_shown(self.fallback)}'
            )
