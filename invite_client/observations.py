"""What an `Observer` is told: one frozen value for each thing that happens to an invite.

They carry what logs, metrics and traces need. A request holds its signature and the state of the
room, which are nobody's business: an observer must not write down a whole `Request` or `Invite`.

Each call of `send_invite` begins with `Queued` and ends with `Verified`, `Failed` or `Abandoned`,
once each. What is in between may be missing or repeated:

    Queued → Started → Resolved → RequestSent → Replied → KeysObtained → Verified
    Replied → FellBack → RequestSent                        the remote is old: on to v1
    Replied, Unanswered → RetryScheduled → Resolved         once more

Each `RequestSent` is followed by one `Replied` or one `Unanswered`. An observer is called in the
task, and in the context (`contextvars`), of the caller of `send_invite`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from invite_client.errors import Attempt, InviteError
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Reply, Request
from invite_client.spec.invites import Invite, SignedInvite
from invite_client.spec.server_keys import ServerKeys

__all__ = [
    "Abandoned",
    "Failed",
    "FellBack",
    "KeysObtained",
    "Observation",
    "Queued",
    "Replied",
    "RequestSent",
    "Resolved",
    "RetryScheduled",
    "Started",
    "Unanswered",
    "Verified",
]


@dataclass(frozen=True, slots=True)
class _OfOneInvite:
    """What all of them have."""

    invite: Invite
    call: int = field(kw_only=True)
    """The number of this call of `send_invite` among all of this process: the same invite may be
    sent twice, and at once."""


@dataclass(frozen=True, slots=True)
class Queued(_OfOneInvite):
    """`send_invite` was called; from now on the invite waits for a slot (`Policy.limits`)."""


@dataclass(frozen=True, slots=True)
class Started(_OfOneInvite):
    """The invite has a slot, and its time runs."""

    waited: float
    """Seconds that it waited for the slot."""


@dataclass(frozen=True, slots=True)
class Resolved(_OfOneInvite):
    """The invited user's server was found."""

    server: ResolvedServer
    seconds: float
    """How long it took: nothing to speak of where all was remembered."""


@dataclass(frozen=True, slots=True)
class RequestSent(_OfOneInvite):
    """A request is handed to the transport."""

    request: Request
    server: ResolvedServer
    attempt: int
    """1 for the first, and so on; a fallback belongs to the attempt that it ends."""
    endpoint: Literal["v2", "v1"]


@dataclass(frozen=True, slots=True)
class Replied(_OfOneInvite):
    """The remote answered, with whatever status."""

    request: Request
    reply: Reply
    seconds: float
    """From `RequestSent` on: connecting, where that was necessary, is part of it."""
    endpoint: Literal["v2", "v1"]
    attempts: tuple[Attempt, ...]
    """What was tried for this request; the last is the one that was answered."""


@dataclass(frozen=True, slots=True)
class Unanswered(_OfOneInvite):
    """No answer, or none that could be read."""

    request: Request
    error: InviteError | None
    """Why; None where it was ended from outside: out of time, or cancelled."""
    seconds: float
    endpoint: Literal["v2", "v1"]
    attempts: tuple[Attempt, ...]
    """What was tried for this request."""


@dataclass(frozen=True, slots=True)
class FellBack(_OfOneInvite):
    """The remote does not know v2, and the room's version allows v1."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class RetryScheduled(_OfOneInvite):
    """The same event will be sent again."""

    error: InviteError
    attempt: int
    """The attempt that failed."""
    wait: float
    """Seconds until the next."""


@dataclass(frozen=True, slots=True)
class KeysObtained(_OfOneInvite):
    """The invited user's server's keys are here; what it returned can be judged."""

    keys: ServerKeys
    seconds: float
    """How long they were waited for after the answer: mostly they were here before it."""


@dataclass(frozen=True, slots=True)
class Verified(_OfOneInvite):
    """An end: the countersignature was verified; the invite is done."""

    signed: SignedInvite


@dataclass(frozen=True, slots=True)
class Failed(_OfOneInvite):
    """An end: the invite ended with an error."""

    error: InviteError
    seconds: float
    """From `Started` on; from `Queued` on if it never had a slot."""


@dataclass(frozen=True, slots=True)
class Abandoned(_OfOneInvite):
    """An end: the call was cancelled, or there is a bug. What was sent may have arrived."""

    seconds: float


Observation: TypeAlias = (
    Queued
    | Started
    | Resolved
    | RequestSent
    | Replied
    | Unanswered
    | FellBack
    | RetryScheduled
    | KeysObtained
    | Verified
    | Failed
    | Abandoned
)
