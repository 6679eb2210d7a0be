"""`python -m tests.support.ffmpeg_whip URL KEY CERTIFICATE`: three seconds to WHIP by FFmpeg's own muxer.

A process of its own, for libav holds Python's lock while it connects.
"""

from __future__ import annotations

import sys
import time
from fractions import Fraction

import av
import numpy as np

FPS = 25


def publish(url: str, key: str, certificate: str) -> None:
    with av.open(url, "w", format="whip", options={"key_file": key, "cert_file": certificate}) as output:
        video = output.add_stream("libx264", rate=FPS, options={"tune": "zerolatency", "profile": "baseline"})
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt, video.codec_context.gop_size = 64, 48, "yuv420p", FPS
        audio = output.add_stream("libopus", rate=48_000)
        assert isinstance(audio, av.AudioStream)
        audio.layout = "stereo"
        began_s = time.monotonic()
        for index in range(3 * FPS):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), "rgb24")
            picture = picture.reformat(format="yuv420p")
            picture.pts, picture.time_base = index, Fraction(1, FPS)
            output.mux(video.encode(picture))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 3840), np.float32), "flt", "stereo")
            silence.sample_rate, silence.pts, silence.time_base = 48_000, index * 1920, Fraction(1, 48_000)
            output.mux(audio.encode(silence))
            time.sleep(max(0.0, began_s + index / FPS - time.monotonic()))


if __name__ == "__main__":
    publish(*sys.argv[1:])
