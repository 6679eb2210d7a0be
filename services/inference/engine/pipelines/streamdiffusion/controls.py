"""Filters of pictures before and after diffusion, by OpenCV and without weights: what is not here is refused.

Each takes uint8 (H, W, 3), RGB, 0..255, and returns the same, of the same size unless it is `upscale`. None
remembers anything: `feedback` is given the picture that the pipeline made last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from sluice.pipeline import Param

Picture = NDArray[np.uint8]
Real = NDArray[np.float32]  # of the same shape and range; (H, W) if grey
Latent = TypeVar("Latent")
Filter = Callable[[Picture, Picture | None, Mapping[str, Any]], Picture]

WHOLE: Final = 255.0
# Of the three scales of `soft_edge`: a fine line counts for more than a coarse one, as in HED's side outputs.
SOFT_EDGE_SCALES: Final = ((1.0, 0.5), (2.0, 0.3), (4.0, 0.2))
SHARPEN_SCALES: Final = ((0.5, 0.3), (1.0, 0.5), (2.0, 0.2))  # of `multi_scale`: share of the radius, weight
FAINTEST_LINE: Final = 16.0  # `standard_lineart` does not make a line of noise below it
INTERPOLATIONS: Final[Mapping[str, int]] = {
    "bilinear": cv2.INTER_LINEAR,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "nearest": cv2.INTER_NEAREST,
}


@dataclass(frozen=True, slots=True)
class Processor:
    """A filter and what can be set of it."""

    help: str
    apply: Filter
    params: Mapping[str, Param]


@dataclass(frozen=True, slots=True)
class Step:
    """A filter with its values; of two that are equal the pictures are."""

    type: str
    values: tuple[tuple[str, bool | float | str], ...]

    @classmethod
    def of(cls, kind: str, values: Mapping[str, Any]) -> Step:
        """Values that are not given are the defaults."""
        declared = PROCESSORS[kind].params
        return cls(kind, tuple((name, values.get(name, param.default)) for name, param in declared.items()))

    def __call__(self, rgb: Picture, made_last: Picture | None = None) -> Picture:
        return PROCESSORS[self.type].apply(rgb, made_last, dict(self.values))


def through(steps: tuple[Step, ...], rgb: Picture, made_last: Picture | None = None) -> Picture:
    """Return what the `steps`, one after the other, make of `rgb`."""
    for step in steps:
        rgb = step(rgb, made_last)
    return rgb


def latent_feedback(latent: Latent, before: Latent | None, strength: float) -> Latent:
    """Mix a latent with the one before it: (1 - s) z + s z_before; the first passes as it is.

    For tensors of any library; both of one shape, device and dtype.
    """
    if before is None or strength <= 0:
        return latent
    now, last = cast("Any", latent), cast("Any", before)
    mixed: Latent = (1 - strength) * now + strength * last
    return mixed


def _passthrough(rgb: Picture, made_last: Picture | None, values: Mapping[str, Any]) -> Picture:
    return rgb


def _blur(rgb: Picture, made_last: Picture | None, values: Mapping[str, Any]) -> Picture:
    side = int(values["kernel_size"]) | 1  # a kernel has a middle
    return _picture(cv2.GaussianBlur(rgb, (side, side), float(values["blur_intensity"])))


def _canny(rgb: Picture, made_last: Picture | None, values: Mapping[str, Any]) -> Picture:
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return _of_grey(cv2.Canny(grey, float(values["low_threshold"]), float(values["high_threshold"])))


def _feedback(rgb: Picture, made_last: Picture | None, values: Mapping[str, Any]) -> Picture:
    strength = float(values["feedback_strength"])
    if made_last is None or strength <= 0:
        return rgb
    height, width = rgb.shape[:2]
    if made_last.shape != rgb.shape:
        made_last = _picture(cv2.resize(made_last, (width, height), interpolation=cv2.INTER_LINEAR))
    return _picture(cv2.addWeighted(rgb, 1 - strength, made_last, strength, 0))


def _sharpen(rgb: Picture, made_last: Picture | None, values: Mapping[str, Any]) -> Picture:
    sharp = rgb.astype(np.float32)
    noise_reduction = float(values["noise_reduction"])
    if noise_reduction > 0:
        calm = cv2.medianBlur(sharp, 3)
        sharp = _real(cv2.addWeighted(sharp, 1 - noise_reduction, calm, noise_reduction, 0))
    scales = SHARPEN_SCALES if values["multi_scale"] else ((1.0, 1.0),)
    before = sharp
    for share, weight in scales:
        coarse = _blurred(before, share * float(values["unsharp_radius"]))
        sharp = sharp + np.float32(weight * float(values["sharpen_intensity"])) * (before - coarse)
    edges, details = float(values["edge_enhancement"]), float(values["detail_boost"])
    if edges > 0:  # a difference of neighbours is an eighth of what Sobel says
        sharp = sharp + np.float32(edges / 8) * _slope(before)
    if details > 0:
        sharp = sharp - np.float32(details) * _real(cv2.Laplacian(before, cv2.CV_32F))
    return _rounded(sharp)


def _soft_edge(rgb: Picture, made_last: Picture | None, values: Mapping[str, Any]) -> Picture:
    grey = _real(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32))
    edge = np.zeros_like(grey)
    for sigma, weight in SOFT_EDGE_SCALES:
        # A blurred step is less steep by its breadth, and as much of an edge as before.
        edge += np.float32(weight * sigma) * _slope(_blurred(grey, sigma))
    edge = _blurred(edge, 1.0)
    steepest = float(edge.max())
    if steepest < 1:
        return np.zeros_like(rgb)
    edge /= np.float32(steepest)
    return _of_grey(_rounded(np.float32(WHOLE) * edge * edge * (3 - 2 * edge)))


def _standard_lineart(rgb: Picture, made_last: Picture | None, values: Mapping[str, Any]) -> Picture:
    picture = rgb.astype(np.float32)
    around = _blurred(picture, float(values["gaussian_sigma"]))
    darker = np.clip((around - picture).min(axis=2), 0, WHOLE)  # than what is around it, in every colour
    lines = darker[darker > float(values["intensity_threshold"])]
    usual = max(FAINTEST_LINE, float(np.median(lines))) if lines.size else FAINTEST_LINE
    return _of_grey(_rounded(darker * np.float32(WHOLE / 2 / usual)))


def _upscale(rgb: Picture, made_last: Picture | None, values: Mapping[str, Any]) -> Picture:
    height, width = rgb.shape[:2]
    factor = float(values["scale_factor"])
    # Both even: the encoder halves the colours' resolution.
    size = 2 * max(1, round(width * factor / 2)), 2 * max(1, round(height * factor / 2))
    return _picture(cv2.resize(rgb, size, interpolation=INTERPOLATIONS[values["algorithm"]]))


def _slope(picture: Real) -> Real:
    """How steep it is, whichever way: of a step from 0 to 1 it is 4 at both sides."""
    across, down = cv2.Sobel(picture, cv2.CV_32F, 1, 0), cv2.Sobel(picture, cv2.CV_32F, 0, 1)
    return _real(cv2.magnitude(across, down))


def _blurred(picture: Real, sigma: float) -> Real:
    return _real(cv2.GaussianBlur(picture, (0, 0), sigma))


def _rounded(picture: Real) -> Picture:
    return np.clip(np.rint(picture), 0, WHOLE).astype(np.uint8)


def _of_grey(grey: NDArray[Any]) -> Picture:
    return _picture(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB))


def _real(array: NDArray[Any]) -> Real:
    assert array.dtype == np.float32, array.dtype
    return array


def _picture(array: NDArray[Any]) -> Picture:
    assert array.dtype == np.uint8, array.dtype
    return array


PROCESSORS: Final[Mapping[str, Processor]] = {
    "passthrough": Processor("The picture as it is.", _passthrough, {}),
    "external": Processor("The picture as it is, for it is a control picture already.", _passthrough, {}),
    "blur": Processor(
        "A Gaussian blur.",
        _blur,
        {
            "blur_intensity": Param(
                default=2.0, help="Standard deviation, in pixels.", minimum=0.1, maximum=10
            ),
            "kernel_size": Param(
                default=15, help="In pixels; an even one is made odd.", minimum=3, maximum=51
            ),
        },
    ),
    "canny": Processor(
        "Thin white edges on black.",
        _canny,
        {
            "low_threshold": Param(
                default=100.0, help="A slope that goes on an edge.", minimum=0, maximum=1000
            ),
            "high_threshold": Param(
                default=200.0, help="A slope that begins an edge.", minimum=0, maximum=1000
            ),
        },
    ),
    "feedback": Processor(
        "A mixture with the picture that was made last.",
        _feedback,
        {"feedback_strength": Param(default=0.5, help="Share of the last picture.", minimum=0, maximum=1)},
    ),
    "sharpen": Processor(
        "Details made clearer.",
        _sharpen,
        {
            "sharpen_intensity": Param(
                default=1.5, help="How much of what a blur takes away is added.", minimum=0, maximum=5
            ),
            "unsharp_radius": Param(default=1.0, help="Of that blur, in pixels.", minimum=0.1, maximum=5),
            "edge_enhancement": Param(default=0.5, help="Edges made brighter.", minimum=0, maximum=2),
            "detail_boost": Param(
                default=0.3, help="Difference to the neighbours that is added.", minimum=0, maximum=1
            ),
            "noise_reduction": Param(
                default=0.1, help="Share of a median filter, before.", minimum=0, maximum=0.5
            ),
            "multi_scale": Param(default=True, help="At half and twice the radius, too."),
        },
    ),
    "soft_edge": Processor("Soft white edges on black, at three scales.", _soft_edge, {}),
    "standard_lineart": Processor(
        "What is darker than what is around it, as white lines on black.",
        _standard_lineart,
        {
            "gaussian_sigma": Param(
                default=6.0, help="How far around counts, in pixels.", minimum=1, maximum=20
            ),
            "intensity_threshold": Param(
                default=8, help="What is darker by less is no line, of 255.", minimum=0, maximum=50
            ),
        },
    ),
    "upscale": Processor(
        "A larger picture.",
        _upscale,
        {
            "scale_factor": Param(default=2.0, help="Of each side.", minimum=1, maximum=4),
            "algorithm": Param(
                default="bilinear", help="How it is interpolated.", choices=tuple(INTERPOLATIONS)
            ),
        },
    ),
}

# They are models of their own, and none of them is built in.
NEED_WEIGHTS: Final = (
    "depth",
    "depth_tensorrt",
    "hed",
    "lineart",
    "mediapipe_pose",
    "mediapipe_segmentation",
    "openpose",
    "pose_tensorrt",
    "realesrgan_trt",
    "temporal_net_tensorrt",
)
