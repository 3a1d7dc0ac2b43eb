"""Is it our event that came back, and did the invited user's server sign it?

Server-Server API § Inviting to a room, § Validating hashes and signatures on received events.
The work is split so that it stays free of IO: `key_ids` says which keys are needed, the caller
obtains them, `verify` judges, `merge` builds what may be kept.

In order to accept a returned event, we must establish that

1.  it is the event that was sent: "All other fields of the events should remain untouched";
2.  `signatures` has an entry of the invited user's server, that entry is well formed, and it has
    signatures of an algorithm that we understand;
3.  each signature in it by a key which that server publishes, and which was valid when the event
    was made, is a signature of *our copy* of the event, redacted;
4.  there is at least one of these.

Nothing of the returned event is kept but the signatures that passed 3. Without these checks the
remote could make us send to the room an event of its choice under our user's name; a receiving
server that signed what it had not looked at was CVE-2019-18835.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from invite_client.errors import CountersignatureError, CountersignatureProblem
from invite_client.spec import canonical_json, events
from invite_client.spec.base64 import encode_unpadded
from invite_client.spec.invites import Event, Invite
from invite_client.spec.quoting import listed
from invite_client.spec.server_keys import ServerKeys
from invite_client.spec.signatures import is_key_id, verified_bytes

__all__ = ["judged", "key_ids", "merge", "verify"]

_NOT_COMPARED = ("signatures", "unsigned")
"""What the remote may change: it adds to the one, and the other is nobody's word."""
_MOST_SURPLUS_FIELDS, _LONGEST_NAME = 20, 255
"""Fields that were not sent, and characters of their names, that an error tells: it may be kept for
long, beside a thousand others, and the remote chooses how many there are."""
_MOST_VERIFIED = 20
"""Signatures of one server that are verified, at 0.1 ms each. It has a key or two; but it may publish
hundreds, and hold the process for as many."""
_MOST_SIGNATURES = 5000
"""Signatures of one server that are read, of which most may be by keys that nobody publishes: these
cost memory for as long as the keys are waited for, and 2 µs each."""


def key_ids(invite: Invite, returned: Event) -> tuple[str, ...]:
    """Check that `returned` is `invite`'s event and return the IDs of the keys that signed it.

    Raises `CountersignatureError`: `EVENT_CHANGED`, `SIGNATURES_MALFORMED`, `NOT_SIGNED`.
    """
    # (1): The comparison is between canonical bytes, because to Python 1, 1.0 and True are equal.
    # Equal bytes have the same content hash, reference hash and event ID: those of our copy, which
    # were checked when the invite was made.
    if _compared_bytes(invite, returned) != invite.compared_json:
        fields = _changed_fields(invite, returned)
        raise CountersignatureError(
            f"the returned event differs from the one sent in {listed(fields)}",
            problem=CountersignatureProblem.EVENT_CHANGED,
            fields=fields,
        )
    # (2): Other servers' entries may be anything: they are not looked at.
    return tuple(_signatures_of_invited_server(invite, returned))


def judged(invite: Invite, returned: Event) -> Event:
    """Return what `verify` needs of an event that `key_ids` has accepted: the rest may be megabytes."""
    destination = str(invite.destination)
    return {"signatures": {destination: returned["signatures"][destination]}}


def verify(invite: Invite, returned: Event, keys: ServerKeys) -> dict[str, str]:
    """Return the verified signatures by key ID; at least one.

    `key_ids` must have accepted `returned`, of which `judged` will do, and `keys` must be those of the invited user's server.

    Raises `CountersignatureError`: `SIGNATURE_INVALID`, `KEY_EXPIRED`, `KEY_NOT_PUBLISHED`, and
    `SIGNATURES_MALFORMED` for too many.
    """
    signatures = _signatures_of_invited_server(invite, returned)
    verified: dict[str, str] = {}
    expired: list[str] = []

    # (3): "If all signatures from known unexpired keys … are found to be valid". Unknown keys are
    # skipped: a policy server's key, for one, is never published. In old rooms `valid_until_ts` is
    # ignored, but not that a server says that it has given up a key: "any keys that are known to
    # have expired prior to the event's `origin_server_ts` are ignored".
    for key_id, signature in signatures.items():
        published = keys.keys.get(key_id)
        if published is None:
            continue
        if not published.was_valid_at(
            invite.origin_server_ts if published.old else invite.key_validity_time
        ):
            expired.append(key_id)
            continue
        if len(verified) == _MOST_VERIFIED:
            raise _too_many(_MOST_VERIFIED, "signatures by published keys", invite)
        raw = verified_bytes(published.key, invite.signing_json, signature)
        if raw is None:
            raise CountersignatureError(
                f"the signature with {key_id} is not one of this event",
                problem=CountersignatureProblem.SIGNATURE_INVALID,
            )
        # The same 64 bytes can be spelled in several ways; only one spelling is kept.
        verified[key_id] = encode_unpadded(raw)

    # (4): Signatures that could not be judged do not count.
    if not verified:
        if expired:
            raise CountersignatureError(
                f"{listed(expired)} was no longer valid when the event was made, "
                f"at {invite.origin_server_ts} ms since the epoch",
                problem=CountersignatureProblem.KEY_EXPIRED,
            )
        raise CountersignatureError(
            f"{invite.destination} publishes none of {listed(signatures)}",
            problem=CountersignatureProblem.KEY_NOT_PUBLISHED,
        )
    return verified


def merge(invite: Invite, verified: Mapping[str, str]) -> Event:
    """Return our copy of the event with the verified signatures added: what may be sent to the room.

    Raises `CountersignatureError`: `TOO_LARGE`.
    """
    event = invite.copy_event()
    destination = str(invite.destination)
    event["signatures"].setdefault(destination, {}).update(verified)
    # It grows by no more than an entry of its own would take; mostly that need not be known better.
    size = len(invite.event_json) + len(
        canonical_json.encode({destination: verified}, checked=True)
    )
    if size > events.MAX_EVENT_BYTES:
        strict = invite.room_version.strict_canonical_json
        size = len(canonical_json.encode(event, strict=strict, checked=True))
    if size > events.MAX_EVENT_BYTES:
        raise CountersignatureError(
            f"with its countersignature the event has {size} bytes, "
            f"{events.MAX_EVENT_BYTES} are allowed",
            problem=CountersignatureProblem.TOO_LARGE,
        )
    return event


def _signatures_of_invited_server(invite: Invite, returned: Event) -> dict[str, str]:
    destination = str(invite.destination)
    signatures = returned.get("signatures", {})
    if not isinstance(signatures, dict):
        raise CountersignatureError(
            "`signatures` is not an object",
            problem=CountersignatureProblem.SIGNATURES_MALFORMED,
        )
    by_invited = signatures.get(destination, {})
    if not isinstance(by_invited, dict):
        raise _malformed(destination)
    usable: dict[str, str] = {}
    for key_id, text in by_invited.items():
        if type(text) is not str:
            raise _malformed(destination)
        # Appendices § Checking for a signature, step 2: other algorithms are not looked at.
        if is_key_id(key_id):
            usable[key_id] = text
        if len(usable) > _MOST_SIGNATURES:
            raise _too_many(_MOST_SIGNATURES, "signatures", invite)
    if not usable:
        signers = listed(sorted(signatures)) or "nobody"
        raise CountersignatureError(
            f"there is no ed25519 signature by {destination}; the event is signed by {signers}",
            problem=CountersignatureProblem.NOT_SIGNED,
        )
    return usable


def _too_many(most: int, what: str, invite: Invite) -> CountersignatureError:
    # Not skipped: which of them are judged would be by chance.
    return CountersignatureError(
        f"there are more than {most:,} {what} of {invite.destination}",
        problem=CountersignatureProblem.SIGNATURES_MALFORMED,
    )


def _malformed(destination: str) -> CountersignatureError:
    return CountersignatureError(
        f"the entry of {destination} in `signatures` is not an object of strings",
        problem=CountersignatureProblem.SIGNATURES_MALFORMED,
    )


def _compared_bytes(invite: Invite, returned: Event) -> bytes | None:
    compared = {name: value for name, value in returned.items() if name not in _NOT_COMPARED}
    return _encoded(invite, compared)


def _encoded(invite: Invite, value: Any) -> bytes | None:
    # It was decoded from JSON. What of that is not canonical, such as 1.0, is not written as anything
    # that is: the bytes differ.
    strict = invite.room_version.strict_canonical_json
    try:
        return canonical_json.encode(value, strict=strict, checked=True)
    except (canonical_json.CanonicalJsonError, RecursionError, TypeError, ValueError):
        return None  # What cannot be encoded cannot be what was sent.


def _changed_fields(invite: Invite, returned: Event) -> tuple[str, ...]:
    ours = invite.event
    changed = [
        name
        for name in ours.keys() - {*_NOT_COMPARED}
        if name not in returned or _encoded(invite, ours[name]) != _encoded(invite, returned[name])
    ]
    surplus = (name for name in returned if name not in ours and name not in _NOT_COMPARED)
    changed += [name[:_LONGEST_NAME] for name in islice(surplus, _MOST_SURPLUS_FIELDS)]
    return tuple(sorted(changed))
