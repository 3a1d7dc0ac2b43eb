"""Bad input: one line on stderr that names the field and the fix, exit code 2, nothing is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invite_client.signing_keys import write_signing_key
from invite_client.spec.signatures import SigningKey
from invite_client.testing import make_invite
from tests.cli.calling import Invoke, Result

Write = Callable[..., str]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(autouse=True)
def nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a client was made for bad input")

    monkeypatch.setattr("invite_client.cli.send.InviteClient", refuse)


def assert_refused(result: Result, *fragments: str) -> None:
    assert (2, "") == (result.code, result.out)
    assert result.err.startswith("invite-client: ")
    assert 1 == result.err.count("\n") == len(result.err.splitlines())
    for fragment in fragments:
        assert fragment in result.err


# --- The request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (b"", ["is empty; expected JSON"]),
        (b" \n", ["is empty; expected JSON"]),
        (b"{}", ["room_version: is missing"]),
        (b'{\n "event": ,\n}', ["is not JSON", "at line 2, column 11"]),
        (b'{"event": {}', ["is not JSON", "at line 1, column 13"]),
        (b'{"a": 1, "a": 2}', ["is not JSON", "'a' stands twice"]),
        (b'{"a": NaN}', ["is not JSON", "NaN"]),
        (b'{"a": "\\ud800"}', ["is not JSON", "lone surrogate"]),
        (b"\xff\xfe{}", ["is not JSON", "not UTF-8 at byte 0"]),
        (b"[" * 100_000, ["is not JSON", "nested too deeply"]),
        (b"[]", ["request: must be a JSON object"]),
        (b'"text"', ["request: must be a JSON object"]),
    ],
)
def test_a_file_that_is_no_request(
    invoke: Invoke, identity: list[str], write: Write, content: bytes, fragments: list[str]
) -> None:
    path = write(content)

    assert_refused(invoke("send", path, *identity), path, *fragments)
    assert_refused(invoke("send", path, "--json", *identity), path, *fragments)
    assert_refused(invoke("send", "-", *identity, stdin=content), "invite-client: -", *fragments)
    assert_refused(invoke("verify", path, path), path, *fragments)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nope.json", "No such file or directory"),
        (".", "Is a directory"),
        ("/dev/zero", "is longer than"),
    ],
)
def test_a_file_that_cannot_be_read(
    invoke: Invoke, identity: list[str], path: str, reason: str
) -> None:
    assert_refused(invoke("send", path, *identity), path, reason)
    assert_refused(invoke("verify", path, path), path, reason)


def event(**changes: Any) -> Change:
    """Change fields of the event; None removes one. The hash and the signature stay as they are."""

    def change(body: dict[str, Any]) -> dict[str, Any]:
        changed = {**body["event"], **changes}
        return {**body, "event": {k: v for k, v in changed.items() if v is not None}}

    return change


def part(**changes: Any) -> Change:
    return lambda body: {**body, **changes}


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (part(room_version="99"), ["room_version", "'99' is not known", '"1" to "12"']),
        (part(room_version=10), ["room_version", "10 is not known", "expected a string"]),
        (part(room_version=None), ["room_version", "None is not known"]),
        (part(event=None), ["event: must be a JSON object"]),
        (part(invite_room_state="no"), ["invite_room_state: must be a list"]),
        (part(invite_room_state=[1]), ["invite_room_state[0]"]),
        (part(origin="x"), ["origin: is not part of a v2 invite request"]),
        (event(type="m.room.message"), ["event.type", "expected m.room.member"]),
        (event(content={"membership": "join"}), ["event.content.membership", "'join'"]),
        (event(content=[]), ["event.content", "an object"]),
        (event(sender=None), ["event.sender", "missing"]),
        (event(state_key=None), ["event.state_key", "missing"]),
        (event(state_key="bob"), ["event.state_key", "@user:server"]),
        (event(state_key="@bob:remote_1.example"), ["event.state_key", "remote_1.example"]),
        (event(state_key="@bob:inviter.example"), ["event.state_key", "inviter.example too"]),
        (event(depth="1"), ["event.depth", "a whole number"]),
        (event(depth=1.5), ["event", "1.5 is not an integer"]),
        (event(depth=2**60), ["event", "not in the range"]),
        (event(hashes=None), ["event.hashes"]),
        (event(hashes={"sha256": "AAAA"}), ["event.hashes.sha256", "the content hash"]),
        (event(signatures=None), ["event.signatures"]),
        (event(signatures={"other.example": {}}), ["no signature by inviter.example", "sign"]),
        (
            event(signatures={"inviter.example": {"ed25519:old": "AAAA"}}),
            ["event.signatures", "ed25519:old", "but the signing key is ed25519:test", "--sign"],
        ),
        (
            event(signatures={"inviter.example": {"ed25519:test": "AAAA"}}),
            ["event.signatures", "ed25519:test is not one of this event", "--sign"],
        ),
        (event(content={"membership": "invite", "x": "y" * 70_000}), ["event"]),
    ],
)
def test_an_event_that_is_no_signed_invite(
    invoke: Invoke, identity: list[str], write: Write, change: Change, fragments: list[str]
) -> None:
    path = write(change(make_invite().to_request()))

    assert_refused(invoke("send", path, *identity), *fragments)


def test_an_event_of_somebody_elses_user_is_not_signed_either(
    invoke: Invoke, key_file: Path, request_file: Callable[..., str]
) -> None:
    other = ["--server-name", "other.example", "--signing-key", str(key_file)]
    for sign in ([], ["--sign"]):
        result = invoke("send", request_file(), *sign, *other)

        assert_refused(result, "event.sender", "inviter.example", "other.example")


def test_an_event_signed_with_another_key_of_the_same_id(
    invoke: Invoke, tmp_path: Path, request_file: Callable[..., str]
) -> None:
    write_signing_key(tmp_path / "other.key", SigningKey.generate("test"))
    other = ["--server-name", "inviter.example", "--signing-key", "other.key"]

    assert_refused(invoke("send", request_file(), *other), "event.signatures", "--sign")


# --- The identity -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ([], ["--server-name is missing", "--homeserver-config"]),
        (["--server-name", "inviter.example"], ["--signing-key is missing"]),
        (["--server-name", "in_viter", "--signing-key", "x"], ["--server-name", "'in_viter'"]),
        (["--server-name", "a.example:0", "--signing-key", "x"], ["--server-name", "the port"]),
        (
            ["--server-name", "inviter.example", "--signing-key", "nope.key"],
            ["signing key", "nope.key cannot be read: No such file"],
        ),
        (
            ["--server-name", "inviter.example", "--signing-key", "."],
            ["signing key", "Is a directory"],
        ),
    ],
)
def test_who_is_inviting(
    invoke: Invoke, request_file: Callable[..., str], options: list[str], fragments: list[str]
) -> None:
    assert_refused(invoke("send", request_file(), *options), *fragments)


@pytest.mark.parametrize("content", [b"", b"secret123", b"ed25519 a_1 secret123", b"\xffsecret123"])
def test_a_malformed_key_is_never_shown(
    invoke: Invoke, request_file: Callable[..., str], write: Write, content: bytes
) -> None:
    path = write(content, "broken.key")
    options = ["--server-name", "inviter.example", "--signing-key", path]
    for debug in ([], ["--debug"]):
        result = invoke(*debug, "send", request_file(), *options)

        assert_refused(result, "signing key", path, "expected: ed25519 <version>")
        assert "secret123" not in result.err


# --- The options --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["send", "resolve", "keys"])
@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--allow-address", "10.0.0.0/33"], ["--allow-address", "such as 10.0.0.0/8"]),
        (["--allow-address", "10.0.0.1/8"], ["--allow-address", "host bits"]),
        (["--allow-address", "localhost"], ["--allow-address", "'localhost'"]),
        (["--nameserver", "dns.example"], ["--nameserver", "'dns.example'", "[2001:db8::1]:5353"]),
        (["--nameserver", "127.0.0.1:0"], ["--nameserver", "127.0.0.1:0"]),
        (["--proxy", "http://a b:1"], ["--proxy", "must be http://"]),
        (["--proxy", "https://a.example:1"], ["--proxy", "must be http://"]),
        (["--proxy", "socks5h://me:secret@a.example:1"], ["--proxy", "no socks5h://"]),
        (["--onion-proxy", "127.0.0.1:9050"], ["--onion-proxy", "must be http://"]),
        (["--ca-file", "nope.pem"], ["--ca-file", "nope.pem cannot be read"]),
        (["--ca-file", "/dev/null"], ["--ca-file", "not a PEM file of certificates"]),
        (["--timeout", "0"], ["--timeout", "greater than 0, and at most 86400, not '0'"]),
        (["--timeout", "nan"], ["--timeout", "greater than 0"]),
        (["--timeout", "abc"], ["--timeout", "expected a number", "not 'abc'"]),
        (["--timeout", "inf"], ["--timeout", "at most"]),
        (["--timeout", "soon"], ["--timeout", "'soon'"]),
        (["--bogus"], ["--bogus", "--help"]),
        (["one", "more"], ["unexpected extra argument"]),
        (["--homeserver-config", "nope.yaml"], ["nope.yaml cannot be read"]),
    ],
)
def test_of_every_command_that_uses_the_network(
    invoke: Invoke, command: str, options: list[str], fragments: list[str]
) -> None:
    assert_refused(invoke(command, "remote.example", *options), *fragments)


@pytest.mark.parametrize("command", ["resolve", "keys"])
@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "https://a.example",
        "a.example/x",
        "a_b.example",
        "::1",
        "a.example:0",
        "ü.example",
    ],
)
def test_a_server_name_outside_the_grammar(invoke: Invoke, command: str, name: str) -> None:
    assert_refused(invoke(command, name), "server name", repr(name))


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["bogus"], ["'bogus'", "invite-client --help"]),
        (["send"], ["REQUEST.json", "invite-client send --help"]),
        (["resolve"], ["SERVER_NAME"]),
        (["keys"], ["SERVER_NAME"]),
        (["verify", "request.json"], ["REPLY.json"]),
        (["verify", "a", "b", "--endpoint", "v3"], ["--endpoint", "'v3'"]),
        (["keygen"], ["FILE"]),
        (["keygen", "new.key", "--key-version", "a-b"], ["--key-version", "'a-b'"]),
        (["keygen", "nowhere/new.key"], ["nowhere/new.key cannot be written"]),
        # What is left of a variable of a shell that was not set.
        (["send", ""], ["REQUEST.json", "expected the name of a file, and it is empty"]),
        (["keys", "a.example", "--store", ""], ["--store", "expected the name of a file"]),
    ],
)
def test_usage(invoke: Invoke, arguments: list[str], fragments: list[str]) -> None:
    assert_refused(invoke(*arguments), *fragments)


def test_no_control_character_of_the_input_reaches_the_terminal(
    invoke: Invoke, identity: list[str], write: Write
) -> None:
    path = write(event(type="\x1b[2J\x9b\u202e")(make_invite().to_request()))

    result = invoke("send", path, *identity)

    assert_refused(result, "event.type")
    assert not any(c in result.err for c in "\x1b\x9b\u202e")
