"""`invite-client keygen`: a new signing key."""

from __future__ import annotations

import secrets
import string
import sys

import click

from invite_client.cli.files import FileName
from invite_client.cli.output import CannotWriteError, Output, discard
from invite_client.signing_keys import read_signing_key, write_signing_key
from invite_client.spec.signatures import SigningKey

__all__ = ["command"]


@click.command("keygen")
@click.argument("key_file", metavar="FILE", type=FileName())
@click.option(
    "--key-version",
    metavar="VERSION",
    help="The part of the key ID behind ed25519: (letters, digits, _).  [default: random]",
)
@click.option("--show", is_flag=True, help="Only print the public key of FILE, which must exist.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(key_file: str, key_version: str | None, show: bool, as_json: bool) -> int:
    """Make a new signing key, in the one-line format that homeservers keep.

    FILE must not exist; only its owner can read it. The key ID and the public key are printed.

    \b
    Example:
      invite-client keygen signing.key
      invite-client keygen signing.key --key-version a_2
      invite-client keygen --show signing.key
    """  # noqa: D301
    output = Output(as_json=as_json)
    if show:
        if key_version is not None:
            raise click.UsageError("--key-version is for a new key, not for one to --show")
        _print(output, key_file, read_signing_key(key_file))
        return 0
    if key_version is None:
        # A server that gets a new key under an old ID is not believed by those who remember it.
        key_version = "a_" + "".join(secrets.choice(string.ascii_letters) for _ in range(4))
    try:
        key = SigningKey.generate(key_version)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--key-version") from None
    write_signing_key(key_file, key)
    try:
        _print(output, key_file, key)
    except CannotWriteError as error:
        discard(sys.stdout)
        raise click.ClickException(
            f"{key_file} holds the new key, but its public half could not be printed: "
            f"{error.reason}; it is shown by: invite-client keygen --show {key_file}"
        ) from None
    return 0


def _print(output: Output, key_file: str, key: SigningKey) -> None:
    public = key.verify_key
    value = {"file": key_file, "key_id": public.key_id, "public_key": public.base64}
    output.result(value, str(public))
