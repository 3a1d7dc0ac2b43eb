"""Server-Server API § GET /.well-known/matrix/server: reading the answer, and for how long.

"Servers should respect the cache control headers present on the response, or use a sensible
default when headers are not present."
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from invite_client.errors import InvalidInviteError
from invite_client.policy import CachePolicy
from invite_client.spec.http import read_date, read_seconds
from invite_client.spec.quoting import quoted
from invite_client.spec.server_names import ServerName, parse_server_name

__all__ = ["WellKnownError", "failure_lifetime", "lifetime", "read_well_known"]


class WellKnownError(ValueError):
    """The answer is not a valid delegation; the message says why."""


def read_well_known(status: int, body: bytes) -> ServerName:
    """Return the delegated server name. Raises `WellKnownError`.

    The content type is not looked at: the specification lets servers leave it out.
    """
    if status != 200:
        raise WellKnownError(f"status {status}")
    try:
        # Any JSON will do: nothing here is signed.
        answer = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise WellKnownError("not JSON") from None
    if not isinstance(answer, dict):
        raise WellKnownError("not a JSON object")
    delegated = answer.get("m.server")
    if not isinstance(delegated, str):
        raise WellKnownError("no m.server" if delegated is None else "m.server is not a string")
    try:
        return parse_server_name(delegated)
    except InvalidInviteError:
        raise WellKnownError(f"m.server is not a server name: {quoted(delegated)}") from None


def lifetime(headers: Mapping[str, str], now: float, policy: CachePolicy) -> float:
    """Return for how many seconds a valid answer may be used. `now` is in seconds since the epoch."""
    asked = _asked(headers, now)
    return min(max(policy.default if asked is None else asked, policy.minimum), policy.maximum)


def _asked(headers: Mapping[str, str], now: float) -> float | None:
    """What the headers ask for (RFC 9111 § 4.2); None if they do not say."""
    fresh_for = _freshness_lifetime(headers, now)
    # § 4.2.3: a cache between us and the server says how long it has had the answer.
    age = read_seconds(headers.get("age", "")) or 0.0
    return None if fresh_for is None else max(0.0, fresh_for - min(age, fresh_for))


def _freshness_lifetime(headers: Mapping[str, str], now: float) -> float | None:
    """RFC 9111 § 4.2.1."""
    control = _directives(headers.get("cache-control", ""))
    if "no-store" in control or "no-cache" in control:
        return 0.0
    max_age = control.get("max-age")
    if max_age is not None:
        # What is not a number is "considered to be stale".
        return read_seconds(max_age) or 0.0
    expires = headers.get("expires")
    if expires is None:
        return None
    when, date = read_date(expires), read_date(headers.get("date", ""))
    # § 5.3: an invalid date, "especially the value 0", is in the past.
    return 0.0 if when is None else max(0.0, when - (now if date is None else date))


# RFC 9111 § 5.2: a token, and an argument that is a token or a quoted string; what a comma in a
# quoted string parts is no directive.
_DIRECTIVE = re.compile(r'([^\s,=";]+)(?:\s*=\s*(?:"([^"]*)"|([^\s,"]*)))?')


def _directives(control: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, quoted_value, value in _DIRECTIVE.findall(control):
        found.setdefault(name.lower(), quoted_value or value)  # the first of several counts
    return found


def failure_lifetime(failures_in_a_row: int, policy: CachePolicy) -> float:
    """Return for how many seconds a failure is remembered: "exponentially back off".

    `failures_in_a_row` is 1 for the first.
    """
    doublings = min(failures_in_a_row - 1, 32)  # beyond any maximum, and no overflow
    return min(policy.failure_first * 2.0**doublings, policy.failure_maximum)
