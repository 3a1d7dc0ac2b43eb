"""Appendices § Server Name, § User Identifiers: the grammar.

server_name = hostname [ ":" port ]
port        = 1*5DIGIT
hostname    = IPv4address / "[" IPv6address "]" / dns-name
IPv4address = 1*3DIGIT "." 1*3DIGIT "." 1*3DIGIT "." 1*3DIGIT
IPv6address = 2*45IPv6char
IPv6char    = DIGIT / %x41-46 / %x61-66 / ":" / "."
dns-name    = 1*255dns-char
dns-char    = DIGIT / ALPHA / "-" / "."

"DNS names for use with Matrix should follow the conventional restrictions for internet hostnames":
what no DNS can hold, or what only an IPv4 address looks like, is refused too.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

from invite_client.errors import InvalidInviteError
from invite_client.spec.quoting import quoted

__all__ = ["ServerName", "check_user_id", "parse_server_name", "server_of"]

_SERVER_NAME = re.compile(
    r"(?P<hostname>\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[0-9A-Za-z.-]{1,255}))"
    r"(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)
_LABELS = re.compile(r"[0-9A-Za-z-]{1,63}(?:\.[0-9A-Za-z-]{1,63})*\.?", re.ASCII)  # RFC 1035
_MAX_PORT = 65_535
_MAX_USER_ID_BYTES = 255


@dataclass(frozen=True, slots=True)
class ServerName:
    """A server name in the grammar, split."""

    text: str
    """As it was written."""
    hostname: str
    """As it was written; an IPv6 literal in its brackets."""
    port: int | None
    """The port, if one was written."""
    ip: IPv4Address | IPv6Address | None
    """The address, if the hostname is a literal."""

    @property
    def host(self) -> str:
        """What is looked up or connected to: a DNS name in lower case, or a literal, bare."""
        return self.hostname.lower() if self.ip is None else str(self.ip)

    @property
    def place(self) -> tuple[str, int | None]:
        """Where the name leads: the same for all its spellings, which are different names."""
        return self.host.removesuffix("."), self.port

    def leads_to(self, other: ServerName) -> bool:
        """Whether both names lead to one server, in whatever spelling."""
        return self.place == other.place

    def __str__(self) -> str:
        return self.text


def parse_server_name(text: str) -> ServerName:
    """Split a server name. Raises `InvalidInviteError` if it is not in the grammar."""
    return _parsed(text)


@lru_cache(maxsize=1000)  # A busy server's peers; one name costs about a kilobyte.
def _parsed(text: str) -> ServerName:
    match = _SERVER_NAME.fullmatch(text)
    if match is None:
        raise _invalid(
            text, "expected hostname[:port], such as matrix.org, 192.0.2.1 or [2001:db8::1]:8448"
        )
    port = None if match["port"] is None else int(match["port"])
    if port is not None and not 1 <= port <= _MAX_PORT:
        raise _invalid(text, f"the port must be between 1 and {_MAX_PORT}")
    ip: IPv4Address | IPv6Address | None = None
    try:
        if match["v6"] is not None:
            ip = IPv6Address(match["v6"])
        elif match["name"].removesuffix(".").rpartition(".")[2].isdigit():
            # RFC 1123 § 2.1: the last label of a host name is not a number. Other software takes
            # 127.1 and 2130706433 for IPv4 addresses.
            ip = IPv4Address(match["name"])
    except ipaddress.AddressValueError:
        raise _invalid(text, f"{match['hostname']} is not an IP address") from None
    if ip is None and not _LABELS.fullmatch(match["name"]):
        raise _invalid(text, "between dots there must be 1 to 63 characters")
    return ServerName(text, match["hostname"], port, ip)


def _invalid(text: str, why: str) -> InvalidInviteError:
    return InvalidInviteError(f"{quoted(text)} is not a server name: {why}", field="server name")


def server_of(identifier: str, *, field: str) -> ServerName:
    """Return the server of a user ID: what stands behind the first colon.

    Raises `InvalidInviteError` with `field`.
    """
    _, colon, name = identifier.partition(":")
    if not colon:
        raise InvalidInviteError(f"{quoted(identifier)} names no server", field=field)
    try:
        return parse_server_name(name)
    except InvalidInviteError as error:
        raise InvalidInviteError(error.message.removeprefix("server name: "), field=field) from None


def check_user_id(user_id: object, *, field: str) -> ServerName:
    """Return the server of a user ID, or raise `InvalidInviteError` with `field`.

    § Historical User IDs: "clients and servers MUST accept" localparts with any character but a
    colon and NUL, for such users exist.
    """
    if not isinstance(user_id, str) or not user_id.startswith("@"):
        shown = "missing" if user_id is None else quoted(user_id)
        raise InvalidInviteError(
            f"is {shown}, expected a user ID such as @user:server", field=field
        )
    try:
        size = len(user_id.encode())
    except UnicodeEncodeError:
        raise InvalidInviteError("holds a lone surrogate", field=field) from None
    if size > _MAX_USER_ID_BYTES:
        raise InvalidInviteError(f"has {size} bytes, {_MAX_USER_ID_BYTES} are allowed", field=field)
    if "\0" in user_id:
        raise InvalidInviteError("holds a NUL character", field=field)
    return server_of(user_id, field=field)
