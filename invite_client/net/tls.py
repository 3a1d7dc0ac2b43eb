"""TLS: how a certificate is checked, and how to say what is wrong with one."""

from __future__ import annotations

import errno
import os
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from invite_client.errors import InvalidInviteError, Stage, UnreachableError
from invite_client.policy import TlsPolicy

__all__ = [
    "CertificateError",
    "shown_chain",
    "unverified_names",
    "unverifying_context",
    "verifying_context",
]

_SHOWN_NAMES = 5
"""Names of a certificate that an error lists: a certificate of a hoster may have hundreds."""
_WRONG_NAME = (62, 64)
"""What OpenSSL calls a host name, and an address, that a certificate is not for (x509_vfy.h)."""

T = TypeVar("T")


def verifying_context(policy: TlsPolicy) -> ssl.SSLContext:
    """Return a context that lets no handshake succeed unless the certificate is right.

    Takes 25 ms: make it once. Raises `InvalidInviteError` if a file of authorities cannot be used, and
    `UnreachableError` if no file can be opened now.
    """
    given = policy.ca_file
    if given is None:
        _check_system_can_be_read()
    first, *others = (given,) if given is None or isinstance(given, str | os.PathLike) else given
    context = _with_ca_file(ssl.create_default_context, first)
    for ca_file in others:
        _with_ca_file(context.load_verify_locations, ca_file)
    context.minimum_version = policy.minimum_version
    # RFC 6125 § 6.4.4: a name that stands only in the subject's CN is no identity.
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = _TellingSSLObject
    return context


def unverifying_context(policy: TlsPolicy) -> ssl.SSLContext:
    """Return a context that accepts any certificate; all else is as in `verifying_context`."""
    context = verifying_context(policy)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def unverified_names(policy: TlsPolicy) -> re.Pattern[str]:
    """Return what matches, in full, the server names whose certificate is not checked."""
    globs = [
        re.escape(entry).replace(r"\*", ".*").replace(r"\?", ".") for entry in policy.unverified
    ]
    return re.compile("|".join(globs) or "(?!)", re.IGNORECASE)


def _with_ca_file(load: Callable[..., T], ca_file: str | os.PathLike[str] | None) -> T:
    try:
        return load(cafile=ca_file)
    except OSError as error:
        _check_descriptors(error)
        # What OpenSSL says of a file that holds no certificate helps nobody.
        reason = "not a PEM file of certificates"
        if not isinstance(error, ssl.SSLError):
            reason = error.strerror or reason
        raise InvalidInviteError(
            f"{ca_file} cannot be used: {reason}", field="tls.ca_file"
        ) from None


def _check_system_can_be_read() -> None:
    """OpenSSL says nothing where it cannot open the system's file: it would trust nobody, for good."""
    file = ssl.get_default_verify_paths().cafile
    try:
        if file is not None:
            os.close(os.open(file, os.O_RDONLY))
    except OSError as error:
        _check_descriptors(error)


def _check_descriptors(error: OSError) -> None:
    """Raise `UnreachableError` if an error says that there are too many open files: that passes."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise UnreachableError(
            f"the certificate authorities cannot be read: {error.strerror}",
            stage=Stage.TLS,
            retryable=True,
        ) from error


class CertificateError(ssl.SSLCertVerificationError):
    """A certificate was refused: `str()` says which name was expected, and what was there."""

    def __init__(
        self, name: str, refused: ssl.SSLCertVerificationError, chain: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(refused.errno, refused.strerror)
        leaf = chain[0] if chain else {}
        self.names: tuple[str, ...] = tuple(name for kind, name in leaf.get("subjectAltName", ()))
        self.problem: int = refused.verify_code
        self.chain: tuple[Mapping[str, Any], ...] = tuple(chain)
        # What is wrong comes first: where there is little room, the rest is cut off.
        is_named = name in self.names and self.problem not in _WRONG_NAME
        expected = "" if is_named else f", expected one for {name}"
        self._words = f"the certificate {_fault(refused, leaf)}; it is {_for(self.names)}{expected}"

    def __str__(self) -> str:
        return self._words


def shown_chain(handshake: ssl.SSLObject, *, trusted: bool) -> list[dict[str, Any]]:
    """Return what Python makes of the certificates that a server has shown, its own first.

    Those of a `trusted` one end with its authority's. Nothing is decided by what is returned: it
    may be empty.
    """
    # Python shows no certificate that it does not trust, but for this (the public methods of the
    # same names, of 3.13, return them undecoded).
    try:
        inner = handshake._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
        chain = inner.get_verified_chain() if trusted else inner.get_unverified_chain()
        return [certificate.get_info() for certificate in chain or ()]
    except (AttributeError, IndexError, TypeError, ValueError, OSError):
        return []


class _TellingSSLObject(ssl.SSLObject):
    """What handshakes are done with. OpenSSL says what is wrong, but not with what."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLCertVerificationError as error:
            name = self.server_hostname or "this server"
            raise CertificateError(name, error, shown_chain(self, trusted=False)) from None

    def getpeercert(self, binary_form: bool = False) -> None:
        """Decode nothing: asyncio's own TLS asks for every certificate, and nobody asks asyncio."""


def _for(names: tuple[str, ...]) -> str:
    if not names:
        return "for no name"
    more = len(names) - _SHOWN_NAMES
    shown = ", ".join(_printable(name) for name in names[:_SHOWN_NAMES])
    return f"for {shown}" + (f" and {more} more" if more > 0 else "")


def _fault(refused: ssl.SSLCertVerificationError, leaf: Mapping[str, Any]) -> str:
    """What OpenSSL has found first (x509_vfy.h), in words that help."""
    now = time.time()
    begins, ends = _seconds(leaf, "notBefore"), _seconds(leaf, "notAfter")
    match refused.verify_code:
        # It may also be an authority's certificate that is out of its time.
        case 10 if ends is not None and ends < now:
            return f"expired on {_date(ends)}"
        case 9 if begins is not None and begins > now:
            return f"is not valid before {_date(begins)}"
        case 18:
            return "is self-signed"
        case 2 | 19 | 20 | 21 if "issuer" in leaf:
            return f"was issued by {_issuer(leaf)}, and no trusted authority vouches for that"
        case code if code in _WRONG_NAME:
            return "has the wrong name"
        case _:
            return f"is refused: {refused.verify_message}"


def _seconds(leaf: Mapping[str, Any], field: str) -> float | None:
    try:
        return ssl.cert_time_to_seconds(leaf[field])
    except (KeyError, ValueError):
        return None


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _issuer(leaf: Mapping[str, Any]) -> str:
    fields = {name: value for part in leaf["issuer"] for name, value in part}
    name = fields.get("commonName") or fields.get("organizationName") or "nobody named"
    return f'"{_printable(name)}"'


def _printable(text: str) -> str:
    """A stranger's words, short, on one line."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:100])
