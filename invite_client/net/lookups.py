"""The two questions of the discovery, asked of the network."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from yarl import URL

from invite_client.clock import SystemClock
from invite_client.errors import (
    Attempt,
    InvalidInviteError,
    InviteError,
    Stage,
    UnreachableError,
)
from invite_client.interfaces import Clock
from invite_client.net.dns import DnsFailedError
from invite_client.net.proxies import is_onion
from invite_client.policy import Policy
from invite_client.spec.discovery import SrvAnswer, WellKnownAnswer
from invite_client.spec.http import Reply
from invite_client.spec.well_known import WellKnownError, lifetime, read_well_known

if TYPE_CHECKING:
    from invite_client.net.http import HttpTransport

__all__ = ["NetworkLookups"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ABSENT = frozenset({404, 410})


class NetworkLookups:
    """The `spec.discovery.Lookups` of real use: HTTPS and DNS, nothing remembered."""

    def __init__(
        self, transport: HttpTransport, policy: Policy, clock: Clock | None = None
    ) -> None:
        self._transport = transport
        self._policy = policy
        self._clock: Clock = clock or SystemClock()

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        """Ask ``https://hostname/.well-known/matrix/server``, redirects and all, within a budget.

        Raises `InvalidInviteError` if what we were given does not let us ask at all (`tls.ca_file`),
        `UnreachableError` if our transport was closed meanwhile.
        """
        started = time.monotonic()
        delegated, reason, absent, fresh_for = None, "", False, 0.0
        try:
            async with asyncio.timeout(self._policy.timeouts.well_known):
                reply = await self._walk(hostname)
            absent = reply.status in _ABSENT
            delegated = read_well_known(reply.status, reply.body)
            fresh_for = lifetime(reply.headers, self._clock.time(), self._policy.cache)
        except WellKnownError as error:
            reason = str(error)
        except InvalidInviteError:
            raise  # our own fault, which says nothing about the remote
        except InviteError as error:
            if self._transport.is_closed:
                raise  # this says nothing about the remote either, and must not be remembered
            reason = error.message
        except TimeoutError:
            reason = f"no answer within {self._policy.timeouts.well_known:g} s"
        seconds = time.monotonic() - started
        fresh_until = self._clock.time() + fresh_for
        return WellKnownAnswer(delegated, reason, seconds, fresh_until, absent)

    async def _walk(self, hostname: str) -> Reply:
        """Follow redirects by hand: each hop has its own `Host` and SNI, and passes the gate anew."""
        url = URL(f"https://{hostname}/.well-known/matrix/server", encoded=True)
        log: list[Attempt] = []
        for _ in range(self._policy.limits.redirects + 1):
            reply = await self._transport.get(
                url, limit=self._policy.limits.well_known_bytes, log=log
            )
            if reply.status not in _REDIRECTS:
                return reply
            url = _redirect(url, reply.headers.get("location", ""))
        raise WellKnownError(f"more than {self._policy.limits.redirects} redirects")

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        """Ask for SRV records. Raises `UnreachableError` if no name server gives an answer."""
        if is_onion(hostname):
            # RFC 7686: it is not in DNS, and to ask there would tell whom we talk to.
            return SrvAnswer((), 0.0, self._clock.time() + self._policy.dns.maximum_ttl)
        started = time.monotonic()
        try:
            found = await self._transport.dns.srv(service, hostname)
        except DnsFailedError as error:
            raise UnreachableError(str(error), stage=Stage.DNS, retryable=True) from error
        seconds = time.monotonic() - started
        return SrvAnswer(found.records, seconds, self._clock.time() + found.ttl)


def _redirect(url: URL, location: str) -> URL:
    """Where a redirect leads, if it may be followed. Raises `WellKnownError`."""
    try:
        target = url.join(URL(location))
        port = target.port
    except (ValueError, TypeError, LookupError):  # yarl's own, for what it did not foresee
        raise WellKnownError(f"redirect to {location!r:.100}, which is no URL") from None
    if not location or target.scheme != "https" or not target.raw_host or not port:
        raise WellKnownError(f"redirect to {location!r:.100}, which is not https")
    if target.user is not None or target.password is not None:
        raise WellKnownError("redirect to a URL with credentials")
    return target.with_fragment(None)
