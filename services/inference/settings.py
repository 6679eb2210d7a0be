"""What the inference service can be told, and why each default is what it is."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from services.common.settings import ServiceSettings, config, host_port


class InferenceSettings(ServiceSettings):
    """`SLUICE_INFERENCE_*`."""

    model_config = config("inference")

    listen: str = Field("127.0.0.1:7004", description="gRPC of `Runner`, host:port.")
    address: str = Field(
        "",
        description="host:port at which others reach this runner; the pod's in the chart. Empty: `listen`.",
    )
    runner: str = Field(
        "",
        pattern="^([a-z0-9-]{1,60})?$",
        description="This runner's name, a key in NATS; the pod's name in the chart. Empty: from `instance`.",
    )
    pipelines: str = Field(
        "effects,passthrough",
        min_length=1,
        description="What the engine loads at its start: built-in names, or module:Class, comma-separated.",
    )
    models: str = Field(
        "",
        description="Where the weights of models lie, as `sluice models` keeps them; a volume in the chart. "
        "Empty: where that command does.",
    )
    slots: int = Field(
        1, ge=1, le=64, description="Streams at a time; above 1 for pipelines that share the device well."
    )
    region: str = Field("local", description="Where this runner is; a wish that the router honours.")
    gpu_class: str = Field("cpu", description="What computes, as requirements name it; cpu without a GPU.")
    labels: dict[str, str] = Field({}, description="JSON object; more facts for the router's requirements.")
    engine_start_timeout_s: float = Field(
        60.0,
        gt=0,
        description="An engine not ready by then is killed; above the slowest pipeline's load.",
    )
    hang_after_s: float = Field(
        10.0,
        gt=0,
        description="An engine that showed frames and shows none for so long, though input flows, is killed; "
        "above the longest reload of a pipeline.",
    )
    bridge_lost_after_s: float = Field(
        10.0,
        gt=0,
        description="A session whose bridge cannot be reached for so long fails; above a network's hiccup.",
    )
    detach_timeout_s: float = Field(
        3.0,
        gt=0,
        description="An engine that holds a slot longer is killed, for Detach promises a free one.",
    )

    min_video_kbps: int = Field(
        100,
        ge=50,
        description="The output is never encoded with less, whatever the bridge asks for; below, nobody can"
        " tell what 512x512 shows.",
    )
    max_video_kbps: int = Field(
        8000,
        ge=100,
        description="Nor with more: what a tenth of a bit per pixel is for 1080p at 30 fps, and some.",
    )

    @model_validator(mode="after")
    def _check_bit_rates(self) -> InferenceSettings:
        if self.min_video_kbps > self.max_video_kbps:
            raise ValueError("min_video_kbps is above max_video_kbps")
        return self

    @model_validator(mode="after")
    def _check_address(self) -> InferenceSettings:
        for listen in filter(None, (self.listen, self.address)):
            host_port(listen)
        return self

    def runner_name(self, instance: str) -> str:
        """The setting, else `instance` made fit to be a key."""
        return self.runner or re.sub(r"[^a-z0-9-]+", "-", instance.lower()).strip("-")[:60] or "runner"
