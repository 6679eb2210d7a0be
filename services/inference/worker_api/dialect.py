"""What happens to a session in the words of gateways: PyTrickle's events, ai-runner's status. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

STREAM_EVENTS: Final = "ai_stream_events"
HEARTBEAT: Final = "stream_heartbeat"
# Our health in ai-runner's states.
STATES: Final[Mapping[str, str]] = {
    "loading": "LOADING",
    "idle": "OFFLINE",
    "online": "ONLINE",
    "degraded_input": "DEGRADED_INPUT",
    "degraded_inference": "DEGRADED_INFERENCE",
    "error": "ERROR",
}


def wrapped(event: Mapping[str, object], queue: str = STREAM_EVENTS) -> dict[str, object]:
    return {"event": event, "queue_event_type": queue}


@dataclass(slots=True)
class Rate:
    """A count's pace, from two looks at it that are not too close together."""

    fps: float = 0.0
    _count: int = 0
    _at_s: float | None = None

    def count(self, total: int, now_s: float) -> None:
        if self._at_s is not None and now_s > self._at_s:
            self.fps = round((total - self._count) / (now_s - self._at_s), 2)
        self._count, self._at_s = total, now_s


@dataclass(slots=True)
class StreamState:
    """What is known of one stream; times are in milliseconds since 1970, as all of theirs."""

    pipeline: str
    started_ms: int
    params: Mapping[str, Any] = field(default_factory=dict)
    state: str = "LOADING"
    state_ms: int = 0
    input_ms: int | None = None
    output_ms: int | None = None
    params_ms: int | None = None
    error: str | None = None
    error_ms: int | None = None
    restart_ms: int | None = None
    restarts: int = 0
    ingress: Rate = field(default_factory=Rate)
    egress: Rate = field(default_factory=Rate)

    def enter(self, state: str, now_ms: int) -> bool:
        """Whether this is news."""
        if state == self.state:
            return False
        self.state, self.state_ms = state, now_ms
        return True

    def update(self, params: Mapping[str, Any], now_ms: int) -> None:
        self.params, self.params_ms = params, now_ms

    def failed(self, message: str, now_ms: int) -> None:
        self.error, self.error_ms = message, now_ms

    def fps(self) -> dict[str, float]:
        """Sound is not counted."""
        return {
            "ingress_video_fps": self.ingress.fps,
            "ingress_audio_fps": 0.0,
            "egress_video_fps": self.egress.fps,
            "egress_audio_fps": 0.0,
        }

    def status(self, now_ms: int) -> dict[str, object]:
        """ai-runner's status, which a gateway keeps for whoever asks it."""
        text = json.dumps(self.params, sort_keys=True)
        return {
            "type": "status",
            "pipeline": self.pipeline,
            "start_time": self.started_ms,
            "state": self.state,
            "last_state_update_time": self.state_ms or self.started_ms,
            "input_status": {"last_input_time": self.input_ms, "fps": self.ingress.fps},
            "inference_status": {
                "last_output_time": self.output_ms,
                "fps": self.egress.fps,
                "last_params_update_time": self.params_ms,
                "last_params": dict(self.params),
                "last_params_hash": hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(),
                "last_error_time": self.error_ms,
                "last_error": self.error,
                "last_restart_time": self.restart_ms,
                "last_restart_logs": None,
                "restart_count": self.restarts,
            },
            "last_status_timestamp": now_ms,
            "timestamp": now_ms,
        }
