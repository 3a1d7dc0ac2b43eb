"""A server name is in the grammar, or it is refused before anything is looked up."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.errors import InvalidInviteError
from invite_client.spec.server_names import (
    ServerName,
    check_user_id,
    parse_server_name,
    server_of,
)


def refusal(text: str) -> str:
    with pytest.raises(InvalidInviteError, match=r"^server name: ") as caught:
        parse_server_name(text)
    assert "server name" == caught.value.field
    return str(caught.value)


# --- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        ":8448",
        "matrix.org:",
        "https://matrix.org",
        "//matrix.org",
        "matrix.org/path",
        "matrix.org?x",
        "matrix.org#x",
        "user@matrix.org",
        "user:secret@matrix.org",
        "matrix.org:8448:8448",
        " matrix.org",
        "matrix.org ",
        "matrix .org",
        "matrix.org\n",
        "matrix.org\r\nHost: other.example",
        "matrix.org\0",
        "matrix\t.org",
        "under_score.example",
        "*.example",
        "bücher.example",
        "matrix。org",
        "ｍatrix.org",
        "matrix.org:٨٤٤٨",
        "matrix%2Eorg",
        "\ud800.example",
        '"matrix.org"',
    ],
)
def test_what_is_outside_the_grammar_is_refused(text: str) -> None:
    assert "expected hostname[:port]" in refusal(text)


@pytest.mark.parametrize("port", ["0", "00000", "65536", "99999"])
def test_a_port_that_there_is_not_is_refused(port: str) -> None:
    assert "between 1 and 65535" in refusal(f"matrix.org:{port}")


@pytest.mark.parametrize(
    "port", ["", "-1", "+1", " 1", "1 ", "1.0", "0x1", "123456", "008448", "a"]
)
def test_a_port_has_one_to_five_digits(port: str) -> None:
    refusal(f"matrix.org:{port}")


@pytest.mark.parametrize(
    "text",
    [
        "1.2.3.256",
        "1.2.3.4.5",
        "999.1.1.1",
        "01.2.3.4",
        "1.2.3.4.",
        "1.2.3",
        "127.1",
        "127.0.0.1.",
        "2130706433",
        "a.1",
        "matrix.123.",
    ],
)
def test_what_looks_like_an_ipv4_address_must_be_one(text: str) -> None:
    assert "is not an IP address" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "2001:db8::1",
        "::1",
        "[::1",
        "::1]",
        "[]",
        "[:]",
        "[::1]8448",
        "[::1]:",
        "[::1%eth0]",
        "[fe80::1%25eth0]",
        "[1::2::3]",
        "[1.2.3.4]",
        "[12345::]",
        "[v1.a:b]",
        "[::ffff:1.2.3.256]",
        "[[::1]]",
        "[" + "0:" * 22 + "00]",
    ],
)
def test_an_ipv6_address_is_one_and_stands_in_brackets(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("text", [".", "..", ".a", "a..b", "a..", "a" * 64, f"a.{'b' * 64}.c"])
def test_a_label_has_1_to_63_characters(text: str) -> None:
    assert "between dots there must be 1 to 63 characters" in refusal(text)


def test_a_host_name_has_255_characters_at_most() -> None:
    longest = ".".join(["a" * 63] * 4)

    assert 255 == len(parse_server_name(f"{longest}:8448").hostname)
    refusal(f"{longest}.")


def test_a_refusal_quotes_little_of_what_it_refuses_on_one_line() -> None:
    for text in ("x" * 100_000, "a\nb", "a\rb", "a\x1b[2Jb"):
        words = refusal(text)

        assert len(words) < 250
        assert words.isprintable()


# --- What is read -------------------------------------------------------------------------------

# Appendices § Server Name, "Examples of valid server names".
EXAMPLES = {
    "matrix.org": ServerName("matrix.org", "matrix.org", None, None),
    "matrix.org:8888": ServerName("matrix.org:8888", "matrix.org", 8888, None),
    "1.2.3.4": ServerName("1.2.3.4", "1.2.3.4", None, IPv4Address("1.2.3.4")),
    "1.2.3.4:1234": ServerName("1.2.3.4:1234", "1.2.3.4", 1234, IPv4Address("1.2.3.4")),
    "[1234:5678::abcd]": ServerName(
        "[1234:5678::abcd]", "[1234:5678::abcd]", None, IPv6Address("1234:5678::abcd")
    ),
    "[1234:5678::abcd]:5678": ServerName(
        "[1234:5678::abcd]:5678", "[1234:5678::abcd]", 5678, IPv6Address("1234:5678::abcd")
    ),
}


@pytest.mark.parametrize(("text", "name"), EXAMPLES.items())
def test_the_examples_of_the_specification(text: str, name: ServerName) -> None:
    assert name == parse_server_name(text)
    assert text == str(name)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("Matrix.ORG", "matrix.org"),
        ("matrix.org.", "matrix.org."),
        ("localhost:1", "localhost"),
        ("1234.example:65535", "1234.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("-a-.example", "-a-.example"),
        ("1.2.3.4", "1.2.3.4"),
        ("[2001:DB8:0::0:1]:1", "2001:db8::1"),
        ("[::ffff:1.2.3.4]", "::ffff:102:304"),
        ("[::]", "::"),
        # The longest that there is: 45 characters.
        ("[0000:0000:0000:0000:0000:FFFF:255.255.255.255]:1", "::ffff:ffff:ffff"),
    ],
)
def test_what_is_looked_up_is_in_lower_case_and_bare(text: str, host: str) -> None:
    name = parse_server_name(text)

    assert text == str(name) == name.text
    assert ip_address(host) == name.ip if name.ip else host == name.host
    assert name.host.lower() == name.host


def test_names_that_differ_in_spelling_are_different_names() -> None:
    assert parse_server_name("matrix.org") != parse_server_name("MATRIX.org")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a.example", "A.Example", True),
        ("a.example", "a.example.", True),
        ("a.example:1", "A.example.:1", True),
        ("[::1]", "[0:0:0:0:0:0:0:1]", True),
        ("a.example", "b.example", False),
        ("a.example", "a.example:8448", False),
        ("a.example:1", "a.example:2", False),
    ],
)
def test_but_may_lead_to_one_server(one: str, other: str, expected: bool) -> None:
    assert expected is parse_server_name(one).leads_to(parse_server_name(other))
    assert expected is parse_server_name(other).leads_to(parse_server_name(one))


names = st.from_regex(r"[a-zA-Z0-9.-]{1,20}(:[0-9]{1,5})?|\[[0-9a-f:.]{2,9}\]", fullmatch=True)


@given(st.text(st.characters()) | names | names.map(lambda name: name + "\n"))
def test_any_text_is_a_server_name_or_an_error_of_ours(text: str) -> None:
    try:
        name = parse_server_name(text)
    except InvalidInviteError:
        return
    port = "" if name.port is None else ":" + text.rpartition(":")[2]
    assert text == str(name) == name.hostname + port
    assert name == parse_server_name(str(name))
    assert name.leads_to(name)
    assert name.host
    assert name.port is None or 1 <= name.port <= 65_535


# --- User IDs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user_id", "server"),
    [
        ("@bob:matrix.org", "matrix.org"),
        ("@bob:matrix.org:8448", "matrix.org:8448"),
        ("@bob:[::1]:8448", "[::1]:8448"),
        # § Historical User IDs: "any legal non-surrogate Unicode code points except : and NUL,
        # including other control characters and the empty string".
        ("@:matrix.org", "matrix.org"),
        ("@Bob Smith/+=?#%\n\x1b:matrix.org", "matrix.org"),
        ("@日本語\U0001f431:matrix.org", "matrix.org"),
        ("@@bob:matrix.org", "matrix.org"),
    ],
)
def test_the_server_stands_behind_the_first_colon(user_id: str, server: str) -> None:
    assert server == str(check_user_id(user_id, field="event.sender"))
    assert server == str(server_of(user_id, field="event.sender"))


@pytest.mark.parametrize(
    "user_id",
    [
        None,
        1,
        True,
        [],
        {},
        b"@bob:matrix.org",
        pytest.param(10**5000, id="a number too long to print"),
        "",
        "@",
        "bob:matrix.org",
        "#bob:matrix.org",
        "!bob:matrix.org",
        "$bob:matrix.org",
        "@bob",
        "@bob:",
        "@bob:under_score",
        "@bob:matrix.org:",
        "@bob:b:matrix.org",
        "@bob:matrix.org\n",
        "@b\0b:matrix.org",
        "@b\ud800b:matrix.org",
        "@" + "b" * 244 + ":matrix.org",
        "@" + "é" * 122 + "b:matrix.org",
    ],
)
def test_what_is_no_user_id_is_refused_by_the_name_of_the_field(user_id: object) -> None:
    with pytest.raises(InvalidInviteError, match=r"^event\.state_key: ") as caught:
        check_user_id(user_id, field="event.state_key")

    assert "event.state_key" == caught.value.field
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("user_id", "words"),
    [
        (None, "is missing, expected a user ID such as @user:server"),
        ("bob", "is 'bob', expected a user ID such as @user:server"),
        ("@bob", "'@bob' names no server"),
    ],
)
def test_a_refusal_says_what_is_wrong(user_id: object, words: str) -> None:
    with pytest.raises(InvalidInviteError) as caught:
        check_user_id(user_id, field="event.sender")

    assert f"event.sender: {words}" == str(caught.value)


def test_a_refused_server_is_called_one_whatever_the_field() -> None:
    with pytest.raises(InvalidInviteError) as raised:
        server_of("@user:https://x", field="event.state_key")

    assert raised.value.message.startswith(
        "event.state_key: 'https://x' is not a server name: expected hostname[:port]"
    )


def test_a_user_id_has_255_bytes_at_most() -> None:
    longest = "@" + "é" * 121 + "b:matrix.org"

    assert 255 == len(longest.encode())
    assert "matrix.org" == str(check_user_id(longest, field="x"))


@given(st.text(st.characters()).map("@".__add__) | st.none() | st.integers() | st.text())
def test_anything_is_a_user_id_or_an_error_of_ours(user_id: object) -> None:
    try:
        server = check_user_id(user_id, field="event.sender")
        assert isinstance(user_id, str)
        assert user_id.endswith(f":{server}")
    except InvalidInviteError as error:
        assert "event.sender" == error.field


def test_a_name_that_was_seen_before_is_judged_the_same_and_kept_as_it_was_written() -> None:
    for _ in range(2):
        assert "Remote.example" == parse_server_name("Remote.example").text
        assert "remote.example" == parse_server_name("remote.example").text
        assert "expected hostname" in refusal("remote.example:")
