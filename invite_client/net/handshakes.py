"""What is seen in a TLS handshake, for diagnoses: who they are made for wants to know more than why."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from invite_client.spec.discovery import Target

__all__ = ["Certificate", "Handshake"]

_SHOWN_NAMES = 100
"""Names of one certificate that are kept: more are nobody's to read."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says. It need not be true: it is shown also where nobody vouches for it."""

    names: tuple[str, ...]
    """The DNS names and IP addresses that it is for."""
    subject: str
    """Whose it is, as far as it says so."""
    issuer: str
    """Who has signed it."""
    not_before: float | None
    """Seconds since the epoch from when on it is valid."""
    not_after: float | None
    """Seconds since the epoch until when it is valid."""

    @classmethod
    def read(cls, info: Mapping[str, Any]) -> Self:
        """Read what Python's `ssl` makes of a certificate."""
        names = [str(name) for _, name in info.get("subjectAltName", ())]
        return cls(
            names=tuple(names[:_SHOWN_NAMES]),
            subject=_name(info.get("subject", ())),
            issuer=_name(info.get("issuer", ())),
            not_before=_seconds(info.get("notBefore")),
            not_after=_seconds(info.get("notAfter")),
        )


@dataclass(frozen=True, slots=True)
class Handshake:
    """One handshake, and how it ended."""

    target: Target
    """What was to be connected to."""
    address: str | None
    """The socket address that was connected to."""
    tls_name: str
    """Whose certificate was expected."""
    checked: bool
    """Whether the certificate was checked."""
    version: str | None
    """The version of TLS; None if the handshake failed."""
    chain: tuple[Certificate, ...]
    """The certificates: up to the authority that is trusted, if there is one, else what was shown."""
    problem: int | None = None
    """Why the certificate was refused: OpenSSL's number (x509_vfy.h)."""


def _name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    fields = {name: value for part in parts for name, value in part}
    return fields.get("commonName") or fields.get("organizationName") or ""


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(ssl.cert_time_to_seconds(text))
    except ValueError:
        return None
