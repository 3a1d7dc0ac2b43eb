"""Synapse's own way to send an invite, driven as a library.

    python -m benchmarks.synapse DIRECTORY plain|checked

A whole Synapse homeserver object, configured and with an empty SQLite database in memory, from which
only its federation client is used: `FederationClient.send_invite`, as its own handlers call it. What
that asks of the room's database is answered from memory at once, which is to Synapse's advantage.
Names and ports are those of the scenario; nothing else is changed.

``plain`` is what Synapse does: it checks our own signature on what comes back, and not the invited
server's. ``checked`` asks its key ring to verify that one too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from synapse.api.room_versions import KNOWN_ROOM_VERSIONS
from synapse.app.homeserver import SynapseHomeServer
from synapse.config.homeserver import HomeServerConfig
from synapse.events import make_event_from_dict
from synapse.logging import context as _context
from twisted.internet import defer
from twisted.internet import reactor as _reactor
from twisted.internet.abstract import isIPAddress
from twisted.internet.interfaces import IResolverSimple
from twisted.internet.threads import blockingCallFromThread
from twisted.names import client as _names
from zope.interface import implementer  # type: ignore[import-untyped]

from benchmarks.children import reply
from benchmarks.contender import chosen, figures, start_clock
from benchmarks.scenario import ORIGIN, ROOM_VERSION, Scenario

# Their annotations are incomplete, and do not foresee what is replaced here.
reactor: Any = _reactor
names: Any = _names
contexts: Any = _context

_VERSION = KNOWN_ROOM_VERSIONS[ROOM_VERSION]


class Synapse:
    """The federation client of a homeserver that does nothing else."""

    def __init__(self, scenario: Scenario, *, checked: bool) -> None:
        self.scenario = scenario
        self.checked = checked
        server: Any = SynapseHomeServer(
            ORIGIN, config=_config(scenario), reactor=_rewired(scenario)
        )
        server.setup()
        self.federation: Any = server.get_federation_client()
        self.keyring: Any = server.get_keyring()
        self.state_ids: dict[str, list[str]] = {}
        self.state: dict[str, Any] = {}
        # The room is in nobody's database; in a real one the answers come from caches as well.
        store = server.get_datastores().main
        store.get_room_version = self._room_version
        store.get_stripped_room_state_ids_from_event_context = self._state_ids
        store.get_events = self._events
        server.get_room_policy_handler()._get_policy_server = self._policy_server  # noqa: SLF001

    async def _room_version(self, _room_id: str) -> Any:
        return _VERSION

    async def _state_ids(self, event: Any, _context: Any) -> list[str]:
        return self.state_ids[event.event_id]

    async def _events(self, ids: Collection[str]) -> dict[str, Any]:
        return {event_id: self.state[event_id] for event_id in ids}

    async def _policy_server(self, _room_id: str) -> None:
        return None

    def prepare(self, body: dict[str, Any]) -> Any:
        """Make the event objects that a handler has in its hands."""
        event: Any = make_event_from_dict(body["event"], _VERSION)
        state: list[Any] = [make_event_from_dict(e, _VERSION) for e in body["invite_room_state"]]
        self.state_ids[event.event_id] = [entry.event_id for entry in state]
        self.state.update((entry.event_id, entry) for entry in state)
        return event

    async def send(self, event: Any) -> None:
        """Have one invite signed."""
        destination = event.state_key.partition(":")[2]
        with contexts.LoggingContext(name="invite", server_name=ORIGIN):
            returned = await self.federation.send_invite(
                destination, event.room_id, event, context=None
            )
            if self.checked:
                await self.keyring.verify_event_for_server(
                    destination, returned, returned.origin_server_ts
                )

    async def run(self, pool: list[Any], command: dict[str, Any]) -> dict[str, Any]:
        """Send invites, `concurrency` at a time."""
        invites: Iterator[Any] = chosen(pool, command)
        failures: list[BaseException] = []

        async def worker() -> None:
            for invite in invites:
                try:
                    await self.send(invite)
                except Exception as error:  # noqa: BLE001  # counted, and reported by the harness
                    failures.append(error)

        clock = start_clock()
        workers = [contexts.run_in_background(worker) for _ in range(command["concurrency"])]
        await defer.DeferredList(workers)
        return figures(clock, command["count"], failures)


def _config(scenario: Scenario) -> HomeServerConfig:
    config = HomeServerConfig()
    config.parse_config_dict(
        {
            "server_name": ORIGIN,
            "report_stats": False,
            "signing_key_path": scenario.signing_key_file,
            "database": {"name": "sqlite3", "args": {"database": ":memory:", "cp_max": 1}},
            "federation_custom_ca_list": [scenario.ca_file],
            "ip_range_blacklist": [],
            "federation_ip_range_blacklist": [],
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "macaroon_secret_key": "benchmark",
            "registration_shared_secret": "benchmark",
            "form_secret": "benchmark",
            "enable_metrics": False,
            "listeners": [],
            "media_store_path": f"{scenario.directory}/media",
        },
        "",
        "",
    )
    return config


@implementer(IResolverSimple)
class _Addresses:
    """Asks a name server for A records, where Twisted's own would ask for records of every type."""

    def __init__(self, resolver: Any) -> None:
        self.resolver = resolver

    def getHostByName(self, name: str, timeout: Sequence[int] = ()) -> Any:  # noqa: ARG002, N802  # as Twisted defines it
        """Return a deferred that comes to an address."""
        if isIPAddress(name):
            return defer.succeed(name)
        found = self.resolver.lookupAddress(name)
        return found.addCallback(lambda sections: sections[0][0].payload.dottedQuad())


def _rewired(scenario: Scenario) -> Any:
    """The reactor, asking the scenario's name server and dialling its port."""
    resolver = names.Resolver(servers=[("127.0.0.1", scenario.dns_port)])
    names.theResolver = resolver
    reactor.installResolver(_Addresses(resolver))
    dial = reactor.connectTCP

    def connect(host: str, port: int, *arguments: Any, **named: Any) -> Any:
        return dial(host, scenario.port if port in (443, 8448) else port, *arguments, **named)

    reactor.connectTCP = connect
    return reactor


def _obey(synapse: Synapse) -> None:
    """In a thread: read commands, have each done by the reactor, until there are no more."""
    name = ""
    prepared: list[Any] = []

    def do(command: dict[str, Any]) -> Any:
        return defer.ensureDeferred(synapse.run(prepared, command))

    try:
        for line in sys.stdin:
            command = json.loads(line)
            if name != command["pool"]:
                name = command["pool"]
                prepared = [synapse.prepare(body) for body in synapse.scenario.pool(name)]
            reply(**blockingCallFromThread(reactor, do, command))
    finally:
        # Not `reactor.stop`: it waits for what a homeserver has in the background.
        os._exit(0)


if __name__ == "__main__":
    directory, what = sys.argv[1:]
    # At the level of a server in production, written to where it costs nothing.
    logging.basicConfig(level=logging.INFO, handlers=[logging.NullHandler()])
    main = Synapse(Scenario.load(directory), checked=what == "checked")
    reactor.callWhenRunning(lambda: reply(ready=True))
    reactor.callInThread(_obey, main)
    reactor.run()
