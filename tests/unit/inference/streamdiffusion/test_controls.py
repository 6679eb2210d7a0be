from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from services.inference.engine.pipelines.streamdiffusion.controls import (
    NEED_WEIGHTS,
    PROCESSORS,
    Picture,
    Step,
    latent_feedback,
    through,
)


def scene(height: int = 120, width: int = 160) -> Picture:
    """A red square and a dark line, two pixels wide, on a bright ramp."""
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = np.linspace(150, 230, width).astype(np.uint8)[:, None]
    picture[height // 4 : height // 2, width // 8 : width // 3] = (200, 30, 30)
    picture[:, width * 3 // 4 : width * 3 // 4 + 2] = 20
    return picture


def plain(value: int = 90, height: int = 64, width: int = 64) -> Picture:
    return np.full((height, width, 3), value, np.uint8)


def noisy(height: int = 64, width: int = 96) -> Picture:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def made(kind: str, rgb: Picture, made_last: Picture | None = None, **values: Any) -> Picture:
    return Step.of(kind, values)(rgb, made_last)


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("size", [(64, 64), (512, 384), (33, 47), (2, 2), (1, 1)])
def test_a_picture_stays_one(kind: str, size: tuple[int, int]) -> None:
    rgb = noisy(*size)
    before = rgb.copy()
    after = made(kind, rgb, plain(10, *size))
    assert after.dtype == np.uint8
    expected = tuple(2 * side for side in size) if kind == "upscale" else size
    assert after.shape == (*expected, 3)
    assert np.array_equal(rgb, before), "a frame is not written into"


@pytest.mark.parametrize("kind", PROCESSORS)
def test_every_limit_of_a_parameter_can_be_used(kind: str) -> None:
    for name, param in PROCESSORS[kind].params.items():
        assert param.problem() is None, name
        for value in (param.minimum, param.maximum, *param.choices):
            if value is not None:
                assert made(kind, scene(), plain(), **{name: value}).dtype == np.uint8


def test_the_names_are_those_of_the_daydream_api() -> None:
    assert sorted((*PROCESSORS, *NEED_WEIGHTS)) == [
        *("blur", "canny", "depth", "depth_tensorrt", "external", "feedback", "hed", "lineart"),
        *("mediapipe_pose", "mediapipe_segmentation", "openpose", "passthrough", "pose_tensorrt"),
        *("realesrgan_trt", "sharpen", "soft_edge", "standard_lineart", "temporal_net_tensorrt", "upscale"),
    ]


def test_steps_with_the_same_values_are_equal_however_they_were_said() -> None:
    assert Step.of("canny", {"low_threshold": 100.0}) == Step.of("canny", {"high_threshold": 200.0})
    assert Step.of("canny", {"low_threshold": 50}) != Step.of("canny", {})


def test_processors_in_a_row_each_get_what_the_one_before_made() -> None:
    steps = Step.of("blur", {}), Step.of("canny", {})
    assert np.array_equal(through(steps, scene()), made("canny", made("blur", scene())))
    assert through((), scene()).tobytes() == scene().tobytes()


@pytest.mark.parametrize("kind", ["passthrough", "external"])
def test_passing_through_changes_nothing(kind: str) -> None:
    assert np.array_equal(made(kind, noisy()), noisy())


def test_blur_takes_detail_away_and_keeps_the_brightness() -> None:
    slight, strong = (made("blur", noisy(), blur_intensity=sigma) for sigma in (0.5, 5))
    assert noisy().std() > slight.std() > strong.std()
    assert strong.mean() == pytest.approx(noisy().mean(), abs=1)


def test_an_even_kernel_is_made_odd() -> None:
    assert np.array_equal(made("blur", noisy(), kernel_size=4), made("blur", noisy(), kernel_size=5))


def test_canny_finds_the_edges_that_its_thresholds_allow() -> None:
    edges = made("canny", scene())
    assert set(np.unique(edges)) == {0, 255}
    line = edges[90, :, 0]
    assert abs(int(np.flatnonzero(line).mean()) - 120) <= 1, "of the dark line; the ramp is none"
    assert not made("canny", scene(), low_threshold=1000, high_threshold=1000).any()
    assert made("canny", noisy(), low_threshold=10, high_threshold=20).mean() > made("canny", noisy()).mean()


@pytest.mark.parametrize("kind", ["canny", "soft_edge", "standard_lineart"])
def test_where_there_is_nothing_there_is_no_line(kind: str) -> None:
    assert not made(kind, plain()).any()


def test_soft_edges_are_soft_and_brightest_at_the_edge() -> None:
    edges = made("soft_edge", scene())[:, :, 0].astype(int)
    assert edges.max() == 255
    assert edges[90, 119:123].max() > 200
    assert edges[90, 20:100].max() < 10
    assert len(np.unique(edges)) > 50


def test_line_art_draws_what_is_darker_than_its_surroundings() -> None:
    lines = made("standard_lineart", scene())
    assert lines[90, 120:122].min() > 100
    assert lines[90, 20:100].max() < 10
    bright = 255 - scene()
    assert made("standard_lineart", bright)[90, 120:122].max() < 10
    faint = plain(200)
    faint[:, 30:32] = 190
    assert made("standard_lineart", faint, intensity_threshold=50).max() <= 255 / 2


def test_sharpening_makes_edges_steeper_and_leaves_planes_alone() -> None:
    step = plain(100)
    step[:, 32:] = 150
    soft = np.asarray(cv2.GaussianBlur(step, (0, 0), 2), np.uint8)
    sharp = made("sharpen", soft, edge_enhancement=0, detail_boost=0)
    assert (
        np.abs(np.diff(sharp[32, :, 0].astype(int))).max() > np.abs(np.diff(soft[32, :, 0].astype(int))).max()
    )
    assert np.array_equal(made("sharpen", plain()), plain())
    assert np.array_equal(
        made("sharpen", noisy(), sharpen_intensity=0, edge_enhancement=0, detail_boost=0, noise_reduction=0),
        noisy(),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"sharpen_intensity": 3},
        {"unsharp_radius": 3},
        {"edge_enhancement": 1.5},
        {"detail_boost": 1},
        {"noise_reduction": 0.5},
        {"multi_scale": False},
    ],
)
def test_each_of_its_parameters_does_something(change: dict[str, Any]) -> None:
    assert not np.array_equal(made("sharpen", scene(), **change), made("sharpen", scene()))


def test_feedback_mixes_in_what_was_made_last() -> None:
    assert np.array_equal(made("feedback", plain(100), plain(200), feedback_strength=0.25), plain(125))
    assert np.array_equal(made("feedback", plain(100), plain(200), feedback_strength=0), plain(100))
    assert np.array_equal(made("feedback", plain(100), plain(200), feedback_strength=1), plain(200))
    assert np.array_equal(made("feedback", plain(100), None), plain(100)), "the first has none before it"
    assert np.array_equal(made("feedback", plain(100), plain(200, 32, 16)), plain(150)), "of any size"


@pytest.mark.parametrize(
    ("factor", "size"), [(1, (64, 96)), (1.5, (96, 144)), (2, (128, 192)), (4, (256, 384)), (1.01, (64, 96))]
)
def test_upscaling_makes_sides_that_an_encoder_takes(factor: float, size: tuple[int, int]) -> None:
    assert made("upscale", noisy(), scale_factor=factor).shape == (*size, 3)


def test_upscaling_the_nearest_way_repeats_pixels() -> None:
    twice = made("upscale", noisy(), algorithm="nearest")
    assert np.array_equal(twice[::2, ::2], noisy())
    assert np.array_equal(twice[1::2, 1::2], noisy())
    assert not np.array_equal(made("upscale", noisy(), algorithm="lanczos"), twice)


def test_latents_are_fed_back_by_their_share() -> None:
    latent, before = torch.full((1, 4, 8, 8), 2.0), torch.full((1, 4, 8, 8), -2.0)
    assert torch.allclose(latent_feedback(latent, before, 0.15), torch.full((1, 4, 8, 8), 1.4))
    assert latent_feedback(latent, None, 0.15) is latent
    assert latent_feedback(latent, before, 0.0) is latent
    assert torch.equal(latent_feedback(latent, before, 1.0), before)


def test_latents_that_are_fed_back_for_long_come_to_rest() -> None:
    still, last = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    for _ in range(40):
        last = latent_feedback(still, last, 0.4)
    assert torch.allclose(last, still)
