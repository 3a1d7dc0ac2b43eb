"""`invite-client doctor`: why do invites to a server fail, and what is to be done?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from invite_client.backoff import BackOff, BackOffMemory
from invite_client.cli.checks import check_server_name
from invite_client.cli.files import BadInputError
from invite_client.cli.options import Command, Settings, network_options
from invite_client.clock import SystemClock
from invite_client.errors import InvalidInviteError
from invite_client.spec.signatures import SigningKey

__all__ = ["command"]


@click.command("doctor", cls=Command)
@click.argument("server_name_to_examine", metavar="SERVER_NAME")
@network_options(identity=True)
def command(server_name_to_examine: str, settings: Settings) -> int:
    """Find out why invites to a server fail, and what to do about it.

    Discovery, every address, certificates, keys, endpoints and clocks are looked at, the way an
    invite goes; none is sent. With the name and key of our own server, that is looked at as others
    see it, and the remote is asked a question that we sign. The exit code is 0 if invites should
    arrive, 1 if not, 3 if what keeps them away may pass.

    \b
    Example:
      invite-client doctor matrix.org
      invite-client doctor matrix.org --homeserver-config homeserver.yaml
    """  # noqa: D301
    name, key = _identity(settings)
    return asyncio.run(_examine(server_name_to_examine, name, key, settings))


async def _examine(
    server_name: str, our_name: str | None, key: SigningKey | None, settings: Settings
) -> int:
    # Imported here: who asks for --help does not wait for the libraries of the network.
    from invite_client.cli.doctor.diagnosis import diagnose, exit_code  # noqa: PLC0415
    from invite_client.cli.doctor.examination import Examiner  # noqa: PLC0415
    from invite_client.cli.doctor.report import report_json, report_text  # noqa: PLC0415

    def note(text: str) -> None:
        settings.output.note(text, "dim")

    # Before anything is asked: a store that cannot be read must not cost what was found out.
    backoff = await _backoff(server_name, settings)
    examiner = Examiner(settings.policy, SystemClock(), note)
    theirs, ours = await examiner.examine(server_name, our_name, key)
    findings = diagnose(theirs, ours, key, backoff)
    settings.output.result(
        report_json(theirs, ours, findings), *report_text(theirs, ours, findings)
    )
    return exit_code(findings)


def _identity(settings: Settings) -> tuple[str | None, SigningKey | None]:
    """Return who we are, as far as it was said.

    Raises `BadInputError` or `InvalidInviteError` where what was said is wrong.
    """
    name = settings.server_name
    if name is None:
        return None, None
    try:
        check_server_name(name)
    except ValueError as error:
        raise BadInputError(f"--server-name: {error}") from None
    if settings.signing_key is None and settings.config is None:
        return name, None
    try:
        return settings.identity()
    except InvalidInviteError as error:
        if settings.signing_key is not None:
            raise
        # Who may read homeserver.yaml may not always read the key.
        settings.output.note(f"warning: {error.message}; it is not compared", "yellow")
        return name, None


async def _backoff(server_name: str, settings: Settings) -> BackOff | None:
    """Return what the store knows of failures, if there is one. Raises `BadInputError`."""
    if settings.store is None:
        return None
    try:
        await asyncio.to_thread(Path(settings.store).stat)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInputError(f"--store: {settings.store} cannot be read: {error.strerror}") from None
    async with settings.existing_store() as store:
        return await BackOffMemory(store, settings.policy.backoff, SystemClock()).read(server_name)
