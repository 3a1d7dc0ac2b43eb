"""What is on the wire: names, keys, certificates, DNS, invites, and the answer to each of them.

All of it is made before anything is timed, the countersigned answers too, so that the servers have
nothing to do but to look them up.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import trustme

from invite_client import Invite, SigningKey
from invite_client.signing_keys import write_signing_key
from invite_client.spec.room_versions import room_version
from invite_client.spec.signatures import sign_event, sign_json

__all__ = ["CASES", "FORGERIES", "LEAST", "ORIGIN", "Peer", "Scenario", "make"]

ORIGIN = "inviter.bench.example"
ROOM_VERSION = "10"
VERSION = room_version(ROOM_VERSION)
NOW = 1_764_000_000_000  # origin_server_ts: any time before the keys expire
YEAR_2100 = 4_102_444_800_000

FAST_ADDRESS = "127.0.0.1"
"""The servers themselves."""
SLOW_ADDRESS = "127.0.0.2"
"""The same servers behind a relay that delays."""
LITERALS = tuple(f"127.0.1.{n}" for n in range(1, 33))
"""More addresses of the relay: a server name that is an IP literal is cold only once."""

LEAST = {"well-known": 8, "SRV": 5, "legacy SRV": 5, "8448": 5, "IP literal": 3}
"""The fewest round trips possible for a name never seen before, by how it is found.

A look-up takes 1, TCP 1, TLS 1.3 1, a request 1. A well-known file must have come (4) before the
server that it names may be asked (4 more). Where there is none, all that is needed can be got ready
while the web server is asked for it (4), and then 1 remains: the invite, and beside it the keys.
"""
CASES = tuple(LEAST)

FORGERIES = ("unsigned", "badly signed", "changed", "unpublished key")


@dataclass
class Scenario:
    """What the contenders are told."""

    directory: str
    port: int
    """Of the servers and of the relay, on different addresses; stands for 443 and 8448 as well."""
    dns_port: int
    ca_file: str
    signing_key_file: str
    verify_keys: dict[str, str]
    """The keys of all remote servers: key ID to base64. They share one, to keep this small."""

    def pool(self, name: str) -> list[dict[str, Any]]:
        """Read the bodies of the v2 invite requests of a pool.

        One by one: what a contender does not send shall be no part of its memory, nor of what its
        garbage collector looks through.
        """
        bodies: list[dict[str, Any]] = json.loads(_pool_file(self.directory, name).read_bytes())
        return bodies

    def save(self) -> None:
        """Write it where the children look for it."""
        Path(self.directory, "scenario.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, directory: str) -> Self:
        """Read what was saved."""
        return cls(**json.loads(Path(directory, "scenario.json").read_text()))


def _pool_file(directory: str, name: str) -> Path:
    return Path(directory, f"pool {name}.json")


@dataclass
class Peer:
    """What the servers are told."""

    port: int
    dns_port: int
    certificate_file: str
    invites: dict[str, str] = field(default_factory=dict)
    """Request target to the body of the answer."""
    files: dict[str, str] = field(default_factory=dict)
    """``host uri`` to the body of the answer."""
    addresses: dict[str, str] = field(default_factory=dict)
    """The zone's A records: names that end so, to their address."""
    srv: dict[str, tuple[int, str]] = field(default_factory=dict)
    """The zone's SRV records: name to port and target."""
    literals: list[str] = field(default_factory=list)

    def save(self, directory: str) -> None:
        """Write it where the servers look for it."""
        Path(directory, "peer.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, directory: str) -> Self:
        """Read what was saved."""
        return cls(**json.loads(Path(directory, "peer.json").read_text()))


def make(directory: Path, *, hot: int, cold: int, bulk_rounds: int, bulk_names: int) -> Scenario:
    """Make a scenario with so many hot invites, cold names per case, and cold names per bulk round."""
    ca = trustme.CA()
    leaf = ca.issue_cert(
        "*.fast.example", "*.slow.example", FAST_ADDRESS, SLOW_ADDRESS, *LITERALS[:cold]
    )
    ca_file, certificate_file = directory / "ca.pem", directory / "certificate.pem"
    ca.cert_pem.write_to_path(str(ca_file))
    leaf.private_key_and_cert_chain_pem.write_to_path(str(certificate_file))

    maker = _Maker(Peer(_free_port(), _free_port(), str(certificate_file)))
    maker.peer.addresses = {".fast.example": FAST_ADDRESS, ".slow.example": SLOW_ADDRESS}
    maker.peer.literals = list(LITERALS[:cold])
    signing_key_file = directory / "signing.key"
    write_signing_key(signing_key_file, maker.own_key)

    hot_name = maker.server("hot", "fast", "well-known")
    pools = {
        # The room's state fills the body up to 5.5 KB, which is what an ordinary room has.
        "hot": [maker.invite(hot_name, state=7) for _ in range(hot)],
        "warm": [maker.invite(maker.server("warm", "slow", "well-known"))],
    }
    for kind in FORGERIES:
        name = maker.server(f"liar-{kind.replace(' ', '-')}", "fast", "well-known")
        pools[f"forged {kind}"] = [maker.invite(name, forgery=kind)]
    for number, case in enumerate(CASES):
        pools[f"cold {case}"] = [
            maker.invite(
                LITERALS[n]
                if case == "IP literal"
                else maker.server(f"cold-{number}-{n}", "slow", case)
            )
            for n in range(cold)
        ]
    for literal in LITERALS[:cold]:
        maker.keys(literal, literal)
    named = [case for case in CASES if case != "IP literal"]
    for r in range(bulk_rounds):
        pools[f"bulk {r}"] = [
            maker.invite(maker.server(f"bulk-{r}-{n}", "fast", named[n % len(named)]))
            for n in range(bulk_names)
        ]

    scenario = Scenario(
        directory=str(directory),
        port=maker.peer.port,
        dns_port=maker.peer.dns_port,
        ca_file=str(ca_file),
        signing_key_file=str(signing_key_file),
        verify_keys={maker.remote_key.key_id: maker.remote_key.verify_key.base64},
    )
    for pool, bodies in pools.items():
        _pool_file(scenario.directory, pool).write_text(json.dumps(bodies))
    scenario.save()
    maker.peer.save(str(directory))
    return scenario


class _Maker:
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.own_key = SigningKey.generate("own")
        self.remote_key = SigningKey.generate("remote")
        self.other_key = SigningKey.generate("other")
        self.numbers: Iterator[int] = iter(range(1_000_000))

    def server(self, label: str, zone: str, case: str) -> str:
        """Put a homeserver on the map and return its name."""
        name = f"{label}.{zone}.example"
        reached = name
        match case:
            case "well-known":
                reached = f"hs-{name}:{self.peer.port}"
                self.peer.files[f"{name} /.well-known/matrix/server"] = json.dumps(
                    {"m.server": reached}
                )
            case "SRV":
                self.peer.srv[f"_matrix-fed._tcp.{name}"] = (self.peer.port, f"srv-{name}")
            case "legacy SRV":
                self.peer.srv[f"_matrix._tcp.{name}"] = (self.peer.port, f"srv-{name}")
        self.keys(name, reached)
        return name

    def keys(self, name: str, host: str) -> None:
        """Publish the keys of `name` where it is reached."""
        published = json.dumps(_published(name, self.remote_key))
        # A server that is told no port may be told the standard one; Synapse does so.
        for header in (host, f"{host}:8448"):
            self.peer.files[f"{header} /_matrix/key/v2/server"] = published

    def invite(self, name: str, *, state: int = 1, forgery: str | None = None) -> dict[str, Any]:
        """Make an invite of a user of `name`, and the answer that it will get."""
        number = next(self.numbers)
        room = f"!{number:018d}:{ORIGIN}"
        event = {
            "type": "m.room.member",
            "room_id": room,
            "sender": f"@alice:{ORIGIN}",
            "state_key": f"@bob-{number}:{name}",
            "content": {
                "membership": "invite",
                "displayname": "Bob",
                "avatar_url": f"mxc://{ORIGIN}/aBcDeFgHiJkLmNoPqRsTuVwX",
                "is_direct": True,
            },
            "origin_server_ts": NOW,
            "depth": 20,
            "prev_events": [_reference(number, 0)],
            "auth_events": [_reference(number, n) for n in range(1, 5)],
            "unsigned": {"age": 17},
        }
        room_state = [self.state(room, *entry) for entry in _STATE[:state]]
        invite = Invite.sign(event, ROOM_VERSION, self.own_key, room_state)
        target = f"/_matrix/federation/v2/invite/{_quoted(room)}/{_quoted(invite.event_id)}"
        answer = {"event": self.countersigned(invite, name, forgery)}
        self.peer.invites[target] = json.dumps(answer, separators=(",", ":"))
        return invite.to_request()

    def countersigned(self, invite: Invite, name: str, forgery: str | None) -> dict[str, Any]:
        event = invite.copy_event()
        if forgery == "changed":
            event["content"]["displayname"] = "Mallory"
        signed = sign_event(
            event,
            name,
            self.other_key if forgery == "unpublished key" else self.remote_key,
            VERSION,
        )
        if forgery == "unsigned":
            del signed["signatures"][name]
        if forgery == "badly signed":
            # A signature of the right form, by another key under the name of the published one.
            signed["signatures"][name] = {self.remote_key.key_id: self.other_key.sign(b"else")}
        return signed

    def state(
        self, room: str, kind: str, content: Mapping[str, Any], state_key: str
    ) -> dict[str, Any]:
        event = {
            "type": kind,
            "room_id": room,
            "sender": f"@alice:{ORIGIN}",
            "state_key": state_key,
            "content": content,
            "origin_server_ts": NOW - 1000,
            "depth": 5,
            "prev_events": [_reference(1, 7)],
            "auth_events": [_reference(1, n) for n in range(3)],
        }
        return sign_event(event, ORIGIN, self.own_key, VERSION)


_STATE: Sequence[tuple[str, Mapping[str, Any], str]] = (
    ("m.room.create", {"creator": f"@alice:{ORIGIN}", "room_version": ROOM_VERSION}, ""),
    ("m.room.name", {"name": "A room with an ordinary name – für alle"}, ""),
    ("m.room.join_rules", {"join_rule": "invite"}, ""),
    ("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}, ""),
    ("m.room.topic", {"topic": "What is spoken of here, in a sentence or two of some length."}, ""),
    ("m.room.avatar", {"url": f"mxc://{ORIGIN}/aBcDeFgHiJkLmNoPqRsTuVwX"}, ""),
    ("m.room.canonical_alias", {"alias": f"#ordinary:{ORIGIN}"}, ""),
)


def _published(name: str, key: SigningKey) -> dict[str, Any]:
    return sign_json(
        {
            "server_name": name,
            "valid_until_ts": YEAR_2100,
            "verify_keys": {key.key_id: {"key": key.verify_key.base64}},
            "old_verify_keys": {},
        },
        name,
        key,
    )


def _reference(*seed: int) -> str:
    digest = bytes(seed[n % len(seed)] * 7 % 256 for n in range(32))
    return "$" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _quoted(text: str) -> str:
    return text.replace("!", "%21").replace(":", "%3A").replace("$", "%24")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((FAST_ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port
