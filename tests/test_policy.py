"""What a policy cannot mean is refused where it is made, by the name of the setting."""

from __future__ import annotations

import pytest

from invite_client import DnsPolicy, ProxyPolicy, TlsPolicy
from invite_client.net.tls import unverified_names


class TestNameServers:
    @pytest.mark.parametrize(
        ("text", "server"),
        [
            ("192.0.2.1", ("192.0.2.1", 54)),
            ("192.0.2.1:5353", ("192.0.2.1", 5353)),
            ("2001:db8::1", ("2001:db8::1", 54)),
            ("[2001:db8::1]", ("2001:db8::1", 54)),
            ("[2001:DB8::1]:1", ("2001:db8::1", 1)),
            ("fe80::1%eth0", ("fe80::1%eth0", 54)),
        ],
    )
    def test_have_a_port_of_their_own_or_the_common_one(
        self, text: str, server: tuple[str, int]
    ) -> None:
        assert (server,) == DnsPolicy(nameservers=(text,), port=54).servers

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "dns.example",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "192.0.2.1:",
            "192.0.2:53",
            "[192.0.2.1]:53",
            "[2001:db8::1",
            "[::1]:53 ",
            "https://192.0.2.1",
        ],
    )
    def test_are_addresses(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"dns\.nameservers: .* is not an IP address"):
            DnsPolicy(nameservers=(text,))


class TestServersWhoseCertificateIsNotChecked:
    @pytest.mark.parametrize(
        ("entry", "name", "matches"),
        [
            ("lab.example", "LAB.example", True),
            ("lab.example", "lab.example:8449", False),
            ("lab.example:*", "lab.example:8449", True),
            ("lab.example", "xlab.example", False),
            ("lab.example", "labxexample", False),
            ("*.lab.example", "a.b.lab.example", True),
            ("*.lab.example", "lab.example", False),
            ("*.lab.example", "a.lab.example.net", False),
            ("lab?.example", "lab1.example", True),
            ("lab?.example", "lab.example", False),
            ("[2001:db8::1]:8448", "[2001:db8::1]:8448", True),
            ("lab.example.", "lab.example.", True),
        ],
    )
    def test_are_named_with_wildcards_or_without(
        self, entry: str, name: str, matches: bool
    ) -> None:
        names = unverified_names(TlsPolicy(unverified=("other.example", entry)))

        assert matches == (names.fullmatch(name) is not None)

    def test_are_none_by_default(self) -> None:
        assert unverified_names(TlsPolicy()).fullmatch("") is None

    @pytest.mark.parametrize(
        "entry", ["*", "*.*", "*:8448", "*.", "lab*", "lab.example.*", "", "?"]
    )
    def test_are_named_one_by_one_or_by_their_domain(self, entry: str) -> None:
        with pytest.raises(ValueError, match=r"tls\.unverified: .* names nobody in particular"):
            TlsPolicy(unverified=(entry,))


def test_what_is_to_be_reached_directly_is_known_also_if_the_proxy_is_named_elsewhere() -> None:
    assert ProxyPolicy(bypass=("lan",)) == ProxyPolicy.from_environment({"no_proxy": "lan"})
