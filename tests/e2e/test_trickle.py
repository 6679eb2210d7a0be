"""A stream by the trickle protocol alone: segments that libav cut go in, and what comes out libav reads."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path

import aiohttp
import av

from tests.support.publisher import picture
from tests.support.stack import Stack

FPS = 25
SECONDS = 5


def segments(directory: Path) -> list[bytes]:
    """A second of video each, as libav's segment muxer writes them for PyTrickle and Livepeer's runners."""
    pattern = str(directory / "%d.ts")
    with av.open(
        pattern, "w", format="segment", options={"segment_time": "1", "segment_format": "mpegts"}
    ) as out:
        video = out.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        video.gop_size, video.max_b_frames = FPS, 0
        video.options = {"preset": "ultrafast", "tune": "zerolatency"}
        for index in range(SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(picture(index, 320, 240), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return [(directory / f"{index}.ts").read_bytes() for index in range(SECONDS)]


async def paced(body: bytes) -> AsyncIterator[bytes]:
    """A segment as it is written by an encoder: over the second that it lasts."""
    size = len(body) // FPS // 188 * 188 + 188
    begun_s = time.monotonic()
    for number, place in enumerate(range(0, len(body), size)):
        await asyncio.sleep(begun_s + number / FPS - time.monotonic())
        yield body[place : place + size]


async def publish(url: str, bodies: list[bytes]) -> None:
    """As a plain client does: a POST a segment, each on a connection of its own, a DELETE at the end."""
    async with aiohttp.ClientSession(headers={"Connection": "close"}) as http:
        for index, body in enumerate(bodies):
            async with http.post(f"{url}/{index}", data=paced(body)) as answer:
                assert answer.status == 200, await answer.text()
                assert answer.headers["Lp-Trickle-Seq"] == str(index)
        async with http.delete(url) as answer:
            assert answer.status == 200


async def watch(url: str) -> bytes:
    """As a plain client does: -2 first, then one after the other, and to the head when it fell behind."""
    seen, index = b"", -2
    async with aiohttp.ClientSession(headers={"Connection": "close"}) as http:
        while True:
            async with http.get(f"{url}/{index}") as answer:
                if answer.status == 404 or "Lp-Trickle-Closed" in answer.headers:
                    if seen:
                        return seen
                    index = -2  # nobody published yet
                elif answer.status == 470:
                    index = int(answer.headers["Lp-Trickle-Latest"])
                else:
                    seen += await answer.read()
                    index = int(answer.headers["Lp-Trickle-Seq"]) + 1


async def test_a_stream_goes_in_and_out_by_trickle(stack: Stack, tmp_path: Path) -> None:
    stream = stack.stream("neon")
    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch(stream["trickle_play_url"]))
        group.create_task(publish(stream["trickle_publish_url"], segments(tmp_path)))
    with av.open(io.BytesIO(watching.result()), "r") as out:
        frames = list(out.decode(out.streams.video[0]))
    assert len(frames) > 0.8 * SECONDS * FPS
    assert frames[40].to_ndarray(format="gray").mean() < 80, "neon is dark where the source is not"
    session = stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"]
    assert stack.ended(session)["end_reason"] == "input_ended"
