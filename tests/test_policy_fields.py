"""Every field of every policy: what makes no sense there is refused, at once, by its name."""

from __future__ import annotations

import contextlib
import math
import ssl
from collections.abc import Callable, Mapping
from dataclasses import Field, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invite_client import (
    AddressPolicy,
    CachePolicy,
    DnsPolicy,
    InvalidInviteError,
    InviteClient,
    InviteError,
    KeyPolicy,
    Limits,
    Notary,
    Policy,
    ProxyPolicy,
    ServerPolicy,
    Timeouts,
    TlsPolicy,
)
from invite_client.spec.base64 import encode_unpadded
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.signatures import VerifyKey
from invite_client.testing import INVITER, INVITER_KEY, SimulatedHomeserver, make_invite

KEY = INVITER_KEY.verify_key.base64
SECRET = "s3cret"

OWNERS: Mapping[str, Callable[..., Any]] = {
    **{part.name: type(part.default) for part in fields(Policy) if part.name != "fallback"},
    "notary": lambda **values: Notary(**{"server_name": "a.example", **values}),
}
FIELDS: dict[str, Field[Any]] = {
    f"{owner}.{field.name}": field for owner, make in OWNERS.items() for field in fields(make())
}

NO_FLOAT = [None, True, "1", math.nan, math.inf, -math.inf, -1, 2**63, 1j, [1.0], Decimal(1)]
NO_INT = [None, True, "1", math.nan, math.inf, 1.0, 1.5, -1, 2**63, 10**5000, -(10**5000), [1]]
NO_TEXTS = [None, "x", "", 5, {"a.example": 1}, b"x", ("a.example", 1), [b"x"], (b"x",)]
NO_SENSE: Mapping[str, list[Any]] = {
    "float": NO_FLOAT,
    "float | None": NO_FLOAT[1:],
    "int": NO_INT,
    "int | None": NO_INT[1:],
    "bool": [None, 0, 1, "true", ()],
    "str": [None, 5, "", "a_b", b"a.example", ("a.example",)],
    "str | None": [5, "", b"http://a.example:1", ("http://a.example:1",), "http://a\ud800:1"],
    "tuple[str, ...]": [*NO_TEXTS, ("",), ("x y",), ("x\n",), ("\ud800",), ("x" * 10_000 + "*",)],
    "tuple[str, ...] | None": [*NO_TEXTS[1:], ("",), ("x y",), ("a_b",)],
    "str | os.PathLike[str] | tuple[str, ...] | None": [
        *(5, b"x", True, "", "a\0b", "\ud800"),
        *((), ("",), (Path("x"),), ("a.pem", "a\0b"), [5]),
    ],
    "ssl.TLSVersion": [
        *(None, "1.2", 771, ssl.TLSVersion.TLSv1_1),
        *(ssl.TLSVersion.MINIMUM_SUPPORTED, ssl.TLSVersion.MAXIMUM_SUPPORTED),
    ],
    "Mapping[str, str]": [
        *(None, [], "x", {1: KEY}, {"ed25519:a": None}),
        *({"ed25519:a": ""}, {"ed25519:a": KEY[:-1]}, {"ed25519:a": KEY + "A"}),
        *({"ed25519:a": f"{KEY}==="}, {"ed25519:a": f" {KEY}"}, {"ed25519:a-b": KEY}),
        *({"a": KEY}, {"ed25519:a b": KEY}, {"ed25519:": KEY}, {"ed25519:a": KEY, "b": KEY}),
    ],
    "tuple[Notary, ...]": [
        *(None, "x", ("x",), ["x"], Notary("a.example"), (Notary, 5)),
        (("a.example", {}),),
    ],
}
"""Of each type, what no field of it can be."""


def refusal(make: Callable[..., Any], setting: str, **values: Any) -> str:
    with pytest.raises(ValueError, match=rf"^{setting.replace('.', '[.]')}( must |: )") as caught:
        make(**values)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    return message


def test_every_field_has_a_type_that_is_known_here() -> None:
    assert {field.type for field in FIELDS.values()} == NO_SENSE.keys()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        pytest.param(setting, value, id=f"{setting}-{number}")
        for setting, field in FIELDS.items()
        for number, value in enumerate(NO_SENSE[str(field.type)])
    ],
)
def test_what_makes_no_sense_is_refused_by_the_name_of_the_field(setting: str, value: Any) -> None:
    owner, _, name = setting.partition(".")

    refusal(OWNERS[owner], setting, **{name: value})


@pytest.mark.parametrize("part", [field.name for field in fields(Policy)])
@pytest.mark.parametrize("value", [None, 5, True, Policy(), [SECRET]])
def test_a_part_is_of_its_type(part: str, value: Any) -> None:
    assert SECRET not in refusal(Policy, part, **{part: value})


@pytest.mark.parametrize("value", [f"http://me:{SECRET}@a:1".encode(), [SECRET], (SECRET,)])
def test_what_is_given_for_a_proxy_is_never_shown(value: Any) -> None:
    for name in ("url", "onion"):
        assert SECRET not in refusal(ProxyPolicy, f"proxy.{name}", **{name: value})


@pytest.mark.parametrize("setting", ["proxy.bypass", "servers.blocked", "tls.unverified"])
@pytest.mark.parametrize("text", [f"http://me:{SECRET}@a:1", f"ed25519 a_1 {SECRET}"])
def test_a_secret_at_a_wrong_place_is_not_shown(setting: str, text: str) -> None:
    owner, _, name = setting.partition(".")
    for value in (text, (text,), [text], ("x" * 200 + text,)):
        assert SECRET not in refusal(OWNERS[owner], setting, **{name: value})


def test_nor_is_what_is_given_for_a_key() -> None:
    for keys in ({"ed25519:a": INVITER_KEY.to_line()}, {INVITER_KEY.to_line(): KEY}):
        message = refusal(Notary, "notary.verify_keys", server_name="a.example", verify_keys=keys)

        assert not any(word in message for word in INVITER_KEY.to_line().split()[1:])


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("retries.attempts", 1.5, "must be a whole number below 2**63, not 1.5"),
        ("retries.attempts", 0, "must be greater than 0, not 0"),
        ("timeouts.total", "60", "must be a number below 2**63, not '60'"),
        ("timeouts.total", math.nan, "must be a number below 2**63, not nan"),
        ("timeouts.total", 0, "must be greater than 0, not 0"),
        ("cache.stale", -0.5, "must not be negative, not -0.5"),
        ("cache.jitter", 1.5, "must be at most 1, not 1.5"),
        ("bulk.kept_for_prompt", 1, "must be less than 1, not 1"),
        ("bulk.rate", 0, "must be greater than 0, not 0"),
        ("backoff.after_failures", 0, "must be greater than 0, not 0"),
        ("dns.port", 65_536, "must be at most 65535, not 65536"),
        ("keys.maximum_validity", 604_801, "must be at most 604800.0, not 604801"),
        ("addresses.allowed", "10.0.0.0/8", "must be a tuple of strings, not '10.0.0.0/8'"),
        ("addresses.allowed", [10], "must be a tuple of strings, not (10,)"),
        ("addresses.blocked", ("10.0.0.1/8",), "'10.0.0.1/8' is not a network; expected one such"),
        ("servers.allowed", ("a_b",), "'a_b' is not a server name; expected one such as"),
        ("servers.blocked", ("a.example", "*.example"), "'*.example' is not a server name"),
        ("tls.unverified", ("a_b.example",), "'a_b.example' is not a server name"),
        ("tls.unverified", ("a.example:port",), "'a.example:port' is not a server name"),
        ("tls.ca_file", ("a.pem", ""), "'' is not the name of a file; expected one of"),
        ("proxy.bypass", ("lan", "x y"), "'x y' is not a name, an address or a network; expected"),
        ("proxy.bypass", ("*.lan",), "'*.lan' is not a name"),
        ("proxy.bypass", ("lan:0",), "'lan:0' is not a name"),
        ("proxy.bypass", ("10.0.0.0/33",), "'10.0.0.0/33' is not a name"),
        ("proxy.bypass", ("[lan]",), "'[lan]' is not a name"),
        ("proxy.url", "http://a b:1", "must be http://"),
        ("proxy.url", "http://\u2160.example:1", "must be http://"),
        ("keys.notaries", ("x",), "must be a tuple of Notary, not ('x',)"),
        ("notary.server_name", "a..b", "'a..b' is not a server name; expected one such as"),
        ("notary.verify_keys", {"ed25519:a": "x"}, "number 1 is not a public key; expected"),
    ],
)
def test_it_is_said_what_was_found_and_what_is_expected(
    setting: str, value: Any, words: str
) -> None:
    owner, _, name = setting.partition(".")

    assert words in refusal(OWNERS[owner], setting, **{name: value})


BOUNDS = [
    ("retries", "first_wait", "max_wait"),
    ("dns", "minimum_ttl", "maximum_ttl"),
    ("cache", "minimum", "maximum"),
    ("cache", "failure_first", "failure_maximum"),
    ("backoff", "first", "maximum"),
    ("bulk", "first_wait", "max_wait"),
]


@pytest.mark.parametrize(("owner", "lower", "upper"), BOUNDS)
def test_no_lower_bound_is_above_its_upper_one(owner: str, lower: str, upper: str) -> None:
    make = OWNERS[owner]
    message = refusal(make, f"{owner}.{lower}", **{lower: 10, upper: 5})

    assert f"{owner}.{lower} must be at most {owner}.{upper} (5), not 10" == message
    assert 5 == getattr(make(**{lower: 5, upper: 5}), lower)


@pytest.mark.parametrize(("owner", "lower", "upper"), BOUNDS)
def test_a_default_lower_bound_gives_way(owner: str, lower: str, upper: str) -> None:
    assert 0.001 == getattr(OWNERS[owner](**{upper: 0.001}), upper)


@pytest.mark.parametrize("kind", [list, set, frozenset])
def test_what_is_no_tuple_becomes_one(kind: Any) -> None:
    policy = ServerPolicy(allowed=kind(["a.example"]), blocked=kind(["b.example"]))

    assert ServerPolicy(allowed=("a.example",), blocked=("b.example",)) == policy
    assert isinstance(hash(policy), int)


# --- What does make sense -----------------------------------------------------------------------

ALLOWED_ZEROS = {
    *("retries.first_wait", "limits.connections_ahead", "dns.failure_ttl", "dns.stale"),
    *("dns.minimum_ttl", "dns.maximum_ttl", "dns.maximum_negative_ttl", "cache.default"),
    *(
        "cache.minimum",
        "cache.maximum",
        "cache.remember_valid",
        "cache.stale",
        "cache.jitter",
        "keys.failure_memory",
    ),
    *("keys.hedge_after", "backoff.remember", "bulk.longest_deferral", "bulk.first_wait"),
    *("bulk.patience", "bulk.patience_when_full", "bulk.kept_for_prompt"),
}


@pytest.mark.parametrize(
    "setting", [s for s, field in FIELDS.items() if str(field.type).startswith(("int", "float"))]
)
def test_numbers_are_greater_than_0_but_for_a_few(setting: str) -> None:
    owner, _, name = setting.partition(".")
    lower = next((low for own, low, up in BOUNDS if (own, up) == (owner, name)), name)
    if setting in ALLOWED_ZEROS:
        assert 0 == getattr(OWNERS[owner](**{name: 0, lower: 0}), name)
    else:
        refusal(OWNERS[owner], setting, **{name: 0})


@pytest.mark.parametrize(
    "policy",
    [
        DnsPolicy(minimum_ttl=0, maximum_ttl=0),
        CachePolicy(minimum=0, maximum=0, jitter=1),
        Limits(concurrency=2**63 - 1),
        Timeouts(total=1),
        TlsPolicy(ca_file=Path("a.pem")),
        TlsPolicy(ca_file=("a.pem", "b.pem"), unverified=("*.lab.example:*", "[2001:db8::?]")),
        AddressPolicy(allowed=("10.0.0.0/8", "::1")),
        ServerPolicy(allowed=(), blocked=("a.example.", "192.0.2.1", "[::ffff:192.0.2.1]:1")),
        ProxyPolicy("http://my_proxy:1", bypass=("my_host", ".a.", "a:1", "*:443", "10.0.0.1/8")),
        ProxyPolicy("socks5://[::1]:1", bypass=("[::1]:1", "fd00::/8", "10.0.0.0/8:1", "*")),
        Notary("a.example:1", {"ed25519:a_1": KEY, "ed25519:b": f"{KEY}="}),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_what_makes_sense_is_kept_as_it_is(policy: Any) -> None:
    assert policy == replace(policy)


def test_of_no_proxy_only_what_is_known_is_kept() -> None:
    """The variable is for all programs, and each has forms of its own."""
    policy = ProxyPolicy.from_environment({"no_proxy": "lan,*.example,<local>,10.0.0.0/33 ::1"})

    assert ("lan", "::1") == policy.bypass


# --- Anything -----------------------------------------------------------------------------------

texts = st.text() | st.text("aA1.-_:[]*?/ \n@é٣", max_size=20) | st.from_regex(r"[a1.:\[\]-]+")
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2**63 - 1, 2**63, 10**400])
    | st.just(5000).map(lambda digits: 10**digits)  # its repr() raises
    | st.floats()
    | texts
    | st.binary(max_size=4)
    | st.builds(object)
    | st.sampled_from([*ssl.TLSVersion, Path("x"), Notary("a.example"), "http://a.example:1"])
    | st.ip_addresses().map(str),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(texts | st.just("ed25519:a"), inner | st.just(KEY), max_size=2)
    ),
    max_leaves=4,
)


@given(setting=st.sampled_from([*FIELDS, *(part.name for part in fields(Policy))]), value=anything)
@example("limits.redirects", 2**63 - 1)
@example("retries.attempts", 2**63 - 1)
@example("timeouts.total", 5e-324)
@example("timeouts.total", 2**63 - 1)
@example("keys.notaries", (Notary("a.example", {"ed25519:a": KEY}),))
async def test_any_value_makes_a_policy_that_can_be_used_or_an_error_that_names_the_field(
    setting: str, value: Any
) -> None:
    owner, _, name = setting.partition(".")
    try:
        made = OWNERS[owner](**{name: value}) if name else value
        part = {"keys": KeyPolicy(notaries=(made,))} if owner == "notary" else {owner: made}
        policy = Policy(**part)
    except ValueError as error:
        assert setting in str(error)
        assert str(error).isprintable()
        return
    async with InviteClient("a.example", INVITER_KEY, policy=policy):
        pass
    async with SimulatedHomeserver().client(INVITER, policy=policy) as client:
        with contextlib.suppress(InviteError):  # out of time, or not allowed
            assert (await client.send_invite(make_invite())).signatures


@given(texts)
def test_whatever_no_proxy_says_is_no_reason_to_stop(text: str) -> None:
    """Nothing of it is added, and what is kept can be given again."""
    policy = ProxyPolicy.from_environment({"no_proxy": text})

    assert {*policy.bypass} <= {*text.replace(",", " ").split()}
    assert policy == ProxyPolicy(bypass=policy.bypass)


def accepts(read: Callable[[str], object], text: str) -> bool:
    try:
        read(text)
    except InvalidInviteError:
        return False
    except ValueError as error:
        assert "servers.allowed: " in str(error)
        return False
    return True


@given(
    texts
    | st.from_regex(r"\A[a-c1-3.-]{1,8}\.?(:[0-9]{1,6})?\Z")
    | st.ip_addresses().map(lambda ip: f"[{ip}]")
    | st.ip_addresses(v=4).map(lambda ip: f"{ip}.")
)
@example("[::ffff:192.0.2.1]")
@example("[fe80::1%1]")
@example("1.2.3")
@example("a.256")
@example("a.²")
@example("a" * 63 + ".b")
@example("a" * 64)
@example(".".join(["a"] * 128))
@example(".".join(["a"] * 128) + ".")
@example("a.example:00001")
@example("a.example:65536")
def test_a_server_name_is_what_the_specification_calls_one(text: str) -> None:
    assert accepts(parse_server_name, text) is accepts(lambda t: ServerPolicy(allowed=(t,)), text)


@given(
    st.from_regex(r"\Aed25519:[a-z_é-]{0,3}\Z") | texts,
    st.binary(min_size=31, max_size=33).map(encode_unpadded) | texts,
    st.integers(0, 3),
)
def test_a_pinned_key_is_what_the_specification_calls_one(
    key_id: str, text: str, padding: int
) -> None:
    text += "=" * padding
    try:
        VerifyKey.from_base64(key_id, text)
    except ValueError:
        refusal(Notary, "notary.verify_keys", server_name="a.example", verify_keys={key_id: text})
    else:
        assert {key_id: text} == Notary("a.example", {key_id: text}).verify_keys
