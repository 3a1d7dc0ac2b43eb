"""`doctor`: each fault is named, with what to do about it; and nothing is sent that is an invite."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from invite_client.cli.doctor import diagnosis, examination
from invite_client.cli.doctor.diagnosis import Problem
from invite_client.interfaces import Stored
from invite_client.spec.signatures import SigningKey
from invite_client.stores.sqlite import SqliteStore
from invite_client.testing import (
    EXPIRED,
    INVITER,
    INVITER_KEY,
    NO_ANSWER,
    SELF_SIGNED,
    SERVFAIL,
    UNKNOWN_CA,
    Certificate,
    ClosesBeforeTls,
    EndlessBody,
    Hangs,
    LoopbackHomeserver,
    LoopbackNetwork,
    LosesTheAnswer,
    NeverCompletesTheHandshake,
    SaysRaw,
    Slow,
    Srv,
    WellKnown,
)
from invite_client.testing.network import random_address
from tests.cli.calling import Invoke, Result

NAME = "remote.example"
Doctor = Callable[..., Awaitable[Result]]
Break = Callable[[LoopbackHomeserver], Any]


@pytest.fixture
async def network() -> AsyncIterator[LoopbackNetwork]:
    async with LoopbackNetwork() as network:
        yield network


@pytest.fixture
def doctor(
    invoke: Invoke,
    network: LoopbackNetwork,
    reaching: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Doctor:
    """Call the command where port 443 of other hosts is ours to give."""
    rerouted = partial(examination.Examiner, reroute=network.reroute)
    monkeypatch.setattr(examination, "Examiner", rerouted)

    async def call(*options: str, name: str = NAME, allowed: bool = True) -> Result:
        ways = reaching if allowed else reaching[:4]
        return await asyncio.to_thread(invoke, "doctor", name, *options, *ways)

    return call


def problems(result: Result) -> list[tuple[str, bool]]:
    return [(finding["problem"], finding["fatal"]) for finding in result.json["findings"]]


# --- A server that is well ----------------------------------------------------------------------


async def test_a_server_that_is_well(doctor: Doctor, network: LoopbackNetwork) -> None:
    remote = LoopbackHomeserver(network=network, well_known="matrix.example:8449")
    async with remote:
        result = await doctor()

    assert 0 == result.code
    shown = " ".join(result.out.split())
    for words in (
        "m.server is matrix.example:8449 (it delegates)",
        "certificate for matrix.example decided by step 3.2",
        "✓ 127.",
        ":8449 TCP connected, TLSv1.3, HTTP 200",
        "names matrix.example",
        "days left",
        'chain "matrix.example" ← "trustme',
        "✓ software invite_client.testing",
        f"✓ key ed25519:theirs {remote.signing_key.verify_key.base64}",
        "signed with it, valid until",
        "old keys: ed25519:expired",
        "✓ clock less than a second apart from ours",
        "✓ v2 invites there: to an empty request it says 401 M_UNAUTHORIZED",
        "✓ v1 invites there",
        "Verdict Invites to remote.example should arrive.",
    ):
        assert words in shown
    assert "✗" not in result.out
    assert all(len(line) <= 80 and line == line.rstrip() for line in result.out.splitlines())


async def test_a_machine_is_told_everything(doctor: Doctor, network: LoopbackNetwork) -> None:
    async with LoopbackHomeserver(network=network, srv="a.example:8449") as remote:
        result = await doctor("--json")

    report = result.json
    assert (0, True, []) == (result.code, report["ok"], report["findings"])
    assert "4" == report["resolved"]["step"]
    (address,) = report["addresses"]
    assert {"host": "a.example", "port": 8449} == address["target"]
    assert (True, 200, None) == (address["connected"], address["status"], address["error"])
    assert ("TLSv1.3", True) == (address["tls"]["version"], address["tls"]["checked"])
    leaf = address["tls"]["chain"][0]
    assert [NAME] == leaf["names"]
    assert leaf["not_before"] < time.time() < leaf["not_after"]
    assert remote.signing_key.key_id in report["keys"]["response"]["verify_keys"]
    assert abs(report["clock_ahead"]) < 2
    assert {"v2", "v1"} == report["endpoints"].keys()
    assert (None, None) == (report["ours"], report["signature"])


async def test_no_invite_is_sent_and_nothing_is_signed(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        await doctor()

    assert {} == remote.invites
    assert [] == [r for r in remote.requests if "authorization" in r.headers]
    assert {b"", b"{}"} == {request.body for request in remote.requests}


async def test_only_servers_of_the_policy_are_spoken_to_and_only_at_its_addresses(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    with open("c.toml", "w") as file:
        file.write("[servers]\nallowed = ['other.example']\n")
    async with LoopbackHomeserver(network=network) as remote:
        by_name = await doctor("--json", "--config", "c.toml")
        by_address = await doctor("--json", allowed=False)

    assert [("refused by our policy", True)] == problems(by_name)
    assert [("address refused by our policy", True)] == problems(by_address)
    finding = by_address.json["findings"][0]
    assert finding["what"].endswith(":8448: refused: it is in 127.0.0.0/8, loopback (RFC 1122)")
    assert "--allow-address" in finding["fix"]
    assert (1, 1) == (by_name.code, by_address.code)
    assert [] == remote.connections


# --- Servers that are not -----------------------------------------------------------------------


def answers(status: int, body: bytes = b"<html>", **options: Any) -> Break:
    def break_it(remote: LoopbackHomeserver) -> None:
        for endpoint in ("version", "keys", "v2", "v1"):
            remote.answers(status, body=body, endpoint=endpoint, **options)

    return break_it


def is_called(name: str) -> Break:
    return lambda remote: setattr(remote, "server_name", name)


def loses(name: str) -> Break:
    return lambda remote: remote.network.dns.remove(name)


def publishes(*keys: SigningKey) -> Break:
    return lambda remote: setattr(remote, "published_keys", list(keys))


def fails(fault: Any, endpoint: Any = None) -> Break:
    return lambda remote: remote.fails(fault, endpoint=endpoint)


def is_slow(seconds: float) -> Callable[[], float]:
    return lambda: time.time() - seconds


def does_not_offer(remote: LoopbackHomeserver) -> None:
    remote.network.dns.add(f"_matrix-fed._tcp.{NAME}", "SRV", 0, 0, 1, ".")


def has_no_dns(remote: LoopbackHomeserver) -> None:
    remote.network.dns.fails(f"_matrix-fed._tcp.{NAME}", SERVFAIL)


def well(_: LoopbackHomeserver) -> None:
    pass


async def stops(remote: LoopbackHomeserver) -> None:
    await remote.stops()


DELEGATED = "matrix.example:8449"
FILE = f"https://{NAME}/.well-known/matrix/server"
FAULTS: dict[str, tuple[dict[str, Any], Break, Problem, int, list[str]]] = {
    # What the homeserver is like, what is broken, what that is, the exit code, what is to be done.
    "no such name": ({}, loses(NAME), Problem.NO_ADDRESS, 1, ["spelling of remote.example"]),
    "no name servers": ({}, has_no_dns, Problem.DNS_FAILED, 3, ["name servers", "--nameserver"]),
    "not offered": ({}, does_not_offer, Problem.NOT_OFFERED, 1, ["SRV record", "a dot"]),
    "srv to nowhere": (
        {"srv": "nowhere.example:8449"},
        loses("nowhere.example"),
        Problem.NO_ADDRESS,
        1,
        ["give nowhere.example an A or AAAA record", "the SRV record of remote.example"],
    ),
    "delegated to nowhere": (
        {"well_known": "nowhere.example:8449"},
        loses("nowhere.example"),
        Problem.NO_ADDRESS,
        1,
        ["give nowhere.example an A or AAAA record", f"correct `m.server` in {FILE}"],
    ),
    "well-known with a bad certificate": (
        {"well_known": WellKnown(DELEGATED, certificate=EXPIRED)},
        well,
        Problem.WELL_KNOWN_CERTIFICATE,
        1,
        ["give the web server a valid certificate"],
    ),
    "well-known that is none": (
        {"well_known": WellKnown(body=b'{"m.server": 1}')},
        answers(404),
        Problem.WELL_KNOWN,
        1,
        ['{"m.server": "<host>:<port>"}', "or 404"],
    ),
    "stopped": ({}, stops, Problem.REFUSED, 3, ["start the homeserver", f"publish in {FILE}"]),
    "delegated, and stopped": (
        {"srv": "a.example:8449"},
        stops,
        Problem.REFUSED,
        3,
        ["start the homeserver", "correct the SRV record of remote.example"],
    ),
    "hangs up": ({}, fails(ClosesBeforeTls()), Problem.NO_TLS, 1, ["port 8448 speak TLS 1.2"]),
    "certificate expired": (
        {"certificate": EXPIRED},
        well,
        Problem.CERTIFICATE_EXPIRED,
        1,
        ["renew the certificate for remote.example"],
    ),
    "certificate of the target": (
        {"srv": "a.example:8449", "certificate": Certificate.of("a.example")},
        well,
        Problem.CERTIFICATE_NAME,
        1,
        ["a certificate for remote.example", "the server name, wherever SRV leads"],
    ),
    "certificate of the server name": (
        {"well_known": DELEGATED, "certificate": Certificate.of(NAME)},
        well,
        Problem.CERTIFICATE_NAME,
        1,
        ["a certificate for matrix.example", "the one in `m.server`"],
    ),
    "self-signed": (
        {"certificate": SELF_SIGNED},
        well,
        Problem.CERTIFICATE_UNTRUSTED,
        1,
        ["an authority that all trust", "--ca-file"],
    ),
    "unknown authority": (
        {"certificate": UNKNOWN_CA},
        well,
        Problem.CERTIFICATE_UNTRUSTED,
        1,
        ["intermediate certificates (fullchain.pem)"],
    ),
    "a web server": (
        {},
        answers(404),
        Problem.NOT_A_HOMESERVER,
        1,
        ["pass on /_matrix/federation"],
    ),
    "a redirect": ({}, answers(301), Problem.NOT_A_HOMESERVER, 1, ["and not redirect them"]),
    "behind a gateway": ({}, answers(502), Problem.GATEWAY, 3, ["start the homeserver"]),
    "endless": ({}, fails(EndlessBody(), "version"), Problem.NOT_A_HOMESERVER, 1, ["answer"]),
    "not HTTP": ({}, fails(SaysRaw(b"220 mail\r\n"), "version"), Problem.NOT_A_HOMESERVER, 1, []),
    "says nothing": (
        {},
        fails(LosesTheAnswer(), "version"),
        Problem.NO_ANSWER,
        3,
        ["reverse proxy"],
    ),
    "keys not passed on": (
        {},
        lambda remote: remote.answers(404, body=b"<html>", endpoint="keys"),
        Problem.KEYS_UNAVAILABLE,
        1,
        ["pass on /_matrix/key"],
    ),
    "another name": (
        {},
        is_called("other.example"),
        Problem.KEYS_OF_ANOTHER,
        1,
        ["set server_name", "to remote.example"],
    ),
    "keys not now": (
        {},
        lambda remote: remote.answers(503, body=b"<html>", endpoint="keys"),
        Problem.KEYS_UNAVAILABLE,
        3,
        ["Wait, and try again."],
    ),
    "no keys": ({}, publishes(), Problem.KEYS_NOT_VALID, 1, ["/_matrix/key/v2/server"]),
    "keys expired": (
        {"key_validity": -3600},
        well,
        Problem.KEYS_EXPIRED,
        1,
        ["publishes its keys anew"],
    ),
    "a slow clock": ({"now": is_slow(3 * 86400)}, well, Problem.CLOCK, 1, ["whose clock", "NTP"]),
    "an old server": ({"endpoints": ("v1",)}, well, Problem.NO_V2, 1, ["upgrade the homeserver"]),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_wrong_is_named_and_what_to_do(
    doctor: Doctor, network: LoopbackNetwork, fault: str
) -> None:
    options, break_it, problem, code, fix = FAULTS[fault]
    async with LoopbackHomeserver(network=network, **options) as remote:
        broken = break_it(remote)
        if broken is not None:
            await broken
        result = await doctor("--json")
        as_text = await doctor()

    first = result.json["findings"][0]
    assert (problem, True, code) == (first["problem"], first["fatal"], result.code)
    for words in fix:
        assert words in first["fix"]
    assert code == as_text.code
    assert f"Invites to remote.example do not arrive: {problem}." in as_text.out
    assert " ".join(first["fix"].split()) in " ".join(as_text.out.split())
    assert all(len(line) <= 80 for line in as_text.out.splitlines())
    assert {} == remote.invites


@pytest.mark.parametrize(
    ("options", "break_it", "problem", "words"),
    [
        (
            {"well_known": WellKnown(body=b"<html>")},
            well,
            Problem.WELL_KNOWN,
            "is no valid delegation",
        ),
        ({"now": is_slow(600)}, well, Problem.CLOCK, "10 minutes behind ours"),
        ({"now": is_slow(-3 * 3600)}, well, Problem.CLOCK, "3 hours ahead of ours"),
        (
            {"srv": [Srv("a.example", 1, 1, listens=False), Srv("b.example", 8449, 2)]},
            well,
            Problem.REFUSED,
            "nobody listens",
        ),
        ({}, answers(429), Problem.LIMITED, "429"),
    ],
)
async def test_what_keeps_no_invite_away_is_told_too(
    *,
    doctor: Doctor,
    network: LoopbackNetwork,
    options: dict[str, Any],
    break_it: Break,
    problem: Problem,
    words: str,
) -> None:
    async with LoopbackHomeserver(network=network, **options) as remote:
        break_it(remote)
        result = await doctor("--json")
        as_text = await doctor()

    assert (0, (problem, False)) == (result.code, problems(result)[0])
    assert words in result.json["findings"][0]["what"]
    assert f"should arrive, but: {problem}." in as_text.out


async def test_an_address_that_does_not_answer_is_pointed_out_among_others(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        network.dns.add(NAME, "A", "127.255.255.254")
        result = await doctor("--json")

    assert (0, [("connection refused", False)]) == (result.code, problems(result))
    assert result.json["findings"][0]["what"].startswith("127.255.255.254:8448: ")
    assert [True, False] == sorted(
        (one["connected"] for one in result.json["addresses"]), reverse=True
    )
    assert 1 == remote.counts["version"]


async def test_an_address_that_leads_to_somebody_else_is_no_small_thing(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    """Which of two addresses an invite takes is chance: one that is not a homeserver loses it."""
    async with (
        LoopbackHomeserver(network=network),
        LoopbackHomeserver("web.example", network=network, certificate=Certificate.of(NAME)) as web,
    ):
        answers(404)(web)
        network.dns.add(NAME, "A", network.host("web.example")[0])
        result = await doctor("--json")

    assert (1, [("not a homeserver", True)]) == (result.code, problems(result))


async def test_a_web_server_in_the_place_is_one_fault_and_not_several(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    """Whoever is told to mend the keys of what has none looks in the wrong place."""
    async with LoopbackHomeserver(network=network) as remote:
        answers(200)(remote)
        result = await doctor("--json")

    assert (1, [("not a homeserver", True)]) == (result.code, problems(result))


async def test_a_proxy_that_is_down_is_no_fault_of_the_server(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        result = await doctor("--json", "--proxy", "http://127.0.0.1:1")

    assert (3, [("proxy", True)]) == (result.code, problems(result))
    assert "--proxy" in result.json["findings"][0]["fix"]
    assert [] == remote.connections


async def test_a_server_that_takes_its_time_is_told_from_one_that_is_down(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    with open("c.toml", "w") as file:
        file.write("[timeouts]\nconnect = 0.3\n")
    async with LoopbackHomeserver(network=network) as remote:
        remote.fails(NeverCompletesTheHandshake())
        hanging = await doctor("--json", "--config", "c.toml")
        cut_off = await doctor("--json", "--timeout", "0.5")

    assert [("no TLS", True)] == problems(hanging)
    assert 3 == hanging.code
    assert ["not reached", "not finished"] == [problem for problem, _ in problems(cut_off)]
    assert (3, False) == (cut_off.code, cut_off.json["finished"])
    assert 1 == len(cut_off.json["addresses"])


DEAD = 12
"""More than can be waited for one after the other, or a few at a time."""


async def test_targets_that_no_name_server_knows_do_not_hide_the_one_that_answers(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    with open("c.toml", "w") as file:
        file.write("[dns]\ntimeout = 0.5\n")
    async with LoopbackHomeserver(network=network, srv="good.example:8449"):
        for number in range(DEAD):
            dead = f"dead{number}.example"
            network.dns.add(f"_matrix-fed._tcp.{NAME}", "SRV", 20, 5, 8448, dead)
            network.dns.fails(dead, NO_ANSWER)
        result = await doctor("--json", "--config", "c.toml", "--timeout", "5")

    assert (0, True) == (result.code, result.json["finished"])
    assert {("DNS failed", False)} == {*problems(result)}
    assert [200] + [None] * DEAD == [one["status"] for one in result.json["addresses"]]


async def test_addresses_that_hang_do_not_hide_the_one_that_answers(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    hanging = [random_address() for _ in range(DEAD)]

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            pass
        writer.close()

    async with (
        LoopbackHomeserver(network=network, srv="good.example:8449"),
        await asyncio.start_server(hang, hanging, 8450),
    ):
        network.dns.add(f"_matrix-fed._tcp.{NAME}", "SRV", 20, 5, 8450, "hanging.example")
        for address in hanging:
            network.dns.add("hanging.example", "A", address)
        result = await doctor("--json", "--timeout", "2")

    assert (0, False) == (result.code, result.json["finished"])
    assert ("not finished", False) in problems(result)
    assert result.json["keys"]["response"] is not None
    assert {"v2", "v1"} == result.json["endpoints"].keys()


async def test_invites_do_not_arrive_where_nobody_answers_them(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    with open("c.toml", "w") as file:
        file.write("[timeouts]\nrequest = 0.5\n")
    async with LoopbackHomeserver(network=network) as remote:
        remote.fails(Hangs())
        hanging = await doctor("--config", "c.toml")
        hanging_json = await doctor("--json", "--config", "c.toml")
        cut_off = await doctor("--json", "--timeout", "1.5")
        remote.behaves()
        remote.answers(504, body=b"<html>", endpoint="v2")
        behind_a_proxy = await doctor("--json")

    assert (3, [("no answer to invites", True)]) == (hanging_json.code, problems(hanging_json))
    assert 3 == hanging.code
    assert "should arrive" not in hanging.out
    words = " ".join(hanging.out.split())
    assert "does not answer requests for invites" in words
    assert "no whole answer within 0.5 s" in words
    assert [("no answer to invites", True), ("not finished", False)] == problems(cut_off)
    assert (3, False) == (cut_off.code, cut_off.json["ok"])
    assert (3, [("no answer to invites", True)]) == (behind_a_proxy.code, problems(behind_a_proxy))


@pytest.mark.parametrize(
    ("status", "body", "headers", "exists"),
    [
        # "… for an unsupported (or unknown) endpoint … the server must respond with a 404"
        (401, b'{"message": "Missing X-Matrix"}', {"content-type": "application/json"}, True),
        (401, b"{}", {}, True),
        (401, b"", {}, True),
        (401, b"", {"www-authenticate": "X-Matrix"}, True),
        # Whoever stands before the homeserver asks for something, too: in other forms, or for others.
        (401, b"<html>", {"content-type": "text/html"}, None),
        (401, b"Unauthorized", {"content-type": "text/plain"}, None),
        (401, b'"Unauthorized"', {"content-type": "application/json"}, None),
        (401, b"", {"www-authenticate": 'Basic realm="staff"'}, None),
        (401, b'{"message": "Log in"}', {"www-authenticate": "Bearer"}, None),
        # Only a 401 is what a homeserver must say to who has not signed.
        (400, b'{"message": "Bad"}', {"content-type": "application/json"}, None),
        (403, b"", {}, None),
        (401, b'{"errcode": "M_UNRECOGNIZED"}', {}, False),
    ],
)
async def test_an_endpoint_is_there_if_it_asks_for_a_signature_in_whatever_words(
    *,
    doctor: Doctor,
    network: LoopbackNetwork,
    status: int,
    body: bytes,
    headers: dict[str, str],
    exists: bool | None,
) -> None:
    async with LoopbackHomeserver(network=network) as remote:
        remote.answers(status, body=body, headers=headers, endpoint="v2")
        result = await doctor("--json")

    assert exists is result.json["endpoints"]["v2"]["exists"]


async def test_a_well_known_file_that_makes_everybody_wait_is_pointed_out(
    doctor: Doctor, network: LoopbackNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "_SLOW", 0.2)
    file = WellKnown(DELEGATED, fault=Slow(0.3))
    async with LoopbackHomeserver(network=network, well_known=file):
        result = await doctor("--json")

    assert (0, [("well-known slow", False)]) == (result.code, problems(result))


async def test_a_certificate_that_is_not_renewed_in_time_is_pointed_out(
    doctor: Doctor, network: LoopbackNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosis, "_SOON", 31 * 86400.0)
    async with LoopbackHomeserver(network=network):
        result = await doctor("--json")

    assert (0, [("certificate ends soon", False)]) == (result.code, problems(result))


async def test_a_certificate_that_is_not_checked_is_pointed_out(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    with open("c.toml", "w") as file:
        file.write("[tls]\nunverified = ['*.example']\n")
    async with LoopbackHomeserver(network=network, certificate=SELF_SIGNED):
        result = await doctor("--json", "--config", "c.toml")
        as_text = await doctor("--config", "c.toml")

    assert (0, [("certificate not checked", False)]) == (result.code, problems(result))
    assert "not checked (tls.unverified)" in as_text.out


async def test_invites_that_are_refused_without_being_sent_are_explained(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    store, now = SqliteStore("s.sqlite"), time.time()
    value = {"failures": 3, "since": now - 9, "reason": "nobody there", "limited": False}
    await store.put("backoff", NAME, Stored(value, now + 60, now + 120))
    await store.aclose()
    async with LoopbackHomeserver(network=network):
        result = await doctor("--json", "--store", "s.sqlite")
        without = await doctor("--json", "--store", "nope.sqlite")

    assert (3, [("backed off", True)]) == (result.code, problems(result))
    assert "invite-client backoff reset remote.example" in result.json["findings"][0]["fix"]
    assert 0 == without.code


async def test_no_word_of_a_strangers_reaches_the_terminal_as_a_command(
    doctor: Doctor, network: LoopbackNetwork
) -> None:
    evil = "\x1b[2J\x9b\u202e"
    async with LoopbackHomeserver(network=network) as remote:
        body = f'{{"server": {{"name": "{evil}", "version": "1"}}}}'
        remote.answers(200, body=body.encode(), endpoint="version")
        remote.answers(200, body=f'{{"server_name": "{evil}"}}'.encode(), endpoint="keys")
        remote.answers(400, f"M_{evil}", endpoint="v2")
        result = await doctor()

    assert "\\x1b[2J" in result.out
    assert not any(c in result.out + result.err for c in evil.replace("[2J", ""))


# --- Our own server -----------------------------------------------------------------------------


@pytest.fixture
def ours(network: LoopbackNetwork) -> LoopbackHomeserver:
    return LoopbackHomeserver(INVITER, INVITER_KEY, network=network)


async def test_our_own_server_is_looked_at_as_others_see_it(
    doctor: Doctor, network: LoopbackNetwork, ours: LoopbackHomeserver, identity: list[str]
) -> None:
    async with LoopbackHomeserver(network=network) as remote, ours:
        result = await doctor("--json", *identity)
        as_text = await doctor(*identity)

    assert (0, []) == (result.code, problems(result))
    assert "6" == result.json["ours"]["resolved"]["step"]
    assert {"accepted": True, "status": 404, "errcode": "M_NOT_FOUND", "error": None} == (
        result.json["signature"]
    )
    assert f"Our server {INVITER}" in as_text.out
    assert "our signature  accepted" in as_text.out
    signed = [request for request in remote.requests if "authorization" in request.headers]
    assert ["profile", "profile"] == [request.endpoint for request in signed]
    assert 0 == ours.counts["v2"] == ours.counts["profile"]


async def test_our_own_server_may_be_the_one_that_is_examined(
    doctor: Doctor, ours: LoopbackHomeserver, identity: list[str]
) -> None:
    async with ours:
        result = await doctor("--json", *identity, name=INVITER)

    assert (0, []) == (result.code, problems(result))
    assert result.json["signature"] is None


OTHER_KEY = SigningKey.generate("other")
SAME_ID = SigningKey.generate("test")


async def is_down(remote: LoopbackHomeserver, ours: LoopbackHomeserver) -> None:
    await ours.stops()


async def signs_with_another(remote: LoopbackHomeserver, ours: LoopbackHomeserver) -> None:
    ours.published_keys = [OTHER_KEY]


async def has_another_of_the_same_id(remote: LoopbackHomeserver, ours: LoopbackHomeserver) -> None:
    ours.published_keys = [SAME_ID]


async def has_rotated(remote: LoopbackHomeserver, ours: LoopbackHomeserver) -> None:
    ours.rotates_its_key()


@pytest.mark.parametrize(
    ("break_it", "problem", "words"),
    [
        (is_down, Problem.OURS, "nobody listens"),
        (signs_with_another, Problem.OUR_KEY, "publishes ed25519:other, and we sign with"),
        (has_another_of_the_same_id, Problem.OUR_KEY, "another key as ed25519:test"),
        (has_rotated, Problem.OUR_KEY, "an old key as ed25519:test"),
    ],
)
@pytest.mark.parametrize("refused", [True, False])
async def test_what_is_wrong_with_our_own_matters_if_the_remote_says_so(
    *,
    doctor: Doctor,
    network: LoopbackNetwork,
    ours: LoopbackHomeserver,
    identity: list[str],
    break_it: Callable[..., Awaitable[None]],
    problem: Problem,
    words: str,
    refused: bool,
) -> None:
    async with LoopbackHomeserver(network=network) as remote, ours:
        await break_it(remote, ours)
        if refused:
            remote.answers(401, "M_UNAUTHORIZED", "no key", endpoint="profile")
        result = await doctor("--json", *identity)

    expected = [(problem, True), ("our signature refused", True)] if refused else [(problem, False)]
    assert expected == problems(result)
    assert words in result.json["findings"][0]["what"]
    assert refused == (result.code != 0)
    assert refused == (result.json["signature"]["accepted"] is False)


async def test_without_a_key_that_can_be_read_ours_is_looked_at_all_the_same(
    doctor: Doctor, network: LoopbackNetwork, ours: LoopbackHomeserver
) -> None:
    with open("h.yaml", "w") as file:
        file.write(f"server_name: {INVITER}\nsigning_key_path: nope.key\n")
    async with LoopbackHomeserver(network=network), ours:
        result = await doctor("--json", "--homeserver-config", "h.yaml")
        by_name = await doctor("--json", "--server-name", INVITER)

    assert (0, 0) == (result.code, by_name.code)
    assert INVITER == result.json["ours"]["server_name"] == by_name.json["ours"]["server_name"]
    assert result.json["signature"] is None
    assert "nope.key cannot be read" in result.err


async def test_a_list_of_servers_to_invite_from_need_not_name_ours(
    doctor: Doctor, network: LoopbackNetwork, ours: LoopbackHomeserver, identity: list[str]
) -> None:
    with open("c.toml", "w") as file:
        file.write(f"[servers]\nallowed = ['{NAME}']\n")
    async with LoopbackHomeserver(network=network), ours:
        result = await doctor("--json", "--config", "c.toml", *identity)

    assert (0, []) == (result.code, problems(result))


# --- Usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "fragment"),
    [
        ("a_b", [], "server name: 'a_b'"),
        (NAME, ["--server-name", "a_b"], "--server-name: 'a_b'"),
        (NAME, ["--server-name", INVITER, "--signing-key", "nope.key"], "nope.key cannot be read"),
        (NAME, ["--store", "no.sqlite"], "no.sqlite cannot be used as a store"),
    ],
)
async def test_bad_input_is_told_before_anything_is_asked(
    doctor: Doctor, name: str, options: list[str], fragment: str
) -> None:
    Path("no.sqlite").write_text("no database\n")
    result = await doctor(*options, name=name)

    assert (2, "") == (result.code, result.out)
    assert fragment in result.err
    assert 1 == result.err.count("\n")


async def test_a_literal_needs_no_discovery(doctor: Doctor, network: LoopbackNetwork) -> None:
    address = random_address()
    async with LoopbackHomeserver(address, network=network):
        result = await doctor("--json", name=address)

    assert (0, "1") == (result.code, result.json["resolved"]["step"])
    assert [address] == result.json["addresses"][0]["tls"]["chain"][0]["names"]
