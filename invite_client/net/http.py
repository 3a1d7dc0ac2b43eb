"""One request for one reply, over HTTP. What aiohttp raises becomes ours here.

A federation request is made to the *target* (URL), with the `Host` and the certificate name that
the discovery gave: three names that only sometimes are the same.
"""

from __future__ import annotations

import asyncio
import io
import re
import ssl
import time
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import Any

import aiohttp
from yarl import URL

from invite_client.errors import (
    Attempt,
    ForbiddenByPolicyError,
    InvalidInviteError,
    InviteError,
    MalformedReplyError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.interfaces import AttemptLog
from invite_client.net.addresses import AddressGate
from invite_client.net.ahead import Ahead, Opening
from invite_client.net.bodies import ReplyReader
from invite_client.net.connections import (
    ConnectFailedError,
    Connection,
    Connector,
    OnHandshake,
    Reroute,
    wanted,
)
from invite_client.net.dns import Dns
from invite_client.net.proxies import Proxy, Routes, is_onion
from invite_client.net.tls import unverified_names, unverifying_context, verifying_context
from invite_client.policy import Policy
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_names import parse_server_name
from invite_client.version import __version__

__all__ = ["HttpTransport", "Reroute"]

_URI = re.compile(r"/[A-Za-z0-9%._~/?=&-]*")
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_AT_ONCE = 1024 * 1024
_USER_AGENT = f"invite_client/{__version__} (Matrix federation)"


class HttpTransport:
    """The `interfaces.Transport` of real use. Belongs to the event loop of its first request."""

    def __init__(
        self,
        policy: Policy,
        dns: Dns | None = None,
        *,
        reroute: Reroute | None = None,
        on_handshake: OnHandshake | None = None,
    ) -> None:
        """Open nothing yet.

        `reroute` is for test kits: it maps the addresses and ports of their own hosts where they
        are dialled, for 443 is not free to an ordinary user. Nothing else of the path changes.
        `on_handshake` is for diagnoses: it is told of every TLS handshake.
        """
        self._policy = policy
        self.dns = dns or Dns(policy.dns)
        self._gate = AddressGate(policy.addresses)
        self._routes = Routes(policy.proxy)
        self._reroute = reroute
        self._on_handshake = on_handshake
        self._unverified = unverified_names(policy.tls)
        limits = policy.limits
        self._ahead = Ahead(min(limits.connections_ahead, limits.idle_connections))
        self._sessions: dict[Proxy | None, aiohttp.ClientSession] = {}
        self._contexts: dict[bool, ssl.SSLContext] = {}

    # --- Federation requests --------------------------------------------------------------------

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        """Send `request` to one of `server.targets`; see `interfaces.Transport.exchange`."""
        failures: list[InviteError] = []
        for target in server.targets:
            try:
                return await self._exchange_with(target, server, request, limit, log)
            except (UnreachableError, ForbiddenByPolicyError) as error:
                # Nothing was sent: the next target may have it. Targets are tried in order, one by
                # one: racing them would break the priorities of RFC 2782.
                failures.append(error)
        raise _summary(failures)

    async def _exchange_with(
        self,
        target: Target,
        server: ResolvedServer,
        request: Request,
        limit: int,
        log: AttemptLog,
    ) -> Reply:
        if not _URI.fullmatch(request.uri):
            raise InvalidInviteError(f"{request.uri!r:.100} is not percent-encoded", field="uri")
        headers = {"Host": server.host_header, "User-Agent": _USER_AGENT}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if request.authorization is not None:
            headers["Authorization"] = request.authorization
        return await self._request(
            request.method,
            target,
            request.uri,
            headers=headers,
            body=request.body,
            tls_name=server.tls_name,
            verify=self._verifies(server),
            proxy=self._proxy_for(target, server),
            limit=limit,
            what=request.what or request.method,
            log=log,
        )

    def open_ahead(self, server: ResolvedServer) -> Opening | None:
        """Begin to connect to the first target, for a request that may come. Sends nothing.

        None where there is a connection already, or no direct way: what a tunnel costs is not ours
        to guess with.
        """
        target = server.targets[0]
        if is_onion(target.host) or self._proxy_for(target, server) is not None:
            return None
        connection = Connection(
            target=target,
            tls=self._context(verify=self._verifies(server)),
            tls_name=server.tls_name,
            allowance=0,  # who has not been asked has nothing to say
            on_open=_nothing,
            on_again=_nothing,
        )
        connector = self._session(None).connector
        assert isinstance(connector, Connector)  # noqa: S101  # which `_session` has made
        if connector.has_idle(connection):
            return None
        return self._ahead.begin(connection, connector.open, self._policy.timeouts.connect)

    def _verifies(self, server: ResolvedServer) -> bool:
        return self._unverified.fullmatch(server.server_name) is None

    def _proxy_for(self, target: Target, server: ResolvedServer) -> Proxy | None:
        name = parse_server_name(server.server_name)
        return self._routes.proxy_for(target.host, server.tls_name, name.host)

    # --- Regular HTTPS --------------------------------------------------------------------------

    async def get(self, url: URL, *, limit: int, log: AttemptLog) -> Reply:
        """GET an https URL as any web client would: `Host`, SNI and certificate are the URL's.

        Follows no redirect. Raises what `exchange` raises.
        """
        host = url.raw_host or ""
        return await self._request(
            "GET",
            Target(host, url.port or 443),
            url.raw_path_qs,
            headers={"User-Agent": _USER_AGENT, "Host": url.raw_authority},
            body=None,
            tls_name=host,
            verify=True,
            proxy=self._routes.proxy_for(host),
            limit=limit,
            what=f"GET {url}",
            log=log,
        )

    # --- One request to one target --------------------------------------------------------------

    async def _request(
        self,
        method: str,
        target: Target,
        uri: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        tls_name: str,
        verify: bool,
        proxy: Proxy | None,
        limit: int,
        what: str,
        log: AttemptLog,
    ) -> Reply:
        started, clock = time.time(), time.monotonic()
        limits = self._policy.limits
        timeout = asyncio.timeout(self._policy.timeouts.connect)

        def on_open() -> None:
            """From here on it is the request that is timed."""
            if not timeout.expired():
                loop = asyncio.get_running_loop()
                timeout.reschedule(loop.time() + self._policy.timeouts.request)

        def note(outcome: str) -> None:
            seconds = time.monotonic() - clock
            log.append(
                Attempt(
                    what=what,
                    target=str(target),
                    outcome=outcome,
                    address=connection.address,
                    started=started,
                    seconds=seconds,
                    sent=connection.sent,
                )
            )

        connection = Connection(
            target=target,
            tls=self._context(verify=verify),
            tls_name=tls_name,
            # Twice the body: a chunk may be smaller than the line that announces it.
            allowance=2 * limit + limits.header_count * limits.header_bytes,
            on_open=on_open,
            on_again=lambda: note("the kept-alive connection was dead"),
        )
        reader = ReplyReader(limit)
        outcome = "ended from outside"
        asked_for = wanted.set(connection)
        try:
            url = _url(target, uri)
            async with (
                timeout,
                self._session(proxy).request(
                    method,
                    url,
                    # Of bytes, aiohttp wants no more than this at once.
                    data=io.BytesIO(body) if body and len(body) > _AT_ONCE else body,
                    headers=headers,
                    ssl=connection.tls,
                    server_hostname=tls_name,
                    allow_redirects=False,
                ) as response,
            ):
                reply = await reader.read(response)
            outcome = str(reply.status)
        except InviteError as error:
            outcome = error.message
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if reader.is_error:
                # The status is the answer; how the explanation ended does not change it.
                outcome = str(reader.reply.status)
                return reader.reply
            raised = self._translate(error, connection)
            outcome = raised.message
            cause = raised.__cause__ if isinstance(error, ConnectFailedError) else error
            raise raised from cause
        else:
            return reply
        finally:
            wanted.reset(asked_for)
            note(outcome)

    def _translate(self, error: Exception, connection: Connection) -> InviteError:
        """One foreign exception becomes one of ours."""
        if connection.fault:
            # For malformed headers and the like aiohttp has a status 400, which is not the remote's.
            return MalformedReplyError(f"the answer {connection.fault}", stage=Stage.HTTP)
        if not connection.sent:
            return self._unreachable(error, connection)
        match error:
            case ConnectFailedError():
                message = f"a kept-alive connection was dead, and then {error}"
            case TimeoutError():
                message = f"no whole answer within {self._policy.timeouts.request:g} s"
            case aiohttp.ClientPayloadError():
                message = "the connection ended in the middle of the answer"
            case _:
                message = "the connection ended before the answer"
        return UnknownOutcomeError(message, stage=Stage.HTTP, retryable=True)

    def _unreachable(self, error: Exception, connection: Connection) -> InviteError:
        match error:
            case ConnectFailedError():
                return error.error
            case TimeoutError():
                words = f"no connection within {self._policy.timeouts.connect:g} s"
            case _:
                words = _words(str(error)) or type(error).__name__
        return UnreachableError(
            f"{connection.target}: {words}", stage=connection.stage, retryable=True
        )

    # --- Sessions -------------------------------------------------------------------------------

    def _session(self, proxy: Proxy | None) -> aiohttp.ClientSession:
        """Return the session for one way out: the connections of each are a pool of their own."""
        if proxy not in self._sessions:
            limits = self._policy.limits
            trace = aiohttp.TraceConfig()
            trace.on_request_headers_sent.append(_on_sent)
            self._sessions[proxy] = aiohttp.ClientSession(
                connector=Connector(
                    self.dns,
                    self._gate,
                    proxy=proxy,
                    reroute=self._reroute,
                    patience=self._policy.timeouts.connect,
                    most_idle=limits.idle_connections,
                    on_handshake=self._on_handshake,
                    ahead=self._ahead.take,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                # All time limits are ours: `_request`.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                trust_env=False,  # it would send credentials from ~/.netrc to strangers
                skip_auto_headers=("Accept",),
                headers={"Accept-Encoding": "identity"},
                auto_decompress=False,  # `ReplyReader` does it, and counts
                max_line_size=limits.header_bytes,
                max_field_size=limits.header_bytes,
                max_headers=limits.header_count,
                trace_configs=[trace],
            )
        return self._sessions[proxy]

    def _context(self, *, verify: bool) -> ssl.SSLContext:
        if verify not in self._contexts:
            make = verifying_context if verify else unverifying_context
            self._contexts[verify] = make(self._policy.tls)
        return self._contexts[verify]

    async def aclose(self) -> None:
        """Close all connections and wait until they are closed."""
        await self._ahead.aclose()
        while self._sessions:
            _, session = self._sessions.popitem()
            await session.close()


def _nothing() -> None:
    """Nobody waits for a connection that is opened ahead."""


async def _on_sent(_: Any, __: Any, ___: Any) -> None:
    wanted.get().sent = True


def _url(target: Target, uri: str) -> URL:
    """What aiohttp keeps connections by; where they lead is the business of `Connector`."""
    host = target.host
    try:
        literal = ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise UnreachableError(f"{host!r:.100} is not a host name", stage=Stage.DNS) from None
    else:
        host = f"[{literal}]" if isinstance(literal, IPv6Address) else str(literal)
    # Encoded: what was signed is what goes on the wire.
    return URL(f"https://{host}:{target.port}{uri}", encoded=True)


def _words(text: str) -> str:
    """One short line of somebody else's message."""
    return " ".join(text.split())[:200]


def _summary(failures: list[InviteError]) -> InviteError:
    """Of the failures of all targets, make one error. A refused address is news only if all are."""
    unreachable = [error for error in failures if isinstance(error, UnreachableError)]
    if not unreachable:
        return failures[-1]
    if len(failures) == 1:
        return failures[0]
    return UnreachableError(
        "no target could be connected to: " + "; ".join(error.message for error in failures),
        stage=unreachable[-1].stage,
        retryable=any(error.retryable for error in unreachable),
    )
