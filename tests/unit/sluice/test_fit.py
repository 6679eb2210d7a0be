from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sluice.pipeline import Fit, fit

Picture = NDArray[np.uint8]
SIZES = [(640, 360), (360, 640), (512, 512), (333, 501), (17, 9), (1, 1), (1920, 1)]


def cross(width: int, height: int) -> Picture:
    """Black, but for a white square in the middle, half as large as the short side."""
    picture = np.zeros((height, width, 3), np.uint8)
    half = min(width, height) // 4
    picture[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 255
    return picture


def middle(rgb: Picture) -> tuple[float, float]:
    """Where the light is, as shares of width and height."""
    light = rgb[..., 0].astype(float)
    rows, columns = np.mgrid[0 : rgb.shape[0], 0 : rgb.shape[1]] + 0.5
    return (
        float((columns * light).sum() / light.sum() / rgb.shape[1]),
        float((rows * light).sum() / light.sum() / rgb.shape[0]),
    )


def extent(rgb: Picture) -> tuple[int, int]:
    """Width and height of what is light."""
    light = rgb[..., 0] > 127
    return int(light.any(axis=0).sum()), int(light.any(axis=1).sum())


@pytest.mark.parametrize("how", Fit)
@pytest.mark.parametrize("wanted", SIZES)
@pytest.mark.parametrize("was", SIZES)
def test_the_size_is_what_was_wanted(was: tuple[int, int], wanted: tuple[int, int], how: Fit) -> None:
    made = fit(np.full((was[1], was[0], 3), 90, np.uint8), *wanted, how)
    assert made.shape == (wanted[1], wanted[0], 3)
    assert made.dtype == np.uint8
    assert made.max() == 90


@pytest.mark.parametrize("how", Fit)
def test_a_picture_of_that_size_is_returned_itself(how: Fit) -> None:
    picture = cross(333, 501)
    assert fit(picture, 333, 501, how) is picture


@pytest.mark.parametrize("how", Fit)
@pytest.mark.parametrize("wanted", [(512, 512), (301, 177), (177, 301), (90, 200)])
def test_the_centre_stays_in_the_centre(wanted: tuple[int, int], how: Fit) -> None:
    for was in ((640, 360), (360, 640), (401, 399)):
        assert middle(fit(cross(*was), *wanted, how)) == pytest.approx((0.5, 0.5), abs=0.02)


@pytest.mark.parametrize("how", [Fit.COVER, Fit.CONTAIN])
@pytest.mark.parametrize("wanted", [(512, 512), (301, 177), (177, 301)])
def test_proportions_are_kept(wanted: tuple[int, int], how: Fit) -> None:
    for was in ((640, 360), (360, 640)):
        wide, high = extent(fit(cross(*was), *wanted, how))
        assert wide == pytest.approx(high, rel=0.03, abs=2)


def test_stretching_keeps_no_proportions_and_cuts_nothing() -> None:
    wide, high = extent(fit(cross(640, 360), 320, 360, Fit.STRETCH))
    assert wide == pytest.approx(90, abs=1)
    assert high == pytest.approx(180, abs=1)


def framed(width: int, height: int) -> Picture:
    """Red at the left and right ends, green at the upper and lower, white between."""
    picture = np.full((height, width, 3), 255, np.uint8)
    picture[: height // 8] = picture[-(height // 8) :] = (0, 255, 0)
    picture[:, : width // 8] = picture[:, -(width // 8) :] = (255, 0, 0)
    return picture


def test_covering_cuts_the_long_sides_alone_and_both_alike() -> None:
    made = fit(framed(640, 360), 360, 360).astype(int)
    assert made[180].min() == 255, "the ends at left and right are cut off"
    assert (made[4, 180] == (0, 255, 0)).all()
    assert (made[-5, 180] == (0, 255, 0)).all()
    row = fit(np.tile(np.linspace(0, 255, 640, dtype=np.uint8)[None, :, None], (360, 1, 3)), 360, 360)[
        0, :, 0
    ]
    assert int(row[0]) + int(row[-1]) == pytest.approx(255, abs=2)


def test_containing_shows_all_between_black_bars_of_one_width() -> None:
    made = fit(framed(640, 360), 640, 640, Fit.CONTAIN)
    dark = (made == 0).all(axis=(1, 2))
    assert dark[:140].all()
    assert dark[-140:].all()
    assert not dark[140:500].any()
    assert np.array_equal(made[140:500], framed(640, 360))


def test_covering_is_what_is_done_unless_somebody_says_otherwise() -> None:
    picture = framed(640, 360)
    assert np.array_equal(fit(picture, 300, 400), fit(picture, 300, 400, Fit.COVER))


def test_the_source_is_left_alone_and_may_be_sealed_or_a_part_of_another() -> None:
    large = framed(700, 500)
    part = large[40:400, 30:670]
    part.setflags(write=False)
    before = part.copy()
    for how in Fit:
        assert np.array_equal(fit(part, 200, 300, how), fit(before, 200, 300, how))
    assert np.array_equal(part, before)
