"""Server-Server API § Resolving server names: steps 1 to 6 and their precedence.

`discover` is the walk, and the only place where precedence is decided. It asks two questions,
`well_known` and `srv`, of whatever it is given; whether the answers come from the network, from a
cache, or were asked for ahead of time is no business of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NamedTuple, Protocol

from invite_client.errors import InviteError, Stage, UnreachableError
from invite_client.spec.server_names import ServerName
from invite_client.spec.srv import SrvRecord, in_order

__all__ = [
    "DEFAULT_PORT",
    "SERVICES",
    "Lookups",
    "ResolvedServer",
    "SrvAnswer",
    "Target",
    "TraceStep",
    "WellKnownAnswer",
    "discover",
]

DEFAULT_PORT = 8448
"""The port of federation where none is given (IANA: matrix-fed)."""

SERVICES = ("_matrix-fed._tcp", "_matrix._tcp")
"""The second is deprecated, and asked for only if the first does not exist."""


class Target(NamedTuple):
    """Something to connect to: ``host, port = target``."""

    host: str
    """A DNS name, or an IP literal without brackets."""
    port: int
    """A TCP port."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TraceStep:
    """One step of the discovery, taken or passed over."""

    step: str
    """Its number in the specification: ``3``, ``3.1`` … ``6``."""
    question: str
    """What was asked."""
    answer: str
    """What came back, or that the step was passed over."""
    seconds: float = 0.0
    """How long it took."""
    reason: str = ""
    """Why the discovery went on, or ended, here."""


@dataclass(frozen=True, slots=True)
class ResolvedServer:
    """Where a server name's homeserver is: three names that must not be confused.

    `targets` are connected to, `host_header` is written into the request, `tls_name` is what the
    certificate must say.
    """

    server_name: str
    """The name that was resolved."""
    step: str
    """The number of the step that decided: ``1``, ``2``, ``3.1`` … ``3.5``, ``4``, ``5``, ``6``."""
    targets: tuple[Target, ...]
    """What to connect to, in this order."""
    host_header: str
    """The `Host` header; with a port only where the (delegated) name has one."""
    tls_name: str
    """The DNS name in lower case, or IP literal without brackets, that the certificate is for."""
    trace: tuple[TraceStep, ...] = ()
    """Every step, with its answer, time and reason."""
    fresh_until: float = math.inf
    """Seconds since the epoch until which all that this rests on is fresh."""

    @property
    def tls_is_ip(self) -> bool:
        """Whether the certificate must be for an IP address; then no SNI is sent (§ TLS)."""
        try:
            ip_address(self.tls_name)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class WellKnownAnswer:
    """What asking for `/.well-known/matrix/server` came to."""

    delegated: ServerName | None
    """The delegated name; None if there was no valid answer, whatever the reason."""
    reason: str = ""
    """Why there was none."""
    seconds: float = 0.0
    """How long it took."""
    fresh_until: float = math.inf
    """Seconds since the epoch."""
    absent: bool = False
    """Whether the web server said that there is no such file. Any other failure may pass."""


@dataclass(frozen=True, slots=True)
class SrvAnswer:
    """What asking for SRV records came to. An answer without records says that there are none."""

    records: tuple[SrvRecord, ...]
    """The records, in any order."""
    seconds: float = 0.0
    """How long it took."""
    fresh_until: float = math.inf
    """Seconds since the epoch."""


class Lookups(Protocol):
    """The two questions that the discovery asks."""

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        """Ask ``https://hostname/.well-known/matrix/server``. A bad answer is an answer."""
        ...

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        """Ask for SRV records of ``service.hostname``.

        Raises `UnreachableError` with stage DNS if it cannot be known whether there are any: a
        name server that fails has not said that there is no record.
        """
        ...


async def discover(
    name: ServerName,
    lookups: Lookups,
    chance: Callable[[int], int],
    trace: list[TraceStep] | None = None,
) -> ResolvedServer:
    """Resolve a server name. `chance(n)` draws from 0 to n, for the weights of SRV records.

    The steps are also added to `trace` as they are taken, for who may not wait for the end.

    Raises `UnreachableError`, with the steps so far in its `trace`.
    """
    return await _Walk(name, lookups, chance, [] if trace is None else trace).resolve()


class _Walk:
    """One discovery: the steps, and what they have left behind."""

    def __init__(
        self,
        name: ServerName,
        lookups: Lookups,
        chance: Callable[[int], int],
        trace: list[TraceStep],
    ) -> None:
        self.name = name
        self.lookups = lookups
        self.chance = chance
        self.trace = trace
        self.fresh_until = math.inf

    async def resolve(self) -> ResolvedServer:
        name = self.name
        # 1. "If the hostname is an IP literal, then that IP address should be used."
        if name.ip is not None:
            self.note("1", "is the name an IP literal?", "yes", reason="no look-up is needed")
            return self.found("1", name, name.port or DEFAULT_PORT)
        self.note("1", "is the name an IP literal?", "no")

        # 2. "If the hostname is not an IP literal, and the server name includes an explicit port."
        if name.port is not None:
            self.note("2", "has the name a port?", "yes", reason="no well-known, no SRV")
            return self.found("2", name, name.port)
        self.note("2", "has the name a port?", "no")

        # 3. "A regular HTTPS request is made to https://<hostname>/.well-known/matrix/server."
        question = f"https://{name.host}/.well-known/matrix/server"
        with self.asking("3", question):
            answer = await self.lookups.well_known(name.host)
        self.fresh_until = min(self.fresh_until, answer.fresh_until)
        if answer.delegated is not None:
            self.note(
                "3", question, f"m.server is {answer.delegated}", answer.seconds, "it delegates"
            )
            return await self.delegated(answer.delegated)

        # "If the response is invalid (bad JSON, missing properties, non-200 response, etc), skip to
        # step 4."
        self.note("3", question, answer.reason, answer.seconds, "no valid answer: on to step 4")
        return await self.by_srv(name, ("4", "5", "6"))

    async def delegated(self, name: ServerName) -> ResolvedServer:
        """Steps 3.1 to 3.5. There is no well-known look-up on the delegated name."""
        # 3.1
        if name.ip is not None:
            self.note("3.1", "is the delegated name an IP literal?", "yes")
            return self.found("3.1", name, name.port or DEFAULT_PORT)
        self.note("3.1", "is the delegated name an IP literal?", "no")
        # 3.2
        if name.port is not None:
            self.note("3.2", "has the delegated name a port?", "yes", reason="no SRV")
            return self.found("3.2", name, name.port)
        self.note("3.2", "has the delegated name a port?", "no")
        # 3.3, 3.4, 3.5
        return await self.by_srv(name, ("3.3", "3.4", "3.5"))

    async def by_srv(self, name: ServerName, steps: tuple[str, str, str]) -> ResolvedServer:
        """Steps 4, 5, 6 for the server name; the same as 3.3, 3.4, 3.5 for the delegated name."""
        for service, step in zip(SERVICES, steps, strict=False):
            question = f"SRV {service}.{name.host}"
            try:
                with self.asking(step, question):
                    answer = await self.lookups.srv(service, name.host)
            except UnreachableError as error:
                # Not known is not absent: to go on could send the invite to the wrong server.
                self.note(step, question, error.message, reason="DNS failed: this is no answer")
                raise self.failed(error) from error
            self.fresh_until = min(self.fresh_until, answer.fresh_until)
            if not answer.records:
                self.note(step, question, "no such record", answer.seconds)
                continue
            offered = [record for record in answer.records if record.target != "."]
            if not offered:
                # RFC 2782: "A Target of "." means that the service is decidedly not available."
                self.note(step, question, "target is .", answer.seconds, "decidedly not offered")
                raise self.failed(
                    UnreachableError(
                        f"{service}.{name.host} says that federation is not offered",
                        stage=Stage.DNS,
                    )
                )
            targets = tuple(
                Target(record.target.lower(), record.port)
                for record in in_order(offered, self.chance)
            )
            listed = ", ".join(map(str, targets))
            self.note(
                step, question, listed, answer.seconds, "by priority, then by weighted chance"
            )
            return self.result(step, name, targets)
        self.note(steps[2], f"no SRV: port {DEFAULT_PORT} of {name.host}", "used")
        return self.found(steps[2], name, DEFAULT_PORT)

    def found(self, step: str, name: ServerName, port: int) -> ResolvedServer:
        return self.result(step, name, (Target(name.host, port),))

    def result(self, step: str, name: ServerName, targets: tuple[Target, ...]) -> ResolvedServer:
        """Host and certificate name are those of the name that was looked up, never of a target."""
        return ResolvedServer(
            server_name=str(self.name),
            step=step,
            targets=targets,
            host_header=str(name),
            tls_name=name.host.removesuffix("."),  # which no certificate has
            trace=tuple(self.trace),
            fresh_until=self.fresh_until,
        )

    @contextmanager
    def asking(self, step: str, question: str) -> Iterator[None]:
        """Leave in the trace what is being asked, if the walk is ended from outside meanwhile."""
        try:
            yield
        except InviteError:
            raise
        except BaseException:
            self.note(step, question, "no answer yet")
            raise

    def note(
        self, step: str, question: str, answer: str, seconds: float = 0.0, reason: str = ""
    ) -> None:
        self.trace.append(TraceStep(step, question, answer, seconds, reason))

    def failed(self, error: UnreachableError) -> UnreachableError:
        return UnreachableError(
            error.message,
            stage=error.stage,
            retryable=error.retryable,
            destination=str(self.name),
            trace=tuple(self.trace),
        )
