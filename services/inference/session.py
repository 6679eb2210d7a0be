"""One attached session at the runner: from the bridge to the engine, and from the engine back to the bridge.

The rule it keeps: media waits for nothing but media, every end of a session has a reason, and the death of an
engine is none while there may be another.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from aiohttp import ClientSession
from prometheus_client import Counter, Histogram

from services.common.errors import ConflictError
from services.common.lifecycle import background
from services.common.machine_clock import clock_name
from services.common.trickle.publisher import Publisher
from services.inference.address import Berth
from services.inference.announcer import Announcer
from services.inference.assignment import Assignment, Channels, Report, State
from services.inference.blackbox import Stage
from services.inference.bypass import Bypass
from services.inference.control import Control
from services.inference.deaths import Deaths
from services.inference.inlet import Inlet
from services.inference.intake import Intake
from services.inference.line import LOAD_FAILED, EngineDiedError, Line, SessionFailedError
from services.inference.outlet import BRIDGE_LOST, Outlet
from services.inference.packets import Media, Message, Packet, Snapshot, Sound
from services.inference.params import Fold, Patch
from services.inference.remarks import RemarkWriter
from services.inference.reporting import ReportedSession, first_of
from services.inference.settings import InferenceSettings
from services.inference.state import NOTHING, StateWriter, read_back
from services.inference.steering import Steering
from services.inference.supervisor import Supervisor
from services.inference.tally import Tally
from services.inference.vitals import Vitals
from services.inference.voices import Events, Remarks, Wishes

log = structlog.get_logger()

REBINDS: Final = Counter("sluice_runner_rebinds_total", "Sessions that went on at another bridge.")
FIRST_PICTURE: Final = Histogram(
    "sluice_attach_seconds",
    "From an attach to the first picture that the pipeline returned.",
    ["kind"],  # new, or moved: it came from another runner
    buckets=(0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 5, 10, 30, 60),
)
RETURN_WITHIN_S: Final = 600.0  # for the next engine, as long as it says that it loads
CLOCK: Final = clock_name()


@dataclass(frozen=True, slots=True)
class Voices:
    """What a session says and hears beside its media, in the dialect of whoever it works for."""

    events: Events
    remarks: Remarks
    control: Wishes

    @classmethod
    def at_bridge(cls, berth: Berth, settings: InferenceSettings) -> Voices:
        return cls(Announcer(berth.events), RemarkWriter(berth.data), Control(berth.control, settings))


class Session(ReportedSession):
    """One on an engine, and on the next one when that dies."""

    def __init__(
        self,
        assignment: Assignment,
        supervisor: Supervisor,
        settings: InferenceSettings,
        voices: Voices,
        berth: Berth,
        bypass: Bypass | None = None,
    ) -> None:
        """`bypass`: for sound that the pipeline does not process; None: it is no business of the runner's."""
        super().__init__(assignment, voices.events, voices.remarks)
        self.fold = assignment.fold
        self._supervisor = supervisor
        self._bridge_lost_after_s = settings.bridge_lost_after_s
        self._line: Line | None = None
        self._output = Intake()
        self._control = voices.control
        self._steering = Steering()
        self._vitals = Vitals(self._tell)
        self._bypass = bypass
        self._berth = berth
        self._inlet = Inlet(
            assignment, berth, bypass, self._vitals, bridge_lost_after_s=settings.bridge_lost_after_s
        )
        self._state = StateWriter(berth.state)
        self._tally = Tally(assignment.pipeline)
        self._deaths = Deaths()
        self._snapshot: bytes | None = None
        self._shown_pts: int | None = None  # of the newest picture that came back
        self._written = False  # something was, perhaps to the bridge before
        self._applied: Mapping[str, Any] | None = None  # what was told of the newest revision that shows
        self._heard_pts: int | None = None  # of the newest sound that did
        self._now = asyncio.get_running_loop().time
        self._attached_s = self._now()
        self._finished = asyncio.Event()
        self._failed: asyncio.Future[SessionFailedError] = asyncio.get_running_loop().create_future()

    async def _let_go(self) -> None:
        if self._line is not None:
            await self._supervisor.close(self._line)

    def _failing(self, reason: str) -> None:
        self._vitals.failed(reason)

    def _over(self) -> None:
        self._vitals.ended()

    def finish(self) -> None:
        """Take no more of the input: what is under way comes out, as if it had ended here."""
        self._inlet.finish()

    async def update(self, patch: Patch, fold: Fold) -> None:
        """Take a revision in; `fold` is the session's with it."""
        self.fold = fold
        # Without an engine, or when that has just died, it will be part of the next opening.
        if self._line is not None:
            with suppress(EngineDiedError):
                await self._line.say(
                    "update", revision=patch.revision, patch=patch.patch, apply_at_pts=patch.apply_at_pts
                )

    @property
    def newest(self) -> Report:
        return replace(self.report.value, in_pts=self._inlet.newest_pts, out_pts=self._shown_pts or 0)

    def rebind(self, channels: Channels, session_epoch: int) -> None:
        """Go on at another bridge, with the engine's stream as it is. Raises ConflictError."""
        if self._bypass is not None:
            raise ConflictError("the session has no other bridge", reason="REBIND_UNSUPPORTED")
        log.info("the session goes on at another bridge", epoch=session_epoch)
        REBINDS.inc()
        self.assignment = replace(self.assignment, channels=channels, session_epoch=session_epoch)
        if self.assignment.live:
            self._output.drop_all()  # the new bridge is told that its viewers had it
        self._berth.move(channels)
        self._vitals.tell_again()
        if self._applied is not None:
            self._tell(type="applied", **self._applied)

    async def _stream(self, http: ClientSession) -> None:
        """Raises SessionFailedError, in a group."""
        if self.assignment.channels.restore:
            self._snapshot = await read_back(http, self.assignment.channels.restore)
        if self._snapshot is not None:
            self._state.put(self._snapshot)  # until there is one of ours
        async with (
            background(
                failed=_raises(self._failed),
                control=self._control.run(http, self._steering),
                vitals=self._vitals.watch(self._has_backlog),
                state=self._state.run(http),
            ),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._write(http))
            group.create_task(self._through_engines(http))

    def _has_backlog(self) -> bool:
        """Whether pictures wait for the engine; of a file, more come only when they have gone in."""
        waiting = self._inlet.packets
        return waiting.full or (not self.assignment.live and len(waiting) > 0)

    # --- one engine after the other

    async def _through_engines(self, http: ClientSession) -> None:
        """Have the whole input go through an engine. Raises SessionFailedError, perhaps in a group."""
        while True:
            death: EngineDiedError | None = None
            try:
                await self._through_engine(http)
            except* EngineDiedError as deaths:
                death = first_of(deaths)
            if death is None:
                return
            self._line = None
            self._survive(death)
            await self._return_of_engine(death)

    async def _through_engine(self, http: ClientSession) -> None:
        line = self._supervisor.line(self.assignment.slot, self._received)
        self._line = line
        self._inlet.processes_sound = any(
            offer.processes_audio
            for offer in self._supervisor.offers.value
            if offer.name == self.assignment.pipeline
        )
        async with background(engine=_raises(line.failure)):
            await line.say("open", **self._opening())
            await self._steering.follow(line)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._inlet.run(http))
                group.create_task(self._feed(line))
            await self._finished.wait()

    def _opening(self) -> dict[str, object]:
        """What the engine is told of the stream: how it begins, or where the engine before left it."""
        patches = [
            {"revision": one.revision, "patch": one.patch, "apply_at_pts": one.apply_at_pts}
            for one in self.fold.patches
        ]
        opening: dict[str, object] = {
            "pipeline": self.assignment.pipeline,
            "revision": self.fold.revision,
            "params": self.fold.params,
            "scheduled": patches,
            "live": self.assignment.live,
        }
        if self._shown_pts is not None:
            opening |= {"resumed": True, "after_pts": self._shown_pts, "shown": self.fold.shown}
        elif self.assignment.after_pts:
            opening["after_pts"] = self.assignment.after_pts
        if self._deaths.in_a_row:
            opening["cautious"] = True
        if self._snapshot is not None:
            opening["snapshot"] = base64.b64encode(self._snapshot).decode()
        return opening

    def _survive(self, death: EngineDiedError) -> None:
        """Make ready for the next engine. Raises SessionFailedError when there were too many."""
        call = death.call
        oldest, newest = (call.oldest, call.newest) if call is not None else (0, 0)
        sequel = self._deaths.happened(self._now(), guilty=death.guilty, oldest=oldest, newest=newest)
        self._tell(
            type="problem",
            stage=call.stage.word if call is not None else "engine",
            kind=death.kind,
            error=death.reason,
            message=death.message,
            pts=call.pts if call is not None else 0,
            frame=call.frame if call is not None else 0,
            action="restarting" if sequel.again else "ended",
        )
        if not sequel.again:
            raise SessionFailedError(death.reason, death.message)
        self.report.set(
            replace(
                self.report.value,
                interrupted=True,
                suspected=death.guilty,
                reason=death.reason,
                message=death.message,
            )
        )
        log.warning("the session waits for another engine", reason=death.reason, guilty=death.guilty)
        self._vitals.loads(why="restart", stage="engine", percent=0)
        if self._deaths.in_a_row > 1 or (call is not None and call.stage is Stage.RESTORE):
            self._snapshot = None  # it may be what kills them
            self._state.put(NOTHING)  # and those of other runners
        if sequel.poisoned is not None:
            self._refuse(sequel.poisoned, f"the engine died twice with it: {death.message}")
        self._tally.next_engine(self._inlet.packets)
        self._inlet.begin_again(self._shown_pts, self._heard_pts)
        self._finished.clear()

    def _refuse(self, revision: int, message: str) -> None:
        without = self.fold.refuse(revision)
        if without is not self.fold:
            self.fold = without
            self._tell(type="refused", revision=revision, field="", reason="poisoned_param", message=message)

    async def _return_of_engine(self, death: EngineDiedError) -> None:
        """Wait until there is one. Raises SessionFailedError when none comes, or none with our pipeline."""
        offers = self._supervisor.offers
        try:
            async with asyncio.timeout(RETURN_WITHIN_S):
                while not offers.value:
                    _, now = await offers.newer_than(offers.version)
                    if not now and not self._deaths.happened(self._now(), guilty=True).again:
                        raise SessionFailedError(LOAD_FAILED, "the engine does not start again")
        except TimeoutError:
            raise SessionFailedError(death.reason, f"{death.message}, and no other came") from death
        if all(offer.name != self.assignment.pipeline for offer in offers.value):
            raise SessionFailedError(LOAD_FAILED, "its pipeline does not load any more")
        self._vitals.loads(why="restart", stage="engine", percent=100)

    # --- what the engine says

    def _received(self, packet: Packet) -> None:
        if isinstance(packet, Media | Sound):
            self._came_back(packet)
        elif isinstance(packet, Snapshot):
            self._snapshot = packet.data
            self._state.put(packet.data)
        elif packet.type == "said":
            self._remarks.put(packet.fields["pts"], packet.fields["text"])
        elif packet.type == "stats":
            self._count(packet.fields)
        elif packet.type == "finished":
            if self._bypass is not None:
                self._put_out(self._bypass.rest())
            self._output.finish()
            self._finished.set()
        elif packet.type == "failed":
            self._fail(packet.fields["reason"], packet.fields["message"])
        elif packet.type == "settled":
            self.fold = self.fold.settle(packet.fields["keep"])
        elif packet.type == "loading":
            self._vitals.loads(**packet.fields)
        else:
            self._happened(packet)

    def _came_back(self, packet: Media | Sound) -> None:
        if isinstance(packet, Sound):
            if self._heard_pts is not None and packet.pts <= self._heard_pts:
                return  # the engine before this one made it, from the same sound
            self._heard_pts = packet.pts
        else:
            if self._shown_pts is None:
                kind = "moved" if self.assignment.after_pts else "new"
                FIRST_PICTURE.labels(kind).observe(self._now() - self._attached_s)
            report, self._shown_pts = self.report.value, packet.pts
            if report.state is State.STARTING or report.interrupted:
                fine = replace(report, interrupted=False, suspected=False, reason="", message="")
                self.report.set(replace(fine, state=State.RUNNING))
            self._vitals.gave()
            if self._bypass is not None:
                self._put_out(self._bypass.until(packet.pts))
        self._put_out([packet])

    def _happened(self, message: Message) -> None:
        """What clients are told of, too."""
        fields = message.fields
        if message.type == "applied":
            self._applied = fields
            self.fold = self.fold.show([fields["revision"]], fields["pts"])
            self._vitals.changed()
        elif message.type == "refused":
            self.fold = self.fold.refuse(fields["revision"])
        elif message.type == "problem":
            self._vitals.problem(fields["kind"])
        self._tell(type=message.type, **fields)

    def _tell(self, **event: object) -> None:
        if self._events.full:
            self._fail(BRIDGE_LOST, "events cannot be delivered")
        else:
            self._events.tell(**event)

    def _put_out(self, packets: Iterable[Media | Sound]) -> None:
        for packet in packets:
            if self.assignment.live:
                self._output.put_newest(packet)
            else:
                self._output.put(packet)  # bounded by what `_feed` lets in

    def _fail(self, reason: str, message: str) -> None:
        if not self._failed.done():
            self._failed.set_result(SessionFailedError(reason, message))

    def _count(self, stats: Mapping[str, Any]) -> None:
        bypassed = 0 if self._bypass is None else self._bypass.dropped
        now = self._tally.count(self.report.value, stats, self._inlet.packets, self._output, bypassed)
        pictures = self._tally.pictures(stats["stamps"], self._inlet.received_s)
        self._remarks.refused(self._tally.unsaid(stats))
        self.report.set(now)
        self._events.status(
            type="status",
            decoded=now.decoded,
            inferred=now.inferred,
            dropped=now.dropped,
            infer_ms=now.infer_ms,
            clock=CLOCK,
            pictures=pictures,
        )

    # --- media

    async def _feed(self, line: Line) -> None:
        packets = self._inlet.packets
        while (packet := await packets.get()) is not None:
            if not self.assignment.live:
                await self._output.room()
            await line.feed(await self._inlet.to_feed(packet))
        await line.say("end_of_input")

    async def _write(self, http: ClientSession) -> None:
        if not self.assignment.channels.out:  # only what the pipeline says is wanted
            while await self._output.get() is not None:
                pass
            return
        await self._berth.out.at_each(lambda url: self._write_to(http, url))

    async def _write_to(self, http: ClientSession, url: str) -> None:
        anew, self._written = self._written, True
        async with Publisher(http, url) as publisher:
            outlet = Outlet(
                publisher,
                self._output,
                sound=lambda: self._inlet.sound,
                ask_keyframe=lambda: self._steering.say("keyframe"),
                lost_after_s=self._bridge_lost_after_s,
                closed_for_s=self._bridge_lost_after_s if self._bypass is None else 0.0,
                anew=anew,
            )
            await outlet.run()


async def _raises(failure: asyncio.Future[SessionFailedError] | asyncio.Future[EngineDiedError]) -> None:
    raise await asyncio.shield(failure)  # a wait that is cancelled would cancel the future too
