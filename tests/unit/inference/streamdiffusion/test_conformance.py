from __future__ import annotations

import pytest

from services.inference.engine.pipelines.streamdiffusion.pipeline import StreamDiffusion
from sluice.conformance import Plan, check
from sluice.pipeline import Setup
from tests.unit.inference.streamdiffusion.driving import SIDE

PLAN = Plan(
    sizes=((64, 64), (97, 16)),
    work_size=(SIDE, SIDE),
    frames=3,
    settle_frames=5,
    leak_frames=20,
    chances=5,
    patience_s=1,
)


@pytest.mark.timeout(180)
def test_the_pipeline_keeps_what_the_platform_relies_on(kept: Setup) -> None:
    report = check(
        StreamDiffusion,
        setup=kept,
        params={"model_id": "sd-turbo", "width": SIDE, "height": SIDE},
        plan=PLAN,
    )
    assert report.passed, str(report)
