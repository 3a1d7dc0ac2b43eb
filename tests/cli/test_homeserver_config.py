"""homeserver.yaml: what an operator has told Synapse holds for us too."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from invite_client.cli.files import BadInputError
from invite_client.cli.homeserver_config import HomeserverConfig, read_homeserver_config
from invite_client.net.addresses import AddressGate, AddressRefusedError
from invite_client.net.tls import unverified_names
from invite_client.policy import AddressPolicy, Notary, ProxyPolicy
from invite_client.signing_keys import write_signing_key
from invite_client.testing import INVITER_KEY, LoopbackHomeserver, LoopbackNetwork
from tests.cli.calling import Invoke

Write = Callable[..., str]
KEY_LINE = INVITER_KEY.to_line()
PUBLIC = INVITER_KEY.verify_key.base64


@pytest.fixture
def read(write: Write) -> Callable[[str], HomeserverConfig]:
    def call(text: str) -> HomeserverConfig:
        path = write(f"server_name: inviter.example\n{text}", "homeserver.yaml")
        return read_homeserver_config([path])

    return call


Read = Callable[[str], HomeserverConfig]


def is_refused(policy: AddressPolicy, address: str) -> bool:
    try:
        AddressGate(policy).check(address)
    except AddressRefusedError:
        return True
    return False


# --- The whole of it ----------------------------------------------------------------------------


async def test_nothing_else_is_needed_to_send(
    invoke: Invoke,
    network: LoopbackNetwork,
    request_file: Callable[..., str],
    key_file: Path,
    write: Write,
) -> None:
    trustme.CA().cert_pem.write_to_path("another.pem")
    config = f"""
server_name: inviter.example
signing_key_path: {key_file}
federation_custom_ca_list: [another.pem, {network.ca_file}]
ip_range_blacklist: [10.0.0.0/8]
federation_domain_whitelist: [remote.example]
"""
    options = ["--homeserver-config", write(config, "homeserver.yaml")]
    options += ["--nameserver", f"{network.dns.address}:{network.dns.port}"]
    async with (
        LoopbackHomeserver(network=network),
        LoopbackHomeserver("other.example", network=network) as other,
    ):
        result = await asyncio.to_thread(invoke, "send", request_file(), *options)
        assert (0, "") == (result.code, "" if result.code == 0 else result.err)

        path = request_file("@bob:other.example")
        result = await asyncio.to_thread(invoke, "send", path, *options)

    assert (1, "") == (result.code, result.out)
    assert "federation_domain_whitelist" in result.err
    assert [] == other.connections


async def test_options_win(
    invoke: Invoke,
    network: LoopbackNetwork,
    request_file: Callable[..., str],
    sending: list[str],
    write: Write,
) -> None:
    trustme.CA().cert_pem.write_to_path("another.pem")
    config = """
server_name: somebody.example
signing_key_path: nope.key
federation_custom_ca_list: [another.pem]
ip_range_blacklist: [127.0.0.0/8]
"""
    options = ["--homeserver-config", write(config, "homeserver.yaml"), *sending]
    async with LoopbackHomeserver(network=network):
        result = await asyncio.to_thread(invoke, "send", request_file(), *options)

    assert 0 == result.code


# --- Files --------------------------------------------------------------------------------------


def test_later_files_win_and_folders_are_read_in_order(write: Write, tmp_path: Path) -> None:
    # As Debian has it: a main file, and a folder in which the server's name is.
    main = write("server_name: main.example\nip_range_whitelist: [10.0.0.0/8]\n", "main.yaml")
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "b.yaml").write_text("server_name: b.example\n")
    (folder / "a.yaml").write_text("server_name: a.example\n# nothing else\n")
    (folder / "c.yaml").write_text("# nothing at all\n")
    (folder / "d.txt").write_text("server_name: d.example\n")

    config = read_homeserver_config([main, str(folder)])

    assert "b.example" == config.server_name
    assert ("10.0.0.0/8",) == config.policy.addresses.allowed


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a: [1", ["is not YAML", "at line 1, column"]),
        ("a: b: c", ["is not YAML", "at line 1, column 5"]),
        ("\x00", ["is not YAML"]),
        ("!!python/object:os.system {}", ["is not YAML"]),
        ('a: !!int ""', ["is not YAML"]),
        ("a: !!bool maybe", ["is not YAML"]),
        ("a: !!timestamp soon", ["is not YAML"]),
        ("[1]", ["expected settings by name"]),
        ("text", ["expected settings by name"]),
        ("", ["server_name is missing"]),
        ("server_name: 1", ["server_name: is 1, expected a string"]),
        ("server_name: in_viter", ["server_name:", "expected hostname[:port]"]),
    ],
)
def test_a_file_that_is_no_configuration(write: Write, text: str, fragments: list[str]) -> None:
    path = write(text, "homeserver.yaml")
    with pytest.raises(BadInputError) as caught:
        read_homeserver_config([path])

    for fragment in (path, *fragments):
        assert fragment in caught.value.message


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("federation_domain_whitelist: [a.example, a_b]", "'a_b' is not a server name; expected"),
        ("no_proxy_hosts: [lan, x y]", "'x y' is not a name, an address or a network; expected"),
    ],
)
def test_what_a_policy_cannot_hold_is_named_as_it_is_there(
    invoke: Invoke, write: Write, setting: str, words: str
) -> None:
    path = write(f"server_name: a.example\n{setting}\n", "homeserver.yaml")
    result = invoke("resolve", "192.0.2.1", "--homeserver-config", path)

    assert (2, "") == (result.code, result.out)
    assert result.err.startswith(f"invite-client: {path}: {setting.partition(':')[0]}: ")
    assert words in result.err
    assert 1 == result.err.count("\n")


def test_a_folder_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"a folder without \*.yaml files"):
        read_homeserver_config([str(tmp_path)])


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("ip_range_blacklist: 10.0.0.0/8", ["ip_range_blacklist", "expected a list of strings"]),
        ("ip_range_blacklist: [1]", ["ip_range_blacklist", "expected a list of strings"]),
        ("ip_range_blacklist: ['::1', 10.0.0.0/33]", ["ip_range_blacklist[1]", "not a network"]),
        ("ip_range_whitelist: [lan]", ["ip_range_whitelist[0]", "'lan' is not a network"]),
        ("federation_domain_whitelist: {a: b}", ["federation_domain_whitelist"]),
        ("federation_custom_ca_list: []", ["federation_custom_ca_list", "is empty"]),
        (
            "federation_custom_ca_list: [nope.pem]",
            ["federation_custom_ca_list[0]", "nope.pem cannot be read"],
        ),
        (
            "federation_custom_ca_list: [homeserver.yaml]",
            ["federation_custom_ca_list[0]", "not a PEM file"],
        ),
        (
            'federation_custom_ca_list: ["a\\0"]',
            ["federation_custom_ca_list: holds a NUL character"],
        ),
        ('signing_key_path: "a\\0"', ["signing_key_path: holds a NUL character"]),
        ("trusted_key_servers: matrix.org", ["trusted_key_servers", "expected a list"]),
        ("trusted_key_servers: [matrix.org]", ["trusted_key_servers[0]", "no server_name"]),
        ("trusted_key_servers: [{server_name: a_b}]", ["trusted_key_servers[0]", "a_b"]),
        (
            "trusted_key_servers: [{server_name: a.b, verify_keys: [x]}]",
            ["trusted_key_servers[0]", "verify_keys is not a mapping"],
        ),
        (
            "trusted_key_servers: [{server_name: a.b, verify_keys: {'ed25519:x': y}}]",
            ["trusted_key_servers[0]"],
        ),
        (
            f"trusted_key_servers: [{{server_name: a.b, verify_keys: {{x: {PUBLIC}}}}}]",
            ["trusted_key_servers[0]", "'x' is not a key ID"],
        ),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_file(
    read: Read, text: str, fragments: list[str]
) -> None:
    with pytest.raises(BadInputError) as caught:
        read(text)

    for fragment in ("homeserver.yaml: ", *fragments):
        assert fragment in caught.value.message


# --- Settings -----------------------------------------------------------------------------------


def test_what_is_not_said_stays_at_our_defaults(read: Read) -> None:
    config = read("")

    assert AddressPolicy() == config.policy.addresses
    assert config.policy.servers.allowed is None
    assert config.policy.tls.ca_file is None
    assert () == config.policy.keys.notaries == config.warnings


@pytest.mark.parametrize(
    ("listed", "refused"),
    [
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.0.0.1/8", "10.1.2.3"),  # Synapse does not mind bits of the host
        ("192.0.2.7", "192.0.2.7"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("10.0.0.0/8", "::10.1.2.3"),
        ("10.0.0.0/8", "2002:0a01:0203::1"),
        ("fd00::/8", "fd12::1"),
    ],
)
def test_the_list_of_addresses_is_followed_with_all_that_it_stands_for(
    read: Read, listed: str, refused: str
) -> None:
    policy = read(f"ip_range_blacklist: ['{listed}']").policy.addresses

    assert is_refused(policy, refused)
    for address in ("0.0.0.0", "::"):
        assert is_refused(policy, address)
    for address in ("127.0.0.1", "::1", "192.0.2.8", "2002:c000:0208::1", "9.9.9.9"):
        assert not is_refused(policy, address)


def test_what_is_whitelisted_is_let_through(read: Read) -> None:
    policy = read("ip_range_whitelist: ['10.1.0.0/16']").policy.addresses

    assert not is_refused(policy, "10.1.2.3")
    assert is_refused(policy, "10.2.2.3")


def test_the_older_list_of_addresses_stands_alone(read: Read) -> None:
    text = """
ip_range_blacklist: ['10.0.0.0/8']
ip_range_whitelist: ['172.16.0.0/12']
federation_ip_range_blacklist: ['172.16.0.0/12']
"""
    policy = read(text).policy.addresses

    assert is_refused(policy, "172.16.0.1")
    assert not is_refused(policy, "10.0.0.1")


def test_authorities_are_looked_for_beside_the_file_too(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    trustme.CA().cert_pem.write_to_path(str(folder / "a.pem"))
    path = write(
        "server_name: a.example\nfederation_custom_ca_list: [a.pem]\n", "etc/homeserver.yaml"
    )

    assert (str(folder / "a.pem"),) == read_homeserver_config([path]).policy.tls.ca_file


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1", ssl.TLSVersion.TLSv1_2),
        ("1.2", ssl.TLSVersion.TLSv1_2),
        ("1.3", ssl.TLSVersion.TLSv1_3),
        ("'1.3'", ssl.TLSVersion.TLSv1_3),
    ],
)
def test_a_higher_version_of_tls_is_followed_and_a_lower_one_is_not(
    read: Read, version: str, expected: ssl.TLSVersion
) -> None:
    text = f"federation_client_minimum_tls_version: {version}"

    assert expected == read(text).policy.tls.minimum_version


def test_certificates_are_verified_unless_a_server_is_named(read: Read) -> None:
    config = read(
        "federation_certificate_verification_whitelist: [lab.example, '*.onion', '*']\n"
        "federation_verify_certificates: false\n"
    )
    spared = unverified_names(config.policy.tls)

    for name in ("lab.example", "lab.example:8449", "a.onion", "b.onion:1"):
        assert spared.fullmatch(name)
    for name in ("a.lab.example", "onion", "remote.example"):
        assert not spared.fullmatch(name)
    assert 2 == len(config.warnings)
    assert "'*' is not followed" in config.warnings[0]
    assert "federation_verify_certificates" in config.warnings[1]


def test_warnings_are_shown(invoke: Invoke, write: Write) -> None:
    path = write("server_name: a.example\nfederation_verify_certificates: false\n", "a.yaml")
    result = invoke("resolve", "1.1.1.1", "--homeserver-config", path)

    assert 0 == result.code
    assert result.err.startswith("warning: federation_verify_certificates: false is not followed")


def test_key_servers_become_notaries(read: Read) -> None:
    text = f"""
trusted_key_servers:
  - server_name: matrix.org
  - server_name: notary.example
    verify_keys: {{"ed25519:a_1": "{PUBLIC}"}}
"""
    expected = (Notary("matrix.org"), Notary("notary.example", {"ed25519:a_1": PUBLIC}))

    assert expected == read(text).policy.keys.notaries


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https_proxy: http://a.example:3128", ProxyPolicy("http://a.example:3128")),
        ("https_proxy: a.example:3128", ProxyPolicy("http://a.example:3128")),
        ("https_proxy: null", ProxyPolicy()),
        ("http_proxy: http://a.example:3128", ProxyPolicy()),
        (
            "https_proxy: http://a.example:3128\nno_proxy_hosts: [lan, 10.0.0.0/8]",
            ProxyPolicy("http://a.example:3128", bypass=("lan", "10.0.0.0/8")),
        ),
    ],
)
def test_the_proxy_is_that_of_federation(read: Read, text: str, expected: ProxyPolicy) -> None:
    assert expected == read(text).policy.proxy


@pytest.mark.parametrize(
    "text",
    [
        "https_proxy: https://user:secret123@a.example:3128",
        "https_proxy: [secret123]",
        "signing_key: [secret123]",
    ],
)
def test_what_may_be_a_secret_is_not_shown(read: Read, text: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read(text).signing_key()

    assert f"homeserver.yaml: {text.partition(':')[0]}: " in caught.value.message
    assert "secret123" not in caught.value.message


# --- The key ------------------------------------------------------------------------------------


def test_the_key_is_found_where_synapse_keeps_it(read: Read, tmp_path: Path) -> None:
    expected = INVITER_KEY.verify_key

    config = read(f"signing_key: {KEY_LINE}")
    assert expected == config.signing_key().verify_key

    write_signing_key(tmp_path / "inviter.example.signing.key", INVITER_KEY)
    assert expected == read("").signing_key().verify_key

    (tmp_path / "keys").mkdir()
    write_signing_key(tmp_path / "keys" / "a.key", INVITER_KEY)
    assert expected == read("signing_key_path: keys/a.key").signing_key().verify_key


def test_the_working_directory_comes_first(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "a.key").write_text("not this one")
    path = write("server_name: a.example\nsigning_key_path: a.key\n", "etc/homeserver.yaml")
    write_signing_key("a.key", INVITER_KEY)
    assert INVITER_KEY.verify_key == read_homeserver_config([path]).signing_key().verify_key


def test_a_key_that_cannot_be_read_hinders_only_who_needs_it(
    invoke: Invoke, write: Write, request_file: Callable[..., str]
) -> None:
    for setting in ("signing_key_path: nope.key", "signing_key: ed25519 a_1 secret123", ""):
        path = write(f"server_name: inviter.example\n{setting}\n", "homeserver.yaml")
        options = ["--homeserver-config", path]

        assert 0 == invoke("resolve", "1.1.1.1", *options).code
        result = invoke("send", request_file(), *options)

        assert (2, "") == (result.code, result.out)
        assert "signing key" in result.err
        assert "secret123" not in result.err
