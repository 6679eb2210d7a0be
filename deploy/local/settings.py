"""What the one-machine stack can be told: ports, where it keeps its state, how many runners."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LocalSettings(BaseSettings):
    """`SLUICE_LOCAL_*`."""

    model_config = SettingsConfigDict(env_prefix="SLUICE_LOCAL_", frozen=True, extra="forbid")

    state: Path = Field(
        Path(".sluice"), description="Databases, NATS's store and the credentials of the local tenant."
    )
    host: str = Field("127.0.0.1", description="Where everything listens.")
    nats_port: int = Field(4222, description="NATS.")
    http_port: int = Field(8000, description="Public HTTP.")
    trickle_port: int = Field(8001, description="Trickle between ingest and runners.")
    public_trickle_port: int = Field(8002, description="Trickle for clients.")
    rtmp_port: int = Field(1935, description="RTMP for publishers.")
    webrtc_port: int = Field(8189, description="UDP of every WebRTC connection.")
    bridge_port: int = Field(7000, description="gRPC of ingest.")
    router_port: int = Field(7001, description="gRPC of the router.")
    session_manager_port: int = Field(7002, description="gRPC of the session-manager.")
    billing_port: int = Field(7003, description="gRPC of billing.")
    runner_port: int = Field(7004, description="gRPC of the first runner; the others follow.")
    otlp_port: int = Field(4317, description="OTLP/gRPC of the place that keeps traces.")
    traces_port: int = Field(
        4319, description="HTTP of that place: Jaeger's query API v3, and what it keeps."
    )
    metrics_port: int = Field(9464, description="Prometheus of the first service; the others follow.")
    runners: int = Field(1, ge=1, le=16, description="CPU runners; one needs about one core.")
    open_to_loopback: bool = Field(
        True, description="Clients on this machine are the local tenant without sending its key."
    )
    pipelines: str = Field(
        "",
        description="What each runner loads: names, or module:Class, comma-separated. Empty: effects, "
        "comfyui, passthrough, and streamdiffusion where its packages and a model for it are.",
    )
    credit_micro: int = Field(
        10_000_000, ge=0, description="The local tenant's credit at its creation: 10 USD."
    )
    prices: str = Field("", description="JSON for billing; empty: its own default.")
    otlp_endpoint: str = Field(
        "",
        description="An OTLP/gRPC collector that gets the traces instead of the place that keeps them here; "
        "`SLUICE_INGEST_TRACES_URL` then says where `sluice trace` finds them.",
    )
    ready_within_s: float = Field(60.0, gt=0, description="How long the start may take.")
    stop_within_s: float = Field(
        10.0, gt=0, description="How long a process may take to end before it is killed."
    )
