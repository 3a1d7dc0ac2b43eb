"""The certificates that a loopback homeserver can show, right ones and wrong ones."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Literal

import trustme

__all__ = ["COMMON_NAME_ONLY", "EXPIRED", "RIGHT", "SELF_SIGNED", "UNKNOWN_CA", "Certificate"]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a server shows. Without arguments it is the right one."""

    names: tuple[str, ...] | None = None
    """DNS names (``*.example.org`` too) and IP addresses; None stands for the right name."""
    issuer: Literal["network", "unknown", "itself"] = "network"
    """The authority that the network's clients trust, another one, or none."""
    expired: bool = False
    common_name_only: bool = False
    """Whether the name stands in the subject's CN only, where RFC 6125 does not look for it."""

    @classmethod
    def of(cls, *names: str) -> Certificate:
        """Return a certificate for these names."""
        return cls(names)

    def context(self, ca: trustme.CA, right_name: str) -> ssl.SSLContext:
        """Return a server's TLS context that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        if self.issuer == "itself":
            # An authority's own certificate is signed by itself, like those that people make.
            alone = trustme.CA(organization_name=right_name)
            with alone.private_key_pem.tempfile() as key, alone.cert_pem.tempfile() as cert:
                context.load_cert_chain(cert, key)
            return context
        issuer = ca if self.issuer == "network" else trustme.CA()
        names = (right_name,) if self.names is None else self.names
        now = datetime.now(timezone.utc)
        issuer.issue_cert(
            # Alternative names there must be, or the certificate is malformed: of another kind.
            *(("postmaster@remote.example",) if self.common_name_only else names),
            common_name=names[0],
            not_before=now - timedelta(days=60),
            not_after=now + timedelta(days=-30 if self.expired else 30),
        ).configure_cert(context)
        return context


RIGHT = Certificate()
EXPIRED = Certificate(expired=True)
SELF_SIGNED = Certificate(issuer="itself")
UNKNOWN_CA = Certificate(issuer="unknown")
COMMON_NAME_ONLY = Certificate(common_name_only=True)
