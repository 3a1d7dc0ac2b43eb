"""Invites as jobs of procrastinate: on PostgreSQL, by as many workers on as many machines as wanted.

    jobs = InviteJobs(app)                              # a procrastinate.App

    async with app.open_async():                        # where invites are made
        await jobs.defer(invites)

    async with app.open_async(), InviteClient(..., store=PostgresStore(...)) as client:
        await jobs.work(client, record)                 # in each worker

The queue is procrastinate's, and so are its tables, its command and its monitoring. What is added:

* the destination is the `lock` of a job, so that no two workers are at one server at the same time,
  and a server that fails delays its own invites alone;
* the event ID is the `queueing_lock`, so that an invite waits in the queue once;
* a failure that may pass is scheduled again: when the remote, or the memory of its failures that
  the workers share, says; else later each time;
* jobs of a worker that has died are put back.

A job may be run twice: when a worker dies after the remote has signed. That is harmless, for it is
the same event; only `record` must bear to be told twice.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import procrastinate
from procrastinate.exceptions import (
    AlreadyEnqueued,
    ConnectorException,
    JobAborted,
    UniqueViolation,
)
from procrastinate.jobs import Job, Status
from procrastinate.retry import BaseRetryStrategy, RetryDecision

from invite_client.bulk import Outcome
from invite_client.client import InviteClient
from invite_client.errors import InviteError, RateLimitedError
from invite_client.spec.invites import Invite

__all__ = ["InviteJobs", "JobPolicy", "Record"]

_log = logging.getLogger(__name__)

_CLIENT, _RECORD = "invite_client", "record"
_MANY = 32
"""Doublings after which any wait is longer than any maximum."""
_RAISED = "P0001"
"""What PostgreSQL calls an error that a function raises, as those of procrastinate do where a job is
no longer what it was (PostgreSQL, Appendix A)."""


@dataclass(frozen=True, slots=True)
class JobPolicy:
    """When a job is run again. All times are in seconds."""

    first_wait: float = 30.0
    """After the first failure; each further one doubles it. A worker has tried for a minute by then
    (`Retries`)."""
    max_wait: float = 3600.0
    """At most, unless the remote asks for more; for more than `patience` no job waits."""
    patience: float = 24 * 3600.0
    """How long a destination may do nothing but fail before its invites end with that error:
    jobs wait on disk and cost nothing, and most outages are over within a day."""
    attempts: int = 50
    """How often one job is run at most."""
    look_again: float = 0.5
    """How often a worker that could do more looks into the queue. procrastinate tells it of new jobs,
    but not of those for whose server another job has just ended: each would wait for five seconds."""
    heartbeat: float = 10.0
    """How often a worker says that it is alive."""
    stalled_after: float = 60.0
    """After how long without that its jobs are put back: several heartbeats, and longer than an
    invite may take (`Timeouts.total`)."""


class Record(Protocol):
    """What becomes of an invite: implemented by whoever sends it. Every outcome may be told twice."""

    async def is_signed(self, event_id: str) -> bool:
        """Return whether it is recorded already that an event was signed: then it is not sent."""
        ...

    async def record(self, outcome: Outcome) -> None:
        """Write down how an invite ended. What it raises ends the job as a failure."""
        ...


class InviteJobs:
    """The jobs of one procrastinate app that send invites."""

    def __init__(
        self,
        app: procrastinate.App,
        *,
        queue: str = "invites",
        policy: JobPolicy = JobPolicy(),
    ) -> None:
        """Register the task ``invite_client.send`` with `app`, in a queue."""
        self._app = app
        self._queue = queue
        self._policy = policy
        send = app.task(
            name="invite_client.send", queue=queue, retry=_AsTheErrorSays(), pass_context=True
        )(self._send)
        self.task: procrastinate.tasks.Task[..., Any, Any] = send

    async def defer(self, invites: Iterable[Invite] | AsyncIterable[Invite]) -> int:
        """Put invites into the queue, and return how many were not in it already."""
        number = 0
        async for invite in _as_they_come(invites):
            task = self.task.configure(lock=str(invite.destination), queueing_lock=invite.event_id)
            with suppress(AlreadyEnqueued):
                await task.defer_async(request=invite.to_request())
                number += 1
        return number

    async def work(
        self,
        client: InviteClient,
        record: Record,
        *,
        concurrency: int | None = None,
        **options: Any,
    ) -> None:
        """Send invites of the queue, up to `concurrency` at once, until the worker is stopped.

        `options` are those of `procrastinate.App.run_worker_async`; ``wait=False`` ends it when
        there is nothing to do.
        """
        async with self._putting_back():
            await self._app.run_worker_async(
                **{
                    "queues": [self._queue],
                    "concurrency": concurrency or client.policy.limits.concurrency,
                    "additional_context": {_CLIENT: client, _RECORD: record},
                    "fetch_job_polling_interval": self._policy.look_again,
                    "update_heartbeat_interval": self._policy.heartbeat,
                    "stalled_worker_timeout": self._policy.stalled_after,
                    # What was signed is recorded elsewhere, and a queue is fast while it is short.
                    "delete_jobs": "successful",
                    **options,
                }
            )

    async def put_back(self) -> int:
        """Put jobs back that have died with their worker, and return how many.

        Raises `procrastinate.exceptions.ConnectorException` if the database cannot be used.
        """
        stalled = await self._app.job_manager.get_stalled_jobs(
            queue=self._queue, seconds_since_heartbeat=self._policy.stalled_after
        )
        number = 0
        for job in stalled:
            with _unless_another_was_faster():
                try:
                    await self._app.job_manager.retry_job(job)
                    number += 1
                except UniqueViolation:
                    # The invite was put into the queue once more, and waits there already. Its
                    # server has no other job run while this one seems to be.
                    await self._app.job_manager.finish_job(job, Status.ABORTED, delete_job=False)
        return number

    @asynccontextmanager
    async def _putting_back(self) -> AsyncIterator[None]:
        async def every_now_and_then() -> None:
            while True:
                try:
                    await self.put_back()
                except ConnectorException as error:
                    _log.warning("jobs of workers that have died wait to be put back: %r", error)
                await asyncio.sleep(self._policy.stalled_after / 2)

        task = asyncio.create_task(every_now_and_then())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # --- One job --------------------------------------------------------------------------------

    async def _send(self, context: procrastinate.JobContext, *, request: dict[str, Any]) -> str:
        client: InviteClient = context.additional_context[_CLIENT]
        record: Record = context.additional_context[_RECORD]
        job = context.job
        invite = Invite.from_request(request)
        if await record.is_signed(invite.event_id):
            return "signed before"
        started = time.monotonic()
        signed = error = None
        try:
            signed = await client.send_invite(invite)
        except InviteError as raised:
            error = raised
            decision = await self._decide(client, invite, raised, job)
            if decision is not None:
                raise _LaterError(str(raised), decision) from raised
        seconds = time.monotonic() - started
        await record.record(Outcome(job.id or 0, invite, signed, error, seconds, job.attempts + 1))
        return "signed" if error is None else str(error)

    async def _decide(
        self, client: InviteClient, invite: Invite, error: InviteError, job: Job
    ) -> RetryDecision | None:
        """Return when a job is run again; None if it is not."""
        policy = self._policy
        if not error.retryable or job.attempts + 1 >= policy.attempts:
            return None
        failing = await client.backoff(str(invite.destination))
        if failing is not None and time.time() - failing.since > policy.patience:
            return None
        wait = error.retry_after
        if wait is None:
            wait = min(policy.first_wait * 2.0 ** min(job.attempts, _MANY), policy.max_wait)
        if wait > policy.patience:
            return None
        # Those that wait for one server must not come back all at once.
        seconds = wait + random.uniform(0, min(wait, policy.first_wait) / 10)  # noqa: S311
        # A job that waits holds up those behind it that have the same lock: right where the server
        # fails, wrong where it limits a single user. Those go first.
        priority = job.priority - 1 if isinstance(error, RateLimitedError) else None
        return RetryDecision(retry_in={"milliseconds": int(seconds * 1000)}, priority=priority)


@contextmanager
def _unless_another_was_faster() -> Iterator[None]:
    try:
        yield
    except ConnectorException as error:
        if getattr(error.__cause__, "sqlstate", None) != _RAISED:
            raise


class _LaterError(Exception):
    """Raised to procrastinate, which keeps its text, for a job that is to be run again."""

    def __init__(self, message: str, decision: RetryDecision) -> None:
        super().__init__(message)
        self.decision = decision


class _AsTheErrorSays(BaseRetryStrategy):
    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:  # noqa: ARG002
        match exception:
            case _LaterError():
                return exception.decision
            case asyncio.CancelledError() | JobAborted():
                # The worker was stopped; another one may go on.
                return RetryDecision(retry_in={"seconds": 0})
        return None


async def _as_they_come(invites: Iterable[Invite] | AsyncIterable[Invite]) -> AsyncIterator[Invite]:
    if isinstance(invites, AsyncIterable):
        async for invite in invites:
            yield invite
    else:
        for invite in invites:
            yield invite
