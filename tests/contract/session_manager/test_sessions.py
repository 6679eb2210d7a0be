"""One session's life on a real NATS: started whole or not at all, watched, ended once, everything freed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from protos.billing.v1 import billing_pb2
from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import (
    ConflictError,
    DeadlineExceededError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnavailableError,
)
from services.common.grpc_client import stream
from services.common.lifecycle import background
from services.session_manager.machine import Session, SessionId
from tests.support.fakes import FakeRunner
from tests.support.session_manager import (
    SESSION,
    STREAM,
    Neighbourhood,
    Replica,
    collected,
    until,
)

OTHER = "ses_bbbbbbbbbb"
FAILED = runner_pb2.SlotReport.STATE_FAILED


def bugs() -> float:
    """Failures that nobody named, reported so far in this process."""
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        if metric.name == "sluice_internal_errors"
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


@pytest.fixture(autouse=True)
def no_bug_is_reported() -> object:
    before = bugs()
    yield
    assert bugs() == before, "something failed that no error class names"


# --- start


async def test_a_session_is_started_watched_and_stopped(around: Neighbourhood, one: Replica) -> None:
    await one.create(params='{"prompt": "sketch"}')
    seen = around.publish()
    session = await one.start(around.bridge.address)

    assert (session.phase, session.runner, session.owner) == (pb.PHASE_STARTING, "r0", "one")
    assert (session.paid_until_ms, session.micro_per_second) == (2000, 1000)
    stream_ = await one.stream()
    assert (stream_.session, stream_.last_session) == (SESSION, SESSION)
    attached = around.runner.attached
    assert attached is not None
    assert (attached.session, attached.session_epoch, attached.slot_epoch) == (SESSION, 1, 1)
    assert attached.params == '{"prompt":"sketch","strength":1.0}'
    assert attached.revision == 1
    assert attached.delivery == runner_pb2.DELIVERY_LIVE
    assert getattr(attached.channels, "in").endswith(f"{SESSION}/in")
    opened = seen.opened[0]
    assert (opened.epoch, opened.paid_until_ms, opened.overdraft_ms) == (1, 2000, 4000)
    assert (opened.runner, opened.processes_audio) == ("r0", True)

    seen.see(frames_in=10, output_age_ms=0)
    await one.reaches(pb.PHASE_LIVE)
    seen.see(publisher=bridge_pb2.PUBLISHER_SILENT)
    await one.reaches(pb.PHASE_PAUSED)
    seen.see(publisher=bridge_pb2.PUBLISHER_SENDING)
    await one.reaches(pb.PHASE_LIVE)

    await one.stop()
    ended = await one.ended()
    assert (ended.phase, ended.end_reason) == (pb.PHASE_ENDED, "stopped")
    assert ended.ended_unix_ms >= ended.created_unix_ms
    assert around.held() == []
    stream_ = await one.stream()
    assert (stream_.session, stream_.last_session) == ("", SESSION)
    assert around.bridge.gone[SESSION].closed is not None
    told = [event.type for event in await collected(one, 5)]
    assert told == ["starting", "live", "paused", "live", "ended"]


def order(around: Neighbourhood) -> list[str]:
    detach = [name for name, _ in around.runner.calls]
    release = [name for name, _ in around.router.calls]
    return [*detach, *release]


@pytest.mark.parametrize(
    ("fail", "expected", "reason"),
    [
        (
            lambda around: setattr(around.billing, "credit_ms", 0),
            PaymentRequiredError,
            "credit_exhausted",
        ),
        (
            lambda around: around.billing.fail("ReserveSlice", UnavailableError("away")),
            UnavailableError,
            "start_failed",
        ),
        (lambda around: around.router.runners.clear(), ExhaustedError, "no_capacity"),
        (
            lambda around: around.router.fail("Grant", UnavailableError("away")),
            UnavailableError,
            "start_failed",
        ),
        (lambda around: around.bridge.forget(SESSION), NotFoundError, "start_failed"),
        (
            lambda around: around.runner.fail("Attach", InvalidError("params.strength")),
            InvalidError,
            "input_unusable",
        ),
        (
            lambda around: around.runner.fail("Attach", ConflictError("odd", reason="ODD")),
            ConflictError,
            "start_failed",
        ),
        (
            lambda around: around.runner.fail("Attach", NotFoundError("no such pipeline")),
            NotFoundError,
            "start_failed",
        ),
    ],
    ids=[
        "no credit",
        "billing away",
        "no slot",
        "router away",
        "publisher gone",
        "refused parameters",
        "refused for an unknown reason",
        "pipeline unknown",
    ],
)
async def test_a_start_that_fails_leaves_nothing_and_keeps_the_reason(
    around: Neighbourhood,
    one: Replica,
    fail: Callable[[Neighbourhood], None],
    expected: type[SluiceError],
    reason: str,
) -> None:
    await one.create()
    around.publish()
    fail(around)
    with pytest.raises(expected):
        await one.start(around.bridge.address)
    ended = await one.ended()
    assert (ended.phase, ended.end_reason) == (pb.PHASE_ENDED, reason)
    assert around.held() == []
    assert (await one.stream()).session == ""


async def test_a_refusal_for_want_of_a_slot_says_when_to_ask_again(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.publish()
    around.router.runners.clear()
    with pytest.raises(ExhaustedError) as refusal:
        await one.start(around.bridge.address)
    assert (refusal.value.reason, refusal.value.details["retry_after_s"]) == ("NO_CAPACITY", "5")


async def dies(runner: FakeRunner) -> None:
    await runner.die()


async def refuses(runner: FakeRunner, reason: str) -> None:
    runner.fail("Attach", ConflictError("not now", reason=reason))


@pytest.mark.parametrize("how", ["SLOT_OCCUPIED", "STALE_EPOCH", "NOT_READY", "DRAINING", "dead"])
async def test_a_runner_that_does_not_take_the_session_is_left_out_and_another_one_asked(
    around: Neighbourhood, one: Replica, how: str
) -> None:
    await one.create()
    around.publish()
    await (dies(around.runner) if how == "dead" else refuses(around.runner, how))
    session = await one.start(around.bridge.address)
    assert session.runner == "r1"
    grants = around.router.requests("Grant", router_pb2.GrantRequest)
    assert [list(grant.exclude) for grant in grants] == [[], ["r0"]]
    assert around.router.held == {"r1": SESSION}
    assert around.runners[1].session == SESSION


async def test_three_refusals_are_a_want_of_capacity_and_leave_nothing(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.publish()
    for runner in around.runners:
        runner.fail("Attach", ConflictError("taken", reason="SLOT_OCCUPIED"))
    with pytest.raises(ExhaustedError) as refusal:
        await one.start(around.bridge.address)
    assert refusal.value.reason == "NO_CAPACITY"
    assert (await one.ended()).end_reason == "no_capacity"
    assert around.held() == []


async def test_a_runner_that_took_the_session_without_saying_so_is_told_to_let_it_go(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.publish()
    around.runner.hang("Attach")
    session = await one.start(around.bridge.address)
    assert session.runner == "r1"
    assert around.runner.session == "", "two runners would write one output"


async def test_a_caller_that_goes_away_does_not_leave_a_session_behind(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.publish()
    around.router.hang("Grant")
    starting = asyncio.ensure_future(one.start(around.bridge.address))

    async def granted() -> bool:
        return bool(around.router.held)

    await until(granted)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    around.bridge.forget(SESSION)  # as ingest does when its call is cut
    assert (await one.ended()).end_reason == "start_failed"
    assert around.held() == []


async def waits(around: Neighbourhood, one: Replica, **wishes: Any) -> asyncio.Future[pb.Session]:
    """A start that waits in the queue."""
    await one.create(wishes=pb.Wishes(max_wait_ms=20_000, **wishes))
    around.publish()
    taken = {runner.name: "ses_other00000" for runner in around.runners}
    around.router.held |= taken
    starting = asyncio.ensure_future(one.start(around.bridge.address))

    async def waiting() -> bool:
        return around.router.waiting == [SESSION]

    await until(waiting)
    assert (await one.session()).phase == pb.PHASE_ALLOCATING
    return starting


async def test_a_start_waits_in_the_queue_as_long_as_its_stream_says_and_holds_no_credit_meanwhile(
    around: Neighbourhood, one: Replica
) -> None:
    starting = await waits(around, one, priority=7, region="eu", labels={"pool": "big"})
    await asyncio.sleep(0.5)
    assert around.billing.calls == []
    del around.router.held["r2"]
    assert (await starting).runner == "r2"
    (grant,) = around.router.requests("Grant", router_pb2.GrantRequest)
    assert (grant.wait_ms, grant.priority) == (20_000, 7)
    assert (grant.requirements.region, dict(grant.requirements.labels)) == ("eu", {"pool": "big"})


async def test_a_caller_that_goes_away_leaves_the_queue_at_once(around: Neighbourhood, one: Replica) -> None:
    starting = await waits(around, one)
    starting.cancel()

    async def left() -> bool:
        return not around.router.waiting

    await until(left, 1.0)
    around.router.held.clear()
    assert (await one.ended()).end_reason == "start_failed"
    assert around.held() == []
    assert (await one.stream()).session == ""


async def test_a_stop_ends_the_wait_in_the_queue_at_once(around: Neighbourhood, one: Replica) -> None:
    starting = await waits(around, one)
    await one.stop()
    with pytest.raises(ConflictError) as refusal:
        async with asyncio.timeout(1.0):
            await starting
    assert refusal.value.reason == "SESSION_ENDED"
    around.router.held.clear()
    assert (await one.ended()).end_reason == "stopped"
    assert around.held() == []


async def test_a_pipeline_that_costs_more_than_the_stream_allows_is_refused_and_nothing_is_held(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create(wishes=pb.Wishes(max_micro_per_second=999))
    around.publish()
    with pytest.raises(ConflictError) as refusal:
        await one.start(around.bridge.address)
    assert (refusal.value.reason, refusal.value.details["micro_per_second"]) == ("PRICE_ABOVE_CAP", "1000")
    assert (await one.ended()).end_reason == "price_above_cap"
    assert around.held() == []


async def test_a_refusal_for_want_of_a_slot_never_touches_the_credit(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.publish()
    around.router.runners.clear()
    with pytest.raises(ExhaustedError):
        await one.start(around.bridge.address)
    await one.ended()
    assert around.billing.calls == []


async def test_of_two_sessions_for_one_stream_at_once_exactly_one_wins(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.publish(SESSION)
    around.publish(OTHER)
    answers = await asyncio.gather(
        one.start(around.bridge.address, SESSION),
        one.start(around.bridge.address, OTHER),
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, pb.Session)]
    lost = [answer for answer in answers if isinstance(answer, ConflictError)]
    assert (len(won), len(lost)) == (1, 1)
    assert lost[0].reason == "STREAM_BUSY"
    loser = OTHER if won[0].id == SESSION else SESSION
    assert (await one.ended(loser)).end_reason == "stream_busy"
    assert (await one.stream()).session == won[0].id
    assert around.router.held == {"r0": won[0].id}
    assert around.billing.holding == {won[0].id}
    assert set(around.bridge.sessions) == {won[0].id}


async def test_the_same_session_twice_at_once_is_started_once(around: Neighbourhood, one: Replica) -> None:
    await one.create()
    around.publish()
    answers = await asyncio.gather(
        *(one.start(around.bridge.address) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["ConflictError", "Session"]
    assert (await one.session()).phase == pb.PHASE_STARTING
    assert around.router.held == {"r0": SESSION}


async def test_a_claim_of_a_session_that_has_ended_or_is_forgotten_does_not_count(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    for old in ("ses_forgotten00", SESSION):
        await one.store.change_stream(STREAM, lambda was, old=old: was.claimed_by(SessionId(old)))  # type: ignore[misc]
        new = SESSION if old != SESSION else OTHER
        around.publish(new)
        assert (await one.start(around.bridge.address, new)).id == new
        await one.stop(new)
        await one.ended(new)


async def test_a_start_names_what_is_wrong_with_the_request(one: Replica, around: Neighbourhood) -> None:
    await one.create()
    with pytest.raises(InvalidError) as refusal:
        await one.start(around.bridge.address, "not an id")
    assert refusal.value.details["field"] == "session"
    with pytest.raises(InvalidError) as refusal:
        await one.start("")
    assert refusal.value.details["field"] == "bridge"
    with pytest.raises(NotFoundError):
        await one.start(around.bridge.address, stream="str_unknown000")


# --- end


async def test_of_many_ends_at_once_one_holds_and_everything_is_freed_once(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    reasons = ["stopped", "max_duration", "input_ended", "stream_deleted"]
    await asyncio.gather(*(one.stop(reason=reason, message=reason) for reason in reasons))
    ended = await one.ended()
    assert ended.end_reason == ended.end_message
    assert ended.end_reason in reasons
    await one.stop(reason="later")
    assert (await one.session()).end_reason == ended.end_reason
    assert around.held() == []
    told = [event.type for event in await collected(one, 3)]
    assert told.count("ended") == 1


async def test_an_end_is_told_once_though_the_bridge_sees_something_new_just_then(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    seen = around.bridge.sessions[SESSION]
    gate = asyncio.Event()
    around.billing.before("Settle", gate.wait)
    stopping = asyncio.ensure_future(one.stop())
    for _ in range(5):
        seen.see(publisher=bridge_pb2.PUBLISHER_SILENT)
        await asyncio.sleep(0.02)
        seen.see(publisher=bridge_pb2.PUBLISHER_SENDING)
        await asyncio.sleep(0.02)
    gate.set()
    await stopping
    await one.ended()
    await asyncio.sleep(0.2)
    told = [event.type for event in await collected(one, 3)]
    assert told.count("ended") == 1


async def test_a_stop_that_overtakes_the_start_leaves_nothing(around: Neighbourhood, one: Replica) -> None:
    await one.create()
    around.publish()
    gate = asyncio.Event()
    around.router.before("Grant", gate.wait)
    starting = asyncio.ensure_future(one.start(around.bridge.address))

    async def asked() -> bool:
        return bool(around.router.calls and around.router.calls[-1][0] == "Grant")

    await until(asked)
    await one.stop()
    await one.ended()
    gate.set()
    with pytest.raises(ConflictError) as refusal:
        await starting
    assert refusal.value.reason == "SESSION_ENDED"
    assert (await one.session()).end_reason == "stopped"
    assert around.held() == []


async def test_a_stop_that_overtakes_the_attach_leaves_nothing(around: Neighbourhood, one: Replica) -> None:
    await one.create()
    around.publish()
    gate = asyncio.Event()
    around.runner.before("Attach", gate.wait)
    starting = asyncio.ensure_future(one.start(around.bridge.address))

    async def asked() -> bool:
        return bool(around.runner.calls)

    await until(asked)
    await one.stop()
    await one.ended()
    gate.set()
    with pytest.raises(SluiceError):
        await starting

    async def freed() -> bool:
        return around.held() == []

    await until(freed)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("pipeline_failed", "pipeline_failed"),
        ("input_undecodable", "input_undecodable"),
        ("params_refused", "params_refused"),
    ],
)
async def test_what_the_runner_says_of_its_failure_is_the_reason(
    around: Neighbourhood, one: Replica, live: pb.Session, said: str, kept: str
) -> None:
    around.runner.say(FAILED, said, "at frame 7")
    ended = await one.ended()
    assert (ended.end_reason, ended.end_message) == (kept, "at frame 7")
    assert around.held() == []


async def test_a_runner_that_does_not_report_keeps_a_session_whose_output_arrives(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.runner.hang("Watch")
    await asyncio.sleep(2.0)  # twice the time after which it would be lost
    assert (await one.session()).phase == pb.PHASE_LIVE


async def bridge_forgets(around: Neighbourhood) -> None:
    around.bridge.forget(SESSION)


async def bridge_falls_silent(around: Neighbourhood) -> None:
    around.bridge.hang("Report")


async def bridge_is_killed(around: Neighbourhood) -> None:
    await around.bridge.die()


@pytest.mark.parametrize(
    "how", [bridge_forgets, bridge_falls_silent, bridge_is_killed], ids=lambda how: how.__name__
)
async def test_an_ingest_process_that_is_there_no_more_ends_the_session_after_its_publishers_grace(
    around: Neighbourhood,
    one: Replica,
    live: pb.Session,
    how: Callable[[Neighbourhood], object],
) -> None:
    await how(around)  # type: ignore[misc]
    paused = await one.reaches(pb.PHASE_PAUSED)
    assert paused.bridge_lost_unix_ms
    assert around.runner.session == SESSION, "it keeps the pipeline's state for the publisher's return"
    assert (await one.ended()).end_reason == "bridge_lost"
    assert around.router.held == {}
    assert around.runner.session == ""


async def test_an_ingest_process_that_answers_again_has_its_session_still(
    around: Neighbourhood, live: pb.Session, one: Replica
) -> None:
    around.bridge.hang("Report")
    assert (await one.reaches(pb.PHASE_PAUSED)).bridge_lost_unix_ms
    around.bridge.release("Report")
    assert (await one.reaches(pb.PHASE_LIVE)).bridge_lost_unix_ms == 0


async def test_a_bridge_that_is_away_for_a_moment_is_forgiven(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.bridge.fail("Report", UnavailableError("away"), times=3)
    around.runner.fail("Watch", UnavailableError("away"), times=3)
    around.bridge.sessions[SESSION].see(publisher=bridge_pb2.PUBLISHER_SILENT)
    await one.reaches(pb.PHASE_PAUSED)


async def test_a_session_manager_that_stood_still_blames_nobody_for_its_own_silence(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    time.sleep(1.5)
    await asyncio.sleep(0.5)
    assert (await one.session()).phase == pb.PHASE_LIVE


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"publisher": bridge_pb2.PUBLISHER_GONE}, "publisher_gone"),
        ({"drained": True}, "input_ended"),
        ({"fault": "more than 50 Mbit/s"}, "input_unusable"),
        ({"credit_exhausted": True}, "credit_exhausted"),
    ],
)
async def test_what_the_bridge_sees_ends_the_session(
    around: Neighbourhood, one: Replica, live: pb.Session, facts: dict[str, object], reason: str
) -> None:
    around.bridge.sessions[SESSION].see(**facts)
    ended = await one.ended()
    assert ended.end_reason == reason
    assert around.held() == []
    closed = around.bridge.gone[SESSION].closed
    assert closed is not None
    assert closed.reason == reason


async def test_a_session_whose_engine_is_restarted_in_place_lives_on(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    seen = around.bridge.sessions[SESSION]
    seen.see(health="error", output_age_ms=9000)
    degraded = await one.reaches(pb.PHASE_DEGRADED)
    assert degraded.degraded_by == "inference"
    around.runner.say(runner_pb2.SlotReport.STATE_STARTING)
    seen.see(health="loading", progress_age_ms=5, output_age_ms=30_000, session_ms=200_000)
    await asyncio.sleep(0.5)
    assert (await one.session()).phase == pb.PHASE_DEGRADED
    around.runner.say(runner_pb2.SlotReport.STATE_RUNNING)
    seen.see(health="online", output_age_ms=0)
    assert (await one.reaches(pb.PHASE_LIVE)).degraded_by == ""


async def test_a_runner_that_says_that_it_loads_has_time_until_it_is_silent(around: Neighbourhood) -> None:
    async with around.replica("patient", first_output_within_s=60, load_within_s=600) as replica:
        await replica.create()
        seen = around.publish()
        await replica.start(around.bridge.address)
        seen.see(session_ms=599_000, frames_in=9, progress_age_ms=59_000)
        await asyncio.sleep(0.5)
        assert (await replica.session()).phase == pb.PHASE_STARTING
        seen.see(progress_age_ms=61_000)
        assert (await replica.ended()).end_reason == "no_output"


async def test_a_runner_that_loads_for_ever_is_not_waited_for(around: Neighbourhood) -> None:
    async with around.replica("patient", first_output_within_s=60, load_within_s=600) as replica:
        await replica.create()
        seen = around.publish()
        await replica.start(around.bridge.address)
        seen.see(session_ms=601_000, frames_in=9, progress_age_ms=100)
        assert (await replica.ended()).end_reason == "no_output"


async def test_a_finished_runner_gives_the_bridge_the_last_word(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.runner.say(runner_pb2.SlotReport.STATE_FINISHED)
    assert (await one.ended()).end_reason == "input_ended"


@pytest.mark.parametrize(
    ("settings", "facts", "reason"),
    [
        ({"max_session_s": 60}, {"session_ms": 60_000, "output_age_ms": 0}, "max_duration"),
        ({"first_output_within_s": 60}, {"session_ms": 61_000, "frames_in": 9}, "no_output"),
    ],
)
async def test_a_session_has_the_bounds_of_the_settings(
    around: Neighbourhood, settings: dict[str, object], facts: dict[str, object], reason: str
) -> None:
    around.billing.credit_ms = 3_600_000
    async with around.replica("bounded", **settings) as replica:
        await replica.create()
        seen = around.publish()
        await replica.start(around.bridge.address)
        seen.see(**facts)
        assert (await replica.ended()).end_reason == reason


async def test_a_step_of_freeing_that_fails_is_tried_again_until_it_works(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.router.fail("Release", UnavailableError("away"), times=2)
    around.billing.fail("Settle", DeadlineExceededError("slow"), times=2)
    await one.stop()
    assert (await one.ended()).end_reason == "stopped"
    assert around.held() == []


async def test_where_the_time_went_outlives_the_bridge_though_settling_has_to_be_tried_again(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    infer = bridge_pb2.StageLatency(stage="infer", p50_us=7_000, p95_us=12_000)
    around.bridge.latency = bridge_pb2.Latency(pictures=900, stages=[infer])
    around.billing.fail("Settle", DeadlineExceededError("slow"), times=2)
    await one.stop()
    ended = await one.ended()
    assert ended.settled
    assert ended.latency == around.bridge.latency


async def test_a_slot_is_released_after_its_runner_let_go(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    holders: list[str] = []

    async def look() -> None:
        holders.append(around.runner.session)

    around.router.before("Release", look)
    await one.stop()
    await one.ended()
    assert holders == [""]


async def test_nobody_stops_or_sees_another_tenants_session(one: Replica, live: pb.Session) -> None:
    for attempt in (one.stop(tenant="other"), one.session(tenant="other")):
        with pytest.raises(NotFoundError):
            await attempt
    assert (await one.session(tenant="acme")).phase == pb.PHASE_LIVE


async def test_a_watcher_that_swallows_its_cancellation_does_not_keep_a_session_alive(
    around: Neighbourhood, one: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nats-py's requests do, now and then: `asyncio.wait_for` of Python 3.11 loses a cancellation."""
    real = one.store.session
    swallowed = 0

    async def stubborn(session: str, tenant: str = "") -> Session:
        nonlocal swallowed
        if not swallowed:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        return await real(session, tenant)

    await one.create()
    around.publish()
    monkeypatch.setattr(one.store, "session", stubborn)
    await one.start(around.bridge.address)
    await asyncio.sleep(0.05)
    around.runner.say(FAILED, "pipeline_failed")

    async def free() -> bool:
        return bool(swallowed) and around.held() == []

    await until(free)


# --- money


async def test_credit_is_reserved_ahead_of_the_session(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.bridge.sessions[SESSION].see(session_ms=1500)

    async def extended() -> bool:
        opened = around.bridge.sessions[SESSION].opened[-1]
        return opened.paid_until_ms >= 3500 and opened.overdraft_ms == 4000

    await until(extended)
    assert (await one.session()).paid_until_ms >= 3500
    assert around.billing.reserved[SESSION] >= 3500


async def test_where_the_credit_ends_the_bridge_is_told_that_there_will_be_no_more(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.billing.credit_ms = 2000
    seen = around.bridge.sessions[SESSION]
    seen.see(session_ms=1500)

    async def told() -> bool:
        return seen.opened[-1].overdraft_ms == 0

    await until(told)
    assert seen.opened[-1].paid_until_ms == 2000
    seen.see(credit_exhausted=True)
    assert (await one.ended()).end_reason == "credit_exhausted"
    assert around.held() == []


async def test_a_payment_in_time_lets_the_session_go_on(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.billing.credit_ms = 2000
    seen = around.bridge.sessions[SESSION]
    seen.see(session_ms=1500)

    async def told(overdraft_ms: int) -> bool:
        return seen.opened[-1].overdraft_ms == overdraft_ms

    await until(lambda: told(0))
    around.billing.credit_ms = 60_000
    await until(lambda: told(4000))
    assert seen.opened[-1].paid_until_ms > 2000


async def test_a_session_runs_on_while_billing_is_away(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.billing.fail("ReserveSlice", UnavailableError("away"), times=2)
    seen = around.bridge.sessions[SESSION]
    seen.see(session_ms=1500)

    async def renewed() -> bool:
        return seen.opened[-1].paid_until_ms > 2000

    await until(renewed)
    calls = around.billing.requests("ReserveSlice", billing_pb2.ReserveSliceRequest)
    assert len(calls) >= 4
    assert (await one.session()).phase == pb.PHASE_LIVE


async def test_a_renewal_that_comes_after_the_settlement_is_no_failure(
    around: Neighbourhood, one: Replica, live: pb.Session
) -> None:
    around.billing.settled.add(SESSION)  # another replica ended it, and the record is on its way
    around.bridge.sessions[SESSION].see(session_ms=1500)

    async def asked() -> bool:
        return len(around.billing.requests("ReserveSlice", billing_pb2.ReserveSliceRequest)) >= 3

    await until(asked)
    await one.stop(reason="stopped")
    assert (await one.ended()).end_reason == "stopped"


# --- watching


async def test_a_watcher_sees_the_sessions_of_its_tenant_as_they_change(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    await one.create(id="str_other00000", tenant="other")
    seen: list[tuple[str, pb.Phase.ValueType]] = []

    async def watch() -> None:
        request = pb.WatchRequest(tenant="acme")
        async for session in stream(one.stub.Watch, request, pb.Session):
            seen.append((session.id, session.phase))  # noqa: PERF401 - others read it meanwhile

    async with background(watch=watch()):
        await asyncio.sleep(0.1)
        for session, of in ((SESSION, STREAM), (OTHER, "str_other00000")):
            around.publish(session)
            await one.start(around.bridge.address, session, of)
            await one.stop(session)

        async def over() -> bool:
            return (SESSION, pb.PHASE_ENDED) in seen

        await until(over)
        await one.ended(OTHER)
    assert {session for session, _ in seen} == {SESSION}
    phases = [phase for _, phase in seen]
    assert phases == sorted(phases)
