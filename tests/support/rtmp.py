"""RTMP publishers, libav's own client and one that says what it is told; and a server to push to.

libav's runs in a process of its own, for PyAV holds the interpreter's lock while libav waits for the server.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, cast

import av
import numpy as np

from protos.sessions.v1 import sessions_pb2
from services.common.errors import NotFoundError
from services.common.media.mpegts import AccessUnit, Codec
from services.ingest.publishing import Published, Publishing
from services.ingest.settings import IngestSettings
from services.ingest.source import Source
from services.ingest.transports.rtmp.chunks import ChunkReader, ChunkWriter, Message
from services.ingest.transports.rtmp.commands import Command, command, read_command
from services.ingest.transports.rtmp.handshake import SIZE, ClientHandshake
from services.ingest.transports.rtmp.server import serve_rtmp

ROOT: Final = Path(__file__).resolve().parents[2]
FPS: Final = 25
PLATFORM_KEY: Final = "secret-key"
WITHIN: Final = (5.0, 5.0)  # seconds to open and to write


def publish(
    url: str,
    *,
    seconds: float = 2.0,
    speed: float = 4.0,
    video: str = "libx264",
    audio: str | None = "aac",
    b_frames: int = 0,
    begin_ms: int = 0,
    audio_rate: int = 48_000,
) -> int:
    """Publish a test picture and a tone, `speed` times as fast as they play; how many pictures were sent.

    Raises av.FFmpegError when the server refuses.
    """
    with av.open(url, "w", format="flv", timeout=WITHIN) as out:
        pictures = out.add_stream(video, rate=FPS)
        assert isinstance(pictures, av.VideoStream)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        pictures.codec_context.gop_size, pictures.codec_context.max_b_frames = FPS, b_frames
        if video == "libx264":
            pictures.options = {"preset": "veryfast", "bf": str(b_frames), "b-adapt": "0"}
        pictures.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream(audio, rate=audio_rate, layout="stereo") if audio else None
        assert sound is None or isinstance(sound, av.AudioStream)
        form = sound.codec_context.format.name if sound else "fltp"
        resampler = av.AudioResampler(form, "stereo", audio_rate)
        started_s, samples = time.monotonic(), 0
        count = round(seconds * FPS)
        for index in range(count):
            time.sleep(max(0.0, started_s + index / FPS / speed - time.monotonic()))
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index * 8 % 256, np.uint8))
            frame.pts, frame.time_base = begin_ms + index * 1000 // FPS, Fraction(1, 1000)
            out.mux(pictures.encode(frame))
            while sound is not None and samples / audio_rate <= index / FPS:
                size = sound.codec_context.frame_size or 1024
                tone = np.sin(np.arange(samples, samples + size) * 2 * np.pi * 440 / audio_rate)
                both = np.stack([tone, tone]).astype(np.float32)
                part = av.AudioFrame.from_ndarray(both, format="fltp", layout="stereo")
                part.sample_rate, part.time_base = audio_rate, Fraction(1, audio_rate)
                part.pts = samples + begin_ms * audio_rate // 1000
                for converted in resampler.resample(part):
                    out.mux(sound.encode(converted))
                samples += size
        out.mux(pictures.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    return count


def flv(path: Path, **facts: Any) -> Path:
    """The same in a file."""
    publish(str(path), speed=1e9, **facts)
    return path


def messages_of(path: Path) -> list[Message]:
    """The tags of an FLV file as RTMP would carry them (video_file_format_spec_v10_1, E.4.1)."""
    data = path.read_bytes()
    at, found = 9 + 4, []
    while at + 11 <= len(data):
        size = int.from_bytes(data[at + 1 : at + 4], "big")
        time = int.from_bytes(data[at + 4 : at + 7], "big") | data[at + 7] << 24
        found.append(Message(data[at] & 0x1F, data[at + 11 : at + 11 + size], time))
        at += 11 + size + 4
    return found


class Talker:
    """A client that says what it is told, and hears everything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.chunks = ChunkWriter()
        self._heard = ChunkReader(1 << 20)
        self._messages: list[Message] = []

    @classmethod
    async def open(cls, url: str) -> Talker:
        host, _, port = url.removeprefix("rtmp://").partition("/")[0].rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def shake_hands(self) -> None:
        handshake = ClientHandshake()
        self.writer.write(handshake.hello)
        self.writer.write(handshake.feed(await self.reader.readexactly(2 * SIZE + 1)))
        assert handshake.done

    def say(self, *messages: Message) -> None:
        self.writer.write(b"".join(self.chunks.write(3, message) for message in messages))

    def call(self, name: str, *arguments: Any, transaction: float = 1) -> None:
        self.say(command(name, transaction, *arguments))

    async def hear(self, name: str) -> Command:
        """The next command of that name; what comes before it is skipped. Raises EOFError at the end."""
        async with asyncio.timeout(8):
            while True:
                while self._messages:
                    message = self._messages.pop(0)
                    if message.kind == 20 and (heard := read_command(message)).name == name:
                        return heard
                data = await self.reader.read(65_536)
                if not data:
                    raise EOFError(name)
                self._messages += self._heard.feed(data)

    async def connect(self, app: str = "live", url: str = "rtmp://here/live") -> None:
        await self.shake_hands()
        self.call("connect", {"app": app, "tcUrl": url})
        assert (await self.hear("_result")).fields(1)["code"] == "NetConnection.Connect.Success"

    async def publish(self, key: str, **facts: str) -> dict[str, Any]:
        """Everything up to the answer to `publish`, and that."""
        await self.connect(**facts)
        self.call("createStream", None, transaction=2)
        assert (await self.hear("_result")).arguments[1] == 1
        self.call("publish", None, key, "live", transaction=3)
        return (await self.hear("onStatus")).fields(1)

    async def end(self) -> bytes:
        """Read until the server ends the connection."""
        async with asyncio.timeout(8):
            return await self.reader.read()

    def abort(self) -> None:
        self.writer.transport.abort()

    async def leave(self) -> None:
        self.abort()
        with suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Platform:
    """Somebody's RTMP server: takes what is published with the right key, and keeps it."""

    units: list[AccessUnit] = field(default_factory=list)
    publishers: int = 0
    ended: int = 0

    async def admit(self, key: str) -> sessions_pb2.Stream:
        if key != PLATFORM_KEY:
            raise NotFoundError(f"no stream {key}", reason="KEY_NOT_FOUND")
        self.publishers += 1
        return sessions_pb2.Stream()

    async def publish(self, stream: sessions_pb2.Stream, source: Source) -> Published:
        self.units += await source.first_picture()
        async for units in source:
            self.units += units
        self.ended += 1
        return Published("there", None)

    @property
    def pictures(self) -> list[AccessUnit]:
        return [unit for unit in self.units if unit.codec is Codec.H264]

    @asynccontextmanager
    async def serving(self, port: int = 0, **facts: Any) -> AsyncIterator[int]:
        settings = IngestSettings(
            stream_secret="x" * 16, rtmp_listen=f"127.0.0.1:{port}", shutdown_grace_s=0.1, **facts
        )
        async with serve_rtmp(cast("Publishing", self), settings) as bound:
            yield bound


@dataclass(frozen=True, slots=True)
class Outcome:
    """How publishers went: the pictures that each sent, or its error; and what libav said meanwhile."""

    sent: list[int | str]
    said: str


class Publishers:
    """libav's publishers, all in one process that can be killed. `asked` are arguments of `publish`."""

    def __init__(self, *asked: dict[str, Any]) -> None:
        self._asked = asked
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> Publishers:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.support.rtmp", json.dumps(self._asked)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return self

    async def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        await self._process.communicate()

    async def outcome(self) -> Outcome:
        if self._process is None:
            await self.start()
        assert self._process is not None
        try:
            async with asyncio.timeout(20):
                out, err = await self._process.communicate()
        except BaseException:
            self._process.kill()
            await self._process.communicate()
            raise
        return Outcome(json.loads(out), err.decode())


async def published(url: str, **facts: Any) -> Outcome:
    """One publisher from its beginning to its end."""
    return await Publishers({"url": url, **facts}).outcome()


def _attempt(asked: dict[str, Any]) -> int | str:
    try:
        return publish(**asked)
    except av.FFmpegError as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    av.logging.set_level(av.logging.ERROR)
    av.logging.restore_default_callback()
    asked = json.loads(sys.argv[1])
    with ThreadPoolExecutor(len(asked)) as threads:
        sys.stdout.write(json.dumps(list(threads.map(_attempt, asked))))


if __name__ == "__main__":
    main()
