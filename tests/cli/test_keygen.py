"""`keygen`: a new key in a new file."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from invite_client.signing_keys import read_signing_key
from tests.cli.calling import PATIENCE, Invoke


def test_prints_the_public_half_of_what_it_writes(invoke: Invoke) -> None:
    result = invoke("keygen", "new.key")
    key = read_signing_key("new.key")

    assert (0, "") == (result.code, result.err)
    assert f"{key.key_id} {key.verify_key.base64}\n" == result.out
    assert re.fullmatch(r"ed25519:a_[A-Za-z]{4}", key.key_id)
    assert 0o600 == stat.S_IMODE(Path("new.key").stat().st_mode)
    assert Path("new.key").read_text().split()[-1] not in result.out


def test_takes_the_version_that_is_given(invoke: Invoke) -> None:
    result = invoke("keygen", "new.key", "--key-version", "b_2", "--json")
    key = read_signing_key("new.key")

    assert 0 == result.code
    assert {
        "file": "new.key",
        "key_id": "ed25519:b_2",
        "public_key": key.verify_key.base64,
    } == result.json


def test_shows_the_public_half_again(invoke: Invoke) -> None:
    made = invoke("keygen", "new.key")
    shown = invoke("keygen", "--show", "new.key")
    as_json = invoke("keygen", "--show", "new.key", "--json")

    assert (0, made.out, "") == (shown.code, shown.out, shown.err)
    assert {"file", "key_id", "public_key"} == as_json.json.keys()
    assert made.out == "{key_id} {public_key}\n".format(**as_json.json)


def test_what_is_no_key_is_not_shown(invoke: Invoke) -> None:
    absent = invoke("keygen", "--show", "new.key")
    versioned = invoke("keygen", "--show", "new.key", "--key-version", "a_1")

    assert (2, 2) == (absent.code, versioned.code)
    assert "new.key cannot be read: No such file or directory" in absent.err
    assert "--key-version is for a new key" in versioned.err
    assert not Path("new.key").exists()


@pytest.mark.parametrize("gone", ["full", "closed pipe"])
def test_a_key_whose_public_half_cannot_be_printed_is_told(invoke: Invoke, gone: str) -> None:
    if gone == "full":
        if not Path("/dev/full").exists():
            pytest.skip("needs /dev/full")
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    program = [sys.executable, "-c", "from invite_client.cli import main; main()"]
    result = subprocess.run(
        [*program, "keygen", "new.key"],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    os.close(stdout)

    assert 1 == result.returncode
    assert 1 == len(result.stderr.splitlines())
    assert "new.key holds the new key, but its public half could not be printed" in result.stderr
    assert "invite-client keygen --show new.key" in result.stderr
    assert 0 == invoke("keygen", "--show", "new.key").code


def test_never_overwrites(invoke: Invoke) -> None:
    Path("new.key").write_text("in use")

    result = invoke("keygen", "new.key")

    assert (2, "") == (result.code, result.out)
    assert "exists already" in result.err
    assert "in use" == Path("new.key").read_text()
