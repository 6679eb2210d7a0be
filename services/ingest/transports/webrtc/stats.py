"""How a connection stands, and why it ended, for whoever asks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from services.ingest.transports.webrtc.answer import Plan
from services.ingest.transports.webrtc.audience import Audience
from services.ingest.transports.webrtc.incoming import IncomingTrack
from services.ingest.transports.webrtc.outgoing import OutgoingTrack
from services.ingest.transports.webrtc.viewer import Viewer


@dataclass(frozen=True, slots=True)
class Ended:
    """Why a connection is over."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PeerStats:
    """One moment of a connection."""

    state: str  # new, connected, closed
    codecs: Mapping[str, str]
    converts: Mapping[str, str]
    rtt_ms: float | None
    loss_in: int  # packets that never came
    loss_out: float  # of what was sent lately, 0..1
    bytes_in: int
    bytes_out: int
    repeated: int  # packets that were sent again
    estimate_in_bps: int | None
    limit_out_bps: float | None


def conversions(plan: Plan, viewer: Viewer | None, audience: Audience | None) -> dict[str, str]:
    """What does not pass through as it is."""
    found = {}
    video = plan.receiving("video")
    if video is not None and video.format is not None and video.format.name != "H264":
        found["video_in"] = f"{video.format.name.lower()}->h264"
    if viewer is not None and audience is not None:
        if viewer.codec != "H264":
            found["video_out"] = f"h264->{viewer.codec.lower()}"
        if viewer.audio is not None and audience.converts_sound:
            found["sound_out"] = "aac->opus"
    return found


def measure(
    plan: Plan,
    *,
    state: str,
    converts: Mapping[str, str],
    incoming: Collection[IncomingTrack],
    outgoing: Collection[OutgoingTrack],
    viewer: Viewer | None,
) -> PeerStats:
    rtts = [track.rtt_s for track in outgoing if track.rtt_s is not None]
    estimates = [track.estimate_bps for track in incoming if track.estimate_bps is not None]
    return PeerStats(
        state=state,
        codecs={
            f"{line.media.kind}_{way}": line.format.name.lower()
            for line in plan.lines
            for way, there in (("in", line.receives), ("out", line.sends))
            if there and line.format is not None
        },
        converts=converts,
        rtt_ms=round(1000 * min(rtts), 1) if rtts else None,
        loss_in=sum(track.reception.lost for track in incoming),
        loss_out=max((track.loss for track in outgoing), default=0.0),
        bytes_in=sum(track.reception.bytes for track in incoming),
        bytes_out=sum(track.bytes for track in outgoing),
        repeated=sum(track.repeated for track in outgoing),
        estimate_in_bps=min(estimates, default=None),
        limit_out_bps=None if viewer is None else viewer.congestion.limit_bps,
    )
