"""The pipeline that changes nothing: for measuring what the platform itself costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sluice.pipeline import Pipeline, VideoFrame


class Passthrough(Pipeline):
    """Every frame as it came."""

    name = "passthrough"
    version = "1.0"
    description = "Returns every frame as it came. No model."

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame
