"""What is asked of an engine holds for the one that comes after it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.inference.line import EngineDiedError, Line
from services.inference.packets import BlockingPipe, Message, Packet, Pipe
from services.inference.steering import Steering

DEATH = EngineDiedError("engine_crashed", "it is gone", kind="crash", guilty=True, call=None)


def ignore(packet: Packet) -> None:
    """What the engine says is for the session."""


@asynccontextmanager
async def line() -> AsyncIterator[tuple[Line, BlockingPipe]]:
    """A line, and the engine's end of its pipe."""
    ours, theirs = socket.socketpair()
    with theirs:
        pipe = await Pipe.over(ours)
        yield Line(0, pipe, ignore), BlockingPipe(theirs)
        pipe.close()


async def heard(end: BlockingPipe) -> tuple[str, dict[str, object]]:
    packet = await asyncio.to_thread(lambda: next(end.packets()))
    assert isinstance(packet, Message)
    return packet.type, dict(packet.fields)


async def test_what_is_asked_before_there_is_an_engine_is_asked_of_the_first() -> None:
    steering = Steering()
    await steering.say("keyframe")  # which it begins with anyway
    await steering.say("bitrate", bits_per_second=300_000)
    async with line() as (first, end):
        await steering.follow(first)
        assert await heard(end) == ("bitrate", {"bits_per_second": 300_000})


async def test_the_time_of_a_key_frame_holds_until_there_is_another() -> None:
    steering = Steering()
    await steering.say("keyframe", at_pts=90_000)
    await steering.say("keyframe", at_pts=180_000)
    await steering.say("keyframe", at_pts=None)
    async with line() as (first, end):
        await steering.follow(first)
        assert await heard(end) == ("keyframe", {"at_pts": 180_000})


async def test_a_bit_rate_holds_for_the_next_engine_and_nobody_minds_that_one_died() -> None:
    steering = Steering()
    async with line() as (first, end):
        await steering.follow(first)
        await steering.say("keyframe")
        assert await heard(end) == ("keyframe", {})
        first.died(DEATH)
        await steering.say("bitrate", bits_per_second=500_000)
    async with line() as (second, end):
        await steering.follow(second)
        assert await heard(end) == ("bitrate", {"bits_per_second": 500_000})
