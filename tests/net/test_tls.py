"""Whose certificate is believed, and what is said of one that is not."""

from __future__ import annotations

import os
import resource
import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from yarl import URL

from invite_client.errors import Attempt, Delivery, Stage, UnreachableError
from invite_client.net.tls import CertificateError, verifying_context
from invite_client.policy import TlsPolicy
from invite_client.spec.discovery import Target
from tests.net.conftest import caught
from tests.net.servers import (
    PUT,
    Authority,
    Server,
    StaticDns,
    answers_ok,
    resolved,
    server_context,
)

NOW = datetime.now(timezone.utc)
LAST_MONTH, NEXT_MONTH = NOW - timedelta(days=30), NOW + timedelta(days=30)


def handmade(
    authority: Authority, *names: x509.GeneralName, common_name: str = "x"
) -> ssl.SSLContext:
    """A certificate with names that no decent authority would put there."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_key = serialization.load_pem_private_key(authority.ca.private_key_pem.bytes(), None)
    issuer = x509.load_pem_x509_certificate(authority.ca.cert_pem.bytes())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(LAST_MONTH)
        .not_valid_after(NEXT_MONTH)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    private_key = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = trustme.Blob(private_key + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pem.tempfile() as file:
        context.load_cert_chain(file)
    return context


def itself(name: str) -> ssl.SSLContext:
    """A certificate that is its own issuer."""
    alone = trustme.CA(organization_name=name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with alone.private_key_pem.tempfile() as key, alone.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)
    return context


@pytest.fixture
def ask(
    authority: Authority, transports: Callable[..., Any], log: list[Attempt]
) -> Callable[..., Any]:
    """Send a request for `name` to a server that shows a certificate."""

    async def ask(
        shown: ssl.SSLContext, name: str = "remote.example", **policy: Any
    ) -> tuple[Server, Any]:
        server = Server(answers_ok, shown)
        async with server.running():
            transport = transports(
                authority.policy(**policy), StaticDns(**{name.replace(".", "_"): ["127.0.0.1"]})
            )
            host = "127.0.0.1" if name[0].isdigit() else name
            target = resolved(name=name, targets=(Target(host, server.port),), tls_name=name)
            try:
                return server, await transport.exchange(target, PUT, limit=100, log=log)
            except UnreachableError as error:
                return server, error

    return ask


def assert_refused(server: Server, error: UnreachableError, log: list[Attempt]) -> None:
    assert isinstance(error, UnreachableError)
    assert (Stage.TLS, Delivery.NOT_SENT, False) == (error.stage, error.delivery, error.retryable)
    assert [] == server.visits  # no connection came about, so no byte of a request arrived
    assert [False] == [attempt.sent for attempt in log]
    assert [f"127.0.0.1:{server.port}"] == [attempt.address for attempt in log]


Shown = Callable[[Authority], ssl.SSLContext]


class TestACertificate:
    @pytest.mark.parametrize(
        ("shown", "words"),
        [
            pytest.param(
                lambda a: a.server("other.example", "third.example"),
                "the certificate has the wrong name; it is for other.example, third.example",
                id="wrong name",
            ),
            pytest.param(
                lambda a: a.server("127.0.0.1"),
                "the certificate has the wrong name; it is for 127.0.0.1",
                id="only the address",
            ),
            pytest.param(
                lambda a: a.server(
                    "remote.example", not_before=LAST_MONTH, not_after=NOW - timedelta(days=1)
                ),
                f"the certificate expired on {NOW - timedelta(days=1):%Y-%m-%d %H:%M:%S} UTC; "
                "it is for remote.example",
                id="expired",
            ),
            pytest.param(
                lambda a: a.server("remote.example", not_before=NEXT_MONTH),
                f"the certificate is not valid before {NEXT_MONTH:%Y-%m-%d %H:%M:%S} UTC; "
                "it is for remote.example",
                id="not yet valid",
            ),
            pytest.param(
                lambda _: itself("remote.example"),
                "the certificate is self-signed; it is for no name",
                id="self-signed",
            ),
            pytest.param(
                lambda _: server_context(
                    trustme.CA(organization_name="Mallory & Sons").issue_cert("remote.example")
                ),
                'the certificate was issued by "Mallory & Sons", and no trusted authority vouches '
                "for that; it is for remote.example",
                id="unknown authority",
            ),
            pytest.param(
                lambda a: a.server("*.example"),
                "the certificate has the wrong name; it is for *.example",
                id="wildcard for a top-level domain",
            ),
            pytest.param(
                lambda a: handmade(a, x509.DNSName("rem*.example")),
                "the certificate has the wrong name; it is for rem*.example",
                id="wildcard in a label",
            ),
            pytest.param(
                lambda a: handmade(a, x509.DNSName("*")),
                "the certificate has the wrong name; it is for *",
                id="wildcard for all",
            ),
            pytest.param(
                lambda a: handmade(a, common_name="remote.example"),
                "the certificate has the wrong name; it is for no name",
                id="name in CN only",
            ),
            pytest.param(
                lambda a: a.server(*(f"n{n}.example" for n in range(100))),
                "the certificate has the wrong name; it is for n0.example, n1.example, n2.example, "
                "n3.example, n4.example and 95 more",
                id="a hundred names",
            ),
        ],
    )
    async def test_is_refused(
        self, authority: Authority, ask: Any, log: list[Attempt], shown: Shown, words: str
    ) -> None:
        server, error = await ask(shown(authority))

        assert_refused(server, error, log)
        named = words.endswith("it is for remote.example")
        expected = words if named else f"{words}, expected one for remote.example"
        assert f"remote.example:{server.port}: {expected}" == error.message
        assert ["remote.example"] == server.snis

    @pytest.mark.parametrize(
        ("shown", "name"),
        [
            pytest.param(lambda a: a.server("remote.example"), "remote.example", id="the name"),
            pytest.param(
                lambda a: a.server("*.remote.example"), "a.remote.example", id="a wildcard"
            ),
            pytest.param(
                lambda a: a.server("x.example", "remote.example"), "remote.example", id="2nd"
            ),
            pytest.param(lambda a: a.server("REMOTE.example"), "remote.example", id="capitals"),
            pytest.param(lambda a: a.server("127.0.0.1"), "127.0.0.1", id="the address"),
        ],
    )
    async def test_is_accepted(
        self, authority: Authority, ask: Any, shown: Shown, name: str
    ) -> None:
        server, reply = await ask(shown(authority), name)

        assert 200 == reply.status
        # An address is never sent as a server name (RFC 6066 § 3).
        assert [None if name[0].isdigit() else name] == server.snis

    @pytest.mark.parametrize("name", ["a.b.remote.example", "remote.example"])
    async def test_with_a_wildcard_covers_one_label(
        self, authority: Authority, ask: Any, log: list[Attempt], name: str
    ) -> None:
        server, error = await ask(authority.server("*.remote.example"), name)

        assert_refused(server, error, log)

    @pytest.mark.parametrize(
        ("shown", "names"),
        [
            pytest.param(lambda a: a.server("127.0.0.2"), "127.0.0.2", id="another address"),
            pytest.param(lambda a: a.server("remote.example"), "remote.example", id="a name"),
            pytest.param(
                lambda a: handmade(a, x509.DNSName("127.0.0.1")), "127.0.0.1", id="as a DNS name"
            ),
            pytest.param(
                lambda a: handmade(a, common_name="127.0.0.1"), "no name", id="in CN only"
            ),
        ],
    )
    async def test_for_an_address_must_have_it_as_an_address(
        self, authority: Authority, ask: Any, log: list[Attempt], shown: Shown, names: str
    ) -> None:
        server, error = await ask(shown(authority), "127.0.0.1")

        assert_refused(server, error, log)
        assert (
            f"the certificate has the wrong name; it is for {names}, expected one for 127.0.0.1"
            in error.message
        )

    async def test_of_one_address_being_wrong_the_next_address_is_used(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        wrong = Server(answers_ok, authority.server("other.example"))
        right = Server(answers_ok, authority.server("remote.example"))
        async with wrong.running("127.0.0.1"), right.running("127.0.0.2", wrong.port):
            dns = StaticDns(remote_example=["127.0.0.1", "127.0.0.2"])
            transport = transports(authority.policy(), dns)
            reply = await transport.exchange(resolved(right), PUT, limit=100, log=log)

        assert 200 == reply.status
        assert [] == wrong.visits
        assert [f"127.0.0.2:{right.port}"] == [attempt.address for attempt in log]

    def test_that_cannot_be_read_is_still_refused_with_a_name(self) -> None:
        refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
        refused.verify_code, refused.verify_message = 10, "certificate has expired"

        assert (
            "the certificate is refused: certificate has expired; it is for no name, "
            "expected one for remote.example"
        ) == str(CertificateError("remote.example", refused, []))


class TestTheOptOut:
    @pytest.mark.parametrize(
        "listed", ["remote.example", "REMOTE.Example", "rem*.example", "r????e.example"]
    )
    async def test_spares_the_named_server_only(
        self, ask: Any, log: list[Attempt], listed: str, authority: Authority
    ) -> None:
        tls = TlsPolicy(ca_file=str(authority.ca_file), unverified=(listed,))

        named, reply = await ask(itself("remote.example"), tls=tls)
        assert 200 == reply.status
        assert ["remote.example"] == named.snis

        log.clear()
        other, error = await ask(itself("other.example"), "other.example", tls=tls)
        assert_refused(other, error, log)

    async def test_does_not_spare_its_well_known_file(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        tls = TlsPolicy(ca_file=str(authority.ca_file), unverified=("remote.example",))
        server = Server(answers_ok, itself("remote.example"))
        async with server.running():
            dns = StaticDns(remote_example=["127.0.0.1"])
            transport = transports(authority.policy(tls=tls), dns)
            url = URL(f"https://remote.example:{server.port}/")
            error = await caught(transport.get(url, limit=100, log=log), UnreachableError)

        assert_refused(server, error, log)

    async def test_lends_no_connection_to_a_server_that_is_verified(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        """Two server names may share a target; a kept connection proves nothing for the other."""
        tls = TlsPolicy(ca_file=str(authority.ca_file), unverified=("lax.example",))
        server = Server(answers_ok, itself("hoster.example"))
        async with server.running():
            dns = StaticDns(hoster_example=["127.0.0.1"])
            transport = transports(authority.policy(tls=tls), dns)
            targets = (Target("hoster.example", server.port),)
            lax = resolved(name="lax.example", targets=targets, tls_name="hoster.example")
            strict = replace(lax, server_name="strict.example")

            await transport.exchange(lax, PUT, limit=100, log=log)
            error = await caught(
                transport.exchange(strict, PUT, limit=100, log=log), UnreachableError
            )

        assert Stage.TLS == error.stage
        assert 1 == len(server.requests)


async def test_a_connection_is_not_lent_to_another_name(
    authority: Authority, transports: Any, log: list[Attempt]
) -> None:
    server = Server(answers_ok, authority.server("one.example"))
    async with server.running():
        transport = transports(authority.policy(), StaticDns(hoster_example=["127.0.0.1"]))
        targets = (Target("hoster.example", server.port),)
        one = resolved(name="one.example", targets=targets)
        two = resolved(name="two.example", targets=targets)

        await transport.exchange(one, PUT, limit=100, log=log)
        error = await caught(transport.exchange(two, PUT, limit=100, log=log), UnreachableError)

    assert "the certificate has the wrong name; it is for one.example" in error.message
    assert "expected one for two.example" in error.message
    assert ["one.example", "two.example"] == server.snis
    assert 1 == len(server.requests)


class TestTheMinimumVersion:
    def test_is_1_2_by_default(self) -> None:
        assert ssl.TLSVersion.TLSv1_2 == verifying_context(TlsPolicy()).minimum_version

    async def test_refuses_older_ones(self, authority: Authority, ask: Any) -> None:
        old = authority.server("remote.example")
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            old.minimum_version, old.maximum_version = (
                ssl.TLSVersion.TLSv1,
                ssl.TLSVersion.TLSv1_1,
            )
        _, error = await ask(old)

        assert isinstance(error, UnreachableError)
        assert Stage.TLS == error.stage
        assert "TLS failed" in error.message

    async def test_can_be_raised(self, authority: Authority, ask: Any) -> None:
        tls = TlsPolicy(ca_file=str(authority.ca_file), minimum_version=ssl.TLSVersion.TLSv1_3)
        server = authority.server("remote.example")
        _, reply = await ask(server, tls=tls)
        assert 200 == reply.status

        server.maximum_version = ssl.TLSVersion.TLSv1_2
        _, error = await ask(server, tls=tls)
        assert Stage.TLS == error.stage


class TestAServerWithoutTls:
    async def test_that_speaks_http_is_told_from_one_that_is_down(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        async def speaks_http(visit: Any) -> None:
            await visit.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        server = Server(speaks_http)
        async with server.running():
            transport = transports(authority.policy(), StaticDns(remote_example=["127.0.0.1"]))
            error = await caught(
                transport.exchange(resolved(server), PUT, limit=100, log=log), UnreachableError
            )

        assert (Stage.TLS, Delivery.NOT_SENT) == (error.stage, error.delivery)
        assert "TLS failed: wrong version number" in error.message

    async def test_that_hangs_up_is_tried_again_later(
        self, authority: Authority, transports: Any, log: list[Attempt]
    ) -> None:
        async def hangs_up(visit: Any) -> None:
            await visit.reader.read(1)

        server = Server(hangs_up)
        async with server.running():
            transport = transports(authority.policy(), StaticDns(remote_example=["127.0.0.1"]))
            error = await caught(
                transport.exchange(resolved(server), PUT, limit=100, log=log), UnreachableError
            )

        assert f"remote.example:{server.port}: TLS failed: the remote hung up" == error.message
        assert (Stage.TLS, Delivery.NOT_SENT) == (error.stage, error.delivery)
        assert error.retryable


@pytest.mark.parametrize("given", [None, "ca.pem"])
def test_without_descriptors_no_authority_is_given_up_for_good(
    given: str | None, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL reads nothing, says nothing, and every certificate would be refused from then on."""
    if given is None:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    policy = TlsPolicy(ca_file=given and authority.ca_file)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(UnreachableError, match="Too many open files") as refused:
            verifying_context(policy)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert refused.value.retryable
    assert verifying_context(policy).get_ca_certs()
