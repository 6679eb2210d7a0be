from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from PIL import Image as Pillow

from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.nodes import catalogue

KINDS = catalogue(Gallery(None))


def image(*rows: Any) -> NDArray[np.float32]:
    """One image of grey values."""
    return np.repeat(np.array(rows, np.float32)[None, ..., None], 3, axis=-1)


def grey(array: NDArray[np.float32]) -> list[Any]:
    """The red of the first image."""
    return [[round(float(value), 4) for value in row] for row in array[0, ..., 0]]


def run(class_type: str, **inputs: Any) -> Any:
    outputs = KINDS[class_type].run(**inputs)
    return outputs[0] if len(outputs) == 1 else outputs


def test_invert() -> None:
    assert grey(run("ImageInvert", image=image([0, 0.25, 1]))) == [[1, 0.75, 0]]


@pytest.mark.parametrize(
    ("mode", "blended"),
    [
        ("normal", [0.8, 0.4, 0.1]),
        ("multiply", [0.16, 0.16, 0.09]),
        ("screen", [0.84, 0.64, 0.91]),
        ("overlay", [0.32, 0.32, 0.82]),
        # below a half it darkens by a(1-a); above, it goes towards a bent line or a root
        ("soft_light", [0.3488, 0.352, 0.828]),
        ("difference", [0, 0, 0.8]),  # signed, then cut at zero
    ],
)
def test_blends(mode: str, blended: list[float]) -> None:
    one, other = image([0.2, 0.4, 0.9]), image([0.8, 0.4, 0.1])
    out = run("ImageBlend", image1=one, image2=other, blend_factor=1.0, blend_mode=mode)
    assert_allclose(out[0, 0, :, 0], blended, atol=1e-6)


def test_a_blend_by_half_is_half_way() -> None:
    out = run("ImageBlend", image1=image([0.2]), image2=image([0.8]), blend_factor=0.5, blend_mode="normal")
    assert grey(out) == [[0.5]]


def test_a_blend_has_the_first_images_size_and_the_seconds_middle() -> None:
    wide = image([0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1])
    out = run("ImageBlend", image1=image([0, 0], [0, 0]), image2=wide, blend_factor=1.0, blend_mode="normal")
    assert grey(out) == [[0.5, 0.5], [0.5, 0.5]]


def test_a_blend_larger_than_what_is_done_at_once_is_right_everywhere() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.random((2, 1, 90, 120, 3), dtype=np.float32)
    out = run("ImageBlend", image1=one, image2=other, blend_factor=0.3, blend_mode="screen")
    assert_allclose(out, one * 0.7 + (1 - (1 - one) * (1 - other)) * 0.3, atol=1e-6)


def test_a_blend_goes_with_alpha_as_the_first_image_says() -> None:
    with_alpha = np.ones((1, 1, 1, 4), np.float32) * 0.5
    assert (
        run("ImageBlend", image1=image([1]), image2=with_alpha, blend_factor=1.0, blend_mode="normal").shape[
            3
        ]
        == 3
    )
    out = run("ImageBlend", image1=with_alpha, image2=image([1]), blend_factor=1.0, blend_mode="normal")
    assert out[0, 0, 0].tolist() == [1, 1, 1, 1]


def test_batches_are_joined_repeated_and_taken_from() -> None:
    both = run("ImageBatch", image1=image([0, 0]), image2=image([1, 1]))
    assert both[..., 0].tolist() == [[[0, 0]], [[1, 1]]]
    assert len(run("RepeatImageBatch", image=both, amount=3)) == 6
    assert grey(run("ImageFromBatch", image=both, batch_index=1, length=9)) == [[1, 1]]
    assert grey(run("ImageFromBatch", image=both, batch_index=7, length=1)) == [[1, 1]]
    assert run("GetImageSize", image=both) == (2, 1, 2)


def test_a_batch_of_two_sizes_has_the_firsts() -> None:
    both = run("ImageBatch", image1=image([0, 0]), image2=image([0.5] * 8, [0.5] * 8, [0.5] * 8, [0.5] * 8))
    assert both.shape == (2, 1, 2, 3)


def test_an_empty_image_has_its_colour() -> None:
    out = run("EmptyImage", width=3, height=2, batch_size=2, color=0xFF8000)
    assert out.shape == (2, 2, 3, 3)
    assert_allclose(out[1, 1, 2], [1, 128 / 255, 0])


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [(1, 0, [[1, 2], [4, 5]]), (2, 1, [[5]]), (9, 9, [[5]])],
)
def test_a_crop_ends_where_the_picture_does(x: int, y: int, found: Any) -> None:
    out = run("ImageCrop", image=image([0, 1, 2], [3, 4, 5]), width=2, height=2, x=x, y=y)
    assert grey(out) == found


@pytest.mark.parametrize(
    ("rotation", "turned"),
    [
        ("none", [[0, 1], [2, 3]]),
        ("90 degrees", [[2, 0], [3, 1]]),
        ("180 degrees", [[3, 2], [1, 0]]),
        ("270 degrees", [[1, 3], [0, 2]]),
    ],
)
def test_turns_go_clockwise(rotation: str, turned: Any) -> None:
    assert grey(run("ImageRotate", image=image([0, 1], [2, 3]), rotation=rotation)) == turned


def test_flips() -> None:
    one = image([0, 1], [2, 3])
    assert grey(run("ImageFlip", image=one, flip_method="x-axis: vertically")) == [[2, 3], [0, 1]]
    assert grey(run("ImageFlip", image=one, flip_method="y-axis: horizontally")) == [[1, 0], [3, 2]]


def test_padding_is_grey_and_its_mask_says_where() -> None:
    out, mask = run(
        "ImagePadForOutpaint", image=image([1, 1]), left=1, top=0, right=0, bottom=1, feathering=0
    )
    assert grey(out) == [[0.5, 1, 1], [0.5, 0.5, 0.5]]
    assert mask.tolist() == [[[1, 0, 0], [1, 1, 1]]]


def test_a_feathered_mask_falls_off_by_squares_from_the_padded_side() -> None:
    row = np.zeros((1, 9, 9, 3), np.float32)
    _, mask = run("ImagePadForOutpaint", image=row, left=2, top=0, right=0, bottom=0, feathering=4)
    assert_allclose(mask[0, 4], [1, 1, 1, 0.5625, 0.25, 0.0625, 0, 0, 0, 0, 0])


def test_a_feather_that_has_no_room_is_none() -> None:
    _, mask = run("ImagePadForOutpaint", image=image([1, 1]), left=1, top=0, right=0, bottom=0, feathering=40)
    assert mask.tolist() == [[[1, 0, 0]]]


@pytest.mark.parametrize(
    ("method", "doubled"),
    [
        ("nearest-exact", [0, 0, 1, 1]),
        ("area", [0, 0, 1, 1]),
        ("bilinear", [0, 0.25, 0.75, 1]),
        ("bicubic", [-0.1055, 0.2266, 0.7734, 1.1055]),  # with -0.75, as torch has it; it swings beyond
    ],
)
def test_a_step_twice_as_wide(method: str, doubled: list[float]) -> None:
    out = run("ImageScale", image=image([0, 1]), upscale_method=method, width=4, height=1, crop="disabled")
    assert_allclose(out[0, 0, :, 0], doubled, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "halved"),
    [
        ("nearest-exact", [0.2, 1.0]),
        ("area", [0.1, 0.7]),
        ("bilinear", [0.1, 0.7]),  # between the two in the middle of each
    ],
)
def test_four_pixels_in_two(method: str, halved: list[float]) -> None:
    four = image([0, 0.2, 0.4, 1.0])
    out = run("ImageScale", image=four, upscale_method=method, width=2, height=1, crop="disabled")
    assert_allclose(out[0, 0, :, 0], halved, atol=1e-6)


def test_nothing_but_area_and_lanczos_looks_at_all_of_what_it_makes_smaller() -> None:
    spike = np.zeros((1, 1, 100, 3), np.float32)
    spike[0, 0, 1] = 1
    for method, seen in (("bilinear", 0), ("bicubic", 0), ("nearest-exact", 0), ("area", 0.1)):
        out = run("ImageScale", image=spike, upscale_method=method, width=10, height=1, crop="disabled")
        assert out[0, 0, 0, 0] == pytest.approx(seen, abs=1e-6), method


def test_area_takes_every_pixel_that_is_touched_as_a_whole() -> None:
    out = run("ImageScale", image=image([0, 1, 0]), upscale_method="area", width=2, height=1, crop="disabled")
    assert grey(out) == [[0.5, 0.5]]


def test_lanczos_keeps_levels_as_pillow_does() -> None:
    rng = np.random.default_rng(2)
    levels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    for width, height in ((13, 11), (64, 50), (32, 9)):
        theirs = np.array(Pillow.fromarray(levels).resize((width, height), Pillow.Resampling.LANCZOS))
        ours = run(
            "ImageScale",
            image=levels[None] / np.float32(255),
            upscale_method="lanczos",
            width=width,
            height=height,
            crop="disabled",
        )
        off = np.abs(np.rint(ours[0] * 255) - theirs)
        assert off.max() <= 1
        assert off.mean() < 0.01


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [(0, 0, (4, 8)), (4, 0, (2, 4)), (0, 2, (2, 4)), (3, 5, (5, 3)), (0, 1, (1, 2))],
)
def test_a_side_of_zero_keeps_the_proportions(width: int, height: int, shape: Any) -> None:
    eight = np.zeros((1, 4, 8, 3), np.float32)
    out = run(
        "ImageScale", image=eight, upscale_method="bilinear", width=width, height=height, crop="disabled"
    )
    assert out.shape[1:3] == shape


def test_a_centred_crop_keeps_the_middle() -> None:
    four = image([0, 0.3, 0.6, 0.9], [0, 0.3, 0.6, 0.9])
    out = run("ImageScale", image=four, upscale_method="nearest-exact", width=2, height=2, crop="center")
    assert grey(out) == [[0.3, 0.6], [0.3, 0.6]]


def test_scaling_by_a_factor_by_pixels_and_by_the_longer_side() -> None:
    one = np.zeros((2, 30, 60, 3), np.float32)
    assert run("ImageScaleBy", image=one, upscale_method="bilinear", scale_by=0.77).shape == (2, 23, 46, 3)
    total = run("ImageScaleToTotalPixels", image=one, upscale_method="bilinear", megapixels=0.01)
    assert total.shape == (2, 72, 145, 3)
    stepped = run(
        "ImageScaleToTotalPixels", image=one, upscale_method="area", megapixels=0.01, resolution_steps=16
    )
    assert stepped.shape == (2, 80, 144, 3)
    longer = run("ImageScaleToMaxDimension", image=one, upscale_method="lanczos", largest_size=20)
    assert longer.shape == (2, 10, 20, 3)


@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("EmptyImage", {"width": 16384, "height": 16384}),
        ("EmptyImage", {"width": 512, "height": 512, "batch_size": 4096}),
        ("SolidMask", {"value": 1.0, "width": 16384, "height": 16384}),
        ("RepeatImageBatch", {"image": np.zeros((1, 512, 512, 3), np.float32), "amount": 4096}),
        (
            "ImageScaleBy",
            {"image": np.zeros((1, 4096, 3072, 3), np.float32), "upscale_method": "area", "scale_by": 8.0},
        ),
        (
            "ImagePadForOutpaint",
            {"image": image([1]), "left": 9000, "top": 9000, "right": 0, "bottom": 0, "feathering": 0},
        ),
    ],
)
def test_a_picture_that_would_fill_the_memory_is_refused(class_type: str, inputs: Any) -> None:
    with pytest.raises(ValueError, match="are more than 16777216"):
        run(class_type, **inputs)


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0x0 pixels cannot be made"):
        run("ImageScaleBy", image=image([1]), upscale_method="area", scale_by=0.01)


def test_a_blur_keeps_a_plain_picture_and_the_mean_of_a_spike() -> None:
    plain = np.full((1, 9, 9, 3), 0.4, np.float32)
    assert_allclose(run("ImageBlur", image=plain, blur_radius=4, sigma=1.0), plain, atol=1e-6)
    spike = np.zeros((1, 9, 9, 3), np.float32)
    spike[0, 4, 4] = 1
    assert run("ImageBlur", image=spike, blur_radius=2, sigma=1.0).sum() == pytest.approx(3, abs=1e-4)


def test_a_blurs_sigma_is_in_halves_of_its_window() -> None:
    spike = np.zeros((1, 5, 5, 3), np.float32)
    spike[0, 2, 2] = 1
    side = float(np.exp(-0.5))  # at the edge of the window, one sigma away
    out = run("ImageBlur", image=spike, blur_radius=1, sigma=1.0)
    assert out[0, 2, 1, 0] / out[0, 2, 2, 0] == pytest.approx(side, rel=1e-5)
    assert out[0, 1, 1, 0] / out[0, 2, 2, 0] == pytest.approx(side * side, rel=1e-5)
    assert out[0, 2, 0, 0] == 0


def test_a_blur_reflects_at_the_edge_without_the_edge_itself() -> None:
    out = run("ImageBlur", image=image([1, 0, 0], [1, 0, 0], [1, 0, 0]), blur_radius=1, sigma=10.0)
    third = 1 / 3  # with so wide a sigma all three weigh about the same
    assert_allclose(out[0, 1, :, 0], [third, third, 0], atol=2e-3)


def test_a_blur_wider_than_the_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="a radius of 3 wants a picture of more than 3 pixels a side, not 3"):
        run("ImageBlur", image=np.zeros((1, 3, 9, 3), np.float32), blur_radius=3, sigma=1.0)


def test_sharpening_goes_ten_times_as_far_from_the_blur_as_alpha_says() -> None:
    one = np.full((1, 5, 5, 3), 0.5, np.float32)
    one[0, 2, 2] = 0.51
    soft = run("ImageBlur", image=one, blur_radius=1, sigma=1.0)
    out = run("ImageSharpen", image=one, sharpen_radius=1, sigma=1.0, alpha=0.5)
    assert_allclose(out, one + 5 * (one - soft), atol=1e-5)
    assert run("ImageSharpen", image=one, sharpen_radius=1, sigma=1.0, alpha=5.0).max() <= 1


def test_canny_draws_a_line_of_one_pixel_along_a_step() -> None:
    step = np.zeros((1, 12, 12, 3), np.float32)
    step[:, :, 6:] = 1
    edges = run("Canny", image=step, low_threshold=0.4, high_threshold=0.8)
    assert edges.shape == (1, 12, 12, 3)
    assert edges[0, :, :, 0].sum(axis=1).tolist() == [1] * 12
    assert edges[0, :, 5:7, 0].sum(axis=1).tolist() == [1] * 12


def test_canny_keeps_weak_edges_only_where_they_hang_on_strong_ones() -> None:
    growing = np.zeros((1, 60, 60, 3), np.float32)
    growing[0, :, 10:25] = np.linspace(0.06, 1, 60, dtype=np.float32)[:, None, None]
    growing[0, :, 40:] = 0.2  # as steep as the other is where it is weak, and nowhere steeper
    edges = run("Canny", image=growing, low_threshold=0.3, high_threshold=0.9)[0, ..., 0]
    alone = run("Canny", image=growing, low_threshold=0.9, high_threshold=0.9)[0, ..., 0]
    assert not edges[:, 35:].any()
    assert edges[:, :35].sum() > alone[:, :35].sum() + 10
    assert set(np.unique(edges)) == {0, 1}


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 3, 3, 4), (2, 7, 5, 3)])
def test_canny_takes_any_picture(shape: Any) -> None:
    edges = run("Canny", image=np.zeros(shape, np.float32), low_threshold=0.1, high_threshold=0.2)
    assert edges.shape == (*shape[:3], 3)
    assert not edges.any()


@pytest.mark.parametrize("colors", [1, 2, 7, 256])
def test_quantizing_leaves_so_many_colours_at_most(colors: int) -> None:
    rng = np.random.default_rng(3)
    noise = rng.random((1, 40, 40, 3), dtype=np.float32)
    out = run("ImageQuantize", image=noise, colors=colors, dither="none")
    assert 1 <= len(np.unique(out.reshape(-1, 3), axis=0)) <= colors


def test_colours_that_there_are_few_of_are_kept() -> None:
    two = image([0.2, 0.8], [0.8, 0.2])
    out = run("ImageQuantize", image=two, colors=8, dither="none")
    assert_allclose(out, np.trunc(two * 255) / 255, atol=1e-6)


@pytest.mark.parametrize("dither", ["bayer-2", "bayer-4", "bayer-8", "bayer-16"])
def test_dithering_keeps_the_mean_of_a_shade_that_is_no_colour_of_the_palette(dither: str) -> None:
    ramp = np.repeat(np.linspace(0, 1, 64, dtype=np.float32)[None, None, :, None], 3, axis=-1)
    ramp = np.repeat(ramp, 64, axis=1)
    plain = run("ImageQuantize", image=ramp, colors=2, dither="none")
    dithered = run("ImageQuantize", image=ramp, colors=2, dither=dither)
    middle = slice(20, 44)
    wanted = ramp[0, :, middle, 0].mean(axis=0)
    off = np.abs(dithered[0, :, middle, 0].mean(axis=0) - wanted).mean()
    assert off < np.abs(plain[0, :, middle, 0].mean(axis=0) - wanted).mean()


@pytest.mark.parametrize(
    ("operation", "row"),
    [
        ("erode", [0, 0, 0, 0, 0, 1, 1]),
        ("dilate", [0, 1, 1, 1, 1, 1, 1]),
        ("open", [0, 0, 0, 0, 1, 1, 1]),
        ("close", [0, 0, 1, 1, 1, 1, 1]),
        ("gradient", [0, 1, 1, 1, 1, 0, 0]),
        ("top_hat", [0, 0, 1, 0, 0, 0, 0]),
        ("bottom_hat", [0, 0, 0, 1, 0, 0, 0]),
    ],
)
def test_morphology(operation: str, row: list[float]) -> None:
    bars = np.repeat(image([0, 0, 1, 0, 1, 1, 1]), 5, axis=1)
    out = run("Morphology", image=bars, operation=operation, kernel_size=3)
    assert out[0, 2, :, 0].tolist() == row


def test_an_even_window_undoes_itself() -> None:
    bars = np.repeat(image([0, 0, 1, 1, 1, 1, 0, 0, 0, 0]), 10, axis=1)
    bars = np.minimum(bars, bars.transpose(0, 2, 1, 3))
    assert_allclose(run("Morphology", image=bars, operation="open", kernel_size=4), bars)
    holes = 1 - bars
    assert_allclose(run("Morphology", image=holes, operation="close", kernel_size=4), holes)
