"""Flags win over variables, these over the configuration file, that over homeserver.yaml."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invite_client.cli.config_file import read_config_file
from invite_client.cli.files import BadInputError
from invite_client.cli.settings import POLICY_SETTINGS, make_policy
from invite_client.policy import Notary, Policy
from invite_client.testing import INVITER, INVITER_KEY, LoopbackHomeserver, LoopbackNetwork
from tests.cli.calling import Invoke

Write = Callable[..., str]
PUBLIC = INVITER_KEY.verify_key.base64
SECRET = "s3cret"


def settings(invoke: Invoke, *options: str) -> dict[str, tuple[Any, str]]:
    result = invoke("resolve", "--show-config", "--json", *options)
    assert 0 == result.code
    return {
        name: (setting["value"], setting["source"])
        for name, setting in result.json["settings"].items()
    }


# --- Which source counts ------------------------------------------------------------------------


@pytest.fixture
def four_sources(write: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Name the server in the lowest so many of four sources."""

    def call(number: int) -> list[str]:
        homeserver = write("server_name: yaml.example\n", "homeserver.yaml")
        toml = f'homeserver_config = "{homeserver}"\n'
        if number > 1:
            toml += 'server_name = "toml.example"\n'
        options = ["--config", write(toml, "c.toml")]
        if number > 2:
            monkeypatch.setenv("INVITE_CLIENT_SERVER_NAME", "variable.example")
        if number > 3:
            options += ["--server-name", "flag.example"]
        return options

    return call


@pytest.mark.parametrize(
    ("number", "name", "source"),
    [
        (1, "yaml.example", "homeserver.yaml: server_name"),
        (2, "toml.example", "c.toml"),
        (3, "variable.example", "INVITE_CLIENT_SERVER_NAME"),
        (4, "flag.example", "--server-name"),
    ],
)
def test_the_nearest_source_counts(
    invoke: Invoke, four_sources: Callable[[int], list[str]], number: int, name: str, source: str
) -> None:
    value, where = settings(invoke, *four_sources(number))["server_name"]

    assert name == value
    assert where.endswith(source)


def test_what_nobody_says_is_the_default(invoke: Invoke) -> None:
    found = settings(invoke)

    assert (Policy().timeouts.total, "default") == found["timeouts.total"]
    assert {*POLICY_SETTINGS} < found.keys()
    assert {"default"} == {source for _, source in found.values()}


def test_a_network_is_allowed_beside_those_that_are_configured(
    invoke: Invoke, write: Write
) -> None:
    path = write('[addresses]\nallowed = ["10.0.0.0/8"]\n', "c.toml")

    found = settings(invoke, "--config", path, "--allow-address", "127.0.0.0/8")

    assert (["10.0.0.0/8", "127.0.0.0/8"], f"{path}, --allow-address") == found["addresses.allowed"]


def test_variables_of_several_values_are_lists(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVITE_CLIENT_NAMESERVER", "127.0.0.1 127.0.0.2:54")

    assert ["127.0.0.1", "127.0.0.2:54"] == settings(invoke)["dns.nameservers"][0]


def test_a_variable_that_is_wrong_is_named(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVITE_CLIENT_TIMEOUT", "-1")
    result = invoke("resolve", "1.1.1.1")

    assert (2, "") == (result.code, result.out)
    assert "INVITE_CLIENT_TIMEOUT" in result.err
    assert "--timeout" not in result.err


def test_a_variable_that_is_unknown_is_pointed_out(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INVITE_CLIENT_PROXIES", "http://proxy.example:1")
    result = invoke("resolve", "1.1.1.1")

    assert 0 == result.code
    assert "warning: INVITE_CLIENT_PROXIES is no variable of this command\n" == result.err


def test_the_file_is_found_where_it_belongs(
    invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".config" / "invite_client" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text('server_name = "xdg.example"\n')
    assert ("xdg.example", str(path)) == settings(invoke)["server_name"]

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ("xdg.example", str(path)) == settings(invoke)["server_name"]
    assert (str(path), "default") == settings(invoke)["config"]

    assert (None, "default") == settings(invoke, "--config", "/dev/null")["server_name"]


async def test_a_file_is_all_that_it_takes_to_send(
    invoke: Invoke,
    network: LoopbackNetwork,
    key_file: Path,
    write: Write,
    request_file: Callable[..., str],
) -> None:
    (key_file.parent / "etc").mkdir()
    key_file.rename(key_file.parent / "etc" / "signing.key")
    config = f"""
        server_name = "{INVITER}"
        signing_key = "signing.key"
        store = "store.sqlite"
        [tls]
        ca_file = "{network.ca_file}"
        [addresses]
        allowed = ["127.0.0.0/8"]
        [dns]
        nameservers = ["{network.dns.address}"]
        port = {network.dns.port}
    """
    path = write(config, "etc/config.toml")
    async with LoopbackHomeserver(network=network):
        result = await asyncio.to_thread(invoke, "send", request_file(), "--config", path)

    assert 0 == result.code
    assert (key_file.parent / "etc" / "store.sqlite").exists()


# --- What the file can say ----------------------------------------------------------------------

OTHERS = {
    "addresses.blocked": ["10.0.0.0/8"],
    "addresses.allowed": ["10.1.0.0/16"],
    "addresses.non_public": True,
    "tls.ca_file": "ca.pem",
    "tls.minimum_version": "1.3",
    "tls.unverified": ["*.lab.example"],
    "servers.allowed": ["a.example"],
    "servers.blocked": ["b.example"],
    "dns.nameservers": ["127.0.0.1:54"],
    "proxy.url": "http://a.example:1",
    "proxy.onion": "socks5://a.example:1",
    "proxy.bypass": ["lan"],
    "dns.maximum_ttl": 77,
    "cache.maximum": 77,
    "cache.failure_maximum": 77,
    "backoff.maximum": 77,
    "cache.jitter": 0.5,
    "bulk.kept_for_prompt": 0.5,
    "keys.notaries": [{"server_name": "a.example", "verify_keys": {"ed25519:a": PUBLIC}}],
    "fallback": "unknown-endpoint",
}
"""Values of the settings for which not any number will do."""


@pytest.mark.parametrize("name", POLICY_SETTINGS)
def test_every_setting_of_a_policy_can_be_made(name: str, write: Write, network_ca: str) -> None:
    value = OTHERS.get(name, 7)
    part, _, key = name.partition(".")
    path = write(
        toml({part: {key: value}} if key else {part: value}),
        "c.toml",
    )

    read = read_config_file(path)
    policy = make_policy({name: read[name].value})

    assert {name} == read.keys()
    made = getattr(policy, part)
    made = getattr(made, key) if key else made
    expected = {
        "tls.ca_file": network_ca,
        "tls.minimum_version": ssl.TLSVersion.TLSv1_3,
        "keys.notaries": (Notary("a.example", {"ed25519:a": PUBLIC}),),
    }.get(name, tuple(value) if isinstance(value, list) else value)
    assert expected == made
    default = getattr(Policy(), part)
    assert made != (getattr(default, key) if key else default)


@pytest.fixture
def network_ca(tmp_path: Path) -> str:
    import trustme

    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return str(path)


def toml(tables: dict[str, Any]) -> str:
    """Write TOML; strings, numbers and lists of JSON are it already."""
    lines = []
    for name, value in tables.items():
        if not isinstance(value, dict):
            lines.append(f"{name} = {json.dumps(value)}")
            continue
        lines.append(f"[{name}]")
        for key, item in value.items():
            if isinstance(item, list) and isinstance(item[0], dict):
                keys = item[0]["verify_keys"]
                lines.append(
                    f"[[{name}.{key}]]\nserver_name = {json.dumps(item[0]['server_name'])}"
                )
                lines += [f"verify_keys.{json.dumps(k)} = {json.dumps(v)}" for k, v in keys.items()]
            else:
                lines.append(f"{key} = {json.dumps(item)}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "name", ["backoff.after_failures", "tls.ca_file", "proxy.url", "bulk.rate"]
)
def test_what_may_be_without_a_value_is_made_so_with_false(name: str, write: Write) -> None:
    part, _, key = name.partition(".")
    path = write(f"[{part}]\n{key} = false\n", "c.toml")

    assert read_config_file(path)[name].value is None


def test_nothing_but_policies_and_what_they_are_for_is_forgotten() -> None:
    parts = {field.name for field in dataclasses.fields(Policy)}

    assert parts == {name.partition(".")[0] for name in POLICY_SETTINGS}


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a", ["is not TOML", "end of document"]),
        ("a = 1\na = 2\n", ["is not TOML", "line 2"]),
        (b"\xff", ["is not TOML: it is not UTF-8"]),
        ("a = " + "[" * 9999, ["is not TOML"]),
        (f"fallback = {'9' * 5000}", ["is not TOML: a number has too many digits"]),
        (
            f"[limits]\nconcurrency = {'9' * 400}",
            ["limits.concurrency must be a whole number below 2**63"],
        ),
        ('store = "a\\u0000b"', ["store: holds a NUL character"]),
        ('homeserver_config = ["a", "\\u0000"]', ["homeserver_config: holds a NUL character"]),
        ("timeout = 1", ["timeout: is not a setting", "timeouts"]),
        ("[timeouts]\ntotl = 1", ["timeouts.totl: is not a setting", "connect", "total"]),
        ("timeouts = 1", ["timeouts: is a whole number, expected a table: [timeouts]"]),
        ("[timeouts]\ntotal = '1'", ["timeouts.total: is a string, expected a finite number"]),
        ("[timeouts]\ntotal = true", ["timeouts.total: is true or false"]),
        ("[timeouts]\ntotal = inf", ["timeouts.total: is a number, expected a finite number"]),
        ("[timeouts]\ntotal = nan", ["timeouts.total: is a number, expected a finite number"]),
        (f"[timeouts]\ntotal = 1{'0' * 400}", ["timeouts.total"]),
        ("[timeouts]\ntotal = 2020-01-01", ["timeouts.total: is a date or time"]),
        ("[timeouts]\ntotal = -1", ["timeouts.total must be greater than 0"]),
        ("[retries]\nattempts = 1.5", ["retries.attempts", "expected a whole number"]),
        ("[retries]\nattempts = false", ["retries.attempts", "expected a whole number"]),
        ("[backoff]\nafter_failures = true", ["expected a whole number or false for none"]),
        ("[addresses]\nallowed = ['lan']", ["addresses.allowed", "such as 10.0.0.0/8"]),
        ("[addresses]\nallowed = 'lan'", ["addresses.allowed", "expected a list of strings"]),
        ("[addresses]\nallowed = [1]", ["addresses.allowed", "expected a list of strings"]),
        ("[tls]\nminimum_version = '1.1'", ["tls.minimum_version", '"1.2" or "1.3"']),
        ("[tls]\nca_file = 'nope.pem'", ["tls.ca_file", "nope.pem cannot be read"]),
        ("[tls]\nca_file = ['c.toml']", ["tls.ca_file", "not a PEM file"]),
        ("[tls]\nunverified = ['*']", ["tls.unverified"]),
        ("[dns]\nnameservers = ['dns.example']", ["dns.nameservers"]),
        ("[dns]\nport = 65536", ["dns.port must be at most 65535, not 65536"]),
        ("[cache]\nminimum = 10\nmaximum = 5", ["cache.minimum must be at most cache.maximum (5"]),
        ("[servers]\nallowed = ['a_b']", ["servers.allowed: 'a_b' is not a server name"]),
        (
            "[servers]\nblocked = 'a.b'",
            ["servers.blocked: is a string, expected a list of strings"],
        ),
        ("[proxy]\nbypass = ['x y']", ["proxy.bypass: 'x y' is not a name, an address or"]),
        ("[proxy]\nurl = 'a.example'", ["proxy.url must be http://"]),
        (f"[proxy]\nurl = 'ftp://me:{SECRET}@a.example:1'", ["proxy.url must be http://"]),
        (f"[proxy]\nurl = ['{SECRET}']", ["proxy.url: is a list, expected a string"]),
        ("[keys]\nnotaries = ['a.example']", ["keys.notaries", "tables with server_name"]),
        ("[[keys.notaries]]\nname = 'a'", ["keys.notaries", "tables with server_name"]),
        (
            "[[keys.notaries]]\nserver_name = 'a_b'",
            ["keys.notaries: [0]: 'a_b' is not a server name"],
        ),
        (
            "[[keys.notaries]]\nserver_name = 'a.b'\nverify_keys.'ed25519:a' = 'x'",
            ["keys.notaries: [0]"],
        ),
        ("fallback = 'never'", ['fallback must be "spec"']),
        ("fallback = 1", ["fallback: is a whole number, expected a string"]),
        ("server_name = 'a_b'", ["server_name: 'a_b' is not a server name"]),
        (f"signing_key = 'ed25519 a_1 {SECRET}'", ["signing_key", "not the key itself"]),
    ],
)
def test_what_is_wrong_is_named_by_file_table_and_key(
    text: str | bytes, fragments: list[str], write: Write
) -> None:
    path = write(text, "c.toml")
    with pytest.raises(BadInputError) as caught:
        read_config_file(path)

    assert caught.value.message.startswith(f"{path}")
    for fragment in fragments:
        assert fragment in caught.value.message
    assert SECRET not in caught.value.message


ANY = ["true", "-1", "0", "0.5", f"{2**63}", "nan", "-inf", "''", "'x y'", "[]", "['x y']", "[1]"]
ANY += ["{}", "[{}]", "[{server_name = 'a.example', verify_keys = 1}]", "2026-01-01", "['\\u0000']"]


@pytest.mark.parametrize("name", POLICY_SETTINGS)
def test_whatever_stands_there_is_a_setting_or_named(name: str, write: Write) -> None:
    for number, value in enumerate(ANY):
        path = write(f"{name} = {value}", f"{number}.toml")
        try:
            read_config_file(path)
        except BadInputError as error:
            assert error.message.startswith(f"{path}: ")
            assert name in error.message
            assert error.message.isprintable()


def test_a_file_may_begin_with_a_byte_order_mark(write: Write) -> None:
    path = write("\ufeffserver_name = 'a.example'\r\n", "c.toml")

    assert "a.example" == read_config_file(path)["server_name"].value


@pytest.mark.parametrize("value", ["'abc'", "-1"])
def test_a_setting_of_the_file_is_not_called_by_its_option(
    invoke: Invoke, write: Write, value: str
) -> None:
    result = invoke(
        "resolve", "1.1.1.1", "--config", write(f"[timeouts]\ntotal = {value}", "c.toml")
    )

    assert (2, "") == (result.code, result.out)
    assert "c.toml: timeouts.total" in result.err
    assert "--timeout" not in result.err


def test_the_example_of_the_reference_is_one(write: Write) -> None:
    reference = Path(__file__).parents[2] / "docs" / "commands.md"
    example = reference.read_text().partition("```toml\n")[2].partition("```")[0]

    read = read_config_file(write(example, "c.toml"))

    assert "inviter.example" == read["server_name"].value
    assert read["backoff.after_failures"].value is None
    assert "notary.example" == read["keys.notaries"].value[0].server_name


def test_a_file_that_is_named_must_be_there(invoke: Invoke) -> None:
    result = invoke("resolve", "1.1.1.1", "--config", "nope.toml")

    assert (2, "invite-client: nope.toml cannot be read: No such file or directory\n") == (
        result.code,
        result.err,
    )


# --- Showing it ---------------------------------------------------------------------------------


def test_no_secret_is_shown(invoke: Invoke, write: Write) -> None:
    homeserver = write(f"server_name: a.example\nsigning_key: {INVITER_KEY.to_line()}\n", "h.yaml")
    proxy = write(f"[proxy]\nonion = 'socks5://me:{SECRET}@b.example:2'\n", "c.toml")
    options = [
        *("--homeserver-config", homeserver, "--config", proxy),
        *("--proxy", f"http://me:{SECRET}@a.example:1"),
    ]
    for form in ([], ["--json"]):
        result = invoke("send", "--show-config", *form, *options)

        assert (0, "") == (result.code, result.err)
        assert "http://a.example:1" in result.out
        assert "socks5://b.example:2" in result.out
        assert SECRET not in result.out
        assert INVITER_KEY.to_line().split()[-1] not in result.out


@pytest.mark.parametrize("command", ["send", "resolve", "keys", "bulk"])
def test_it_fits_a_terminal_and_needs_no_arguments(invoke: Invoke, command: str) -> None:
    result = invoke(command, "--show-config")

    assert (0, "") == (result.code, result.err)
    assert all(len(line) <= 80 for line in result.out.splitlines())
    assert "timeouts.total            60" in result.out


def test_arguments_are_needed_all_the_same(invoke: Invoke) -> None:
    assert 0 == invoke("resolve", "--show-config").code
    result = invoke("resolve")

    assert 2 == result.code
    assert "SERVER_NAME" in result.err


def test_an_empty_list_is_not_the_same_as_none(invoke: Invoke, write: Write) -> None:
    path = write("[servers]\nallowed = []\n", "c.toml")
    shown = invoke("resolve", "--show-config", "--config", path).out

    assert "servers.allowed           (empty)" in shown
    assert "tls.ca_file               not set" in shown


def test_a_key_that_is_given_in_place_of_its_file_is_not_shown(
    invoke: Invoke, request_file: Callable[..., str]
) -> None:
    options = ["--server-name", INVITER, "--signing-key", INVITER_KEY.to_line()]

    for arguments in (["send", request_file()], ["send", "--show-config"]):
        assert 2 == invoke(*arguments, *options).code


# --- Proxies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "options", "proxy"),
    [
        ({"https_proxy": "http://e.example:1"}, [], ("http://e.example:1", [])),
        ({"http_proxy": "http://e.example:1"}, [], (None, [])),
        (
            {"https_proxy": "http://e.example:1", "no_proxy": "lan"},
            [],
            ("http://e.example:1", ["lan"]),
        ),
        ({"https_proxy": "http://e.example:1", "no_proxy": "*"}, [], (None, ["*"])),
        ({"https_proxy": "e.example:1"}, [], ("http://e.example:1", [])),
        (
            {"https_proxy": "http://e.example:1", "no_proxy": "*.lan,<local>,lan"},
            [],
            ("http://e.example:1", ["lan"]),
        ),
        ({"no_proxy": "*"}, ["--proxy", "http://f.example:2"], ("http://f.example:2", ["*"])),
        (
            {"https_proxy": "http://e.example:1", "no_proxy": "lan"},
            ["--proxy", "http://f.example:2"],
            ("http://f.example:2", ["lan"]),
        ),
        ({"https_proxy": "http://e.example:1"}, ["--proxy", "none"], (None, [])),
        ({"https_proxy": "socks5h://e.example:1"}, ["--proxy", "none"], (None, [])),
        (
            {"https_proxy": "http://e.example:1"},
            ["--homeserver-config", "h.yaml"],
            ("http://h.example:3", ["hlan"]),
        ),
        (
            {"INVITE_CLIENT_PROXY": "http://v.example:4"},
            ["--homeserver-config", "h.yaml"],
            ("http://v.example:4", ["hlan"]),
        ),
    ],
)
def test_the_proxy_of_the_environment_counts_where_no_other_is_named(
    invoke: Invoke,
    in_environment: Callable[..., None],
    environment: dict[str, str],
    options: list[str],
    proxy: tuple[str | None, list[str]],
) -> None:
    Path("h.yaml").write_text(
        "server_name: h.example\nhttps_proxy: h.example:3\nno_proxy_hosts: [hlan]\n"
    )
    in_environment(**environment)

    found = settings(invoke, *options)

    assert proxy == (found["proxy.url"][0], found["proxy.bypass"][0])


@pytest.fixture
def in_environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return call


def test_a_proxy_of_the_environment_that_cannot_be_used_is_not_passed_over(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"socks5h://me:{SECRET}@e.example:1")
    result = invoke("resolve", "1.1.1.1")

    assert (2, "") == (result.code, result.out)
    assert result.err.startswith("invite-client: ALL_PROXY must be http://")
    assert SECRET not in result.err


# --- The store ----------------------------------------------------------------------------------


async def test_what_is_found_out_is_remembered_in_the_store(
    invoke: Invoke, reaching: list[str], network: LoopbackNetwork
) -> None:
    options = ["--store", "s.sqlite", *reaching]
    async with LoopbackHomeserver(srv="a.example:8449", network=network):
        first = await asyncio.to_thread(invoke, "resolve", "remote.example", *options)
    network.dns.remove("_matrix-fed._tcp.remote.example")
    second = await asyncio.to_thread(invoke, "resolve", "remote.example", *options)
    third = await asyncio.to_thread(invoke, "resolve", "remote.example", *reaching)

    assert (0, 0, 0) == (first.code, second.code, third.code)
    assert "a.example:8449" in second.out
    assert "a.example:8449" not in third.out


def test_a_store_that_cannot_be_used_is_named(invoke: Invoke, write: Write) -> None:
    path = write("this is no database, and long enough to be seen as none" * 10, "s.sqlite")
    result = invoke("resolve", "1.1.1.1", "--store", path)

    assert (2, "") == (result.code, result.out)
    assert path in result.err
    assert 1 == result.err.count("\n")
