"""What a pipeline says: what of it leaves the engine, and how it gets to the bridge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.common.lifecycle import background
from services.common.trickle.channel import Channel
from services.common.trickle.connection import trickle_session
from services.common.trickle.exchange import Exchange
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.registry import Registry
from services.common.trickle.server import serve_trickle, trickle_app
from services.inference import remarks as module
from services.inference.address import Address
from services.inference.engine.remarks import BURST, LONGEST_BYTES, PER_SECOND, Remarks
from services.inference.packets import Message, Packet
from services.inference.remarks import DROPPED, RemarkWriter


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sent() -> list[Packet]:
    return []


@pytest.fixture
def remarks(sent: list[Packet], clock: Clock) -> Remarks:
    return Remarks(3, sent.append, clock)


def texts(sent: list[Packet]) -> list[Any]:
    return [json.loads(one.fields["text"]) for one in sent if isinstance(one, Message)]


def test_what_is_said_leaves_with_the_time_of_the_frame(remarks: Remarks, sent: list[Packet]) -> None:
    remarks.pts = 123_000
    remarks.take({"label": "a cät\n", "boxes": [[1, 2.5]]})
    (message,) = sent
    assert isinstance(message, Message)
    assert (message.type, message.slot, message.fields["pts"]) == ("said", 3, 123_000)
    assert texts(sent) == [{"label": "a cät\n", "boxes": [[1, 2.5]]}]
    assert "\n" not in message.fields["text"]


@pytest.mark.parametrize(
    "mistake", [[1], "text", 7, None, {"a": ValueError}, {"a": float("nan")}, {(1, 2): 3}], ids=repr
)
def test_what_is_no_json_object_is_counted_and_told_once(
    remarks: Remarks, sent: list[Packet], mistake: object
) -> None:
    with capture_logs() as logs:
        for _ in range(5):
            remarks.take(mistake)
    assert sent == []
    assert remarks.refused == {"not_json": 5}
    assert [(line["slot"], line["kind"]) for line in logs] == [(3, "not_json")]


def test_an_object_without_end_is_a_mistake_too(remarks: Remarks) -> None:
    endless: dict[str, object] = {}
    endless["again"] = endless
    deep: dict[str, object] = {}
    for _ in range(100_000):
        deep = {"deeper": deep}
    remarks.take(endless)
    remarks.take(deep)
    assert remarks.refused == {"not_json": 2}


def test_sixteen_kilobytes_leave_and_one_more_does_not(remarks: Remarks, sent: list[Packet]) -> None:
    frame = len('{"a":""}')
    remarks.take({"a": "x" * (LONGEST_BYTES - frame)})
    remarks.take({"a": "x" * (LONGEST_BYTES - frame + 1)})
    assert len(sent) == 1
    assert remarks.refused == {"too_large": 1}


def test_a_burst_leaves_and_then_as_much_as_the_pace_allows(
    remarks: Remarks, sent: list[Packet], clock: Clock
) -> None:
    for _ in range(1000):
        remarks.take({})
    assert len(sent) == BURST
    sent.clear()
    for _ in range(500):
        clock.now_s += 0.01
        remarks.take({})
    assert len(sent) == pytest.approx(5 * PER_SECOND, abs=1)
    assert remarks.refused["too_often"] == 1000 - BURST + 500 - len(sent)


# --- to the bridge


@dataclass
class Place:
    registry: Registry
    channel: Channel
    requests: list[str]  # to the bridge, their methods
    writer: RemarkWriter

    async def read(self, count: int) -> list[list[Any]]:
        """The next `count` lines, by segment."""
        segments: list[list[Any]] = []
        async with asyncio.timeout(10):
            async for segment in self.channel.read(0):
                text = b"".join([data async for data in segment])
                segments.append([json.loads(line) for line in text.splitlines()])
                if sum(map(len, segments)) >= count:
                    break
        return segments


@asynccontextmanager
async def place(url: str = "", *, slow_s: float = 0.0) -> AsyncIterator[Place]:
    """`slow_s`: how long the bridge thinks about each request."""
    registry = Registry()
    opened = registry.open("s/data", limits=ChannelLimits(depth=64, segment_bytes=1 << 20))
    app, requests = trickle_app(registry), list[str]()

    async def noted(exchange: Exchange) -> None:
        requests.append(exchange.head.method)
        await asyncio.sleep(slow_s)
        await app.handle(exchange)

    async with (
        serve_trickle(replace(app, handle=noted), "127.0.0.1:0", 1.0) as port,
        trickle_session() as http,
    ):
        url = url or f"http://127.0.0.1:{port}{opened.write_path}"
        writer = RemarkWriter(Address(url))
        async with background(remarks=writer.run(http)):
            yield Place(registry, opened.channel, requests, writer)


async def test_what_is_said_is_lines_at_the_bridge() -> None:
    async with place() as one:
        one.writer.put(9000, '{"a":1}')
        one.writer.put(12_000, '{"b":{"c":[]}}')
        lines = [line for segment in await one.read(2) for line in segment]
        assert lines == [{"pts": 9000, "data": {"a": 1}}, {"pts": 12_000, "data": {"b": {"c": []}}}]
        await one.writer.delivered(5)


async def test_the_last_words_are_delivered_when_the_bridge_has_them() -> None:
    async with place(slow_s=0.3) as one:
        one.writer.put(9000, '{"a":1}')
        await one.writer.delivered(5)
        assert one.channel.head == 1
        assert await one.read(1) == [[{"pts": 9000, "data": {"a": 1}}]]


async def test_a_pipeline_that_says_nothing_costs_the_bridge_no_connection() -> None:
    async with place() as one:
        await one.writer.delivered(5)
        await asyncio.sleep(0.2)
        assert one.requests == []
        one.writer.put(0, "{}")
        await one.read(1)
        assert "POST" in one.requests


async def test_much_that_is_said_at_once_shares_segments_and_fits_into_them() -> None:
    said = '{"a":"%s"}' % ("x" * 16_000)
    async with place() as one:
        for index in range(100):
            one.writer.put(index, said)
        segments = await one.read(100)
        assert [line["pts"] for segment in segments for line in segment] == list(range(100))
        assert 7 <= len(segments) <= 20


async def test_a_bridge_that_is_away_gets_the_newest_and_the_others_are_counted() -> None:
    before = DROPPED.labels("late")._value.get()
    async with place("http://127.0.0.1:9/data") as one:
        for index in range(module.CAPACITY + 10):
            one.writer.put(index, "{}")
        await one.writer.delivered(0.1)
        assert DROPPED.labels("late")._value.get() == before + 10


async def test_a_closed_channel_keeps_nobody_waiting() -> None:
    async with place() as one:
        one.writer.put(0, "{}")
        await one.read(1)
        one.registry.close("s/data")
        one.writer.put(1, "{}")
        async with asyncio.timeout(5):
            await one.writer.delivered(10)


async def test_what_the_engine_refused_is_counted_as_it_grows() -> None:
    writer = RemarkWriter(Address("http://127.0.0.1:9/data"))
    before = DROPPED.labels("too_large")._value.get()
    for total in (2, 2, 5):
        writer.refused({"too_large": total})
    assert DROPPED.labels("too_large")._value.get() == before + 5
