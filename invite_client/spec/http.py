"""A federation request and its reply as plain values.

Server-Server API § API standards: "All `PUT` and `POST` endpoints require the sending server to
supply a request body containing a (potentially empty) JSON object".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime

__all__ = ["Reply", "Request", "read_date", "read_seconds"]


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent: these very bytes, to this very target."""

    method: str
    """``GET`` or ``PUT``."""
    uri: str
    """The request target, percent-encoded, from ``/_matrix`` on: the string that is signed."""
    body: bytes | None = None
    """Canonical JSON, or None for a request without a body."""
    authorization: str | None = None
    """The `Authorization` header; None where the endpoint needs none."""
    what: str = ""
    """What this is, for logs and errors: ``PUT v2 invite``."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: any status. Where that is 200, the body is whole and within the size limit."""

    status: int
    """The HTTP status."""
    body: bytes
    """The body, decompressed; of an answer other than 200, as much as came and was allowed."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """The header; names in lower case, repeated fields joined by ``, `` (RFC 9110 § 5.2)."""


def read_date(text: str) -> float | None:
    """Return an HTTP-date (RFC 9110 § 5.6.7) in seconds since the epoch; None if it is not one."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # A date without a zone is one in UTC.
    return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()


def read_seconds(text: str) -> float | None:
    """Return a delta-seconds (RFC 9111 § 1.2.2), infinite if huge; None if it is not one."""
    text = text.strip(" \t")
    return float(text) if text.isascii() and text.isdigit() else None
