"""Certificate authorities: the system's, or those of one file or several."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from invite_client import InvalidInviteError, Policy, TlsPolicy
from invite_client.net.http import HttpTransport


def authorities(*ca_files: Path) -> int:
    policy = Policy(tls=TlsPolicy(ca_file=tuple(map(str, ca_files))))
    return len(HttpTransport(policy)._context(verify=True).get_ca_certs())


def pem(path: Path) -> Path:
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


def test_every_file_counts_and_the_systems_do_not(tmp_path: Path) -> None:
    first, second = pem(tmp_path / "1.pem"), pem(tmp_path / "2.pem")

    assert 1 == authorities(first)
    assert 2 == authorities(first, second)


def test_a_file_may_be_named_by_a_path(tmp_path: Path) -> None:
    policy = Policy(tls=TlsPolicy(ca_file=pem(tmp_path / "ca.pem")))

    assert 1 == len(HttpTransport(policy)._context(verify=True).get_ca_certs())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a PEM file of certificates"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "not a PEM file of certificates"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    good, bad = pem(tmp_path / "good.pem"), tmp_path / "bad.pem"
    if content is not None:
        bad.write_bytes(content)
    for ca_files in ((bad,), (good, bad)):
        with pytest.raises(InvalidInviteError) as caught:
            authorities(*ca_files)

        assert f"tls.ca_file: {bad} cannot be used: {reason}" == caught.value.message


@pytest.mark.parametrize("nothing", ["", ()])
def test_no_file_at_all_is_not_taken_for_the_systems(nothing: str | tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"tls\.ca_file"):
        TlsPolicy(ca_file=nothing)
