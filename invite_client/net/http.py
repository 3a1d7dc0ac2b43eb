"""One request for one reply, over HTTP.

A federation request is made to the *target* (URL), with the `Host` and the certificate name that
the discovery gave: three names that only sometimes are the same.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Sequence

from yarl import URL

from invite_client.deadlines import Deadlines
from invite_client.errors import (
    Attempt,
    ForbiddenByPolicyError,
    InvalidInviteError,
    InviteError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.interfaces import AttemptLog
from invite_client.net.addresses import AddressGate
from invite_client.net.ahead import Ahead, Opening
from invite_client.net.bodies import Answer
from invite_client.net.connections import Connection, Connector, OnHandshake, Reroute
from invite_client.net.dns import Dns
from invite_client.net.lines import DiedSilentlyError, Line
from invite_client.net.pool import Pool
from invite_client.net.proxies import Destination, Routes, is_onion
from invite_client.net.tls import unverified_names, unverifying_context, verifying_context
from invite_client.policy import Policy
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_names import parse_server_name
from invite_client.version import __version__

__all__ = ["HttpTransport", "Reroute", "summary"]

_HTTPS = 443
_URI = re.compile(r"/[A-Za-z0-9%._~/?=&-]*")
_REQUEST_TIMEOUT = 408
_FIELD_VALUE = re.compile(r"[!-~][ -~]*")
_TARGET = re.compile(r"/[!-~]*")
_OUR_FIELDS = (
    f"User-Agent: invite_client/{__version__} (Matrix federation)\r\nAccept-Encoding: identity\r\n"
)


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
        self.dns: Dns = dns or Dns(policy.dns)
        self._routes = Routes(policy.proxy)
        self._unverified = unverified_names(policy.tls)
        limits = policy.limits
        self._ahead = Ahead(min(limits.connections_ahead, limits.idle_connections))
        self._connector = Connector(
            self.dns,
            AddressGate(policy.addresses),
            limits,
            patience=policy.timeouts.connect,
            reroute=reroute,
            on_handshake=on_handshake,
        )
        self._pool = Pool(limits.idle_connections)
        self._asked = Deadlines(policy.timeouts.request, self._give_up)
        self._is_closed = False
        self._contexts: dict[bool, ssl.SSLContext] = {}

    # --- Federation requests --------------------------------------------------------------------

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        """Send `request` to one of `server.targets`; see `interfaces.Transport.exchange`."""
        if not _URI.fullmatch(request.uri):
            raise InvalidInviteError(f"{request.uri!r:.100} is not percent-encoded", field="uri")
        host, authorization = server.host_header, request.authorization
        wire = _wire(request.method, request.uri, host, authorization, request.body)
        what = request.what or request.method
        failures: list[InviteError] = []
        for target in server.targets:
            connection = self._connection(target, server)
            try:
                return await self._request(wire, connection, limit=limit, what=what, log=log)
            except (UnreachableError, ForbiddenByPolicyError) as error:
                # Nothing was sent: the next target may have it. Targets are tried in order, one by
                # one: racing them would break the priorities of RFC 2782.
                failures.append(error)
        raise summary(failures)

    async def addresses(self, target: Target, server: ResolvedServer) -> list[Destination]:
        """Return what would be connected to: what passes the gate, or a name for Tor.

        Raises `UnreachableError`, `ForbiddenByPolicyError`.
        """
        return await self._connector.destinations(self._connection(target, server))

    def open_ahead(self, server: ResolvedServer) -> Opening | None:
        """Begin to connect to the first target, for a request that may come. Sends nothing.

        None where there is a connection already, or no direct way: what a tunnel costs is not ours
        to guess with.
        """
        connection = self._connection(server.targets[0], server)
        if (
            is_onion(connection.target.host)
            or connection.proxy is not None
            or self._pool.has(connection.way)
        ):
            return None
        connection.waits = True
        return self._ahead.begin(connection, self._connector.open, self._policy.timeouts.connect)

    def _connection(self, target: Target, server: ResolvedServer) -> Connection:
        name = server.server_name
        names = () if self._routes.are_direct else (server.tls_name, parse_server_name(name).host)
        return Connection(
            target,
            self._context(verify=self._unverified.fullmatch(name) is None),
            server.tls_name,
            self._routes.proxy_for(target.host, target.port, *names),
        )

    # --- Regular HTTPS --------------------------------------------------------------------------

    async def get(self, url: URL, *, limit: int, log: AttemptLog) -> Reply:
        """GET an https URL as any web client would: `Host`, SNI and certificate are the URL's.

        Follows no redirect. Raises what `exchange` raises.
        """
        host, port = url.raw_host or "", url.port or _HTTPS
        return await self._request(
            _wire("GET", url.raw_path_qs, url.raw_authority, None, None),
            Connection(
                Target(host, port),
                self._context(verify=True),
                host,
                self._routes.proxy_for(host, port),
            ),
            limit=limit,
            what=f"GET {url}",
            log=log,
        )

    # --- One request to one target --------------------------------------------------------------

    async def _request(
        self,
        request: bytes,
        connection: Connection,
        *,
        limit: int,
        what: str,
        log: AttemptLog,
    ) -> Reply:
        self._check_open()
        started, clock = time.time(), time.monotonic()
        answer = Answer(limit)

        def note(outcome: str) -> None:
            log.append(
                Attempt(
                    what=what,
                    target=str(connection.target),
                    outcome=outcome,
                    address=connection.address,
                    started=started,
                    seconds=time.monotonic() - clock,
                    sent=connection.sent,
                )
            )

        outcome = "ended from outside"
        try:
            try:
                await self._ask(connection, request, answer)
            except DiedSilentlyError:
                if not connection.reused:
                    # A remote that took this one and hung up has made its choice; to ask again is
                    # for `retrying` to decide.
                    raise _hung_up(connection) from None
                note("the kept-alive connection was dead")
                await self._ask_anew(connection, request, answer)
            else:
                if answer.status == _REQUEST_TIMEOUT and connection.reused:
                    # It was about to hang up for want of a request (RFC 9110 § 15.5.9).
                    note("408, for the kept-alive connection was idle")
                    answer = Answer(limit)
                    await self._ask_anew(connection, request, answer)
            outcome = str(answer.status)
        except InviteError as error:
            outcome = error.message
            raise
        else:
            return answer.reply
        finally:
            note(outcome)

    async def _ask(self, connection: Connection, request: bytes, answer: Answer) -> None:
        line = self._pool.take(connection.way)
        if line is None:
            line = await self._open(connection, self._ahead.take(connection))
        else:
            connection.reused = True
        await self._ask_by(line, connection, request, answer)

    async def _ask_anew(self, connection: Connection, request: bytes, answer: Answer) -> None:
        """Ask by a new connection: what waited beside a dead one is likely to be dead too."""
        try:
            line = await self._open(connection, None)
        except InviteError as error:
            raise UnknownOutcomeError(
                f"a kept-alive connection was dead, and then {error.message}",
                stage=Stage.HTTP,
                retryable=True,
            ) from error
        try:
            await self._ask_by(line, connection, request, answer)
        except DiedSilentlyError:
            raise _hung_up(connection) from None

    async def _open(self, connection: Connection, opening: Awaitable[Line] | None) -> Line:
        """Wait for a connection: one that is on its way already, or a new one."""
        self._check_open()
        seconds = self._policy.timeouts.connect
        try:
            async with asyncio.timeout(seconds):
                line = await (opening or self._connector.open(connection))
        except TimeoutError:
            raise UnreachableError(
                f"{connection.target}: no connection within {seconds:g} s",
                stage=connection.stage,
                retryable=True,
            ) from None
        if self._is_closed:
            line.close()
        self._check_open()
        self._pool.lend(line)
        return line

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be asked any more, whatever it is of whom."""
        return self._is_closed

    def _check_open(self) -> None:
        """Raise `UnreachableError` if nothing may be opened any more.

        An invite that is under way goes on to its next target or attempt, and must say how far it
        came.
        """
        if self._is_closed:
            raise UnreachableError("the client was closed meanwhile", stage=Stage.CONNECT)

    async def _ask_by(
        self, line: Line, connection: Connection, request: bytes, answer: Answer
    ) -> None:
        connection.address = line.address
        try:
            if not line.is_open:
                raise DiedSilentlyError
            connection.sent = True
            self._asked.begin(line)
            await line.ask(request, answer)
        finally:
            self._asked.end(line)
            self._pool.put(line)

    def _give_up(self, line: Line) -> None:
        line.give_up(f"no whole answer within {self._policy.timeouts.request:g} s")

    # --- What is kept ---------------------------------------------------------------------------

    def _context(self, *, verify: bool) -> ssl.SSLContext:
        if verify not in self._contexts:
            make = verifying_context if verify else unverifying_context
            self._contexts[verify] = make(self._policy.tls)
        return self._contexts[verify]

    async def aclose(self) -> None:
        """Close all connections, for good, and wait until they are closed."""
        self._is_closed = True
        await self._ahead.aclose()
        self._asked.close()
        await self._pool.aclose()


def _wire(method: str, uri: str, host: str, authorization: str | None, body: bytes | None) -> bytes:
    """Return the request as it goes on the wire. Raises `UnreachableError` where it cannot."""
    for what, text, grammar in (
        ("target", uri, _TARGET),
        ("Host", host, _FIELD_VALUE),
        ("Authorization", authorization, _FIELD_VALUE),
    ):
        # With a line break in it, it would be two fields; or two requests.
        if text is not None and not grammar.fullmatch(text):
            raise UnreachableError(
                f"{text!r:.100} cannot stand in a request ({what})", stage=Stage.HTTP
            )
    head = f"{method} {uri} HTTP/1.1\r\nHost: {host}\r\n{_OUR_FIELDS}"
    if authorization is not None:
        head += f"Authorization: {authorization}\r\n"
    if body is None:
        return f"{head}\r\n".encode("ascii")
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode("ascii") + body


def _hung_up(connection: Connection) -> InviteError:
    if not connection.sent:
        return UnreachableError(
            f"{connection.target}: the remote hung up before it was asked",
            stage=Stage.TLS,
            retryable=True,
        )
    message = "the connection ended before the answer"
    return UnknownOutcomeError(message, stage=Stage.HTTP, retryable=True)


def summary(failures: Sequence[InviteError]) -> InviteError:
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
