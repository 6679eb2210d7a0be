from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.testing import assert_allclose

from services.inference.engine.pipelines.comfyui.conversion import convert
from services.inference.engine.pipelines.comfyui.gallery import Gallery, PictureError
from services.inference.engine.pipelines.comfyui.nodes import catalogue
from services.inference.engine.pipelines.comfyui.own import Bench, OwnRun
from services.inference.engine.pipelines.comfyui.refusals import WorkflowError
from services.inference.engine.pipelines.comfyui.static_results import StaticResults
from services.inference.engine.pipelines.comfyui.workflow import parse


def png(*shape: int, level: int = 100, kind: Any = np.uint8) -> bytes:
    done, data = cv2.imencode(".png", np.full(shape, level, kind))
    assert done
    return data.tobytes()


def sent(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "secret.png").write_bytes(png(2, 2, 3))
    return Gallery(tmp_path / "pictures")


def put(gallery: Gallery, name: str, data: bytes) -> None:
    assert gallery.root is not None
    path = gallery.root / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def test_a_picture_without_alpha_has_a_mask_of_zeros(gallery: Gallery) -> None:
    bgr = np.zeros((3, 5, 3), np.uint8)
    bgr[..., 2] = 255
    put(gallery, "red.png", cv2.imencode(".png", bgr)[1].tobytes())
    image, mask = gallery.image("red.png")
    assert image.shape == (1, 3, 5, 3)
    assert image[0, 0, 0].tolist() == [1, 0, 0]
    assert mask.shape == (1, 64, 64)
    assert not mask.any()


def test_alpha_is_a_mask_of_what_is_transparent(gallery: Gallery) -> None:
    bgra = np.zeros((2, 2, 4), np.uint8)
    bgra[..., 3] = 51
    put(gallery, "in a folder/half.png", cv2.imencode(".png", bgra)[1].tobytes())
    image, mask = gallery.image("in a folder/half.png [input]")
    assert image.shape == (1, 2, 2, 3)
    assert_allclose(mask, 0.8)


def test_grey_and_sixteen_bits_are_pictures_too(gallery: Gallery) -> None:
    put(gallery, "grey.png", png(2, 2, level=51))
    put(gallery, "deep.png", png(2, 2, 3, level=0x3333, kind=np.uint16))
    put(gallery, "deep and clear.png", png(2, 2, 4, level=0x3333, kind=np.uint16))
    for name in ("grey.png", "deep.png", "deep and clear.png"):
        assert_allclose(gallery.image(name)[0], 0.2, atol=1e-6)


def test_a_photograph_is_turned_as_its_exif_says(gallery: Gallery) -> None:
    bgr = np.zeros((16, 32, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", bgr)[1].tobytes()
    orientation = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"Exif\x00\x00" + orientation
    put(gallery, "turned.jpg", jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:])
    assert gallery.image("turned.jpg")[0].shape == (1, 32, 16, 3)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "", ".", "nothing.png", "a" * 5000, "a\0b", "../pictures", "~"]
)
def test_a_name_never_leads_out_of_the_directory(gallery: Gallery, name: str) -> None:
    with pytest.raises(PictureError, match="Invalid image file"):
        gallery.read(name)
    assert gallery.problem(name)


def test_a_link_out_of_the_directory_is_not_followed(gallery: Gallery) -> None:
    assert gallery.root is not None
    (gallery.root / "out.png").symlink_to(gallery.root.parent / "secret.png")
    with pytest.raises(PictureError):
        gallery.read("out.png")


def test_without_a_directory_there_is_what_is_sent_along(gallery: Gallery) -> None:
    alone = Gallery(None)
    assert "no directory of pictures is set here" in (alone.problem("a.png") or "")
    assert alone.image(sent(png(2, 3, 3)))[0].shape == (1, 2, 3, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("data:image/png,abc", "is data:image/png;base64"),
        ("data:image/png;base64", "is data:image/png;base64"),
        ("data:image/png;base64,!!!", "is not base64"),
        (sent(b"<svg/>", "svg+xml"), "is a PNG or a JPEG"),
        ("data:image/png;base64," + "A" * (33 << 20), "has more than"),
    ],
)
def test_what_is_sent_along_and_is_no_picture_is_refused(gallery: Gallery, name: str, words: str) -> None:
    assert words in (gallery.problem(name) or "")


def test_a_picture_that_is_small_and_says_it_is_huge_is_refused_unopened(gallery: Gallery) -> None:
    bomb = bytearray(png(2, 2, 3))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    assert "60000x60000 pixels is larger" in (gallery.problem(sent(bytes(bomb))) or "")
    jpeg = bytearray(cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes())
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 50_000, 40_000)
    assert "40000x50000 pixels" in (gallery.problem(sent(bytes(jpeg), "jpeg")) or "")


def test_what_only_begins_like_a_picture_says_so(gallery: Gallery) -> None:
    with pytest.raises(PictureError, match="is no picture that can be read"):
        gallery.image(sent(b"\x89PNG\r\n\x1a\n" + bytes(40)))


WORKFLOW = {
    "1": {"class_type": "PrimaryInputLoadImage", "inputs": {"image": "x"}},
    "2": {"class_type": "LoadImage", "inputs": {"image": "paper.png"}},
    "3": {"class_type": "LoadImageMask", "inputs": {"image": "paper.png", "channel": "red"}},
    "4": {
        "class_type": "ImageCompositeMasked",
        "inputs": {
            "destination": ["1", 0],
            "source": ["2", 0],
            "mask": ["3", 0],
            "x": 0,
            "y": 0,
            "resize_source": False,
        },
    },
    "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
}


def test_a_file_that_changed_is_another_picture(gallery: Gallery) -> None:
    put(gallery, "paper.png", png(4, 4, 3, level=255))
    bench = Bench(catalogue(gallery), StaticResults())
    black = np.zeros((4, 4, 3), np.uint8)
    first = OwnRun(bench, convert(parse(WORKFLOW)), {})
    put(gallery, "paper.png", png(4, 4, 3, level=51))
    second = OwnRun(bench, convert(parse(WORKFLOW)), {})
    assert [int(run.frame(black).picture[0, 0, 0]) for run in (first, second)] == [255, 10]  # type: ignore[index]


def test_a_file_that_is_not_there_is_refused_as_comfyui_does(gallery: Gallery) -> None:
    bench = Bench(catalogue(gallery), StaticResults())
    with pytest.raises(
        WorkflowError, match=r"node 2 \(LoadImage\).*Invalid image file: 'paper.png'"
    ) as refused:
        OwnRun(bench, convert(parse(WORKFLOW)), {})
    problem = refused.value.answer["node_errors"]["2"]["errors"][0]
    assert problem["type"] == "custom_validation_failed"


@pytest.mark.parametrize(("channel", "value"), [("red", 0.2), ("alpha", 0.0)])
def test_a_mask_of_a_picture_without_alpha_has_the_pictures_size(
    gallery: Gallery, channel: str, value: float
) -> None:
    put(gallery, "paper.png", png(4, 4, 3, level=51))
    (mask,) = catalogue(gallery)["LoadImageMask"].run(image="paper.png", channel=channel)
    assert mask.shape == (1, 4, 4)
    assert_allclose(mask, value, atol=1e-6)
