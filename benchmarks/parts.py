"""The measurements: who runs, in which turns, and what is compared with what."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks import slow_network
from benchmarks.children import Child, ChildFailedError
from benchmarks.report import Figure, Report
from benchmarks.scenario import CASES, FORGERIES, LEAST, Scenario

__all__ = ["Bench", "Size"]

OURS, SEND = "ours", "ours, send only"
FLOOR, FLOOR_SEND = "floor", "floor, send only"
PLAIN, CHECKED = "Synapse", "Synapse with the check"
_FEW = 5
"""Short runs before a long one, and after it."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    """Rounds that count, of every part; one before them does not."""
    turns: int
    """In how many turns all send their invites of a hot round."""
    hot: int
    """Invites per hot turn; Synapse sends a third of them, for it takes so much longer."""
    cold: int
    """Names per cold case, one for each round."""
    bulk_rounds: int
    """Rounds of the bulk part: each process sees a name once, so that there are no turns in them."""
    bulk_names: int
    linear: tuple[int, ...]
    """How many invites, at growing numbers of them."""
    imports: int
    """Interpreters started for each import."""


class Bench:
    """The servers, the contenders, and the report that is growing."""

    def __init__(
        self, scenario: Scenario, size: Size, report: Report, round_trip: float, stack: ExitStack
    ) -> None:
        self.scenario = scenario
        self.size = size
        self.report = report
        self.round_trip = round_trip
        self.stack = stack
        self.busiest = 0.0
        self.peer = stack.enter_context(Child("benchmarks.peer", scenario.directory))
        stack.enter_context(Child("benchmarks.slow_network", scenario.directory, f"{round_trip}"))

    # --- Contenders -----------------------------------------------------------------------------

    def contenders(
        self, names: Sequence[str], loop: str, stack: ExitStack | None = None
    ) -> dict[str, Child]:
        """Start contenders. Synapse has a loop of its own."""
        stack = stack or self.stack
        commands = {
            OURS: ("benchmarks.ours", loop, "whole"),
            SEND: ("benchmarks.ours", loop, "send"),
            FLOOR: ("benchmarks.floor", loop, "whole"),
            FLOOR_SEND: ("benchmarks.floor", loop, "send"),
            PLAIN: ("benchmarks.synapse", "plain"),
            CHECKED: ("benchmarks.synapse", "checked"),
        }
        started = {}
        for name in names:
            module, *arguments = commands[name]
            started[name] = stack.enter_context(
                Child(module, self.scenario.directory, *arguments, quiet="synapse" in module)
            )
        return started

    def run(self, part: str, name: str, child: Child, **command: Any) -> dict[str, Any]:
        """Have a contender send invites; every one of them must be signed."""
        before = self.peer.ask()
        answer = child.ask(**command)
        after = self.peer.ask()
        if answer["failures"]:
            raise ChildFailedError(f"{name}: {answer['failures']} failed: {answer['failure']}")
        answer["peer_cpu"] = after["cpu"] - before["cpu"]
        answer["connections"] = after["accepted"] - before["accepted"]
        self.busiest = max(self.busiest, answer["peer_cpu"] / answer["wall"])
        self.report.measurements.append({"part": part, "contender": name, **command, **answer})
        return answer

    def in_turns(
        self, part: str, children: Mapping[str, Child], commands: Mapping[str, dict[str, Any]]
    ) -> list[dict[str, dict[str, Any]]]:
        """Let all run in each round, in several turns: each turn another begins.

        What else the machine does comes and goes within a second, and shall meet all of them alike.
        """
        rounds = []
        names = list(children)
        for number in range(self.size.rounds + 1):
            answers: dict[str, dict[str, Any]] = {name: {} for name in names}
            for turn in range(self.size.turns):
                first = (number + turn) % len(names)
                for name in names[first:] + names[:first]:
                    found = self.run(part, name, children[name], **commands[name])
                    for what in ("wall", "cpu", "count"):
                        answers[name][what] = answers[name].get(what, 0) + found[what]
            if number:  # The first opens connections, fills caches, and does not count.
                rounds.append(answers)
        return rounds

    # --- Before anything is timed ---------------------------------------------------------------

    def check(self, loops: Sequence[str]) -> None:
        """Whoever is timed as checking must refuse every forged answer, and take the true one."""
        with ExitStack() as stack:
            for loop in loops:
                for name, child in self.contenders((OURS, SEND), loop, stack).items():
                    self._refuses(f"{name} ({loop})", child, "CountersignatureError")
            for name, child in self.contenders((CHECKED,), loops[0], stack).items():
                self._refuses(name, child, "SynapseError")
            for name, child in self.contenders((FLOOR, PLAIN), loops[0], stack).items():
                taken = [k for k in FORGERIES if not self._forged(child, k)["failures"]]
                self.report.notes.append(f"{name} takes answers that are: {', '.join(taken)}")

    def _refuses(self, name: str, child: Child, error: str) -> None:
        for kind in FORGERIES:
            answer = self._forged(child, kind)
            if not str(answer["failure"]).startswith(error):
                raise ChildFailedError(
                    f"{name} does not refuse an answer that is {kind} ({answer['failure']}): "
                    "nothing is timed"
                )
        self.run("check", name, child, pool="hot", count=10, concurrency=2)

    def _forged(self, child: Child, kind: str) -> dict[str, Any]:
        return child.ask(pool=f"forged {kind}", count=1, concurrency=1)

    # --- Parts ----------------------------------------------------------------------------------

    def hot(self, loops: Sequence[str]) -> None:
        """One destination, connections kept, keys and name known."""
        for loop in loops:
            names: Sequence[str] = (OURS, FLOOR, SEND, FLOOR_SEND, PLAIN, CHECKED)
            with ExitStack() as stack:
                children = self.contenders(names if loop == "asyncio" else names[:4], loop, stack)
                for concurrency, floor, checked in ((10, 1.25, 6.0), (100, 1.2, 8.0)):
                    self._hot(
                        f"hot, {concurrency} at once, {loop}", children, concurrency, floor, checked
                    )

    def _hot(
        self,
        part: str,
        children: Mapping[str, Child],
        concurrency: int,
        floor: float,
        checked: float,
    ) -> None:
        commands = {
            name: {
                "pool": "hot",
                "count": self.size.hot // 3 if "Synapse" in name else self.size.hot,
                "concurrency": concurrency,
            }
            for name in children
        }
        rounds = self.in_turns(part, children, commands)

        def ratio(
            what: str,
            a: str,
            b: str,
            at_least: float | None = None,
            at_most: float | None = None,
        ) -> None:
            if a not in children or b not in children:
                return
            values = [_per_invite(r[a], what) / _per_invite(r[b], what) for r in rounds]
            if what == "wall":
                values = [1 / value for value in values]
            spoken = {"wall": "invites/s", "cpu": "CPU per invite"}[what]
            self.report.add(
                Figure(part, f"{spoken}, {a} : {b}", values, at_least=at_least, at_most=at_most)
            )

        ratio("wall", OURS, FLOOR, at_least=floor)
        ratio("wall", SEND, FLOOR_SEND, at_least=floor)
        ratio("wall", OURS, FLOOR_SEND)
        ratio("wall", OURS, CHECKED, at_least=checked)
        ratio("wall", SEND, CHECKED, at_least=checked)
        ratio("wall", OURS, PLAIN)
        ratio("cpu", OURS, FLOOR)
        ratio("cpu", SEND, FLOOR_SEND)
        # Synapse is given an event of its own, checked and named.
        ratio("cpu", SEND, PLAIN, at_most=0.25)
        ratio("cpu", OURS, PLAIN, at_most=0.25)
        ratio("cpu", OURS, CHECKED)
        ratio("cpu", SEND, OURS)
        for name in children:
            self.report.add(
                Figure(
                    part,
                    f"invites/s, {name}",
                    [1 / _per_invite(r[name], "wall") for r in rounds],
                    unit="/s",
                )
            )
            self.report.add(
                Figure(
                    part,
                    f"CPU per invite, {name}",
                    [_per_invite(r[name], "cpu") * 1e6 for r in rounds],
                    unit="µs",
                )
            )

    def cold(self) -> None:
        """A name never seen before, over a network with a delay: how many round trips?"""
        children = self.contenders((OURS, PLAIN, CHECKED), "asyncio")
        for child in children.values():
            # The process itself is warm: modules imported, certificates read.
            child.ask(pool="warm", count=1, concurrency=1)
        walls: dict[tuple[str, str], list[float]] = {}
        bare: list[float] = []
        for case in CASES:
            for number in range(self.size.cold):
                for name, child in children.items():
                    bare.append(slow_network.bare_look_up(self.scenario.dns_port))
                    command = {"pool": f"cold {case}", "start": number, "count": 1}
                    answer = self.run(f"cold, {case}", name, child, **command, concurrency=1)
                    walls.setdefault((case, name), []).append(answer["wall"])
        # What waits and is woken up is late, whoever sends: by as much as a round trip is longer here.
        round_trip = statistics.median(bare)
        self.report.notes.append(
            f"a round trip took {1000 * round_trip:.1f} ms ({1000 * self.round_trip:g} were asked for)"
        )
        for (case, name), taken in walls.items():
            part = f"cold, {case} (least: {LEAST[case]})"
            values = [wall / round_trip for wall in taken]
            aim = LEAST[case] + 0.5 if name == OURS else None
            self.report.add(Figure(part, name, values, "round trips", at_most=aim))

    def bulk(self, loops: Sequence[str]) -> None:
        """Many names never seen before, 50 at once, without a delay."""
        aims = {"asyncio": 2.0, "uvloop": 2.5}
        synapse = self.contenders((CHECKED,), "asyncio")
        ours = {loop: self.contenders((OURS,), loop)[OURS] for loop in loops}
        children = {**{f"{OURS} ({loop})": child for loop, child in ours.items()}, **synapse}
        part = f"bulk, {self.size.bulk_names} cold names, 50 at once"
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in children}
        names = list(children)
        for number in range(self.size.bulk_rounds + 1):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                answer = self.run(
                    part,
                    name,
                    children[name],
                    pool=f"bulk {number}",
                    count=self.size.bulk_names,
                    concurrency=50,
                )
                if number:
                    found[name].append(answer)
        for loop in loops:
            pairs = list(zip(found[f"{OURS} ({loop})"], found[CHECKED], strict=True))
            speed = [theirs["wall"] / mine["wall"] for mine, theirs in pairs]
            self.report.add(
                Figure(part, f"names/s, ours ({loop}) : {CHECKED}", speed, at_least=aims[loop])
            )
            cpu = [mine["cpu"] / theirs["cpu"] for mine, theirs in pairs]
            self.report.add(Figure(part, f"CPU, ours ({loop}) : {CHECKED}", cpu))
        for name, answers in found.items():
            grown = [answer["peak"] / 2**20 for answer in answers]
            self.report.add(Figure(part, f"peak memory, {name}", grown, unit="MiB"))
            opened = [float(answer["connections"]) for answer in answers]
            self.report.add(Figure(part, f"connections, {name}", opened, unit=""))

    def linear(self) -> None:
        """The same work, more and more of it: neither the cost of one nor memory may grow."""
        part = "linear, 100 at once"
        first, *more = self.size.linear
        grown: dict[int, list[float]] = {count: [] for count in more}
        memory: dict[int, list[float]] = {count: [] for count in self.size.linear}
        with ExitStack() as stack:
            child = self.contenders((OURS,), "asyncio", stack)[OURS]

            def cost(count: int) -> float:
                answer = self.run(part, OURS, child, pool="hot", count=count, concurrency=100)
                memory[count].append(answer["peak"] / 2**20)
                return _per_invite(answer, "cpu")

            cost(first)
            for _ in range(max(1, self.size.rounds // 2)):
                for count in more:
                    # The machine changes its pace meanwhile: beside the few before and after.
                    few = [cost(first) for _ in range(_FEW)]
                    many = cost(count)
                    few += [cost(first) for _ in range(_FEW)]
                    grown[count].append(many / statistics.mean(few))
        for count in more:
            name = f"CPU per invite, {count:,} : {first:,} invites"
            self.report.add(Figure(part, name, grown[count], at_most=1.1))
        for count in self.size.linear:
            name = f"peak memory after {count:,}"
            self.report.add(Figure(part, name, memory[count], unit="MiB"))

    def memory(self) -> None:
        """Peak memory of a fresh process that sends a hot round, 100 at once."""
        part = "memory, hot, 100 at once"
        peaks: dict[str, list[float]] = {name: [] for name in (OURS, FLOOR, PLAIN)}
        for _ in range(self.size.rounds):
            for name, found in peaks.items():
                with ExitStack() as stack:
                    child = self.contenders((name,), "asyncio", stack)[name]
                    answer = self.run(
                        part, name, child, pool="hot", count=self.size.hot, concurrency=100
                    )
                    found.append(answer["peak"] / 2**20)
        for other in (FLOOR, PLAIN):
            values = [a / b for a, b in zip(peaks[OURS], peaks[other], strict=True)]
            self.report.add(Figure(part, f"peak memory, {OURS} : {other}", values))
        for name, found in peaks.items():
            self.report.add(Figure(part, f"peak memory, {name}", found, unit="MiB"))

    def imports(self) -> None:
        """The time of ``import invite_client`` beside that of what it cannot do without."""
        part = "import"
        ours, theirs = [], []
        unwanted: set[str] = set()
        for number in range(self.size.imports + 1):
            mine = _import("invite_client")
            least = _import("aiohttp, nacl.signing")
            unwanted |= _UNWANTED & set(mine["modules"])
            if number:
                ours.append(mine["cpu"])
                theirs.append(least["cpu"])
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        name = "invite_client : aiohttp, nacl.signing"
        self.report.add(Figure(part, f"CPU, {name}", ratios, at_most=1.3))
        self.report.add(Figure(part, "CPU, invite_client", [c * 1000 for c in ours], unit="ms"))
        if unwanted:
            self.report.notes.append(f"imported before it is used: {', '.join(sorted(unwanted))}")


_UNWANTED = {
    "click", "dns", "dnslib", "opentelemetry", "prometheus_client", "redis", "rich", "sqlite3",
    "synapse", "trustme", "yaml",
}  # fmt: skip

_IMPORT = """
import json, sys, time
started = time.process_time()
import {names}
print(json.dumps({{"cpu": time.process_time() - started, "modules": sorted(sys.modules)}}))
"""


def _import(names: str) -> dict[str, Any]:
    import json  # noqa: PLC0415

    done = subprocess.run(  # noqa: S603  # our own text
        [sys.executable, "-c", _IMPORT.format(names=names)],
        capture_output=True,
        check=True,
        timeout=60,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _per_invite(answer: Mapping[str, Any], what: str) -> float:
    value: float = answer[what] / answer["count"]
    return value


def loops_here() -> list[str]:
    """The event loops that can be measured: uvloop only where it is installed."""
    return ["asyncio", "uvloop"] if importlib.util.find_spec("uvloop") else ["asyncio"]
