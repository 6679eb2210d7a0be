"""One session's line to the engine: what counts as a hang."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from services.common.media.mpegts import Codec
from services.inference.line import Line
from services.inference.packets import Media, Message, Packet, Pipe, Sound

PICTURE = Media(0, 0, 0, True, b"picture")
SOUND = Sound(0, Codec.OPUS, 0, b"sound")
AFTER_S = 0.2


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    ours, theirs = socket.socketpair()
    with theirs:
        pipe = await Pipe.over(ours)
        line = Line(0, pipe, ignore)
        await line.feed(PICTURE)
        line.dispatch(PICTURE)
        yield line
        pipe.close()


def ignore(packet: Packet) -> None:
    """What the engine says is for the session."""


async def feed(line: Line, packet: Media | Sound) -> None:
    """For more than twice as long as a hang takes."""
    for _ in range(10):
        await line.feed(packet)
        await asyncio.sleep(AFTER_S / 4)


async def test_pictures_that_go_in_and_none_that_comes_out_are_a_hang(line: Line) -> None:
    await feed(line, PICTURE)
    assert line.hangs(AFTER_S)


async def test_sound_alone_is_no_hang_for_its_publisher_may_show_nothing_new(line: Line) -> None:
    await feed(line, SOUND)
    assert not line.hangs(AFTER_S)


async def test_sound_that_comes_out_is_no_sign_that_pictures_will(line: Line) -> None:
    for _ in range(5):
        await line.feed(PICTURE)
        line.dispatch(SOUND)
        await asyncio.sleep(AFTER_S / 2)
    assert line.hangs(AFTER_S)


async def test_sound_that_the_engine_does_not_take_is_a_hang(line: Line) -> None:
    for _ in range(15):
        await line.feed(SOUND)
    feeding = asyncio.create_task(line.feed(SOUND))
    await asyncio.sleep(2 * AFTER_S)
    assert line.hangs(AFTER_S)
    feeding.cancel()
    await asyncio.wait({feeding})


async def test_a_hang_is_forgiven_for_a_while(line: Line) -> None:
    await feed(line, PICTURE)
    line.dispatch(Message("taken", 0, {"packets": 10}))
    line.forgive()
    await line.feed(PICTURE)
    assert not line.hangs(AFTER_S)
    await feed(line, PICTURE)
    assert line.hangs(AFTER_S)
