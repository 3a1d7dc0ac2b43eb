"""What a homeserver can return in place of the event that it was asked to sign.

    remote.lies(unsigned())
    remote.lies(changes("content", {"membership": "join"}), times=1)

A lie is a function from the honest answer to what is returned; write your own:

    def shouts(honest: HonestAnswer) -> Any:
        return {**honest.event, "type": honest.event["type"].upper()}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from invite_client.spec import canonical_json
from invite_client.spec.events import Event
from invite_client.spec.invites import Invite
from invite_client.spec.signatures import SigningKey, sign_event

__all__ = [
    "HonestAnswer",
    "Lie",
    "adds_junk_signatures",
    "adds_unsigned",
    "badly_signed",
    "changes",
    "drops_signatures_of_the_inviter",
    "malformed_signatures",
    "malformed_signatures_of_its_own",
    "removes",
    "returns_another_event",
    "signed_by",
    "signed_with",
    "signed_with_an_expired_key",
    "signed_with_an_unpublished_key",
    "signs_the_unredacted_event",
    "unsigned",
]


@dataclass(frozen=True, slots=True)
class HonestAnswer:
    """What an honest homeserver would answer, and what it takes to answer otherwise."""

    event: Event
    """The event with the signature added: a copy that a lie may change."""
    invite: Invite
    """The invite as it was received."""
    server_name: str
    """The invited homeserver."""
    signing_key: SigningKey
    """The key with which it signs."""
    expired_key: SigningKey
    """A key that it publishes among its old ones, expired long ago."""

    def received(self) -> Event:
        """Return a copy of the event as it came, without our signature."""
        return self.invite.copy_event()

    def signed(self, event: Mapping[str, Any], key: SigningKey | None = None) -> Event:
        """Return an event hashed and signed by us, as if it were the one that was sent."""
        return sign_event(
            event, self.server_name, key or self.signing_key, self.invite.room_version
        )


Lie: TypeAlias = Callable[[HonestAnswer], Any]
"""From the honest answer to the event that is returned, or anything else that is JSON."""


# --- Signatures ---------------------------------------------------------------------------------


def unsigned() -> Lie:
    """Return the event as it came."""
    return HonestAnswer.received


def badly_signed() -> Lie:
    """Return a well-formed signature of something else, by the right key."""

    def lie(honest: HonestAnswer) -> Event:
        signature = honest.signing_key.sign(b"something else")
        return _with_ours(honest, {honest.signing_key.key_id: signature})

    return lie


def signed_by(server_name: str, key: SigningKey | None = None) -> Lie:
    """Have another server sign, and ours not."""
    other = key or SigningKey.generate("other")

    def lie(honest: HonestAnswer) -> Event:
        return sign_event(honest.received(), server_name, other, honest.invite.room_version)

    return lie


def signed_with(key: SigningKey) -> Lie:
    """Sign with this key, whatever is published."""
    return lambda honest: honest.signed(honest.received(), key)


def signed_with_an_unpublished_key() -> Lie:
    """Sign with a key that nobody can look up."""
    return signed_with(SigningKey.generate("unpublished"))


def signed_with_an_expired_key() -> Lie:
    """Sign with an old key that had expired before the event was made."""
    return lambda honest: honest.signed(honest.received(), honest.expired_key)


def signs_the_unredacted_event() -> Lie:
    """Sign all of the event, where a signature is of what redaction leaves."""

    def lie(honest: HonestAnswer) -> Event:
        strict = honest.invite.room_version.strict_canonical_json
        whole = {k: v for k, v in honest.event.items() if k not in ("signatures", "unsigned")}
        signature = honest.signing_key.sign(canonical_json.encode(whole, strict=strict))
        return _with_ours(honest, {honest.signing_key.key_id: signature})

    return lie


def malformed_signatures(value: object) -> Lie:
    """Return this, whatever it is, as `signatures`."""
    return lambda honest: {**honest.event, "signatures": value}


def malformed_signatures_of_its_own(value: object) -> Lie:
    """Return this, whatever it is, as the entry of the invited homeserver in `signatures`."""
    return lambda honest: _with_ours(honest, value)


def adds_junk_signatures() -> Lie:
    """Sign honestly; add a signature of the inviter, of strangers, and with keys nobody knows."""

    def lie(honest: HonestAnswer) -> Event:
        junk = honest.signing_key.sign(b"junk")
        signatures = {name: dict(keys) for name, keys in honest.event["signatures"].items()}
        signatures[str(honest.invite.origin)] = {"ed25519:junk": junk}
        signatures[honest.server_name]["ed25519:junk"] = junk
        signatures[honest.server_name]["rsa:junk"] = "not even base64"
        signatures["stranger.example"] = {"ed25519:junk": junk}
        return {**honest.event, "signatures": signatures}

    return lie


def drops_signatures_of_the_inviter() -> Lie:
    """Sign honestly, and return that signature alone."""

    def lie(honest: HonestAnswer) -> Event:
        ours = honest.event["signatures"][honest.server_name]
        return {**honest.event, "signatures": {honest.server_name: ours}}

    return lie


# --- The event ----------------------------------------------------------------------------------


def changes(field: str, value: Any) -> Lie:
    """Change a field, or add it; then hash and sign what became of it, so that all else is right."""

    def lie(honest: HonestAnswer) -> Event:
        changed = {**honest.received(), field: value}
        if field in ("hashes", "signatures"):  # signing would undo it
            return {**honest.event, field: value}
        return honest.signed(changed)

    return lie


def removes(field: str) -> Lie:
    """Remove a field; then hash and sign what is left."""

    def lie(honest: HonestAnswer) -> Event:
        changed = {k: v for k, v in honest.received().items() if k != field}
        if field in ("hashes", "signatures"):
            return {k: v for k, v in honest.event.items() if k != field}
        return honest.signed(changed)

    return lie


def returns_another_event(event: Mapping[str, Any]) -> Lie:
    """Sign and return another event: one, say, that the inviter has signed at another time."""
    return lambda honest: honest.signed(event)


def adds_unsigned(value: Mapping[str, Any]) -> Lie:
    """Sign honestly, and add this to `unsigned`."""
    return lambda honest: {
        **honest.event,
        "unsigned": {**honest.event.get("unsigned", {}), **value},
    }


def _with_ours(honest: HonestAnswer, value: object) -> Event:
    signatures = {**honest.event["signatures"], honest.server_name: value}
    return {**honest.event, "signatures": signatures}
