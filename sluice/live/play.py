"""A stream's output into a file, a pipe or a player, until it ends or somebody stops it.

The rule it keeps: what was received is kept and counted, however it ended.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final, Protocol

import av
from av.stream import Stream as AvStream

from services.common.errors import InvalidError
from services.common.media.mpegts import CLOCK_HZ, Codec, Demuxer, unwrap
from sluice.client import ApiError, SluiceClient, UnreachableError
from sluice.live.display import Display, clock
from sluice.transform.exchange import RunFailedError, Worker
from sluice.transform.result import CONTAINERS, FASTSTART

STDOUT: Final = "-"
TRANSPORT_STREAM: Final = ".ts"
# What shows a transport stream on stdin without a second of buffer, in the order of preference.
PLAYERS: Final = {
    "ffplay": ("-loglevel", "error", "-fflags", "nobuffer", "-flags", "low_delay", "-i", "-"),
    "mpv": ("--profile=low-latency", "--really-quiet", "-"),
}
PLAYER_ENDS_S: Final = 5.0
LAST_WORD_S: Final = 5.0
POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What came, and why no more."""

    frames: int
    seconds: float  # of media
    bytes: int
    sound: str | None
    stopped: bool  # here, and not by the platform
    end_reason: str | None  # the session's, if that is known


class Sink(Protocol):
    """Where the bytes go."""

    async def write(self, data: bytes) -> None:
        """Raises BrokenPipeError when nobody takes them any more."""


class FileSink:
    """A file, or standard output; written in a thread, for a pipe may be full."""

    def __init__(self, descriptor: int, writing: Worker) -> None:
        self._descriptor = descriptor
        self._writing = writing

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[await self._writing(os.write, self._descriptor, left) :]


class PlayerSink:
    """A player's standard input."""

    def __init__(self, stdin: asyncio.StreamWriter) -> None:
        self._stdin = stdin

    async def write(self, data: bytes) -> None:
        self._stdin.write(data)
        try:
            await self._stdin.drain()
        except ConnectionError as error:
            raise BrokenPipeError from error


class Watching:
    """One run of `sluice play`. What has come so far can be read at any time."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._demuxer = Demuxer()
        self._first: int | None = None
        self._last = 0
        self._sound: Codec | None = None
        self._stopped = asyncio.Event()
        self.frames = 0
        self.bytes = 0

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    async def run(self, client: SluiceClient, url: str, sink: Sink) -> None:
        """Until the stream ends, `stop`, or the sink is gone. Raises ApiError, UnreachableError."""
        watching = asyncio.ensure_future(self._watch(client, url, sink))
        stopping = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({watching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            watching.cancel()
            stopping.cancel()
            await asyncio.wait({watching, stopping})

    async def _watch(self, client: SluiceClient, url: str, sink: Sink) -> None:
        with suppress(BrokenPipeError):
            async with aclosing(client.watch(url)) as chunks:
                async for chunk in chunks:
                    await sink.write(chunk)
                    self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        for unit in self._demuxer.feed(chunk):
            if unit.codec is Codec.H264:
                self._last = unit.pts if self._first is None else unwrap(self._last, unit.pts)
                self._first = self._last if self._first is None else self._first
                self.frames += 1
            else:
                self._sound = unit.codec
        self._display.line(f"{self.frames} frames  {clock(self.seconds)}  {self.bytes / 2**20:.1f} MB")

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def seconds(self) -> float:
        return 0.0 if self._first is None else (self._last - self._first) / CLOCK_HZ

    def report(self, end_reason: str | None) -> Report:
        return Report(
            frames=self.frames,
            seconds=round(self.seconds, 2),
            bytes=self.bytes,
            sound=self._sound.value if self._sound else None,
            stopped=self.stopped,
            end_reason=end_reason,
        )


def container_of(path: Path) -> str | None:
    """What to make of the transport stream for `path`; None if it is wanted as it is. Raises InvalidError."""
    suffix = path.suffix.lower()
    if suffix == TRANSPORT_STREAM:
        return None
    if suffix not in CONTAINERS:
        raise InvalidError(f"{path}: the output is .ts, {', '.join(CONTAINERS)}, or - for standard output")
    return CONTAINERS[suffix]


def player() -> list[str]:
    """The command of the first player that is installed. Raises InvalidError if there is none."""
    for name, options in PLAYERS.items():
        if found := shutil.which(name):
            return [found, *options]
    raise InvalidError(
        f"there is no player here ({', '.join(PLAYERS)}): write to a file with -o out.ts or -o out.mp4"
    )


@asynccontextmanager
async def playing(command: list[str]) -> AsyncIterator[PlayerSink]:
    """Run a player for as long as the block; its window may be closed at any time."""
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    try:
        yield PlayerSink(process.stdin)
    finally:
        process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(PLAYER_ENDS_S):
                await process.wait()
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def end_of(client: SluiceClient, stream: str) -> str | None:
    """Why the stream's newest session ended, as soon as that is known; None if it goes on."""
    reason: str | None = None
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_WORD_S):
            while reason is None:
                with suppress(ApiError, UnreachableError):
                    session = await client.status(stream)
                    reason = session.end_reason if session is not None else None
                if reason is None:
                    await asyncio.sleep(POLL_S)
    return reason


def repacked(source: Path, target: Path, container: str) -> None:
    """Put a transport stream's pictures and sound into another container, as they are, from 0. Blocking."""
    try:
        with (
            av.open(str(source.absolute()), "r", format="mpegts") as played,
            av.open(
                str(target.absolute()),
                "w",
                format=container,
                options={} if container == "matroska" else FASTSTART,
            ) as out,
        ):
            tracks: dict[int, AvStream] = {
                stream.index: out.add_stream_from_template(stream)
                for stream in (*played.streams.video[:1], *played.streams.audio[:1])
            }
            begin_s = Fraction(played.start_time or 0, av.time_base)
            for packet in played.demux():
                track = tracks.get(packet.stream.index)
                if track is not None and packet.dts is not None and packet.pts is not None:
                    shift = round(begin_s / packet.time_base)
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                    packet.stream = track
                    out.mux_one(packet)
    except (av.FFmpegError, OSError) as error:
        raise RunFailedError(f"what came cannot be put into {container}: {error}") from error
