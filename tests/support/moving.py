"""A session among played neighbours on its way from runner to runner: what is done to it, and seen of it."""

from __future__ import annotations

from typing import Any, Final

from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from tests.support.session_manager import SESSION, STREAM, Neighbourhood, Replica, until

SlotReport: Final = runner_pb2.SlotReport
FAILED: Final = SlotReport.STATE_FAILED


async def started(
    around: Neighbourhood, one: Replica, session: str = SESSION, stream: str = STREAM
) -> pb.Session:
    """A session whose pictures come back."""
    await one.create(id=stream)
    around.publish(session)
    await one.start(around.bridge.address, session, stream)
    around.bridge.sessions[session].see(
        frames_in=10, output_age_ms=0, position=bridge_pb2.Position(in_pts=9000, out_pts=6000)
    )
    return await one.reaches(pb.PHASE_LIVE, session)


def stall(around: Neighbourhood, ms: int, session: str = SESSION, **facts: Any) -> None:
    """What the bridge sees of a runner that shows nothing any more."""
    around.bridge.sessions[session].see(stalled_ms=ms, output_age_ms=ms, **facts)


async def gives_up(around: Neighbourhood) -> None:
    around.runner.say(FAILED, "engine_crashed", "at frame 7")


def fill(around: Neighbourhood) -> None:
    """Let others hold every runner but the first."""
    for runner in around.runners[1:]:
        around.router.held[runner.name] = "ses_other00000"


async def moved(one: Replica, to: str, session: str = SESSION) -> pb.Session:
    async def look() -> pb.Session | None:
        record = await one.session(session)
        at_rest = record.phase != pb.PHASE_MIGRATING and not record.HasField("next")
        return record if record.runner == to and at_rest else None

    return await until(look)


async def held(around: Neighbourhood, *runners: str) -> None:
    """Wait until exactly these are held, and nothing is attached elsewhere."""

    async def look() -> bool:
        attached = {runner.name for runner in around.runners if runner.session}
        return set(around.router.held) == set(runners) and attached <= set(runners)

    await until(look)
