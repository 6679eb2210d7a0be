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
from services.inference.address import Address
from services.inference.settings import InferenceSettings
from services.inference.steering import BITRATE, KEYFRAME, Steering

log = structlog.get_logger()

IGNORED: Final = Counter("sluice_control_ignored_total", "Control messages that mean nothing here.")
CLAMPED: Final = Counter(
    "sluice_control_clamped_total", "Bit rates asked for that were above or below what the settings allow."
)
LONGEST_BYTES: Final = 64 * 1024
RETRY_S: Final = 0.5


class Control:
    """Reads the channel at `address` and tells the engine."""

    def __init__(self, address: Address, settings: InferenceSettings) -> None:
        self._address = address
        self._lowest = settings.min_video_kbps * 1000
        self._highest = settings.max_video_kbps * 1000

    async def run(self, http: ClientSession, steering: Steering) -> None:
        """Do what is asked for, also before we came: a loop for `background`."""
        await self._address.at_each(lambda url: self._listen(http, url, steering))

    async def _listen(self, http: ClientSession, url: str, steering: Steering) -> None:
        async with Subscriber(http, url, start=0) as subscriber:
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
            kind, number = parse(text)
        except InvalidError:
            IGNORED.inc()
            return
        if kind == KEYFRAME:
            await steering.say(KEYFRAME, at_pts=number)
            return
        if number is not None and not self._lowest <= number <= self._highest:
            CLAMPED.inc()
            number = min(max(number, self._lowest), self._highest)
        await steering.say(BITRATE, bits_per_second=number)


def parse(text: bytes) -> tuple[str, int | None]:
    """The kind of a message and its number, of which None is the runner's own choice.

    That is a bit rate's bits per second, and from what time on a key frame is wanted. Raises InvalidError.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidError("control is JSON") from error
    match message:
        case {"type": "keyframe", "at_pts": int(at_pts)} if _is_number(at_pts):
            return KEYFRAME, at_pts
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
