"""A small internet on loopback, to try the command on: servers that are well, and broken ones.

    python examples/playground.py playground     # stays until Ctrl-C

Into the folder `playground` it writes a configuration that leads to these servers and nowhere else,
and what the command is given: a key, a request, a room, a list of users. In another terminal:

    export INVITE_CLIENT_CONFIG=playground/config.toml
    invite-client doctor expired.example
    invite-client send playground/request.json

`SERVERS` says what is wrong with each of them.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from invite_client import SigningKey
from invite_client.testing import (
    EXPIRED,
    INVITER,
    INVITER_KEY,
    SERVFAIL,
    Certificate,
    LoopbackHomeserver,
    LoopbackNetwork,
    Slow,
    Srv,
    badly_signed,
    make_invite,
    make_room,
)

HOUR = 3600
NOT_PUBLIC = "10.1.2.3"
CLOSED = Srv("matrix.closed.example", 8449, listens=False)
PERSONS = 100
"""Users on each of the servers that are invited from."""


def is_no_homeserver(server: LoopbackHomeserver) -> None:
    """Answer as a web server that passes nothing on."""
    for endpoint in ("version", "keys", "v2", "v1", "profile"):
        server.answers(404, body=b"<html>Not found</html>", endpoint=endpoint)


def signs_its_keys_badly(server: LoopbackHomeserver) -> None:
    """Publish keys, and then others under the same signature."""
    keys = server.server_keys()
    keys["valid_until_ts"] += 1
    server.answers(200, body=json.dumps(keys).encode(), endpoint="keys")


def limits(server: LoopbackHomeserver) -> None:
    """Refuse three invites before one is taken."""
    server.answers(429, "M_LIMIT_EXCEEDED", headers={"Retry-After": "1"}, times=3)


def moves_away(server: LoopbackHomeserver) -> None:
    """Have an address that only its own network knows."""
    server.network.dns.remove(server.server_name)
    server.network.dns.add(server.server_name, "A", NOT_PUBLIC)


def loses_its_name_server(server: LoopbackHomeserver) -> None:
    """Have a domain of which nobody can say what is in it."""
    for service in ("", "_matrix-fed._tcp.", "_matrix._tcp."):
        server.network.dns.fails(f"{service}{server.server_name}", SERVFAIL)


def nothing(_: LoopbackHomeserver) -> None:
    """Be well."""


OURS = {"signing_key": INVITER_KEY}
SERVERS: dict[str, tuple[str, dict[str, Any], Callable[[LoopbackHomeserver], object]]] = {
    INVITER: ("this is you", OURS, nothing),
    "well.example": ("nothing is wrong with it", {}, nothing),
    "moved.example": ("it delegates", {"well_known": "matrix.moved.example:8449"}, nothing),
    "old.example": ("it knows only v1", {"endpoints": ("v1",)}, nothing),
    "shy.example": (
        "it refuses invites",
        {},
        lambda server: server.answers(403, "M_FORBIDDEN", "We take no invites from strangers"),
    ),
    "slow.example": ("it takes a second", {}, lambda server: server.fails(Slow(1.0))),
    "busy.example": ("it limits how many it takes", {}, limits),
    "forger.example": ("it forges", {}, lambda server: server.lies(badly_signed())),
    # Invites to these do not arrive, and `doctor` says why.
    "expired.example": ("its certificate has expired", {"certificate": EXPIRED}, nothing),
    "renamed.example": (
        "its certificate is for another name",
        {"certificate": Certificate.of("www.example")},
        nothing,
    ),
    "closed.example": (
        "it delegates to a place where nobody listens",
        {"well_known": CLOSED.target, "srv": CLOSED},
        nothing,
    ),
    "tampered.example": ("its keys are not signed with themselves", {}, signs_its_keys_badly),
    "stale.example": ("its keys have expired", {"key_validity": -HOUR}, nothing),
    "web.example": ("a web server answers in its place", {}, is_no_homeserver),
    "early.example": (
        "its clock is an hour ahead",
        {"now": lambda: time.time() + HOUR},
        nothing,
    ),
    "nodns.example": ("its name server fails", {}, loses_its_name_server),
    "private.example": ("its address is not public", {}, moves_away),
}
INVITED = ("well", "moved", "old", "shy", "slow", "busy", "forger", "expired")


def key_of(name: str) -> SigningKey:
    """Return a server's key: the same each time, for a store remembers it (--store)."""
    seed = base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()
    return SigningKey.from_seed("theirs", seed)


def cannot_be_found(network: LoopbackNetwork) -> list[str]:
    """Return the servers whose well-known file nobody finds: port 443 is not for all to listen on."""
    delegating = [name for name, (_, options, _) in SERVERS.items() if "well_known" in options]
    places = {name: (network.host(name)[0], 443) for name in delegating}
    return [name for name in delegating if network.reroute(*places[name]) != places[name]]


def write_files(directory: Path, network: LoopbackNetwork) -> None:
    """Write what the command needs, to reach this network and to have something to send."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ca.pem").write_bytes(network.ca_file.read_bytes())
    (directory / "config.toml").write_text(
        f'server_name = "{INVITER}"\n'
        'signing_key = "signing.key"\n'
        "\n"
        "[addresses]\n"
        'allowed = ["127.0.0.0/8"]\n'
        "\n"
        "[dns]\n"
        f'nameservers = ["{network.dns.address}"]\n'
        f"port = {network.dns.port}\n"
        "\n"
        "[tls]\n"
        'ca_file = "ca.pem"\n'
    )
    key = directory / "signing.key"
    key.touch(mode=0o600)  # the command warns of a key that others can read
    key.write_text(INVITER_KEY.to_line() + "\n")
    request = make_invite("@bob:well.example").to_request()
    (directory / "request.json").write_text(json.dumps(request))
    (directory / "room.json").write_text(json.dumps(dataclasses.asdict(make_room())))
    servers = [f"{name}.example" for name in INVITED]
    servers = [name for name in servers if name not in cannot_be_found(network)]
    users = [f"@user{n}:{name}" for n in range(PERSONS) for name in servers]
    (directory / "users.txt").write_text("\n".join(users) + "\n")


async def main(directory: Path) -> None:
    """Listen until Ctrl-C, or until the process is told to end."""
    ended = asyncio.Event()
    for told in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(told, ended.set)
    network = LoopbackNetwork()
    async with AsyncExitStack() as stack:
        for name, (_, options, break_it) in SERVERS.items():
            made = {"signing_key": key_of(name), "network": network, **options}
            server = LoopbackHomeserver(name, record=False, **made)
            await stack.enter_async_context(server)
            break_it(server)
        write_files(directory, network)
        for name, (what, _, _) in SERVERS.items():
            print(f"{name:18}{what}")
        lost = cannot_be_found(network)
        if lost:
            print(f"\nPort 443 is not for you to listen on: {', '.join(lost)} cannot be found.")
        print(f"\nIn another terminal: export INVITE_CLIENT_CONFIG={directory / 'config.toml'}")
        print("Ctrl-C ends it.", flush=True)
        await ended.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/playground.py FOLDER")
    with suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1])))
