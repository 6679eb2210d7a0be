"""The router's settings: `SLUICE_ROUTER_*`."""

from __future__ import annotations

from pydantic import Field

from services.common.settings import ServiceSettings, config


class RouterSettings(ServiceSettings):
    """Read once in `__main__`; the three times are related: a heartbeat a second, three of them missed."""

    model_config = config("router")

    listen: str = Field("127.0.0.1:7001", description="gRPC, host:port. 0.0.0.0:7001 in the chart.")
    runner_stale_after_s: float = Field(
        3.0,
        gt=1,
        description="Seconds without a heartbeat after which a runner is not granted: three missed of 1 Hz.",
    )
    link_settle_s: float = Field(
        3.0,
        ge=0,
        description="Seconds for which our own link to NATS must be up before a silent runner counts as "
        "lost; not below runner_stale_after_s, or every reconnection loses the fleet.",
    )
    choose_among: int = Field(
        16,
        ge=1,
        description="Runners, the best and about as good, among which one is drawn: 1 makes all routers "
        "race for the same.",
    )
    max_waiters: int = Field(
        1000,
        ge=1,
        description="Grants that may wait in this process; one more is refused at once. Bounds memory, and "
        "the time a change of the fleet takes to be offered to everybody.",
    )
