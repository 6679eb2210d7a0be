"""The newest picture, as it is shown at that moment."""

from __future__ import annotations

import asyncio
import io

import av
import numpy as np
import pytest

from services.common.errors import NotFoundError
from services.ingest.stills import Stills, jpeg
from tests.support.bridge import output, staged
from tests.support.media import SIZE, pictures


def grey(data: bytes) -> tuple[tuple[int, int], float]:
    """The size and the mean brightness of a JPEG."""
    with av.open(io.BytesIO(data), "r", format="jpeg_pipe") as container:
        (frame,) = container.decode(video=0)
        pixels = frame.to_ndarray(format="rgb24")
    return (pixels.shape[1], pixels.shape[0]), float(np.mean(pixels))


@pytest.mark.parametrize("count", [1, 7, 25, 26, 40])
async def test_it_is_the_newest_of_its_group_in_its_colours(count: int) -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(count))
        await stage.reply(output(count))
        size, brightness = grey(await Stills().newest(stage.session, 90))
        assert size == SIZE
        assert brightness == pytest.approx((count - 1) * 8 % 256, abs=6)


async def test_there_is_none_before_the_first_picture_and_none_is_waited_for() -> None:
    async with staged() as stage:
        stage.open()
        async with asyncio.timeout(1):
            with pytest.raises(NotFoundError):
                await Stills().newest(stage.session, 90)


async def test_a_frozen_session_still_has_its_picture() -> None:
    async with staged() as stage:
        stage.open()
        stage.push(pictures(10))
        await stage.reply(output(10))
        stage.session.pause(True)
        assert await Stills().newest(stage.session, 50)


def test_better_quality_takes_more_bytes() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    sizes = [len(jpeg(noise, quality)) for quality in (1, 50, 100)]
    assert sizes == sorted(set(sizes))
