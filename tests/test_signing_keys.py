"""A signing key file is read as homeservers keep it, and no error shows what is in it."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest
import signedjson.key
from hypothesis import given
from hypothesis import strategies as st

from invite_client.errors import InvalidInviteError
from invite_client.signing_keys import read_signing_key, write_signing_key
from invite_client.spec.signatures import SigningKey

# Appendices § Cryptographic Test Vectors; there with a last bit that does not count.
SEED = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA0"
LINE = f"ed25519 a_1 {SEED}"
KEY = SigningKey.from_seed("a_1", SEED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signing.key"


def refusal(path: Path) -> str:
    with pytest.raises(InvalidInviteError) as caught:
        read_signing_key(path)
    assert "signing key" == caught.value.field
    assert str(path) in str(caught.value)
    # Neither the error nor what it was made from shows the secret: a log may hold both.
    error: BaseException | None = caught.value
    while error is not None:
        assert SEED[:10] not in f"{error} {error!r}"
        error = error.__cause__
    assert SEED[:10] not in caught.value.diagnosis()
    return str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        SEED,
        f"a_1 {SEED}",
        f"ed25519 {SEED}",
        f"ed25519 a_1 {SEED} more",
        f"ed25519 a-1 {SEED}",
        f"ed25519:a_1 {SEED}",
        f"curve25519 a_1 {SEED}",
        f"ed25519 a_1 {SEED[:-1]}",
        f"ed25519 a_1 {SEED}A",
        f"ed25519 a_1 {SEED[:20]}!{SEED[20:]}",
        f"ed25519 {SEED} a_1",
        "ed25519 a_1",
        "\x00",
    ],
)
def test_a_malformed_line_is_named_and_not_shown(path: Path, line: str) -> None:
    path.write_text(f"# our key\n\n{line}\n")

    message = refusal(path)

    assert f"{path}, line 3" in message
    assert "expected: ed25519 <version> <unpadded base64 seed>" in message


@pytest.mark.parametrize("content", ["", "\n\n", "# ed25519\n", "  \r\n\t\r\n"])
def test_a_file_without_a_key_is_refused(path: Path, content: str) -> None:
    path.write_text(content)

    assert "holds no key" in refusal(path)


def test_a_file_that_is_not_text_is_refused(path: Path) -> None:
    path.write_bytes(LINE.encode() + b"\xff\xfe\x00")

    assert "is not a text file" in refusal(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_a_file_without_an_end_is_refused() -> None:
    assert "is longer than 65536 bytes" in refusal(Path("/dev/zero"))


def test_a_file_that_is_not_there_is_refused(path: Path) -> None:
    assert "cannot be read: No such file" in refusal(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        LINE,
        LINE + "\n",
        LINE + "\r\n",
        LINE + "=\n",
        f"\n# comment\n  # another\n\t{LINE}  \n",
        "\ufeff" + LINE,
        LINE.replace(" ", "\t"),
        f"{LINE}\ned25519 a_2 {'A' * 43}\n",
        f"{LINE}\njunk\n",
    ],
)
def test_the_first_key_of_a_file_is_read(path: Path, content: str) -> None:
    path.write_bytes(content.encode())
    for given_path in (path, str(path)):
        key = read_signing_key(given_path)

        assert KEY.verify_key == key.verify_key
        assert "ed25519:a_1" == key.key_id


@given(content=st.text() | st.binary())
def test_any_file_is_a_key_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.key"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))

    refusal(path)


def test_what_was_written_is_read_here_and_by_homeservers(path: Path) -> None:
    write_signing_key(path, KEY)

    assert LINE + "\n" == path.read_text()
    assert KEY.verify_key == read_signing_key(path).verify_key
    (theirs,) = signedjson.key.read_signing_keys(path.read_text().splitlines())
    assert ("ed25519", "a_1") == (theirs.alg, theirs.version)


def test_only_the_owner_can_read_what_was_written(path: Path) -> None:
    mask = os.umask(0)
    try:
        write_signing_key(path, KEY)
    finally:
        os.umask(mask)

    assert 0o600 == stat.S_IMODE(path.stat().st_mode)


def refused_to_write(path: Path) -> str:
    with pytest.raises(InvalidInviteError) as caught:
        write_signing_key(path, KEY)
    assert "signing key" == caught.value.field
    assert SEED not in str(caught.value)
    return str(caught.value)


def test_no_file_is_overwritten(path: Path) -> None:
    path.write_text("the key in use")

    assert "exists already" in refused_to_write(path)
    assert "the key in use" == path.read_text()


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")

    assert "exists already" in refused_to_write(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_is_not_there_is_reported(tmp_path: Path) -> None:
    assert "cannot be written: No such file" in refused_to_write(tmp_path / "no" / "signing.key")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(os, "open", lambda *_: full)

    assert "cannot be written: No space left on device" in refused_to_write(path)


def test_a_part_of_a_key_is_not_left_behind(path: Path) -> None:
    """It would be no key, and would not be overwritten by the next one either."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        told = refused_to_write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert "cannot be written: File too large" in told
    assert not path.exists()
