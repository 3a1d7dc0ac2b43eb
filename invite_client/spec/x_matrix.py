"""Server-Server API § Request Authentication: `Authorization: X-Matrix`, made and read."""

from __future__ import annotations

import re
from dataclasses import dataclass

from invite_client.spec import canonical_json
from invite_client.spec.signatures import SigningKey

__all__ = ["XMatrix", "authorize", "parse_authorization", "signed_bytes"]


def signed_bytes(method: str, uri: str, origin: str, destination: str, body: bytes | None) -> bytes:
    """Return the canonical JSON that is signed for a request.

    `body` must be canonical JSON: it is used as it is, for "content" sorts before the other keys.
    """
    rest = canonical_json.encode(
        {"destination": destination, "method": method, "origin": origin, "uri": uri},
        checked=True,  # they are strings
    )
    return rest if body is None else b'{"content":' + body + b"," + rest[1:]


def authorize(
    method: str,
    uri: str,
    *,
    origin: str,
    destination: str,
    key: SigningKey,
    body: bytes | None = None,
) -> str:
    """Return the value of the `Authorization` header.

    `origin` and `destination` are server names from before any delegation; `uri` is the request
    target as it goes on the wire. "For compatibility with older servers": one space, lower-case
    names, no space around commas, no backslashes. None of the four values can hold a quote.
    """
    signature = key.sign(signed_bytes(method, uri, origin, destination, body))
    return (
        f'X-Matrix origin="{origin}",destination="{destination}",'
        f'key="{key.key_id}",sig="{signature}"'
    )


@dataclass(frozen=True, slots=True)
class XMatrix:
    """What an `Authorization: X-Matrix` header says."""

    origin: str
    """The sending server."""
    destination: str | None
    """The receiving server; older senders leave it out."""
    key_id: str
    """The key of the sending server."""
    signature: str
    """The signature in base64."""


# A list may have empty elements, also before the first (RFC 9110 § 5.6.1.2).
_SCHEME = re.compile(r"x-matrix [ \t,]*", re.IGNORECASE)
# RFC 9110 § 5.6.2 and § 5.6.4; "the recipient should allow colons … without … quotes".
_PARAMETER = re.compile(
    r"""
    ([!#$%&'*+.^_`|~0-9A-Za-z-]+)
    [ \t]*=[ \t]*
    (?: ([!#$%&'*+.^_`|~0-9A-Za-z:/=-]+) | "((?:[^"\\]|\\.)*)" )
    """,
    re.VERBOSE,
)
_COMMA = re.compile(r"[ \t]*,[ \t,]*|[ \t]*$")


def parse_authorization(header: str) -> XMatrix:
    """Read the header as leniently as the specification asks. Raises `ValueError`."""
    scheme = _SCHEME.match(header)
    if scheme is None:
        raise ValueError("the Authorization header does not begin with X-Matrix and a space")
    found: dict[str, str] = {}
    position = scheme.end()
    while position < len(header):
        parameter = _PARAMETER.match(header, position)
        comma = parameter and _COMMA.match(header, parameter.end())
        if parameter is None or comma is None:
            raise ValueError(f"the Authorization header is malformed at character {position}")
        name, token, quoted = parameter.groups()
        if name.lower() in found:
            raise ValueError(f"the Authorization header names {name.lower()} twice")
        value = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        found[name.lower()] = value
        position = comma.end()
    for name in ("origin", "key", "sig"):
        if name not in found:
            raise ValueError(f"the Authorization header has no {name}")
    return XMatrix(found["origin"], found.get("destination"), found["key"], found["sig"])
