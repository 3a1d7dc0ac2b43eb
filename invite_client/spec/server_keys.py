"""A server's signing keys, as it publishes them.

Server-Server API § Retrieving server keys: `GET /_matrix/key/v2/server`. What is returned here
has been checked; whether a key was valid when an event was made is asked of it later.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from invite_client.errors import MalformedReplyError, Stage
from invite_client.spec import canonical_json
from invite_client.spec.http import Reply, Request, error_body, retry_after
from invite_client.spec.quoting import quoted
from invite_client.spec.signatures import VerifyKey, is_key_id, json_is_signed, missing_signatures

__all__ = [
    "SERVER_KEYS_REQUEST",
    "PublishedKey",
    "ServerKeys",
    "check_server_keys",
    "notary_request",
    "read_notary_reply",
    "read_server_keys",
]

SERVER_KEYS_REQUEST = Request("GET", "/_matrix/key/v2/server", what="GET server keys")
"""The request for a server's own keys. It needs no authentication."""

_MOST_CURRENT_KEYS = 20
"""Current keys of one server. It has one or two; but each must have signed the whole answer, which it
makes as long as it may: with 400 of them it would hold the process for 0.6 s."""


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """A verify key and the time up to which events may be signed with it."""

    key: VerifyKey
    """The public key and its ID."""
    valid_until: int
    """Milliseconds since the epoch: `expired_ts` of an old key, and the lesser of `valid_until_ts`
    and 7 days from the fetch for a current one."""
    old: bool = False
    """Whether it stands among `old_verify_keys`."""

    def was_valid_at(self, timestamp: int | None) -> bool:
        """Whether an event with this `origin_server_ts` (milliseconds) may be signed with it.

        None stands for a room version in which validity is ignored (versions 1 to 4).
        """
        return timestamp is None or timestamp <= self.valid_until


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """The checked keys of one server."""

    server_name: str
    """Whose keys they are."""
    keys: Mapping[str, PublishedKey]
    """Current and old ed25519 keys by key ID."""
    valid_until_ts: int
    """Milliseconds since the epoch, the lesser of what was published and 7 days from the fetch:
    after this the keys are fetched anew."""
    fetched_at: int
    """Milliseconds since the epoch."""
    response: Mapping[str, Any]
    """The signed response, from which all this can be read and checked again."""

    def verify_key(self, key_id: str, valid_at: int | None) -> VerifyKey | None:
        """Return the key if it is published and was valid at that time (milliseconds)."""
        published = self.keys.get(key_id)
        if published is None or not published.was_valid_at(valid_at):
            return None
        return published.key


def read_server_keys(
    reply: Reply, server_name: str, *, fetched_at: int, maximum_validity: float
) -> ServerKeys:
    """Check a reply to `SERVER_KEYS_REQUEST` and return the keys in it.

    `fetched_at` is in milliseconds since the epoch, `maximum_validity` in seconds. Keys of other
    algorithms, and those whose ID is not in the grammar, are left out.

    Raises `MalformedReplyError` with stage `KEYS`: not 200, not JSON, another server's keys, or
    not signed with every current key (§ Publishing Keys). A status that passes (429, 5xx) is
    `retryable`.
    """
    if reply.status != 200:
        what = f"the server answered {reply.status} when asked for its keys"
        raise _refused(what, reply, server_name, fetched_at)
    try:
        response = canonical_json.decode(reply.body)
    except canonical_json.CanonicalJsonError as error:
        raise _malformed(
            f"the server's keys are not canonical JSON: {error}", server_name
        ) from None
    return check_server_keys(
        response, server_name, fetched_at=fetched_at, maximum_validity=maximum_validity
    )


def check_server_keys(
    response: object, server_name: str, *, fetched_at: int, maximum_validity: float
) -> ServerKeys:
    """Like `read_server_keys`, from the decoded response: for notaries and stores."""
    if not isinstance(response, dict):
        raise _malformed("the server's keys are not a JSON object", server_name)

    # 1. They are the keys of the server that was asked for.
    if response.get("server_name") != server_name:
        raise _malformed(
            f"`server_name` in the keys is {quoted(response.get('server_name'))}, "
            f"expected {server_name!r}",
            server_name,
        )

    # 2. "Servers MUST use the lesser of this field and 7 days into the future."
    limit = fetched_at + int(maximum_validity * 1000)
    valid_until = min(limit, _timestamp(response, "valid_until_ts", server_name))

    # 3. Current keys; each of them must have signed the whole.
    current = {
        key.key_id: PublishedKey(key, valid_until)
        for key, _ in _ed25519_keys(response, "verify_keys", server_name)
    }
    if not current:
        raise _malformed("`verify_keys` has no usable ed25519 key", server_name)
    if len(current) > _MOST_CURRENT_KEYS:
        raise _malformed(
            f"`verify_keys` has {len(current)} ed25519 keys, {_MOST_CURRENT_KEYS} are read",
            server_name,
        )
    missing = missing_signatures(response, server_name, [known.key for known in current.values()])
    if missing:
        raise _malformed(f"the keys are not signed with {missing[0]}", server_name)

    # 4. Old keys. They need not sign; a key that is current again counts as current. One that
    # expires in the future would be a way round the 7 days.
    old = {
        key.key_id: PublishedKey(
            key, min(limit, _timestamp(entry, "expired_ts", server_name)), old=True
        )
        for key, entry in _ed25519_keys(response, "old_verify_keys", server_name)
    }
    return ServerKeys(server_name, {**old, **current}, valid_until, fetched_at, response)


def notary_request(
    server_name: str, key_ids: Collection[str], *, minimum_valid_until: int
) -> Request:
    """Ask a notary for keys of a server (§ Querying Keys Through Another Server).

    "If no key IDs are given to be queried, the notary server should query for all keys."
    `minimum_valid_until` is in milliseconds since the epoch.
    """
    wanted = {key_id: {"minimum_valid_until_ts": minimum_valid_until} for key_id in key_ids}
    body = canonical_json.encode({"server_keys": {server_name: wanted}})
    return Request("POST", "/_matrix/key/v2/query", body, what="POST key query")


def read_notary_reply(
    reply: Reply,
    server_name: str,
    *,
    notary: str,
    notary_keys: Collection[VerifyKey],
    fetched_at: int,
    maximum_validity: float,
) -> ServerKeys:
    """Check a notary's answer: signed by the notary, if its keys are given, and by the server.

    Raises `MalformedReplyError` with stage `KEYS`.
    """
    if reply.status != 200:
        what = f"the notary {notary} answered {reply.status}"
        raise _refused(what, reply, server_name, fetched_at)
    try:
        answer = canonical_json.decode(reply.body)
    except canonical_json.CanonicalJsonError as error:
        raise _malformed(
            f"the notary's answer is not canonical JSON: {error}", server_name
        ) from None
    responses = answer.get("server_keys") if isinstance(answer, dict) else None
    if not isinstance(responses, list):
        raise _malformed(f"the notary {notary} sent no list of server keys", server_name)
    found: list[ServerKeys] = []
    fault = _malformed(f"the notary {notary} knows no keys of the server", server_name)
    for response in responses:
        if not isinstance(response, dict) or response.get("server_name") != server_name:
            continue
        if notary_keys and not any(json_is_signed(response, notary, key) for key in notary_keys):
            fault = _malformed(f"the notary {notary} has not signed with a pinned key", server_name)
            continue
        try:
            found.append(
                check_server_keys(
                    response, server_name, fetched_at=fetched_at, maximum_validity=maximum_validity
                )
            )
        except MalformedReplyError as error:
            fault = error
    if not found:
        raise fault
    # Notaries keep older answers; the one that was to be valid for longest is the newest.
    return max(found, key=lambda keys: int(keys.response["valid_until_ts"]))


def _ed25519_keys(
    response: dict[str, Any], name: str, server_name: str
) -> list[tuple[VerifyKey, dict[str, Any]]]:
    entries = response.get(name, {})
    if not isinstance(entries, dict):
        raise _malformed(f"`{name}` is not an object", server_name)
    keys = []
    for key_id, entry in entries.items():
        if not is_key_id(key_id):
            continue  # Another algorithm: its entry may have any form.
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise _malformed(f"`{name}` has no `key` in {quoted(key_id)}", server_name)
        try:
            keys.append((VerifyKey.from_base64(key_id, entry["key"]), entry))
        except ValueError:
            continue  # A key that nobody can use says nothing about the others.
    return keys


def _timestamp(entry: Mapping[str, Any], name: str, server_name: str) -> int:
    value = entry.get(name)
    if type(value) is not int:
        raise _malformed(f"`{name}` in the keys is not an integer", server_name)
    return value


def _refused(message: str, reply: Reply, server_name: str, asked_at: int) -> MalformedReplyError:
    error = _malformed(message, server_name)
    error.retryable = reply.status == 429 or 500 <= reply.status < 600
    if error.retryable:
        error.retry_after = retry_after(reply, error_body(reply), asked_at / 1000)
    return error


def _malformed(message: str, server_name: str) -> MalformedReplyError:
    return MalformedReplyError(message, stage=Stage.KEYS, destination=server_name)
