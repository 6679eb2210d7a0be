"""`python -m tests.chaos.harness.platform`: the local stack with faults built in, as `deploy.local` runs it.

The rule it keeps: only addresses, replicas and clocks differ from what `make run` starts, and that ingest is
looked at from within.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from deploy.local.__main__ import Stack, main
from deploy.local.processes import Program
from deploy.local.settings import LocalSettings

INGEST: Final = "SLUICE_INGEST_"


class Faults(BaseSettings):
    """`SLUICE_CHAOS_*`, all JSON, all by the name under which a process's lines appear."""

    model_config = SettingsConfigDict(env_prefix="SLUICE_CHAOS_", frozen=True, extra="forbid")

    settings: dict[str, dict[str, str]] = Field({}, description="What a process is told instead.")
    replicas: dict[str, int] = Field({}, description="How many more there are of a service.")
    clocks: dict[str, str] = Field({}, description="The file that says how wrong a process's clock is.")
    witness: str = Field("", description="Where ingest's processes write what passes through them.")


class FaultyStack(Stack):
    """Which programs make up the platform, with what is wrong about them."""

    def __init__(self, settings: LocalSettings, faults: Faults) -> None:
        super().__init__(settings)
        self._faults = faults

    def services(self, key: str) -> list[Program]:
        """Every service, and its replicas on the ports above its own."""
        programs = super().services(key)
        for name, count in self._faults.replicas.items():
            (original,) = (program for program in programs if program.name == name)
            programs += [self._replica(original, index) for index in range(1, count + 1)]
        return programs

    def _service(self, service: str, *, name: str = "", **settings: str) -> Program:
        called = name or service.replace("_", "-")
        made = super()._service(service, name=name, **settings)
        return self._at_fault(made, called, f"SLUICE_{service.upper()}_")

    def _replica(self, original: Program, index: int) -> Program:
        called = f"{original.name}-{index}"
        prefix = f"SLUICE_{original.name.upper().replace('-', '_')}_"
        environment = dict(original.environment)
        for key, value in original.environment.items():
            if key.endswith("_LISTEN"):
                host, _, port = value.rpartition(":")
                environment[key] = f"{host}:{int(port) + index}"
            elif key.endswith("_PATH"):
                environment[key] = f"{value}.{index}"
        environment |= {f"{prefix}METRICS_LISTEN": self._at(self._metrics), "SLUICE_PROGRAM": called}
        self._metrics += 1
        return self._at_fault(replace(original, name=called, environment=environment), called, prefix)

    def _at_fault(self, program: Program, called: str, prefix: str) -> Program:
        told: Mapping[str, str] = self._faults.settings.get(called, {})
        environment = {
            **program.environment,
            **{f"{prefix}{key.upper()}": text for key, text in told.items()},
        }
        around: list[str] = []
        if called in self._faults.clocks:
            around += ["tests.chaos.harness.skewed", self._faults.clocks[called]]
        if prefix == INGEST and self._faults.witness:
            around += ["tests.chaos.harness.witness", self._faults.witness]
        command = [sys.executable, "-m", *around, program.command[-1]] if around else program.command
        return replace(program, command=command, environment=environment)


if __name__ == "__main__":
    asyncio.run(main(FaultyStack(LocalSettings(), Faults())))
