"""A real publisher of numbered pictures with sound, in a process of its own that can be killed and replaced.

The rule it keeps: a picture's number is what the clock says it should be, so one that takes over from a
killed one goes on above its numbers, and what nobody published in between is seen.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from tests.chaos.harness import marks
from tests.support.stack import ROOT

CLIP: Final = ROOT / "tests/data/bigbuckbunny.mp4"
FPS: Final = 30
RATE: Final = 48_000
SAMPLES: Final = 1024  # of an AAC frame
TICK: Final = Fraction(1, FPS)


def start(url: str, log: Path, *, begun_s: float, film: bool = False) -> subprocess.Popen[bytes]:
    """Publish until killed. `begun_s`, monotonic: when picture 0 was, of this publisher or one before."""
    command = [sys.executable, "-m", "tests.chaos.harness.publisher", "--url", url, "--begun", str(begun_s)]
    command += ["--film"] if film else []
    with log.open("ab") as errors:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)


def grounds(*, film: bool) -> list[NDArray[np.uint8]]:
    """What is behind the numbers, each uint8 (H, W, 3), dark where the marks are: a gradient, or a film."""
    return [_above_marks(frame) for frame in _film()] if film else [_above_marks(_gradient())]


def _film() -> Iterator[NDArray[np.uint8]]:
    with av.open(str(CLIP)) as container:
        for frame in container.decode(video=0):
            rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
            small = cv2.resize(rgb, (marks.SIZE[0], marks.TOP - marks.SIDE), interpolation=cv2.INTER_AREA)
            yield np.asarray(np.vstack([small, np.zeros_like(small)])[: marks.SIZE[1]], np.uint8)


def _above_marks(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    rgb[marks.TOP - marks.SIDE :] = marks.DARK
    return rgb


def _gradient() -> NDArray[np.uint8]:
    width, height = marks.SIZE
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 220, width, dtype=np.uint8)
    rgb[..., 1] = np.linspace(0, 220, height, dtype=np.uint8)[:, None]
    rgb[..., 2] = 96
    return rgb


def picture(number: int, behind: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) RGB: a moving square, the time code for people, the number for the viewer."""
    rgb = behind.copy()
    left = number * 4 % (marks.SIZE[0] - 50)
    rgb[90:140, left : left + 50] = (255, 240, 32)
    seconds, frame = divmod(number, FPS)
    code = f"{seconds // 60:02d}:{seconds % 60:02d}.{frame:02d}"
    cv2.putText(rgb, code, (52, 58), cv2.FONT_HERSHEY_DUPLEX, 1.5, (255, 255, 255), 2, cv2.LINE_AA)
    marks.write(rgb, marks.PUBLISHED, number & marks.LARGEST)
    return rgb


def tone(first: int) -> av.AudioFrame:
    at = np.arange(first, first + SAMPLES)
    wave = (np.sin(at * (2 * np.pi * 440 / RATE)) * 0.4).astype(np.float32)
    part = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
    part.pts, part.sample_rate, part.time_base = first, RATE, Fraction(1, RATE)
    return part


def publish(url: str, begun_s: float, *, film: bool) -> None:
    behind = grounds(film=film)
    with av.open(url, "w", format="mpegts", options={"method": "POST", "flush_packets": "1"}) as out:
        video = out.add_stream("libx264", rate=FPS)
        assert isinstance(video, av.VideoStream)
        video.width, video.height = marks.SIZE
        video.pix_fmt = "yuv420p"
        video.gop_size, video.max_b_frames = FPS, 0
        video.options = {"preset": "ultrafast", "tune": "zerolatency", "x264-params": "threads=1"}
        sound = out.add_stream("aac", rate=RATE, layout="stereo")
        assert isinstance(sound, av.AudioStream)
        first = max(0, int((time.monotonic() - begun_s) * FPS) + 1)
        number, samples = first, 0
        while True:
            time.sleep(max(0.0, begun_s + number / FPS - time.monotonic()))
            frame = av.VideoFrame.from_ndarray(picture(number, behind[number % len(behind)]), format="rgb24")
            frame.pts, frame.time_base = number - first, TICK
            out.mux(video.encode(frame))
            while samples <= (number - first) * RATE / FPS:
                out.mux(sound.encode(tone(samples)))
                samples += SAMPLES
            number += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--begun", type=float, required=True)
    parser.add_argument("--film", action="store_true")
    asked = parser.parse_args()
    publish(asked.url, asked.begun, film=asked.film)


if __name__ == "__main__":
    main()
