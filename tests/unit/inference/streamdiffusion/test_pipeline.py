from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from services.inference.engine.pipelines.streamdiffusion.denoiser import Denoiser, Rows
from services.inference.engine.pipelines.streamdiffusion.painter import Painter
from sluice.pipeline import Setup, VideoFrame
from tests.unit.inference.streamdiffusion.driving import SIDE, TICKS, Open, Picture, Stream, apart, same

K = 3  # steps of the default t_index_list


def oracle(stream: Stream) -> None:
    """Let the U-Net predict exactly the noise of each step, so that what comes out is what went in."""
    painter = stream.pipeline._painter
    assert painter is not None

    class Knowing(Denoiser):
        def __init__(self, denoiser: Denoiser) -> None:
            self.batcher = denoiser.batcher

        def __call__(self, rows: Any) -> torch.Tensor:
            assert isinstance(painter, Painter)
            assert painter.denoising is not None
            steps = {step.timestep: index for index, step in enumerate(painter.denoising.steps)}
            return painter.denoising.noise[[steps[int(one)] for one in rows.timesteps]]

    assert painter._painting is not None
    painter._painting.brain.denoiser = Knowing(painter._painting.brain.denoiser)


class _Means:
    """An autoencoder whose latent is the mean colour of 8 x 8 points."""

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        latent = torch.nn.functional.avg_pool2d(pictures, 8)
        return torch.cat([latent, torch.zeros_like(latent[:, :1])], 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=8)


def heard(monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """What the U-Net is asked from now on."""
    asked: list[Rows] = []
    real = Denoiser.__call__

    def listening(self: Denoiser, rows: Rows) -> torch.Tensor:
        asked.append(rows)
        return real(self, rows)

    monkeypatch.setattr(Denoiser, "__call__", listening)
    return asked


def test_colours_come_back_exactly_and_two_frames_late_from_the_first_on(opened: Open) -> None:
    """With a U-Net that knows the noise, all that is left is ours: ranges, steps, rounding, order."""
    stream = opened()
    real = stream.pipeline._painter
    assert real is not None
    real._codec = _Means()  # type: ignore[assignment]
    brain = real._painting.brain  # type: ignore[union-attr]
    kept = brain.denoiser
    oracle(stream)
    charts = [
        np.tile(np.array([[[level, 255 - level, 17 * index]]], np.uint8), (SIDE, SIDE, 1))
        for index, level in enumerate(range(0, 256, 51))
    ]
    got = stream.show_all(charts)
    brain.denoiser = kept
    assert np.array_equal(got[0], charts[0])  # run in, so it is not of two frames that never were
    assert np.array_equal(got[1], charts[0])
    assert same(got[2:], charts[:-2])


def test_the_same_parameters_and_frames_make_the_same_pictures(opened: Open, pictures: list[Picture]) -> None:
    one, other = opened(), opened()
    first = one.show_all(pictures)
    assert same(first, other.show_all(pictures))
    assert not same(first, opened(seed=790).show_all(pictures))
    assert not np.array_equal(first[0], first[3])


def test_the_result_has_the_size_that_is_wanted_whatever_the_source_has(opened: Open) -> None:
    stream = opened(width=128, height=64)
    for shape in ((64, 64, 3), (48, 200, 3), (33, 17, 3), (720, 1280, 3)):
        assert stream.show(np.zeros(shape, np.uint8)).shape == (64, 128, 3)


def test_nobody_writes_into_the_source(opened: Open, pictures: list[Picture]) -> None:
    source = pictures[0].copy()
    source.flags.writeable = False
    stream = opened()
    made = stream.show(source)
    assert made is not source
    assert np.array_equal(source, pictures[0])


# --- sharing


def test_streams_share_one_model_and_one_call_and_get_what_they_would_alone(
    opened_afresh: Open, pictures: list[Picture], loaded: list[str]
) -> None:
    changes: list[dict[str, Any]] = [
        {"prompt": "cats", "seed": 1},
        {"prompt": "dogs", "t_index_list": [32], "seed": 2},
    ]
    alone = []
    for change in changes:
        stream = opened_afresh(**change)
        alone.append(stream.show_all(pictures))
        stream.pipeline.close()
    loaded.clear()
    streams = [opened_afresh(**change) for change in changes]
    assert loaded == ["autoencoder", "weights"]
    brain = streams[0].pipeline._adopted.painting.brain  # type: ignore[union-attr]
    brain.denoiser.batcher._clock = lambda: 0.0  # no measure says that apart is quicker
    got_first = [stream.show(pictures[0]) for stream in streams]  # which runs the steps in
    assert same(got_first, [shown[0] for shown in alone])
    brain.denoiser.batcher._wait_s = 10.0  # together, however busy the machine is
    calls = brain.denoiser.calls
    with ThreadPoolExecutor(2) as threads:
        got = list(threads.map(lambda stream: stream.show_all(pictures[1:]), streams))
    assert brain.denoiser.calls - calls == len(pictures) - 1
    for one, expected in zip(got, alone, strict=True):
        assert max(apart(a, b) for a, b in zip(one, expected[1:], strict=True)) < 0.05


def test_streams_that_load_different_models_at_once_each_get_their_own(
    opened_afresh: Open, pictures: list[Picture]
) -> None:
    changes: list[dict[str, Any]] = [
        {"model_id": "sd-turbo"},
        {"model_id": "sd15"},
        {"model_id": "sdxl-turbo"},
        {"lora_dict": {"lora": 1.0}},
    ]
    with ThreadPoolExecutor(len(changes)) as threads:
        streams = list(threads.map(lambda change: opened_afresh(**change), changes))
    at_once = [stream.show(pictures[0]) for stream in streams]
    for stream in streams:
        stream.pipeline.close()
    assert same(at_once, [opened_afresh(**change).show(pictures[0]) for change in changes])


def test_the_last_stream_gives_the_model_back(
    opened_afresh: Open, afresh: Setup, pictures: list[Picture]
) -> None:
    one, other = opened_afresh(), opened_afresh()
    one.pipeline.close()
    assert other.show(pictures[0]) is not None
    other.pipeline.close()
    other.pipeline.close()
    assert not afresh.sharing._entries


# --- what changes, and how soon


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "a completely different text"},
        {"prompt": [["one", 1], ["two", 3]]},
        {"seed": 4},
        {"seed": [[4, 1], [5, 1]]},
        {"t_index_list": [5, 15, 25]},
        {"t_index_list": [25]},
        {"num_inference_steps": 40},
        {"mode": "txt2img"},
        {"do_add_noise": False},
        {"lora_dict": {"lora": 1.0}},
        {"lora_dict": {"text-lora": 1.0}},
        {"controlnets": [{"model_id": "controlnet", "preprocessor": "canny"}]},
        {"image_preprocessing": {"processors": [{"type": "blur"}]}},
    ],
    ids=str,
)
def test_a_change_shows_in_the_next_picture_as_if_it_had_been_so_from_the_start(
    opened: Open, pictures: list[Picture], changes: dict[str, Any]
) -> None:
    stream, fresh = opened(), opened(**changes)
    still = pictures[0]
    before = stream.show_all([still] * (K + 1))[-1]
    stream.change(**changes)
    after = stream.show_all([still] * K)
    expected = fresh.show_all([still] * (K + 1))[-1]
    assert apart(before, expected) > 0.05
    if "controlnets" in changes or "image_preprocessing" in changes:
        assert np.array_equal(after[-1], expected)  # of the frames under way, the old ones go on as they were
    else:
        assert same(after, [expected] * K)


@pytest.mark.parametrize(
    "changes", [{"guidance_scale": 2.0}, {"guidance_scale": 2.0, "cfg_type": "full"}], ids=str
)
def test_guidance_takes_effect_within_as_many_frames_as_are_under_way(
    opened: Open, pictures: list[Picture], changes: dict[str, Any]
) -> None:
    stream, fresh = opened(), opened(**changes)
    before = stream.show_all([pictures[0]] * (K + 1))[-1]
    expected = fresh.show_all([pictures[0]] * (K + 1))[-1]
    stream.change(**changes)
    after = stream.show_all([pictures[0]] * K)
    assert apart(before, expected) > 0.05
    assert not np.array_equal(after[0], before)
    assert apart(after[-1], expected) < 0.05


def test_only_new_weights_are_loaded(opened_afresh: Open, loaded: list[str], pictures: list[Picture]) -> None:
    stream = opened_afresh()
    assert loaded == ["autoencoder", "weights"]
    for changes in (
        {"prompt": "cats"},
        {"seed": 5, "t_index_list": [30]},
        {"mode": "txt2img"},
        {"guidance_scale": 3.0, "cfg_type": "full"},
    ):
        stream.change(**changes)
        stream.show(pictures[0])
    assert loaded == ["autoencoder", "weights"]
    stream.change(controlnets=[{"model_id": "controlnet", "conditioning_scale": 0.5}])
    stream.change(controlnets=[{"model_id": "controlnet", "conditioning_scale": 0.9}])
    stream.show(pictures[0])
    assert loaded == ["autoencoder", "weights", "controlnet"]


def test_a_prompt_that_nobody_prepared_for_is_read_when_its_frame_comes(
    opened: Open, pictures: list[Picture]
) -> None:
    stream, fresh = opened(), opened(prompt="cats")
    stream.show(pictures[0])
    stream.params = {**stream.params, "prompt": "cats"}
    assert np.array_equal(stream.show(pictures[0]), fresh.show(pictures[0]))


def test_what_was_prepared_and_never_adopted_is_given_back(opened_afresh: Open, afresh: Setup) -> None:
    stream = opened_afresh()
    with_lora = {**stream.params, "lora_dict": {"lora": 1.0}}
    stream.pipeline.prepare(with_lora)
    assert sum("brain" in key for key in afresh.sharing._entries) == 2  # type: ignore[operator]
    stream.change(prompt="cats")
    assert sum("brain" in key for key in afresh.sharing._entries) == 1  # type: ignore[operator]


def test_a_later_preparation_survives_the_adoption_of_an_earlier_one(
    opened: Open, pictures: list[Picture]
) -> None:
    stream = opened()
    one = {**stream.params, "prompt": "one"}
    two = {**stream.params, "lora_dict": {"lora": 1.0}}
    first, second = stream.pipeline.prepare(one), stream.pipeline.prepare(two)
    stream.pipeline.adopt(first)
    stream.pipeline.adopt(second)
    stream.params = two
    assert stream.show(pictures[0]) is not None


def test_a_prompt_changes_over_the_time_that_it_is_given(opened: Open, pictures: list[Picture]) -> None:
    still = pictures[0]
    stream, old, new = opened(transition_s=1.0), opened(), opened(prompt="cats")
    for _ in range(K):
        stream.show(still)
    start = old.show_all([still] * K)[-1]
    end = new.show_all([still] * K)[-1]
    stream.change(prompt="cats")
    shown = stream.show_all([still] * 15)  # 10 frames a second
    assert apart(shown[0], start) < 0.3
    assert apart(shown[6], start) > 0.05
    assert apart(shown[6], end) > 0.05
    assert np.array_equal(shown[-1], end)
    assert all(np.array_equal(one, end) for one in shown[10 + K :])
    steps = [apart(a, b) for a, b in pairwise(shown)]
    assert max(steps) < apart(start, end) / 2  # no jump


def test_a_new_prompt_in_the_middle_of_a_change_goes_on_from_there(
    opened: Open, pictures: list[Picture]
) -> None:
    still = pictures[0]
    stream = opened(transition_s=1.0)
    stream.show_all([still] * K)
    stream.change(prompt="cats")
    middle = stream.show_all([still] * 6)[-1]
    stream.change(prompt="dogs")
    following = stream.show(still)
    end = opened(prompt="dogs").show_all([still] * K)[-1]
    assert apart(middle, following) < apart(middle, end) / 2
    assert np.array_equal(stream.show_all([still] * 14)[-1], end)


# --- LoRAs, ControlNets, families


def test_a_lora_of_weight_zero_is_none(opened: Open, pictures: list[Picture]) -> None:
    plain = opened().show_all(pictures)
    assert same(opened(lora_dict={"lora": 0.0}).show_all(pictures), plain)
    one, two = opened(lora_dict={"lora": 1.0}), opened(lora_dict={"lora": 2.0})
    assert apart(one.show(pictures[0]), plain[0]) > 0
    assert apart(one.show(pictures[1]), plain[1]) < apart(two.show_all(pictures[:2])[1], plain[1])


def test_two_loras_of_different_parts_are_both_there(opened: Open, pictures: list[Picture]) -> None:
    both = opened(lora_dict={"lora": 1.0, "text-lora": 1.0}).show(pictures[0])
    for one in ("lora", "text-lora"):
        assert not np.array_equal(opened(lora_dict={one: 1.0}).show(pictures[0]), both)


def test_a_controlnet_of_scale_zero_is_none_and_can_be_faded_in(
    opened_afresh: Open, pictures: list[Picture], loaded: list[str]
) -> None:
    net = {"model_id": "controlnet", "conditioning_scale": 0.0, "preprocessor": "soft_edge"}
    stream, plain = opened_afresh(controlnets=[net]), opened_afresh()
    assert same(stream.show_all(pictures), plain.show_all(pictures))
    assert "controlnet" in loaded
    loaded.clear()
    stream.change(controlnets=[{**net, "conditioning_scale": 1.0}])
    assert not same(stream.show_all(pictures), plain.show_all(pictures))
    assert not loaded


def test_a_controlnet_acts_only_in_its_part_of_the_steps(opened: Open, pictures: list[Picture]) -> None:
    net = {"model_id": "controlnet", "conditioning_scale": 1.0}
    whole = opened(controlnets=[net]).show(pictures[0])
    last = opened(controlnets=[{**net, "control_guidance_start": 0.5}]).show(pictures[0])
    never = opened(controlnets=[{**net, "control_guidance_start": 0.9}]).show(pictures[0])
    plain = opened().show(pictures[0])
    assert np.array_equal(never, plain)
    assert len({picture.tobytes() for picture in (whole, last, plain)}) == 3


def test_sdxl_is_told_the_size_and_the_pooled_text(
    opened: Open, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = opened(model_id="sdxl-turbo", width=128, guidance_scale=2.0, cfg_type="full")
    asked = heard(monkeypatch)
    stream.show(pictures[0])
    rows = asked[-1]
    assert rows.sizes is not None
    assert rows.pooled is not None
    assert rows.sizes.tolist() == [[64, 128, 0, 0, 64, 128]] * 6
    assert rows.pooled.shape == (6, 32)
    assert not torch.equal(rows.pooled[0], rows.pooled[3])  # the negative prompt's, and the prompt's


def test_a_model_that_is_not_distilled_gets_its_lcm_lora(opened: Open, pictures: list[Picture]) -> None:
    with_lora = opened(model_id="sd15").show(pictures[0])
    assert not np.array_equal(opened(model_id="sd15", use_lcm_lora=False).show(pictures[0]), with_lora)
    named = opened(model_id="sd15", lcm_lora_id="lora").show(pictures[0])
    assert not np.array_equal(named, with_lora)
    turbo = [opened(use_lcm_lora=use).show(pictures[0]) for use in (True, False)]
    assert np.array_equal(turbo[0], turbo[1])


def test_the_tiny_autoencoder_is_taken_where_it_is_wanted_and_here(
    opened: Open, pictures: list[Picture]
) -> None:
    tiny = opened().show(pictures[0])
    assert not np.array_equal(opened(use_tiny_vae=False).show(pictures[0]), tiny)
    # There is none of SDXL here, so its own is taken.
    xl = [opened(model_id="sdxl-turbo", use_tiny_vae=use).show(pictures[0]) for use in (True, False)]
    assert np.array_equal(xl[0], xl[1])


# --- what is painted


def test_pictures_of_the_prompt_alone_do_not_depend_on_the_source(
    opened: Open, pictures: list[Picture]
) -> None:
    stream = opened(mode="txt2img")
    shown = stream.show_all(pictures)
    assert same(shown, [shown[0]] * len(shown))
    assert not np.array_equal(shown[0], opened(mode="txt2img", prompt="cats").show(pictures[0]))


@pytest.mark.parametrize(
    ("kind", "matters"), [("none", False), ("self", False), ("full", True), ("initialize", True)]
)
def test_the_negative_prompt_counts_where_guidance_asks_for_it(
    opened: Open, pictures: list[Picture], kind: str, matters: bool
) -> None:
    shown = [
        opened(cfg_type=kind, guidance_scale=3.0, negative_prompt=text).show_all(pictures[:K])[-1]
        for text in ("blurry", "sharp and very different")
    ]
    assert np.array_equal(shown[0], shown[1]) is not matters


def test_steps_one_after_the_other_make_the_same_pictures_and_are_not_late(
    opened: Open, pictures: list[Picture]
) -> None:
    shown = opened(use_denoising_batch=False, do_add_noise=False).show_all(pictures)
    late = opened(do_add_noise=False).show_all(pictures)
    assert max(apart(a, b) for a, b in zip(shown[:-2], late[2:], strict=True)) < 0.05
    assert len({picture.tobytes() for picture in shown}) == len(shown)


def test_each_frame_under_way_is_led_by_its_own_control_picture(
    opened: Open, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = opened(controlnets=[{"model_id": "controlnet"}])
    asked = heard(monkeypatch)
    stream.show_all(pictures[:4])
    (control,) = asked[-1].controls
    for age in range(K):
        source = torch.from_numpy(pictures[3 - age].astype(np.float32) / 255).permute(2, 0, 1)
        torch.testing.assert_close(control.pictures[age], source)


def test_similar_pictures_are_shown_again_without_asking_the_model(
    opened: Open, pictures: list[Picture]
) -> None:
    stream = opened(enable_similar_image_filter=True, similar_image_filter_max_skip_frame=4)
    denoiser = stream.pipeline._adopted.painting.brain.denoiser  # type: ignore[union-attr]
    stream.show(pictures[0])
    calls = denoiser.calls
    shown = [stream.show(pictures[0]) for _ in range(5)]
    assert denoiser.calls - calls == 1  # four were repeated, the fifth not
    stream.change(seed=3)
    calls = denoiser.calls
    assert not np.array_equal(stream.show(pictures[0]), shown[-1])  # what changed is shown at once
    assert denoiser.calls - calls == K


def test_going_past_the_model_shows_the_source(opened: Open, pictures: list[Picture]) -> None:
    stream = opened()
    before = stream.show(pictures[0])
    stream.change(skip_diffusion=True)
    assert np.array_equal(stream.show(pictures[1]), pictures[1])
    stream.change(skip_diffusion=False)
    assert np.array_equal(stream.show(pictures[0]), before)  # run in anew, with nothing of before


def test_motion_lowers_the_noise(opened: Open, pictures: list[Picture]) -> None:
    plain, aware = opened(), opened(motion_noise=1.0)
    still = [pictures[0]] * 4
    assert same(plain.show_all(still), aware.show_all(still))
    dark, bright = np.zeros_like(pictures[0]), np.full_like(pictures[0], 255)
    moving = [dark, bright] * 3
    assert not same(plain.show_all(moving), aware.show_all(moving))


@pytest.mark.parametrize("chain", ["latent_preprocessing", "latent_postprocessing"])
def test_feedback_of_latents_mixes_with_the_frame_before(
    opened: Open, pictures: list[Picture], chain: str
) -> None:
    def feedback(strength: float) -> dict[str, Any]:
        step = {"type": "latent_feedback", "params": {"feedback_strength": strength}}
        return {chain: {"enabled": True, "processors": [step]}}

    plain = opened().show_all(pictures)
    assert same(opened(**feedback(0.0)).show_all(pictures), plain)
    fed = opened(**feedback(0.3)).show_all(pictures)
    assert np.array_equal(fed[0], plain[0])
    assert not np.array_equal(fed[-1], plain[-1])


def test_postprocessing_may_change_the_size(opened: Open, pictures: list[Picture]) -> None:
    stream = opened(
        image_postprocessing={"processors": [{"type": "upscale", "params": {"scale_factor": 2.0}}]}
    )
    assert stream.show(pictures[0]).shape == (2 * SIDE, 2 * SIDE, 3)


def test_frames_keep_their_time(opened: Open, pictures: list[Picture]) -> None:
    stream = opened()
    for pts in (5, TICKS, 2 * TICKS, 10 * TICKS):
        assert stream.pipeline.process(VideoFrame(pictures[0], pts), stream.params).pts == pts
