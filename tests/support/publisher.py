"""A real publisher: libav's encoder, muxer and HTTP client, in a process of its own that can be killed."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np

ROOT: Final = Path(__file__).resolve().parents[2]


def start(
    url: str, *, seconds: float, fps: int = 25, size: str = "320x240", audio: bool = False
) -> subprocess.Popen[bytes]:
    """Publish a moving test picture at its own pace, as `ffmpeg -re` does, by HTTP or RTMP."""
    words = ["--url", url, "--seconds", str(seconds), "--fps", str(fps), "--size", size]
    command = [sys.executable, "-m", "tests.support.publisher", *words, *(["--audio"] if audio else [])]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def picture(index: int, width: int, height: int) -> np.ndarray:
    """uint8 (H, W, 3) RGB: a gradient with a bright square that moves."""
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)
    rgb[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    rgb[..., 2] = 96
    left = index * 4 % max(1, width - 40)
    rgb[40:80, left : left + 40] = (255, 240, 32)
    return rgb


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--fps", type=int, required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--audio", action="store_true")
    asked = parser.parse_args()
    width, height = (int(side) for side in asked.size.split("x"))
    by_http = {"method": "POST", "flush_packets": "1"}
    form, options = ("flv", {}) if asked.url.startswith("rtmp:") else ("mpegts", by_http)
    with av.open(asked.url, "w", format=form, options=options) as out:
        video = out.add_stream("libx264", rate=asked.fps)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.gop_size, video.max_b_frames = asked.fps, 0
        video.options = {"preset": "ultrafast", "tune": "zerolatency"}
        sound = out.add_stream("aac", rate=48_000, layout="stereo") if asked.audio else None
        started_s, samples = time.monotonic(), 0
        for index in range(round(asked.seconds * asked.fps)):
            time.sleep(max(0.0, started_s + index / asked.fps - time.monotonic()))
            frame = av.VideoFrame.from_ndarray(picture(index, width, height), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, asked.fps)
            out.mux(video.encode(frame))
            while sound is not None and samples / 48_000 <= index / asked.fps:
                tone = np.sin(np.arange(samples, samples + 1024) * 2 * np.pi * 440 / 48_000).astype(
                    np.float32
                )
                part = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
                part.pts, part.sample_rate, part.time_base = samples, 48_000, Fraction(1, 48_000)
                out.mux(sound.encode(part))
                samples += 1024
        out.mux(video.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))


if __name__ == "__main__":
    main()
