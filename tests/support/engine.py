"""A real engine in a real child process, and H.264 for it; the test plays its supervisor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from services.common.media.codec import DecodedFrame, VideoDecoder, VideoEncoder
from services.common.media.mpegts import Codec
from services.common.media.sound import RATE, AudioEncoder, Samples
from services.inference.blackbox import BlackBox
from services.inference.engine.worker import Workshop
from services.inference.packets import BlockingPipe, Media, Message, Packet, Sound
from sluice.pipeline import Setup

FRAME = 3000  # ticks at 30 fps
START = 90_000


def video(
    count: int, *, size: tuple[int, int] = (128, 96), start: int = START, every: int = 30
) -> list[Media]:
    """`count` pictures of a moving bar at 30 fps, a key frame each `every`."""
    width, height = size
    encoder = VideoEncoder(width, height, 500_000)
    packets: list[Media] = []
    for index in range(count):
        rgb = np.full((height, width, 3), 60, np.uint8)
        left = index * 4 % (width - 8)
        rgb[:, left : left + 8] = (200, 80, 40)
        units = encoder.encode(rgb, start + index * FRAME, keyframe=index % every == 0)
        packets += [Media(0, unit.pts, unit.dts, unit.keyframe, unit.data) for unit in units]
    return packets


def chirp(seconds: float) -> Samples:
    """A tone that rises from 200 Hz to 8 kHz, like nothing but itself at any other place."""
    at = np.arange(round(seconds * RATE)) / RATE
    rising = np.sin(2 * np.pi * (200 * at + (8000 - 200) / 2 * at**2 / seconds)).astype(np.float32)
    return np.stack([rising, rising]) * np.float32(0.5)


def sound(seconds: float, codec: Codec = Codec.OPUS, *, start: int = START) -> list[Sound]:
    """A chirp in packets."""
    encoder, samples = AudioEncoder(codec), chirp(seconds)
    units = []
    for first in range(0, samples.shape[1], 960):
        units += encoder.encode(samples[:, first : first + 960], start + first * 15 // 8)
    return [Sound(0, unit.codec, unit.pts, unit.data) for unit in units + encoder.flush()]


def mixed(pictures: Sequence[Media], sounds: Sequence[Sound]) -> list[Media | Sound]:
    """As a publisher interleaves them."""
    return sorted([*pictures, *sounds], key=lambda one: one.pts)


def decoded(packets: Sequence[Media]) -> list[DecodedFrame]:
    """The pictures of what an engine sent, as a viewer would see them."""
    decoder = VideoDecoder()
    frames = [frame for packet in packets for frame in decoder.decode(packet.data, packet.pts)]
    frames += decoder.flush()
    assert decoder.errors == 0
    return frames


class EngineChild:
    """What an engine said so far is in `said`; waiting for more is bounded by the socket's timeout."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket, box: BlackBox) -> None:
        self.process = process
        self.box = box
        self.said: list[Packet] = []
        self._open: set[int] = set()
        self._socket = end
        self._pipe = BlockingPipe(end)
        self._packets = self._pipe.packets()

    def send(self, *packets: Packet) -> None:
        for packet in packets:
            self._pipe.send(packet)

    def say(self, kind: str, slot: int = 0, **fields: object) -> None:
        self.send(Message(kind, slot, fields))

    def open(self, pipeline: str, *, live: bool = False, slot: int = 0, **fields: object) -> None:
        self._open.add(slot)
        opening = {"pipeline": pipeline, "revision": 1, "params": {}, "scheduled": [], "live": live}
        self.say("open", slot, **{**opening, **fields})

    def until(self, wanted: Callable[[Packet], bool]) -> Packet:
        """Read on until `wanted`. Raises TimeoutError, or EOFError when the engine ends."""
        for packet in self._packets:
            self.said.append(packet)
            if isinstance(packet, Message) and packet.type == "closed":
                self._open.remove(packet.slot)
            if wanted(packet):
                return packet
        raise EOFError("the engine has ended")

    def until_said(self, kind: str, slot: int = 0) -> Message:
        packet = self.until(lambda one: isinstance(one, Message) and (one.type, one.slot) == (kind, slot))
        assert isinstance(packet, Message)
        return packet

    def close(self, slot: int = 0) -> None:
        """Wait until the slot is free, which it may be already."""
        self.say("close", slot)
        if slot in self._open:
            self.until_said("closed", slot)

    def close_all(self) -> None:
        for slot in sorted(self._open):
            self.close(slot)
        self.said.clear()

    def hang_up(self) -> None:
        self._socket.close()

    def media(self) -> list[Media]:
        return [packet for packet in self.said if isinstance(packet, Media)]

    def sound(self) -> list[Sound]:
        return [packet for packet in self.said if isinstance(packet, Sound)]

    def messages(self, kind: str) -> list[Message]:
        return [packet for packet in self.said if isinstance(packet, Message) and packet.type == kind]


@contextmanager
def engine(
    pipelines: str,
    *,
    slots: int = 1,
    timeout_s: float = 15.0,
    here: Mapping[str, Mapping[str, object]] | None = None,
    memory_mb: int = 0,
) -> Iterator[EngineChild]:
    """An engine that is ready; it is killed at the end if it still runs."""
    ours, theirs = socket.socketpair()
    ours.settimeout(timeout_s)
    box, box_file = BlackBox.make(slots)
    with ours:
        with theirs:
            process = subprocess.Popen(
                command(
                    theirs.fileno(), box_file, pipelines, slots=slots, here=here or {}, memory_mb=memory_mb
                ),
                pass_fds=[theirs.fileno(), box_file],
            )
        os.close(box_file)
        child = EngineChild(process, ours, box)
        try:
            child.until_said("ready", slot=-1)
            yield child
        finally:
            process.kill()
            process.wait()
            box.close()


@contextmanager
def workshop(slots: int = 1) -> Iterator[Workshop]:
    """What instances are loaded with, in the test's own process."""
    box, box_file = BlackBox.make(slots)
    os.close(box_file)
    yield Workshop(Setup.plain(), box, None)
    box.close()


def command(
    pipe: int,
    box: int,
    pipelines: str,
    *,
    slots: int = 1,
    here: Mapping[str, Mapping[str, object]],
    memory_mb: int = 0,
) -> list[str]:
    """What starts an engine; `here` are its runner's defaults."""
    return [
        *(sys.executable, "-m", "services.inference.engine", "--fd", str(pipe), "--black-box", str(box)),
        *("--pipelines", pipelines, "--slots", str(slots), "--defaults", json.dumps(here)),
        *("--models", "", "--device", "cpu", "--codecs", "cpu", "--memory-mb", str(memory_mb)),
        *("--min-video-kbps", "100", "--max-video-kbps", "8000"),
        *("--log-format", "console", "--log-level", "error"),
    ]


def wait_for(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)
