"""Metrics as Prometheus reads them: scraped as text, and parsed by its own parser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from invite_client import CountersignatureProblem, InviteError, Limits, Policy, ServerPolicy
from invite_client.contrib.prometheus import PrometheusObserver
from invite_client.observations import Observation, RequestSent
from invite_client.testing import Hangs, SimulatedHomeserver, make_invite
from tests.contrib import invites

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana-dashboard.json"


class Metrics:
    """An observer, and what a scrape of its registry brings."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.observer = PrometheusObserver(self.registry)

    def scrape(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        text = generate_latest(self.registry).decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def counts(self, name: str) -> dict[str, float]:
        """The samples of one name, by the values of their labels; of counters, what was counted."""
        return {
            ",".join(value for _, value in sorted(labels)): count
            for (sample, labels), count in self.scrape().items()
            if sample == f"invite_client_{name}" and (count or not name.endswith("_total"))
        }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


async def test_a_signed_invite(metrics: Metrics) -> None:
    await invites.signed(metrics.observer)

    assert {"signed": 1} == metrics.counts("invites_total")
    assert {"v2,200": 1} == metrics.counts("requests_total")
    assert {"6": 1} == metrics.counts("resolutions_total")
    assert {"signed": 1} == metrics.counts("invite_duration_seconds_count")
    assert {"v2": 1} == metrics.counts("request_duration_seconds_count")
    assert {"": 1} == metrics.counts("resolution_duration_seconds_count")
    assert {"": 1} == metrics.counts("key_wait_duration_seconds_count")


async def test_a_fallback(metrics: Metrics) -> None:
    await invites.fallen_back(metrics.observer)

    assert {"": 1} == metrics.counts("fallbacks_total")
    assert {"v2,404": 1, "v1,200": 1} == metrics.counts("requests_total")
    assert {"signed": 1} == metrics.counts("invites_total")


async def test_a_rejection(metrics: Metrics) -> None:
    await invites.rejected(metrics.observer)

    assert {"v2,403": 1} == metrics.counts("requests_total")
    assert {"InviteRejectedError": 1} == metrics.counts("invites_total")
    assert {} == metrics.counts("countersignature_problems_total")


async def test_a_retry(metrics: Metrics) -> None:
    await invites.retried(metrics.observer)

    expected = {"UnknownOutcomeError": 1, "RateLimitedError": 1}
    assert expected == metrics.counts("retries_total")
    expected = {"v2,UnknownOutcomeError": 1, "v2,429": 1, "v2,200": 1}
    assert expected == metrics.counts("requests_total")
    assert {"v2": 3} == metrics.counts("request_duration_seconds_count")
    assert {"signed": 1} == metrics.counts("invites_total")


async def test_a_forgery(metrics: Metrics) -> None:
    await invites.forged(metrics.observer)

    assert {"CountersignatureError": 1} == metrics.counts("invites_total")
    assert {"signature_invalid": 1} == metrics.counts("countersignature_problems_total")
    assert {"v2,200": 1} == metrics.counts("requests_total")


def test_what_is_rare_is_zero_before_it_happens(metrics: Metrics) -> None:
    """Else the first forgery is no increase, and no alert."""
    names = {(name, *map(str, labels)) for name, labels in metrics.scrape()}

    for problem in CountersignatureProblem:
        label = str(("problem", problem.name.lower()))
        assert ("invite_client_countersignature_problems_total", label) in names
    kinds = {kind.__name__ for kind in _subclasses(InviteError) if not kind.__subclasses__()}
    for kind in kinds:
        assert ("invite_client_invites_total", str(("outcome", kind))) in names


async def test_a_cancelled_invite_is_under_way_no_longer(metrics: Metrics) -> None:
    await invites.abandoned(metrics.observer)

    assert {"abandoned": 1} == metrics.counts("invites_total")
    assert {"v2,abandoned": 1} == metrics.counts("requests_total")
    assert {"": 0} == metrics.counts("invites_in_flight")
    assert {"": 0} == metrics.counts("invites_waiting")


async def test_what_waits_for_a_slot_is_not_under_way(metrics: Metrics) -> None:
    # Given one slot, which is taken
    remote, sent = SimulatedHomeserver(), asyncio.Event()
    remote.fails(Hangs(), times=1)

    def observer(event: Observation) -> None:
        metrics.observer(event)
        if isinstance(event, RequestSent):
            sent.set()

    async with remote.client(observer=observer, policy=Policy(limits=Limits(concurrency=1))) as c:
        first = asyncio.create_task(c.send_invite(make_invite()))
        await sent.wait()
        second = asyncio.create_task(c.send_invite(make_invite()))
        await asyncio.sleep(0)

        # Then one is under way, and one waits
        assert {"": 1} == metrics.counts("invites_in_flight")
        assert {"": 1} == metrics.counts("invites_waiting")

        # When the slot is given up, then the other has it, and in the end there are none
        first.cancel()
        await second
        assert {"": 0} == metrics.counts("invites_in_flight")
        assert {"": 0} == metrics.counts("invites_waiting")
        await asyncio.gather(first, return_exceptions=True)


async def test_what_the_policy_refuses_is_counted_but_not_timed(metrics: Metrics) -> None:
    policy = Policy(servers=ServerPolicy(allowed=()))
    async with SimulatedHomeserver().client(policy=policy, observer=metrics.observer) as client:
        with pytest.raises(InviteError):
            await client.send_invite(make_invite())

    assert {"ForbiddenByPolicyError": 1} == metrics.counts("invites_total")
    assert {} == metrics.counts("invite_duration_seconds_count")
    assert {"": 0} == metrics.counts("invites_waiting")


async def test_no_label_holds_what_a_stranger_chooses(metrics: Metrics) -> None:
    # Given remotes that answer with every status there is
    for status in range(200, 1000, 7):
        remote = SimulatedHomeserver()
        remote.answers(status, "M_MINE", "mine")
        async with remote.client(policy=invites.POLICY, observer=metrics.observer) as client:
            with pytest.raises(InviteError):
                await client.send_invite(make_invite())
    sent = await invites.all_of_them(metrics.observer)

    # Then the time series are few, and none is of one destination, room or user
    text = generate_latest(metrics.registry).decode()
    assert len(metrics.counts("requests_total")) < 25
    assert "M_MINE" not in text
    for invite in sent:
        assert str(invite.destination) not in text
        assert invite.room_id not in text
        assert invite.target not in text


def test_nothing_is_registered_but_where_it_is_asked_for() -> None:
    PrometheusObserver(CollectorRegistry())

    assert "invite_client" not in generate_latest(REGISTRY).decode()


def test_to_register_twice_is_an_error_that_says_so(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusObserver(metrics.registry)


# --- The dashboard ------------------------------------------------------------------------------


def queries() -> list[str]:
    """Every PromQL expression of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found: list[str] = []

    def collect(value: object) -> None:
        match value:
            case {"expr": str(expression)}:
                found.append(expression)
            case Mapping():
                for part in value.values():
                    collect(part)
            case list():
                for part in value:
                    collect(part)

    collect(dashboard)
    return found


async def series() -> dict[str, set[str]]:
    """Every sample that there can be, with the names of its labels."""
    metrics = Metrics()
    await invites.all_of_them(metrics.observer)
    found: dict[str, set[str]] = {}
    for name, labels in metrics.scrape():
        found.setdefault(name, set()).update(label for label, _ in labels)
    return found


async def test_the_dashboard_asks_for_what_there_is_and_shows_all_of_it() -> None:
    there_is = await series()
    asked = {name for query in queries() for name in re.findall(r"invite_client_\w+", query)}

    assert set() == asked - set(there_is)
    # A histogram is shown by its buckets, a metric's time of creation by nobody.
    shown = {n for n in there_is if not n.endswith(("_created", "_sum", "_count"))}
    assert set() == shown - asked


async def test_the_dashboard_groups_and_selects_by_labels_that_there_are() -> None:
    there_is = await series()
    for query in queries():
        names = re.findall(r"invite_client_\w+", query)
        labels = {label for name in names for label in there_is[name]}
        grouped = {
            label.strip()
            for group in re.findall(r"by \(([^)]*)\)", query)
            for label in group.split(",")
        }
        selected = set(re.findall(r"[{,]\s*(\w+)\s*[=!]", query)) - {"job", "instance"}

        assert set() == (grouped | selected) - labels, query


async def test_the_dashboard_names_outcomes_and_problems_that_there_are() -> None:
    named = {
        value
        for query in queries()
        for values in re.findall(r'(?:outcome|problem)\s*[=!]~?"([^"]*)"', query)
        for value in values.split("|")
    }
    errors = {kind.__name__ for kind in _subclasses(InviteError)}
    problems = {problem.name.lower() for problem in CountersignatureProblem}

    statuses = {value for value in named if re.fullmatch(r"[1-9](\d\d|xx|\.\.)", value)}
    assert set() == named - errors - problems - statuses - {"signed", "abandoned"}


def _subclasses(kind: type[InviteError]) -> set[type[InviteError]]:
    return {kind}.union(*(_subclasses(sub) for sub in kind.__subclasses__()))
