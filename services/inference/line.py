"""One session's line to the engine, and what of it counts as a hang.

The rule it keeps: packets go in order, and at most `WINDOW` of them wait to be decoded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeAlias

from services.inference.blackbox import Moment
from services.inference.packets import Media, Message, Packet, Pipe, Sound

WINDOW: Final = 16  # packets that the engine may hold and has not decoded: half a second at 30 fps
FLOWS_WITHIN_S: Final = 2.0  # input with a longer pause does not flow
CRASHED: Final = "engine_crashed"
HUNG: Final = "engine_hung"
OUT_OF_MEMORY: Final = "out_of_memory"
START_FAILED: Final = "start_failed"
LOAD_FAILED: Final = "load_failed"
Received: TypeAlias = Callable[[Packet], None]


class SessionFailedError(Exception):
    """What ends a session, with a stable reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class EngineDiedError(SessionFailedError):
    """The engine died under a session, which may go on with the next one.

    `kind`: hang, crash, out_of_memory or load_failed. `guilty`: whether this session is suspected; `call`
    is what its pipeline was at.
    """

    def __init__(self, reason: str, message: str, *, kind: str, guilty: bool, call: Moment | None) -> None:
        super().__init__(reason, message)
        self.kind = kind
        self.guilty = guilty
        self.call = call


class Line:
    """`received` is called with each packet of the session and may not block.

    `failure` has a result when the engine died under it.
    """

    def __init__(self, slot: int, pipe: Pipe, received: Received) -> None:
        loop = asyncio.get_running_loop()
        self.slot = slot
        self.pipe = pipe
        self.closed = asyncio.Event()
        self.failure: asyncio.Future[EngineDiedError] = loop.create_future()
        self.progress_s = 0.0  # `time.monotonic` of the last sign that something loads
        self._received = received
        self._window = asyncio.Semaphore(WINDOW)
        self._now = loop.time
        self._feeding = False
        self._fed_at_s = -FLOWS_WITHIN_S
        self._flowing_since_s = 0.0
        self._output_at_s: float | None = None

    async def feed(self, media: Media | Sound) -> None:
        """Send a packet; waits while the engine has enough of them."""
        now_s = self._now()
        if isinstance(media, Media) and now_s - self._fed_at_s >= FLOWS_WITHIN_S:
            self._flowing_since_s = now_s
        self._feeding = True
        try:
            await self._window.acquire()
            await self._send(media)
        finally:
            self._feeding = False
            if isinstance(media, Media):
                self._fed_at_s = self._now()

    async def say(self, kind: str, **fields: object) -> None:
        await self._send(Message(kind, self.slot, fields))

    async def _send(self, packet: Packet) -> None:
        if self.failure.done():
            raise self.failure.result()
        try:
            await self.pipe.send(packet)
        except OSError:
            raise await asyncio.shield(self.failure) from None  # the supervisor is finding out why

    def dispatch(self, packet: Packet) -> None:
        if isinstance(packet, Media):
            self._output_at_s = self._now()
        elif isinstance(packet, Message) and packet.type == "taken":
            for _ in range(int(packet.fields["packets"])):
                self._window.release()
            return
        elif isinstance(packet, Message) and packet.type == "closed":
            self.closed.set()
            return
        elif isinstance(packet, Message) and packet.type == "loading":
            self.progress_s = time.monotonic()
            if self._output_at_s is not None:
                self._output_at_s = self._now()  # while it loads it shows nothing, and then begins anew
        self._received(packet)

    def warn(self, message: str) -> None:
        """Tell the session that the engine is short of memory."""
        fields = {"stage": "engine", "kind": "out_of_memory", "error": "", "message": message}
        self._received(Message("problem", self.slot, {**fields, "pts": 0, "frame": 0, "action": "held"}))

    def died(self, failure: EngineDiedError) -> None:
        self.failure.set_result(failure)
        self.closed.set()
        self._window.release()  # who waits in `feed` is told

    def forgive(self) -> None:
        """We stood still, so what seems to be late may be here."""
        self._flowing_since_s = self._now()

    def hangs(self, after_s: float) -> bool:
        """Whether pictures flowed for so long into a session that had output before, and none came."""
        if self._output_at_s is None:
            return False
        newest_input_s = self._now() if self._feeding else self._fed_at_s
        return newest_input_s - max(self._output_at_s, self._flowing_since_s) > after_s
