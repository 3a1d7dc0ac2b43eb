"""What a store remembers can be shown and forgotten."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from invite_client.cli import bulk
from invite_client.interfaces import Stored
from invite_client.policy import BulkPolicy, Policy
from invite_client.stores.sqlite import SqliteStore
from invite_client.testing import LoopbackHomeserver, LoopbackNetwork
from tests.cli.calling import Call, Result

STORE = ["--store", "s.sqlite"]


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.out.splitlines()]


async def put(*values: tuple[str, str, Any], wait: float = 60.0) -> None:
    """Remember values of a kind and a key, fresh for so many seconds."""
    store, until = SqliteStore("s.sqlite"), time.time() + wait
    for kind, key, value in values:
        await store.put(kind, key, Stored(value, until, until + 3600))
    await store.aclose()


async def fail(name: str, failures: int = 3, wait: float = 60.0) -> None:
    """Remember that invites to a server have failed."""
    since, reason = time.time() - 90, "nobody \x1b[2J"
    value = {"failures": failures, "since": since, "reason": reason, "limited": False}
    await put(("backoff", name, value), wait=wait)


# --- The cache ----------------------------------------------------------------------------------


@pytest.fixture
async def remembered(
    call: Call,
    network: LoopbackNetwork,
    sending: list[str],
    request_file: Callable[..., str],
) -> AsyncIterator[LoopbackHomeserver]:
    """Two servers, to one of which an invite was sent."""
    async with (
        LoopbackHomeserver(srv="a.example:8449", network=network) as remote,
        LoopbackHomeserver("other.example", network=network),
    ):
        sent = await call("send", request_file(), *sending, *STORE)
        found = await call("resolve", "other.example", *sending, *STORE)
        assert (0, 0) == (sent.code, found.code)
        yield remote


async def test_what_is_remembered_is_shown(call: Call, remembered: LoopbackHomeserver) -> None:
    result = await call("cache", "show", "remote.example", *STORE)
    shown = [line.split() for line in result.out.splitlines()]

    assert (0, "") == (result.code, result.err)
    assert ["well-known", "remote.example"] in shown
    assert "none: remote.example:443: Connection refused" in result.out
    assert ["srv", "_matrix-fed._tcp.remote.example"] in shown
    assert ["a.example:8449"] in shown
    assert ["keys", "remote.example"] in shown
    assert [remembered.signing_key.key_id] in shown
    # The second service is asked for ahead, and its answer may or may not have been waited for.
    assert 3 <= sum(line[:2] == ["fresh", "until"] for line in shown) <= 4
    assert "other.example" not in result.out


async def test_a_program_is_shown_all_of_it(call: Call, remembered: LoopbackHomeserver) -> None:
    everything = lines(await call("cache", "show", "--json", *STORE))

    assert {"kind", "key", "value", "fresh_until", "usable_until"} == everything[0].keys()
    assert {"well-known", "srv", "keys"} == {entry["kind"] for entry in everything}
    assert {"remote.example", "other.example"} < {entry["key"] for entry in everything}
    keys = next(entry for entry in everything if entry["kind"] == "keys")
    assert remembered.signing_key.key_id in keys["value"]["response"]["verify_keys"]


async def test_what_is_forgotten_is_asked_for_again(
    call: Call, remembered: LoopbackHomeserver, sending: list[str]
) -> None:
    def asked() -> int:
        return remembered.network.dns.asked("_matrix-fed._tcp.remote.example")

    before = asked()
    await call("resolve", "remote.example", *sending, *STORE)
    assert before == asked()

    cleared = await call("cache", "clear", "remote.example", *STORE)
    assert cleared.out in ("3 forgotten\n", "4 forgotten\n")
    left = await call("cache", "show", "remote.example", *STORE)
    assert (0, "", "nothing is remembered\n") == (left.code, left.out, left.err)
    assert "other.example" in (await call("cache", "show", *STORE)).out

    await call("resolve", "remote.example", *sending, *STORE)
    assert before < asked()


async def test_all_can_be_forgotten_but_the_failures(
    call: Call, remembered: LoopbackHomeserver
) -> None:
    await fail("down.example")

    assert (await call("cache", "clear", "--json", *STORE)).json["forgotten"] > 3
    assert "" == (await call("cache", "show", *STORE)).out
    assert "down.example" in (await call("backoff", "show", *STORE)).out


async def test_what_a_delegation_leads_to_is_forgotten_with_it(call: Call) -> None:
    await put(
        ("well-known", "a.example", {"delegated": "b.example", "reason": "", "failures": 0}),
        ("srv", "_matrix-fed._tcp.b.example", []),
        ("srv", "_matrix-fed._tcp.c.example", []),
    )

    assert "m.server is b.example" in (await call("cache", "show", "a.example", *STORE)).out
    assert "2 forgotten\n" == (await call("cache", "clear", "a.example", *STORE)).out
    assert "c.example" in (await call("cache", "show", *STORE)).out


@pytest.mark.parametrize("kind", ["well-known", "srv", "keys"])
@pytest.mark.parametrize(
    "value", [None, [], {}, [[1]], "\x1b[2J", {"delegated": "a_b"}, [[{}] * 4], math.nan]
)
async def test_a_store_may_hold_anything(call: Call, kind: str, value: Any) -> None:
    key = "_matrix-fed._tcp.a.example" if kind == "srv" else "a.example"
    await put((kind, key, value), wait=math.inf)

    for options in ([], ["--json"]):
        result = await call("cache", "show", "a.example", *options, *STORE)

        assert (0, "") == (result.code, result.err)
        assert "\x1b" not in result.out


async def keep(condition: str) -> None:
    """Let nothing be deleted for which this holds: as a full disk does, or a lock, but at once."""
    await put()
    with closing(sqlite3.connect("s.sqlite")) as database:
        database.execute(
            f"CREATE TRIGGER keep BEFORE DELETE ON stored WHEN {condition} "
            "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )


@pytest.mark.parametrize("names", [[], ["a.example"]])
async def test_what_is_not_forgotten_is_not_said_to_be(call: Call, names: list[str]) -> None:
    await put(
        ("well-known", "a.example", {"delegated": "b.example", "reason": "", "failures": 0}),
        ("srv", "_matrix-fed._tcp.b.example", []),
        ("keys", "a.example", {}),
    )
    await keep("old.kind != 'well-known'")
    result = await call("cache", "clear", "--json", *names, *STORE)

    assert (1, {"forgotten": 1}) == (result.code, result.json)
    assert "invite-client: 2 of 3 not forgotten: s.sqlite" in result.err
    assert "2 of 2 not forgotten" in (await call("cache", "clear", *STORE)).err


async def test_a_failure_that_is_not_forgotten_is_not_said_to_be(call: Call) -> None:
    await fail("a.example")
    await fail("b.example")
    await keep("old.key = 'b.example'")
    result = await call("backoff", "reset", "--all", "--json", *STORE)

    assert (1, {"reset": ["a.example"]}) == (result.code, result.json)
    assert "invite-client: 1 of 2 not forgotten: s.sqlite" in result.err


# --- The back-off -------------------------------------------------------------------------------


async def test_who_is_left_alone_is_shown_with_the_reason(call: Call) -> None:
    await fail("down.example")
    await fail("once.example", failures=1, wait=0)
    await fail("again.example", wait=-1)
    result = await call("backoff", "show", *STORE)
    shown = result.out.split("\n")

    assert (0, "") == (result.code, result.err)
    assert ["again.example", "down.example", "once.example"] == [
        line for line in shown if line and not line.startswith(" ")
    ]
    assert "one at a time is sent" in shown[1]
    assert "refused until" in shown[5]
    assert "3 failures in a row since" in shown[6]
    assert "  the last one: nobody \\x1b[2J" == shown[7]
    assert "  sent as usual" == shown[9]
    assert "1 failure in a row" in shown[10]

    as_json = lines(await call("backoff", "show", "--json", "down.example", "once.example", *STORE))
    assert [("down.example", True), ("once.example", False)] == [
        (one["destination"], one["refused"]) for one in as_json
    ]
    assert {"failures", "since", "until", "reason", "limited"} < as_json[0].keys()


@pytest.mark.parametrize("since", [math.inf, math.nan, -(10**300), "then"])
async def test_what_is_remembered_of_failures_may_be_anything(call: Call, since: Any) -> None:
    value = {"failures": 3, "since": since, "reason": "x", "limited": False}
    await put(("backoff", "down.example", value))

    for form in ([], ["--json"]):
        assert 0 == (await call("backoff", "show", *form, *STORE)).code


async def test_failures_that_refuse_nothing_by_configuration(call: Call) -> None:
    await fail("down.example")
    Path("c.toml").write_text("[backoff]\nafter_failures = false\n")

    assert "sent as usual" in (await call("backoff", "show", "--config", "c.toml", *STORE)).out


async def test_a_server_that_is_left_alone_is_sent_to_after_a_reset(
    call: Call,
    network: LoopbackNetwork,
    sending: list[str],
    request_file: Callable[..., str],
) -> None:
    options = ["send", request_file(), *sending, *STORE]
    async with LoopbackHomeserver(network=network) as remote:
        await fail("remote.example")
        refused = await call(*options)

        assert (3, "") == (refused.code, refused.out)
        assert "3 invites in a row have failed" in refused.err
        words = " ".join(refused.err.split())
        assert "--ignore-backoff; invite-client backoff reset forgets the failures" in words
        assert [] == remote.connections

        assert "remote.example\n" == (await call("backoff", "reset", "remote.example", *STORE)).out
        assert 0 == (await call(*options)).code
    assert "no failure is remembered\n" == (await call("backoff", "show", *STORE)).err


async def test_a_server_that_is_left_alone_is_sent_to_if_one_insists(
    call: Call,
    network: LoopbackNetwork,
    sending: list[str],
    request_file: Callable[..., str],
) -> None:
    await fail("remote.example")
    async with LoopbackHomeserver(network=network):
        options = ["send", request_file(), "--ignore-backoff", *sending, *STORE]

        assert 0 == (await call(*options)).code


async def test_all_servers_are_sent_to_again(call: Call) -> None:
    for name in ("a.example", "b.example"):
        await fail(name)

    assert ["a.example", "b.example"] == (
        await call("backoff", "reset", "--all", "--json", *STORE)
    ).json["reset"]
    result = await call("backoff", "reset", "--all", *STORE)
    assert (0, "", "no failure is remembered\n") == (result.code, result.out, result.err)


async def test_a_bulk_run_leaves_what_it_learned(
    *,
    call: Call,
    network: LoopbackNetwork,
    sending: list[str],
    request_file: Callable[..., str],
) -> None:
    lines = json.dumps(json.loads(Path(request_file()).read_text()))
    Path("in.jsonl").write_text(f"{lines}\n")
    async with LoopbackHomeserver(network=network):
        result = await call("bulk", "in.jsonl", *sending, *STORE)

    assert 0 == result.code
    shown = await call("cache", "show", "remote.example", *STORE)
    assert "keys        remote.example" in shown.out


def test_a_bulk_run_keeps_to_the_rate_of_the_configuration() -> None:
    policy = Policy(bulk=BulkPolicy(rate=7.0))

    assert 7.0 == bulk._policy(policy, None, None, None, None).bulk.rate
    assert 9.0 == bulk._policy(policy, None, None, 9.0, None).bulk.rate


# --- Usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["cache", "show"], "--store is missing"),
        (["backoff", "show"], "--store is missing"),
        (["cache", "show", "--store", "nope.sqlite"], "nope.sqlite does not exist"),
        (["backoff", "reset", "--all", "--store", "nope.sqlite"], "nope.sqlite does not exist"),
        (["backoff", "reset", *STORE], "server names or --all"),
        (["backoff", "reset", "--all", "a.example", *STORE], "server names or --all"),
        (["backoff", "reset", "a_b", *STORE], "'a_b'"),
        (["cache", "clear", "a_b", *STORE], "'a_b'"),
        (["cache"], "Missing command; see invite-client cache --help"),
        (["backoff"], "Missing command; see invite-client backoff --help"),
        (["journal"], "Missing command; see invite-client journal --help"),
    ],
)
async def test_what_is_missing_is_named(call: Call, arguments: list[str], fragment: str) -> None:
    await put()
    result = await call(*arguments)

    assert 2 == result.code
    assert fragment in result.err
    assert not Path("nope.sqlite").exists()


async def test_the_store_may_be_named_in_the_configuration(call: Call) -> None:
    Path("c.toml").write_text('store = "s.sqlite"\nhomeserver_config = "nope.yaml"\n')
    await put()

    assert 0 == (await call("cache", "show", "--config", "c.toml")).code
