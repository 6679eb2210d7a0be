"""Paints the playground's pictures, with the pipelines they stand for: run it as a module to renew them.

"Big Buck Bunny", (c) 2008 Blender Foundation, www.bigbuckbunny.org, CC BY 3.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from services.inference.engine.pipelines.effects import Effects
from services.inference.engine.pipelines.looks import LOOKS
from sluice.pipeline import Setup, VideoFrame, defaults

ROOT: Final = Path(__file__).resolve().parents[2]
CLIP: Final = ROOT / "tests/data/bigbuckbunny.mp4"
ASSETS: Final = ROOT / "playground/src/assets"
FRAME: Final = 126
RABBIT: Final = (0.33, 0.31)  # its face and chest in that frame, as shares of width and height
NEAR: Final = 1.6  # how much larger the face is shown than in the frame
WIDTH, HEIGHT = 960, 540
CARD: Final = (480, 270)
LOOK: Final = (192, 108)
QUALITY: Final = 78
SLANT: Final = 0.12  # of the width: how far the borders of the slices lean
SLICED: Final = ("watercolor", "comic", "neon")  # on the card of `effects`

Picture = NDArray[np.uint8]


def main() -> None:
    source = _frame(FRAME)
    _write("passthrough", source, CARD)
    for look in LOOKS:
        _write(f"look-{look}", _painted(_around(source, 0.5), look), LOOK)
    places = [(index + 0.5) / len(SLICED) for index in range(len(SLICED))]
    _write(
        "effects",
        _sliced([_painted(_around(source, at), look) for look, at in zip(SLICED, places, strict=True)]),
        CARD,
    )


def _around(rgb: Picture, at: float) -> Picture:
    """The rabbit, nearer, with its middle at this share of the width."""
    height, width = rgb.shape[:2]
    move = np.array(
        [
            [NEAR, 0, (at - NEAR * RABBIT[0]) * width],
            [0, NEAR, (0.5 - NEAR * RABBIT[1]) * height],
        ]
    )
    near = cv2.warpAffine(rgb, move, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(near, np.uint8)


def _frame(number: int) -> Picture:
    with av.open(str(CLIP)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == number:
                return np.asarray(frame.reformat(WIDTH, HEIGHT, "rgb24").to_ndarray(), np.uint8)
    raise ValueError(f"{CLIP} has no frame {number}")


def _painted(rgb: Picture, look: str) -> Picture:
    pipeline = Effects()
    pipeline.load(Setup.plain(), defaults(type(pipeline)))
    try:
        return pipeline.process(VideoFrame(rgb, 0), {**defaults(Effects), "prompt": look}).rgb
    finally:
        pipeline.close()


def _sliced(pictures: list[Picture]) -> Picture:
    """Beside each other, each in a leaning slice of its own."""
    height, width = pictures[0].shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    lean = (rows / height - 0.5) * SLANT * width
    out = pictures[0].copy()
    for index, picture in enumerate(pictures[1:], start=1):
        edge = columns + lean - index * width / len(pictures)
        out[edge >= 0] = picture[edge >= 0]
        out[np.abs(edge) < width / 400] = 255
    return out


def _write(name: str, rgb: Picture, size: tuple[int, int]) -> None:
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(small, cv2.COLOR_RGB2BGR)
    assert cv2.imwrite(str(ASSETS / f"{name}.webp"), bgr, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])


if __name__ == "__main__":
    main()
