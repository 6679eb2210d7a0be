"""How a session is and how far it has come, as the wire has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protos.ingest.v1 import bridge_pb2

if TYPE_CHECKING:
    from services.ingest.bridge.session import BridgeSession


def report_of(session: BridgeSession, now_s: float) -> bridge_pb2.BridgeReport:
    fps_in, fps_out = session.figures.rates.now(now_s)
    heard, outputs, usage = session.heard, session.outputs, session.usage
    out_at_s = outputs.out_at_s
    report = bridge_pb2.BridgeReport(
        publisher=session.publisher().value,  # type: ignore[arg-type]  # the enum's values are the wire's
        session_ms=session.session_ms,
        delivered_ms=usage.meter.delivered_ms,
        paused_ms=usage.meter.paused_ms,
        frames_in=session.frames_in,
        frames_out=session.frames_out,
        frames_dropped=session.frames_dropped,
        fps_in=fps_in,
        fps_out=fps_out,
        output_age_ms=-1 if out_at_s is None else round((now_s - out_at_s) * 1000),
        input_age_ms=session.presence.input_age_ms(now_s),
        applied_revision=heard.applied_revision,
        applied_pts=heard.applied_pts,
        paid_until_ms=usage.paid_until_ms or 0,
        latency_ms=outputs.under_way.transit_s * 1000,
        drained=session.drained,
        credit_exhausted=usage.exhausted,
        fault=session.fault,
        health=heard.health.state if heard.health else "",
        health_cause=heard.health.cause if heard.health else "",
        progress_age_ms=heard.progress_age_ms(now_s),
        refused_revisions=heard.refused_revisions,
        position=position_of(session),
    )
    outputs.describe(report)
    return report


def position_of(session: BridgeSession) -> bridge_pb2.Position:
    """Where a bridge that takes the session over goes on."""
    meter = session.usage.meter
    return bridge_pb2.Position(
        in_pts=session.outputs.in_pts,
        out_pts=session.outputs.out_pts,
        session_ms=session.session_ms,
        delivered_ms=meter.delivered_ms,
        paused_ms=meter.paused_ms,
    )
