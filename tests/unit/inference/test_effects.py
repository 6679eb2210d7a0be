from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest
from jsonschema import Draft202012Validator

from services.inference.engine.pipelines import builtin
from services.inference.engine.pipelines.effects import Effects, Fade, between, blend_of
from services.inference.engine.pipelines.looks import LOOKS, Picture, Sheet, sketch
from sluice.pipeline import TICKS_PER_SECOND, Setup, VideoFrame, defaults, schema


def scene(height: int = 240, width: int = 320, *, shift: float = 0.0) -> Picture:
    """A sky, a hill, a sun and a striped wall, `shift` pixels to the right."""
    row, column = np.mgrid[0:height, 0:width].astype(np.float32)
    column -= np.float32(shift)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = (120, 170, 230) - row[..., None] * np.float32(60 / height)
    picture[row > height * (0.6 + 0.1 * np.sin(column * 6 / width))] = (60, 130, 50)
    sun = np.hypot(row - height * 0.3, column - width * 0.3) < height * 0.15
    picture[sun] = (250, 200, 60)
    wall = (abs(column - width * 0.7) < width * 0.12) & (abs(row - height * 0.6) < height * 0.2)
    stripes = 90 + 80 * (np.sin(column * 40 / width) > 0)
    picture[wall] = np.repeat(stripes[..., None], 3, axis=2)[wall]
    return cv2.GaussianBlur(picture, (0, 0), 0.7).clip(0, 255).astype(np.uint8)


def params(**changes: Any) -> Mapping[str, Any]:
    complete = {**defaults(Effects), **changes}
    Draft202012Validator(schema(Effects)).validate(complete)
    return complete


def rendered(rgb: Picture, *, pts: int = 0, **changes: Any) -> Picture:
    return Effects().process(VideoFrame(rgb, pts), params(**changes)).rgb


def difference(one: Picture, other: Picture) -> float:
    return float(np.mean(cv2.absdiff(one, other)))


def edges(rgb: Picture) -> float:
    return float(np.mean(np.abs(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_32F))))


def saturation(rgb: Picture) -> float:
    return float(np.mean(rgb.max(axis=2).astype(float) - rgb.min(axis=2)))


@pytest.mark.parametrize("pipeline", builtin().values(), ids=str)
def test_every_builtin_has_a_valid_schema_which_its_defaults_satisfy(pipeline: Any) -> None:
    Draft202012Validator.check_schema(schema(pipeline))
    Draft202012Validator(schema(pipeline)).validate(defaults(pipeline))


def test_the_builtins_are_passthrough_and_effects() -> None:
    assert set(builtin()) == {"passthrough", "effects"}


def test_passthrough_returns_the_frame_itself() -> None:
    frame = VideoFrame(scene(), 42)
    assert builtin()["passthrough"]().process(frame, {}) is frame


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


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_keeps_the_pts_the_shape_and_the_source(look: str) -> None:
    source = scene()
    before = source.copy()
    frame = Effects().process(VideoFrame(source, 9000), params(prompt=look))
    assert (frame.pts, frame.rgb.shape, frame.rgb.dtype.name) == (9000, source.shape, "uint8")
    assert np.array_equal(source, before)
    assert difference(source, frame.rgb) > 10


def test_the_looks_differ_as_their_names_say() -> None:
    source = scene()
    looks = {look: rendered(source, prompt=look) for look in LOOKS}
    assert looks["neon"].mean() < 0.5 * source.mean() < looks["watercolor"].mean()
    assert saturation(looks["sketch"]) < 0.5 * saturation(source)
    assert edges(looks["sketch"]) > 2 * edges(source)
    assert looks["sketch"].mean() > 1.1 * source.mean()


def test_neon_lights_outlines_in_full_colour_and_leaves_the_rest_dark() -> None:
    source = scene()
    neon = rendered(source, prompt="neon")
    outline = cv2.Canny(source, 100, 200) > 0
    away = cv2.dilate(outline.astype(np.uint8), np.ones((41, 41), np.uint8)) == 0
    assert neon.max(axis=2)[outline].mean() > 3 * neon.max(axis=2)[away].mean()
    assert saturation(neon[outline][None]) > 80


def test_watercolor_flattens_texture_and_keeps_edges() -> None:
    noisy = scene(480, 640)
    noisy = np.clip(noisy + np.random.default_rng(1).normal(0, 12, noisy.shape), 0, 255).astype(np.uint8)
    painted = cv2.GaussianBlur(rendered(noisy, prompt="watercolor"), (0, 0), 1.5).astype(float)
    sky, sun = painted[80:130, 400:600], painted[110:170, 160:220]
    assert np.std(sky, axis=(0, 1)).max() < 12
    assert np.abs(sky.mean(axis=(0, 1)) - sun.mean(axis=(0, 1))).max() > 80


def test_watercolor_leaves_a_bare_rim_of_paper() -> None:
    painted = rendered(np.zeros((240, 320, 3), np.uint8), prompt="watercolor")
    assert painted[0].mean() > 200
    assert painted[100:140, 140:180].mean() < 100


def test_a_sketch_shades_the_dark_and_leaves_the_light() -> None:
    ramp = np.repeat(np.linspace(0, 255, 320, dtype=np.uint8)[None, :, None], 240, axis=0).repeat(3, axis=2)
    drawn = rendered(ramp, prompt="sketch").mean(axis=(0, 2))
    thirds = drawn[:100].mean(), drawn[110:210].mean(), drawn[220:].mean()
    assert thirds[0] + 40 < thirds[1] < thirds[2] - 20


def test_a_sketch_takes_as_much_colour_as_it_is_told() -> None:
    source = scene()
    grey, tinted, full = (saturation(sketch(source, Sheet(240, 320), tint=tint)) for tint in (0, 0.4, 1))
    assert grey < tinted < full


@pytest.mark.parametrize("look", LOOKS)
def test_a_still_source_gives_a_still_picture(look: str) -> None:
    pipeline, source = Effects(), scene()
    first, *others = (
        pipeline.process(VideoFrame(source, pts), params(prompt=look)).rgb for pts in (0, 3000, 6000)
    )
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("look", LOOKS)
def test_sensor_noise_does_not_make_a_look_flicker(look: str) -> None:
    source, random = scene(), np.random.default_rng(2)
    noisy = np.clip(source + random.normal(0, 1.5, source.shape), 0, 255).astype(np.uint8)
    assert difference(rendered(source, prompt=look), rendered(noisy, prompt=look)) < 4 * difference(
        source, noisy
    )


@pytest.mark.parametrize("look", LOOKS)
def test_a_small_movement_is_a_small_change(look: str) -> None:
    still, moved, gone = (rendered(scene(shift=shift), prompt=look) for shift in (0, 0.5, 40))
    assert difference(still, moved) < 0.25 * difference(still, gone)


@pytest.mark.parametrize("look", LOOKS)
def test_earlier_frames_leave_nothing_in_the_buffers(look: str) -> None:
    sheet = Sheet(240, 320)
    LOOKS[look](255 - scene(), sheet)
    before = LOOKS[look](scene(), sheet)
    kept = before.copy()
    LOOKS[look](scene(shift=100), sheet)
    assert np.array_equal(before, kept)
    assert np.array_equal(before, LOOKS[look](scene(), Sheet(240, 320)))


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize(
    "size", [(16, 16), (17, 33), (64, 16), (239, 241), (333, 501), (16, 1920), (1080, 1920)]
)
def test_any_size_works(look: str, size: tuple[int, int]) -> None:
    picture = rendered(scene(*size), prompt=look)
    assert picture.shape == (*size, 3)
    assert picture.std() > 2


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_pictures_have_no_bad_numbers(look: str, level: int) -> None:
    with np.errstate(all="raise"):
        rendered(np.full((120, 160, 3), level, np.uint8), prompt=look)


@pytest.mark.parametrize("look", LOOKS)
def test_a_cropped_transposed_or_read_only_source_is_as_good(look: str) -> None:
    source = scene()
    expected = rendered(source, prompt=look)
    framed = np.zeros((300, 400, 3), np.uint8)
    framed[20:260, 30:350] = source
    planar = np.ascontiguousarray(source.transpose(2, 0, 1)).transpose(1, 2, 0)
    sealed = source.copy()
    sealed.setflags(write=False)
    for variant in (framed[20:260, 30:350], planar, sealed):
        assert np.array_equal(rendered(variant, prompt=look), expected)


def test_the_size_may_change_within_a_stream() -> None:
    pipeline = Effects()
    for pts, size in enumerate([(120, 160), (90, 160), (120, 160)]):
        assert pipeline.process(VideoFrame(scene(*size), pts), params()).rgb.shape == (*size, 3)


@pytest.mark.parametrize("look", ["watercolor", "sketch"])
def test_the_seed_chooses_the_paper(look: str) -> None:
    source = scene()
    one, again, other = (rendered(source, prompt=look, seed=seed) for seed in (5, 5, 2**32 - 1))
    assert np.array_equal(one, again)
    assert 0.5 < difference(one, other) < 20


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
    expected = 0.4 * source + 0.2 * sum(rendered(source, prompt=look).astype(float) for look in LOOKS)
    assert difference(mixed, np.round(expected).astype(np.uint8)) < 1.5


@pytest.mark.parametrize(
    ("prompt", "blend"),
    [
        ("watercolor", {"watercolor": 1}),
        ("a pencil sketch", {"sketch": 1}),
        ("Neon city at night, slightly watercolor", {"neon": 1 / 1.35, "watercolor": 0.35 / 1.35}),
        ("neon:0.7 watercolor:0.3", {"neon": 0.7, "watercolor": 0.3}),
        ("neon: 3, ink: 1", {"neon": 0.75, "sketch": 0.25}),
        ("(neon:1.2)", {"neon": 1}),
        ("(glowing cyberpunk street:3) charcoal", {"neon": 0.75, "sketch": 0.25}),
        ("an oil painting of a CAT", {"watercolor": 1}),
        ("synthwave, a hint of pencil", {"neon": 1 / 1.35, "sketch": 0.35 / 1.35}),
        ("very neon, drawing", {"neon": 2 / 3, "sketch": 1 / 3}),
        ("slightly strange, neon and sketch", {"neon": 0.5, "sketch": 0.5}),
        ("sketch, no neon", {"sketch": 1}),
        ("pencil pencil pencil neon", {"sketch": 0.5, "neon": 0.5}),
        ("a cat", {"watercolor": 1}),
        ("", {"watercolor": 1}),
        ("sketch:0", {"watercolor": 1}),
        ("((((neon", {"neon": 1}),
        ([], {"watercolor": 1}),
        ([["neon", 3], ["a cat", 9], ["sketch", 1]], {"neon": 0.75, "sketch": 0.25}),
        (
            [{"text": "neon", "weight": 100}, {"text": "aquarelle", "weight": 300}],
            {"watercolor": 0.75, "neon": 0.25},
        ),
        ([{"text": "ink"}, ["neon:0.5", 2]], {"sketch": 0.5, "neon": 0.5}),
    ],
)
def test_the_words_of_a_prompt_choose_the_looks(prompt: Any, blend: dict[str, float]) -> None:
    params(prompt=prompt)
    assert blend_of(prompt) == pytest.approx(blend)


def test_a_long_prompt_is_read_in_no_time() -> None:
    for text in ("(" * 2000, "a:" * 1000, "(a" * 1000, "9" * 2000, "neon:" + "9" * 1995):
        assert math.isclose(sum(blend_of([[text, 1000]] * 32).values()), 1)


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


class Playback:
    """A stream of one still source at 25 frames a second."""

    def __init__(self) -> None:
        self.pipeline, self.source, self.pts = Effects(), scene(120, 160), 10_000_000

    def frame(self, *, after_s: float = 0.04, **changes: Any) -> Picture:
        self.pts += round(after_s * TICKS_PER_SECOND)
        return self.pipeline.process(VideoFrame(self.source, self.pts), params(**changes)).rgb


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


# --- as Scope's clients steer


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


def test_two_looks_share_by_weight_or_along_an_arc() -> None:
    prompt = [{"text": "neon", "weight": 3}, {"text": "sketch", "weight": 1}]
    assert blend_of(prompt) == pytest.approx({"neon": 0.75, "sketch": 0.25})
    arc = blend_of(prompt, "slerp")
    assert sum(arc.values()) == pytest.approx(1)
    assert arc["sketch"] / arc["neon"] == pytest.approx(math.tan(math.radians(22.5)))
    assert blend_of("neon sketch", "slerp") == pytest.approx({"neon": 0.5, "sketch": 0.5})


@pytest.mark.parametrize("prompt", ["neon", "neon sketch:2 watercolor"])
def test_slerp_is_for_two_looks_and_leaves_others_alone(prompt: str) -> None:
    assert blend_of(prompt, "slerp") == blend_of(prompt)


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("after", [{"neon": 1.0}, {"neon": 0.5, "sketch": 0.5}, {"sketch": 0.6, "neon": 0.4}])
def test_a_way_from_blend_to_blend_begins_and_ends_at_them_and_always_adds_up(
    method: str, after: Mapping[str, float]
) -> None:
    before = {"sketch": 0.6, "neon": 0.4}
    assert between(before, after, 0.0, method) == pytest.approx(before)
    assert between(before, after, 1.0, method) == pytest.approx(after)
    shares = [between(before, after, share / 20, method) for share in range(21)]
    assert all(sum(blend.values()) == pytest.approx(1) for blend in shares)
    assert min(np.diff([blend["neon"] for blend in shares])) > -1e-9


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
