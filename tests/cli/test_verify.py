"""`verify`: a judgement without a network, which is never better than what it rests on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from invite_client.spec.invites import V1, V2, Invite
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    Homeserver,
    badly_signed,
    changes,
    make_invite,
    signed_with_an_unpublished_key,
    unsigned,
)
from tests.cli.calling import Invoke

Write = Callable[..., str]
WEEK = 7 * 24 * 3600


@pytest.fixture
def remote() -> Homeserver:
    remote = Homeserver("remote.example")
    remote.trust(INVITER, INVITER_KEY.verify_key)
    return remote


def reply_to(invite: Invite, remote: Homeserver, endpoint: Any = V2) -> bytes:
    request = endpoint.request(invite, INVITER_KEY)
    headers = {"authorization": request.authorization}
    return remote.answer(request.method, request.uri, headers, request.body).body


@pytest.fixture
def files(write: Write, remote: Homeserver) -> Callable[..., list[str]]:
    """Write an invite, the remote's reply to it, and its keys."""

    def call(version: str = "10", endpoint: Any = V2) -> list[str]:
        invite = make_invite(version=version)
        return [
            write(invite.to_request()),
            write(reply_to(invite, remote, endpoint), "reply.json"),
            "--keys",
            write(remote.server_keys(), "keys.json"),
        ]

    return call


@pytest.mark.parametrize(("version", "endpoint"), [("12", V2), ("1", V2), ("1", V1), ("2", V1)])
def test_a_good_reply_is_verified_by_the_form_that_it_has(
    invoke: Invoke, files: Callable[..., list[str]], version: str, endpoint: Any
) -> None:
    arguments = files(version, endpoint)
    result = invoke("verify", *arguments)
    told = invoke("verify", *arguments, "--endpoint", endpoint.name, "--json")

    assert (0, "") == (result.code, result.err)
    assert f"✓ the reply is one of the {endpoint.name} endpoint" in result.out
    assert result.out.endswith("\nverified\n")
    assert 0 == told.code
    assert told.json["verified"] is True
    assert endpoint.name == told.json["endpoint"]
    assert {"ed25519:theirs"} == told.json["signatures"].keys()
    assert {"inviter.example", "remote.example"} == told.json["event"]["signatures"].keys()


def test_without_keys_nothing_is_verified_and_it_says_so(
    invoke: Invoke, files: Callable[..., list[str]]
) -> None:
    request, reply, *_ = files()
    result = invoke("verify", request, reply)
    as_json = invoke("verify", request, reply, "--json")

    assert 3 == result.code == as_json.code
    assert "✓ the returned event is the one that was sent" in result.out
    assert "verified" not in result.out
    assert "not checked whether remote.example really signed with ed25519:theirs" in result.err
    assert "--keys" in result.err
    assert as_json.json["verified"] is False
    assert "keys unavailable" == as_json.json["error"]["problem"]


@pytest.mark.parametrize(
    ("lie", "problem"),
    [
        (unsigned(), "not signed"),
        (badly_signed(), "signature invalid"),
        (signed_with_an_unpublished_key(), "key not published"),
        (changes("depth", 7), "event changed"),
    ],
)
def test_a_forgery_is_refused_by_its_name(
    invoke: Invoke, remote: Homeserver, files: Callable[..., list[str]], lie: Any, problem: str
) -> None:
    remote.lies(lie)
    arguments = files()
    result = invoke("verify", *arguments)
    as_json = invoke("verify", *arguments, "--json")

    assert 1 == result.code == as_json.code
    assert problem in result.err
    assert "sent again" not in result.err
    assert "\nverified" not in result.out
    assert (False, problem) == (as_json.json["verified"], as_json.json["error"]["problem"])


@pytest.mark.parametrize(
    ("reply", "endpoint", "words"),
    [
        (b"", None, "not JSON"),
        (b"<html>", None, "at line 1, column 1"),
        (b'{"errcode": "M_FORBIDDEN"}', None, 'not of the form {"event"'),
        (b"[200, {}]", None, "not of the form [200"),
        (b"[403, {}]", None, "not of the form [200"),
        (b"{}", "v1", "not of the form [200"),
        (b"[200, {}]", "v2", 'not of the form {"event"'),
    ],
)
def test_a_reply_of_no_known_form_is_refused(
    invoke: Invoke, write: Write, reply: bytes, endpoint: str | None, words: str
) -> None:
    request = write(make_invite(version="1").to_request())
    options = [] if endpoint is None else ["--endpoint", endpoint]
    result = invoke("verify", request, write(reply, "reply.json"), *options)

    assert 1 == result.code
    assert words in result.err


def test_v1_is_no_answer_where_v1_is_never_asked(
    invoke: Invoke, remote: Homeserver, files: Callable[..., list[str]], write: Write
) -> None:
    request, reply, *keys = files("10")
    with open(reply) as file:
        as_v1 = write([200, json.load(file)], "reply.json")
    result = invoke("verify", request, as_v1, *keys)

    assert 1 == result.code
    assert "never asked for room version 10" in result.err


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (b"{}", "`server_name` in the keys is None"),
        (b"[]", "not a JSON object"),
        (b"{", "is not JSON"),
        (b"", "is empty"),
    ],
)
def test_keys_that_are_none_are_bad_input(
    invoke: Invoke, files: Callable[..., list[str]], write: Write, keys: bytes, words: str
) -> None:
    request, reply, *_ = files()
    result = invoke("verify", request, reply, "--keys", write(keys, "keys.json"))

    assert (2, "") == (result.code, result.out)
    assert words in result.err
    assert 1 == result.err.count("\n")


def test_keys_of_another_server_are_bad_input(
    invoke: Invoke, files: Callable[..., list[str]], write: Write
) -> None:
    request, reply, *_ = files()
    others = write(Homeserver("other.example").server_keys(), "keys.json")
    result = invoke("verify", request, reply, "--keys", others)

    assert 2 == result.code
    assert "'other.example', expected 'remote.example'" in result.err


def test_keys_are_believed_for_a_week_from_when_they_were_saved(
    invoke: Invoke, write: Write
) -> None:
    # "Servers MUST use the lesser of this field and 7 days into the future."
    remote = Homeserver("remote.example", key_validity=10 * 365 * 24 * 3600)
    remote.trust(INVITER, INVITER_KEY.verify_key)
    invite = make_invite()
    keys = write(remote.server_keys(), "keys.json")
    arguments = [
        write(invite.to_request()),
        write(reply_to(invite, remote), "reply.json"),
        "--keys",
        keys,
    ]
    assert 0 == invoke("verify", *arguments).code

    long_ago = time.time() - WEEK - 60
    os.utime(keys, (long_ago, long_ago))
    result = invoke("verify", *arguments)

    assert 1 == result.code
    assert "key expired" in result.err


@pytest.mark.parametrize("arguments", [["-", "-"], ["a", "-", "--keys", "-"]])
def test_standard_input_is_read_once(invoke: Invoke, arguments: list[str]) -> None:
    result = invoke("verify", *arguments, stdin=b"{}")

    assert (2, "") == (result.code, result.out)
    assert "only one of the files can be standard input" in result.err
