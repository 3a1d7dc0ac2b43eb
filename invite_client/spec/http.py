"""A federation request and its reply as plain values.

Server-Server API § API standards: "All `PUT` and `POST` endpoints require the sending server to
supply a request body containing a (potentially empty) JSON object".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any

from invite_client.spec import canonical_json
from invite_client.spec.canonical_json import MAX_INTEGER, CanonicalJsonError

__all__ = ["Reply", "Request", "error_body", "read_date", "read_seconds", "retry_after"]

_LONGEST_WAIT = MAX_INTEGER / 1000
"""Seconds; as `retry_after_ms` it can still be said in JSON."""


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


def error_body(reply: Reply) -> dict[str, Any]:
    """Return the Matrix error in an answer, or nothing: an error may have any body."""
    try:
        body = canonical_json.decode(reply.body, strict=False)
    except CanonicalJsonError:
        return {}
    return body if isinstance(body, dict) else {}


def retry_after(reply: Reply, body: Mapping[str, Any], now: float) -> float | None:
    """The longer of `Retry-After` (RFC 9110 § 10.2.3) and `retry_after_ms`, in seconds.

    `body` is the `error_body` of the answer; `now` is in seconds since the epoch.
    """
    header = reply.headers.get("retry-after", "")
    milliseconds = body.get("retry_after_ms")
    waits = []
    if (seconds := read_seconds(header)) is not None:
        waits.append(seconds)
    if (date := read_date(header)) is not None:
        waits.append(date - now)
    if type(milliseconds) is int:
        waits.append(min(milliseconds, MAX_INTEGER) / 1000)
    return max((min(max(0.0, wait), _LONGEST_WAIT) for wait in waits), default=None)


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
