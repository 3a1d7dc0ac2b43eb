"""What this package raises on purpose, and what a caller may do next.

    InviteError
    ├── InvalidInviteError       (ValueError)       our input is wrong; nothing was sent
    ├── ForbiddenByPolicyError   (PermissionError)  our own policy refuses; nothing was sent
    ├── UnreachableError         (ConnectionError)  no server answered; the request was not sent
    ├── UnknownOutcomeError      (ConnectionError)  the request went out, no whole answer came back
    ├── InviteRejectedError                         the remote answered, and said no
    │   └── RateLimitedError                        ... it said "later"
    └── UntrustedReplyError                         the remote answered, and we do not believe it
        ├── MalformedReplyError                     ... it is not what the specification describes
        └── CountersignatureError                   ... it is not a countersignature of our event

Two questions decide what happens next: *did the invite reach the remote* (`delivery`) and *can
the same event be sent again* (`retryable`, `retry_after`). Sending the same event twice is always
safe: an invite is a PUT to a path that names the event.

Anything else that leaves the package is a bug, or a cancellation.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "Attempt",
    "ClientResponse",
    "CountersignatureError",
    "CountersignatureProblem",
    "Delivery",
    "ForbiddenByPolicyError",
    "InvalidInviteError",
    "InviteError",
    "InviteRejectedError",
    "MalformedReplyError",
    "RateLimitedError",
    "Stage",
    "UnknownOutcomeError",
    "UnreachableError",
    "UntrustedReplyError",
]


class Delivery(enum.StrEnum):
    """Did the invite reach the remote server?"""

    NOT_SENT = "not sent"
    """No byte of the request left this machine."""
    UNKNOWN = "unknown"
    """The request went out, wholly or in part, and no whole answer came back."""
    ANSWERED = "answered"
    """The remote answered the request."""


class Stage(enum.StrEnum):
    """The part of sending an invite in which an error arose."""

    INPUT = "input"
    POLICY = "policy"
    BACKOFF = "back-off"
    """Nothing was tried: too much has failed of late (`InviteClient.backoff`)."""
    WELL_KNOWN = "well-known"
    DNS = "DNS"
    CONNECT = "connect"
    TLS = "TLS"
    HTTP = "HTTP"
    PARSE = "parse"
    KEYS = "keys"
    VERIFY = "verify"


class CountersignatureProblem(enum.StrEnum):
    """Why a returned event is not the countersigned invite that was asked for."""

    EVENT_CHANGED = "event changed"
    """A field other than `signatures` and `unsigned` differs from what was sent."""
    SIGNATURES_MALFORMED = "signatures malformed"
    """`signatures`, or the invited server's entry in it, is not an object of strings."""
    NOT_SIGNED = "not signed"
    """There is no signature by the invited user's server."""
    SIGNATURE_INVALID = "signature invalid"
    """A signature by a published, valid key of the invited user's server does not verify."""
    KEY_NOT_PUBLISHED = "key not published"
    """The invited user's server publishes none of the keys that it signed with."""
    KEY_EXPIRED = "key expired"
    """The key was not valid at the event's `origin_server_ts`.

    In room versions 1 to 4 only if its server had given it up by then (`expired_ts`).
    """
    KEYS_UNAVAILABLE = "keys unavailable"
    """The invited user's server answered, but its keys could not be fetched; ask again later."""
    TOO_LARGE = "too large"
    """The event with both servers' signatures is over the size limit of a PDU."""


class ClientResponse(NamedTuple):
    """What a homeserver should answer its own client: `status, body = error.client_response()`."""

    status: int
    """HTTP status for the Client-Server API."""
    body: dict[str, Any]
    """A Matrix standard error response, ready to be sent as JSON."""

    @property
    def errcode(self) -> str:
        """The Matrix error code."""
        return str(self.body["errcode"])

    @property
    def error(self) -> str:
        """The text for a person."""
        return str(self.body["error"])


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing that was tried on the network, for the log of an error or a success."""

    what: str
    """What was asked: ``PUT v2 invite``, ``GET keys``, ``connect``, ``SRV _matrix-fed._tcp.name``."""
    target: str
    """Where: ``host:port`` as the discovery gave it."""
    outcome: str
    """How it ended, in a few words: ``200``, ``connection refused``, ``certificate is for other.example``."""
    address: str | None = None
    """The socket address that was used, ``192.0.2.1:8448`` or ``[2001:db8::1]:8448``, if it came to that."""
    started: float = 0.0
    """When it began, in seconds since the epoch."""
    seconds: float = 0.0
    """How long it took."""
    sent: bool = False
    """Whether any byte of a request went out: if so, the remote may have acted on it."""

    def __str__(self) -> str:
        via = f" ({self.address})" if self.address else ""
        outcome = self.outcome.removeprefix(f"{self.target}: ")
        return f"{self.what} to {self.target}{via}: {outcome} after {self.seconds:.2f} s"


class InviteError(Exception):
    """Root of everything that this package raises on purpose.

    `str(error)` is one line for logs; `diagnosis()` is a paragraph for a person;
    `client_response()` is what a homeserver should answer its own client.
    """

    default_stage: Stage = Stage.HTTP
    default_delivery: Delivery = Delivery.NOT_SENT
    advice: str = ""
    """What a person can do about this kind of error."""
    other: InviteRejectedError | None = None
    """What the other endpoint answered, where both v2 and v1 were asked in vain."""

    def __init__(
        self,
        message: str,
        *,
        stage: Stage | None = None,
        delivery: Delivery | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        attempts: Iterable[Attempt] = (),
        destination: str | None = None,
        advice: str | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.stage: Stage = self.default_stage if stage is None else stage
        self.delivery: Delivery = self.default_delivery if delivery is None else delivery
        self.retryable = retryable
        """Whether sending the same event again, later, may succeed."""
        self.retry_after = retry_after
        """Seconds to wait before sending again, if the remote or our own back-off said so."""
        self.attempts: tuple[Attempt, ...] = tuple(attempts)
        """What was tried on the network before this was raised, in order."""
        self.destination = destination
        """The server name of the invited user's server, where it is known."""
        self.about_invite: bool = True
        """Whether there was an invite to send; not where only a server or its keys were asked for."""
        if advice is not None:
            self.advice = advice
        for name, value in details.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        if not self.destination or self.message.startswith(f"{self.destination}:"):
            return self.message
        return f"{self.destination}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword arguments do not survive pickling by themselves; job queues need it.
        return _rebuild, (type(self), self.message, self.__dict__)

    def diagnosis(self) -> str:
        """Explain to a person what happened, what was tried, and what to do: a few lines of text."""
        lines = [f"{self}."]
        delivery = f" {_DELIVERY_IN_WORDS[self.delivery]}" if self.about_invite else ""
        lines.append(f"Stage: {self.stage}.{delivery}")
        lines.extend(f"  - {attempt}" for attempt in self.attempts)
        if self.other is not None:
            lines.append(f"Before or after that, {self.other.message}.")
        if self.retryable:
            wait = f" after {_rounded_up(self.retry_after)} s" if self.retry_after else " later"
            again = "The same event can be sent" if self.about_invite else "It can be tried"
            lines.append(f"{again} again{wait}.")
        # What a kind of error always advises is about invites.
        if self.advice and (self.about_invite or "advice" in vars(self)):
            lines.append(self.advice)
        return "\n".join(lines)

    def client_response(self) -> ClientResponse:
        """Return the status and body that a homeserver should give to its own client."""
        return self._client_response(502, "M_UNKNOWN", f"Could not invite: {self.message}")

    def _client_response(
        self, status: int, errcode: str, error: str, **extra: Any
    ) -> ClientResponse:
        return ClientResponse(status, {"errcode": errcode, "error": error, **extra})


def _rebuild(kind: type[InviteError], message: str, state: dict[str, Any]) -> InviteError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


def _rounded_up(seconds: float) -> str:
    """Return a wait in words: whoever comes back a moment early is limited again."""
    return str(math.ceil(seconds) if math.isfinite(seconds) else seconds)


_DELIVERY_IN_WORDS = {
    Delivery.NOT_SENT: "The invite was not sent.",
    Delivery.UNKNOWN: "The invite was sent, but whether it arrived is not known.",
    Delivery.ANSWERED: "The remote server received the invite.",
}


class InvalidInviteError(InviteError, ValueError):
    """Our own input is wrong. `field` names the part of it; nothing was sent."""

    default_stage = Stage.INPUT
    field: str = "event"
    """The part of the input that is wrong, as a path: ``event.content.membership``."""

    def __init__(self, message: str, *, field: str = "event", **details: Any) -> None:
        super().__init__(f"{field}: {message}", **details)
        self.field = field

    def client_response(self) -> ClientResponse:
        """A server that builds a wrong event has a bug: its client can do nothing about it."""
        return self._client_response(500, "M_UNKNOWN", "The invite event is not valid")


class ForbiddenByPolicyError(InviteError, PermissionError):
    """The policy that this client was given forbids the destination; nothing was sent to it.

    `setting` names the `Policy` field that decides, so that an operator knows what to change.
    """

    default_stage = Stage.POLICY
    setting: str = ""

    def client_response(self) -> ClientResponse:
        """The user may not invite there; why is the operator's business."""
        return self._client_response(
            403, "M_FORBIDDEN", "This server does not federate with that server"
        )


class UnreachableError(InviteError, ConnectionError):
    """No server could be found or connected to for the destination; the request was not sent."""

    default_stage = Stage.CONNECT
    trace: tuple[Any, ...] = ()
    """The `TraceStep`s of the discovery, where it is the discovery that failed."""

    def client_response(self) -> ClientResponse:
        """A gateway that cannot reach its peer answers 502."""
        return self._client_response(
            502, "M_UNKNOWN", f"Could not reach {self.destination or 'the remote server'}"
        )


class UnknownOutcomeError(InviteError, ConnectionError):
    """The request went out and no whole answer came back. Sending the same event again is safe."""

    default_delivery = Delivery.UNKNOWN
    advice = "A server that has stored the invite already signs it once more."

    def client_response(self) -> ClientResponse:
        """A gateway whose peer does not answer in time answers 504."""
        return self._client_response(
            504, "M_UNKNOWN", f"No answer from {self.destination or 'the remote server'}"
        )


class InviteRejectedError(InviteError):
    """The remote answered with an error. Its words are kept as they came."""

    default_delivery = Delivery.ANSWERED
    status: int = 0
    """The HTTP status."""
    errcode: str | None = None
    """The remote's `errcode`, word for word, if it sent one."""
    error: str | None = None
    """The remote's `error` text, word for word, if it sent one."""
    room_version: str | None = None
    """With `M_INCOMPATIBLE_ROOM_VERSION`: the one that came with it, else that of the invite."""

    def client_response(self) -> ClientResponse:
        """Pass on what concerns the user, and hide what concerns the two servers.

        Server-Server API § Inviting to a room, responses 400 and 403: errors are passed through,
        but `M_MISSING_PARAM` and `M_INVALID_PARAM` become a 5xx.
        """
        error = self.error or f"The remote server refused the invite ({self.status})"
        match self.status, self.errcode:
            case 400, "M_INCOMPATIBLE_ROOM_VERSION" | "M_UNSUPPORTED_ROOM_VERSION":
                # The Client-Server API knows only this code where an invite is concerned.
                extra = {"room_version": self.room_version} if self.room_version else {}
                return self._client_response(400, "M_INCOMPATIBLE_ROOM_VERSION", error, **extra)
            case 400, str(errcode) if errcode not in {"M_MISSING_PARAM", "M_INVALID_PARAM"}:
                # Codes that speak of our request to the remote would mislead a client.
                if errcode in _OUR_FAULT:
                    return self._client_response(502, "M_UNKNOWN", error)
                return self._client_response(400, errcode, error)
            case 403, errcode:
                return self._client_response(403, errcode or "M_FORBIDDEN", error)
            case _:
                return self._client_response(502, "M_UNKNOWN", error)


_OUR_FAULT = frozenset({"M_BAD_JSON", "M_NOT_JSON", "M_UNRECOGNIZED", "M_UNAUTHORIZED"})


class RateLimitedError(InviteRejectedError):
    """The remote answered 429. `retry_after` holds the seconds it asked us to wait, if it said."""

    def client_response(self) -> ClientResponse:
        """It was this server that was limited, not its client; but the client should wait too."""
        extra = {} if self.retry_after is None else {"retry_after_ms": int(self.retry_after * 1000)}
        return self._client_response(
            429, "M_LIMIT_EXCEEDED", "The remote server is limiting invites", **extra
        )


class UntrustedReplyError(InviteError):
    """The remote answered the request, and the answer must not be used."""

    default_delivery = Delivery.ANSWERED

    def client_response(self) -> ClientResponse:
        """The peer behind this gateway misbehaves: 502."""
        return self._client_response(
            502, "M_UNKNOWN", "The remote server sent an answer that cannot be trusted"
        )


class MalformedReplyError(UntrustedReplyError):
    """The answer is not what the specification describes: not JSON, too big, of another shape."""

    default_stage = Stage.PARSE


class CountersignatureError(UntrustedReplyError):
    """The returned event is not our event countersigned by the invited user's server."""

    default_stage = Stage.VERIFY
    problem: CountersignatureProblem
    """Which check failed."""
    fields: tuple[str, ...] = ()
    """The top-level fields that differ from what was sent (problem `EVENT_CHANGED`)."""

    def __init__(self, message: str, *, problem: CountersignatureProblem, **details: Any) -> None:
        super().__init__(f"{problem}: {message}", **details)
        self.problem = problem
