"""Whatever happens in whatever order: one look-up for one name, and no answer after its time.

A state machine sends callers, answers look-ups well and badly, lets time pass and jump back, forgets,
cancels and restarts. Every answer names itself in the result that rests on it, so each result can be
held against what was answered when.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from invite_client.errors import Stage, UnreachableError
from invite_client.policy import CachePolicy
from invite_client.resolver import CachingResolver, about_to_send
from invite_client.single_flight import SingleFlight
from invite_client.spec.discovery import ResolvedServer, SrvAnswer, Target, WellKnownAnswer
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.srv import SrvRecord
from invite_client.stores.memory import MemoryStore
from invite_client.testing.clock import ManualClock

NAMES = ("one.example", "two.example")
POLICY = CachePolicy(jitter=0)
HOUR = 3600.0
TIMES = (0.0, 10.0, 100.0, HOUR, 100 * HOUR, math.inf)
PASSES = (1.0, 61.0, POLICY.stale + 1, HOUR, 25 * HOUR, 80 * HOUR)


class WallClock(ManualClock):
    """One whose time of day can be put back."""

    put_back = 0.0

    def time(self) -> float:
        return self.now - self.put_back


@dataclass
class Answer:
    """What was answered to one question, and when."""

    number: int
    good: bool
    """Whether there is a delegation, or there are records."""
    absent: bool
    """Whether it was said that there is none, which ends what was before."""
    at: float
    lifetime: float

    @property
    def fresh_until(self) -> float:
        return self.at + min(self.lifetime, POLICY.maximum)


@dataclass
class History:
    """All that was answered to one question."""

    answers: list[Answer] = field(default_factory=list)
    forgotten: bool = False
    """Whether the last good answer is to be asked for anew before it is used."""

    def add(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.forgotten = False

    @property
    def last_good(self) -> Answer | None:
        return next((answer for answer in reversed(self.answers) if answer.good), None)

    def since(self, answer: Answer) -> list[Answer]:
        return self.answers[self.answers.index(answer) + 1 :]


class Network:
    """Every question waits until the machine answers it."""

    def __init__(self, clock: WallClock) -> None:
        self.clock = clock
        self.waiting: dict[str, asyncio.Future[Any]] = {}
        self.begun: list[str] = []
        self.addresses_of: SingleFlight[str, None] = SingleFlight()
        self.opened: list[Opening] = []

    async def ask(self, question: str) -> Any:
        assert question not in self.waiting, f"two look-ups at once: {question}"
        self.begun.append(question)
        self.waiting[question] = asyncio.get_running_loop().create_future()
        try:
            return await self.waiting[question]
        finally:
            del self.waiting[question]

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        answer: WellKnownAnswer = await self.ask(hostname)
        return answer

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        answer: SrvAnswer = await self.ask(f"{service}.{hostname}")
        return answer

    async def addresses(self, hostname: str) -> None:
        await self.addresses_of.do(hostname, lambda: self.ask(f"A {hostname}"))

    def forget(self, hostname: str) -> None:
        """Addresses are remembered by `net.dns`."""

    def open_ahead(self, server: ResolvedServer) -> Opening:
        return Opening(server.targets[0], self.opened)


class Opening:
    """A connection without a request yet."""

    def __init__(self, target: Target, opened: list[Opening]) -> None:
        self.target = target
        self.opened = opened
        opened.append(self)

    async def give_up(self) -> None:
        if self in self.opened:
            self.opened.remove(self)


@dataclass(frozen=True)
class Caller:
    name: str
    answers_before: int
    """How many answers there had been when it began to wait."""


class ResolverMachine(RuleBasedStateMachine):
    looks_up_addresses = False
    """A resolve that waits for addresses ends later than it has read what it rests on.

    Connections are opened ahead only with them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = WallClock()
        self.network = Network(self.clock)
        self.store = MemoryStore(1000)
        self.callers: dict[asyncio.Task[ResolvedServer], Caller] = {}
        self.histories: dict[str, History] = {}
        self.number = 0
        self.bugs: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.bugs.append(context))
        self.start()

    def start(self) -> None:
        self.resolver = CachingResolver(
            self.network,
            self.store,
            POLICY,
            self.clock,
            chance=lambda _: 0,
            addresses=self.network if self.looks_up_addresses else None,
            connections=self.network if self.looks_up_addresses else None,
        )

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def spin(self) -> None:
        async def turn() -> None:
            for _ in range(40):
                await asyncio.sleep(0)

        self.run(turn())
        for task in [task for task in self.callers if task.done()]:
            self.check_result(task, self.callers.pop(task))

    def history(self, question: str) -> History:
        return self.histories.setdefault(question, History())

    # --- What happens ---------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES))
    def somebody_asks(self, name: str) -> None:
        begun = len(self.network.begun)
        known = self.history(name).last_good
        is_fresh = (
            known is not None
            and not self.history(name).since(known)
            and not self.history(name).forgotten
            and not self.clock.put_back
            and self.clock.time() < known.fresh_until
        )
        with about_to_send(lambda: True):
            task = self.loop.create_task(self.resolver.resolve(parse_server_name(name)))
        self.callers[task] = Caller(name, self.number)
        self.spin()

        assert not (is_fresh and name in self.network.begun[begun:]), "a needless look-up"

    def answered(self, question: str, value: Any, answer: Answer | None = None) -> None:
        if answer is not None:
            self.history(question).add(answer)
        waiting = self.network.waiting[question]
        if isinstance(value, Exception):
            waiting.set_exception(value)
        else:
            waiting.set_result(value)
        self.spin()

    @precondition(lambda self: self.network.waiting)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(("good", "good", "absent", "passing")),
        lifetime=st.sampled_from(TIMES),
    )
    def a_look_up_is_answered(self, data: st.DataObject, outcome: str, lifetime: float) -> None:
        question = data.draw(st.sampled_from(sorted(self.network.waiting)))
        self.number += 1
        now = self.clock.time()
        answer = Answer(self.number, outcome == "good", outcome == "absent", now, lifetime)
        until = now + lifetime
        if question.startswith("A "):
            self.answered(question, OSError("SERVFAIL") if outcome == "passing" else None)
        elif question in NAMES:
            delegated = parse_server_name(f"d{self.number}.example:1") if answer.good else None
            value = WellKnownAnswer(delegated, "no", 0.0, until, absent=answer.absent)
            self.answered(question, value, answer)
        elif outcome == "passing":
            error = UnreachableError("SERVFAIL", stage=Stage.DNS, retryable=True)
            self.answered(question, error, answer)
        else:
            records = (SrvRecord(1, 1, 1, f"s{self.number}.example"),) if answer.good else ()
            self.answered(question, SrvAnswer(records, 0.0, until), answer)

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

    @rule(name=st.sampled_from(NAMES))
    def connecting_fails(self, name: str) -> None:
        self.run(self.resolver.forget(parse_server_name(name)))
        for question, history in self.histories.items():
            known = history.last_good
            # A failure keeps its time, and what serves meanwhile serves on.
            failed_since = known and question in NAMES and history.since(known)
            if question.endswith(name) and known and not failed_since:
                history.forgotten = True
        self.spin()

    @rule()
    def it_is_restarted(self) -> None:
        for task in self.callers:
            task.cancel()
        self.callers.clear()
        self.spin()
        self.run(self.resolver.aclose())
        self.start()

    # --- What must hold -------------------------------------------------------------------------

    def check_result(self, task: asyncio.Task[ResolvedServer], caller: Caller) -> None:
        error = task.exception()
        if error is not None:
            assert isinstance(error, UnreachableError), repr(error)
            return
        self.a_request_follows(task.result())
        target = task.result().targets[0].host
        if target == caller.name:
            return
        number = int(target[1:].partition(".")[0])
        question = next(
            question
            for question, history in self.histories.items()
            if question.endswith(caller.name) and any(a.number == number for a in history.answers)
        )
        # What was answered while it waited it may use, whatever its time.
        if number <= caller.answers_before and not self.looks_up_addresses:
            self.check_use(question, number, POLICY.stale if question in NAMES else 0.0)

    def a_request_follows(self, server: ResolvedServer) -> None:
        """It takes the connection that leads there, if there is one."""
        taken = [o for o in self.network.opened if o.target == server.targets[0]][:1]
        self.network.opened[:] = [o for o in self.network.opened if o not in taken]

    def check_use(self, question: str, number: int, stale: float) -> None:
        """An answer is used in its time; or for a while after it; or because its renewal failed."""
        history, now = self.histories[question], self.clock.time()
        answer = next(answer for answer in history.answers if answer.number == number)
        later = history.since(answer)

        assert answer.good
        assert not any(a.good or a.absent for a in later), "an answer that was followed by another"
        assert not history.forgotten, "an answer that was to be asked for anew"
        if not later:  # One that serves because its renewal failed has the time of the failure.
            assert answer.fresh_until <= now + POLICY.maximum, "an answer from the future"
        assert now < answer.fresh_until + POLICY.remember_valid, "an answer long after its time"
        if now >= answer.fresh_until + stale:
            assert later, "an answer after its time, though no renewal failed"

    @invariant()
    def who_waits_waits_for_something(self) -> None:
        assert self.network.waiting or not self.callers

    @invariant()
    def nothing_is_looked_up_for_nobody(self) -> None:
        """But what is renewed in the background: well-known files that somebody has just used."""
        if not self.callers:
            assert set(self.network.waiting) <= set(NAMES)

    @invariant()
    def no_connection_is_kept_for_nobody(self) -> None:
        assert len(self.network.opened) <= len(self.callers)

    @invariant()
    def there_are_no_bugs(self) -> None:
        assert [] == self.bugs

    def teardown(self) -> None:
        for task in self.callers:
            task.cancel()
        self.callers.clear()
        self.spin()
        self.run(self.resolver.aclose())
        left = asyncio.all_tasks(self.loop)
        self.loop.close()

        assert set() == left
        assert {} == self.network.waiting
        assert [] == self.network.opened
        assert [] == self.bugs


class WithAddresses(ResolverMachine):
    looks_up_addresses = True


@pytest.mark.parametrize("machine", [ResolverMachine, WithAddresses])
def test_one_look_up_for_one_name_and_no_answer_after_its_time(
    machine: type[ResolverMachine],
) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=100, stateful_step_count=40, deadline=None)
    )
