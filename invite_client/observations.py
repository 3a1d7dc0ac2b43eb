"""What an `Observer` is told: one frozen value for each thing that happens to an invite.

They carry what logs, metrics and traces need and nothing that is secret. In the life of one
invite they come in this order; all but the last may be missing or repeated:

    Resolved → RequestSent → Replied → (FellBack → RequestSent → Replied) → Verified
                                     ↘ RetryScheduled → Resolved → …       ↘ Failed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from invite_client.errors import InviteError
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Reply, Request
from invite_client.spec.invites import Invite, SignedInvite

__all__ = [
    "Failed",
    "FellBack",
    "Observation",
    "Replied",
    "RequestSent",
    "Resolved",
    "RetryScheduled",
    "Verified",
]


@dataclass(frozen=True, slots=True)
class Resolved:
    """The invited user's server was found."""

    invite: Invite
    server: ResolvedServer


@dataclass(frozen=True, slots=True)
class RequestSent:
    """A request is handed to the transport."""

    invite: Invite
    request: Request
    server: ResolvedServer
    attempt: int
    """1 for the first, and so on."""


@dataclass(frozen=True, slots=True)
class Replied:
    """The remote answered, with whatever status."""

    invite: Invite
    request: Request
    reply: Reply
    seconds: float


@dataclass(frozen=True, slots=True)
class FellBack:
    """The remote does not know v2, and the room's version allows v1."""

    invite: Invite
    reply: Reply


@dataclass(frozen=True, slots=True)
class RetryScheduled:
    """The same event will be sent again."""

    invite: Invite
    error: InviteError
    attempt: int
    """The attempt that failed."""
    wait: float
    """Seconds until the next."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The countersignature was verified: the invite is done."""

    invite: Invite
    signed: SignedInvite


@dataclass(frozen=True, slots=True)
class Failed:
    """The invite ended with an error."""

    invite: Invite
    error: InviteError
    seconds: float


Observation: TypeAlias = (
    Resolved | RequestSent | Replied | FellBack | RetryScheduled | Verified | Failed
)
