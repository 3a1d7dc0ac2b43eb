"""`invite-client verify`: is this reply what the specification asks for? Nothing is sent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from invite_client.cli.files import BadInputError, FileName, read_bytes, read_invite, read_json
from invite_client.cli.output import Output, utc
from invite_client.errors import (
    CountersignatureError,
    CountersignatureProblem,
    InviteError,
    MalformedReplyError,
    Stage,
)
from invite_client.policy import KeyPolicy
from invite_client.spec import canonical_json, countersignature
from invite_client.spec.http import Reply
from invite_client.spec.invites import V1, V2, Endpoint, Invite
from invite_client.spec.server_keys import ServerKeys, check_server_keys

__all__ = ["command"]


@click.command("verify")
@click.argument("request_file", metavar="REQUEST.json", type=FileName(allow_dash=True))
@click.argument("reply_file", metavar="REPLY.json", type=FileName(allow_dash=True))
@click.option(
    "--keys",
    "keys_file",
    metavar="KEYS.json",
    type=FileName(allow_dash=True),
    help="The keys of the invited user's server, as saved by: keys --json SERVER_NAME.",
)
@click.option(
    "--endpoint",
    type=click.Choice(["v2", "v1"]),
    help="Which endpoint answered.  [default: by the form of the reply]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    request_file: str,
    reply_file: str,
    keys_file: str | None,
    endpoint: str | None,
    as_json: bool,
) -> int:
    """Judge a reply offline: is it what the specification asks for?

    REQUEST.json is the v2 request body that was sent, REPLY.json the body of the answer. Without
    --keys everything but the signatures is checked, and the exit code is 3, not 0: nothing is
    wrong, but nothing is verified either. A key counts as fetched when its file was last changed.

    \b
    Example:
      invite-client verify request.json reply.json --keys keys.json

    \b
    The keys, from the server itself:
      invite-client keys --json remote.example > keys.json
    """  # noqa: D301
    if [request_file, reply_file, keys_file].count("-") > 1:
        raise click.UsageError("only one of the files can be standard input")
    output = Output(as_json=as_json)
    invite = read_invite(request_file)
    reply = Reply(200, read_bytes(reply_file))
    keys = _read_keys(keys_file, invite) if keys_file is not None else None
    try:
        return _judge(invite, reply, keys, endpoint, output)
    except InviteError as error:
        # Nothing was sent, and whether it could be sent again is not what was asked.
        return output.failure(error, f"{error}.", verified=False, event_id=invite.event_id)


def _judge(
    invite: Invite,
    reply: Reply,
    keys: ServerKeys | None,
    name: str | None,
    output: Output,
) -> int:
    def passed(text: str) -> None:
        if not output.as_json:
            output.result(None, f"✓ {text}")

    passed(f"the request is an invite of {invite.target}, hashed and signed by {invite.origin}")
    endpoint = _endpoint(name, reply, invite)
    returned = endpoint.read_event(reply)
    passed(f"the reply is one of the {endpoint.name} endpoint: {endpoint.shape}")
    key_ids = countersignature.key_ids(invite, returned)
    passed("the returned event is the one that was sent; only signatures were added")
    signers = ", ".join(key_ids)
    if keys is None:
        # The same problem as if the keys could not be fetched: not refused, and not verified.
        raise CountersignatureError(
            f"it is not checked whether {invite.destination} really signed with {signers}; "
            "give its keys with --keys",
            problem=CountersignatureProblem.KEYS_UNAVAILABLE,
            stage=Stage.KEYS,
            retryable=True,
            destination=str(invite.destination),
        )
    verified = countersignature.verify(invite, returned, keys)
    event = countersignature.merge(invite, verified)
    for key_id in verified:
        until = utc(keys.keys[key_id].valid_until)
        passed(f"{invite.destination} signed it with {key_id}, valid for events until {until}")
    output.result(
        {
            "verified": True,
            "event_id": invite.event_id,
            "destination": str(invite.destination),
            "endpoint": endpoint.name,
            "signatures": verified,
            "event": event,
        },
        "verified",
    )
    return 0


def _endpoint(name: str | None, reply: Reply, invite: Invite) -> Endpoint:
    if name is None:
        try:
            is_v1 = isinstance(canonical_json.decode(reply.body, strict=False), list)
        except canonical_json.CanonicalJsonError:
            is_v1 = False  # v2 will say what is wrong with it
    else:
        is_v1 = name == V1.name
    if is_v1 and not invite.room_version.v1_invite_fallback:
        raise MalformedReplyError(
            f"the reply is one of the v1 endpoint, which is never asked for room version "
            f"{invite.room_version}"
        )
    return V1 if is_v1 else V2


def _read_keys(path: str, invite: Invite) -> ServerKeys:
    response: Any = read_json(path)
    fetched_at = time.time() if path == "-" else Path(path).stat().st_mtime
    try:
        return check_server_keys(
            response,
            str(invite.destination),
            fetched_at=int(fetched_at * 1000),
            maximum_validity=KeyPolicy().maximum_validity,
        )
    except InviteError as error:
        raise BadInputError(f"{path}: {error.message}") from None
