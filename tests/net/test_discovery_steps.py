"""§ Resolving server names over real DNS, TLS and HTTP: where, under which name, with which proof.

For every step: the address and port that are connected to, the SNI, the name in the certificate and
the `Host`; and that with a certificate for any other name not one byte of a request is sent.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from invite_client.errors import Delivery, Stage, UnreachableError
from invite_client.policy import Retries
from invite_client.testing import (
    Certificate,
    LoopbackHomeserver,
    LoopbackNetwork,
    Srv,
    make_invite,
)

pytestmark = [pytest.mark.loopback, pytest.mark.usefixtures("no_socket_is_left_behind")]

NAME, DELEGATED, TARGET = "remote.example", "delegated.example", "srv.example"
DEPRECATED = "_matrix._tcp"


@dataclass(frozen=True)
class Case:
    """A server, and where the specification says that it is."""

    step: str
    connects_to: tuple[str, int]
    """Host and port; of several addresses the host has one."""
    host: str
    """The `Host` header."""
    certificate: str
    """The one name that the certificate must be for."""
    server_name: str = NAME
    options: dict[str, Any] = field(default_factory=dict)
    sni: bool = True
    srv_names: tuple[str, ...] = ()
    """Whose SRV records must have been asked for."""

    def __str__(self) -> str:
        return f"{self.step} {self.server_name} at {self.connects_to[0]}:{self.connects_to[1]}"


CASES = [
    Case("1", ("127.45.6.7", 8448), "127.45.6.7", "127.45.6.7", "127.45.6.7", sni=False),
    Case("1", ("127.45.6.8", 7001), "127.45.6.8:7001", "127.45.6.8", "127.45.6.8:7001", sni=False),
    Case("1", ("::1", 8448), "[::1]", "::1", "[::1]", sni=False),
    Case("1", ("::1", 7002), "[::1]:7002", "::1", "[::1]:7002", sni=False),
    Case("2", (NAME, 7003), f"{NAME}:7003", NAME, f"{NAME}:7003"),
    Case(
        "3.1",
        ("127.45.6.9", 8448),
        "127.45.6.9",
        "127.45.6.9",
        options={"well_known": "127.45.6.9"},
        sni=False,
    ),
    Case(
        "3.1", ("::1", 7004), "[::1]:7004", "::1", options={"well_known": "[::1]:7004"}, sni=False
    ),
    Case(
        "3.2",
        (DELEGATED, 7005),
        f"{DELEGATED}:7005",
        DELEGATED,
        options={"well_known": f"{DELEGATED}:7005"},
    ),
    Case("3.2", (NAME, 443), f"{NAME}:443", NAME, options={"well_known": f"{NAME}:443"}),
    Case(
        "3.3",
        (TARGET, 7006),
        DELEGATED,
        DELEGATED,
        options={"well_known": DELEGATED, "srv": Srv(TARGET, 7006)},
        srv_names=(f"_matrix-fed._tcp.{DELEGATED}",),
    ),
    Case(
        "3.4",
        (TARGET, 7007),
        DELEGATED,
        DELEGATED,
        options={"well_known": DELEGATED, "srv": Srv(TARGET, 7007, service=DEPRECATED)},
        srv_names=(f"_matrix-fed._tcp.{DELEGATED}", f"_matrix._tcp.{DELEGATED}"),
    ),
    Case(
        "3.5",
        (DELEGATED, 8448),
        DELEGATED,
        DELEGATED,
        options={"well_known": DELEGATED},
        srv_names=(f"_matrix-fed._tcp.{DELEGATED}", f"_matrix._tcp.{DELEGATED}"),
    ),
    Case(
        "4",
        (TARGET, 7008),
        NAME,
        NAME,
        options={"srv": Srv(TARGET, 7008)},
        srv_names=(f"_matrix-fed._tcp.{NAME}",),
    ),
    Case(
        "5",
        (TARGET, 7009),
        NAME,
        NAME,
        options={"srv": Srv(TARGET, 7009, service=DEPRECATED)},
        srv_names=(f"_matrix-fed._tcp.{NAME}", f"_matrix._tcp.{NAME}"),
    ),
    Case(
        "6",
        (NAME, 8448),
        NAME,
        NAME,
        srv_names=(f"_matrix-fed._tcp.{NAME}", f"_matrix._tcp.{NAME}"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEachStep:
    async def test_connects_and_speaks_as_the_specification_says(self, case: Case) -> None:
        async with (
            LoopbackHomeserver(case.server_name, **case.options) as remote,
            remote.client() as client,
        ):
            signed = await client.send_invite(make_invite(f"@bob:{case.server_name}"))

            assert case.step == signed.resolved.step
            assert {"v2", "keys"} == {request.endpoint for request in remote.requests}
            host, port = case.connects_to
            (address,) = remote.network.host(host)
            for request in remote.requests:
                assert (address, port) == (request.address, request.port)
                assert (case.certificate if case.sni else None) == request.sni
                assert case.host == request.host

    async def test_asks_for_what_it_must_and_for_nothing_that_it_must_not(self, case: Case) -> None:
        async with (
            LoopbackHomeserver(case.server_name, **case.options) as remote,
            remote.client() as client,
        ):
            await client.send_invite(make_invite(f"@bob:{case.server_name}"))

            asked = {q.name for q in remote.network.dns.questions if q.kind == "SRV"}
            assert set(case.srv_names) <= asked
            if case.step in ("1", "2"):
                assert set() == asked
            # One well-known file, by the rules of regular HTTPS, and none of the delegated name.
            expected = [("GET", "/.well-known/matrix/server", NAME, NAME, 443)]
            assert expected * ("well_known" in case.options) == [
                (r.method, r.uri, r.host, r.sni, r.port) for r in remote.well_known_requests
            ]


# Where the file and the homeserver share a port, they share a certificate: if that is wrong there is
# no delegation at all.
@pytest.mark.parametrize("case", [c for c in CASES if c.connects_to[1] != 443], ids=str)
async def test_nothing_is_sent_to_who_has_not_the_right_certificate(case: Case) -> None:
    # One for every other name, and address, that there is.
    others = {NAME, DELEGATED, TARGET, "127.0.0.1", "127.45.6.1"} - {case.certificate}
    wrong = Certificate.of(*sorted(others))
    async with LoopbackHomeserver(case.server_name, certificate=wrong, **case.options) as remote:
        policy = remote.network.policy(retries=Retries(attempts=1))
        async with remote.client(policy=policy) as client:
            with pytest.raises(UnreachableError) as caught:
                await client.send_invite(make_invite(f"@bob:{case.server_name}"))

        await remote.until_quiet()

        assert Stage.TLS == caught.value.stage
        assert Delivery.NOT_SENT == caught.value.delivery
        assert case.certificate in caught.value.message
        assert [] == remote.requests
        federation = [c for c in remote.connections if c.port == case.connects_to[1]]
        assert federation
        assert {("failed", 0)} == {(c.handshake, c.bytes_received) for c in federation}


async def test_every_kind_of_server_is_told_from_every_other() -> None:
    """The table of resolvematrix.dev: all at once, each under a name that says how it is found."""
    servers = [
        LoopbackHomeserver("2.s.example:7652"),
        LoopbackHomeserver("3b.s.example", well_known="wk.3b.s.example:7753"),
        LoopbackHomeserver(
            "3c.s.example", well_known="wk.3c.s.example", srv=Srv("srv.wk.3c.s.example", 7754)
        ),
        LoopbackHomeserver(
            "3c.old.s.example",
            well_known="wk.3c.old.s.example",
            srv=Srv("srv.wk.3c.old.s.example", 7754, service=DEPRECATED),
        ),
        LoopbackHomeserver("3d.s.example", well_known="wk.3d.s.example"),
        LoopbackHomeserver("4.s.example", srv=Srv("srv.4.s.example", 7855)),
        LoopbackHomeserver(
            "4.old.s.example", srv=Srv("srv.4.old.s.example", 7855, service=DEPRECATED)
        ),
        LoopbackHomeserver("5.s.example"),
    ]
    network = LoopbackNetwork()
    async with AsyncExitStack() as stack:
        for server in servers:
            server.network = network
            await stack.enter_async_context(server)
        client = await stack.enter_async_context(network.client())
        found = {}
        for server in servers:
            signed = await client.send_invite(make_invite(f"@bob:{server.server_name}"))
            (put,) = server.requests_for("v2")
            found[server.server_name] = (signed.resolved.step, put.port, put.host, put.sni)

    assert {
        "2.s.example:7652": ("2", 7652, "2.s.example:7652", "2.s.example"),
        "3b.s.example": ("3.2", 7753, "wk.3b.s.example:7753", "wk.3b.s.example"),
        "3c.s.example": ("3.3", 7754, "wk.3c.s.example", "wk.3c.s.example"),
        "3c.old.s.example": ("3.4", 7754, "wk.3c.old.s.example", "wk.3c.old.s.example"),
        "3d.s.example": ("3.5", 8448, "wk.3d.s.example", "wk.3d.s.example"),
        "4.s.example": ("4", 7855, "4.s.example", "4.s.example"),
        "4.old.s.example": ("5", 7855, "4.old.s.example", "4.old.s.example"),
        "5.s.example": ("6", 8448, "5.s.example", "5.s.example"),
    } == found
