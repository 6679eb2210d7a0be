"""What the inference service can be told, and why each default is what it is."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, SecretStr, model_validator

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
        description="What the engine loads at its start, comma-separated: installed pipelines by name (their "
        "entry points, group `sluice.pipelines`) or module:Class. One that does not load is left out.",
    )
    models: str = Field(
        "",
        description="Where the weights of models lie, as `sluice models` keeps them; a volume in the chart. "
        "Empty: where that command does.",
    )
    pipeline_defaults: dict[str, dict[str, Any]] = Field(
        {},
        description="JSON: this runner's defaults in place of the authors', by pipeline, such as "
        '{"streamdiffusion": {"model_id": "tiny"}}.',
    )
    device: str = Field(
        "auto",
        pattern="^(auto|cpu|cuda)$",
        description="What pipelines compute on; auto: the GPU if there is one that torch sees.",
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
        description="A pipeline that loads, prepares or is at its first frame for so long and tells of no "
        "progress hangs, and its engine is killed; above the longest silence of the slowest.",
    )
    hang_after_s: float = Field(
        10.0,
        gt=0,
        description="An engine that for so long answers nothing, is at one frame, or shows none though input "
        "flows, is killed; above the longest time that a pipeline takes for a frame.",
    )
    engine_memory_mb: int = Field(
        0,
        ge=0,
        description="An engine that uses more is killed, and its sessions begin again on another; a problem "
        "is told at 90 %. 0: as much as there is. In a container, below its limit.",
    )
    micro_per_second: int = Field(
        0,
        ge=0,
        description="What a second of a slot costs here, in millionths of the currency, for those who choose "
        "by price. 0: nobody said.",
    )
    bridge_lost_after_s: float = Field(
        40.0,
        gt=0,
        description="A session whose bridge cannot be reached, or has closed its channels, keeps its slot "
        "and its pipeline's state for so long, then fails; 10 s above ingest's `publisher_grace_s`, within "
        "which it may go on at another bridge.",
    )
    session_manager_address: str = Field(
        "",
        description="gRPC of `Sessions`, host:port: asked at SIGTERM to move the sessions away. Empty: they "
        "are only waited for.",
    )
    drain_s: float = Field(
        30.0,
        ge=0,
        description="How long a runner that got SIGTERM goes on with the sessions that it has; in the chart, "
        "with the pre-stop and twice the grace below terminationGracePeriodSeconds. SIGINT waits for nobody.",
    )
    detach_timeout_s: float = Field(
        3.0,
        gt=0,
        description="An engine that holds a slot longer is killed, for Detach promises a free one.",
    )

    codecs: Literal["auto", "cpu", "nvidia"] = Field(
        "auto",
        description="Who decodes and encodes: cpu is libav; nvidia is NVDEC and NVENC, or no start; auto"
        " tries these and takes what works, for some of NVIDIA's largest GPUs have no NVENC.",
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

    worker_listen: str = Field(
        "",
        description="PyTrickle's HTTP API, host:port (usually port 7005), with which gateways of others use "
        "this runner as a worker; empty: it is not served. Loopback or a trusted network: it reads and "
        "writes the URLs that it is given.",
    )
    worker_pipeline: str = Field(
        "",
        description="What every stream of such a gateway runs. Empty: what its request names in `model_id` "
        "or `params.pipeline`, else the first that is loaded.",
    )
    worker_token: SecretStr = Field(
        SecretStr(""),
        description="What such a gateway shows as its bearer token to start, stop or change a stream. "
        "Empty: nothing is asked for.",
    )

    container_url: str = Field(
        "",
        pattern="^(https?://.+)?$",
        description="Base URL of a container that speaks PyTrickle's HTTP API: it runs the sessions of this "
        "runner then, and there is no engine.",
    )
    container_capability: str = Field(
        "",
        pattern="^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
        description="The name under which clients ask for what the container does; required with its URL.",
    )
    container_description: str = Field("", description="What the container does, for those who choose.")
    container_params_schema: dict[str, Any] = Field(
        {"type": "object"},
        description="JSON Schema of the container's parameters, with their defaults. By default any object.",
    )
    container_processes_audio: bool = Field(
        False,
        description="Whether the container gets the sound and what it returns is heard; else the publisher's "
        "own sound goes round it.",
    )
    container_token: SecretStr = Field(
        SecretStr(""), description="The bearer token that the container asks for, if it does."
    )
    container_channels_listen: str = Field(
        "",
        description="Trickle channels for the container's control, events and data, host:port. Empty: a free "
        "port of the loopback, for a container that shares it.",
    )
    container_channels_url: str = Field(
        "",
        pattern="^(https?://.+)?$",
        description="Base URL at which the container reaches them. Empty: where they listen.",
    )
    container_start_timeout_s: float = Field(
        20.0,
        gt=0,
        description="How long a container may be busy or initializing before a session that was given to it "
        "fails; above the 7 s that PyTrickle takes to end the one before.",
    )
    container_lost_after_s: float = Field(
        10.0,
        gt=0,
        description="A container that does not answer for so long is lost, and its session fails; above the "
        "longest that an inference blocks its server.",
    )
    container_register_listen: str = Field(
        "",
        description="host:port for `POST /capability/register`, by which a container started with ORCH_URL "
        "brings its own URL and name, in place of `container_url`; empty: not served.",
    )
    container_register_secret: SecretStr = Field(
        SecretStr(""), description="What such a container sends as ORCH_SECRET; required to serve it."
    )

    @model_validator(mode="after")
    def _check_container(self) -> InferenceSettings:
        if self.container_url and not self.container_capability:
            raise ValueError("container_url needs container_capability")
        if self.container_register_listen and not self.container_register_secret.get_secret_value():
            raise ValueError("container_register_listen needs container_register_secret")
        if self.has_container and self.worker_listen:
            raise ValueError("a container's runner is no worker itself: one of container_ and worker_")
        if self.has_container and self.slots != 1:
            raise ValueError("a container serves one stream at a time: slots is 1")
        return self

    @property
    def has_container(self) -> bool:
        return bool(self.container_url or self.container_register_listen)

    @model_validator(mode="after")
    def _check_bit_rates(self) -> InferenceSettings:
        if self.min_video_kbps > self.max_video_kbps:
            raise ValueError("min_video_kbps is above max_video_kbps")
        return self

    @model_validator(mode="after")
    def _check_address(self) -> InferenceSettings:
        listens = (self.worker_listen, self.container_channels_listen, self.container_register_listen)
        for listen in filter(None, (self.listen, self.address, self.session_manager_address, *listens)):
            host_port(listen)
        return self

    def runner_name(self, instance: str) -> str:
        """The setting, else `instance` made fit to be a key."""
        return self.runner or re.sub(r"[^a-z0-9-]+", "-", instance.lower()).strip("-")[:60] or "runner"
