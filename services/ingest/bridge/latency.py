"""Where the time of a session's newest pictures went, as the wire has it."""

from __future__ import annotations

from protos.ingest.v1 import bridge_pb2
from services.ingest.bridge.stages import Stages


def latency_of(stages: Stages) -> bridge_pb2.Latency:
    """Stage by stage and in total; empty while no picture is known from end to end."""
    found = stages.report()
    if found is None:
        return bridge_pb2.Latency()
    by_stage, total = found
    return bridge_pb2.Latency(
        pictures=total.pictures,
        stages=[
            bridge_pb2.StageLatency(
                stage=name, p50_us=round(times.p50_s * 1e6), p95_us=round(times.p95_s * 1e6)
            )
            for name, times in [*by_stage.items(), ("total", total)]
        ],
    )
