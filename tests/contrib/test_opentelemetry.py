"""Traces as an exporter gets them."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from invite_client.contrib.opentelemetry import TracingObserver
from invite_client.errors import Attempt
from invite_client.interfaces import AttemptLog
from invite_client.spec.discovery import ResolvedServer
from invite_client.spec.http import Reply, Request
from invite_client.testing import (
    INVITER_KEY,
    LoopbackHomeserver,
    SimulatedFederation,
    SimulatedHomeserver,
    make_invite,
)
from tests.contrib import invites

V2 = "/_matrix/federation/v2/invite/{roomId}/{eventId}"
V1 = "/_matrix/federation/v1/invite/{roomId}/{eventId}"


class Traces:
    """An observer, and the spans that it has ended."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observer = TracingObserver(self.provider)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    @property
    def invite(self) -> ReadableSpan:
        (invite,) = [span for span in self.spans if span.name == "invite"]
        return invite

    @property
    def requests(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name != "invite"]


@pytest.fixture
def traces() -> Traces:
    return Traces()


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def error_types(spans: list[ReadableSpan]) -> list[object]:
    return [attributes(span).get("error.type") for span in spans]


async def test_a_signed_invite_is_a_span_with_a_request_in_it(traces: Traces) -> None:
    await invites.signed(traces.observer)

    (request,) = traces.requests
    assert request.parent is not None
    assert request.parent.span_id == traces.invite.context.span_id
    assert (SpanKind.INTERNAL, SpanKind.CLIENT) == (traces.invite.kind, request.kind)
    assert StatusCode.UNSET is traces.invite.status.status_code
    found = attributes(traces.invite)
    for name in ("slot.wait", "resolution.duration", "keys.wait"):
        assert isinstance(found.pop(f"invite_client.{name}"), float)
    expected = {
        "invite_client.destination": "remote.example",
        "invite_client.room_version": "10",
        "invite_client.resolution.step": "6",
        "invite_client.endpoint": "v2",
    }
    assert expected == found


async def test_a_request_has_the_attributes_of_an_http_client(traces: Traces) -> None:
    await invites.signed(traces.observer)

    (request,) = traces.requests
    found = attributes(request)
    assert f"PUT {V2}" == request.name
    assert int(str(found.pop("http.request.body.size"))) > 0
    assert int(str(found.pop("http.response.body.size"))) > 0
    expected = {
        "http.request.method": "PUT",
        "http.response.status_code": 200,
        "server.address": "remote.example",
        "server.port": 8448,
        "url.full": "https://remote.example:8448/_matrix/federation/v2/invite/REDACTED/REDACTED",
        "url.template": V2,
    }
    assert expected == found
    assert StatusCode.UNSET is request.status.status_code


@pytest.mark.loopback
async def test_a_request_names_the_peer(traces: Traces) -> None:
    async with LoopbackHomeserver() as remote, remote.client(observer=traces.observer) as client:
        await client.send_invite(make_invite())
        received = remote.requests_for("v2")[0]

    found = attributes(traces.requests[0])
    assert received.address == found["network.peer.address"]
    assert received.port == found["network.peer.port"]


class WordyFederation(SimulatedFederation):
    """Says in words of its own where a request went."""

    async def exchange(
        self, server: ResolvedServer, request: Request, *, limit: int, log: AttemptLog
    ) -> Reply:
        reply = await super().exchange(server, request, limit=limit, log=[])
        log.append(Attempt(request.what, "over the hills", str(reply.status)))
        return reply


async def test_a_transport_of_the_hosts_may_say_where_in_its_own_words(traces: Traces) -> None:
    async with WordyFederation(SimulatedHomeserver()).client(observer=traces.observer) as client:
        await client.send_invite(make_invite())

    [request] = traces.requests
    assert "remote.example" == attributes(request)["server.address"]
    assert 200 == attributes(request)["http.response.status_code"]


async def test_a_fallback_is_two_requests_and_says_so(traces: Traces) -> None:
    await invites.fallen_back(traces.observer)

    assert [f"PUT {V2}", f"PUT {V1}"] == [request.name for request in traces.requests]
    assert ["404", None] == error_types(traces.requests)
    assert ["fallback"] == [event.name for event in traces.invite.events]
    assert "v1" == attributes(traces.invite)["invite_client.endpoint"]
    # Another endpoint is another request, and no repetition of the first.
    for request in traces.requests:
        assert "http.request.resend_count" not in attributes(request)


async def test_a_rejection(traces: Traces) -> None:
    await invites.rejected(traces.observer)

    assert ["403", "InviteRejectedError"] == error_types([*traces.requests, traces.invite])
    assert StatusCode.ERROR is traces.invite.status.status_code
    assert "answered" == attributes(traces.invite)["invite_client.delivery"]


async def test_a_retry_counts_the_requests(traces: Traces) -> None:
    await invites.retried(traces.observer)

    counts = [attributes(span).get("http.request.resend_count") for span in traces.requests]
    assert [None, 1, 2] == counts
    assert ["UnknownOutcomeError", "429", None] == error_types(traces.requests)
    retries = [(event.attributes or {})["error.type"] for event in traces.invite.events]
    assert ["UnknownOutcomeError", "RateLimitedError"] == retries
    assert StatusCode.UNSET is traces.invite.status.status_code


async def test_a_forgery_names_the_problem(traces: Traces) -> None:
    await invites.forged(traces.observer)

    found = attributes(traces.invite)
    assert "CountersignatureError" == found["error.type"]
    assert "signature invalid" == found["invite_client.problem"]
    assert [None] == error_types(traces.requests)  # as a request, it was answered


async def test_what_was_never_sent_has_no_request(traces: Traces) -> None:
    await invites.unreachable(traces.observer)

    assert [] == traces.requests
    assert ["UnreachableError"] == error_types([traces.invite])


async def test_a_cancelled_invite_leaves_no_span_open(traces: Traces) -> None:
    await invites.abandoned(traces.observer)

    assert ["abandoned", "abandoned"] == error_types([*traces.requests, traces.invite])


async def test_the_span_of_the_caller_is_the_parent(traces: Traces) -> None:
    with traces.provider.get_tracer("homeserver").start_as_current_span("POST invite") as caller:
        await invites.signed(traces.observer)

    assert traces.invite.parent is not None
    assert caller.get_span_context().span_id == traces.invite.parent.span_id


async def test_no_span_holds_a_room_an_event_a_user_or_a_secret(traces: Traces) -> None:
    sent = await invites.all_of_them(traces.observer)

    text = "\n".join(span.to_json() for span in traces.spans)
    assert "X-Matrix" not in text
    assert INVITER_KEY.to_line().split()[2] not in text
    assert "Tea at five" not in text
    for invite in sent:
        for part in (invite.room_id, invite.event_id, invite.sender, invite.target):
            assert part not in text
            assert part[1:] not in text  # however its sigil is encoded


async def test_without_an_sdk_nothing_happens() -> None:
    await invites.all_of_them(TracingObserver())
