from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.nodes import catalogue

KINDS = catalogue(Gallery(None))


def mask(*rows: Any) -> NDArray[np.float32]:
    return np.array(rows, np.float32)[None]


def colour(*rows: Any) -> NDArray[np.float32]:
    return np.array(rows, np.float32)[None]


def run(class_type: str, **inputs: Any) -> Any:
    outputs = KINDS[class_type].run(**inputs)
    return outputs[0] if len(outputs) == 1 else outputs


def test_a_mask_as_an_image_and_back() -> None:
    as_image = run("MaskToImage", mask=mask([0.25, 1]))
    assert as_image.tolist() == [[[[0.25] * 3, [1, 1, 1]]]]
    assert run("ImageToMask", image=as_image, channel="green").tolist() == [[[0.25, 1]]]


@pytest.mark.parametrize(("channel", "value"), [("red", 1.0), ("green", 0.5), ("blue", 0.0), ("alpha", 0.25)])
def test_each_channel_is_a_mask(channel: str, value: float) -> None:
    assert run("ImageToMask", image=colour([[1, 0.5, 0, 0.25]]), channel=channel).tolist() == [[[value]]]


def test_an_image_without_alpha_has_no_mask_of_it() -> None:
    with pytest.raises(ValueError, match="an image of 3 channels has no alpha"):
        run("ImageToMask", image=colour([[1, 0, 0]]), channel="alpha")


def test_a_colour_is_a_mask_of_where_it_is_to_the_level() -> None:
    row = colour([[1, 128 / 255, 0], [1, 129 / 255, 0], [1.2, 0.5020, -1]])
    assert run("ImageColorToMask", image=row, color=0xFF8000).tolist() == [[[1, 0, 1]]]


def test_a_threshold_is_strict() -> None:
    assert run("ThresholdMask", mask=mask([0.2, 0.5, 0.51]), value=0.5).tolist() == [[[0, 0, 1]]]


def test_inverted_solid_and_cropped_masks() -> None:
    assert run("InvertMask", mask=mask([0, 0.25])).tolist() == [[[1, 0.75]]]
    assert run("SolidMask", value=0.5, width=2, height=1).tolist() == [[[0.5, 0.5]]]
    cut = run("CropMask", mask=mask([0, 1, 2], [3, 4, 5]), x=1, y=1, width=9, height=9)
    assert cut.tolist() == [[[4, 5]]]
    with pytest.raises(ValueError, match="nothing of a mask of 2x1 pixels is at 5, 0"):
        run("CropMask", mask=mask([0, 1]), x=5, y=0, width=1, height=1)


DOT = mask([0, 0, 0], [0, 1, 0], [0, 0, 0])


@pytest.mark.parametrize(
    ("tapered", "grown"),
    [(True, [[0, 1, 0], [1, 1, 1], [0, 1, 0]]), (False, [[1, 1, 1], [1, 1, 1], [1, 1, 1]])],
)
def test_a_mask_grows_with_or_without_its_corners(tapered: bool, grown: Any) -> None:
    assert run("GrowMask", mask=DOT, expand=1, tapered_corners=tapered).tolist() == [grown]


def test_a_mask_shrinks_and_the_edge_of_the_picture_takes_nothing() -> None:
    full = np.ones((1, 4, 4), np.float32)
    assert run("GrowMask", mask=full, expand=-3, tapered_corners=True).all()
    assert not run("GrowMask", mask=DOT, expand=-1, tapered_corners=True).any()
    assert run("GrowMask", mask=DOT, expand=0, tapered_corners=True) is DOT


def test_growing_beyond_the_picture_ends() -> None:
    assert run("GrowMask", mask=DOT, expand=16384, tapered_corners=True).all()


def test_every_feather_begins_at_its_own_edge() -> None:
    full = np.ones((1, 4, 5), np.float32)
    out = run("FeatherMask", mask=full, left=2, top=0, right=4, bottom=0)
    assert_allclose(out[0, 0], [0.5 * 1, 1.0, 0.75, 0.5, 0.25])
    assert_allclose(run("FeatherMask", mask=full, left=0, top=1, right=0, bottom=2)[0, :, 0], [1, 1, 1, 0.5])
    assert run("FeatherMask", mask=full, left=0, top=99, right=0, bottom=0)[0, :, 0].tolist() == [
        0.25,
        0.5,
        0.75,
        1,
    ]


@pytest.mark.parametrize(
    ("operation", "row"),
    [
        ("multiply", [0.5, 0.4, 0.06]),
        ("add", [0.5, 1, 0.5]),
        ("subtract", [0.5, 0.3, 0]),
        # of what is more than a half
        ("and", [0.5, 0, 0]),
        ("or", [0.5, 1, 0]),
        ("xor", [0.5, 1, 0]),
    ],
)
def test_masks_are_combined_where_the_second_lies(operation: str, row: list[float]) -> None:
    inputs = {"destination": mask([0.5, 0.8, 0.2]), "source": mask([0.5, 0.3, 1]), "x": 1, "y": 0}
    assert_allclose(run("MaskComposite", **inputs, operation=operation)[0, 0], row, atol=1e-6)


def test_a_mask_put_outside_of_another_changes_nothing() -> None:
    out = run("MaskComposite", destination=mask([0.5]), source=mask([1]), x=9, y=9, operation="add")
    assert out.tolist() == [[[0.5]]]


def test_an_image_is_put_on_another_at_its_place() -> None:
    ground, patch = np.zeros((1, 2, 3, 3), np.float32), np.ones((1, 2, 2, 3), np.float32)
    out = run(
        "ImageCompositeMasked", destination=ground, source=patch, x=2, y=1, resize_source=False, mask=None
    )
    assert out[0, ..., 0].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert not ground.any()


def test_an_image_is_put_on_another_as_much_as_its_mask_says() -> None:
    ground, patch = np.zeros((1, 1, 2, 3), np.float32), np.ones((1, 1, 2, 3), np.float32)
    out = run(
        "ImageCompositeMasked",
        destination=ground,
        source=patch,
        x=0,
        y=0,
        resize_source=False,
        mask=mask([0.25, 1]),
    )
    assert out[0, 0, :, 0].tolist() == [0.25, 1]


def test_a_resized_source_covers_the_other_and_a_mask_is_stretched_to_the_source() -> None:
    ground, patch = np.zeros((2, 4, 4, 3), np.float32), np.ones((1, 1, 1, 3), np.float32)
    out = run(
        "ImageCompositeMasked",
        destination=ground,
        source=patch,
        x=0,
        y=0,
        resize_source=True,
        mask=mask([0.5]),
    )
    assert out.shape == (2, 4, 4, 3)
    assert (out == 0.5).all()


def test_alpha_is_split_off_and_put_on_as_a_mask_of_what_is_missing() -> None:
    both = colour([[0.1, 0.2, 0.3, 0.75]])
    rgb, alpha = run("SplitImageWithAlpha", image=both)
    assert rgb.shape == (1, 1, 1, 3)
    assert alpha.tolist() == [[[0.25]]]
    assert_allclose(run("JoinImageWithAlpha", image=rgb, alpha=alpha), both)
    assert not run("SplitImageWithAlpha", image=rgb)[1].any()


def test_texts_and_numbers_pass() -> None:
    assert run("PrimitiveInt", value=7) == 7
    assert run("StringConcatenate", string_a="a", string_b="b", delimiter=", ") == "a, b"
