"""Many invites: bounded, fair to every destination, outcomes as they come.

    async with client.send_invites(invites) as outcomes:
        async for outcome in outcomes:
            print(outcome.invite, outcome.signed or outcome.error)

What is taken from the input and not yet handed out as an outcome is the *look-ahead*; its size
bounds the memory. It is sorted into a queue for each destination, and these take turns:

* a destination that answers promptly is sent more at once, up to `limits.per_destination`; one that
  is new, slow or failing gets one invite at a time, and all of these together leave a share of the
  slots (`bulk.kept_for_prompt`) to those that answer;
* a destination that fails rests, longer each time, or as long as it asks for; one that has done
  nothing but fail for `bulk.patience` is given up, and what waits for it ends unsent;
* an answer "later" (429) is taken to concern the invited user, whose invites rest: so it is where
  Synapse limits invites of other servers. When a second user is told so, it concerns the server.

So a dead, slow or limiting destination holds up nobody but itself, unless it fills the whole
look-ahead: where an input is sorted by destination, its neighbours wait at most
`bulk.patience_when_full` for a dead one. A `Journal` sorts any input fairly, and has no such limit.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections import OrderedDict, deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Self, TypeAlias

from invite_client.backoff import not_sent
from invite_client.errors import (
    Delivery,
    InviteError,
    RateLimitedError,
    UnreachableError,
)
from invite_client.interfaces import Clock
from invite_client.policy import BulkPolicy, Limits
from invite_client.retrying import furthest
from invite_client.spec.invites import Invite, SignedInvite
from invite_client.spec.quoting import worded

__all__ = ["Failing", "Invites", "Outcome", "Outcomes", "send_all"]

Send: TypeAlias = Callable[[Invite], Awaitable[SignedInvite]]
Invites: TypeAlias = "Iterable[Invite | InviteError] | AsyncIterable[Invite | InviteError]"
"""What can be sent. An `InviteError` among them, given or raised by an iterator that can go on, is
an invite that could not be made: one bad outcome."""

_GENERATORS = (GeneratorType, AsyncGeneratorType)
_MANY = 60
"""Doublings after which any wait is longer than any limit."""
_TURN = 8
"""Invites that a destination may be sent in a row: they share its connections, which cost most."""
_UNLIMITED = 10
"""Answers in a row after which a server that limited us is taken not to do so any more."""
_REMEMBERED = 1000
"""Limited users of one destination that are remembered: first those are forgotten whose time has
come, then those who were told so first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one invite of many ended: with `signed` or with `error`, and never with both."""

    index: int
    """Its place in the input, from 0."""
    invite: Invite | None
    """What was to be sent; None if it could not be made."""
    signed: SignedInvite | None = None
    error: InviteError | None = None
    seconds: float = 0.0
    """How long its last send took."""
    sends: int = 0
    """How often it was sent; 0 if its destination had been given up before its turn."""


@dataclass(frozen=True, slots=True)
class Failing:
    """A destination that does nothing but fail at present."""

    destination: str
    failures: int
    """Failures in a row."""
    waiting: int
    """Invites in the look-ahead that wait for it."""
    rests: float
    """Seconds until it is tried again."""
    error: InviteError
    """What it failed with last."""


@asynccontextmanager
async def send_all(
    invites: Invites, send: Send, limits: Limits, policy: BulkPolicy, clock: Clock
) -> AsyncIterator[Outcomes]:
    """Send many invites, each by `send`. Leaving the block ends every send and leaves no task.

    A synchronous iterable is advanced on the event loop and must not block; an asynchronous
    generator is closed with the block. `send` makes one attempt: to repeat it is this module's task.
    """
    outcomes = Outcomes(send, limits, policy, clock)
    try:
        outcomes.begin(invites)
        yield outcomes
    finally:
        await outcomes.aclose()


@dataclass(slots=True, eq=False)
class _Item:
    index: int
    invite: Invite
    seconds: float = 0.0
    sends: int = 0
    faults: int = 0
    deferrals: int = 0
    rests_until: float = 0.0
    error: InviteError | None = None
    """Of what its sends ended with, the one that came furthest."""


@dataclass(slots=True)
class _Destination:
    """What this run knows of one server, and what waits for it."""

    name: str
    waiting: deque[_Item] = field(default_factory=deque)
    resting: set[_Item] = field(default_factory=set)
    """Invites of users who are limited."""
    limited: dict[str, float] = field(default_factory=dict)
    """Users who are, or were, limited, and until when: monotonic seconds."""
    in_flight: int = 0
    prompt: bool = False
    """Whether its last answer came, and soon."""
    allowance: int = 1
    """How many invites may be under way to it."""
    in_a_row: int = 0
    """How many invites were sent to it since others had their turn."""
    queued: bool = False
    """Whether it stands in one of the queues."""
    failures: int = 0
    """Failures in a row; those of sends that were under way at once count as one."""
    answers: int = 0
    """Answers in a row."""
    limits: bool = False
    """Whether it limits us, and not single users, so that the next "later" needs no second."""
    spent: float = 0.0
    """Seconds that failures in a row have taken, and the rests after them."""
    rests_from: float = 0.0
    """Monotonic seconds at which its last rest began: what was sent before says nothing new."""
    rests_until: float = 0.0
    last_error: InviteError | None = None
    given_up: InviteError | None = None
    """The error for which it was given up, if it was."""

    @property
    def tried_again_at(self) -> float:
        """Monotonic seconds at which something is sent to it again, if that is not now."""
        if self.waiting or not self.resting:
            return self.rests_until
        return max(self.rests_until, min(item.rests_until for item in self.resting))


class Outcomes:
    """The outcomes of a run, in the order in which they come: an asynchronous iterator.

    If the input raises, that is raised here when everything taken before has its outcome.
    """

    def __init__(self, send: Send, limits: Limits, policy: BulkPolicy, clock: Clock) -> None:
        self._send = send
        self._limits = limits
        self._policy = policy
        self._clock = clock

        self._finished: deque[Outcome] = deque()
        self._news = asyncio.Event()
        """Something has happened that whoever waits for an outcome must look at."""
        self._room = asyncio.Event()
        """An outcome was handed out, so there is room in the look-ahead."""
        self._taken = 0
        self._held = 0
        self._all_taken = False
        self._stopped = False
        self._input_error: BaseException | None = None
        self._bug: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[_Item] = set()
        """What is to be sent by a task that has not begun: if it is cancelled now, it never does."""
        self.abandoned: list[Invite] = []
        """When the block is left: what was being sent. Whether it arrived is not known."""

        self._busy: dict[str, _Destination] = {}
        self._idle: OrderedDict[str, _Destination] = OrderedDict()
        self._prompt: deque[_Destination] = deque()
        self._doubtful: deque[_Destination] = deque()
        self._resting: list[tuple[float, int, _Destination, _Item | None]] = []
        """Destinations, and single invites, that rest; those that end first come first."""
        self._tie_break = itertools.count()
        self._in_flight = 0
        self._doubtful_in_flight = 0
        kept = int(limits.concurrency * policy.kept_for_prompt)
        self._doubtful_limit = limits.concurrency - kept
        self._next_start = 0.0
        self._alarm: asyncio.Task[None] | None = None
        self._alarm_at = math.inf

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome:
        while not self._finished:
            if self._bug is not None:
                raise self._bug
            if self._over:
                if self._input_error is not None:
                    raise self._input_error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        outcome = self._finished.popleft()
        self._held -= 1
        self._room.set()
        if self._over:
            self._news.set()
        self._schedule()
        return outcome

    def stop(self) -> None:
        """Send nothing more. What is under way still ends; what waits has no outcome."""
        self._stopped = True
        self._news.set()

    def untaken(self) -> Iterator[Outcome]:
        """When the block is left: take what has ended and was not handed out any more."""
        while self._finished:
            yield self._finished.popleft()

    def unfinished(self) -> list[Outcome]:
        """When the block is left: what was sent in vain and waited for another try."""
        waiting = (
            item for known in self._busy.values() for item in (*known.waiting, *known.resting)
        )
        return [
            Outcome(item.index, item.invite, None, item.error, item.seconds, item.sends)
            for item in (*waiting, *self._starting)
            if item.error is not None
        ]

    @property
    def in_flight(self) -> int:
        """How many invites are being sent."""
        return self._in_flight

    def failing(self) -> list[Failing]:
        """Return the destinations for which invites wait, and which fail; those of most come first."""
        now = self._clock.monotonic()
        found = [
            Failing(
                known.name,
                known.failures,
                len(known.waiting) + len(known.resting) + known.in_flight,
                max(0.0, known.tried_again_at - now),
                known.last_error,
            )
            for known in self._busy.values()
            if known.last_error is not None
        ]
        return sorted(found, key=lambda one: (-one.waiting, one.destination))

    @property
    def _over(self) -> bool:
        if self._stopped:
            return not self._in_flight
        return self._all_taken and not self._held

    def begin(self, invites: Invites) -> None:
        """Start to read and to send. Raises `TypeError` if there is nothing that could be read."""
        iterator = aiter(invites if isinstance(invites, AsyncIterable) else _Steps(invites))
        self._spawn(self._read(iterator))

    async def aclose(self) -> None:
        """End everything that is under way, and wait until it has ended."""
        self._stopped = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- What comes in --------------------------------------------------------------------------

    async def _read(self, iterator: AsyncIterator[Invite | InviteError]) -> None:
        try:
            while not self._stopped:
                item = await self._next_item(iterator)
                if item is None:
                    break
                self._take(item)
                while self._held >= self._policy.look_ahead:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001  # the caller's own, and raised to the caller
            self._input_error = error
        except asyncio.CancelledError as error:
            if not self._stopped:  # not ours, and no end of the input
                self._input_error = error
            raise
        finally:
            if isinstance(iterator, AsyncGeneratorType):
                await iterator.aclose()
            self._all_taken = True
            self._news.set()

    async def _next_item(self, iterator: Any) -> Invite | InviteError | None:
        try:
            item = await anext(iterator)
        except StopAsyncIteration:
            return None
        except InviteError as error:
            # A `map` goes on after it has raised. A generator is at its end, and nobody may take
            # that for the end of the input.
            if isinstance(getattr(iterator, "source", iterator), _GENERATORS):
                raise
            return error
        if isinstance(item, Invite | InviteError):
            return item
        raise TypeError(f"expected an Invite or an InviteError, not {type(item).__name__}")

    def _take(self, item: Invite | InviteError) -> None:
        index = self._taken
        self._taken += 1
        self._held += 1
        if isinstance(item, InviteError):
            self._finish(Outcome(index, None, error=item))
            return
        destination = self._destination(str(item.destination))
        destination.waiting.append(_Item(index, item))
        if destination.given_up is not None and self._rests(destination):
            self._abandon(destination, destination.given_up)
        self._line_up(destination)
        self._release(destination)
        self._schedule()

    def _destination(self, name: str) -> _Destination:
        if name not in self._busy:
            known = name in self._idle
            self._busy[name] = self._idle.pop(name) if known else _Destination(name)
        return self._busy[name]

    def _release(self, destination: _Destination) -> None:
        """Remember what a destination has shown, for when it is invited from again."""
        if not (destination.waiting or destination.resting or destination.in_flight):
            self._idle[destination.name] = self._busy.pop(destination.name)
            if len(self._idle) > self._limits.cached_servers:
                self._idle.popitem(last=False)

    # --- Whose turn it is -----------------------------------------------------------------------

    def _schedule(self) -> None:
        """Start what may be started. Called whenever something has changed."""
        now = self._clock.monotonic()
        while self._resting and self._resting[0][0] <= now:
            _, _, destination, item = heapq.heappop(self._resting)
            if item is None:
                destination.queued = False
            elif item in destination.resting:
                destination.resting.remove(item)
                destination.waiting.appendleft(item)
            self._line_up(destination)
        while self._may_start(now) and (chosen := self._choose(now)) is not None:
            self._start(*chosen, now)
        if self._resting:
            self._ring_at(self._resting[0][0])

    def _may_start(self, now: float) -> bool:
        if self._stopped or self._bug is not None or self._in_flight >= self._limits.concurrency:
            return False
        if len(self._finished) >= self._limits.concurrency:
            return False  # Whoever takes the outcomes is slower than we are.
        if now < self._next_start:
            self._ring_at(self._next_start)
            return False
        return True

    def _choose(self, now: float) -> tuple[_Destination, _Item] | None:
        """Return what is sent next. Destinations that are in doubt come first, for they are limited."""
        # Twice, because what has come to be in doubt while it stood among the prompt moves over.
        for queue in (self._doubtful, self._prompt, self._doubtful):
            prompt = queue is self._prompt
            while queue and (prompt or self._doubtful_in_flight < self._doubtful_limit):
                destination = queue.popleft()
                destination.queued = False
                if self._is_ready(destination) and destination.prompt is prompt:
                    item = self._first_allowed(destination, now)
                    if item is not None:
                        return destination, item
                    self._release(destination)
                self._line_up(destination)
        return None

    def _first_allowed(self, destination: _Destination, now: float) -> _Item | None:
        """Return the first invite of a user who is not limited; the others rest."""
        while destination.waiting:
            item = destination.waiting.popleft()
            until = destination.limited.get(item.invite.target, 0.0)
            if until <= now:
                return item
            if until - now <= self._policy.longest_deferral:
                self._put_to_rest(destination, item, until)
            else:
                self._put_off(destination, item, until - now)
        return None

    def _put_off(self, destination: _Destination, item: _Item, wait: float) -> None:
        """End an invite of a user who is limited for longer than anything may wait in memory."""
        unsent = RateLimitedError(
            f"not sent: another invite of {worded(item.invite.target)} was answered 429",
            delivery=Delivery.NOT_SENT,
            retryable=True,
            retry_after=wait,
            destination=destination.name,
            status=429,
        )
        self._finish_unsent(item, unsent)

    def _put_to_rest(self, destination: _Destination, item: _Item, until: float) -> None:
        item.rests_until = until
        destination.resting.add(item)
        heapq.heappush(self._resting, (until, next(self._tie_break), destination, item))

    def _line_up(self, destination: _Destination) -> None:
        """Put a destination into the queue where it belongs, if something of it can be sent."""
        if destination.queued or not destination.waiting:
            return
        if self._rests(destination):
            entry = (destination.rests_until, next(self._tie_break), destination, None)
            heapq.heappush(self._resting, entry)
        elif not self._is_ready(destination):
            return
        elif not destination.prompt:
            self._doubtful.append(destination)
        elif destination.in_a_row < _TURN:
            self._prompt.appendleft(destination)
        else:
            destination.in_a_row = 0
            self._prompt.append(destination)
        destination.queued = True

    def _is_ready(self, destination: _Destination) -> bool:
        return (
            bool(destination.waiting)
            and destination.in_flight < destination.allowance
            and not self._rests(destination)
        )

    def _rests(self, destination: _Destination) -> bool:
        return destination.rests_until > self._clock.monotonic()

    def _ring_at(self, when: float) -> None:
        """Schedule again at `when`, monotonic seconds, if not before."""
        if self._stopped or self._alarm_at <= when:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._spawn(self._ring(when - self._clock.monotonic()))

    async def _ring(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._alarm, self._alarm_at = None, math.inf
        self._schedule()

    # --- One send -------------------------------------------------------------------------------

    def _start(self, destination: _Destination, item: _Item, now: float) -> None:
        destination.in_flight += 1
        destination.in_a_row += 1
        self._in_flight += 1
        doubtful = not destination.prompt
        self._doubtful_in_flight += doubtful
        if self._policy.rate is not None:
            self._next_start = max(now, self._next_start) + 1 / self._policy.rate
        self._starting.add(item)
        self._spawn(self._send_one(destination, item, doubtful=doubtful))
        self._line_up(destination)

    async def _send_one(self, destination: _Destination, item: _Item, *, doubtful: bool) -> None:
        self._starting.remove(item)
        started = self._clock.monotonic()
        signed, error = None, None
        try:
            signed = await self._send(item.invite)
        except InviteError as raised:
            error = raised
        except BaseException as bug:
            # A bug, or a cancellation that is not ours: the run cannot end well without this one.
            if isinstance(bug, asyncio.CancelledError):
                self.abandoned.append(item.invite)
            self._bug = bug
            self._news.set()
            if not isinstance(bug, Exception):
                raise
            return
        finally:
            destination.in_flight -= 1
            self._in_flight -= 1
            self._doubtful_in_flight -= doubtful
        now = self._clock.monotonic()
        item.sends += 1
        item.seconds = now - started
        if error is not None:
            item.error = furthest(item.error, error)
        if isinstance(error, RateLimitedError):
            self._note_limit(destination, item.invite.target, error)
        if started >= destination.rests_from:
            self._judge(destination, error, item.seconds)
        if error is None:
            self._finish(Outcome(item.index, item.invite, signed, None, item.seconds, item.sends))
        elif not self._is_repeated(destination, item, error):
            self._finish(
                Outcome(item.index, item.invite, None, item.error, item.seconds, item.sends)
            )
        elif isinstance(error, RateLimitedError):
            self._put_to_rest(destination, item, destination.limited[item.invite.target])
        else:
            # At the end of the queue: it may be this one invite that is answered so, not all.
            destination.waiting.append(item)
        self._line_up(destination)
        self._release(destination)
        self._schedule()

    def _is_repeated(self, destination: _Destination, item: _Item, error: InviteError) -> bool:
        if not error.retryable or destination.given_up is not None:
            return False
        if error.retry_after is None and not isinstance(error, RateLimitedError):
            item.faults += 1
            return item.faults < self._policy.attempts
        item.deferrals += 1
        return (
            item.deferrals < self._policy.deferrals
            and (error.retry_after or 0.0) <= self._policy.longest_deferral
        )

    def _finish(self, outcome: Outcome) -> None:
        self._finished.append(outcome)
        self._news.set()

    # --- What a destination has shown -----------------------------------------------------------

    def _judge(self, destination: _Destination, error: InviteError | None, seconds: float) -> None:
        if error is not None and (error.retryable or isinstance(error, UnreachableError)):
            self._note_failure(destination, error, seconds)
        elif error is None or error.delivery is Delivery.ANSWERED:
            destination.failures, destination.spent = 0, 0.0
            destination.answers += 1
            destination.last_error = destination.given_up = None
            destination.prompt = seconds <= self._policy.slow_after
            destination.limits = destination.limits and destination.answers < _UNLIMITED
            if destination.limits or not destination.prompt:
                destination.allowance = 1
            elif destination.allowance < self._limits.per_destination:
                destination.allowance += 1

    def _note_limit(self, destination: _Destination, user: str, error: RateLimitedError) -> None:
        """Let all invites of a user rest."""
        now = self._clock.monotonic()
        destination.limited.pop(user, None)
        if len(destination.limited) >= _REMEMBERED:
            # Half, so that the next time is not the next user. One that is forgotten is told again.
            still = [(name, until) for name, until in destination.limited.items() if until > now]
            destination.limited = dict(still[-(_REMEMBERED // 2) :])
        wait = error.retry_after
        if not wait:
            wait = self._back_off(destination.failures + 1)
        destination.limited[user] = now + wait

    def _note_failure(self, destination: _Destination, error: InviteError, seconds: float) -> None:
        policy, now = self._policy, self._clock.monotonic()
        destination.failures += 1
        destination.answers = 0
        destination.last_error = error
        destination.prompt = False
        destination.allowance = 1

        wait = error.retry_after
        if wait is None:
            wait = self._back_off(destination.failures)
        if isinstance(error, RateLimitedError):
            if destination.failures == 1 and not destination.limits:
                wait = 0.0  # One user's affair, perhaps.
            else:
                # Until the first of those who are limited may come back, and tells more. Where that
                # is long, others are tried now and then: it may be a limit of each user after all.
                waits = (until - now for until in destination.limited.values() if until > now)
                wait = min(policy.max_wait, min(waits, default=0.0))
                destination.limits = (error.retry_after or 0.0) < policy.max_wait
        destination.rests_from, destination.rests_until = now, now + wait

        full = self._held >= policy.look_ahead
        patience = policy.patience_when_full if full else policy.patience
        # That it had to wait for its turn is not held against it.
        destination.spent += seconds + wait
        if not error.retryable or destination.spent > patience:
            destination.given_up = error
            destination.rests_until = now + max(wait, policy.max_wait)
            self._abandon(destination, error)

    def _back_off(self, failures: int) -> float:
        """Return how long to rest after so many failures in a row, in seconds."""
        doubled = self._policy.first_wait * 2.0 ** min(failures - 1, _MANY)
        longest = min(doubled, self._policy.max_wait)
        return random.uniform(longest / 2, longest)  # noqa: S311  # no secret

    def _abandon(self, destination: _Destination, error: InviteError) -> None:
        """End what waits for a destination that was given up because of `error`."""
        items = [*destination.waiting, *destination.resting]
        destination.waiting.clear()
        destination.resting.clear()
        failures = destination.failures
        many = "a failure" if failures == 1 else f"{failures} failures in a row"
        wait = destination.rests_until - self._clock.monotonic()
        for item in items:
            unsent = _unsent(error, many, wait, destination.name)
            unsent.__cause__ = error
            self._finish_unsent(item, unsent)

    def _finish_unsent(self, item: _Item, unsent: InviteError) -> None:
        """End an invite that is not sent, or not once more."""
        told = furthest(item.error, unsent)
        self._finish(Outcome(item.index, item.invite, None, told, item.seconds, item.sends))


def _unsent(error: InviteError, many: str, wait: float, destination: str) -> InviteError:
    """Return what to say of an invite that is not sent because others ended with `error`."""
    if error.delivery is Delivery.NOT_SENT:
        return UnreachableError(
            f"{error.message} (given up after {many})",
            stage=error.stage,
            retryable=error.retryable,
            retry_after=wait,
            destination=destination,
        )
    # The server was reached: what it answered was said of another invite.
    message = f"not sent: given up after {many}, the last one of another invite: {error.message}"
    return not_sent(
        message,
        limited=isinstance(error, RateLimitedError),
        wait=wait,
        retryable=error.retryable,
        destination=destination,
    )


class _Steps:
    """Advances a synchronous iterable, and lets others run between two steps."""

    def __init__(self, invites: Iterable[Invite | InviteError]) -> None:
        self.source: Iterator[Invite | InviteError] = iter(invites)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Invite | InviteError:
        await asyncio.sleep(0)
        for item in self.source:
            return item
        raise StopAsyncIteration
