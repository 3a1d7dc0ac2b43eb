"""The Authorization header says who sends, and a signature over the very bytes that are sent."""

from __future__ import annotations

import json
import re

import pytest
import signedjson.key
import signedjson.sign
from hypothesis import given
from hypothesis import strategies as st

from invite_client.spec import canonical_json
from invite_client.spec.signatures import SigningKey, json_is_signed
from invite_client.spec.x_matrix import XMatrix, authorize, parse_authorization, signed_bytes

KEY = SigningKey.generate("key1")
ORIGIN, DESTINATION = "origin.hs.example.com", "destination.hs.example.com:8448"
PUBLIC = KEY.verify_key
EXPECTED = XMatrix("a.example", "b.example:8448", "ed25519:k", "QUJD")

names = st.from_regex(
    r"[A-Za-z0-9.-]{1,30}(:[0-9]{1,5})?|\[[0-9a-f:.]{2,20}\](:[0-9]{1,5})?", fullmatch=True
)
text = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
bodies = st.none() | st.dictionaries(
    text, st.none() | st.integers(-9, 9) | text | st.lists(text, max_size=2), max_size=4
)


# --- Reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "",
        "X-Matrix",
        "X-Matrix ",
        "X-Matrix,origin=a,key=k,sig=s",
        "X-Matrix\torigin=a,key=k,sig=s",
        "Bearer origin=a,key=k,sig=s",
        " X-Matrix origin=a,key=k,sig=s",
        "X-Matrixorigin=a,key=k,sig=s",
        "X-Matrix key=k,sig=s",
        "X-Matrix origin=a,sig=s",
        "X-Matrix origin=a,key=k",
        "X-Matrix origin=a,key=k,sig=s;",
        "X-Matrix origin=a key=k sig=s",
        "X-Matrix origin=a,key=k,sig=",
        "X-Matrix origin=a,key=k,=s",
        "X-Matrix origin=a,key=k,sig",
        'X-Matrix origin="a,key=k,sig=s',
        'X-Matrix origin="a\\",key=k,sig=s',
        'X-Matrix origin="a"b,key=k,sig=s',
        "X-Matrix origin=a,origin=b,key=k,sig=s",
        "X-Matrix origin=a,ORIGIN=a,key=k,sig=s",
        "X-Matrix origin=é,key=k,sig=s",
        "X-Matrix origin=a,key=k,sig=s\n",
        "X-Matrix origin=a,key=k,sig=s\r\nX: y",
        "X-Matrix or igin=a,key=k,sig=s",
    ],
)
def test_a_malformed_header_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match=r"^the Authorization header "):
        parse_authorization(header)


@pytest.mark.parametrize(
    "header",
    [
        'X-Matrix origin="a.example",destination="b.example:8448",key="ed25519:k",sig="QUJD"',
        # "the recipient should allow colons … without requiring … quotes"
        "X-Matrix origin=a.example,destination=b.example:8448,key=ed25519:k,sig=QUJD",
        # "The names are case insensitive and order does not matter", and so is the scheme
        "x-mATRIX SIG=QUJD,Key=ed25519:k,Destination=b.example:8448,oRIGIN=a.example",
        # "one or more spaces", "Zero or more spaces and tabs around each comma"
        'X-Matrix   origin="a.example" \t, destination="b.example:8448"\t,\tkey="ed25519:k",  sig="QUJD" ',
        # "Quoted values may include backslash-escaped characters"
        'X-Matrix origin="\\a.ex\\ample",destination="b.example\\:8448",key="ed25519\\:k",sig="QUJD"',
        # "Unknown parameters are ignored"
        'X-Matrix a=b,origin=a.example,destination="b.example:8448",key=ed25519:k,x="\\",sig=x",sig=QUJD',
        # RFC 9110 § 5.6.1.2: empty elements of a list, § 11.2: white space round the equals sign
        "X-Matrix ,, origin = a.example,,destination=b.example:8448, ,key=ed25519:k,sig=QUJD,",
    ],
)
def test_the_header_is_read_leniently(header: str) -> None:
    assert EXPECTED == parse_authorization(header)


def test_the_example_of_the_specification() -> None:
    header = (
        'X-Matrix origin="origin.hs.example.com",destination="destination.hs.example.com",'
        'key="ed25519:key1",sig="ABCDEF..."'
    )

    assert XMatrix(
        "origin.hs.example.com", "destination.hs.example.com", "ed25519:key1", "ABCDEF..."
    ) == parse_authorization(header)


def test_older_senders_leave_the_destination_out() -> None:
    parsed = parse_authorization('X-Matrix origin="a",key="k",sig="QQ=="')

    assert XMatrix("a", None, "k", "QQ==") == parsed


def test_a_parameter_that_stands_twice_is_named() -> None:
    with pytest.raises(ValueError, match=r"^the Authorization header names origin twice$"):
        parse_authorization("X-Matrix origin=a,ORIGIN=b,key=k,sig=s")


def test_escapes_are_undone_once() -> None:
    parsed = parse_authorization('X-Matrix origin="a\\\\\\"b, c",key="",sig=QQ==')

    assert XMatrix('a\\"b, c', None, "", "QQ==") == parsed


@given(
    st.text(st.characters()) | st.text(alphabet='originkeysgdta="\\, \t:').map("X-Matrix ".__add__)
)
def test_any_text_is_a_header_or_a_value_error(header: str) -> None:
    try:
        assert isinstance(parse_authorization(header), XMatrix)
    except ValueError as error:
        assert "the Authorization header" in str(error)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("junk", [" ", ",", "\\", '"', 'a="', "a=b,", "\\a", "a", "= ", " ,"])
def test_a_long_header_takes_no_long_time(junk: str) -> None:
    for start in ("X-Matrix ", 'X-Matrix origin="', "X-Matrix origin=a", "X-Matrix origin"):
        with pytest.raises(ValueError):
            parse_authorization(start + junk * 50_000 + "\n")


# --- Writing ------------------------------------------------------------------------------------


def test_the_header_is_written_for_older_servers_too() -> None:
    header = authorize("PUT", "/x", origin=ORIGIN, destination=DESTINATION, key=KEY, body=b"{}")

    assert re.fullmatch(
        rf'X-Matrix origin="{re.escape(ORIGIN)}",destination="{re.escape(DESTINATION)}",'
        r'key="ed25519:key1",sig="[A-Za-z0-9+/]{86}"',
        header,
    )


def test_the_body_is_signed_as_it_is_sent() -> None:
    body = '{"a":"日","b":[1,{}]}'.encode()

    assert (
        b'{"content":' + body + b',"destination":"b.example","method":"PUT","origin":"a.example",'
        b'"uri":"/_matrix/x/%21r?a=b"}'
        == signed_bytes("PUT", "/_matrix/x/%21r?a=b", "a.example", "b.example", body)
    )


def test_a_request_without_a_body_has_no_content() -> None:
    assert b'{"destination":"b","method":"GET","origin":"a","uri":"/x"}' == signed_bytes(
        "GET", "/x", "a", "b", None
    )


@given(st.sampled_from(["GET", "PUT"]), text, names, names, bodies)
def test_the_signature_is_one_by_the_algorithm_of_the_specification(
    method: str, uri: str, origin: str, destination: str, content: dict[str, object] | None
) -> None:
    body = None if content is None else canonical_json.encode(content)
    header = authorize(method, uri, origin=origin, destination=destination, key=KEY, body=body)
    parsed = parse_authorization(header)

    request = {"method": method, "uri": uri, "origin": origin, "destination": destination}
    if content is not None:
        request["content"] = content  # type: ignore[assignment]
    theirs = signedjson.key.decode_signing_key_base64("ed25519", "key1", KEY.to_line().split()[2])
    signed = signedjson.sign.sign_json(dict(request), origin, theirs)
    signature = signed["signatures"][origin]["ed25519:key1"]
    assert XMatrix(origin, destination, "ed25519:key1", signature) == parsed
    assert json_is_signed(signed, origin, PUBLIC)
    assert request == json.loads(signed_bytes(method, uri, origin, destination, body))


@given(bodies, bodies)
def test_another_body_has_another_signature(
    one: dict[str, object] | None, other: dict[str, object] | None
) -> None:
    def signature(content: dict[str, object] | None) -> str:
        body = None if content is None else canonical_json.encode(content)
        return parse_authorization(
            authorize("PUT", "/x", origin="a", destination="b", key=KEY, body=body)
        ).signature

    assert (one == other) == (signature(one) == signature(other))
