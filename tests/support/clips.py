"""Small video files with what is awkward about real ones."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from services.common.media.codec import DecodedFrame

TICK = Fraction(1, 90_000)
RED, BLUE = (220, 30, 30), (30, 30, 220)


def picture(width: int, height: int, number: int) -> av.VideoFrame:
    """Red above blue, with a light bar whose place tells the number."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2] = RED
    pixels[height // 2 :] = BLUE
    bar = number * 4 % width
    pixels[:, bar : bar + 4] = 230
    return av.VideoFrame.from_ndarray(pixels)


def clip(
    path: Path,
    pts: Sequence[int],
    *,
    size: tuple[int, int] = (320, 240),
    rotation: int = 0,
    codec: str = "libx264",
    audio: str | None = None,
    audio_from_s: float = 0.0,
    audio_s: float = 1.0,
    layout: str = "stereo",
) -> Path:
    """A file with pictures at `pts` (ticks) and, if `audio` names a codec, a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, width=size[0], height=size[1], time_base=TICK)
        assert isinstance(video, av.VideoStream)
        odd = size[0] % 2 or size[1] % 2
        video.pix_fmt = "rgb24" if codec == "png" else "yuv444p" if odd else "yuv420p"
        video.codec_context.time_base = TICK
        if rotation:
            video.set_display_rotation(rotation)
        sound = container.add_stream(audio, rate=48_000, layout=layout) if audio else None
        assert sound is None or isinstance(sound, av.AudioStream)
        if sound is not None:
            sound.codec_context.bit_rate = 128_000
        for number, at in enumerate(pts):
            frame = picture(*size, number)
            frame.pts, frame.time_base = at, TICK
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            _tone(container, sound, audio_from_s, audio_s, layout)
    return path


def flashes(path: Path, seconds: int, *, size: tuple[int, int] = (320, 240), fps: int = 25) -> Path:
    """MPEG-TS as a camera would send it: each second a tenth of a second of white, and of 1 kHz."""
    with av.open(str(path), "w", format="mpegts") as container:
        video = container.add_stream("libx264", rate=fps)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        video.gop_size, video.max_b_frames = fps, 0
        video.options = {"preset": "ultrafast", "tune": "zerolatency"}
        sound = container.add_stream("aac", rate=48_000, layout="stereo")
        assert isinstance(sound, av.AudioStream)
        sound.codec_context.bit_rate = 128_000
        samples = 0
        for number in range(seconds * fps):
            lit = number >= fps and number % fps < fps // 8
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 235 if lit else 20, np.uint8))
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(video.encode(frame))
            while samples * fps < (number + 1) * 48_000:
                at = np.arange(samples, samples + 1024)
                loud = (at >= 48_000) & (at % 48_000 < 4_800)
                wave = (np.sin(at * (2 * np.pi * 1000 / 48_000)) * 0.5 * loud).astype(np.float32)
                part = av.AudioFrame.from_ndarray(np.tile(wave, (2, 1)), "fltp", "stereo")
                part.sample_rate, part.time_base, part.pts = 48_000, Fraction(1, 48_000), samples
                container.mux(sound.encode(part))
                samples += 1024
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48_000, layout="stereo")
        assert isinstance(sound, av.AudioStream)
        _tone(container, sound, 0.0, 1.0, "stereo")
    return path


def _tone(
    container: av.container.OutputContainer,
    sound: av.AudioStream,
    from_s: float,
    length_s: float,
    layout: str,
) -> None:
    channels = av.AudioLayout(layout).nb_channels
    resampler = av.AudioResampler(sound.codec_context.format.name, layout, 48_000)
    for start in range(0, round(length_s * 48_000), 960):
        wave = np.sin((np.arange(960) + start) * (2 * np.pi * 440 / 48_000)).astype(np.float32) * 0.3
        frame = av.AudioFrame.from_ndarray(np.tile(wave, (channels, 1)), "fltp", layout)
        frame.sample_rate, frame.time_base = 48_000, Fraction(1, 48_000)
        frame.pts = round(from_s * 48_000) + start
        for part in resampler.resample(frame):
            container.mux(sound.encode(part))
    container.mux(sound.encode(None))


def video_times(path: Path) -> list[Fraction]:
    """When each picture of a file is shown, in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        return [frame.pts * stream.time_base for frame in container.decode(stream) if frame.pts is not None]


def sound_span(path: Path) -> tuple[float, float, int]:
    """When a file's sound begins and how long it is, in seconds, and its channels."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert stream.time_base is not None
        assert stream.start_time is not None
        samples = sum(frame.samples for frame in container.decode(stream))
        context = stream.codec_context
        return float(stream.start_time * stream.time_base), samples / context.sample_rate, context.channels


def tone_from_s(path: Path) -> float:
    """When a file's tone sets in, whatever silence its encoder put before."""
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.audio[0]):
            loud = np.flatnonzero(np.abs(frame.to_ndarray().astype(float)).max(axis=0) > 0.1)
            if loud.size:
                return float(frame.time or 0.0) + float(loud[0]) / frame.sample_rate
    raise AssertionError(path)


def halves(path: Path) -> tuple[list[float], list[float], list[float], list[float]]:
    """The mean colours of a file's first picture: above, below, left, right."""
    with av.open(str(path)) as container:
        frame = next(container.decode(container.streams.video[0]))
        pixels = DecodedFrame(0, frame).rgb().astype(float)
    height, width = pixels.shape[:2]
    parts = (
        pixels[: height // 2 - 4],
        pixels[height // 2 + 4 :],
        pixels[:, : width // 2 - 4],
        pixels[:, width // 2 + 4 :],
    )
    above, below, left, right = (part.mean(axis=(0, 1)).tolist() for part in parts)
    return above, below, left, right
