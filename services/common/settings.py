"""Settings: `SLUICE_<SERVICE>_*` variables, read once in `__main__`, passed on as frozen values."""

from __future__ import annotations

import sys
from typing import Final, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

PREFIX: Final = "SLUICE_"


def config(service: str) -> SettingsConfigDict:
    """The configuration of a service's settings: `SLUICE_ROUTER_LISTEN` and so on, as the chart sets them."""
    return SettingsConfigDict(env_prefix=f"{PREFIX}{service.upper()}_", frozen=True, extra="forbid")


class ServiceSettings(BaseSettings):
    """What every service has. A subclass sets `model_config = config("<service>")`."""

    nats_url: str = Field("nats://127.0.0.1:4222", description="Where NATS with JetStream is.")
    nats_replicas: int = Field(
        1, ge=1, le=5, description="JetStream replicas of what this service creates; 3 in a cluster."
    )
    metrics_listen: str = Field("127.0.0.1:9464", description="Prometheus and health, host:port.")
    otlp_endpoint: str = Field(
        "", description="OTLP/gRPC collector, http://host:4317; empty exports no traces."
    )
    log_format: str = Field(
        "json", pattern="^(json|console)$", description="json for machines, console for people."
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")
    instance: str = Field(
        "",
        description="This process's name in traces, metrics and ownership; the pod's name in the chart. "
        "Empty: the host's name and process id.",
    )
    shutdown_grace_s: float = Field(
        5.0,
        gt=0,
        description="How long open calls may take at the end; "
        "below the chart's terminationGracePeriodSeconds.",
    )


S = TypeVar("S", bound=ServiceSettings)


def read(settings: type[S]) -> S:
    """Read the settings from the environment, or exit with status 2 and one line per wrong variable."""
    try:
        return settings()
    except SettingsError as error:  # a variable that should be JSON and is not
        sys.stderr.write(f"{error}: {error.__cause__}\n")
        raise SystemExit(2) from None
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        for problem in error.errors():
            name = prefix + "_".join(str(part) for part in problem["loc"]).upper()
            sys.stderr.write(f"{name}: {problem['msg']} (got {problem.get('input')!r})\n")
        raise SystemExit(2) from None


def host_port(listen: str) -> tuple[str, int]:
    """Split `host:port`; IPv6 hosts are in brackets."""
    host, _, port = listen.rpartition(":")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - an empty host means every interface
