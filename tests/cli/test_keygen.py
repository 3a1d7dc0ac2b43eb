"""`keygen`: a new key in a new file."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from invite_client.signing_keys import read_signing_key
from tests.cli.calling import Invoke


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


def test_never_overwrites(invoke: Invoke) -> None:
    Path("new.key").write_text("in use")

    result = invoke("keygen", "new.key")

    assert (2, "") == (result.code, result.out)
    assert "exists already" in result.err
    assert "in use" == Path("new.key").read_text()
