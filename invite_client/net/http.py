"""One aiohttp session: gates, limits, TLS, reuse; its exceptions become ours here.

A federation request is made to the *target* (URL), with the `Host` and the certificate name that
the discovery gave: three names that only sometimes are the same.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from invite_client.errors import (
    Attempt,
    Delivery,
    ForbiddenByPolicyError,
    InvalidInviteError,
    InviteError,
    MalformedReplyError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.interfaces import AttemptLog
from invite_client.net.addresses import AddressGate, AddressRefusedError
from invite_client.net.dns import Dns, DnsAbsentError
from invite_client.policy import Policy, TlsPolicy
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.version import __version__

__all__ = ["HttpTransport", "Reroute"]

Reroute = Callable[[str, int], tuple[str, int]]
"""From the address and port that are dialled to those that are connected to."""

_URI = re.compile(r"/[A-Za-z0-9%._~/?=&-]*")
_HOST = re.compile(r"[A-Za-z0-9._-]+")
_USER_AGENT = f"invite_client/{__version__} (Matrix federation)"


@dataclass(slots=True)
class _Progress:
    """How far one request has come; written by the callbacks of aiohttp."""

    timeout: asyncio.Timeout
    request_timeout: float
    sockets: list[tuple[socket.socket, str]] = field(default_factory=list)
    connected: bool = False
    reused: bool = False
    sent: bool = False

    def has_connection(self) -> None:
        """From here on it is the request that is timed."""
        self.connected = True
        loop = asyncio.get_running_loop()
        if not self.timeout.expired():
            self.timeout.reschedule(loop.time() + self.request_timeout)

    @property
    def address(self) -> str | None:
        """The address that won the race, or those that were tried."""
        open_ones = [address for sock, address in self.sockets if sock.fileno() != -1]
        return ", ".join(open_ones or [address for _, address in self.sockets]) or None


_progress: ContextVar[_Progress] = ContextVar("_progress")
# Sockets are made in tasks of aiohappyeyeballs, which inherit the context of the request.


class HttpTransport:
    """The `interfaces.Transport` of real use. Belongs to the event loop of its first request."""

    def __init__(
        self, policy: Policy, dns: Dns | None = None, *, reroute: Reroute | None = None
    ) -> None:
        """Open nothing yet.

        `reroute` is for test kits: it maps addresses and ports of their own where they are dialled,
        for 443 is not free to an ordinary user. Nothing else of the path changes.
        """
        self._policy = policy
        self.dns = dns or Dns(policy.dns)
        self._gate = AddressGate(policy.addresses)
        self._reroute = reroute
        self._session: aiohttp.ClientSession | None = None
        self._verified: ssl.SSLContext | None = None
        self._unverified: ssl.SSLContext | None = None
        self._last_address: dict[tuple[Target, str], str] = {}

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
            tls_name=None if server.tls_is_ip else server.tls_name,
            verify=server.server_name not in self._policy.tls.unverified,
            limit=limit,
            what=request.what or request.method,
            log=log,
        )

    # --- Regular HTTPS --------------------------------------------------------------------------

    async def get(self, url: URL, *, limit: int, log: AttemptLog) -> Reply:
        """GET an https URL as any web client would: `Host`, SNI and certificate are the URL's.

        Follows no redirect. Raises what `exchange` raises.
        """
        return await self._request(
            "GET",
            Target(url.host or "", url.port or 443),
            url.raw_path_qs,
            headers={"User-Agent": _USER_AGENT, "Host": url.raw_authority},
            body=None,
            tls_name=None,
            verify=True,
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
        tls_name: str | None,
        verify: bool,
        limit: int,
        what: str,
        log: AttemptLog,
    ) -> Reply:
        started, clock = time.time(), time.monotonic()
        progress = None
        outcome = "ended from outside"
        try:
            url = self._url(target, uri)
            session = self._opened_session()
            async with asyncio.timeout(self._policy.timeouts.connect) as timeout:
                progress = _Progress(timeout, self._policy.timeouts.request)
                _progress.set(progress)
                async with session.request(
                    method,
                    url,
                    data=body,
                    headers=headers,
                    ssl=self._context(verify=verify),
                    # The trailing dot of an absolute DNS name is not part of a certificate.
                    server_hostname=tls_name.removesuffix(".") if tls_name else None,
                    allow_redirects=False,
                    trace_request_ctx=progress,
                ) as response:
                    reply = await _read(response, limit)
            outcome = str(reply.status)
        except InviteError as error:
            outcome = error.message
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raised = self._translate(error, target, progress, tls_name)
            outcome = raised.message
            raise raised from error
        else:
            return reply
        finally:
            key = (target, tls_name or "")
            address = progress.address if progress else None
            if progress and progress.reused:
                address = self._last_address.get(key)
            elif address and progress and progress.connected:
                self._last_address[key] = address
            log.append(
                Attempt(
                    what=what,
                    target=str(target),
                    outcome=outcome,
                    address=address,
                    started=started,
                    seconds=time.monotonic() - clock,
                    sent=bool(progress and progress.sent),
                )
            )

    def _url(self, target: Target, uri: str) -> URL:
        host, port = target.host, target.port
        try:
            literal = ip_address(host)
        except ValueError:
            if not _HOST.fullmatch(host):
                raise UnreachableError(
                    f"{host!r:.100} is not a host name", stage=Stage.DNS
                ) from None
        else:
            # aiohttp asks no resolver for a literal, so its port is mapped here, and not there.
            # Its address stays: it is what the certificate must be for.
            port = self._reroute(str(literal), port)[1] if self._reroute else port
            host = f"[{literal}]" if isinstance(literal, IPv6Address) else str(literal)
        # Encoded: what was signed is what goes on the wire.
        return URL(f"https://{host}:{port}{uri}", encoded=True)

    def _translate(
        self,
        error: Exception,
        target: Target,
        progress: _Progress | None,
        tls_name: str | None,
    ) -> InviteError:
        """One foreign exception becomes one of ours."""
        refused = _refusal(error)
        if refused is not None:
            return ForbiddenByPolicyError(
                f"{target}: {refused}", setting="addresses.allowed", stage=Stage.POLICY
            )
        if progress is None or not progress.sent:
            return self._unreachable(error, target, tls_name)
        match error:
            # Malformed headers and the like: aiohttp calls them status 400, which they are not.
            case aiohttp.ClientResponseError():
                return MalformedReplyError(
                    f"the answer is not HTTP: {_words(error.message)}", stage=Stage.HTTP
                )
            case TimeoutError():
                message = f"no whole answer within {self._policy.timeouts.request:g} s"
            case aiohttp.ClientPayloadError():
                message = "the connection ended in the middle of the answer"
            case _:
                message = "the connection ended before the answer"
        return UnknownOutcomeError(
            message, stage=Stage.HTTP, delivery=Delivery.UNKNOWN, retryable=True
        )

    def _unreachable(
        self, error: Exception, target: Target, tls_name: str | None
    ) -> UnreachableError:
        stage, retryable = Stage.CONNECT, True
        match error:
            case aiohttp.ClientConnectorCertificateError():
                name = tls_name or target.host
                why = getattr(error.certificate_error, "verify_message", "") or str(error)
                stage, retryable = Stage.TLS, False
                message = f"{target}: the certificate is not one for {name}: {why}"
            case aiohttp.ClientConnectorSSLError() | ssl.SSLError():
                stage = Stage.TLS
                message = f"{target}: TLS failed: {_words(str(error))}"
            case aiohttp.ClientConnectorDNSError():
                stage, retryable = Stage.DNS, not isinstance(error.os_error, DnsAbsentError)
                message = f"{target}: {error.os_error}"
            case aiohttp.ClientConnectorError():
                message = f"{target}: {error.os_error.strerror or error.os_error}"
            case TimeoutError():
                message = f"{target}: no connection within {self._policy.timeouts.connect:g} s"
            case _:
                message = f"{target}: {_words(str(error)) or type(error).__name__}"
        return UnreachableError(message, stage=stage, retryable=retryable)

    # --- The session ----------------------------------------------------------------------------

    def _opened_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = self._policy.limits
            connector = aiohttp.TCPConnector(
                resolver=_GatedResolver(self.dns, self._gate, self._reroute),
                socket_factory=self._socket,
                use_dns_cache=False,  # it would hide our TTLs, and it asks in a task of its own
                limit=0,  # slots are given out before a request is made, not in here
            )
            trace = aiohttp.TraceConfig()
            trace.on_connection_create_end.append(_on_connected)
            trace.on_connection_reuseconn.append(_on_reused)
            trace.on_request_headers_sent.append(_on_sent)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                # All time limits are ours: `_Progress.timeout`.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                trust_env=False,  # it would send credentials from ~/.netrc to strangers
                skip_auto_headers=("Accept",),
                headers={"Accept-Encoding": "identity"},
                max_line_size=limits.header_bytes,
                max_field_size=limits.header_bytes,
                trace_configs=[trace],
            )
        return self._session

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The gate that every direct connection passes, IP literals too."""
        family, kind, protocol, _, address = info
        self._gate.check(address[0])
        made = socket.socket(family=family, type=kind, proto=protocol)
        progress = _progress.get(None)
        if progress is not None:
            progress.sockets.append((made, str(Target(address[0], address[1]))))
        return made

    def _context(self, *, verify: bool) -> ssl.SSLContext:
        # A context takes 25 ms to make: it is made once.
        if verify:
            self._verified = self._verified or _verifying_context(self._policy.tls)
            return self._verified
        if self._unverified is None:
            self._unverified = _verifying_context(self._policy.tls)
            self._unverified.check_hostname = False
            self._unverified.verify_mode = ssl.CERT_NONE
        return self._unverified

    async def aclose(self) -> None:
        """Close all connections and wait until they are closed."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


class _GatedResolver(AbstractResolver):
    """Gives aiohttp the addresses of a host that pass the gate. Every failure is an `OSError`."""

    def __init__(self, dns: Dns, gate: AddressGate, reroute: Reroute | None) -> None:
        self._dns = dns
        self._gate = gate
        self._reroute = reroute

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002  # aiohttp asks for any
    ) -> list[ResolveResult]:
        results: list[ResolveResult] = []
        refused: AddressRefusedError | None = None
        for address in await self._dns.addresses(host):
            try:
                self._gate.check(address)
            except AddressRefusedError as error:
                refused = error
                continue
            dialled = str(address), port
            connected, there = self._reroute(*dialled) if self._reroute else dialled
            results.append(
                ResolveResult(
                    hostname=host,
                    host=connected,
                    port=there,
                    family=socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET,
                    proto=0,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        if refused is not None and not results:
            raise refused
        return results

    async def close(self) -> None:
        """Nothing is open."""


async def _on_connected(_: Any, context: Any, __: Any) -> None:
    context.trace_request_ctx.has_connection()


async def _on_reused(_: Any, context: Any, __: Any) -> None:
    context.trace_request_ctx.reused = True
    context.trace_request_ctx.has_connection()


async def _on_sent(_: Any, context: Any, __: Any) -> None:
    context.trace_request_ctx.sent = True


def _verifying_context(policy: TlsPolicy) -> ssl.SSLContext:
    given = policy.ca_file
    first, *others = (given,) if given is None or isinstance(given, str) else given
    context = _with_ca_file(ssl.create_default_context, first)
    for ca_file in others:
        _with_ca_file(context.load_verify_locations, ca_file)
    context.minimum_version = policy.minimum_version
    # RFC 6125 § 6.4.4: a name that stands only in the subject's CN is no identity.
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    return context


T = TypeVar("T")


def _with_ca_file(load: Callable[..., T], ca_file: str | None) -> T:
    try:
        return load(cafile=ca_file)
    except OSError as error:
        # What OpenSSL says of a file that holds no certificate helps nobody.
        reason = "not a PEM file of certificates"
        if not isinstance(error, ssl.SSLError):
            reason = error.strerror or reason
        raise InvalidInviteError(
            f"{ca_file} cannot be used: {reason}", field="tls.ca_file"
        ) from None


async def _read(response: aiohttp.ClientResponse, limit: int) -> Reply:
    """Read a whole body of at most `limit` bytes, counted after decompression."""
    if response.content_length is not None and response.content_length > limit:
        response.close()
        raise _too_large(limit)
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            response.close()  # not released: the rest of it is never read
            raise _too_large(limit)
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        lower = name.lower()
        headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
    return Reply(response.status, bytes(body), headers)


def _too_large(limit: int) -> MalformedReplyError:
    return MalformedReplyError(f"the answer is longer than {limit} bytes", stage=Stage.HTTP)


def _refusal(error: BaseException | None) -> AddressRefusedError | None:
    """Find our own refusal inside what aiohttp made of it."""
    while error is not None:
        if isinstance(error, AddressRefusedError):
            return error
        inner = getattr(error, "os_error", None)
        error = inner if inner is not None else (error.__cause__ or error.__context__)
    return None


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
