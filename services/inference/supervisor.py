"""Owns the engine, a child process: starts it, restarts it, and tells each session on it when it died.

The rule it keeps: whatever an engine does, crash, hang or talk nonsense, costs the sessions on it and
nothing else.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog
from prometheus_client import Counter

from services.common.errors import InvalidError
from services.common.latest import Latest
from services.common.lifecycle import background
from services.inference.hosting import Offer
from services.inference.packets import Media, Message, Packet, Pipe, Sound
from services.inference.settings import InferenceSettings

log = structlog.get_logger()

RESTARTS: Final = Counter("sluice_engine_restarts_total", "Engines that ended, by cause.", ["reason"])
WINDOW: Final = 16  # packets that the engine may hold and has not decoded: half a second at 30 fps
BACKOFF_S: Final = (0.2, 5.0)
HEALTHY_AFTER_S: Final = 60.0
EXIT_WITHIN_S: Final = 1.0  # after the pipe was closed
FLOWS_WITHIN_S: Final = 2.0  # input with a longer pause does not flow
HANG_CHECK_S: Final = 0.5
CRASHED: Final = "engine_crashed"
HUNG: Final = "engine_hung"
START_FAILED: Final = "start_failed"


class SessionFailedError(Exception):
    """What ends a session, with a stable reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class Line:
    """One session's line to the engine: packets in order, of which at most `WINDOW` wait to be decoded.

    `received` is called with each packet of the session and may not block. `failure` has a result when the
    engine died under it.
    """

    def __init__(self, slot: int, pipe: Pipe, received: Callable[[Packet], None]) -> None:
        loop = asyncio.get_running_loop()
        self.slot = slot
        self.pipe = pipe
        self.closed = asyncio.Event()
        self.failure: asyncio.Future[SessionFailedError] = loop.create_future()
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
        self._received(packet)

    def died(self, failure: SessionFailedError) -> None:
        self.failure.set_result(failure)
        self.closed.set()
        self._window.release()  # who waits in `feed` is told

    def hangs(self, after_s: float) -> bool:
        """Whether pictures flowed for so long into a session that had output before, and none came."""
        if self._output_at_s is None:
            return False
        newest_input_s = self._now() if self._feeding else self._fed_at_s
        return newest_input_s - max(self._output_at_s, self._flowing_since_s) > after_s


class Supervisor:
    """The engine as the rest of the process sees it. Use the block `supervised`."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._lines: dict[int, Line] = {}
        self._pipe: Pipe | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._verdict = ""  # why we killed it
        self.offers: Latest[tuple[Offer, ...]] = Latest(())  # empty while no engine is ready

    @property
    def ready(self) -> bool:
        return bool(self.offers.value)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def line(self, slot: int, received: Callable[[Packet], None]) -> Line:
        """A line, on which `open` is to be said first. Raises SessionFailedError if the engine just died."""
        if self._pipe is None or not self.ready:
            raise SessionFailedError(CRASHED, "the engine is not running")
        assert slot not in self._lines, slot
        line = self._lines[slot] = Line(slot, self._pipe, received)
        return line

    async def close(self, line: Line) -> None:
        """Take the session off the engine; an engine that does not let go of it in time is killed."""
        if self._lines.get(line.slot) is not line:
            return  # it went with its engine
        try:
            async with asyncio.timeout(self._settings.detach_timeout_s):
                await line.say("close")
                await line.closed.wait()
        except TimeoutError:
            if line.pipe is self._pipe:
                self._kill(HUNG)
        except SessionFailedError:
            return  # it died instead
        finally:
            if self._lines.get(line.slot) is line:
                del self._lines[line.slot]

    async def run(self) -> None:
        """Keep an engine running: a loop for `background`."""
        now = asyncio.get_running_loop().time
        delay_s, longest_s = BACKOFF_S
        while True:
            started_s = now()
            reason, message = await self._live_and_die()
            RESTARTS.labels(reason).inc()
            log.error("the engine ended", reason=reason, message=message, sessions=len(self._lines))
            lines, self._lines = self._lines, {}
            for line in lines.values():
                line.died(SessionFailedError(reason, message))
            if now() - started_s > HEALTHY_AFTER_S:
                delay_s = BACKOFF_S[0]
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, longest_s)

    async def _live_and_die(self) -> tuple[str, str]:
        """One engine from start to end; returns the reason and a sentence."""
        self._verdict = ""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "services.inference.engine", "--fd", str(theirs.fileno())),
                *("--pipelines", self._settings.pipelines, "--slots", str(self._settings.slots)),
                *("--models", self._settings.models),
                *("--min-video-kbps", str(self._settings.min_video_kbps)),
                *("--max-video-kbps", str(self._settings.max_video_kbps)),
                *("--log-format", self._settings.log_format, "--log-level", self._settings.log_level),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._pipe = pipe = await Pipe.over(ours)
        try:
            await self._converse(pipe)
        finally:
            self._pipe = None
            self.offers.set(())
            pipe.close()
            await self._reap(process)
        status = process.returncode or 0
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        return self._verdict or CRASHED, f"the engine ended with {how}"

    async def _converse(self, pipe: Pipe) -> None:
        """Hand out what the engine says until it says no more."""
        loop = asyncio.get_running_loop()
        timeout = loop.call_later(self._settings.engine_start_timeout_s, self._check_started)
        try:
            async with background(hangs=self._watch_for_hangs()):
                async for packet in pipe.packets():
                    self._dispatch(packet)
        except* (InvalidError, KeyError, TypeError, ValueError) as errors:
            log.exception("the engine talks nonsense", exc_info=errors)
            self._kill(CRASHED)
        finally:
            timeout.cancel()

    def _dispatch(self, packet: Packet) -> None:
        if packet.slot in self._lines:
            self._lines[packet.slot].dispatch(packet)
        elif isinstance(packet, Message) and packet.type == "loading":
            log.info("loading", **packet.fields)
        elif isinstance(packet, Message) and packet.type == "ready":
            self.offers.set(tuple(Offer(**offer) for offer in packet.fields["pipelines"]))
            log.info("engine ready", pipelines=[offer.name for offer in self.offers.value], pid=self.pid)

    def _check_started(self) -> None:
        if not self.ready:
            self._kill(START_FAILED)

    async def _watch_for_hangs(self) -> None:
        while True:
            await asyncio.sleep(HANG_CHECK_S)
            if any(line.hangs(self._settings.hang_after_s) for line in self._lines.values()):
                self._kill(HUNG)

    def _kill(self, verdict: str) -> None:
        if self._process is not None and self._process.returncode is None and not self._verdict:
            self._verdict = verdict
            self._process.kill()

    async def _reap(self, process: asyncio.subprocess.Process) -> None:
        """An engine leaves when its pipe is closed; one that does not is killed."""
        try:
            await asyncio.wait_for(process.wait(), EXIT_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def supervised(settings: InferenceSettings) -> AsyncIterator[Supervisor]:
    """An engine that is kept running until the block ends; then no child is left."""
    supervisor = Supervisor(settings)
    async with background(engine=supervisor.run()):
        yield supervisor
