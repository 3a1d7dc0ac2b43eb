"""Base64 is written without padding, and read with or without it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.spec.base64 import decode_base64, encode_unpadded

# Appendices § Unpadded Base64.
EXAMPLES = {
    b"": "",
    b"f": "Zg",
    b"fo": "Zm8",
    b"foo": "Zm9v",
    b"foob": "Zm9vYg",
    b"fooba": "Zm9vYmE",
    b"foobar": "Zm9vYmFy",
}


@pytest.mark.parametrize(("data", "text"), EXAMPLES.items())
def test_the_examples_of_the_specification(data: bytes, text: str) -> None:
    assert text == encode_unpadded(data)
    assert data == decode_base64(text)


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AA===",
        "AA==AA",
        "A A",
        "AA\n",
        "AA!A",
        "-_-_",
        "Ａ",
        "\ud800",
        "=AAA",
    ],
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not base64$"):
        decode_base64(text)


@pytest.mark.parametrize("text", ["Zg", "Zg=", "Zg=="])
def test_padding_is_accepted(text: str) -> None:
    assert b"f" == decode_base64(text)


def test_the_url_safe_alphabet_is_written_on_request() -> None:
    assert "+/8" == encode_unpadded(b"\xfb\xff")
    assert "-_8" == encode_unpadded(b"\xfb\xff", url_safe=True)


@given(st.binary())
def test_what_was_encoded_decodes(data: bytes) -> None:
    assert data == decode_base64(encode_unpadded(data))


@given(st.text())
def test_any_text_is_bytes_or_a_value_error(text: str) -> None:
    try:
        assert isinstance(decode_base64(text), bytes)
    except ValueError as error:
        assert "not base64" == str(error)
