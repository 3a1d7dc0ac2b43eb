"""Keys are fetched once for all, kept, checked again, and fetched anew when that may help."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from invite_client.errors import InviteError, MalformedReplyError, UnreachableError
from invite_client.interfaces import AttemptLog, Stored
from invite_client.keyring import FetchingKeyRing
from invite_client.policy import KeyPolicy, Policy
from invite_client.spec import canonical_json
from invite_client.spec.discovery import ResolvedServer, Target
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_names import ServerName, parse_server_name
from invite_client.spec.signatures import SigningKey, sign_json
from invite_client.stores.memory import MemoryStore

NAME = parse_server_name("remote.example")
KEY, NEW = SigningKey.generate("a"), SigningKey.generate("b")
START = 1_700_000_000.0
HOUR = 3600.0


class FakeClock:
    def __init__(self) -> None:
        self.now = START

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeServer:
    """A key server as transport and resolver in one: counts what it is asked."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.keys = [KEY]
        self.asked = 0
        self.fault: InviteError | None = None
        self.body: bytes | None = None
        self.valid_for = 24 * HOUR

    async def resolve(self, name: ServerName) -> ResolvedServer:
        return ResolvedServer(str(name), "6", (Target(name.host, 8448),), str(name), name.host)

    async def forget(self, name: ServerName) -> None: ...

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        assert "/_matrix/key/v2/server" == request.uri
        assert request.authorization is None
        self.asked += 1
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        if self.body is not None:
            return Reply(200, self.body)
        response: dict[str, Any] = {
            "server_name": str(NAME),
            "verify_keys": {k.key_id: {"key": k.verify_key.base64} for k in self.keys},
            "valid_until_ts": int((self.clock.now + self.valid_for) * 1000),
        }
        for key in self.keys:
            response = sign_json(response, str(NAME), key)
        return Reply(200, canonical_json.encode(response))

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


async def test_keys_past_their_time_are_fetched_anew(
    ring: FetchingKeyRing, server: FakeServer, clock: FakeClock
) -> None:
    server.valid_for = HOUR
    await ring.prefetch(NAME)
    clock.now += HOUR + 1
    keys = await ring.verify_keys(NAME, [KEY.key_id], now_ms(clock), [])

    assert 2 == server.asked
    assert keys.verify_key(KEY.key_id, now_ms(clock))


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
    await ring.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting
