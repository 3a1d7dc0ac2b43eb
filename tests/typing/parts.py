"""What a host can bring in place of a part of ours, and what it is told. Type-checked, never run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, assert_never, assert_type

from prometheus_client import CollectorRegistry

from invite_client import (
    AddressPolicy,
    Attempt,
    BackoffPolicy,
    BulkPolicy,
    CachePolicy,
    ClientResponse,
    DnsPolicy,
    ForbiddenByPolicyError,
    InvalidInviteError,
    Invite,
    InviteClient,
    KeyPolicy,
    Limits,
    MalformedReplyError,
    Notary,
    Policy,
    ProxyPolicy,
    PublishedKey,
    ResolvedServer,
    Retries,
    ServerKeys,
    ServerPolicy,
    SignedInvite,
    SigningKey,
    Target,
    Timeouts,
    TlsPolicy,
    TraceStep,
    UnreachableError,
    UntrustedReplyError,
    VerifyKey,
    __version__,
    write_signing_key,
)
from invite_client.contrib import observers
from invite_client.contrib.logs import LogObserver
from invite_client.contrib.opentelemetry import TracingObserver
from invite_client.contrib.prometheus import PrometheusObserver
from invite_client.interfaces import (
    AttemptLog,
    Clock,
    KeyRing,
    Lookups,
    Observer,
    Resolver,
    Store,
    Stored,
    Transport,
)
from invite_client.observations import (
    Abandoned,
    Failed,
    FellBack,
    KeysObtained,
    Observation,
    Queued,
    Replied,
    RequestSent,
    Resolved,
    RetryScheduled,
    Started,
    Unanswered,
    Verified,
)
from invite_client.spec.discovery import SrvAnswer, WellKnownAnswer
from invite_client.spec.http import Reply, Request
from invite_client.spec.server_names import ServerName
from invite_client.stores.memory import MemoryStore
from invite_client.stores.sqlite import SqliteStore
from invite_client.testing import SimulatedHomeserver, badly_signed, make_invite


class OwnStore:
    async def get(self, kind: str, key: str) -> Stored | None:
        return Stored({"any": ["JSON"]}, fresh_until=1.0, usable_until=2.0)

    async def put(self, kind: str, key: str, stored: Stored) -> None: ...

    async def delete(self, kind: str, key: str) -> None: ...

    async def aclose(self) -> None: ...


class OwnClock:
    def time(self) -> float:
        return 0.0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None: ...


class OwnTransport:
    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        target: Target = server.targets[0]
        log.append(Attempt(what=request.what, target=str(target), outcome="200", sent=True))
        return Reply(200, b"{}")

    async def aclose(self) -> None: ...


class OwnResolver:
    async def resolve(self, name: ServerName) -> ResolvedServer:
        step = TraceStep("2", "has the name a port?", "yes")
        return ResolvedServer(
            str(name), "2", (Target(name.host, 8448),), str(name), name.host, (step,)
        )

    async def forget(self, name: ServerName) -> None: ...

    async def aclose(self) -> None: ...


class OwnKeyRing:
    async def prefetch(self, name: ServerName) -> None: ...

    async def verify_keys(
        self, name: ServerName, key_ids: Collection[str], valid_at: int | None, log: AttemptLog
    ) -> ServerKeys:
        return await self.server_keys(name)

    async def server_keys(self, name: ServerName) -> ServerKeys:
        key = VerifyKey.from_base64("ed25519:a_1", "base64")
        published = PublishedKey(key, valid_until=0)
        return ServerKeys(str(name), {"ed25519:a_1": published}, 0, 0, {})

    async def aclose(self) -> None: ...


class OwnLookups:
    async def well_known(self, hostname: str) -> WellKnownAnswer:
        return WellKnownAnswer(None, "none")

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        return SrvAnswer(())


class OwnObserver:
    """Handles everything there is: the checker says what is missing."""

    def __call__(self, event: Observation) -> None:
        assert_type(event.invite, Invite)
        assert_type(event.call, int)
        match event:
            case Queued():
                pass
            case Started(_, waited):
                assert_type(waited, float)
            case Resolved(_, server, seconds):
                assert_type(server, ResolvedServer)
                assert_type(seconds, float)
            case RequestSent(_, request, server, attempt):
                assert_type(request, Request)
                assert_type(attempt, int)
            case Replied(_, _, reply, seconds, _, attempts):
                assert_type(reply, Reply)
                assert_type(attempts, tuple[Attempt, ...])
            case Unanswered(_, _, error, _, _, attempts):
                assert_type(attempts, tuple[Attempt, ...])
            case FellBack(_, reply):
                assert_type(reply, Reply)
            case RetryScheduled(_, error, attempt, wait):
                assert_type(wait, float)
            case KeysObtained(_, keys):
                assert_type(keys, ServerKeys)
            case Verified(_, signed):
                assert_type(signed, SignedInvite)
            case Failed(_, error, seconds):
                assert_type(error.client_response(), ClientResponse)
            case Abandoned(_, seconds):
                assert_type(seconds, float)
            case _:
                assert_never(event)


async def replace_everything(key: SigningKey, registry: CollectorRegistry) -> None:
    store: Store = OwnStore()
    clock: Clock = OwnClock()
    transport: Transport = OwnTransport()
    resolver: Resolver = OwnResolver()
    keyring: KeyRing = OwnKeyRing()
    _lookups: Lookups = OwnLookups()
    observer: Observer = observers(
        OwnObserver(), LogObserver(), PrometheusObserver(registry), TracingObserver()
    )
    async with InviteClient(
        "inviter.example",
        key,
        transport=transport,
        resolver=resolver,
        keyring=keyring,
        store=store,
        clock=clock,
        observer=observer,
    ) as client:
        await client.send_invite(make_invite())
    for ours in (MemoryStore(10), SqliteStore("store.sqlite")):
        InviteClient("inviter.example", key, store=ours)


async def rehearse() -> None:
    remote = SimulatedHomeserver("remote.example")
    remote.lies(badly_signed(), times=1)
    remote.answers(503, times=1)
    async with remote.client(observer=LogObserver()) as client:
        assert_type(await client.send_invite(make_invite()), SignedInvite)
    assert_type(remote.counts["v2"], int)


def every_part_of_a_policy(key: SigningKey) -> Policy:
    write_signing_key("new.key", key)
    _version: str = __version__
    return Policy(
        timeouts=Timeouts(total=30, well_known=5, connect=5, request=20),
        retries=Retries(attempts=1),
        limits=Limits(concurrency=1),
        addresses=AddressPolicy(blocked=(), allowed=("::1/128",)),
        servers=ServerPolicy(allowed=("a.example",), blocked=()),
        tls=TlsPolicy(ca_file=("a.pem", "b.pem"), unverified=("lan.example",)),
        dns=DnsPolicy(nameservers=("192.0.2.53",)),
        proxy=ProxyPolicy.from_environment({"https_proxy": "http://proxy.example:3128"}),
        cache=CachePolicy(jitter=0.0),
        keys=KeyPolicy(notaries=(Notary("notary.example", {"ed25519:a": "base64"}),)),
        backoff=BackoffPolicy(after_failures=None),
        bulk=BulkPolicy(rate=None),
        fallback="spec",
    )


def by_what_a_caller_knows_already(error: Exception) -> Any:
    match error:
        case InvalidInviteError():
            return assert_type(error.field, str)
        case ForbiddenByPolicyError():
            return assert_type(error.setting, str)
        case UnreachableError():
            return error.trace
        case MalformedReplyError() | UntrustedReplyError():
            return error.stage
        case _:
            return None
