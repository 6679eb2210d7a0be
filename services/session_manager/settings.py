"""What the session-manager can be told, and why each default is what it is."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings, config


class SessionManagerSettings(ServiceSettings):
    """`SLUICE_SESSION_MANAGER_*`."""

    model_config = config("session_manager")

    listen: str = Field("127.0.0.1:7002", description="gRPC, host:port.")
    router_address: str = Field("127.0.0.1:7001", description="The router; a headless service in a cluster.")
    billing_address: str = Field("127.0.0.1:7003", description="Billing; a headless service in a cluster.")
    slice_s: float = Field(
        30.0,
        gt=1,
        le=3600,
        description="Credit reserved ahead. Longer: fewer ledger writes, more money held.",
    )
    overdraft_s: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="How long a session runs past its paid time while billing is away, at our risk.",
    )
    grant_wait_s: float = Field(
        3.0,
        ge=0,
        le=300,
        description="How long a start waits for a slot before it is refused, unless its stream says so.",
    )
    call_timeout_s: float = Field(
        5.0,
        gt=0,
        le=60,
        description="Bound of one call to another service; a wait for a slot comes on top of it.",
    )
    attach_timeout_s: float = Field(
        10.0, gt=0, le=600, description="Bound of one attach; a warm engine needs milliseconds."
    )
    runner_lost_after_s: float = Field(
        3.0, gt=0, le=60, description="A runner that says nothing of its session for so long is asked anew."
    )
    failover_within_s: float = Field(
        30.0,
        gt=0,
        le=600,
        description="How long a session whose runner failed waits for another one before it ends.",
    )
    bridge_lost_after_s: float = Field(
        5.0, gt=0, le=60, description="An ingest process that does not answer for so long is lost."
    )
    publisher_grace_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="How long a session whose ingest process is lost waits for its publisher to come back"
        " through another one; equal to ingest's, below a runner's patience with its bridge.",
    )
    first_output_within_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="A session whose input flows but that never shows a frame ends then, counted from when"
        " its runner last said that it loads.",
    )
    load_within_s: float = Field(
        1800.0,
        gt=0,
        le=86_400,
        description="And then even if its runner still says so: above the compilation of a large model.",
    )
    max_session_s: float = Field(0.0, ge=0, description="Longest session; 0 sets no end.")
    replica_ttl_s: int = Field(
        3,
        ge=2,
        le=60,
        description="A replica not renewed for so long is dead; its sessions are adopted then.",
    )
    keep_ended_s: int = Field(
        86_400, ge=60, description="How long the record of an ended session is kept for questions."
    )
    max_streams_per_tenant: int = Field(1000, ge=1, description="Durable streams a tenant may have.")
