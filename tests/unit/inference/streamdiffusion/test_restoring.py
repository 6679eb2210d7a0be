from __future__ import annotations

from typing import Any

import pytest

from tests.unit.inference.streamdiffusion.driving import Open, Picture, same


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"guidance_scale": 2.0},
        {"use_denoising_batch": False},
        {"motion_noise": 1.0},
        {"latent_postprocessing": {"processors": [{"type": "latent_feedback"}]}},
    ],
    ids=str,
)
def test_a_restored_stream_goes_on_as_the_one_before(
    opened: Open, pictures: list[Picture], changes: dict[str, Any]
) -> None:
    one, other = opened(**changes), opened(**changes)
    one.show_all(pictures[:4])
    snapshot = one.pipeline.snapshot()
    assert snapshot is not None
    assert len(snapshot) <= 1 << 20
    other.pipeline.restore(snapshot)
    other.frames = one.frames
    assert same(other.show_all(pictures[4:]), one.show_all(pictures[4:]))


def test_a_change_under_way_goes_on_after_a_restart(opened: Open, pictures: list[Picture]) -> None:
    one = opened(transition_s=1.0)
    one.show_all(pictures[:3])
    one.change(prompt="cats")
    one.show_all(pictures[:4])
    snapshot = one.pipeline.snapshot()
    other = opened(transition_s=1.0, prompt="cats")
    assert snapshot is not None
    other.pipeline.restore(snapshot)
    other.frames = one.frames
    assert same(other.show_all(pictures), one.show_all(pictures))


def test_a_snapshot_of_other_steps_is_run_in_anew(opened: Open, pictures: list[Picture]) -> None:
    one = opened()
    one.show_all(pictures[:4])
    snapshot = one.pipeline.snapshot()
    assert snapshot is not None
    other, fresh = opened(seed=3), opened(seed=3)
    other.pipeline.restore(snapshot)
    assert same(other.show_all(pictures), fresh.show_all(pictures))


def test_a_snapshot_that_cannot_be_used_is_refused(opened: Open, pictures: list[Picture]) -> None:
    one = opened()
    assert one.pipeline.snapshot() is None  # nothing has been painted yet
    one.show_all(pictures[:4])
    snapshot = one.pipeline.snapshot()
    assert snapshot is not None
    wide, other = opened(width=128), opened()
    with pytest.raises(ValueError, match="another size"):
        wide.pipeline.restore(snapshot)
    with pytest.raises(ValueError, match="cannot be read"):
        other.pipeline.restore(snapshot[:50])
    assert same(other.show_all(pictures), opened().show_all(pictures))
