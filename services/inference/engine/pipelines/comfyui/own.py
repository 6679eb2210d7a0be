"""A workflow that is run here, for a pipeline's thread; with other constants it is another one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from services.inference.engine.pipelines.comfyui.checking import check, steered
from services.inference.engine.pipelines.comfyui.conversion import Converted
from services.inference.engine.pipelines.comfyui.declarations import Kind
from services.inference.engine.pipelines.comfyui.execution import Execution, Outcome, Picture
from services.inference.engine.pipelines.comfyui.plan import compiled
from services.inference.engine.pipelines.comfyui.static_results import StaticResults


def _nobody(_stage: str, _fraction: float) -> None:
    """Take note of nothing."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What workflows are run with here."""

    kinds: Mapping[str, Kind]
    results: StaticResults


class OwnRun:
    """A workflow at work here."""

    def __init__(
        self,
        bench: Bench,
        converted: Converted,
        changes: Mapping[str, Any],
        progress: Callable[[str, float], None] = _nobody,
    ) -> None:
        """Check it and run what no frame reaches. Raises WorkflowError, NodeFailedError."""
        self._bench = bench
        self._converted = converted
        workflow = steered(converted.workflow, changes, bench.kinds)
        now = replace(converted, workflow=workflow)
        self.execution = Execution.of(compiled(now, check(now, bench.kinds)), bench.results, progress)

    @property
    def nodes(self) -> int:
        return self.execution.plan.nodes

    def steered(self, changes: Mapping[str, Any]) -> OwnRun:
        """The same with other constants. Raises WorkflowError, NodeFailedError."""
        return OwnRun(self._bench, self._converted, changes)

    def frame(self, rgb: Picture) -> Outcome:
        """Run the workflow on a picture, uint8 (H, W, 3). Raises NodeFailedError."""
        return self.execution.frame(rgb)
