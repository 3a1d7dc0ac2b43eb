"""Keys are fetched once for all, kept, checked again, and fetched anew when that may help."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from copy import copy
from typing import Any

import pytest

from invite_client.errors import Attempt, InviteError, MalformedReplyError, UnreachableError
from invite_client.interfaces import AttemptLog, Stored
from invite_client.keyring import FetchingKeyRing
from invite_client.policy import KeyPolicy, Limits, Notary, Policy
from invite_client.spec import canonical_json
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.signatures import SigningKey, sign_json
from invite_client.stores.memory import MemoryStore
from invite_client.testing.clock import ManualClock

NAME = parse_server_name("remote.example")
KEY, NEW = SigningKey.generate("a"), SigningKey.generate("b")
START = 1_700_000_000.0
HOUR = 3600.0


class FakeClock(ManualClock):
    """Both of its clocks are moved, unless the wall clock alone is set."""

    def __init__(self) -> None:
        super().__init__(START)
        self.set_back = 0.0

    def time(self) -> float:
        return self.now - self.set_back


class FakeServer:
    """A key server as transport and resolver in one: counts what it is asked."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.keys = [KEY]
        self.asked = 0
        self.fault: InviteError | None = None
        self.body: bytes | None = None
        self.valid_for = 24 * HOUR
        self.gate: asyncio.Event | None = None
        self.forgotten: list[str] = []

    async def resolve(self, name: ServerName) -> ResolvedServer:
        return ResolvedServer(str(name), "6", (Target(name.host, 8448),), str(name), name.host)

    async def forget(self, name: ServerName) -> None:
        self.forgotten.append(str(name))

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        assert "/_matrix/key/v2/server" == request.uri
        assert request.authorization is None
        self.asked += 1
        await asyncio.sleep(0)
        if self.gate is not None:
            await self.gate.wait()
        log.append(Attempt(request.what, str(server.targets[0]), f"the {self.asked}."))
        if self.fault is not None:
            raise copy(self.fault)
        if self.body is not None:
            return Reply(200, self.body)
        return Reply(200, canonical_json.encode(self.response(server.server_name)))

    def response(self, name: str = str(NAME)) -> dict[str, Any]:
        response: dict[str, Any] = {
            "server_name": name,
            "verify_keys": {k.key_id: {"key": k.verify_key.base64} for k in self.keys},
            "valid_until_ts": int((self.clock.now + self.valid_for) * 1000),
        }
        for key in self.keys:
            response = sign_json(response, name, key)
        return response

    async def aclose(self) -> None: ...


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def server(clock: FakeClock) -> FakeServer:
    return FakeServer(clock)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(100)


@pytest.fixture
def ring(server: FakeServer, store: MemoryStore, clock: FakeClock) -> FetchingKeyRing:
    policy = Policy(keys=KeyPolicy(failure_memory=60))
    return FetchingKeyRing(server, server, store, policy, clock)


def now_ms(clock: FakeClock) -> int:
    return int(clock.now * 1000)


async def test_keys_are_fetched_once_and_kept(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    for _ in range(3):
        keys = await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert KEY.verify_key == keys.verify_key(KEY.key_id, now_ms(clock))
    assert 1 == server.asked


async def test_callers_at_once_cause_one_fetch(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    await asyncio.gather(
        ring.prefetch(NAME), *(ring.verify_keys(NAME, [], now_ms(clock), []) for _ in range(5))
    )

    assert 1 == server.asked


async def test_what_was_prefetched_is_not_fetched_again(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    await ring.prefetch(NAME)
    await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert 1 == server.asked


async def test_it_is_told_whether_there_is_anything_to_prefetch(
    ring: FetchingKeyRing, clock: FakeClock
) -> None:
    assert not ring.are_at_hand(NAME)
    await ring.prefetch(NAME)
    assert ring.are_at_hand(NAME)
    clock.advance(24 * HOUR + 1)
    assert not ring.are_at_hand(NAME)


async def test_an_unknown_key_causes_one_refetch(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    server.keys = [KEY, NEW]
    keys = await ring.verify_keys(NAME, [NEW.key_id], now_ms(clock), [])

    assert NEW.verify_key == keys.verify_key(NEW.key_id, now_ms(clock))
    assert 2 == server.asked


async def test_a_key_that_is_never_published_is_not_asked_for_again_and_again(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    for _ in range(5):
        await ring.verify_keys(NAME, [KEY.key_id, "ed25519:policy_server"], now_ms(clock), [])
    assert 2 == server.asked

    clock.now += 61
    await ring.verify_keys(NAME, [KEY.key_id, "ed25519:policy_server"], now_ms(clock), [])
    assert 3 == server.asked


async def test_a_server_with_very_many_keys_that_are_never_published_is_asked_once(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    many = [KEY.key_id, f"ed25519:{'x' * 100_000}", *(f"ed25519:{n}" for n in range(100_000))]
    for _ in range(3):
        await ring.verify_keys(NAME, many, now_ms(clock), [])

    assert 2 == server.asked


async def test_a_server_with_very_many_keys_makes_nobody_forget_those_of_others(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    other = parse_server_name("other.example")
    await ring.verify_keys(other, ["ed25519:policy_server"], now_ms(clock), [])
    for start in range(0, 20_000, 100):
        many = [f"ed25519:{number}" for number in range(start, start + 100)]
        await ring.verify_keys(NAME, many, now_ms(clock), [])
    asked = server.asked
    await ring.verify_keys(other, ["ed25519:policy_server"], now_ms(clock), [])

    assert asked == server.asked
    assert 100 == len(ring._missed[str(NAME)])


async def test_keys_that_are_never_published_are_remembered_for_only_so_many_servers(
    server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    policy = Policy(limits=Limits(cached_servers=2))
    ring = FetchingKeyRing(server, server, store, policy, clock)
    for name in ("one.example", "two.example", "three.example"):
        await ring.verify_keys(parse_server_name(name), ["ed25519:a_b"], now_ms(clock), [])
        await ring.verify_keys(parse_server_name(name), [KEY.key_id], now_ms(clock), [])

    assert ["two.example", "three.example"] == list(ring._missed)


async def test_keys_past_their_time_are_fetched_anew(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.valid_for = HOUR
    await ring.prefetch(NAME)
    clock.now += HOUR + 1
    keys = await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert 2 == server.asked
    assert keys.verify_key(KEY.key_id, now_ms(clock))


@pytest.mark.parametrize("ago", [None, 2 * HOUR])
async def test_keys_past_their_time_are_fetched_anew_though_they_would_do(
    ago: float | None, ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    """They may be withdrawn since: "when the list of valid keys should be refreshed"."""
    server.valid_for = HOUR
    await ring.prefetch(NAME)
    clock.advance(HOUR + 1)
    server.keys = [NEW]
    valid_at = None if ago is None else now_ms(clock) - int(ago * 1000)
    keys = await ring.verify_keys(NAME, [KEY.key_id], valid_at, [])

    assert 2 == server.asked
    assert keys.verify_key(KEY.key_id, valid_at) is None


async def test_keys_are_kept_for_7_days_at_most(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.valid_for = 1000 * 24 * HOUR
    await ring.prefetch(NAME)
    clock.now += 7 * 24 * HOUR + 1
    await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert 2 == server.asked


async def test_a_failure_is_remembered_briefly(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.fault = UnreachableError("down", retryable=True)
    for _ in range(3):
        with pytest.raises(UnreachableError, match="down"):
            await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])
    assert 1 == server.asked

    clock.now += 61
    server.fault = None
    assert await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])


async def test_a_failed_prefetch_is_tried_once_more_by_who_needs_the_keys(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.fault = UnreachableError("down", retryable=True)
    await ring.prefetch(NAME)
    server.fault = None

    assert await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])


async def test_a_remembered_failure_is_a_new_error_for_each_caller(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.fault = UnreachableError("down")
    errors = []
    for _ in range(2):
        with pytest.raises(UnreachableError) as caught:
            await ring.verify_keys(NAME, [], now_ms(clock), [])
        errors.append(caught.value)

    assert errors[0] is not errors[1]


async def test_a_refetch_that_fails_leaves_the_keys_that_do(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    server.fault = UnreachableError("down")
    keys = await ring.verify_keys(NAME, [KEY.key_id, NEW.key_id], now_ms(clock), [])

    assert keys.verify_key(KEY.key_id, now_ms(clock))


async def test_a_refetch_that_fails_is_an_error_where_no_key_does(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    server.fault = UnreachableError("down")
    with pytest.raises(UnreachableError):
        await ring.verify_keys(NAME, [NEW.key_id], now_ms(clock), [])


async def test_asking_for_the_keys_themselves_always_fetches(
    ring: FetchingKeyRing, server: FakeServer
) -> None:
    await ring.server_keys(NAME)
    await ring.server_keys(NAME)
    assert 2 == server.asked

    # … also after a failure that is remembered.
    server.fault = UnreachableError("down")
    for _ in range(2):
        with pytest.raises(UnreachableError):
            await ring.server_keys(NAME)
    assert 4 == server.asked


async def test_malformed_keys_are_an_error(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.body = b"{}"
    await ring.prefetch(NAME)
    with pytest.raises(MalformedReplyError):
        await ring.verify_keys(NAME, [], now_ms(clock), [])


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"response": {}, "fetched_at": 1},
        {"response": {}, "fetched_at": "1"},
        {"response": {"server_name": "remote.example"}, "fetched_at": int(START * 1000)},
    ],
)
async def test_a_store_is_not_believed(
    value: Any, ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    await store.put("keys", str(NAME), Stored(value, START + HOUR, START + HOUR))
    keys = await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert 1 == server.asked
    assert KEY.verify_key == keys.verify_key(KEY.key_id, now_ms(clock))


async def test_forged_keys_in_a_store_are_not_believed(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    stored = await store.get("keys", str(NAME))
    assert stored is not None
    forged = {**stored.value["response"], "verify_keys": {NEW.key_id: NEW.verify_key.base64}}
    value = {**stored.value, "response": forged}
    await store.put("keys", str(NAME), Stored(value, stored.fresh_until, stored.usable_until))
    keys = await ring.verify_keys(NAME, [NEW.key_id], now_ms(clock), [])

    assert keys.verify_key(NEW.key_id, None) is None


async def test_closing_ends_a_fetch(
    ring: FetchingKeyRing, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(name: ServerName) -> ResolvedServer:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(server, "resolve", hang)
    waiting = asyncio.create_task(ring.prefetch(NAME))
    await asyncio.sleep(0)
    verifying = asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], None, []))
    await asyncio.sleep(0)
    await ring.aclose()
    await waiting  # which never raises
    with pytest.raises(InviteError, match="closed"):
        await verifying


async def spin() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# --- Races ----------------------------------------------------------------------------------------


async def test_a_key_made_while_a_fetch_was_under_way_causes_one_more(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    """What was under way began before the key was seen, and may not bring it."""
    server.body = canonical_json.encode(server.response())
    server.gate = asyncio.Event()
    fetching = asyncio.create_task(ring.prefetch(NAME))
    await spin()
    verifying = asyncio.create_task(ring.verify_keys(NAME, [NEW.key_id], now_ms(clock), []))
    await spin()
    server.gate.set()
    await fetching
    server.body, server.keys = None, [KEY, NEW]

    assert (await verifying).verify_key(NEW.key_id, now_ms(clock))
    assert 2 == server.asked


async def test_what_was_under_way_does_if_one_more_fetch_fails(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    """A policy server's key is never published: one fetch more is made for it, and may fail."""
    server.gate = asyncio.Event()
    fetching = asyncio.create_task(ring.prefetch(NAME))
    await spin()
    wanted = [KEY.key_id, "ed25519:policy_server"]
    verifying = asyncio.create_task(ring.verify_keys(NAME, wanted, now_ms(clock), []))
    await spin()
    server.gate.set()
    await fetching
    server.fault = UnreachableError("down")

    assert (await verifying).verify_key(KEY.key_id, now_ms(clock))
    assert 2 == server.asked


async def test_what_a_slow_store_brings_does_not_replace_what_was_fetched_meanwhile(
    server: FakeServer, clock: FakeClock
) -> None:
    class SlowStore(MemoryStore):
        gate: asyncio.Event | None = None

        async def get(self, kind: str, key: str) -> Stored | None:
            stored = await super().get(kind, key)
            if self.gate is not None:
                await self.gate.wait()
            return stored

    store = SlowStore(10)
    await FetchingKeyRing(server, server, store, Policy(), clock).prefetch(NAME)
    ring = FetchingKeyRing(server, server, store, Policy(), clock)
    server.keys = [KEY, NEW]
    store.gate = asyncio.Event()
    loading = asyncio.create_task(ring.prefetch(NAME))
    await spin()
    await ring.server_keys(NAME)
    store.gate.set()
    await loading
    await ring.verify_keys(NAME, [NEW.key_id], now_ms(clock), [])

    assert 2 == server.asked


async def test_every_caller_gets_the_attempts_of_the_fetch_that_it_waited_for(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    logs: list[list[Attempt]] = [[], [], []]
    server.gate = asyncio.Event()
    fetching = asyncio.create_task(ring.prefetch(NAME))
    await spin()
    verifying = [
        asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), log))
        for log in logs
    ]
    await spin()
    server.gate.set()
    await asyncio.gather(fetching, *verifying)

    assert [["the 1."]] * 3 == [[attempt.outcome for attempt in log] for log in logs]


async def test_a_failure_has_the_attempts_of_its_own_fetch(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.fault = UnreachableError("down")
    logs: list[list[Attempt]] = [[], [], []]
    errors = await asyncio.gather(
        *(ring.verify_keys(NAME, [], now_ms(clock), log) for log in logs[:2]),
        return_exceptions=True,
    )
    with pytest.raises(UnreachableError) as remembered:
        await ring.verify_keys(NAME, [], now_ms(clock), logs[2])

    assert [["the 1."], ["the 1."], []] == [[a.outcome for a in log] for log in logs]
    assert len({*map(id, errors), id(remembered.value)}) == 3


async def test_a_cancelled_caller_takes_the_fetch_from_nobody(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.gate = asyncio.Event()
    first, second = (
        asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), []))
        for _ in range(2)
    )
    await spin()
    first.cancel()
    await spin()
    server.gate.set()

    assert (await second).verify_key(KEY.key_id, now_ms(clock))
    assert 1 == server.asked


# --- Not asking on and on -------------------------------------------------------------------------


async def test_a_remembered_failure_says_when_to_come_back(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.fault = UnreachableError("down", retryable=True)
    waits = []
    for _ in range(5):
        with pytest.raises(UnreachableError) as caught:
            await ring.verify_keys(NAME, [], now_ms(clock), [])
        waits.append(caught.value.retry_after)
        clock.advance(20)

    assert [None, 40, 20, None, 40] == waits
    assert 2 == server.asked


async def test_a_server_that_asks_for_more_time_is_remembered_to_have_asked(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.fault = MalformedReplyError("limited", retryable=True, retry_after=100)
    waits = []
    for _ in range(3):
        with pytest.raises(MalformedReplyError) as caught:
            await ring.verify_keys(NAME, [], now_ms(clock), [])
        waits.append(caught.value.retry_after)
        clock.advance(20)

    assert [100, 80, 60] == waits


async def test_a_fetch_that_fails_is_not_repeated_for_who_has_joined_it(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.gate, server.fault = asyncio.Event(), UnreachableError("down")
    prefetching = asyncio.create_task(ring.prefetch(NAME))
    await spin()
    verifying = asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), []))
    await spin()
    server.gate.set()
    await prefetching

    with pytest.raises(UnreachableError):
        await verifying
    assert 1 == server.asked


async def test_only_so_many_servers_are_kept_at_hand(
    server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    policy = Policy(limits=Limits(cached_servers=2))
    ring = FetchingKeyRing(server, server, store, policy, clock)
    one, two, three = (parse_server_name(f"{n}.example") for n in ("one", "two", "three"))
    for name in (one, two, one, three):
        await ring.server_keys(name)

    # The one that was fetched longest ago has gone.
    assert [True, False, True] == [ring.are_at_hand(name) for name in (one, two, three)]


async def test_of_servers_with_very_many_keys_few_are_kept_and_none_is_stored(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    """256 KiB of empty lists are 5 MiB in memory: ten thousand such servers would fill any."""
    small, *large = (parse_server_name(f"{number}.example") for number in range(22))
    await ring.prefetch(small)
    await ring.prefetch(large[0])
    assert await store.get("keys", str(large[0]))
    clock.advance(25 * HOUR)
    for name in large:
        response = {**server.response(str(name)), "x": [[] for _ in range(200)]}
        del response["signatures"]
        server.body = canonical_json.encode(sign_json(response, str(name), KEY))
        await ring.prefetch(name)

    assert [False, *[True] * 20] == [ring.are_at_hand(name) for name in large]
    assert (await ring.verify_keys(large[-1], [KEY.key_id], now_ms(clock), [])).keys
    # Not even what was known of one before: it is older.
    assert [None] * 21 == [await store.get("keys", str(name)) for name in large]
    assert await store.get("keys", str(small))


@pytest.mark.parametrize("depth", [200, 400])
async def test_what_is_not_signed_may_be_anything(
    depth: int, ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    body = canonical_json.encode(server.response())
    server.body = body[:-1] + b',"unsigned":' + b"[" * depth + b"]" * depth + b"}"

    assert (await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])).keys


async def test_a_server_that_has_few_keys_again_is_kept_like_any_other(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    names = [parse_server_name(f"{number}.example") for number in range(21)]
    for name in (*names, names[-1]):
        response = {**server.response(str(name)), "x": [[] for _ in range(200)]}
        del response["signatures"]
        server.body = canonical_json.encode(sign_json(response, str(name), KEY))
        await ring.server_keys(name)
        if name is names[0]:
            server.body = None
            await ring.server_keys(name)

    assert [True] * 21 == [ring.are_at_hand(name) for name in names]


async def test_a_fetch_that_failed_is_not_prefetched_again_at_once(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.fault = UnreachableError("down")
    with pytest.raises(UnreachableError):
        await ring.verify_keys(NAME, [], now_ms(clock), [])
    for _ in range(5):
        await ring.prefetch(NAME)

    assert 1 == server.asked


async def test_keys_that_are_published_too_late_are_not_asked_for_on_and_on(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    """A server with a wrong clock. In room versions 1 to 4 its keys do all the same."""
    server.valid_for = -HOUR
    for _ in range(5):
        await ring.prefetch(NAME)
        keys = await ring.verify_keys(NAME, [KEY.key_id], None, [])
        assert keys.verify_key(KEY.key_id, None)
        assert keys.verify_key(KEY.key_id, now_ms(clock)) is None
    assert 1 == server.asked

    clock.advance(61)
    await ring.prefetch(NAME)
    assert 2 == server.asked


@pytest.mark.parametrize("fault", [UnreachableError("down"), None])
async def test_what_led_to_no_homeserver_is_forgotten(
    fault: InviteError | None, ring: FetchingKeyRing, server: FakeServer
) -> None:
    server.fault, server.body = fault, b"<html>"
    with pytest.raises(InviteError):
        await ring.server_keys(NAME)

    assert [str(NAME)] == server.forgotten


# --- Clocks and stores ----------------------------------------------------------------------------


async def test_keys_are_fetched_anew_when_the_clock_has_gone_back(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    clock.set_back = 1000 * HOUR
    clock.advance(61)
    await ring.prefetch(NAME)

    assert 2 == server.asked


@pytest.mark.parametrize("ahead", [1, 7 * 24 * HOUR, 10.0**12])
async def test_a_store_cannot_make_keys_live_longer(
    ahead: float, ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    server.valid_for = 1000 * 24 * HOUR
    value = {"response": server.response(), "fetched_at": int((clock.now + ahead) * 1000)}
    until = clock.now + HOUR
    await store.put("keys", str(NAME), Stored(value, until, until))
    server.fault = UnreachableError("down")

    with pytest.raises(UnreachableError):
        await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])


@pytest.mark.parametrize(
    "until",
    # Nothing is put for longer than the 7 days of a response, and once more.
    [math.nan, math.inf, "9e99", None, START - 1, START + 14 * 24 * HOUR + 1, START + 1e9],
)
async def test_a_store_is_not_believed_about_times(
    until: Any, ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    value = {"response": server.response(), "fetched_at": now_ms(clock)}
    await store.put("keys", str(NAME), Stored(value, until, until))
    await ring.prefetch(NAME)

    assert 1 == server.asked


async def test_keys_in_a_store_verify_what_was_signed_in_their_time_after_it(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    server.valid_for = HOUR
    await ring.prefetch(NAME)
    then = now_ms(clock)
    clock.advance(24 * HOUR)
    server.fault = UnreachableError("down")
    again = FetchingKeyRing(server, server, store, Policy(), clock)

    assert (await again.verify_keys(NAME, [KEY.key_id], then, [])).verify_key(KEY.key_id, then)


async def test_keys_serve_for_two_weeks_at_most_where_validity_is_ignored(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    """In room versions 1 to 4, while their server does not answer; with a restart and without."""
    server.valid_for = 1000 * 24 * HOUR
    await ring.prefetch(NAME)
    server.fault = UnreachableError("down")
    clock.advance(14 * 24 * HOUR - 1)
    again = FetchingKeyRing(server, server, store, Policy(), clock)
    for keys in (ring, again):
        assert (await keys.verify_keys(NAME, [KEY.key_id], None, [])).keys

    clock.advance(61)
    third = FetchingKeyRing(server, server, store, Policy(), clock)
    for keys in (ring, again, third):
        with pytest.raises(UnreachableError):
            await keys.verify_keys(NAME, [KEY.key_id], None, [])


@pytest.mark.parametrize("fetched_at", [START * 1000, True, None, "1700000000000"])
async def test_a_time_in_a_store_is_a_whole_number(
    fetched_at: Any, ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    value = {"response": server.response(), "fetched_at": fetched_at}
    await store.put("keys", str(NAME), Stored(value, clock.now + HOUR, clock.now + HOUR))
    await ring.prefetch(NAME)

    assert 1 == server.asked


async def test_what_was_read_from_a_store_is_kept_at_hand(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    again = FetchingKeyRing(server, server, store, Policy(), clock)
    assert not again.are_at_hand(NAME)
    await again.prefetch(NAME)

    assert again.are_at_hand(NAME)
    assert 1 == server.asked


async def test_what_is_stored_says_how_long_it_is_of_use(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore
) -> None:
    server.valid_for = HOUR
    await ring.prefetch(NAME)
    stored = await store.get("keys", str(NAME))

    assert stored is not None
    expected = (START + HOUR, START + HOUR + 7 * 24 * HOUR)
    assert expected == (stored.fresh_until, stored.usable_until)


async def test_what_is_at_hand_is_not_looked_for_in_the_store(
    server: FakeServer, clock: FakeClock
) -> None:
    class CountingStore(MemoryStore):
        asked = 0

        async def get(self, kind: str, key: str) -> Stored | None:
            self.asked += 1
            return await super().get(kind, key)

    store = CountingStore(10)
    ring = FetchingKeyRing(server, server, store, Policy(), clock)
    for _ in range(3):
        await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert 1 == store.asked


async def test_what_a_store_cannot_mean_is_not_read_again_and_again(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    value = {"response": server.response() | {"valid_until_ts": 1}, "fetched_at": now_ms(clock)}
    await store.put("keys", str(NAME), Stored(value, clock.now + HOUR, clock.now + HOUR))
    server.fault = UnreachableError("down")
    await ring.prefetch(NAME)

    assert await store.get("keys", str(NAME)) is None


async def test_keys_in_a_store_do_after_a_restart(
    ring: FetchingKeyRing, server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    await ring.prefetch(NAME)
    again = FetchingKeyRing(server, server, store, Policy(), clock)
    keys = await again.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert (1, KEY.verify_key) == (server.asked, keys.verify_key(KEY.key_id, now_ms(clock)))


async def test_a_store_may_hold_anything(
    server: FakeServer, store: MemoryStore, clock: FakeClock
) -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for response in (
        deep,
        {**server.response(), "more": deep},
        {**server.response(), "x": 1.5},
        {**server.response(), "unsigned": deep},
        {**server.response(), "unsigned": {1: object()}},
    ):
        until = clock.now + HOUR
        value = {"response": response, "fetched_at": now_ms(clock)}
        await store.put("keys", str(NAME), Stored(value, until, until))
        fresh = FetchingKeyRing(server, server, store, Policy(), clock)
        assert await fresh.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])


# --- Notaries -------------------------------------------------------------------------------------

NOTARY = parse_server_name("notary.example")
NOTARY_KEY = SigningKey.generate("n")


class FakeNotary(FakeServer):
    """The server, and a notary beside it, which knows what the server published at some time."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.queries: list[Any] = []
        self.known: list[dict[str, Any]] = []
        self.notary_gate: asyncio.Event | None = None
        self.notary_fault: InviteError | None = None
        self.signs_as: str = str(NOTARY)

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        if server.server_name == str(NAME):
            return await super().exchange(server, request, limit=limit, log=log)
        assert ("POST", "/_matrix/key/v2/query") == (request.method, request.uri)
        self.queries.append(canonical_json.decode(request.body or b""))
        await asyncio.sleep(0)
        if self.notary_gate is not None:
            await self.notary_gate.wait()
        if self.notary_fault is not None:
            raise copy(self.notary_fault)
        signed = [sign_json(response, self.signs_as, NOTARY_KEY) for response in self.known]
        return Reply(200, canonical_json.encode({"server_keys": signed}))


@pytest.fixture
def notary(clock: FakeClock) -> FakeNotary:
    return FakeNotary(clock)


@pytest.fixture
def make_ring(
    notary: FakeNotary, store: MemoryStore, clock: FakeClock
) -> Callable[..., FetchingKeyRing]:
    def make(hedge_after: float = 60.0, *, pinned: bool = True) -> FetchingKeyRing:
        keys = {NOTARY_KEY.key_id: NOTARY_KEY.verify_key.base64} if pinned else {}
        policy = KeyPolicy(notaries=(Notary(str(NOTARY), keys),), hedge_after=hedge_after)
        return FetchingKeyRing(notary, notary, store, Policy(keys=policy), clock)

    return make


MakeRing = Callable[..., FetchingKeyRing]


async def test_a_notary_is_not_asked_while_the_server_answers(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    await make_ring().verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert [] == notary.queries


@pytest.mark.parametrize("pinned", [True, False])
async def test_a_notary_is_asked_when_the_server_fails(
    pinned: bool, make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.fault = UnreachableError("down")
    notary.known = [notary.response()]
    keys = await make_ring(pinned=pinned).verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert KEY.verify_key == keys.verify_key(KEY.key_id, now_ms(clock))
    wanted = {KEY.key_id: {"minimum_valid_until_ts": now_ms(clock)}}
    assert [{"server_keys": {str(NAME): wanted}}] == notary.queries


async def test_a_server_does_not_choose_how_much_is_asked_of_a_notary(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.fault = UnreachableError("down")
    notary.known = [notary.response()]
    longest, too_long = "ed25519:".ljust(255, "x"), "ed25519:".ljust(256, "x")
    numbers = (f"ed25519:{number}" for number in range(100_000))
    many = [KEY.key_id, longest, too_long, *numbers]
    keys = await make_ring().verify_keys(NAME, many, now_ms(clock), [])

    assert KEY.verify_key == keys.verify_key(KEY.key_id, now_ms(clock))
    [query] = notary.queries
    named = query["server_keys"][str(NAME)]
    assert [KEY.key_id, longest, *many[3:101]] == sorted(named, key=many.index)


async def test_a_notary_is_asked_when_the_server_is_slow(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.gate = asyncio.Event()
    notary.known = [notary.response()]

    assert await make_ring(0.01).verify_keys(NAME, [KEY.key_id], now_ms(clock), [])


async def test_the_server_is_still_heard_after_a_notary_was_asked(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.gate, notary.notary_gate = asyncio.Event(), asyncio.Event()
    verifying = asyncio.create_task(
        make_ring(0.01).verify_keys(NAME, [KEY.key_id], now_ms(clock), [])
    )
    while not notary.queries:
        await asyncio.sleep(0.001)
    notary.gate.set()

    assert (await verifying).verify_key(KEY.key_id, now_ms(clock))


async def test_of_two_that_answer_at_once_the_server_itself_is_believed(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.known, notary.keys = [notary.response()], [KEY, NEW]
    notary.gate = notary.notary_gate = asyncio.Event()
    verifying = asyncio.create_task(
        make_ring(0.01).verify_keys(NAME, [KEY.key_id], now_ms(clock), [])
    )
    while not notary.queries:
        await asyncio.sleep(0.001)
    await spin()
    notary.gate.set()

    assert (await verifying).verify_key(NEW.key_id, now_ms(clock))


async def test_a_notary_that_lacks_the_key_does_not_win_against_a_slow_server(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.known = [notary.response()]
    notary.keys, notary.gate = [KEY, NEW], asyncio.Event()
    verifying = asyncio.create_task(
        make_ring(0.01).verify_keys(NAME, [NEW.key_id], now_ms(clock), [])
    )
    while not notary.queries:
        await asyncio.sleep(0.001)
    await spin()
    assert not verifying.done()
    notary.gate.set()

    assert (await verifying).verify_key(NEW.key_id, now_ms(clock))


async def test_a_notary_with_keys_past_their_time_does_not_win_against_a_slow_server(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.valid_for = -HOUR
    notary.known = [notary.response()]
    notary.valid_for, notary.gate = HOUR, asyncio.Event()
    verifying = asyncio.create_task(
        make_ring(0.01).verify_keys(NAME, [KEY.key_id], now_ms(clock), [])
    )
    while not notary.queries:
        await asyncio.sleep(0.001)
    await spin()
    assert not verifying.done()
    notary.gate.set()

    assert (await verifying).verify_key(KEY.key_id, now_ms(clock))


async def test_what_the_server_itself_says_ends_the_asking_whatever_it_lacks(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.gate, notary.notary_gate = asyncio.Event(), asyncio.Event()
    verifying = asyncio.create_task(
        make_ring(0.01).verify_keys(NAME, [NEW.key_id], now_ms(clock), [])
    )
    while not notary.queries:
        await asyncio.sleep(0.001)
    notary.gate.set()
    await spin()

    assert verifying.done()
    assert (await verifying).verify_key(NEW.key_id, None) is None


async def test_a_notary_that_knows_no_more_than_we_do_ends_the_asking_for_a_while(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.known = [notary.response()]
    ring = make_ring()
    await ring.prefetch(NAME)
    notary.fault = UnreachableError("down")
    for _ in range(3):
        keys = await ring.verify_keys(NAME, [NEW.key_id], now_ms(clock), [])

        assert keys.verify_key(NEW.key_id, None) is None
    assert 1 == len(notary.queries)


@pytest.mark.parametrize("first", ["one", "two"])
async def test_of_notaries_that_know_only_old_keys_the_one_with_the_newest_is_believed(
    first: str, store: MemoryStore, clock: FakeClock
) -> None:
    class Notaries(FakeNotary):
        async def exchange(
            self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
        ) -> Reply:
            if server.server_name == str(NAME):
                raise UnreachableError("down")
            asked.append(server.server_name)
            for _ in range(0 if server.server_name.startswith(first) else 5):
                await asyncio.sleep(0)
            known = newer if server.server_name == "one.example" else older
            return Reply(200, canonical_json.encode({"server_keys": [known]}))

    asked: list[str] = []
    notaries = Notaries(clock)
    notaries.valid_for = -2 * HOUR
    older = notaries.response()
    notaries.keys, notaries.valid_for = [KEY, NEW], -HOUR
    newer = notaries.response()
    policy = KeyPolicy(notaries=(Notary("one.example"), Notary("two.example")))
    ring = FetchingKeyRing(notaries, notaries, store, Policy(keys=policy), clock)
    keys = await ring.verify_keys(NAME, [KEY.key_id], None, [])

    assert ["one.example", "two.example"] == sorted(asked)
    assert keys.verify_key(NEW.key_id, None)


class LazyNotary(FakeNotary):
    """One that asks the server itself only for keys that it is asked for by their IDs, as Synapse."""

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        if server.server_name == str(NOTARY):
            asked = canonical_json.decode(request.body or b"")["server_keys"][str(NAME)]
            self.known = [self.response()] if asked else []
        return await super().exchange(server, request, limit=limit, log=log)


class TestANotaryThatKnowsNothingYet:
    """Keys are prefetched before it is known which are wanted."""

    @pytest.fixture
    def notary(self, clock: FakeClock) -> FakeNotary:
        return LazyNotary(clock)

    @pytest.fixture
    def wanted(self, clock: FakeClock) -> dict[str, Any]:
        key = {KEY.key_id: {"minimum_valid_until_ts": now_ms(clock)}}
        return {"server_keys": {str(NAME): key}}

    async def test_is_asked_for_the_keys_that_are_wanted_by_then(
        self, make_ring: MakeRing, notary: FakeNotary, clock: FakeClock, wanted: dict[str, Any]
    ) -> None:
        ring = make_ring()
        notary.gate, notary.fault = asyncio.Event(), UnreachableError("down")
        prefetching = asyncio.create_task(ring.prefetch(NAME))
        await spin()
        verifying = asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), []))
        await spin()
        notary.gate.set()
        await prefetching

        assert (await verifying).verify_key(KEY.key_id, now_ms(clock))
        assert [wanted] == notary.queries
        assert 1 == notary.asked

    async def test_is_asked_once_more_if_it_was_asked_before(
        self, make_ring: MakeRing, notary: FakeNotary, clock: FakeClock, wanted: dict[str, Any]
    ) -> None:
        ring = make_ring()
        notary.fault, notary.notary_gate = UnreachableError("down"), asyncio.Event()
        prefetching = asyncio.create_task(ring.prefetch(NAME))
        await spin()
        verifying = [
            asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), []))
            for _ in range(3)
        ]
        await spin()
        notary.notary_gate.set()
        await prefetching

        for keys in await asyncio.gather(*verifying):
            assert keys.verify_key(KEY.key_id, now_ms(clock))
        assert [{"server_keys": {str(NAME): {}}}, wanted] == notary.queries

    async def test_is_not_asked_a_third_time(
        self, make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
    ) -> None:
        ring = make_ring()
        notary.fault, notary.notary_gate = UnreachableError("down"), asyncio.Event()
        notary.notary_fault = UnreachableError("notary down")
        prefetching = asyncio.create_task(ring.prefetch(NAME))
        await spin()
        verifying = [
            asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), []))
            for _ in range(3)
        ]
        await spin()
        notary.notary_gate.set()
        await prefetching
        errors = await asyncio.gather(*verifying, return_exceptions=True)

        assert ["down"] * 3 == [str(error)[:4] for error in errors]
        assert (2, 2) == (notary.asked, len(notary.queries))

    async def test_and_fails_leaves_the_keys_that_were_there_before(
        self, make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
    ) -> None:
        ring, then = make_ring(), now_ms(clock)
        await ring.prefetch(NAME)
        clock.advance(25 * HOUR)
        notary.gate, notary.fault = asyncio.Event(), UnreachableError("down")
        notary.notary_fault = UnreachableError("notary down")
        prefetching = asyncio.create_task(ring.prefetch(NAME))
        await spin()
        verifying = asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], then, []))
        await spin()
        notary.gate.set()
        await prefetching

        assert (await verifying).verify_key(KEY.key_id, then)

    async def test_is_not_asked_again_for_who_wants_no_certain_key(
        self, make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
    ) -> None:
        ring = make_ring()
        notary.fault, notary.notary_gate = UnreachableError("down"), asyncio.Event()
        prefetching = asyncio.create_task(ring.prefetch(NAME))
        await spin()
        verifying = asyncio.create_task(ring.verify_keys(NAME, (), now_ms(clock), []))
        await spin()
        notary.notary_gate.set()
        await prefetching

        with pytest.raises(UnreachableError):
            await verifying
        assert (1, 1) == (notary.asked, len(notary.queries))

    async def test_is_not_asked_for_keys_that_nobody_waits_for_any_more(
        self, make_ring: MakeRing, notary: FakeNotary, clock: FakeClock, wanted: dict[str, Any]
    ) -> None:
        ring = make_ring()
        notary.fault = UnreachableError("down")
        await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])
        with pytest.raises(UnreachableError):
            await ring.server_keys(NAME)

        assert [wanted, {"server_keys": {str(NAME): {}}}] == notary.queries
        assert {} == ring._wanted  # of no server that was ever asked

    async def test_is_not_asked_after_the_end(
        self, make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
    ) -> None:
        ring = make_ring()
        notary.gate = asyncio.Event()
        prefetching = asyncio.create_task(ring.prefetch(NAME))
        await spin()
        verifying = asyncio.create_task(ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), []))
        await spin()
        notary.gate.set()
        await ring.aclose()
        await prefetching

        with pytest.raises(InviteError, match="closed"):
            await verifying
        assert (1, []) == (notary.asked, notary.queries)


async def test_a_notary_with_keys_past_their_time_is_better_than_nothing(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    """They verify what was signed while they were valid, and events of room versions 1 to 4."""
    notary.valid_for = -HOUR
    notary.known = [notary.response()]
    notary.fault = UnreachableError("down")
    keys = await make_ring().verify_keys(NAME, [KEY.key_id], None, [])

    assert keys.verify_key(KEY.key_id, None)
    assert keys.verify_key(KEY.key_id, now_ms(clock)) is None


async def test_a_notary_that_has_not_signed_with_a_pinned_key_is_not_believed(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.fault = UnreachableError("down")
    notary.known, notary.signs_as = [notary.response()], "somebody.example"

    with pytest.raises(UnreachableError, match="down"):
        await make_ring().verify_keys(NAME, [KEY.key_id], now_ms(clock), [])


async def test_a_notary_cannot_forge_keys(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    forged = notary.response()
    forged["verify_keys"] = {NEW.key_id: {"key": NEW.verify_key.base64}}
    notary.fault, notary.known = UnreachableError("down"), [forged]

    with pytest.raises(UnreachableError, match="down"):
        await make_ring().verify_keys(NAME, [NEW.key_id], now_ms(clock), [])


async def test_a_notary_does_not_bring_back_what_the_server_has_withdrawn(
    make_ring: MakeRing, notary: FakeNotary, store: MemoryStore, clock: FakeClock
) -> None:
    notary.known = [notary.response()]
    clock.advance(HOUR)
    notary.keys = [NEW]
    ring = make_ring()
    await ring.prefetch(NAME)
    notary.fault = UnreachableError("down")
    with pytest.raises(UnreachableError):
        await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])
    keys = await ring.verify_keys(NAME, [NEW.key_id], now_ms(clock), [])

    assert keys.verify_key(KEY.key_id, None) is None


async def test_a_notary_does_not_bring_back_after_a_restart_what_the_store_knows_to_be_old(
    make_ring: MakeRing, notary: FakeNotary, store: MemoryStore, clock: FakeClock
) -> None:
    notary.known = [notary.response()]
    clock.advance(HOUR)
    notary.keys = [NEW]
    await make_ring().prefetch(NAME)
    notary.fault = UnreachableError("down")
    with pytest.raises(UnreachableError):
        await make_ring().server_keys(NAME)
    keys = await make_ring().verify_keys(NAME, [NEW.key_id], now_ms(clock), [])

    assert [NEW.key_id] == list(keys.keys)


async def test_when_all_fail_the_servers_own_error_is_raised(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    notary.fault, notary.notary_fault = UnreachableError("down"), UnreachableError("notary down")

    with pytest.raises(UnreachableError, match=r"^down"):
        await make_ring().verify_keys(NAME, [KEY.key_id], now_ms(clock), [])


async def test_who_has_the_keys_has_nothing_left_that_asks_for_them(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ends_slowly(name: ServerName) -> ResolvedServer:
        if name == NAME:
            return await resolve(name)
        try:
            asked.set()
            await asyncio.Event().wait()
            raise AssertionError
        finally:
            await spin()  # as a connection that is closed

    asked, resolve = asyncio.Event(), notary.resolve
    monkeypatch.setattr(notary, "resolve", ends_slowly)
    notary.gate = asyncio.Event()
    verifying = asyncio.create_task(make_ring(0.0).verify_keys(NAME, [], now_ms(clock), []))
    await asked.wait()
    before = {verifying, asyncio.current_task()}
    notary.gate.set()
    await verifying

    assert asyncio.all_tasks() <= before


async def test_who_is_cancelled_leaves_no_server_and_no_notary_asked(
    make_ring: MakeRing, notary: FakeNotary, clock: FakeClock
) -> None:
    before = asyncio.all_tasks()
    notary.gate, notary.notary_gate = asyncio.Event(), asyncio.Event()
    verifying = asyncio.create_task(make_ring(0.0).verify_keys(NAME, [], now_ms(clock), []))
    while not notary.queries:
        await asyncio.sleep(0.001)
    verifying.cancel()
    await asyncio.gather(verifying, return_exceptions=True)

    assert before == asyncio.all_tasks()
