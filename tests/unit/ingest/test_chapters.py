from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from protos.ingest.v1 import bridge_pb2
from services.common.trickle.registry import Registry
from services.ingest.bridge.chapters import AGES, SEGMENT_S, Chapters, Counts
from services.ingest.bridge.identity import Identity
from services.ingest.bridge.session import BridgeSession
from services.ingest.bridge.stages import Stage, StageTimes
from services.ingest.settings import IngestSettings
from tests.support.media import pictures
from tests.support.spans import Spans, recording

TRACE, OPENED = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TRACEPARENT = f"00-{TRACE:032x}-{OPENED:016x}-01"
WALL_NS = 1_700_000_000_000_000_000


class Clock:
    now_s = 1000.0


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    return recording(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def chapters(clock: Clock, spans: Spans) -> Chapters:
    return Chapters(TRACEPARENT, now_s=lambda: clock.now_s, wall_ns=lambda: WALL_NS)


def end(chapters: Chapters, counts: Counts | None = None, **facts: Any) -> None:
    chapters.end_segment(counts or Counts(), **{"publisher": "sending", "stages": None, **facts})


def when_s(span: ReadableSpan) -> tuple[float, float]:
    """Seconds since the session opened."""
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.start_time - WALL_NS) / 1e9, (span.end_time - WALL_NS) / 1e9


def test_a_segment_is_a_child_of_what_opened_the_session(chapters: Chapters, spans: Spans) -> None:
    end(chapters)
    (span,) = spans.named("session.segment")
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (TRACE, OPENED)


def test_a_segment_begins_where_the_one_before_it_ended(
    chapters: Chapters, spans: Spans, clock: Clock
) -> None:
    for step_s in (30.0, 30.1, 2.5):
        clock.now_s += step_s
        end(chapters)
    assert [when_s(span) for span in spans.named("session.segment")] == [
        pytest.approx(each) for each in ((0.0, 30.0), (30.0, 60.1), (60.1, 62.6))
    ]


def test_a_segment_is_due_after_its_length(chapters: Chapters, clock: Clock) -> None:
    clock.now_s += SEGMENT_S - 0.01
    assert not chapters.due
    clock.now_s += 0.01
    assert chapters.due
    end(chapters)
    assert not chapters.due


def test_a_segment_counts_its_own_part_only(chapters: Chapters, spans: Spans) -> None:
    end(chapters, Counts(frames_in=750, frames_out=740, frames_dropped=10, delivered_ms=29_000))
    end(
        chapters,
        Counts(frames_in=1000, frames_out=980, frames_dropped=5, delivered_ms=39_500),
        publisher="gone",
    )
    first, second = spans.attributes("session.segment")
    assert first == {
        "session.frames_in": 750,
        "session.frames_out": 740,
        "session.frames_dropped": 10,
        "session.delivered_ms": 29_000,
        "session.publisher": "sending",
    }
    assert second == {
        "session.frames_in": 250,
        "session.frames_out": 240,
        "session.frames_dropped": 0,  # a runner that began anew counts from nothing
        "session.delivered_ms": 10_500,
        "session.publisher": "gone",
    }


def test_the_ages_of_pictures_are_those_of_the_segment(chapters: Chapters, spans: Spans) -> None:
    for ms in range(1, 101):
        chapters.returned(ms / 1000)
    end(chapters)
    chapters.returned(0.5)
    end(chapters)
    ages = [
        (each["session.frame_age_ms_p50"], each["session.frame_age_ms_p95"])
        for each in spans.attributes("session.segment")
    ]
    assert ages == [(50.0, 95.0), (500.0, 500.0)]


def test_more_pictures_than_a_segment_keeps_cost_no_memory(chapters: Chapters, spans: Spans) -> None:
    for _ in range(AGES):
        chapters.returned(0.01)
    for _ in range(AGES * 2):
        chapters.returned(9.0)
    end(chapters)
    assert spans.attributes("session.segment")[0]["session.frame_age_ms_p95"] == 10.0


def test_the_slowest_stage_is_named(chapters: Chapters, spans: Spans) -> None:
    stages = {stage: StageTimes(900, 0.001, 0.5) for stage in Stage} | {
        Stage.INFER: StageTimes(900, 0.0213, 0.03)
    }
    end(chapters, stages=stages)
    (told,) = spans.attributes("session.segment")
    assert (told["session.slowest_stage"], told["session.slowest_stage_ms_p50"]) == ("infer", 21.3)


def test_the_first_picture_is_timed_from_the_opening(chapters: Chapters, spans: Spans, clock: Clock) -> None:
    clock.now_s += 0.4
    chapters.first_picture()
    (span,) = spans.named("session.first_picture")
    assert when_s(span) == pytest.approx((0.0, 0.4))


def test_a_handover_is_timed_from_the_wish_for_it(chapters: Chapters, spans: Spans, clock: Clock) -> None:
    clock.now_s += 7
    chapters.handover(clock.now_s - 0.5, {"session.epoch": 2})
    (span,) = spans.named("session.handover")
    assert span.start_time is not None
    assert span.end_time is not None
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(0.5)
    assert span.attributes is not None
    assert span.attributes["session.epoch"] == 2


def test_without_a_trace_nothing_breaks(spans: Spans) -> None:
    end(Chapters("", now_s=lambda: 0.0))
    assert len(spans.named("session.segment")) == 1


class Disk:
    source = "here"

    async def put(self, window: object) -> None:
        """Billing is another test's."""


@pytest.mark.looptime
async def test_a_session_writes_a_segment_each_half_minute_and_one_at_its_end(spans: Spans) -> None:
    session = BridgeSession(
        Identity("ses_a", "str_a", "acme", "effects", complete=False, traceparent=TRACEPARENT),
        registry=Registry(),
        outbox=cast("Any", Disk()),
        settings=IngestSettings(stream_secret="x" * 16, publisher_grace_s=3600, orphan_after_s=3600),
        now_s=asyncio.get_running_loop().time,
    )
    session.open(bridge_pb2.OpenRequest(session="ses_a", epoch=1, paid_until_ms=3_600_000, runner="r0"))
    running = asyncio.ensure_future(session.run())
    for unit in pictures(3):
        session.push(unit, asyncio.get_running_loop().time())
    await asyncio.sleep(65)
    session.close("stopped", "")
    await running
    told = spans.attributes("session.segment")
    assert [each["session.frames_in"] for each in told] == [3, 0, 0]
    assert [each["session.publisher"] for each in told] == ["silent"] * 3


@pytest.mark.looptime
async def test_a_session_that_never_had_a_runner_writes_none(spans: Spans) -> None:
    session = BridgeSession(
        Identity("ses_a", "str_a", "acme", "effects", complete=False, traceparent=TRACEPARENT),
        registry=Registry(),
        outbox=cast("Any", Disk()),
        settings=IngestSettings(stream_secret="x" * 16),
        now_s=asyncio.get_running_loop().time,
    )
    running = asyncio.ensure_future(session.run())
    await asyncio.sleep(40)
    session.close("start_failed", "no slot")
    await running
    assert spans.named("session.segment") == []
