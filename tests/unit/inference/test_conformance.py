"""The pipelines that need no weights keep what the platform asks of everybody's."""

from __future__ import annotations

import pytest

from services.inference.engine.pipelines.effects import Effects
from services.inference.engine.pipelines.passthrough import Passthrough
from sluice.conformance import Plan, check
from sluice.pipeline import Pipeline

PLAN = Plan(work_size=(128, 128), leak_frames=300, patience_s=3)


@pytest.mark.parametrize("pipeline", [Passthrough, Effects])
def test_it_keeps_what_the_platform_relies_on(pipeline: type[Pipeline]) -> None:
    report = check(pipeline, plan=PLAN)
    assert report.passed, str(report)
