"""What the bridge asks of a session on `control`: key frames and a bit rate, one JSON message a segment.

The rule it keeps: whatever is said there, the stream goes on. What means nothing is counted, and so is a bit
rate that the settings do not allow, which is brought within them.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Final

import structlog
from aiohttp import ClientSession
from prometheus_client import Counter

from services.common.errors import InvalidError, SluiceError
from services.common.trickle.subscriber import ReceivedSegment, Subscriber
from services.inference.settings import InferenceSettings
from services.inference.steering import BITRATE, Steering

log = structlog.get_logger()

IGNORED: Final = Counter("sluice_control_ignored_total", "Control messages that mean nothing here.")
CLAMPED: Final = Counter(
    "sluice_control_clamped_total", "Bit rates asked for that were above or below what the settings allow."
)
LONGEST_BYTES: Final = 64 * 1024
RETRY_S: Final = 0.5
KEYFRAME: Final = "keyframe"


class Control:
    """Reads the channel at `url` and tells the engine."""

    def __init__(self, url: str, settings: InferenceSettings) -> None:
        self._url = url
        self._lowest = settings.min_video_kbps * 1000
        self._highest = settings.max_video_kbps * 1000

    async def run(self, http: ClientSession, steering: Steering) -> None:
        """Do what is asked for, also before we came: a loop for `background`."""
        async with Subscriber(http, self._url, start=0) as subscriber:
            while True:
                try:
                    async for segment in subscriber:
                        await self._obey(await _text(segment), steering)
                    break
                except SluiceError as error:
                    log.warning("control cannot be read", error=error.message)
                    await asyncio.sleep(RETRY_S)
        await asyncio.Event().wait()  # its end is not the session's

    async def _obey(self, text: bytes, steering: Steering) -> None:
        try:
            kind, bit_rate = parse(text)
        except InvalidError:
            IGNORED.inc()
            return
        if kind == KEYFRAME:
            await steering.say(KEYFRAME)
            return
        if bit_rate is not None and not self._lowest <= bit_rate <= self._highest:
            CLAMPED.inc()
            bit_rate = min(max(bit_rate, self._lowest), self._highest)
        await steering.say(BITRATE, bits_per_second=bit_rate)


def parse(text: bytes) -> tuple[str, int | None]:
    """The kind of a message, and of a bit rate how much; None there is the runner's own choice.

    Raises InvalidError.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidError("control is JSON") from error
    match message:
        case {"type": "keyframe"}:
            return KEYFRAME, None
        case {"type": "bitrate", "bits_per_second": None}:
            return BITRATE, None
        case {"type": "bitrate", "bits_per_second": int() | float() as asked} if _is_number(asked):
            return BITRATE, round(asked)
    raise InvalidError("no such control message")


def _is_number(value: float) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))


async def _text(segment: ReceivedSegment) -> bytes:
    text = b""
    async for data in segment:
        text += data
        if len(text) > LONGEST_BYTES:
            break
    return text
