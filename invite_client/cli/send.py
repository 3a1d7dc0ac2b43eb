"""`invite-client send`: one invite."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import click

from invite_client.cli.files import FileName, check_own_signature, read_invite
from invite_client.cli.options import Command, Settings, network_options
from invite_client.cli.output import InterruptionError, Output, signed_json
from invite_client.cli.signals import ending
from invite_client.client import InviteClient
from invite_client.errors import InviteError
from invite_client.observations import (
    FellBack,
    Observation,
    Replied,
    RequestSent,
    Resolved,
    RetryScheduled,
)
from invite_client.spec.invites import Invite, SignedInvite
from invite_client.spec.signatures import SigningKey

__all__ = ["command"]


@click.command("send", cls=Command)
@click.argument("request_file", metavar="REQUEST.json", type=FileName(allow_dash=True))
@click.option("--sign", is_flag=True, help="Hash and sign the event with the key first.")
@click.option(
    "--ignore-backoff",
    is_flag=True,
    help="Send also to a server that has failed of late (--store).",
)
@network_options(identity=True)
def command(request_file: str, sign: bool, ignore_backoff: bool, settings: Settings) -> int:
    """Send one invite and verify the countersignature.

    REQUEST.json (or - for standard input) is the body of a v2 request: {"room_version", "event",
    "invite_room_state"}. The event with both servers' signatures is printed on stdout; what
    happens on the way, on stderr.

    \b
    Example:
      invite-client send request.json --homeserver-config homeserver.yaml
      invite-client send - --sign --json \\
          --server-name inviter.example --signing-key signing.key < request.json
    """  # noqa: D301  # \b is click's: leave these lines as they are
    server_name, key = settings.identity()
    invite = read_invite(request_file, key if sign else None)
    check_own_signature(invite, server_name, key)
    output = settings.output
    for warning in invite.warnings:
        output.note(f"warning: {warning}", "yellow")
    progress = _Progress(output)
    try:
        sending = _send(invite, server_name, key, settings, progress, ignore_backoff=ignore_backoff)
        signed = asyncio.run(sending)
    except InviteError as error:
        return output.failure(error, event_id=invite.event_id)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise InterruptionError(progress.left_behind) from None
    output.json(signed_json(signed) if output.as_json else signed.event)
    output.note(
        f"signed by {invite.destination} with {', '.join(signed.signatures)}, verified "
        f"({signed.endpoint}, {signed.seconds:.2f} s)",
        "green",
    )
    return 0


async def _send(
    invite: Invite,
    server_name: str,
    key: SigningKey,
    settings: Settings,
    progress: _Progress,
    *,
    ignore_backoff: bool,
) -> SignedInvite:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # this is one
    with suppress(RuntimeError):  # outside the main thread, or on a system that has no such thing
        for number in ending("SIGTERM", "SIGHUP"):  # asyncio sees to SIGINT
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    async with (
        settings.open_store() as store,
        InviteClient(
            server_name, key, policy=settings.policy, store=store, observer=progress
        ) as client,
    ):
        return await client.send_invite(invite, ignore_backoff=ignore_backoff)


class _Progress:
    """An `interfaces.Observer` that says on stderr how far the invite has come."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._sent = False

    def __call__(self, event: Observation) -> None:
        self._sent = self._sent or isinstance(event, RequestSent)
        line = _in_words(event)
        if line:
            self._output.note(line)

    @property
    def left_behind(self) -> str:
        """What an interruption leaves behind."""
        if self._sent:
            return (
                "interrupted while the invite was being sent: whether it arrived is not known; "
                "sending the same request again is safe"
            )
        return "interrupted; nothing was sent"


def _in_words(event: Observation) -> str | None:
    match event:
        case Resolved(server=server):
            targets = ", ".join(map(str, server.targets))
            return f"{server.server_name} is at {targets} (step {server.step})"
        case RequestSent(request=request):
            return f"{request.what} …"
        case Replied(request=request, reply=reply, seconds=seconds):
            return f"{request.what}: {reply.status} after {seconds:.2f} s"
        case FellBack():
            return "the server does not know v2: on to v1"
        case RetryScheduled(error=error, attempt=attempt, wait=wait):
            return f"attempt {attempt}: {error}; again in {wait:.1f} s"
    return None
