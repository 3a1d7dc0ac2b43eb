"""Appendices § Unpadded Base64."""

from __future__ import annotations

import binascii

__all__ = ["decode_base64", "encode_unpadded"]

_URL_SAFE = bytes.maketrans(b"+/", b"-_")  # RFC 4648 § 5


def encode_unpadded(data: bytes, *, url_safe: bool = False) -> str:
    """Return `data` in base64 without `=`; with the URL-safe alphabet if asked."""
    encoded = binascii.b2a_base64(data, newline=False)
    return (encoded.translate(_URL_SAFE) if url_safe else encoded).decode("ascii").rstrip("=")


def decode_base64(text: str) -> bytes:
    """Return the bytes. Padding may be there or not; anything else out of place is a `ValueError`.

    "When decoding Base64, implementations SHOULD accept input with or without padding characters."
    """
    unpadded = text.rstrip("=")
    if len(text) - len(unpadded) > 2 or not unpadded.isascii():
        raise ValueError("not base64")
    try:
        return binascii.a2b_base64(unpadded + "=" * (-len(unpadded) % 4), strict_mode=True)
    except binascii.Error:
        raise ValueError("not base64") from None
