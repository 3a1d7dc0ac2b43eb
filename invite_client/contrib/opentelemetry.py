"""OpenTelemetry traces: a span for each invite, and one in it for each request.

    observer = TracingObserver()                      # the global tracer provider
    observer = TracingObserver(provider)              # one of your own

Needs the extra `tracing`, which brings the API alone: without an SDK nothing is recorded. Names and
attributes of requests are those of the semantic conventions for HTTP clients. No span holds a room
ID, an event ID or a user ID, nor the words of an error, which may quote them: a path is given as its
template, an error as the name of its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal, TypeAlias

from opentelemetry.context import Context
from opentelemetry.trace import (
    Span,
    SpanKind,
    StatusCode,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from invite_client.errors import Attempt, CountersignatureError, InviteError
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
from invite_client.version import __version__

__all__ = ["TracingObserver"]

_Endpoint: TypeAlias = Literal["v2", "v1"]
_ABANDONED = "abandoned"


@dataclass(slots=True)
class _Trace:
    """The spans of one `send_invite`."""

    span: Span
    context: Context
    request: Span | None = None


class TracingObserver:
    """An `interfaces.Observer` that traces. The span of the caller, if there is one, is the parent."""

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        """Record with `tracer_provider`; without one, with the global one."""
        self._tracer = get_tracer("invite_client", __version__, tracer_provider)
        self._traces: dict[int, _Trace] = {}

    def __call__(self, event: Observation) -> None:
        """Begin, annotate or end a span."""
        if isinstance(event, Queued):
            self._begin(event)
            return
        trace = self._traces.get(event.call)
        if trace is None:
            return
        match event:
            case Started(_, waited):
                trace.span.set_attribute("invite_client.slot.wait", waited)
            case Resolved(_, server, seconds):
                trace.span.set_attribute("invite_client.resolution.step", server.step)
                trace.span.set_attribute("invite_client.resolution.duration", seconds)
            case RequestSent():
                trace.request = self._begin_request(event, trace.context)
            case Replied(_, _, reply, _, endpoint, attempts) if trace.request is not None:
                _say_where(trace.request, endpoint, attempts)
                trace.request.set_attribute("http.response.status_code", reply.status)
                trace.request.set_attribute("http.response.body.size", len(reply.body))
                _end(trace.request, None if reply.status < 400 else str(reply.status))
            case Unanswered(_, _, error, _, endpoint, attempts) if trace.request is not None:
                _say_where(trace.request, endpoint, attempts)
                _end(trace.request, _error_type(error))
            case FellBack(_, reply):
                trace.span.add_event("fallback", {"http.response.status_code": reply.status})
            case RetryScheduled(_, error, attempt, wait):
                happened: dict[str, AttributeValue] = {
                    "error.type": _error_type(error),
                    "invite_client.attempt": attempt,
                    "invite_client.wait": wait,
                }
                trace.span.add_event("retry", happened)
            case KeysObtained(_, _, seconds):
                trace.span.set_attribute("invite_client.keys.wait", seconds)
            case Verified(_, signed):
                trace.span.set_attribute("invite_client.endpoint", signed.endpoint)
                self._end(event.call)
            case Failed(_, error):
                trace.span.set_attribute("invite_client.stage", error.stage.value)
                trace.span.set_attribute("invite_client.delivery", error.delivery.value)
                if isinstance(error, CountersignatureError):
                    trace.span.set_attribute("invite_client.problem", error.problem.value)
                self._end(event.call, _error_type(error))
            case Abandoned():
                self._end(event.call, _ABANDONED)

    def _begin(self, event: Queued) -> None:
        attributes: dict[str, AttributeValue] = {
            "invite_client.destination": str(event.invite.destination),
            "invite_client.room_version": event.invite.room_version.identifier,
        }
        span = self._tracer.start_span("invite", attributes=attributes)
        self._traces[event.call] = _Trace(span, set_span_in_context(span))

    def _begin_request(self, event: RequestSent, context: Context) -> Span:
        method, target = event.request.method, event.server.targets[0]
        template = _path(event.endpoint, "{roomId}", "{eventId}")
        attributes: dict[str, AttributeValue] = {
            "http.request.method": method,
            "http.request.body.size": len(event.request.body or b""),
            "url.template": template,
            "url.full": _url(str(target), event.endpoint),
            "server.address": target.host,
            "server.port": target.port,
        }
        if event.attempt > 1:
            attributes["http.request.resend_count"] = event.attempt - 1
        return self._tracer.start_span(
            f"{method} {template}", context, SpanKind.CLIENT, attributes=attributes
        )

    def _end(self, call: int, error_type: str | None = None) -> None:
        _end(self._traces.pop(call).span, error_type)


def _path(endpoint: _Endpoint, room_id: str, event_id: str) -> str:
    return f"/_matrix/federation/{endpoint}/invite/{room_id}/{event_id}"


def _url(target: str, endpoint: _Endpoint) -> str:
    return f"https://{target}{_path(endpoint, 'REDACTED', 'REDACTED')}"


def _error_type(error: InviteError | None) -> str:
    return _ABANDONED if error is None else type(error).__name__


def _end(span: Span, error_type: str | None) -> None:
    if error_type is not None:
        span.set_attribute("error.type", error_type)
        span.set_status(StatusCode.ERROR)
    span.end()


def _say_where(span: Span, endpoint: _Endpoint, attempts: tuple[Attempt, ...]) -> None:
    """Say which of the targets, and which of its addresses, it was in the end."""
    if not attempts:
        return
    try:
        host, port = _split(attempts[-1].target)
    except ValueError:  # the words of a host's own transport
        return
    span.set_attribute("url.full", _url(attempts[-1].target, endpoint))
    span.set_attribute("server.address", host)
    span.set_attribute("server.port", port)
    try:
        address, port = _split(attempts[-1].address or "")
        ip_address(address)
    except ValueError:  # of several tried, or of a proxy, which is nobody's business
        return
    span.set_attribute("network.peer.address", address)
    span.set_attribute("network.peer.port", port)


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
