"""Sessions as our own API shows them: the record, and what is known of them at the moment.

The rule it keeps: what nobody could say in time is left out, and never guessed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import structlog

from protos.ingest.v1 import bridge_pb2
from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import SluiceError
from services.ingest import in_line
from services.ingest.bridge.session import BridgeSession
from services.ingest.faces.context import Core
from services.ingest.runner_news import condition
from services.ingest.times import iso, media_ms

log = structlog.get_logger()
LINE_WITHIN_S: Final = 1.0  # for the router to say who waits: it is only shown


@dataclass(frozen=True, slots=True)
class Known:
    """What others know of sessions: bridges of those that are elsewhere, the router of those that wait."""

    reports: Mapping[str, bridge_pb2.BridgeReport] = field(default_factory=dict)
    places: Mapping[str, router_pb2.QueuePlace] = field(default_factory=dict)

    def place(self, record: sessions_pb2.Session) -> dict[str, Any] | None:
        """Where a session that starts is in the line for a runner."""
        found = self.places.get(record.id)
        return None if found is None else in_line.place(found)


async def known_of(records: Sequence[sessions_pb2.Session], core: Core) -> Known:
    """Ask for what this process does not have itself, of all sessions at once and within a second."""
    elsewhere = [record for record in records if _here(record, core) is None]
    reports, places = await asyncio.gather(core.plane.reports(elsewhere), _line(records, core))
    return Known(reports, places)


async def _line(records: Sequence[sessions_pb2.Session], core: Core) -> Mapping[str, router_pb2.QueuePlace]:
    waiting = [record.id for record in records if record.phase == sessions_pb2.PHASE_ALLOCATING]
    if not waiting:
        return {}
    try:
        async with asyncio.timeout(LINE_WITHIN_S):
            return await core.plane.queue(waiting[0] if len(waiting) == 1 else "")
    except (SluiceError, TimeoutError) as error:
        log.info("the line is not known", error=type(error).__name__)
        return {}


def _here(record: sessions_pb2.Session, core: Core) -> BridgeSession | None:
    """The session, if its media passes here."""
    live = core.hub.of_stream(record.stream)
    return live if live is not None and live.identity.session == record.id else None


def session_object(record: sessions_pb2.Session, core: Core, known: Known) -> dict[str, Any]:
    """A session as our own API shows it; what its bridge knows is there while that can be asked."""
    ended_ms = record.ended_unix_ms or time.time_ns() // 1_000_000
    shown: dict[str, Any] = {
        "session": record.id,
        "stream": record.stream,
        "pipeline": record.pipeline,
        "phase": sessions_pb2.Phase.Name(record.phase).removeprefix("PHASE_").lower(),
        "end_reason": record.end_reason or None,
        "end_message": record.end_message or None,
        "degraded_by": record.degraded_by or None,
        "runner": record.runner or None,
        "created_at": iso(record.created_unix_ms),
        "ended_at": iso(record.ended_unix_ms) if record.ended_unix_ms else None,
        "age_s": max(0.0, (ended_ms - record.created_unix_ms) / 1000),
        "settled": record.settled,
        "micro_per_second": record.micro_per_second,
        "epoch": record.epoch,
        "queue": known.place(record),
        "move_wanted": record.move_wanted or None,
        "moving_to": record.next.runner if record.HasField("next") else None,
        "moves": [move_object(move) for move in record.moves],
    }
    live = _here(record, core)
    report = live.report() if live is not None else known.reports.get(record.id)
    if report is not None:
        shown |= _seen(record, report)
    if live is None:
        return shown
    push = core.pushes.state(record.id)
    return {
        **shown,
        "infer_ms": round(live.infer_ms, 1),
        **condition(live.heard),
        "viewers": core.viewing.of(record.stream),
        "rtmp_push": None if push is None else asdict(push),
    }


def move_object(move: sessions_pb2.Move) -> dict[str, Any]:
    """How a session went from one runner to another, and what viewers saw of it."""
    return {
        "at": iso(move.unix_ms),
        "from": getattr(move, "from"),
        "to": move.to,
        "why": move.why,
        "freeze_ms": move.freeze_ms,
        "lost": move.lost,
        "repeated": move.repeated,
    }


def _seen(record: sessions_pb2.Session, report: bridge_pb2.BridgeReport) -> dict[str, Any]:
    """What a bridge sees of a session."""
    return {
        "publisher": bridge_pb2.Publisher.Name(report.publisher).removeprefix("PUBLISHER_").lower(),
        "fps_in": round(report.fps_in, 2),
        "fps_out": round(report.fps_out, 2),
        "frames_in": report.frames_in,
        "frames_out": report.frames_out,
        "frames_dropped": report.frames_dropped,
        "latency_ms": round(report.latency_ms, 1),
        "delivered_ms": report.delivered_ms,
        "paused_ms": report.paused_ms,
        "cost_micro": record.micro_per_second * report.delivered_ms // 1000,
        "applied_revision": report.applied_revision,
        "applied_ms": media_ms(report.applied_pts) if report.applied_pts else None,
        "session_ms": report.session_ms,
        "paid_until_ms": report.paid_until_ms,
    }
