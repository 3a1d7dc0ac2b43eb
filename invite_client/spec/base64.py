"""Appendices § Unpadded Base64."""

from __future__ import annotations

import base64
import binascii

__all__ = ["decode_base64", "encode_unpadded"]


def encode_unpadded(data: bytes, *, url_safe: bool = False) -> str:
    """Return `data` in base64 without `=`; with the URL-safe alphabet if asked."""
    encoded = base64.urlsafe_b64encode(data) if url_safe else base64.b64encode(data)
    return encoded.decode("ascii").rstrip("=")


def decode_base64(text: str) -> bytes:
    """Return the bytes. Padding may be there or not; anything else out of place is a `ValueError`.

    "When decoding Base64, implementations SHOULD accept input with or without padding characters."
    """
    unpadded = text.rstrip("=")
    if len(text) - len(unpadded) > 2 or not unpadded.isascii():
        raise ValueError("not base64")
    try:
        return base64.b64decode(unpadded + "=" * (-len(unpadded) % 4), validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
