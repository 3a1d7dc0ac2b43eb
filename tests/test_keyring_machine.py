"""Whatever happens in whatever order: one fetch for one server, and no key but a published one.

A state machine sends callers, answers fetches truly and falsely, rotates keys, tampers with the
store, lets time pass and jump back, cancels and restarts. Every key that is returned is held against
what its server has ever signed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from invite_client.errors import InviteError, UnreachableError
from invite_client.interfaces import AttemptLog, Stored
from invite_client.keyring import FetchingKeyRing
from invite_client.policy import KeyPolicy, Notary, Policy
from invite_client.spec import canonical_json
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_keys import ServerKeys
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.signatures import SigningKey, sign_json
from invite_client.stores.memory import MemoryStore
from invite_client.testing.clock import ManualClock

NAMES = ("one.example", "two.example")
NOTARY = "notary.example"
MOSTLY_ONE = st.sampled_from(NAMES[:1] * 4 + NAMES[1:])
HOUR = 3600.0
WEEK = 7 * 24 * HOUR
PASSES = (1.0, 30.0, 61.0, HOUR, 25 * HOUR, 6 * 24 * HOUR, 9 * 24 * HOUR)
KEYS = [SigningKey.generate(str(number)) for number in range(40)]
EVIL, NOTARY_KEY = SigningKey.generate("evil"), SigningKey.generate("n")
POLICY = Policy(
    keys=KeyPolicy(
        notaries=(Notary(NOTARY, {NOTARY_KEY.key_id: NOTARY_KEY.verify_key.base64}),),
        hedge_after=0,
    )
)


class WallClock(ManualClock):
    """One whose time of day can be put back."""

    put_back = 0.0

    def time(self) -> float:
        return self.now - self.put_back


@dataclass
class Server:
    """A server, and what it has published."""

    name: str
    keys: list[SigningKey]
    old: dict[SigningKey, int] = field(default_factory=dict)
    valid_for: float = 24 * HOUR
    published: dict[tuple[str, str], int] = field(default_factory=dict)
    """Until when a key, by ID and base64, was ever true at most, in milliseconds since the epoch."""
    snapshot: dict[str, Any] | None = None
    """What a notary knows of it."""

    def response(self, now: float) -> dict[str, Any]:
        response: dict[str, Any] = {
            "server_name": self.name,
            "valid_until_ts": int((now + self.valid_for) * 1000),
            "verify_keys": {k.key_id: {"key": k.verify_key.base64} for k in self.keys},
            "old_verify_keys": {
                k.key_id: {"key": k.verify_key.base64, "expired_ts": expired}
                for k, expired in self.old.items()
            },
        }
        for key in self.keys:
            response = sign_json(response, self.name, key)
        return response

    def note_answer(self, response: dict[str, Any], now: float) -> None:
        """Remember for how long what was answered just now may be believed."""
        limit = int((now + WEEK) * 1000)
        until = min(limit, response["valid_until_ts"])
        for key_id, entry in response["verify_keys"].items():
            self.note_key((key_id, entry["key"]), until)
        for key_id, entry in response["old_verify_keys"].items():
            self.note_key((key_id, entry["key"]), min(limit, entry["expired_ts"]))

    def note_key(self, key: tuple[str, str], until: int) -> None:
        self.published[key] = max(until, self.published.get(key, until))


@dataclass(frozen=True)
class Caller:
    name: str
    wanted: tuple[str, ...]
    begun: int
    """How many fetches had begun before it."""
    answered: int
    """How many had been answered."""
    joined: int
    """The number of the first fetch that it waits for: others may have begun it."""
    current: frozenset[str]
    """The keys that the server had then."""


@dataclass(frozen=True)
class Fetch:
    """One that was answered."""

    begun: int
    answered: int
    """Its numbers, in the order of beginnings and of answers."""
    at: float
    """Seconds of the monotonic clock."""
    response: dict[str, Any] | None
    """What was answered, if it was true."""

    def lacks(self, key_id: str) -> bool:
        return self.response is not None and not any(
            key_id in self.response[kind] for kind in ("verify_keys", "old_verify_keys")
        )


class KeyRingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = WallClock()
        self.store = MemoryStore(1000)
        self.unused = list(KEYS)
        self.servers = {name: Server(name, [self.unused.pop()]) for name in NAMES}
        self.waiting: dict[tuple[str, str], asyncio.Future[Reply]] = {}
        """Who is asked about whose keys."""
        self.callers: dict[asyncio.Task[Any], Caller] = {}
        self.begun = self.answered = 0
        self.fetches: dict[str, list[Fetch]] = {name: [] for name in NAMES}
        self.asked_first: dict[str, int] = {}
        """By server: the number of the fetch from itself, which those from notaries follow."""
        self.asked_when: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        """By who is asked about whose keys: the number of the fetch, and what was true then."""
        self.newest: dict[str, int] = {}
        """By server: the `valid_until_ts` of what it has last answered itself, while it is known."""
        self.bugs: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.bugs.append(context))
        self.start()

    def start(self) -> None:
        self.ring = FetchingKeyRing(self, self, self.store, POLICY, self.clock)

    # --- Resolver and transport -----------------------------------------------------------------

    async def resolve(self, name: ServerName) -> ResolvedServer:
        return ResolvedServer(str(name), "6", (Target(name.host, 8448),), str(name), name.host)

    async def forget(self, name: ServerName) -> None: ...

    async def aclose(self) -> None: ...

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        about = server.server_name
        if about == NOTARY:
            (about,) = canonical_json.decode(request.body or b"")["server_keys"]
        question = (server.server_name, about)
        assert question not in self.waiting, f"two fetches at once: {question}"
        self.begun += 1
        if server.server_name == about:
            self.asked_first[about] = self.begun
        true = self.servers[about].response(self.clock.time())
        self.asked_when[question] = self.begun, true
        self.waiting[question] = asyncio.get_running_loop().create_future()
        try:
            return await self.waiting[question]
        finally:
            del self.waiting[question]

    # --- What happens ---------------------------------------------------------------------------

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def spin(self) -> None:
        async def turn() -> None:
            for _ in range(40):
                await asyncio.sleep(0)

        self.run(turn())
        for task in [task for task in self.callers if task.done()]:
            self.check_result(task, self.callers.pop(task))

    def call(self, name: str, wanted: tuple[str, ...], work: Any) -> None:
        under_way = any(about == name for _, about in self.waiting)
        self.callers[self.loop.create_task(work)] = Caller(
            name,
            wanted,
            self.begun,
            self.answered,
            self.asked_first[name] if under_way else self.begun + 1,
            frozenset(key.key_id for key in self.servers[name].keys),
        )
        self.spin()

    @rule(
        name=MOSTLY_ONE,
        wanted=st.sampled_from(
            (("current",), ("current",), ("old",), ("unknown",), ("current", "old", "unknown"))
        ),
        valid_at=st.sampled_from((0.0, -HOUR, None)),
    )
    def somebody_verifies(self, name: str, wanted: tuple[str, ...], valid_at: float | None) -> None:
        server = self.servers[name]
        ids = {"current": [server.keys[-1]], "old": list(server.old)[-1:], "unknown": [EVIL]}
        key_ids = tuple(key.key_id for kind in wanted for key in ids[kind])
        when = None if valid_at is None else int((self.clock.time() + valid_at) * 1000)
        work = self.ring.verify_keys(parse_server_name(name), key_ids, when, [])
        self.call(name, key_ids, work)

    @rule(name=MOSTLY_ONE)
    def somebody_prefetches(self, name: str) -> None:
        self.call(name, (), self.ring.prefetch(parse_server_name(name)))

    @rule(name=MOSTLY_ONE)
    def somebody_fetches(self, name: str) -> None:
        self.call(name, (), self.ring.server_keys(parse_server_name(name)))

    @precondition(lambda self: self.waiting)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(
            ("true", "true", "as it was", "fails", "not json", "forged", "another's", "unsigned")
        ),
    )
    def a_fetch_is_answered(self, data: st.DataObject, outcome: str) -> None:
        self.answer(data.draw(st.sampled_from(sorted(self.waiting))), outcome)

    @rule(name=MOSTLY_ONE)
    def keys_are_prefetched_and_all_goes_well(self, name: str) -> None:
        self.somebody_prefetches(name)
        while (name, name) in self.waiting:
            self.answer((name, name), "true")

    def answer(self, question: tuple[str, str], outcome: str) -> None:
        asked, about = question
        server, now = self.servers[about], self.clock.time()
        waiting = self.waiting[question]
        number, as_it_was = self.asked_when[question]
        true = as_it_was if outcome == "as it was" else server.response(now)
        if asked == NOTARY and server.snapshot is not None:
            true = server.snapshot
        self.answered += 1
        is_true = outcome in ("true", "as it was")
        self.fetches[about].append(
            Fetch(
                number,
                self.answered,
                self.clock.monotonic(),
                true if is_true else None,
            )
        )
        match outcome:
            case "true" | "as it was":
                response = true
                server.note_answer(true, now)
                if asked != NOTARY:
                    self.newest[about] = true["valid_until_ts"]
            case "fails":
                waiting.set_exception(UnreachableError("down", retryable=True))
                self.spin()
                return
            case "not json":
                waiting.set_result(Reply(200, b"<html>"))
                self.spin()
                return
            case "forged":
                # Somebody on the way adds a key, and cannot sign for the server.
                evil = {EVIL.key_id: {"key": EVIL.verify_key.base64}}
                response = {**true, "verify_keys": {**true["verify_keys"], **evil}}
            case "another's":
                other = next(name for name in NAMES if name != about)
                response = self.servers[other].response(now)
            case _:
                response = {**true, "signatures": {}}
        body: dict[str, Any] = response
        if asked == NOTARY:
            body = {"server_keys": [sign_json(response, NOTARY, NOTARY_KEY)]}
        waiting.set_result(Reply(200, canonical_json.encode(body)))
        self.spin()

    @rule(name=MOSTLY_ONE, publishes_old=st.booleans())
    def a_server_makes_a_new_key(self, name: str, publishes_old: bool) -> None:
        server = self.servers[name]
        if not self.unused:
            return
        if publishes_old:
            for key in server.keys:
                server.old[key] = int(self.clock.time() * 1000)
        server.keys = [self.unused.pop()]

    @rule(
        name=MOSTLY_ONE,
        valid_for=st.sampled_from((-HOUR, 1.0, HOUR, 24 * HOUR, 1000 * 24 * HOUR)),
    )
    def a_server_changes_its_mind(self, name: str, valid_for: float) -> None:
        self.servers[name].valid_for = valid_for

    @rule(name=MOSTLY_ONE)
    def the_notary_takes_note(self, name: str) -> None:
        self.servers[name].snapshot = self.servers[name].response(self.clock.time())

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def a_caller_is_cancelled(self, data: st.DataObject) -> None:
        tasks = list(self.callers)
        task = tasks[data.draw(st.integers(0, len(tasks) - 1))]
        del self.callers[task]
        task.cancel()
        self.spin()
        assert task.cancelled()

    @rule(seconds=st.sampled_from(PASSES))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from(PASSES))
    def the_clock_is_put_back(self, seconds: float) -> None:
        self.clock.put_back += seconds

    @rule(
        name=MOSTLY_ONE,
        how=st.sampled_from(("key", "until", "fetched", "times", "another's", "junk", "gone")),
    )
    def the_store_is_tampered_with(self, name: str, how: str) -> None:
        stored = self.run(self.store.get("keys", name))
        if stored is None or not isinstance(stored.value["response"], dict):
            return
        self.newest.pop(name, None)
        response, fetched_at = stored.value["response"], stored.value["fetched_at"]
        fresh = usable = stored.usable_until
        match how:
            case "key":
                evil = {EVIL.key_id: {"key": EVIL.verify_key.base64}}
                response = {**response, "verify_keys": evil}
            case "until":
                response = {**response, "valid_until_ts": 2**52}
            case "fetched":
                fetched_at = int((self.clock.time() + 1000 * HOUR) * 1000)
            case "times":
                fresh = usable = float("inf")
            case "another's":
                other = next(other for other in NAMES if other != name)
                response = self.servers[other].response(self.clock.time())
            case "junk":
                response = [response]
        value = {"response": response, "fetched_at": fetched_at}
        if how == "gone":
            self.run(self.store.delete("keys", name))
        else:
            self.run(self.store.put("keys", name, Stored(value, fresh, usable)))

    @rule()
    def it_is_restarted(self) -> None:
        for task in self.callers:
            task.cancel()
        self.callers.clear()
        self.spin()
        self.run(self.ring.aclose())
        self.start()
        self.newest.clear()

    # --- What must hold -------------------------------------------------------------------------

    def check_result(self, task: asyncio.Task[Any], caller: Caller) -> None:
        fetches = self.fetches[caller.name]
        meanwhile = [fetch for fetch in fetches if fetch.answered > caller.answered]
        lately = [
            fetch
            for fetch in fetches
            if self.clock.monotonic() - fetch.at < POLICY.keys.failure_memory
        ]
        joined = [fetch for fetch in fetches if fetch.begun >= caller.joined]
        failed = any(fetch.response is None for fetch in (*meanwhile, *joined, *lately))
        error = task.exception()
        if error is not None:
            assert isinstance(error, InviteError), repr(error)
            assert failed, "an error, though nothing has failed"
            return
        keys = task.result()
        if keys is None:
            return  # a prefetch
        assert isinstance(keys, ServerKeys)
        assert caller.name == keys.server_name

        # 1. All keys are the server's, and believed for no longer than they may be.
        server, now = self.servers[caller.name], int(self.clock.time() * 1000)
        for key_id, key in keys.keys.items():
            until = server.published.get((key_id, key.key.base64))
            assert until is not None, f"{key_id} was never published by {caller.name}"
            assert key.valid_until <= until, f"{key_id} is believed for too long"
        assert self.newest.get(caller.name, 0) <= keys.response["valid_until_ts"], "older keys"

        # 2. What did not need a fetch is in its time, unless the server was asked a moment ago.
        if not meanwhile:
            in_time = keys.fetched_at <= now < keys.valid_until_ts
            assert in_time or lately, "keys after their time"

        # 3. A key that the server had when it was wanted is there; unless a fetch has failed, or
        # one that ended before, and a moment ago, has not brought it.
        current = caller.current & {key.key_id for key in server.keys}
        for key_id in current.intersection(caller.wanted):
            missed = any(f.answered <= caller.answered and f.lacks(key_id) for f in lately)
            assert key_id in keys.keys or failed or missed, f"no fetch for {key_id}"

    @invariant()
    def who_waits_waits_for_something(self) -> None:
        assert self.waiting or not self.callers

    @invariant()
    def nothing_is_fetched_for_nobody(self) -> None:
        assert self.callers or not self.waiting

    @invariant()
    def there_are_no_bugs(self) -> None:
        assert [] == self.bugs

    def teardown(self) -> None:
        for task in self.callers:
            task.cancel()
        self.callers.clear()
        self.spin()
        self.run(self.ring.aclose())
        left = asyncio.all_tasks(self.loop)
        self.loop.close()

        assert set() == left
        assert {} == self.waiting
        assert [] == self.bugs


def test_one_fetch_for_one_server_and_no_key_but_a_published_one() -> None:
    run_state_machine_as_test(
        KeyRingMachine, settings=settings(max_examples=200, stateful_step_count=50, deadline=None)
    )
