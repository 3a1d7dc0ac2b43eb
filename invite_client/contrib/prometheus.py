"""Prometheus metrics, on a registry that is passed in. Needs the extra `metrics`.

    registry = CollectorRegistry()
    observer = PrometheusObserver(registry)

No label holds what a stranger chooses, a server name least of all: the number of time series is
bounded, whatever the input. Where an outcome is an error, it has the name of its class, which is
the one to look up in ``docs/errors.md``.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from invite_client.errors import (
    CountersignatureError,
    CountersignatureProblem,
    ForbiddenByPolicyError,
    InvalidInviteError,
    InviteError,
    InviteRejectedError,
    MalformedReplyError,
    RateLimitedError,
    UnknownOutcomeError,
    UnreachableError,
)
from invite_client.observations import (
    Abandoned,
    Failed,
    FellBack,
    KeysObtained,
    Observation,
    Queued,
    Replied,
    Resolved,
    RetryScheduled,
    Started,
    Unanswered,
    Verified,
)

__all__ = ["PrometheusObserver"]

_TELLING = frozenset({200, 400, 401, 403, 404, 429, 500, 502, 503, 504})
"""Statuses that are counted by themselves, for each calls for something else; others by their
first digit. A remote may send any of the thousand there are."""
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""From a remembered name on a warm connection to `Timeouts.total`."""
_ENDS: tuple[type[InviteError], ...] = (
    CountersignatureError,
    ForbiddenByPolicyError,
    InvalidInviteError,
    InviteRejectedError,
    MalformedReplyError,
    RateLimitedError,
    UnknownOutcomeError,
    UnreachableError,
)
"""What an invite can end with; a host's own transport may know more."""


class PrometheusObserver:
    """An `interfaces.Observer` that counts. Several clients of a process may share one."""

    def __init__(self, registry: CollectorRegistry, *, namespace: str = "invite_client") -> None:
        """Register the metrics. Raises `ValueError` if they are registered there already."""

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, namespace=namespace, registry=registry)

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(name, about, namespace=namespace, registry=registry)

        def histogram(name: str, about: str, *labels: str) -> Histogram:
            return Histogram(
                name, about, labels, namespace=namespace, registry=registry, buckets=_SECONDS
            )

        self._invites = counter(
            "invites", "Invites by how they ended: signed, abandoned, or an error.", "outcome"
        )
        self._invite_seconds = histogram(
            "invite_duration_seconds", "Time of an invite, from when it has a slot.", "outcome"
        )
        self._waiting = gauge("invites_waiting", "Invites that wait for a slot.")
        self._in_flight = gauge("invites_in_flight", "Invites that have a slot.")
        self._requests = counter(
            "requests",
            "Requests by how they were answered: a status, abandoned, or an error.",
            "endpoint",
            "outcome",
        )
        self._request_seconds = histogram(
            "request_duration_seconds", "Time of a request, connecting included.", "endpoint"
        )
        self._resolutions = counter(
            "resolutions", "Server names found, by the step of the specification.", "step"
        )
        self._resolution_seconds = histogram(
            "resolution_duration_seconds", "Time to find a server, from memory or by asking."
        )
        self._key_seconds = histogram(
            "key_wait_duration_seconds", "Time that an answer waits for the keys to verify it."
        )
        self._fallbacks = counter("fallbacks", "Invites sent again by v1.")
        self._retries = counter("retries", "Events sent again, by the error before.", "reason")
        self._problems = counter(
            "countersignature_problems", "Answers that could not be believed, by why.", "problem"
        )
        # To Prometheus the first 1 of a series is no increase: what is rare has its 0 before.
        for problem in CountersignatureProblem:
            self._problems.labels(_word(problem))
        for kind in _ENDS:
            self._invites.labels(kind.__name__)
        self._started: set[int] = set()
        """The calls that have a slot."""

    def __call__(self, event: Observation) -> None:
        """Count."""
        match event:
            case Queued():
                self._waiting.inc()
            case Started():
                self._waiting.dec()
                self._in_flight.inc()
                self._started.add(event.call)
            case Resolved(_, server, seconds):
                self._resolutions.labels(server.step).inc()
                self._resolution_seconds.observe(seconds)
            case Replied(_, _, reply, seconds, endpoint):
                self._requests.labels(endpoint, _status(reply.status)).inc()
                self._request_seconds.labels(endpoint).observe(seconds)
            case Unanswered(_, _, error, seconds, endpoint):
                self._requests.labels(endpoint, _outcome(error)).inc()
                self._request_seconds.labels(endpoint).observe(seconds)
            case FellBack():
                self._fallbacks.inc()
            case RetryScheduled(_, error):
                self._retries.labels(_outcome(error)).inc()
            case KeysObtained(_, _, seconds):
                self._key_seconds.observe(seconds)
            case Verified(_, signed):
                self._end(event.call, "signed", signed.seconds)
            case Failed(_, error, seconds):
                self._end(event.call, _outcome(error), seconds)
                if isinstance(error, CountersignatureError):
                    self._problems.labels(_word(error.problem)).inc()
            case Abandoned(_, seconds):
                self._end(event.call, _outcome(None), seconds)

    def _end(self, call: int, outcome: str, seconds: float) -> None:
        self._invites.labels(outcome).inc()
        if call in self._started:
            self._started.remove(call)
            self._in_flight.dec()
            self._invite_seconds.labels(outcome).observe(seconds)
        else:
            self._waiting.dec()


def _outcome(error: InviteError | None) -> str:
    return "abandoned" if error is None else type(error).__name__


def _word(problem: CountersignatureProblem) -> str:
    return problem.name.lower()


def _status(status: int) -> str:
    return str(status) if status in _TELLING else f"{status // 100}xx"
