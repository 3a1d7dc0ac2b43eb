"""Logs of the standard library: one line a request, one line an end.

    INFO {PUT-17} [remote.example] PUT v2 invite: 200, 1204 bytes in 0.21 s from 192.0.2.1:8448
    INFO {PUT-17} [remote.example] signed with ed25519:a_1 in 0.34 s: $event of @bob:remote.example

All lines of one `send_invite` have the same tag, as those of one request have in Synapse. No line
holds a signature, a header, or anything of the room but its ID; what others chose is on one line.
"""

from __future__ import annotations

import logging

from invite_client.errors import Attempt
from invite_client.observations import (
    Abandoned,
    Failed,
    FellBack,
    KeysObtained,
    Observation,
    Queued,
    Replied,
    RequestSent,
    Resolved,
    RetryScheduled,
    Started,
    Unanswered,
    Verified,
)
from invite_client.spec.invites import Invite
from invite_client.spec.quoting import listed, worded

__all__ = ["LogObserver"]


class LogObserver:
    """An `interfaces.Observer` that writes to a logger.

    INFO: each request, fallback and retry, and each signed invite. WARNING: each invite that was
    not signed. DEBUG: what happens in between.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        """Write to `logger`; without one, to ``invite_client.invites``."""
        self._logger = logger or logging.getLogger("invite_client.invites")

    def __call__(self, event: Observation) -> None:
        """Write at most one line."""
        level = _level(event)
        if self._logger.isEnabledFor(level):
            tag, destination = f"PUT-{event.call}", event.invite.destination
            self._logger.log(level, "{%s} [%s] %s", tag, destination, _in_words(event))


def _level(event: Observation) -> int:
    match event:
        case Failed() | Abandoned():
            return logging.WARNING
        case Replied() | Unanswered() | FellBack() | RetryScheduled() | Verified():
            return logging.INFO
    return logging.DEBUG


def _in_words(event: Observation) -> str:
    match event:
        case Queued(invite):
            return f"to be sent: {_invite(invite)} to {worded(invite.room_id)}"
        case Started(_, waited):
            return f"has a slot after {waited:.2f} s"
        case Resolved(_, server, seconds):
            targets = ", ".join(map(str, server.targets))
            return f"resolved by step {server.step} to {targets} in {seconds:.2f} s"
        case RequestSent(_, request, _, attempt):
            size = len(request.body or b"")
            return f"{request.what}, attempt {attempt}: {size} bytes"
        case Replied(_, request, reply, seconds, _, attempts):
            size, where = len(reply.body), _address(attempts, "from")
            return f"{request.what}: {reply.status}, {size} bytes in {seconds:.2f} s{where}"
        case Unanswered(_, request, error, seconds, _, attempts):
            why = "ended from outside" if error is None else error.message
            return f"{request.what}: {why}, after {seconds:.2f} s{_address(attempts, 'at')}"
        case FellBack(_, reply):
            return f"the answer {reply.status} may mean that v2 is not known: on to v1"
        case RetryScheduled(_, error, attempt, wait):
            return f"attempt {attempt} failed ({error.message}); once more in {wait:.2f} s"
        case KeysObtained(_, keys, seconds):
            return f"keys {listed(keys.keys)} are here, {seconds:.2f} s after the answer"
        case Verified(invite, signed):
            by = listed(signed.signatures)
            return f"signed with {by} in {signed.seconds:.2f} s: {_invite(invite)}"
        case Failed(invite, error, seconds):
            return (
                f"not signed after {seconds:.2f} s: {_invite(invite)}: "
                f"{type(error).__name__}: {error.message} (delivery: {error.delivery})"
            )
        case Abandoned(invite, seconds):
            return f"ended from outside after {seconds:.2f} s: {_invite(invite)}"


def _invite(invite: Invite) -> str:
    return f"{worded(invite.event_id)} of {worded(invite.target)}"


def _address(attempts: tuple[Attempt, ...], word: str) -> str:
    """The address that was used last, if it came to one."""
    addresses = [attempt.address for attempt in attempts if attempt.address]
    return f" {word} {addresses[-1]}" if addresses else ""
