"""Every fault of a remote, over real sockets: what is raised, and what the remote saw of it.

Each row is one fault. What is raised must name the stage in which it arose, whether the invite was
delivered, and whether the same event may be sent again; the remote counts the requests; and the
fixtures of this suite hold that no task and no socket is left behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from invite_client import (
    AddressPolicy,
    CountersignatureError,
    Delivery,
    ForbiddenByPolicyError,
    InviteError,
    InviteRejectedError,
    KeyPolicy,
    Limits,
    MalformedReplyError,
    Notary,
    RateLimitedError,
    Retries,
    ServerPolicy,
    Stage,
    Timeouts,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.testing import (
    EXPIRED,
    NO_ANSWER,
    REFUSED,
    SELF_SIGNED,
    SERVFAIL,
    UNKNOWN_CA,
    BreaksOff,
    Certificate,
    ClosesBeforeTls,
    Drips,
    EndlessBody,
    GzipBomb,
    Hangs,
    HugeBody,
    LoopbackHomeserver,
    LosesTheAnswer,
    ManyHeaders,
    NeverCompletesTheHandshake,
    Resets,
    SaysRaw,
    Srv,
    WellKnown,
    make_invite,
)

pytestmark = [pytest.mark.loopback, pytest.mark.usefixtures("no_socket_is_left_behind")]

NAME = "remote.example"
DELEGATES = b'{"m.server": "elsewhere.example:1"}'
FED = f"_matrix-fed._tcp.{NAME}"
QUICK = Timeouts(total=3.0, well_known=0.4, connect=0.4, request=0.4)

Told = Callable[[LoopbackHomeserver], object]


def nothing(_: LoopbackHomeserver) -> None:
    """Leave it as it is."""


@dataclass(frozen=True)
class Row:
    fault: str
    error: type[InviteError]
    stage: Stage
    delivery: Delivery
    retryable: bool
    told: Told = nothing
    server: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    version: str = "10"
    v2: int = 0
    v1: int = 0
    says: str = ""


def not_sent(
    fault: str, told: Told = nothing, *, stage: Stage, retryable: bool = True, **more: Any
) -> Row:
    more.setdefault("error", UnreachableError)
    return Row(
        fault, stage=stage, delivery=Delivery.NOT_SENT, retryable=retryable, told=told, **more
    )


def unknown(fault: str, told: Told, **more: Any) -> Row:
    return Row(fault, UnknownOutcomeError, Stage.HTTP, Delivery.UNKNOWN, True, told, v2=1, **more)


def answered(
    fault: str,
    told: Told,
    error: type[InviteError],
    *,
    stage: Stage = Stage.HTTP,
    retryable: bool = False,
    **more: Any,
) -> Row:
    more.setdefault("v2", 1)
    return Row(fault, error, stage, Delivery.ANSWERED, retryable, told, **more)


def dns_fails(name: str, fault: Any, kind: Any = None) -> Told:
    return lambda remote: remote.network.dns.fails(name, fault, kind=kind)


async def stops(remote: LoopbackHomeserver) -> None:
    await remote.stops()


def publishes_nothing(remote: LoopbackHomeserver) -> None:
    remote.answers(404, "M_UNRECOGNIZED", endpoint="keys")


def publishes_garbage(remote: LoopbackHomeserver) -> None:
    remote.answers(200, body=b'{"verify_keys": []}', endpoint="keys")


BLOCKED = AddressPolicy(allowed=())

DISCOVERY = [
    not_sent("SRV: SERVFAIL", dns_fails(FED, SERVFAIL), stage=Stage.DNS, says="SERVFAIL"),
    not_sent("SRV: REFUSED", dns_fails(FED, REFUSED), stage=Stage.DNS, says="REFUSED"),
    not_sent(
        "SRV: decidedly not offered",
        server={"srv": Srv(".")},
        stage=Stage.DNS,
        retryable=False,
        says="not offered",
    ),
    not_sent(
        "SRV: no target listens",
        server={
            "srv": [
                Srv("one.example", 8449, listens=False),
                Srv("two.example", 8450, listens=False),
            ]
        },
        stage=Stage.CONNECT,
        says="two.example:8450",
    ),
    not_sent("A and AAAA: SERVFAIL", dns_fails(NAME, SERVFAIL), stage=Stage.DNS, says="SERVFAIL"),
    not_sent(
        "A and AAAA: no such name",
        lambda remote: remote.network.dns.remove(NAME),
        stage=Stage.DNS,
        retryable=False,
        says="no such",
    ),
    not_sent(
        "the delegated name does not exist",
        lambda remote: remote.network.dns.remove("matrix.example"),
        server={"well_known": "matrix.example:8449"},
        stage=Stage.DNS,
        retryable=False,
        says="matrix.example",
    ),
]

POLICY = [
    not_sent(
        "the address is not allowed",
        policy={"addresses": BLOCKED},
        error=ForbiddenByPolicyError,
        stage=Stage.POLICY,
        retryable=False,
        says="127.0.0.0/8",
    ),
    not_sent(
        "the address of the SRV target is not allowed",
        server={"srv": "srv.example:8449"},
        policy={"addresses": BLOCKED},
        error=ForbiddenByPolicyError,
        stage=Stage.POLICY,
        retryable=False,
        says="srv.example:8449",
    ),
    not_sent(
        "the server is blocked",
        policy={"servers": ServerPolicy(blocked=("REMOTE.example",))},
        error=ForbiddenByPolicyError,
        stage=Stage.POLICY,
        retryable=False,
        says="servers.blocked",
    ),
    not_sent(
        "the server is not allowed",
        policy={"servers": ServerPolicy(allowed=("other.example",))},
        error=ForbiddenByPolicyError,
        stage=Stage.POLICY,
        retryable=False,
        says="servers.allowed",
    ),
]

CONNECTION = [
    not_sent("nobody listens", stops, stage=Stage.CONNECT, says="8448"),
    not_sent(
        "TLS never answers",
        lambda remote: remote.fails(NeverCompletesTheHandshake()),
        stage=Stage.TLS,
        says="0.4 s",
    ),
    not_sent("closed before TLS", lambda remote: remote.fails(ClosesBeforeTls()), stage=Stage.TLS),
    *(
        not_sent(
            f"certificate: {what}",
            server={"certificate": certificate},
            stage=Stage.TLS,
            retryable=False,
            says=says,
        )
        for what, certificate, says in [
            ("expired", EXPIRED, "expired"),
            ("self-signed", SELF_SIGNED, NAME),
            ("by an unknown authority", UNKNOWN_CA, NAME),
            ("for another name", Certificate.of("other.example"), "other.example"),
        ]
    ),
    unknown("the answer is lost", lambda remote: remote.fails(LosesTheAnswer())),
    unknown("the connection is reset", lambda remote: remote.fails(Resets())),
    unknown("the answer does not come", lambda remote: remote.fails(Hangs()), says="0.4 s"),
    unknown("the answer drips", lambda remote: remote.fails(Drips(0.1)), says="0.4 s"),
    unknown("the answer breaks off", lambda remote: remote.fails(BreaksOff())),
]

ANSWERS = [
    *(
        answered(
            f"an answer that is {what}",
            lambda remote, fault=fault: remote.fails(fault),
            MalformedReplyError,
            policy={"limits": Limits(reply_bytes=64 * 1024)},
            says=says,
        )
        for what, fault, says in [
            ("endless", EndlessBody(), "is longer than"),
            ("huge", HugeBody(status=200), "is longer than"),
            ("a gzip bomb", GzipBomb(size=8 * 1024 * 1024), "is longer than"),
            ("10,000 header fields", ManyHeaders(), ""),
            ("not HTTP", SaysRaw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "not HTTP"),
            ("HTTP with a bad header", SaysRaw(b"HTTP/1.1 400 No\r\nbad header\r\n\r\n"), ""),
        ]
    ),
    answered(
        "an error with a huge body",
        lambda remote: remote.fails(HugeBody(status=500)),
        InviteRejectedError,
        retryable=True,
        says="500",
    ),
    *(
        answered(
            f"{status}, a redirect",
            lambda remote, status=status: remote.answers(
                status, headers={"location": "https://remote.example:8448/elsewhere"}
            ),
            MalformedReplyError,
            says=str(status),
        )
        for status in (301, 302, 307, 308)
    ),
    answered("202", lambda remote: remote.answers(202), MalformedReplyError, says="202"),
    *(
        answered(
            f"200 with {what}",
            lambda remote, body=body: remote.answers(200, body=body),
            MalformedReplyError,
            stage=Stage.PARSE,
        )
        for what, body in [
            ("nothing", b""),
            ("HTML", b"<html>"),
            ("no event", b"{}"),
            ("an event that is none", b'{"event": []}'),
            ("the form of v1", b'[200, {"event": {}}]'),
        ]
    ),
    *(
        answered(
            f"{status} {errcode}",
            lambda remote, status=status, errcode=errcode: remote.answers(status, errcode, "No"),
            InviteRejectedError,
            retryable=status >= 500,
            says=errcode,
        )
        for status, errcode in [
            (400, "M_INCOMPATIBLE_ROOM_VERSION"),
            (400, "M_INVALID_PARAM"),
            (401, "M_UNAUTHORIZED"),
            (403, "M_FORBIDDEN"),
            (403, "M_INVITE_BLOCKED"),
            (404, "M_UNRECOGNIZED"),
            (413, "M_TOO_LARGE"),
            (500, "M_UNKNOWN"),
            (502, "M_UNKNOWN"),
        ]
    ),
    answered(
        "429",
        lambda remote: remote.answers(429, "M_LIMIT_EXCEEDED", "Later", retry_after_ms=90_000),
        RateLimitedError,
        retryable=True,
        says="Later",
    ),
    answered(
        "404 by v2, 403 by v1",
        lambda remote: (
            remote.answers(404, endpoint="v2"),
            remote.answers(403, "M_FORBIDDEN", "No", endpoint="v1"),
        ),
        InviteRejectedError,
        version="1",
        v1=1,
        says="M_FORBIDDEN",
    ),
]

KEYS = [
    answered(
        f"keys: {what}",
        told,
        CountersignatureError,
        stage=Stage.KEYS,
        retryable=True,
        says="keys unavailable",
    )
    for what, told in [
        ("404", publishes_nothing),
        ("not what the specification describes", publishes_garbage),
        ("endless", lambda remote: remote.fails(EndlessBody(), endpoint="keys")),
        ("no answer", lambda remote: remote.fails(Hangs(), endpoint="keys")),
        ("a redirect", lambda remote: remote.answers(302, endpoint="keys")),
    ]
]


@pytest.mark.parametrize(
    "row", [*DISCOVERY, *POLICY, *CONNECTION, *ANSWERS, *KEYS], ids=lambda row: row.fault
)
async def test_a_fault_is_named_rightly(row: Row) -> None:
    # Given a homeserver with one fault
    async with LoopbackHomeserver(NAME, **row.server) as remote:
        told = row.told(remote)
        if told is not None and hasattr(told, "__await__"):
            await told
        policy = remote.network.policy(
            **{"timeouts": QUICK, "retries": Retries(attempts=1), **row.policy}
        )
        async with remote.client(policy=policy) as client:
            # When a user of it is invited
            with pytest.raises(InviteError) as caught:
                await client.send_invite(make_invite(version=row.version))

        # Then the error is the one that belongs to the fault, and says what it must
        error = caught.value
        expected = (row.error, row.stage, row.delivery, row.retryable)
        assert expected == (type(error), error.stage, error.delivery, error.retryable), str(error)
        assert NAME == error.destination
        assert row.says in str(error)
        assert "\n" not in str(error)
        assert row.stage in error.diagnosis()
        status, body = error.client_response()
        assert 400 <= status < 600
        assert {"errcode", "error"} <= body.keys()
        # … and the remote saw no more than it says
        assert (row.v2, row.v1) == (remote.counts["v2"], remote.counts["v1"])
        if row.delivery is Delivery.NOT_SENT:
            assert not any(attempt.sent for attempt in error.attempts)
            homeserver = [connection for connection in remote.connections if connection.port != 443]
            assert 0 == sum(connection.bytes_received for connection in homeserver)


@pytest.mark.parametrize(
    ("fault", "server", "told"),
    [
        ("status 404", {"well_known": WellKnown(status=404)}, nothing),
        ("status 500", {"well_known": WellKnown(body=DELEGATES, status=500)}, nothing),
        ("not JSON", {"well_known": WellKnown(body=b"<html>")}, nothing),
        ("no m.server", {"well_known": WellKnown(body=b"{}")}, nothing),
        ("m.server is no string", {"well_known": WellKnown(body=b'{"m.server": 1}')}, nothing),
        ("m.server is no name", {"well_known": WellKnown(body=b'{"m.server": "a/b"}')}, nothing),
        ("too large", {"well_known": WellKnown(body=b" " * 70_000)}, nothing),
        ("endless", {"well_known": WellKnown(fault=EndlessBody())}, nothing),
        ("gzip bomb", {"well_known": WellKnown(fault=GzipBomb(8 * 1024 * 1024))}, nothing),
        ("hangs", {"well_known": WellKnown(fault=Hangs())}, nothing),
        ("drips", {"well_known": WellKnown(fault=Drips(0.1))}, nothing),
        ("reset", {"well_known": WellKnown(fault=Resets())}, nothing),
        (
            "expired certificate",
            {"well_known": WellKnown(body=DELEGATES, certificate=EXPIRED)},
            nothing,
        ),
        ("nobody listens on 443", {}, nothing),
        (
            "redirects in a circle",
            {
                "well_known": WellKnown(
                    body=DELEGATES, redirects=[f"https://{NAME}/.well-known/matrix/server"]
                )
            },
            nothing,
        ),
        ("redirect to http", {"well_known": WellKnown(redirects=["http://a.example/"])}, nothing),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_well_known_file_that_is_wrong_in_any_way_means_step_4(
    fault: str, server: dict[str, Any], told: Told
) -> None:
    # Given a name whose well-known file is no valid answer, and which has an SRV record
    async with LoopbackHomeserver(NAME, srv="srv.example:8449", **server) as remote:
        told(remote)
        policy = remote.network.policy(timeouts=QUICK, retries=Retries(attempts=1))
        async with remote.client(policy=policy) as client:
            signed = await client.send_invite(make_invite())

        # Then the invite succeeds by it, with one look-up and one request, and the trace says why
        assert "4" == signed.resolved.step
        step_3 = next(step for step in signed.resolved.trace if step.step == "3")
        assert "step 4" in step_3.reason
        assert step_3.answer
        assert 1 == remote.counts["v2"]
        files = [request for request in remote.well_known_requests if request.host == NAME]
        assert len(files) <= (6 if "circle" in fault else 1)


async def test_dns_that_never_answers_is_a_passing_failure_and_not_the_absence_of_records() -> None:
    async with LoopbackHomeserver(NAME) as remote:
        remote.network.dns.fails(FED, NO_ANSWER)
        dns = replace(remote.network.policy().dns, timeout=0.3)
        policy = remote.network.policy(timeouts=QUICK, retries=Retries(attempts=1), dns=dns)
        async with remote.client(policy=policy) as client:
            with pytest.raises(UnreachableError) as caught:
                await client.send_invite(make_invite())

        assert (Stage.DNS, True) == (caught.value.stage, caught.value.retryable)
        # Port 8448, where somebody listens, was not fallen back on.
        assert 0 == remote.counts["v2"]


async def test_a_notary_serves_where_the_server_does_not_answer_for_its_keys() -> None:
    # Given a remote that signs but does not publish, and a notary that knows its keys
    async with LoopbackHomeserver(NAME) as remote:
        network = remote.network
        async with LoopbackHomeserver("notary.example", network=network) as notary:
            notary.knows(remote)
            publishes_nothing(remote)
            pinned = {notary.signing_key.key_id: notary.signing_key.verify_key.base64}
            keys = KeyPolicy(notaries=(Notary("notary.example", pinned),))
            async with remote.client(policy=network.policy(keys=keys)) as client:
                signed = await client.send_invite(make_invite())

        assert {remote.signing_key.key_id} == set(signed.signatures)
        assert 1 == notary.counts["query"]
        assert 1 == remote.counts["v2"]
