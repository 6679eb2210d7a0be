"""Starts of streams as clients make them, and what became of each: live, a clear refusal, or neither."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httpx

from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Muxer
from sluice.client import ApiError, SluiceClient, UnreachableError
from tests.support import media

REFUSAL: Final = 503
FPS: Final = media.FPS
PIPELINE: Final = "passthrough"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one start. `status` is 0 where it went live, the refusal's otherwise, -1 where nothing answered."""

    status: int
    code: str
    took_s: float
    session: str = ""

    @property
    def live(self) -> bool:
        return self.status == 0

    @property
    def clear(self) -> bool:
        """Whether a client knows what to do."""
        return self.live or (self.status == REFUSAL and bool(self.code))


@lru_cache
def _second() -> tuple[AccessUnit, ...]:
    return tuple(media.pictures(FPS))


async def _endless() -> AsyncIterator[bytes]:
    """A second of small pictures, over and over, each when it is due."""
    muxer, begun_s, number = Muxer(), time.monotonic(), 0
    while True:
        unit = _second()[number % FPS]
        await asyncio.sleep(max(0.0, begun_s + number / FPS - time.monotonic()))
        tables = muxer.begin_segment() if unit.keyframe else b""
        yield tables + muxer.write(media.moved(unit, unit.pts + number // FPS * CLOCK_HZ))
        number += 1


@contextlib.asynccontextmanager
async def start(client: SluiceClient, within_s: float, *, look_s: float = 0.1) -> AsyncIterator[Outcome]:
    """One start; what went live ends with the block."""
    began_s = time.monotonic()
    publishing: asyncio.Task[str] | None = None
    stream = ""
    try:
        try:
            made = await client.create_stream(pipeline=PIPELINE)
            stream = made.id
            publishing = asyncio.ensure_future(client.publish(made.publish_url, _endless()))
            session = await _live(client, stream, publishing, began_s + within_s, look_s)
            outcome = Outcome(0, "", time.monotonic() - began_s, session)
        except ApiError as error:
            outcome = Outcome(error.status, error.code, time.monotonic() - began_s)
        except (UnreachableError, TimeoutError) as error:
            outcome = Outcome(-1, type(error).__name__, time.monotonic() - began_s)
        yield outcome
    finally:
        if publishing is not None:
            publishing.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError, UnreachableError):
                await publishing
        if stream:
            with contextlib.suppress(ApiError, UnreachableError, httpx.HTTPError):
                await client.delete_stream(stream)


async def _live(
    client: SluiceClient, stream: str, publishing: asyncio.Task[str], until_s: float, look_s: float
) -> str:
    """The session of a stream whose pictures come out; raises what its publisher was told."""
    while time.monotonic() < until_s:
        if publishing.done():
            await publishing  # raises the refusal; an orderly end before it was live is one too
            raise ApiError(200, "ENDED", "it ended before it was live")
        with contextlib.suppress(ApiError, UnreachableError):
            shown = await client.status(stream)
            if shown is not None and shown.phase in {"live", "degraded"} and shown.fps_out:
                return shown.id
        await asyncio.sleep(look_s)
    raise TimeoutError
