"""What is asked of a server, and what came back: nothing is judged here.

Every request goes the way that an invite would go: by the same discovery, through the same gate, in
the same limits. Only the addresses of a server are tried one by one, where an invite needs but one
that works. No invite is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from urllib.parse import quote

from invite_client.errors import (
    Attempt,
    InvalidInviteError,
    InviteError,
    MalformedReplyError,
    Stage,
    UnreachableError,
)
from invite_client.federation import FederationClient
from invite_client.interfaces import Clock
from invite_client.net.dns import DnsAbsentError
from invite_client.net.handshakes import Handshake
from invite_client.net.http import HttpTransport, Reroute
from invite_client.net.proxies import is_onion
from invite_client.policy import Policy, ServerPolicy
from invite_client.spec import canonical_json
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request, read_date
from invite_client.spec.server_keys import SERVER_KEYS_REQUEST, ServerKeys, read_server_keys
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.signatures import SigningKey
from invite_client.spec.x_matrix import authorize

__all__ = ["Address", "Answer", "Examination", "Examiner", "Keys"]

_VERSION = Request("GET", "/_matrix/federation/v1/version", what="GET version")
_NOBODY = "invite-client-doctor"
"""A user, a room and an event that do not exist."""
_HTTPS = 443
_FOR_ADDRESSES = 0.5
"""The part of the time that addresses may take. Some may be dead, and so many that there would be none
left to ask the one that answers, which is the one that an invite goes to."""
_GRACE = 1.0
"""Seconds that all of it may take longer than a discovery, which then says how far it has come."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to: a reply or an error."""

    reply: Reply | None = None
    error: InviteError | None = None

    @property
    def content(self) -> dict[str, object] | None:
        """The body, if it is a JSON object."""
        try:
            body = canonical_json.decode(self.reply.body if self.reply else b"", strict=False)
        except canonical_json.CanonicalJsonError:
            return None
        return body if isinstance(body, dict) else None

    @property
    def body(self) -> dict[str, object]:
        """The body, if it is a JSON object; else an empty one."""
        return self.content or {}

    @property
    def errcode(self) -> str | None:
        """The `errcode` of a Matrix error."""
        errcode = self.body.get("errcode")
        return errcode if isinstance(errcode, str) else None


_NOT_IN_TIME = Answer(error=UnreachableError("nothing came of it in time", retryable=True))


@dataclass(frozen=True, slots=True)
class Address:
    """One address of a target, and what came of asking there for the version of the server."""

    target: Target
    address: str | None
    """The socket address, as ``192.0.2.1:8448``; None where there is none."""
    answer: Answer
    handshake: Handshake | None = None
    """What TLS showed, if it came to that."""
    seconds: float = 0.0

    @property
    def connected(self) -> bool:
        """Whether TLS was established with whom it should."""
        return self.handshake is not None and self.handshake.version is not None


@dataclass(frozen=True, slots=True)
class Keys:
    """What a server publishes as its keys."""

    answer: Answer
    keys: ServerKeys | None = None
    """Set if they have been checked."""
    error: InviteError | None = None
    """What is wrong with them."""


@dataclass(slots=True)
class Examination:
    """What is known of one server, as far as it has come."""

    server_name: str
    now: float
    """When it began, in seconds since the epoch."""
    server: ResolvedServer | None = None
    error: InviteError | None = None
    """Why it was not found."""
    web: Handshake | None = None
    """The handshake with the web server of its name, which has the well-known file."""
    addresses: list[Address] = field(default_factory=list)
    keys: Keys | None = None
    endpoints: dict[str, Answer] = field(default_factory=dict)
    """What an empty, unsigned request to the invite endpoints came to, by their version."""
    signed: Answer | None = None
    """What a request that we have signed came to."""
    clock: float | None = None
    """Seconds by which its clock is ahead of ours."""
    all_tried: bool = True
    """Whether there was time to try each of its addresses."""
    finished: bool = False

    @property
    def reached(self) -> bool:
        """Whether any of its addresses could be connected to."""
        return any(address.connected for address in self.addresses)


class Examiner:
    """Asks servers everything that can be known without sending an invite."""

    def __init__(
        self,
        policy: Policy,
        clock: Clock,
        note: Callable[[str], None],
        *,
        reroute: Reroute | None = None,
    ) -> None:
        """Ask nothing yet. `note` is told what is being done."""
        self._policy = policy
        self._clock = clock
        self._note = note
        self._handshakes: list[Handshake] = []
        self._transport = HttpTransport(
            policy, reroute=reroute, on_handshake=self._handshakes.append
        )
        self._at_once = asyncio.Semaphore(policy.limits.per_destination)

    async def examine(
        self, server_name: str, our_name: str | None = None, key: SigningKey | None = None
    ) -> tuple[Examination, Examination | None]:
        """Examine a server, and our own as others see it, in little more than `timeouts.total`.

        With our key, the server is also asked something that only a server may ask.

        Raises `InvalidInviteError` for a name that is outside the grammar, and where our own
        configuration cannot be used.
        """
        parse_server_name(server_name)
        theirs = Examination(server_name, self._clock.time())
        ours = Examination(our_name, self._clock.time()) if our_name is not None else None
        try:
            with suppress(TimeoutError):  # what is missing is not `finished`
                async with asyncio.timeout(self._policy.timeouts.total + _GRACE):
                    await self._examine_both(theirs, ours, key)
        finally:
            await self._transport.aclose()
        return theirs, ours

    async def _examine_both(
        self, theirs: Examination, ours: Examination | None, key: SigningKey | None
    ) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                signed_by = None
                if ours is not None and key is not None and ours.server_name != theirs.server_name:
                    signed_by = ours.server_name, key
                group.create_task(self._examine_theirs(theirs, signed_by))
                if ours is not None:
                    group.create_task(self._examine_ours(ours))
        except* InvalidInviteError as errors:
            raise _first(errors) from None

    async def _examine_theirs(
        self, exam: Examination, signed_by: tuple[str, SigningKey] | None
    ) -> None:
        await self._find(exam, self._policy)
        server = exam.server
        if server is not None and exam.reached:
            self._note(f"asking {exam.server_name} for its keys and endpoints …")
            exam.keys = await self._ask_keys(exam, server)
            for version in ("v2", "v1"):
                exam.endpoints[version] = _NOT_IN_TIME  # what stays if time is up
                exam.endpoints[version] = await self._ask(
                    exam, server, _empty_invite(version, exam)
                )
            if signed_by is not None:
                request = _signed_request(*signed_by, exam.server_name)
                exam.signed = await self._ask(exam, server, request)
        exam.finished = exam.all_tried

    async def _examine_ours(self, exam: Examination) -> None:
        # A list of servers that may be invited from says nothing about ourselves.
        await self._find(exam, replace(self._policy, servers=ServerPolicy()))
        if exam.server is not None and exam.reached:
            exam.keys = await self._ask_keys(exam, exam.server)
        exam.finished = exam.all_tried

    # --- The parts ------------------------------------------------------------------------------

    async def _find(self, exam: Examination, policy: Policy) -> None:
        """Find the server, and try each of its addresses."""
        self._note(f"finding {exam.server_name} …")
        async with FederationClient(
            policy=policy, transport=self._transport, clock=self._clock
        ) as federation:
            try:
                exam.server = await federation.resolve(exam.server_name)
            except InvalidInviteError:
                raise
            except InviteError as error:
                exam.error = error
        host = parse_server_name(exam.server_name).host
        exam.web = next((h for h in self._handshakes if h.target == Target(host, _HTTPS)), None)
        if exam.server is None:
            return
        self._note(f"trying the addresses of {exam.server_name} …")
        try:
            async with (
                asyncio.timeout(self._policy.timeouts.total * _FOR_ADDRESSES),
                asyncio.TaskGroup() as group,
            ):
                for target in exam.server.targets:
                    group.create_task(self._try_all(exam, exam.server, target))
        except TimeoutError:
            exam.all_tried = False
        order = exam.server.targets.index
        exam.addresses.sort(key=lambda one: (order(one.target), one.address or ""))

    async def _try_all(self, exam: Examination, server: ResolvedServer, target: Target) -> None:
        """Try every address of a target."""
        async with asyncio.TaskGroup() as group:
            for address in await self._look_up(exam, target):
                group.create_task(self._try(exam, server, target, address))

    async def _look_up(self, exam: Examination, target: Target) -> list[str]:
        """Return the addresses of a target; the name itself if it is resolved elsewhere."""
        if is_onion(target.host) or _is_literal(target.host):
            return [target.host]
        try:
            return [str(address) for address in await self._transport.dns.addresses(target.host)]
        except OSError as error:
            absent = isinstance(error, DnsAbsentError)
            unreachable = UnreachableError(str(error), stage=Stage.DNS, retryable=not absent)
            exam.addresses.append(Address(target, None, Answer(error=unreachable)))
            return []

    async def _try(
        self, exam: Examination, server: ResolvedServer, target: Target, address: str
    ) -> None:
        dialled = Target(address, target.port)
        log: list[Attempt] = []
        answer = _NOT_IN_TIME
        try:
            async with self._at_once:
                answer = await self._ask(exam, replace(server, targets=(dialled,)), _VERSION, log)
        finally:  # also if time is up
            exam.addresses.append(self._tried(server, target, dialled, answer, log))

    def _tried(
        self,
        server: ResolvedServer,
        target: Target,
        dialled: Target,
        answer: Answer,
        log: list[Attempt],
    ) -> Address:
        ours = (h for h in reversed(self._handshakes) if h.target == dialled)
        handshake = next((h for h in ours if h.tls_name == server.tls_name), None)
        seconds = sum(attempt.seconds for attempt in log)
        return Address(target, str(dialled), answer, handshake, seconds)

    async def _ask_keys(self, exam: Examination, server: ResolvedServer) -> Keys:
        answer = await self._ask(exam, server, SERVER_KEYS_REQUEST)
        if answer.reply is None:
            return Keys(answer, error=answer.error)
        try:
            keys = read_server_keys(
                answer.reply,
                exam.server_name,
                fetched_at=int(self._clock.time() * 1000),
                maximum_validity=self._policy.keys.maximum_validity,
            )
        except MalformedReplyError as error:
            return Keys(answer, error=error)
        return Keys(answer, keys)

    async def _ask(
        self,
        exam: Examination,
        server: ResolvedServer,
        request: Request,
        log: list[Attempt] | None = None,
    ) -> Answer:
        before = self._clock.time()
        try:
            reply = await self._transport.exchange(
                server,
                request,
                limit=self._policy.limits.key_bytes,
                log=[] if log is None else log,
            )
        except InvalidInviteError:
            raise
        except InviteError as error:
            return Answer(error=error)
        date = read_date(reply.headers.get("date", ""))
        if date is not None and exam.clock is None:
            # It was the middle of that second when the answer was half way.
            exam.clock = date + 0.5 - (before + self._clock.time()) / 2
        return Answer(reply)


def _empty_invite(version: str, exam: Examination) -> Request:
    """A request that no server can take for an invite, and only one without the endpoint for unknown."""
    room = quote(f"!{_NOBODY}:{exam.server_name}", safe="")
    event = quote(f"${_NOBODY}", safe="")
    uri = f"/_matrix/federation/{version}/invite/{room}/{event}"
    return Request("PUT", uri, b"{}", what=f"PUT {version} invite, empty and unsigned")


def _signed_request(ours: str, key: SigningKey, theirs: str) -> Request:
    """A question that only a server may ask, about nobody."""
    user_id = quote(f"@{_NOBODY}:{theirs}", safe="")
    uri = f"/_matrix/federation/v1/query/profile?user_id={user_id}&field=displayname"
    authorization = authorize("GET", uri, origin=ours, destination=theirs, key=key)
    return Request("GET", uri, authorization=authorization, what="GET profile of nobody")


def _first(errors: BaseExceptionGroup[Exception] | Exception) -> Exception:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
