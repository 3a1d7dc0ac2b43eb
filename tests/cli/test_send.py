"""`send`: what it prints where, and which exit code stands for what."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invite_client.spec import events
from invite_client.spec.room_versions import room_version
from invite_client.spec.signatures import json_is_signed
from invite_client.testing import (
    INVITER,
    NXDOMAIN,
    SERVFAIL,
    Hangs,
    LoopbackHomeserver,
    LoopbackNetwork,
    LosesTheAnswer,
    badly_signed,
    make_invite,
)
from tests.cli.calling import Invoke

RequestFile = Callable[..., str]
Write = Callable[..., str]


def is_countersigned(event: dict[str, Any], homeserver: LoopbackHomeserver) -> bool:
    redacted = events.redact(event, room_version("10"))
    return json_is_signed(redacted, homeserver.server_name, homeserver.signing_key.verify_key)


async def test_prints_the_countersigned_event_and_nothing_else_on_stdout(
    invoke: Invoke,
    sending: list[str],
    network: LoopbackNetwork,
    request_file: RequestFile,
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        path = request_file()
        result = await asyncio.to_thread(invoke, "send", path, *sending)

    assert 0 == result.code
    assert is_countersigned(result.json, remote)
    assert {"inviter.example", "remote.example"} == result.json["signatures"].keys()
    assert [
        "remote.example is at remote.example:8448 (step 6)",
        "PUT v2 invite …",
    ] == result.err.splitlines()[:2]
    assert "signed by remote.example with ed25519:theirs, verified (v2," in result.err


async def test_reads_standard_input_and_prints_everything_as_json(
    invoke: Invoke, sending: list[str], network: LoopbackNetwork
) -> None:
    invite = make_invite()
    body = json.dumps(invite.to_request()).encode()
    async with LoopbackHomeserver(network=network) as remote:
        for stdin in (body, b"\xef\xbb\xbf" + body):
            result = await asyncio.to_thread(invoke, "send", "-", "--json", *sending, stdin=stdin)

            assert 0 == result.code
    assert is_countersigned(result.json["event"], remote)
    assert {
        "event_id": invite.event_id,
        "destination": "remote.example",
        "signatures": result.json["event"]["signatures"]["remote.example"],
        "endpoint": "v2",
        "warnings": [],
    }.items() <= result.json.items()
    assert "6" == result.json["resolved"]["step"]
    assert [{"host": "remote.example", "port": 8448}] == result.json["resolved"]["targets"]
    assert "PUT v2 invite" in {attempt["what"] for attempt in result.json["attempts"]}


async def test_tells_of_the_fallback(
    invoke: Invoke,
    sending: list[str],
    network: LoopbackNetwork,
    request_file: RequestFile,
) -> None:
    async with LoopbackHomeserver("old.example:9000", network=network, endpoints=("v1",)):
        path = request_file("@bob:old.example:9000", "1")
        result = await asyncio.to_thread(invoke, "send", path, *sending)

    assert 0 == result.code
    assert "the server does not know v2: on to v1\nPUT v1 invite …" in result.err
    assert "verified (v1," in result.err


async def test_tells_of_retries(
    invoke: Invoke, sending: list[str], network: LoopbackNetwork, request_file: RequestFile
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        remote.answers(503, "M_UNKNOWN", "Restarting", times=1)
        result = await asyncio.to_thread(invoke, "send", request_file(), *sending)

    assert 0 == result.code
    assert "attempt 1: " in result.err
    assert "M_UNKNOWN Restarting; again in 0." in result.err


async def test_signs_what_is_not_signed_if_asked(
    invoke: Invoke,
    sending: list[str],
    network: LoopbackNetwork,
    write: Write,
) -> None:
    body = make_invite().to_request()
    for name in ("hashes", "signatures"):
        del body["event"][name]
    path = write(body)
    async with LoopbackHomeserver(network=network) as remote:
        result = await asyncio.to_thread(invoke, "send", path, "--sign", *sending)

        assert 0 == result.code
        assert is_countersigned(result.json, remote)
        refused = await asyncio.to_thread(invoke, "send", path, *sending)

    assert 2 == refused.code
    assert 1 == remote.counts["v2"]


async def test_warns_of_what_is_unwise(
    invoke: Invoke,
    sending: list[str],
    network: LoopbackNetwork,
    write: Write,
) -> None:
    body = {**make_invite().to_request(), "invite_room_state": []}
    async with LoopbackHomeserver(network=network):
        path = write(body)
        result = await asyncio.to_thread(invoke, "send", path, "--json", *sending)

    assert result.err.startswith("warning: invite_room_state")
    assert "m.room.create" in result.err.splitlines()[0]
    assert 1 == len(result.json["warnings"])


@pytest.mark.skipif(os.name != "posix", reason="needs the permissions of POSIX")
@pytest.mark.parametrize("kept", ["in its own file", "in homeserver.yaml", "with its group"])
def test_warns_of_a_key_that_every_user_may_read(
    invoke: Invoke, key_file: Path, write: Write, *, kept: str
) -> None:
    """In one line, and not on stdout: the request is bad, so that nothing is sent."""
    options = ["--server-name", INVITER, "--signing-key", str(key_file)]
    key_file.chmod(0o640 if kept == "with its group" else 0o644)
    file = key_file
    if kept == "in homeserver.yaml":
        config = f"server_name: {INVITER}\nsigning_key: {key_file.read_text()}"
        file = Path(write(config, "homeserver.yaml"))
        file.chmod(0o644)
        options = ["--homeserver-config", str(file)]
    result = invoke("send", write("{}"), *options, "--json")

    assert (2, "") == (result.code, result.out)
    warnings = result.err.splitlines()[:-1]
    assert ([] if kept == "with its group" else [True]) == [
        f"warning: {file} holds the signing key" in line for line in warnings
    ]


async def test_a_refusal_is_told_in_the_remotes_words(
    invoke: Invoke,
    sending: list[str],
    network: LoopbackNetwork,
    request_file: RequestFile,
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        remote.answers(403, "M_FORBIDDEN", "Not \x1b[31mhere [bold]")
        path = request_file()
        plain = await asyncio.to_thread(invoke, "send", path, *sending)
        as_json = await asyncio.to_thread(invoke, "send", path, "--json", *sending)

    assert (1, "") == (plain.code, plain.out)
    assert "M_FORBIDDEN Not" in plain.err
    assert "here [bold]" in plain.err
    assert 1 == as_json.code
    assert {
        "class": "InviteRejectedError",
        "stage": "HTTP",
        "delivery": "answered",
        "retryable": False,
        "retry_after": None,
        "status": 403,
        "errcode": "M_FORBIDDEN",
        "error": "Not \x1b[31mhere [bold]",
        "destination": "remote.example",
    }.items() <= as_json.json["error"].items()
    assert 1 == len(as_json.json["error"]["attempts"])
    assert "The remote server received the invite." in as_json.json["error"]["diagnosis"]
    assert "\x1b" not in plain.err + as_json.out + as_json.err


async def test_a_forgery_is_refused_and_not_printed(
    invoke: Invoke,
    sending: list[str],
    network: LoopbackNetwork,
    request_file: RequestFile,
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        remote.lies(badly_signed())
        path = request_file()
        plain = await asyncio.to_thread(invoke, "send", path, *sending)
        as_json = await asyncio.to_thread(invoke, "send", path, "--json", *sending)

    assert (1, "") == (plain.code, plain.out)
    assert "signature invalid" in plain.err
    assert 1 == as_json.code
    assert "event" not in as_json.json
    assert "signature invalid" == as_json.json["error"]["problem"]


async def test_what_may_pass_has_an_exit_code_of_its_own(
    invoke: Invoke,
    sending: list[str],
    network: LoopbackNetwork,
    request_file: RequestFile,
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        path = request_file()

        async def send(*options: str) -> tuple[int, dict[str, Any]]:
            call = ["send", path, "--json", *sending, *options]
            result = await asyncio.to_thread(invoke, *call)
            error: dict[str, Any] = result.json["error"]
            return result.code, error

        # The remote says how long, which is longer than we would wait.
        remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=3_600_000, times=1)
        code, error = await send()
        assert (3, "RateLimitedError", 3600) == (code, error["class"], error["retry_after"])

        remote.fails(Hangs(), times=1)
        code, error = await send("--timeout", "0.5")
        assert (3, "unknown") == (code, error["delivery"])
        assert "not finished within 0.5 s (--timeout)" in error["diagnosis"]

        remote.fails(LosesTheAnswer())
        code, error = await send("--timeout", "2")
        assert (3, "UnknownOutcomeError") == (code, error["class"])

        network.dns.fails("_matrix-fed._tcp.remote.example", SERVFAIL)
        code, error = await send("--timeout", "2")
        assert (3, "not sent") == (code, error["delivery"])

        network.dns.behaves()
        network.dns.fails("remote.example", NXDOMAIN)
        network.dns.fails("_matrix-fed._tcp.remote.example", NXDOMAIN)
        code, error = await send()
        assert (1, "UnreachableError") == (code, error["class"])


async def test_an_address_that_is_not_public_is_refused_with_the_option_that_permits_it(
    invoke: Invoke,
    identity: list[str],
    reaching: list[str],
    network: LoopbackNetwork,
    request_file: RequestFile,
) -> None:
    async with LoopbackHomeserver("remote.example:8448", network=network) as remote:
        path = request_file("@bob:remote.example:8448")
        result = await asyncio.to_thread(invoke, "send", path, *identity, *reaching[:4])

    assert (1, "") == (result.code, result.out)
    assert "in 127.0.0.0/8" in result.err
    assert "--allow-address" in result.err
    assert "addresses.allowed" not in result.err
    assert [] == remote.connections
