"""Invite users of other Matrix homeservers: resolve, sign, send, fall back, verify.

    from invite_client import Invite, InviteClient, read_signing_key

    async with InviteClient("inviter.example", read_signing_key("signing.key")) as client:
        signed = await client.send_invite(Invite.from_pdu(event, room_version="10"))

Public, and not to be moved, is what is listed in `__all__`, and with it the modules `interfaces`
(what a host can replace), `observations` (what an observer is told), `stores`, `contrib` and
`testing`. Nothing else is.
"""

from invite_client.backoff import BackOff
from invite_client.bulk import Outcome
from invite_client.client import InviteClient
from invite_client.errors import (
    Attempt,
    ClientResponse,
    CountersignatureError,
    CountersignatureProblem,
    Delivery,
    ForbiddenByPolicyError,
    InvalidInviteError,
    InviteError,
    InviteRejectedError,
    MalformedReplyError,
    RateLimitedError,
    Stage,
    UnknownOutcomeError,
    UnreachableError,
    UntrustedReplyError,
)
from invite_client.federation import FederationClient
from invite_client.policy import (
    AddressPolicy,
    BackoffPolicy,
    BulkPolicy,
    CachePolicy,
    DnsPolicy,
    KeyPolicy,
    Limits,
    Notary,
    Policy,
    ProxyPolicy,
    Retries,
    ServerPolicy,
    Timeouts,
    TlsPolicy,
)
from invite_client.signing_keys import read_signing_key, write_signing_key
from invite_client.spec.discovery import ResolvedServer, Target, TraceStep
from invite_client.spec.invites import Invite, Room, SignedInvite
from invite_client.spec.server_keys import PublishedKey, ServerKeys
from invite_client.spec.signatures import SigningKey, VerifyKey
from invite_client.version import __version__

__all__ = [
    "AddressPolicy",
    "Attempt",
    "BackOff",
    "BackoffPolicy",
    "BulkPolicy",
    "CachePolicy",
    "ClientResponse",
    "CountersignatureError",
    "CountersignatureProblem",
    "Delivery",
    "DnsPolicy",
    "FederationClient",
    "ForbiddenByPolicyError",
    "InvalidInviteError",
    "Invite",
    "InviteClient",
    "InviteError",
    "InviteRejectedError",
    "KeyPolicy",
    "Limits",
    "MalformedReplyError",
    "Notary",
    "Outcome",
    "Policy",
    "ProxyPolicy",
    "PublishedKey",
    "RateLimitedError",
    "ResolvedServer",
    "Retries",
    "Room",
    "ServerKeys",
    "ServerPolicy",
    "SignedInvite",
    "SigningKey",
    "Stage",
    "Target",
    "Timeouts",
    "TlsPolicy",
    "TraceStep",
    "UnknownOutcomeError",
    "UnreachableError",
    "UntrustedReplyError",
    "VerifyKey",
    "__version__",
    "read_signing_key",
    "write_signing_key",
]
