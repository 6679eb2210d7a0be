from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest

from services.inference.engine.pipelines.effects import Effects
from services.inference.engine.pipelines.looks import LOOKS, Picture, Sheet
from services.inference.engine.pipelines.looks.drawn import sketch
from sluice.pipeline import TICKS_PER_SECOND, VideoFrame
from tests.support.contact_sheet import film
from tests.support.paintings import (
    OLD_LOOKS,
    difference,
    edges,
    params,
    rendered,
    saturation,
    scene,
)


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_keeps_the_pts_the_shape_and_the_source(look: str) -> None:
    source = scene()
    before = source.copy()
    frame = Effects().process(VideoFrame(source, 9000), params(prompt=look))
    assert (frame.pts, frame.rgb.shape, frame.rgb.dtype.name) == (9000, source.shape, "uint8")
    assert np.array_equal(source, before)
    # The first picture of a look that remembers has nothing behind it.
    assert difference(source, frame.rgb) > (1 if LOOKS[look].remembers else 8)


def test_the_looks_differ_as_their_names_say() -> None:
    source = scene()
    looks = {look: rendered(source, prompt=look) for look in OLD_LOOKS}
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


@pytest.mark.parametrize("look", [look for look, of in LOOKS.items() if not of.moves])
def test_a_still_source_gives_a_still_picture(look: str) -> None:
    pipeline, source = Effects(), scene()
    first, *others = (
        pipeline.process(VideoFrame(source, pts), params(prompt=look)).rgb for pts in (0, 3000, 6000)
    )
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("look", [look for look, of in LOOKS.items() if of.moves])
def test_what_moves_goes_by_the_time_of_the_picture_and_by_chance_of_the_seed_alone(look: str) -> None:
    source = scene()

    def at(*moments_s: float) -> list[Picture]:
        stream = Effects()
        ticks = [round(moment_s * TICKS_PER_SECOND) for moment_s in moments_s]
        return [stream.process(VideoFrame(source, pts), params(prompt=look)).rgb for pts in ticks]

    early, late = at(4, 4.5)
    assert difference(early, late) > 0.5
    assert np.array_equal(at(4, 4.5)[-1], late)
    if not LOOKS[look].remembers:
        assert np.array_equal(at(4.5)[0], late)
        assert np.array_equal(at(4, 4.1, 4.2, 4.3, 4.4, 4.5)[-1], late)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("pts", [-5, 0, 2**33 - 1, 2**40])
def test_a_look_paints_at_any_time(look: str, pts: int) -> None:
    assert rendered(scene(), pts=pts, prompt=look).std() > 2


@pytest.mark.parametrize("look", LOOKS)
def test_sensor_noise_does_not_make_a_look_flicker(look: str) -> None:
    source, random = scene(), np.random.default_rng(2)
    noisy = np.clip(source + random.normal(0, 1.5, source.shape), 0, 255).astype(np.uint8)
    assert difference(rendered(source, prompt=look), rendered(noisy, prompt=look)) < 4 * difference(
        source, noisy
    )


@pytest.mark.parametrize("look", [look for look, of in LOOKS.items() if not of.moves])
def test_from_frame_to_frame_a_look_changes_little_more_than_its_film(look: str) -> None:
    frames = list(film(10, start=60, side=256))
    sheet = Sheet(256, 256)
    pictures = [LOOKS[look].paint(rgb, sheet, 3600 * index) for index, rgb in enumerate(frames)]
    changed, source = (
        np.mean([difference(one, other) for one, other in pairwise(which)]) for which in (pictures, frames)
    )
    assert changed < 2.2 * source


@pytest.mark.parametrize("look", LOOKS)
def test_a_small_movement_is_a_small_change(look: str) -> None:
    still, moved, gone = (rendered(scene(shift=shift), prompt=look) for shift in (0, 0.5, 40))
    assert difference(still, moved) < 0.25 * difference(still, gone)


@pytest.mark.parametrize("look", LOOKS)
def test_earlier_frames_leave_nothing_in_the_buffers(look: str) -> None:
    sheet = Sheet(240, 320)
    paint = LOOKS[look].paint
    paint(255 - scene(), sheet, 0)
    sheet.echo = None
    before = paint(scene(), sheet, 3000)
    kept = before.copy()
    paint(scene(shift=100), sheet, 6000)
    assert np.array_equal(before, kept)
    assert np.array_equal(before, paint(scene(), Sheet(240, 320), 3000))


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


@pytest.mark.parametrize("look", ["watercolor", "oil", "sketch", "mosaic", "stainedglass", "matrix", "noir"])
def test_the_seed_chooses_the_paper(look: str) -> None:
    source = scene()
    one, again, other = (rendered(source, prompt=look, seed=seed) for seed in (5, 5, 2**32 - 1))
    assert np.array_equal(one, again)
    assert 0.5 < difference(one, other) < 80
