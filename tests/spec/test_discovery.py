"""Server discovery asks what the specification asks, in its order, and nothing else."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invite_client.errors import Delivery, Stage, UnreachableError
from invite_client.spec.discovery import (
    ResolvedServer,
    SrvAnswer,
    Target,
    TraceStep,
    WellKnownAnswer,
    discover,
)
from invite_client.spec.server_names import parse_server_name
from invite_client.spec.srv import SrvRecord

FED, OLD = "_matrix-fed._tcp", "_matrix._tcp"
NO_RECORD = SrvAnswer(())
FAILED = UnreachableError("SERVFAIL", stage=Stage.DNS, retryable=True)
NOT_OFFERED = SrvAnswer((SrvRecord(0, 0, 0, "."),))


def delegating(
    name: str, *, seconds: float = 0.0, fresh_until: float = math.inf
) -> WellKnownAnswer:
    return WellKnownAnswer(parse_server_name(name), "", seconds, fresh_until)


def records(*targets: str | SrvRecord) -> SrvAnswer:
    return SrvAnswer(
        tuple(
            target if isinstance(target, SrvRecord) else SrvRecord(index, 0, 7000 + index, target)
            for index, target in enumerate(targets)
        )
    )


@dataclass
class FakeLookups:
    """A network that answers as it is told, and writes down what it was asked."""

    well_knowns: Mapping[str, WellKnownAnswer] = field(default_factory=dict)
    srvs: Mapping[str, SrvAnswer | UnreachableError] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        self.asked.append(f"well-known {hostname}")
        return self.well_knowns.get(hostname, WellKnownAnswer(None, "status 404"))

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        self.asked.append(f"{service}.{hostname}")
        answer = self.srvs.get(f"{service}.{hostname}", NO_RECORD)
        if isinstance(answer, UnreachableError):
            raise answer
        return answer


class HangingLookups(FakeLookups):
    """One question is never answered."""

    def __init__(self, question: str) -> None:
        super().__init__()
        self.question = question
        self.reached = asyncio.Event()

    async def well_known(self, hostname: str) -> WellKnownAnswer:
        answer = await super().well_known(hostname)
        await self.hang()
        return answer

    async def srv(self, service: str, hostname: str) -> SrvAnswer:
        answer = await super().srv(service, hostname)
        await self.hang()
        return answer

    async def hang(self) -> None:
        if self.asked[-1] == self.question:
            self.reached.set()
            await asyncio.Event().wait()


async def resolve(name: str, lookups: FakeLookups) -> ResolvedServer:
    return await discover(parse_server_name(name), lookups, lambda most: most)


async def failure(name: str, lookups: FakeLookups) -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        await resolve(name, lookups)
    return caught.value


@dataclass
class Case:
    """A name, the answers of the network, and all that must come of them."""

    name: str
    step: str
    targets: list[str]
    host_header: str
    tls_name: str
    asked: list[str]
    well_known: str | None = None
    srvs: dict[str, SrvAnswer] = field(default_factory=dict)


A, B = "a.example", "b.example"
SRV_OF_A = [f"{FED}.{A}", f"{OLD}.{A}"]
SRV_OF_B = [f"{FED}.{B}", f"{OLD}.{B}"]
TWO = records("one.example", "two.example")
ONE_AND_TWO = ["one.example:7000", "two.example:7001"]
WELL_KNOWN = f"well-known {A}"

CASES = [
    # 1: IP literals
    Case("192.0.2.1", "1", ["192.0.2.1:8448"], "192.0.2.1", "192.0.2.1", []),
    Case("192.0.2.1:1", "1", ["192.0.2.1:1"], "192.0.2.1:1", "192.0.2.1", []),
    Case("[2001:DB8::1]", "1", ["[2001:db8::1]:8448"], "[2001:DB8::1]", "2001:db8::1", []),
    Case("[2001:db8::1]:1", "1", ["[2001:db8::1]:1"], "[2001:db8::1]:1", "2001:db8::1", []),
    # 2: an explicit port, 8448 too
    Case("a.example:1", "2", ["a.example:1"], "a.example:1", A, []),
    Case("A.example:8448", "2", ["a.example:8448"], "A.example:8448", A, []),
    # 3.1: delegated to an IP literal
    Case(A, "3.1", ["192.0.2.1:8448"], "192.0.2.1", "192.0.2.1", [WELL_KNOWN], "192.0.2.1"),
    Case(A, "3.1", ["192.0.2.1:1"], "192.0.2.1:1", "192.0.2.1", [WELL_KNOWN], "192.0.2.1:1"),
    Case(A, "3.1", ["[::1]:8448"], "[::1]", "::1", [WELL_KNOWN], "[::1]"),
    Case(A, "3.1", ["[::1]:1"], "[::1]:1", "::1", [WELL_KNOWN], "[::1]:1"),
    # 3.2: delegated to a name with a port
    Case(A, "3.2", ["b.example:1"], "B.example:1", B, [WELL_KNOWN], "B.example:1"),
    # 3.3 and 3.4: delegated to a name with SRV records
    Case(
        A, "3.3", ONE_AND_TWO, B, B, [WELL_KNOWN, SRV_OF_B[0]], B,
        {SRV_OF_B[0]: TWO, SRV_OF_B[1]: records("never.example")},
    ),
    Case(A, "3.4", ONE_AND_TWO, B, B, [WELL_KNOWN, *SRV_OF_B], B, {SRV_OF_B[1]: TWO}),
    # 3.5: delegated to a name without; the records of the server name are not its own
    Case(
        A, "3.5", ["b.example:8448"], "B.example", B, [WELL_KNOWN, *SRV_OF_B], "B.example",
        {SRV_OF_A[0]: TWO, SRV_OF_A[1]: TWO},
    ),
    # 4 and 5: no delegation, SRV records
    Case(
        A, "4", ONE_AND_TWO, A, A, [WELL_KNOWN, SRV_OF_A[0]], None,
        {SRV_OF_A[0]: TWO, SRV_OF_A[1]: records("never.example")},
    ),
    Case("A.example", "5", ONE_AND_TWO, "A.example", A, [WELL_KNOWN, *SRV_OF_A], None,
         {SRV_OF_A[1]: TWO}),
    # 6: nothing at all
    Case("A.Example", "6", ["a.example:8448"], "A.Example", A, [WELL_KNOWN, *SRV_OF_A]),
    # A trailing dot is part of the name that is looked up, and of no certificate.
    Case("a.example.", "6", ["a.example.:8448"], "a.example.", A,
         ["well-known a.example.", f"{FED}.a.example.", f"{OLD}.a.example."]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.step} {case.name}")
async def test_each_step(case: Case) -> None:
    known = {} if case.well_known is None else {A: delegating(case.well_known)}
    lookups = FakeLookups(known, case.srvs)
    server = await resolve(case.name, lookups)

    assert case.asked == lookups.asked
    assert (case.name, case.step) == (server.server_name, server.step)
    assert case.targets == [str(target) for target in server.targets]
    assert case.host_header == server.host_header
    assert case.tls_name == server.tls_name
    assert (parse_server_name(case.well_known or case.name).ip is not None) is server.tls_is_ip
    # The last step of the trace is the one that decided.
    assert case.step == server.trace[-1].step


class TestDelegation:
    async def test_to_itself_is_followed_once(self) -> None:
        lookups = FakeLookups({A: delegating(A)})

        assert "3.5" == (await resolve(A, lookups)).step
        assert [WELL_KNOWN, *SRV_OF_A] == lookups.asked

    async def test_of_the_delegated_name_is_not_asked_for(self) -> None:
        lookups = FakeLookups({A: delegating(B), B: delegating("c.example:1")})

        assert B == (await resolve(A, lookups)).host_header
        assert [WELL_KNOWN, *SRV_OF_B] == lookups.asked

    @pytest.mark.parametrize("name", [B, "b.example:1", "192.0.2.1"])
    async def test_wins_over_the_srv_records_of_the_server_name(self, name: str) -> None:
        lookups = FakeLookups({A: delegating(name)}, dict.fromkeys(SRV_OF_A, TWO))

        assert (await resolve(A, lookups)).step.startswith("3.")
        assert not set(SRV_OF_A) & set(lookups.asked)

    async def test_that_there_is_not_is_no_error(self) -> None:
        reason = "the certificate is not one for a.example"
        lookups = FakeLookups({A: WellKnownAnswer(None, reason)})

        assert reason in [step.answer for step in (await resolve(A, lookups)).trace]


class TestSrvRecords:
    async def test_are_tried_by_priority(self) -> None:
        answer = records(
            SrvRecord(20, 0, 1, "last.example"),
            SrvRecord(10, 1, 2, "middle.example"),
            SrvRecord(0, 1, 3, "First.Example"),
        )
        server = await resolve(A, FakeLookups(srvs={SRV_OF_A[0]: answer}))

        assert (
            Target("first.example", 3),
            Target("middle.example", 2),
            Target("last.example", 1),
        ) == server.targets

    async def test_share_by_the_chance_that_is_given(self) -> None:
        answer = records(SrvRecord(0, 1, 1, "a.example"), SrvRecord(0, 1, 2, "b.example"))
        firsts = []
        for drawn in (0, 2):
            server = await discover(
                parse_server_name(A),
                FakeLookups(srvs={SRV_OF_A[0]: answer}),
                lambda most, drawn=drawn: min(drawn, most),  # type: ignore[misc]
            )
            firsts.append(server.targets[0].host)

        assert ["a.example", "b.example"] == firsts

    @pytest.mark.parametrize(
        ("known", "srvs", "step", "asked"),
        [
            (None, {SRV_OF_A[0]: NOT_OFFERED, SRV_OF_A[1]: TWO}, "4", SRV_OF_A[:1]),
            (None, {SRV_OF_A[1]: NOT_OFFERED}, "5", SRV_OF_A),
            (B, {SRV_OF_B[0]: NOT_OFFERED, SRV_OF_B[1]: TWO}, "3.3", SRV_OF_B[:1]),
            (B, {SRV_OF_B[1]: NOT_OFFERED}, "3.4", SRV_OF_B),
        ],
    )
    async def test_that_say_not_offered_end_the_discovery(
        self, known: str | None, srvs: dict[str, SrvAnswer], step: str, asked: list[str]
    ) -> None:
        lookups = FakeLookups({A: delegating(known)} if known else {}, srvs)
        error = await failure(A, lookups)

        assert (Stage.DNS, Delivery.NOT_SENT) == (error.stage, error.delivery)
        assert not error.retryable
        assert "says that federation is not offered" in str(error)
        assert [WELL_KNOWN, *asked] == lookups.asked
        assert (A, step) == (error.destination, error.trace[-1].step)

    async def test_that_say_not_offered_among_others_are_passed_over(self) -> None:
        # RFC 2782 has the dot stand alone; a zone that says both is taken at its better word.
        answer = records(SrvRecord(0, 0, 0, "."), SrvRecord(5, 0, 1, "one.example"))
        server = await resolve(A, FakeLookups(srvs={SRV_OF_A[0]: answer}))

        assert (Target("one.example", 1),) == server.targets

    @pytest.mark.parametrize(
        ("known", "failing", "step", "asked"),
        [
            (None, SRV_OF_A[0], "4", SRV_OF_A[:1]),
            (None, SRV_OF_A[1], "5", SRV_OF_A),
            (B, SRV_OF_B[0], "3.3", SRV_OF_B[:1]),
            (B, SRV_OF_B[1], "3.4", SRV_OF_B),
        ],
    )
    async def test_that_cannot_be_known_are_not_absent(
        self, known: str | None, failing: str, step: str, asked: list[str]
    ) -> None:
        lookups = FakeLookups({A: delegating(known)} if known else {}, {failing: FAILED})
        error = await failure(A, lookups)

        assert (Stage.DNS, True) == (error.stage, error.retryable)
        assert "SERVFAIL" in str(error)
        assert FAILED is error.__cause__
        assert [WELL_KNOWN, *asked] == lookups.asked
        assert (A, step) == (error.destination, error.trace[-1].step)
        assert "SERVFAIL" == error.trace[-1].answer

    async def test_of_the_first_service_make_a_failure_of_the_second_unimportant(self) -> None:
        lookups = FakeLookups(srvs={SRV_OF_A[0]: TWO, SRV_OF_A[1]: FAILED})

        assert "4" == (await resolve(A, lookups)).step


@pytest.mark.parametrize(
    ("name", "target", "text"),
    [
        ("remote.example:1234", ("remote.example", 1234), "remote.example:1234"),
        ("[2001:db8::1]", ("2001:db8::1", 8448), "[2001:db8::1]:8448"),
    ],
)
async def test_a_target_is_a_host_and_a_port(name: str, target: tuple[str, int], text: str) -> None:
    [found] = (await resolve(name, FakeLookups())).targets

    assert target == found == (found.host, found.port)
    assert text == str(found)


def test_a_failure_of_which_nothing_else_is_said_may_pass() -> None:
    """Look-ups may be a host's own: what they leave out must do no harm."""
    assert not WellKnownAnswer(None).absent


class TestTheTrace:
    async def test_has_every_step_with_its_answer_and_time(self) -> None:
        lookups = FakeLookups(
            {A: delegating(B, seconds=1.5)},
            {SRV_OF_B[0]: SrvAnswer((), 2.5), SRV_OF_B[1]: SrvAnswer(TWO.records, 3.5)},
        )

        assert (
            TraceStep("1", "is the name an IP literal?", "no"),
            TraceStep("2", "has the name a port?", "no"),
            TraceStep(
                "3",
                "https://a.example/.well-known/matrix/server",
                "m.server is b.example",
                1.5,
                "it delegates",
            ),
            TraceStep("3.1", "is the delegated name an IP literal?", "no"),
            TraceStep("3.2", "has the delegated name a port?", "no"),
            TraceStep("3.3", f"SRV {SRV_OF_B[0]}", "no such record", 2.5),
            TraceStep(
                "3.4",
                f"SRV {SRV_OF_B[1]}",
                "one.example:7000, two.example:7001",
                3.5,
                "by priority, then by weighted chance",
            ),
        ) == (await resolve(A, lookups)).trace

    async def test_of_the_longest_way_ends_at_the_default_port(self) -> None:
        trace = (await resolve(A, FakeLookups())).trace

        assert ["1", "2", "3", "4", "5", "6"] == [step.step for step in trace]
        assert TraceStep("6", "no SRV: port 8448 of a.example", "used") == trace[-1]
        assert "status 404" == trace[2].answer

    @pytest.mark.parametrize(("name", "steps"), [("192.0.2.1", ["1"]), ("a.example:1", ["1", "2"])])
    async def test_ends_where_the_discovery_ends(self, name: str, steps: list[str]) -> None:
        assert steps == [step.step for step in (await resolve(name, FakeLookups())).trace]

    @pytest.mark.parametrize(
        ("hanging", "steps"),
        [(f"well-known {A}", ["1", "2", "3"]), (SRV_OF_A[1], ["1", "2", "3", "4", "5"])],
    )
    async def test_that_is_cut_off_says_how_far_it_came(
        self, hanging: str, steps: list[str]
    ) -> None:
        trace: list[TraceStep] = []
        lookups = HangingLookups(hanging)
        walk = discover(parse_server_name(A), lookups, lambda most: most, trace)
        walking = asyncio.create_task(walk)
        await lookups.reached.wait()
        walking.cancel()
        await asyncio.gather(walking, return_exceptions=True)

        assert steps == [step.step for step in trace]
        assert "no answer yet" == trace[-1].answer
        assert all("no answer yet" != step.answer for step in trace[:-1])


class TestFreshness:
    async def test_is_that_of_the_first_answer_to_expire(self) -> None:
        lookups = FakeLookups(
            {A: WellKnownAnswer(None, "status 404", fresh_until=30.0)},
            {
                SRV_OF_A[0]: SrvAnswer((), fresh_until=20.0),
                SRV_OF_A[1]: SrvAnswer(TWO.records, fresh_until=25.0),
            },
        )

        assert 20.0 == (await resolve(A, lookups)).fresh_until

    async def test_counts_the_delegation(self) -> None:
        lookups = FakeLookups({A: delegating("b.example:1", fresh_until=30.0)})

        assert 30.0 == (await resolve(A, lookups)).fresh_until

    @pytest.mark.parametrize("name", ["192.0.2.1", "a.example:1"])
    async def test_is_for_ever_where_nothing_was_asked(self, name: str) -> None:
        assert math.inf == (await resolve(name, FakeLookups())).fresh_until


names = st.sampled_from(
    [A, "A.example.", "a.example:1", "192.0.2.1", "[::1]:1", B, "b.example:2", "192.0.2.2:3"]
)
answers = st.sampled_from([NO_RECORD, NOT_OFFERED, TWO, FAILED])


@given(
    names,
    st.none() | names,
    st.dictionaries(
        st.builds(
            "{}.{}".format,
            st.sampled_from([FED, OLD]),
            st.sampled_from([A, "a.example.", B]),
        ),
        answers,
    ),
)
def test_whatever_the_answers_there_are_targets_or_an_error_of_ours(
    name: str, known: str | None, srvs: dict[str, SrvAnswer | UnreachableError]
) -> None:
    host = parse_server_name(name).host
    lookups = FakeLookups({host: delegating(known)} if known else {}, srvs)
    try:
        server = asyncio.run(resolve(name, lookups))
    except UnreachableError as error:
        assert error.trace
        return
    assert server.targets
    assert lookups.asked.count(f"well-known {host}") <= 1
    assert len(lookups.asked) == len(set(lookups.asked)) <= 3
    # The certificate is for a name that was looked up, never for the target of a record.
    assert server.tls_name in {
        parse_server_name(n).host.removesuffix(".") for n in (name, known) if n
    }
