"""What a session puts out becomes a file that any player takes, and nothing of it stays behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import av
import numpy as np
import pytest

from services.common.errors import ExhaustedError, NotFoundError
from services.common.media.mpegts import AccessUnit, Codec
from services.common.media.sound import AudioEncoder
from services.ingest.recordings import Film, Recordings
from tests.support.bridge import Stage, output, settled, staged
from tests.support.media import FRAME, pictures


def tone(codec: Codec, seconds: float) -> list[AccessUnit]:
    """Real sound, as a decoder wants it."""
    encoder = AudioEncoder(codec)
    time = np.arange(round(seconds * 48_000)) / 48_000
    samples = np.sin(2 * np.pi * 440 * time).astype(np.float32) * np.float32(0.3)
    return [*encoder.encode(np.stack([samples, samples]), 0), *encoder.flush()]


def read(film: Film) -> tuple[list[int], dict[str, int], float]:
    """The pictures' times in ticks, the sound's packets by codec, and the length in seconds."""
    with os.fdopen(film.descriptor, "rb") as file, av.open(file, "r") as container:
        shown = [round(frame.time * 90_000) for frame in container.decode(video=0) if not frame.is_corrupt]
        file.seek(0)
        heard: dict[str, int] = {}
        if container.streams.audio:
            container.seek(0)
            name = container.streams.audio[0].codec_context.name
            heard[name] = sum(packet.size > 0 for packet in container.demux(audio=0))
        return shown, heard, (container.duration or 0) / 1e6


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(recording_dir=str(tmp_path), recording_max_mb=1, max_recordings=1) as found:
        found.open()
        yield found


@pytest.fixture
async def recordings(stage: Stage) -> AsyncIterator[Recordings]:
    async with Recordings(stage.settings) as found:
        yield found


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def play(stage: Stage, units: Iterable[AccessUnit]) -> None:
    """The publisher sends `units`, and the runner returns the pictures at once."""
    for unit in units:
        stage.push([unit])
        if unit.codec is Codec.H264:
            await stage.reply(output(1, after=unit.pts // FRAME) if unit.keyframe else [returned(unit)])


def returned(unit: AccessUnit) -> AccessUnit:
    return output(unit.pts // FRAME + 1)[-1]


async def test_what_was_put_out_between_start_and_stop_is_the_film(
    stage: Stage, recordings: Recordings, tmp_path: Path
) -> None:
    stage.push(pictures(75))
    await stage.reply(output(25))
    assert recordings.start(stage.session)
    assert not recordings.start(stage.session)
    await settled()
    await stage.reply(output(75)[25:])
    assert await recordings.of("str_a", "acme").stop()
    assert not await recordings.of("str_a", "acme").stop()
    shown, heard, seconds = read(await recordings.film("str_a", "acme"))
    assert shown == [n * FRAME for n in range(50)]
    assert (heard, round(seconds)) == ({}, 2)
    assert list(tmp_path.iterdir()) == [], "files without a name"


@pytest.mark.parametrize("codec", [Codec.AAC, Codec.OPUS])
async def test_its_sound_is_in_it_as_it_was(stage: Stage, recordings: Recordings, codec: Codec) -> None:
    stage.push(pictures(1))
    recordings.start(stage.session)
    media = sorted([*pictures(75)[1:], *tone(codec, 3)], key=lambda unit: unit.pts)
    await stage.reply(output(1))
    await play(stage, media)
    await recordings.of("str_a", "acme").stop()
    shown, heard, _ = read(await recordings.film("str_a", "acme"))
    assert len(shown) == 75
    assert heard[codec.value] > 40


async def test_it_can_be_fetched_while_it_goes_on_and_after_the_sessions_end(
    stage: Stage, recordings: Recordings
) -> None:
    stage.push(pictures(75))
    recordings.start(stage.session)
    with pytest.raises(NotFoundError):
        await recordings.film("str_a", "acme")
    await stage.reply(output(30))
    shown, _, _ = read(await recordings.film("str_a", "acme"))
    assert len(shown) == 30
    await stage.reply(output(75)[30:])
    stage.session.close("stopped", "")
    await recordings.of("str_a", "acme").ended.wait()
    for _ in range(2):
        shown, _, _ = read(await recordings.film("str_a", "acme"))
        assert len(shown) == 75


async def test_it_is_its_tenants_alone(stage: Stage, recordings: Recordings) -> None:
    recordings.start(stage.session)
    with pytest.raises(NotFoundError):
        recordings.of("str_a", "somebody-else")


async def test_a_full_recording_ends_by_itself_and_keeps_what_it_has(
    stage: Stage, recordings: Recordings
) -> None:
    recordings.start(stage.session)
    unit = padded(output(1)[0])
    for index in range(20):
        stage.push(pictures(1, start=index * FRAME))
        await stage.reply(
            [AccessUnit(unit.codec, unit.pts + index * FRAME, unit.dts + index * FRAME, unit.data, True)]
        )
    async with asyncio.timeout(5):
        await recordings.of("str_a", "acme").ended.wait()
    shown, _, _ = read(await recordings.film("str_a", "acme"))
    assert 5 < len(shown) < 20


def padded(unit: AccessUnit) -> AccessUnit:
    """A key frame of 100 kB: filler data (H.264 §7.3.2.7) behind it."""
    filler = b"\x00\x00\x00\x01\x0c" + b"\xff" * 100_000 + b"\x80"
    return AccessUnit(unit.codec, unit.pts, unit.dts, unit.data + filler, unit.keyframe)


async def test_there_are_so_many_and_one_that_is_over_makes_room(
    stage: Stage, recordings: Recordings
) -> None:
    recordings.start(stage.session)
    async with staged() as other:
        other.session.identity = stage.session.identity.__class__(
            "ses_b", "str_b", "acme", "effects", complete=False, traceparent=""
        )
        with pytest.raises(ExhaustedError):
            recordings.start(other.session)
        await recordings.of("str_a", "acme").stop()
        assert recordings.start(other.session)
    with pytest.raises(NotFoundError):
        recordings.of("str_a", "acme")


async def test_it_is_forgotten_after_a_while(tmp_path: Path) -> None:
    async with staged(recording_dir=str(tmp_path), recording_keep_s=0.05) as stage:
        stage.open()
        before = open_files()
        async with Recordings(stage.settings) as recordings:
            stage.push(pictures(25))
            recordings.start(stage.session)
            await stage.reply(output(25))
            await recordings.of("str_a", "acme").stop()
            films = await asyncio.gather(*(recordings.film("str_a", "acme") for _ in range(5)))
            for film in films:
                assert len(read(film)[0]) == 25
            async with asyncio.timeout(5):
                while len(recordings):
                    await asyncio.sleep(0.01)
            assert open_files() == before
