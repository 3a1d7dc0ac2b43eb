"""Invites as jobs: each ends once, no server is visited by two at once, and workers may die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import Job

from invite_client import (
    BackoffPolicy,
    Invite,
    InviteClient,
    Outcome,
    Policy,
    RateLimitedError,
    Retries,
)
from invite_client.contrib.procrastinate import InviteJobs, JobPolicy
from invite_client.signing_keys import write_signing_key
from invite_client.testing import (
    INVITER,
    INVITER_KEY,
    LoopbackHomeserver,
    LoopbackNetwork,
    SimulatedFederation,
    SimulatedHomeserver,
    Unreachable,
    make_invite,
    make_room,
)
from invite_client.testing.faults import Wire, WireFault, encode
from tests.postgres import running_postgres

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "bulk_cluster.py"
QUICK = Policy(
    retries=Retries(attempts=1), backoff=BackoffPolicy(first=0.05, maximum=0.1, after_failures=2)
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_postgres() as conninfo:
        yield conninfo


@pytest.fixture
def database(server: str) -> Iterator[str]:
    """A database of the test's own."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("CREATE DATABASE invites")
        yield server.replace("dbname=postgres", "dbname=invites")
        connection.execute("DROP DATABASE invites WITH (FORCE)")


@pytest.fixture
async def app(database: str) -> AsyncIterator[procrastinate.App]:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=database))
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield app


class Records:
    """What has ended, in memory."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.signed: set[str] = set()

    async def is_signed(self, event_id: str) -> bool:
        return event_id in self.signed

    async def record(self, outcome: Outcome) -> None:
        assert outcome.invite is not None
        self.outcomes.append(outcome)
        if outcome.signed:
            self.signed.add(outcome.invite.event_id)

    @property
    def ended(self) -> dict[str, str]:
        """By user: signed, or the class of the error."""
        return {
            outcome.invite.target: type(outcome.error).__name__ if outcome.error else "signed"
            for outcome in self.outcomes
            if outcome.invite
        }


Work = Callable[..., Awaitable[Records]]


@pytest.fixture
def work(app: procrastinate.App) -> Work:
    """Put invites into the queue, and work until there is nothing to do."""

    async def call(federation: SimulatedFederation, *invites: Invite, **policy: Any) -> Records:
        jobs = InviteJobs(app, policy=JobPolicy(**policy))
        records = Records()
        assert len(invites) == await jobs.defer(invites)
        async with federation.client(policy=QUICK) as client:
            while True:
                await jobs.work(client, records, wait=False, install_signal_handlers=False)
                if len(records.outcomes) >= len(invites):
                    return records
                await asyncio.sleep(0.02)

    return call


async def test_every_job_ends_with_an_outcome(work: Work, app: procrastinate.App) -> None:
    good, refusing = SimulatedHomeserver("good.example"), SimulatedHomeserver("no.example")
    refusing.answers(403, "M_FORBIDDEN")
    records = await work(
        SimulatedFederation(good, refusing),
        make_invite("@a:good.example"),
        make_invite("@b:good.example"),
        make_invite("@c:no.example"),
        make_invite("@d:absent.example"),
    )

    assert {
        "@a:good.example": "signed",
        "@b:good.example": "signed",
        "@c:no.example": "InviteRejectedError",
        "@d:absent.example": "UnreachableError",
    } == records.ended
    assert {1} == {outcome.sends for outcome in records.outcomes}
    assert [] == list(await app.job_manager.list_jobs_async())  # a queue is fast while it is short


async def test_an_invite_is_in_the_queue_once(app: procrastinate.App) -> None:
    jobs = InviteJobs(app)
    invite, other = make_invite("@a:x.example"), make_invite("@b:x.example")

    assert 1 == await jobs.defer([invite, invite])
    assert 1 == await jobs.defer([invite, other])
    queued = list(await app.job_manager.list_jobs_async())
    assert {invite.event_id, other.event_id} == {job.queueing_lock for job in queued}
    assert {"x.example"} == {job.lock for job in queued}


async def test_a_worker_looks_for_servers_that_are_free_again(
    app: procrastinate.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An invite waits for the one before it to its server, and nobody tells when that has ended."""
    given: dict[str, Any] = {}

    async def run(**options: Any) -> None:
        given.update(options)

    monkeypatch.setattr(app, "run_worker_async", run)
    async with SimulatedFederation().client() as client:
        await InviteJobs(app, policy=JobPolicy(look_again=1.5)).work(client, Records())

    assert 1.5 == given["fetch_job_polling_interval"]


async def test_an_asynchronous_iterable_is_put_into_the_queue(app: procrastinate.App) -> None:
    async def produce() -> AsyncIterator[Invite]:
        yield make_invite()

    assert 1 == await InviteJobs(app).defer(produce())


async def test_what_may_pass_is_run_again_when_the_error_says(
    app: procrastinate.App, work: Work
) -> None:
    remote = SimulatedHomeserver()
    remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=300, times=1)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    records = await work(SimulatedFederation(remote), make_invite("@a:remote.example"))

    assert loop.time() - begun >= 0.3
    assert {"@a:remote.example": "signed"} == records.ended
    assert [2] == [outcome.sends for outcome in records.outcomes]


async def test_a_limited_user_does_not_hold_up_the_others(work: Work) -> None:
    remote = SimulatedHomeserver()
    remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=500, times=1)
    invites = [make_invite(f"@u{number}:remote.example") for number in range(3)]
    records = await work(SimulatedFederation(remote), *invites)

    order = [outcome.invite.target for outcome in records.outcomes if outcome.invite]
    assert ["@u1:remote.example", "@u2:remote.example", "@u0:remote.example"] == order


async def test_a_job_is_run_so_often_and_no_more(work: Work) -> None:
    remote = SimulatedHomeserver()
    remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=1)
    records = await work(SimulatedFederation(remote), make_invite(), attempts=3)

    assert [3] == [outcome.sends for outcome in records.outcomes]


async def test_nobody_waits_for_as_long_as_a_server_likes(work: Work) -> None:
    remote = SimulatedHomeserver()
    remote.answers(429, "M_LIMIT_EXCEEDED", retry_after_ms=2**53 - 1)
    records = await work(SimulatedFederation(remote), make_invite())

    [outcome] = records.outcomes
    assert isinstance(outcome.error, RateLimitedError)
    assert (2**53 - 1) / 1000 == outcome.error.retry_after


async def test_a_failing_server_is_given_up_in_the_end_and_its_queue_at_once(work: Work) -> None:
    remote = SimulatedHomeserver()
    remote.fails(Unreachable())
    invites = [make_invite(f"@u{number}:remote.example") for number in range(30)]
    records = await work(
        SimulatedFederation(remote), *invites, first_wait=0.05, max_wait=0.1, patience=0.3
    )

    assert {"UnreachableError"} == set(records.ended.values())
    assert 30 == len(records.outcomes)
    assert 0 == remote.counts["v2"]


async def test_a_job_that_is_run_twice_sends_nothing_twice_if_it_is_recorded(
    app: procrastinate.App,
) -> None:
    remote = SimulatedHomeserver()
    jobs, records, invite = InviteJobs(app), Records(), make_invite()
    async with SimulatedFederation(remote).client() as client:
        for _ in range(2):
            assert 1 == await jobs.defer([invite])
            await jobs.work(client, records, wait=False, install_signal_handlers=False)

    assert 1 == remote.counts["v2"]
    assert 1 == len(records.outcomes)


async def test_a_job_that_is_run_twice_is_harmless_if_it_is_not(app: procrastinate.App) -> None:
    """As after a worker that died when the remote had signed, and before that was recorded."""
    remote = SimulatedHomeserver()
    jobs, records, invite = InviteJobs(app), Records(), make_invite()
    async with SimulatedFederation(remote).client() as client:
        for _ in range(2):
            await jobs.defer([invite])
            await jobs.work(client, records, wait=False, install_signal_handlers=False)
            records.signed.clear()

    assert {invite.event_id: 2} == remote.accepted
    first, second = records.outcomes
    assert first.signed is not None
    assert second.signed is not None
    assert first.signed.event == second.signed.event


async def test_a_worker_that_is_stopped_leaves_its_job_to_others(app: procrastinate.App) -> None:
    remote = SimulatedHomeserver()
    jobs, records = InviteJobs(app), Records()
    await jobs.defer([make_invite()])
    entered = asyncio.Event()

    class Stuck(InviteClient):
        async def send_invite(self, *_: Any, **__: Any) -> Any:
            entered.set()
            await asyncio.Event().wait()

    async with Stuck(INVITER, INVITER_KEY) as stuck:
        task = asyncio.create_task(
            jobs.work(stuck, records, install_signal_handlers=False, shutdown_graceful_timeout=0.0)
        )
        await asyncio.wait_for(entered.wait(), 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with SimulatedFederation(remote).client() as client:
        await jobs.work(client, records, wait=False, install_signal_handlers=False)

    assert 1 == len(records.signed)


async def test_what_two_find_dead_is_put_back_once(
    app: procrastinate.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = InviteJobs(app)
    await jobs.defer([make_invite()])
    [job] = await app.job_manager.list_jobs_async()
    await app.connector.execute_query_async("UPDATE procrastinate_jobs SET status = 'doing'")

    async def found_by_two(**_: Any) -> list[Job]:
        return [job, job]

    monkeypatch.setattr(app.job_manager, "get_stalled_jobs", found_by_two)

    assert 1 == await jobs.put_back()


async def test_a_database_that_goes_away_is_not_taken_for_a_worker_that_was_faster(
    app: procrastinate.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = InviteJobs(app)
    await jobs.defer([make_invite()])
    [job] = await app.job_manager.list_jobs_async()

    async def found(**_: Any) -> list[Job]:
        return [job]

    async def goes_away(_: Job) -> None:
        raise ConnectorException("gone") from psycopg.OperationalError("gone")

    monkeypatch.setattr(app.job_manager, "get_stalled_jobs", found)
    monkeypatch.setattr(app.job_manager, "retry_job", goes_away)

    with pytest.raises(ConnectorException, match="gone"):
        await jobs.put_back()


async def test_a_job_that_died_and_was_put_into_the_queue_anew_holds_up_nobody(
    app: procrastinate.App, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an invite whose worker died, and which somebody has put into the queue since
    jobs, invite = InviteJobs(app), make_invite()
    await jobs.defer([invite])
    await app.connector.execute_query_async("UPDATE procrastinate_jobs SET status = 'doing'")
    [dead] = await app.job_manager.list_jobs_async()
    assert 1 == await jobs.defer([invite])

    # When what has died is put back
    async def found(**_: Any) -> list[Job]:
        return [dead]

    with monkeypatch.context() as patched:
        patched.setattr(app.job_manager, "get_stalled_jobs", found)
        assert 0 == await jobs.put_back()

    # Then the one that waits is run, for its server is free
    records = Records()
    async with SimulatedHomeserver().client() as client:
        await jobs.work(client, records, wait=False, install_signal_handlers=False)
    assert {invite.target: "signed"} == records.ended


async def test_a_database_that_fails_for_a_moment_does_not_end_the_putting_back(
    app: procrastinate.App, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures, once_more = iter([ConnectorException("gone")]), asyncio.Event()

    async def stalled(**_: Any) -> list[Job]:
        for failure in failures:
            raise failure
        once_more.set()
        return []

    jobs = InviteJobs(app, policy=JobPolicy(stalled_after=0.02))
    monkeypatch.setattr(app.job_manager, "get_stalled_jobs", stalled)
    async with SimulatedHomeserver().client() as client:
        task = asyncio.create_task(jobs.work(client, Records(), install_signal_handlers=False))
        await once_more.wait()
        while not task.done():  # procrastinate may lose one that comes while it starts
            task.cancel()
            await asyncio.wait({task}, timeout=0.1)

    assert "wait to be put back: ConnectorException" in caplog.text


# --- Whole ---------------------------------------------------------------------------------------


class TakesTime(WireFault):
    """Answers after a while, and notes how many requests are there at once."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0

    async def __call__(self, wire: Wire) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.005)
            await wire.send(encode(wire.reply))
        finally:
            self.now -= 1


# The size of a quick check; `INVITE_CLIENT_CLUSTER=2000/40` is one that takes a minute.
INVITES, DESTINATIONS = map(int, os.environ.get("INVITE_CLIENT_CLUSTER", "320/40").split("/"))
WORKERS = 3


@pytest.mark.slow
@pytest.mark.loopback
@pytest.mark.timeout(400)
async def test_three_workers_one_of_which_is_killed(database: str, tmp_path: Path) -> None:
    write_signing_key(tmp_path / "signing.key", INVITER_KEY)
    room = make_room()
    with (tmp_path / "requests.jsonl").open("w") as file:
        for number in range(INVITES):
            target = f"@u{number}:d{number % DESTINATIONS}.example"
            file.write(json.dumps(Invite.build(room, target, INVITER_KEY).to_request()) + "\n")

    async def run(command: str, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, EXAMPLE, command, "--database", database),
            *("--heartbeat", "0.5", *arguments),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def printed(command: str, *arguments: str) -> str:
        out, _ = await (await run(command, *arguments)).communicate()
        return out.decode()

    def count(query: str) -> int:
        with psycopg.connect(database) as connection:
            row = connection.execute(query).fetchone()
            assert row is not None
            return int(row[0])

    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(LoopbackNetwork())
        remotes, visits = [], []
        for number in range(DESTINATIONS):
            remote = LoopbackHomeserver(f"d{number}.example", network=network, record=False)
            remote.trust(INVITER, INVITER_KEY.verify_key)
            visits.append(TakesTime())
            for endpoint in ("v2", "v1"):
                remote.fails(visits[-1], endpoint=endpoint)
            remotes.append(await stack.enter_async_context(remote))
        assert "" == await printed("init")
        assert f"{INVITES} invites added\n" == await printed("add", "requests.jsonl")
        workers = [
            await run(
                "work",
                *("--server-name", INVITER, "--signing-key", "signing.key"),
                *("--ca-file", str(network.ca_file), "--allow-address", "127.0.0.0/8"),
                *("--nameserver", f"{network.dns.address}:{network.dns.port}"),
                *("--concurrency", "20"),
            )
            for _ in range(WORKERS)
        ]
        signed = "SELECT count(*) FROM invite_outcomes WHERE signed IS NOT NULL"
        async with asyncio.timeout(300):
            while count(signed) < INVITES // 4:
                await asyncio.sleep(0.1)
            workers[0].send_signal(signal.SIGKILL)
            while count(signed) < INVITES:
                await asyncio.sleep(0.2)
        shown = await printed("show")
        for worker in workers[1:]:
            worker.send_signal(signal.SIGTERM)
        for worker in workers:
            await asyncio.wait_for(worker.communicate(), 30)
        accepted: Counter[str] = Counter()
        for remote in remotes:
            accepted.update(remote.accepted)

    assert f"ended: {INVITES:6} signed" in shown
    assert INVITES == len(accepted) == count("SELECT count(*) FROM invite_outcomes")
    # What was under way when the worker died was sent twice, and nothing else.
    assert sum(accepted.values()) - INVITES <= 20
    # Never two at once, but for the request that a dead worker has left behind.
    assert {1} == {visit.most for visit in visits}
    assert [-signal.SIGKILL, 0, 0] == [worker.returncode for worker in workers]
