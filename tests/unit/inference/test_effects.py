from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from services.inference.engine.pipelines.effects import SNAPSHOT_MAX, Effects, Fade
from services.inference.engine.pipelines.looks import LOOKS, Picture
from services.inference.engine.pipelines.looks.words import blend_of
from services.inference.engine.pipelines.passthrough import Passthrough
from sluice.pipeline import TICKS_PER_SECOND, Pipeline, Setup, VideoFrame, defaults, schema
from tests.support.paintings import (
    OLD_LOOKS,
    Playback,
    difference,
    params,
    rendered,
    scene,
)


@pytest.mark.parametrize("pipeline", [Effects, Passthrough])
def test_the_schema_is_valid_and_the_defaults_satisfy_it(pipeline: type[Pipeline]) -> None:
    Draft202012Validator.check_schema(schema(pipeline))
    Draft202012Validator(schema(pipeline)).validate(defaults(pipeline))


def test_passthrough_returns_the_frame_itself() -> None:
    frame = VideoFrame(scene(), 42)
    assert Passthrough().process(frame, {}) is frame


def test_effects_says_that_it_is_no_model() -> None:
    assert "not a model" in Effects.description


def test_strength_zero_is_the_identity() -> None:
    frame = VideoFrame(scene(), 7)
    assert Effects().process(frame, params(strength=0, prompt="neon")) is frame


def test_more_strength_goes_further_from_the_source() -> None:
    source = scene()
    distances = [
        difference(source, rendered(source, prompt="neon", strength=s)) for s in (0.1, 0.4, 0.7, 1.0)
    ]
    assert distances == sorted(distances)
    assert distances[1] == pytest.approx(0.4 * distances[3], rel=0.05)


def test_the_size_may_change_within_a_stream() -> None:
    pipeline = Effects()
    for pts, size in enumerate([(120, 160), (90, 160), (120, 160)]):
        assert pipeline.process(VideoFrame(scene(*size), pts), params()).rgb.shape == (*size, 3)


def test_a_blend_lies_between_its_looks() -> None:
    source = scene()
    neon, paint = rendered(source, prompt="neon"), rendered(source, prompt="watercolor")
    mixed = rendered(source, prompt="neon:0.7 watercolor:0.3")
    assert difference(mixed, neon) < difference(mixed, paint)
    low, high = np.minimum(neon, paint).astype(int) - 1, np.maximum(neon, paint).astype(int) + 1
    assert np.all((low <= mixed) & (mixed <= high))
    assert difference(mixed, np.round(0.7 * neon + 0.3 * paint).astype(np.uint8)) < 1


def test_three_looks_and_the_source_mix_in_their_shares() -> None:
    source = scene()
    mixed = rendered(source, prompt="neon sketch watercolor", strength=0.6)
    expected = 0.4 * source + 0.2 * sum(rendered(source, prompt=look).astype(float) for look in OLD_LOOKS)
    assert difference(mixed, np.round(expected).astype(np.uint8)) < 1.5


def weights(fade: Fade, *seconds: float) -> list[float]:
    return [fade.at(round(second * TICKS_PER_SECOND)).get("neon", 0.0) for second in seconds]


def test_a_fade_goes_smoothly_from_one_blend_to_the_other() -> None:
    fade = Fade({"sketch": 1.0}, {"neon": 1.0}, 0, 0.5 * TICKS_PER_SECOND)
    assert weights(fade, 0, 0.25, 0.5, 9) == pytest.approx([0, 0.5, 1, 1])
    passed = weights(fade, *np.linspace(0, 0.5, 50))
    assert passed == sorted(passed)
    assert max(np.diff(passed)) < 0.04


def test_a_fade_is_over_on_another_clock() -> None:
    assert Fade({"sketch": 1.0}, {"neon": 1.0}, 90_000, 45_000).at(0) == {"neon": 1.0}


def test_the_first_frame_of_a_stream_is_not_faded() -> None:
    stream = Playback()
    assert np.array_equal(stream.frame(prompt="neon"), rendered(stream.source, prompt="neon"))


def test_a_new_prompt_fades_in_by_the_time_of_the_video_and_not_by_the_clock() -> None:
    stream = Playback()
    before = stream.frame(prompt="sketch", transition_s=2)
    neon = rendered(stream.source, prompt="neon")
    whole = difference(before, neon)
    at_once = stream.frame(prompt="neon", transition_s=2)
    halfway = stream.frame(prompt="neon", transition_s=2, after_s=1)
    done = stream.frame(prompt="neon", transition_s=2, after_s=1)
    assert np.array_equal(at_once, before)
    assert difference(halfway, before) == pytest.approx(whole / 2, rel=0.02)
    assert np.array_equal(done, neon)


def test_without_transition_a_new_prompt_holds_from_its_first_frame() -> None:
    stream = Playback()
    stream.frame(prompt="sketch")
    assert np.array_equal(stream.frame(prompt="neon", transition_s=0), rendered(stream.source, prompt="neon"))


def test_a_prompt_that_changes_during_a_fade_goes_on_from_there() -> None:
    stream = Playback()
    stream.frame(prompt="sketch", transition_s=1)
    stream.frame(prompt="neon", transition_s=1)
    midway = stream.frame(prompt="neon", transition_s=1, after_s=0.5)
    turned = stream.frame(prompt="watercolor", transition_s=1, after_s=0)
    assert np.array_equal(turned, midway)
    assert np.array_equal(
        stream.frame(prompt="watercolor", transition_s=1, after_s=1),
        rendered(stream.source, prompt="watercolor"),
    )


def test_other_words_for_the_same_looks_do_not_restart_a_fade() -> None:
    stream = Playback()
    stream.frame(prompt="sketch", transition_s=1)
    stream.frame(prompt="neon", transition_s=1)
    stream.frame(prompt="a neon dog", transition_s=1, after_s=0.5)
    assert np.array_equal(
        stream.frame(prompt="a neon cat", transition_s=1, after_s=0.5), rendered(stream.source, prompt="neon")
    )


def test_the_same_frames_and_parameters_give_the_same_pictures() -> None:
    def play() -> list[Picture]:
        stream = Playback()
        return [stream.frame(prompt=prompt) for prompt in ("sketch", "neon", "neon", "watercolor", "sketch")]

    assert all(np.array_equal(one, other) for one, other in zip(play(), play(), strict=True))


def test_strength_follows_at_once() -> None:
    stream = Playback()
    stream.frame(prompt="neon")
    assert np.array_equal(stream.frame(prompt="neon", strength=0), stream.source)


def test_close_lets_go_of_the_buffers_and_load_uses_one_thread() -> None:
    threads = cv2.getNumThreads()
    try:
        pipeline = Effects()
        pipeline.load(Setup.plain(), defaults(type(pipeline)))
        assert cv2.getNumThreads() == 1
        pipeline.process(VideoFrame(scene(), 0), params())
        pipeline.close()
        assert pipeline._sheet is None
    finally:
        cv2.setNumThreads(threads)


def looks_of(stream: Playback, *, frames: int, **changes: Any) -> list[Mapping[str, float]]:
    """What the next pictures are painted with."""
    blends = []
    for _ in range(frames):
        stream.frame(**changes)
        assert stream.pipeline._fade is not None
        blends.append(stream.pipeline._fade.at(stream.pts, stream.pipeline._step))
    return blends


def test_a_transition_of_frames_takes_exactly_so_many_in_equal_steps() -> None:
    stream = Playback()
    stream.frame(prompt="sketch", transition_frames=4)
    passed = looks_of(stream, frames=6, prompt="neon", transition_frames=4)
    assert [blend.get("neon", 0.0) for blend in passed] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert [blend.get("sketch", 0.0) for blend in passed] == pytest.approx([0.75, 0.5, 0.25, 0, 0, 0])


def test_the_last_frame_of_a_transition_is_the_new_look_itself() -> None:
    stream = Playback()
    stream.frame(prompt="sketch")
    *_, before, last = [stream.frame(prompt="neon", transition_frames=3) for _ in range(3)]
    neon = rendered(stream.source, prompt="neon")
    assert np.array_equal(last, neon)
    assert difference(before, neon) > 5


@pytest.mark.parametrize("frames", [0, 1])
def test_a_transition_of_no_frames_is_a_cut(frames: int) -> None:
    stream = Playback()
    stream.frame(prompt="sketch")
    cut = stream.frame(prompt="neon", transition_frames=frames, transition_s=5)
    assert np.array_equal(cut, rendered(stream.source, prompt="neon"))


def test_a_cut_ends_a_change_that_is_under_way() -> None:
    stream = Playback()
    stream.frame(prompt="sketch")
    stream.frame(prompt="neon", transition_frames=100)
    assert np.array_equal(
        stream.frame(prompt="neon", transition_frames=0), rendered(stream.source, prompt="neon")
    )


def test_a_transition_that_is_turned_goes_on_from_the_last_picture() -> None:
    stream = Playback()
    stream.frame(prompt="sketch")
    looks_of(stream, frames=5, prompt="neon", transition_frames=10)
    (turned,) = looks_of(stream, frames=1, prompt="sketch", transition_frames=5)
    assert turned["neon"] == pytest.approx(0.4)


def test_a_transition_in_time_is_not_changed_by_the_default_of_frames() -> None:
    stream = Playback()
    stream.frame(prompt="sketch", transition_s=1)
    stream.frame(prompt="neon", transition_s=1)
    (halfway,) = looks_of(stream, frames=1, prompt="neon", transition_s=1, after_s=0.5)
    assert halfway["neon"] == pytest.approx(0.5)


def test_a_transition_along_the_arc_is_another_than_a_straight_one() -> None:
    def quarter(method: str) -> float:
        stream = Playback()
        stream.frame(prompt="sketch")
        (blend,) = looks_of(
            stream, frames=1, prompt="neon", transition_frames=4, temporal_interpolation_method=method
        )
        return blend["neon"]

    assert quarter("linear") == pytest.approx(0.25)
    assert quarter("slerp") == pytest.approx(0.2929, abs=1e-3)  # sin 22.5° of (sin 22.5° + cos 22.5°)


def test_what_is_painted_is_said_when_it_changes_and_not_else() -> None:
    stream, said = Playback(), list[Mapping[str, Any]]()
    stream.pipeline.hear = said.append
    for prompt in ("neon", "neon", "a neon dog", "neon:0.7 sketch:0.3", "neon:7, ink:3", "sketch"):
        stream.frame(prompt=prompt)
    assert said == [
        {"looks": {"neon": 1.0}},
        {"looks": {"sketch": 0.3, "neon": 0.7}},
        {"looks": {"sketch": 1.0}},
    ]


def test_the_description_and_the_prompts_help_name_every_look() -> None:
    for look in LOOKS:
        assert look in Effects.description
        assert look in Effects.params["prompt"].help
        assert blend_of(look) == {look: 1.0}


def test_a_dream_echoes_what_was_there_and_forgets_it() -> None:
    stream, dark = Playback(), np.zeros((120, 160, 3), np.uint8)
    bright = stream.frame(prompt="dream")
    stream.source = dark
    light = [float(stream.frame(prompt="dream").mean()) for _ in range(60)]
    assert bright.mean() * 0.3 < light[0] < bright.mean()
    assert light == sorted(light, reverse=True)
    assert light[-1] < 0.2 * light[0]


def test_an_echo_fades_by_time_and_not_by_pictures() -> None:
    def after_half_a_second(pictures: int) -> float:
        stream = Playback()
        stream.frame(prompt="dream")
        stream.source = np.zeros((120, 160, 3), np.uint8)
        shown = [stream.frame(prompt="dream", after_s=0.5 / pictures) for _ in range(pictures)]
        return float(shown[-1].mean())

    assert after_half_a_second(5) == pytest.approx(after_half_a_second(20), rel=0.08)


@pytest.mark.parametrize("after_s", [1.5, -3.0])
def test_after_a_pause_or_on_another_clock_nothing_echoes(after_s: float) -> None:
    stream = Playback()
    stream.frame(prompt="dream")
    stream.source = scene(120, 160, shift=60)
    shown = stream.frame(prompt="dream", after_s=after_s)
    assert np.array_equal(shown, rendered(stream.source, pts=stream.pts, prompt="dream"))


def resumed(stream: Playback) -> Playback:
    """The same stream in another instance, as in another process."""
    snapshot = stream.pipeline.snapshot()
    assert snapshot is not None
    assert len(snapshot) <= SNAPSHOT_MAX
    other = Playback()
    other.source, other.pts = stream.source, stream.pts
    other.pipeline.restore(snapshot)
    return other


def test_there_is_nothing_to_remember_before_the_first_picture() -> None:
    assert Effects().snapshot() is None


def test_a_restored_stream_goes_on_within_a_change_and_with_its_echoes() -> None:
    stream = Playback()
    stream.frame(prompt="dream", transition_s=1)
    stream.source = scene(120, 160, shift=30)
    stream.frame(prompt="dream neon", transition_s=1)
    stream.frame(prompt="dream neon", transition_s=1, after_s=0.4)
    other = resumed(stream)
    for after_s in (0.1, 0.3, 0.5):
        one, same = (
            which.frame(prompt="dream neon", transition_s=1, after_s=after_s) for which in (stream, other)
        )
        assert np.array_equal(one, same)


def test_a_restored_stream_goes_on_within_a_change_of_frames() -> None:
    stream = Playback()
    stream.frame(prompt="sketch")
    looks_of(stream, frames=2, prompt="neon", transition_frames=4)
    (blend,) = looks_of(resumed(stream), frames=1, prompt="neon", transition_frames=4)
    assert blend["neon"] == pytest.approx(0.75)


def test_a_snapshot_of_a_large_picture_is_still_small_enough() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (800, 4096, 3), dtype=np.uint8)
    pipeline = Effects()
    pipeline.process(VideoFrame(noise, 0), params(prompt="dream"))
    snapshot = pipeline.snapshot()
    assert snapshot is not None
    assert len(snapshot) <= SNAPSHOT_MAX
    Effects().restore(snapshot)


@pytest.mark.parametrize(
    "snapshot", [b"", b"\xff\xfe", b"[]\n", b"{}\n", b"null", b'{"before": {"crayon": 1}}', b"\x00" * 500]
)
def test_what_is_no_snapshot_is_a_value_error(snapshot: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        Effects().restore(snapshot)


@pytest.mark.parametrize("cut", [1, 40, 400])
def test_a_snapshot_that_lost_its_end_is_a_value_error(cut: int) -> None:
    stream = Playback()
    stream.frame(prompt="dream")
    snapshot = stream.pipeline.snapshot()
    assert snapshot is not None
    with pytest.raises(ValueError):  # noqa: PT011 - of any kind
        Effects().restore(snapshot[: len(snapshot) // 2 - cut])
