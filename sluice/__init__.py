"""What people import and type: what authors of pipelines need, the client, and the command."""

from sluice.pipeline import (
    Apply,
    AudioFrame,
    Batcher,
    Json,
    Param,
    ParamError,
    Pipeline,
    Prompt,
    Setup,
    VideoFrame,
)

__all__ = [
    "Apply",
    "AudioFrame",
    "Batcher",
    "Json",
    "Param",
    "ParamError",
    "Pipeline",
    "Prompt",
    "Setup",
    "VideoFrame",
]
