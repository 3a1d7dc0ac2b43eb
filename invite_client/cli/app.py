"""The sub-commands, and what every one of them has in common: exit codes and how it may end."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import click

import invite_client
from invite_client.cli.files import BadSettingError
from invite_client.cli.output import CannotWriteError, complain, discard, write_anything
from invite_client.errors import InvalidInviteError

__all__ = ["COMMANDS", "run"]

COMMANDS = {
    "demo": "A whole invite on loopback, offline, explained step by step.",
    "send": "Send one invite and verify the countersignature.",
    "bulk": "Send many invites, in a run that can be killed and resumed.",
    "journal": "Show or export what such a run has done.",
    "doctor": "Find out why invites to a server fail, and what to do.",
    "resolve": "Find a homeserver: every step of discovery, and why.",
    "keys": "Show a homeserver's signing keys, checked.",
    "verify": "Judge a reply offline: is it what the specification asks for?",
    "keygen": "Make a new signing key.",
    "cache": "Show or clear what is remembered of other servers.",
    "backoff": "Show or reset which servers are left alone after failures.",
}
"""Every sub-command `name` is `command` in `invite_client.cli.name`, imported when it is called."""

_ISSUES = "please report this"


class _Commands(click.Group):
    """Sub-commands that are imported when they are called, and not to be listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"invite_client.cli.{cmd_name}")
        return cast("click.Command", module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Try it: invite-client demo",
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks of bugs.")
@click.version_option(invite_client.__version__, prog_name="invite-client")
@click.pass_context
def _group(ctx: click.Context) -> None:
    """Invite users of other Matrix homeservers, and verify that their server signed.

    Results go to stdout, everything else to stderr. Exit codes: 0 all signed, 1 refused or failed,
    2 bad usage or input (nothing was sent), 3 only transient failures (try again), 130 interrupted.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code. Whatever happens, no traceback is shown."""
    write_anything()
    if sys.stdout is None:
        complain("standard output is closed; if the result is not wanted, add >/dev/null")
        return 2
    try:
        code = _group.main(list(arguments), prog_name="invite-client", standalone_mode=False)
    except click.UsageError as error:
        message = error.format_message()
        if not isinstance(error, click.BadParameter) or isinstance(error, click.MissingParameter):
            path = error.ctx.command_path if error.ctx else "invite-client"
            message = f"{message.removesuffix('.')}; see {path} --help"
        complain(message)
        return 2
    except CannotWriteError as error:
        return _not_written(error)
    except click.ClickException as error:
        complain(error.format_message(), by_option=not isinstance(error, BadSettingError))
        return error.exit_code
    except InvalidInviteError as error:
        complain(error.message)
        return 2
    except (KeyboardInterrupt, click.Abort):
        complain("interrupted")
        return 130
    except ModuleNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001  # the last resort of a program
        if isinstance(error, OSError) and _is_of_echo(error):
            return _not_written(CannotWriteError(error))
        if "--debug" in arguments:
            traceback.print_exc()
        # Its text may hold anything, a key among it; its kind and place do not.
        place = traceback.extract_tb(error.__traceback__)[-1]
        complain(
            f"a bug: {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}; "
            f"{_ISSUES}, with what `invite-client --debug …` shows"
        )
        return 1
    return code if isinstance(code, int) else 0


def _is_of_echo(error: OSError) -> bool:
    """Whether it is click that could not print its help."""
    return any(
        frame.f_code is click.echo.__code__ for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _not_written(error: CannotWriteError) -> int:
    discard(sys.stdout)
    if not error.unwanted:
        complain(error.message)
    return 1
