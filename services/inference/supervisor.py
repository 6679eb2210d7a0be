"""Owns the engine, a child process: starts it, restarts it, and tells each session on it when it died.

The rule it keeps: whatever an engine does, crash, hang, eat memory or talk nonsense, costs the sessions on it
a pause and nothing else. Who is to blame is read from the engine's black box.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.common.errors import InvalidError
from services.common.latest import Latest
from services.common.lifecycle import background
from services.inference.blackbox import BlackBox, Moment
from services.inference.hosting import Offer
from services.inference.line import (
    CRASHED,
    HUNG,
    LOAD_FAILED,
    OUT_OF_MEMORY,
    START_FAILED,
    EngineDiedError,
    Line,
    Received,
    SessionFailedError,
)
from services.inference.packets import Message, Packet, Pipe
from services.inference.settings import InferenceSettings

log = structlog.get_logger()

CODEC_FAILURES: Final = Counter(
    "sluice_codec_failures_total", "Streams that went on in software, by the codec that failed.", ["codec"]
)
RESTARTS: Final = Counter("sluice_engine_restarts_total", "Engines that ended, by cause.", ["reason"])
NOT_OFFERED: Final = Gauge(
    "sluice_runner_pipelines_not_offered", "Pipelines that this runner should offer and that do not load."
)
BACKOFF_S: Final = (0.2, 5.0)
HEALTHY_AFTER_S: Final = 60.0
EXIT_WITHIN_S: Final = 1.0  # after the pipe was closed
CHECK_S: Final = 0.5
FROZEN_S: Final = 3.0  # between two checks; a busy machine delays them by less
PING_S: Final = 1.0
WARN_AT: Final = 0.9  # of the memory that it may use
WARN_AGAIN_BELOW: Final = 0.8
MIB: Final = 1 << 20
PAGE_BYTES: Final = 4096
KINDS: Final = {CRASHED: "crash", HUNG: "hang", OUT_OF_MEMORY: "out_of_memory", START_FAILED: LOAD_FAILED}


class Supervisor:
    """The engine as the rest of the process sees it. Use the block `supervised`."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._lines: dict[int, Line] = {}
        self._pipe: Pipe | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._box: BlackBox | None = None
        self._verdict = ""  # why we killed it
        self._guilty: set[int] = set()  # slots for whose sake we did
        self._progress_s = 0.0  # `time.monotonic` of the last sign that something loads
        self._unanswered_s: float | None = None  # since when a ping is
        self._warned = False
        self._thawed_s = 0.0  # since when this process runs without having stood still
        self._not_offered: dict[str, str] = {}
        self.offers: Latest[tuple[Offer, ...]] = Latest(())  # empty while no engine is ready
        self.codecs: Mapping[str, str] = {}  # that the last engine found: encoder, decoder, reason

    @property
    def ready(self) -> bool:
        return bool(self.offers.value)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def line(self, slot: int, received: Received) -> Line:
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
                self._kill(HUNG, {line.slot})
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
            self._tell_of_death(reason, message)
            if now() - started_s > HEALTHY_AFTER_S:
                delay_s = BACKOFF_S[0]  # and none now: viewers look at a still picture
                continue
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, longest_s)

    def _tell_of_death(self, reason: str, message: str) -> None:
        """Each session that it had, with whether it is to blame."""
        assert self._box is not None
        lines, self._lines = self._lines, {}
        moments = {slot: self._box.moments(slot) for slot in lines}
        guilty = self._guilty or {slot for slot, calls in moments.items() if calls and reason == CRASHED}
        at = {slot: "; ".join(map(str, calls)) for slot, calls in moments.items() if calls}
        log.error("the engine ended", reason=reason, message=message, guilty=sorted(guilty), at=at)
        for slot, line in lines.items():
            calls = moments[slot]
            line.died(
                EngineDiedError(
                    reason,
                    f"{message}{f' in {at[slot]}' if slot in guilty and slot in at else ''}",
                    kind=KINDS[reason],
                    guilty=not guilty or slot in guilty,
                    call=max(calls, key=lambda call: call.newest, default=None),
                )
            )
        self._box.close()
        self._box = None

    async def _live_and_die(self) -> tuple[str, str]:
        """One engine from start to end; returns the reason and a sentence."""
        self._verdict, self._guilty, self._unanswered_s, self._warned = "", set(), None, False
        self._not_offered.clear()
        ours, theirs = socket.socketpair()
        self._box, box_file = BlackBox.make(self._settings.slots)
        with theirs:
            try:
                self._process = process = await self._spawn(theirs.fileno(), box_file)
            finally:
                os.close(box_file)
        self._progress_s = time.monotonic()
        self._pipe = pipe = await Pipe.over(ours)
        started = False
        try:
            await self._converse(pipe)
        finally:
            started = self.ready
            self._pipe = None
            self.offers.set(())
            pipe.close()
            await self._reap(process)
        status = process.returncode or 0
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        return self._verdict or (CRASHED if started else START_FAILED), f"the engine ended with {how}"

    async def _spawn(self, pipe: int, box: int) -> asyncio.subprocess.Process:
        settings = self._settings
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.inference.engine", "--fd", str(pipe), "--black-box", str(box)),
            *("--pipelines", settings.pipelines, "--slots", str(settings.slots)),
            *("--defaults", json.dumps(settings.pipeline_defaults), "--device", settings.device),
            *("--models", settings.models, "--memory-mb", str(settings.engine_memory_mb)),
            *("--codecs", settings.codecs, "--min-video-kbps", str(settings.min_video_kbps)),
            *("--max-video-kbps", str(settings.max_video_kbps)),
            *("--log-format", settings.log_format, "--log-level", settings.log_level),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[pipe, box],
        )

    async def _converse(self, pipe: Pipe) -> None:
        """Hand out what the engine says until it says no more."""
        try:
            async with background(watch=self._watch(), pings=self._ping(pipe)):
                async for packet in pipe.packets():
                    self._dispatch(packet)
        except* (InvalidError, KeyError, TypeError, ValueError) as errors:
            log.exception("the engine talks nonsense", exc_info=errors)
            self._kill(CRASHED, set())

    def _dispatch(self, packet: Packet) -> None:
        if packet.slot in self._lines:
            self._lines[packet.slot].dispatch(packet)
        elif isinstance(packet, Message) and packet.type == "pong":
            self._unanswered_s = None
        elif isinstance(packet, Message) and packet.type == "loading":
            self._progress_s = time.monotonic()
            if not self.ready:
                log.info("loading", **packet.fields)
        elif isinstance(packet, Message) and packet.type == "codec_failed":
            CODEC_FAILURES.labels(packet.fields["codec"]).inc()
        elif isinstance(packet, Message) and packet.type == "not_offered":
            self._not_offered[packet.fields["pipeline"]] = packet.fields["error"]
        elif isinstance(packet, Message) and packet.type == "ready":
            self.codecs = dict(packet.fields["codecs"])
            self.offers.set(tuple(Offer(**offer) for offer in packet.fields["pipelines"]))
            NOT_OFFERED.set(len(self._not_offered))
            offered = [offer.name for offer in self.offers.value]
            log.info("engine ready", pipelines=offered, not_offered=self._not_offered, pid=self.pid)
            log.info("codecs chosen", **self.codecs)

    async def _ping(self, pipe: Pipe) -> None:
        """Ask for a sign of life; who reads our packets answers."""
        while True:
            await asyncio.sleep(PING_S)
            if self._unanswered_s is None:
                self._unanswered_s = time.monotonic()
                with suppress(OSError):  # it ended, and whoever reads from it finds out
                    await pipe.send(Message("ping", -1, {}))

    async def _watch(self) -> None:
        """Kill an engine that is stuck, or that needs more memory than it may use."""
        looked_s = self._thawed_s = time.monotonic()
        while True:
            await asyncio.sleep(CHECK_S)
            now_s = time.monotonic()
            if now_s - looked_s > FROZEN_S:  # so were we, and have not read what the engine said meanwhile
                self._thaw(now_s)
            looked_s = now_s
            stuck = {slot for slot, line in self._lines.items() if self._is_stuck(line, now_s)}
            if stuck or self._is_silent(now_s):
                self._kill(HUNG, stuck or {slot for slot in self._lines if self._calls(slot)})
            elif not self.ready and now_s - self._progress_s > self._settings.engine_start_timeout_s:
                self._kill(START_FAILED, set())
            self._check_memory()

    def _thaw(self, now_s: float) -> None:
        """Count nothing as late that is so because this process stood still."""
        log.warning("this process stood still")
        self._thawed_s = now_s
        self._unanswered_s = None
        for line in self._lines.values():
            line.forgive()

    def _is_stuck(self, line: Line, now_s: float) -> bool:
        """Whether a call of its pipeline does not return, or pictures go in and none comes out."""
        calls = self._calls(line.slot)
        for call in calls:
            began_s = max(call.since_s, line.progress_s) if call.stage.long else call.since_s
            if now_s - max(began_s, self._thawed_s) > self._patience_s([call]):
                return True
        return not any(call.stage.long for call in calls) and line.hangs(self._settings.hang_after_s)

    def _is_silent(self, now_s: float) -> bool:
        """Whether nobody answers, though nothing loads, which may keep every thread from running."""
        if self._unanswered_s is None:
            return False
        calls = [call for slot in self._lines for call in self._calls(slot)]
        patience_s = self._patience_s(calls) if self.ready else self._settings.engine_start_timeout_s
        return now_s - self._unanswered_s > patience_s

    def _patience_s(self, calls: list[Moment]) -> float:
        if any(call.stage.long for call in calls):
            return max(self._settings.engine_start_timeout_s, self._settings.hang_after_s)
        return self._settings.hang_after_s

    def _calls(self, slot: int) -> tuple[Moment, ...]:
        return self._box.moments(slot) if self._box is not None else ()

    def _check_memory(self) -> None:
        limit = self._settings.engine_memory_mb * MIB
        if not limit or self.pid is None:
            return
        try:
            used = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE_BYTES
        except (OSError, IndexError):
            return  # it is ending
        if used > limit:
            self._kill(OUT_OF_MEMORY, set())
        elif used > WARN_AT * limit and not self._warned:
            self._warned = True
            said = f"the engine uses {used // MIB} of {limit // MIB} MiB"
            log.warning("the engine is short of memory", used_mb=used // MIB, limit_mb=limit // MIB)
            for line in self._lines.values():
                line.warn(said)
        elif used < WARN_AGAIN_BELOW * limit:
            self._warned = False

    def _kill(self, verdict: str, guilty: set[int]) -> None:
        if self._process is not None and self._process.returncode is None and not self._verdict:
            self._verdict, self._guilty = verdict, guilty
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
