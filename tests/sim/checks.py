"""What must hold in every world, looked at after each step: of slots, sessions, pictures and money.

The rule it keeps: what is judged is what was stored, run and shown, never what a service believes of itself.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from protos.events.v1 import events_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.media.mpegts import AccessUnit, Codec
from services.inference.assignment import Assignment
from services.ingest.bridge.meter import LONGEST_GAP_MS
from services.ingest.bridge.session import TICK_S, BridgeSession
from services.session_manager.machine import NEXT, Phase
from tests.sim.broker import Message
from tests.sim.clock import PROCESS, Process
from tests.sim.pictures import CAMERA, Origin
from tests.sim.weather import Weather

LONGEST_GAP_S: Final = LONGEST_GAP_MS / 1000  # between two pictures that still counts as delivery
ROUNDED_S: Final = 0.001
WINDOW_S: Final = 5.0
UNSTORED_S: Final = WINDOW_S + TICK_S  # the longest that delivered time is in memory alone
YOUNG_S: Final = 15.0  # a start may take so long
SHOWS_WITHIN_S: Final = 3.0
MOST_SLOTS: Final = 4  # of one session: two while it moves, and what a broken call left to the reconciler
ONCE_LIVE: Final = frozenset({pb.PHASE_LIVE, pb.PHASE_DEGRADED, pb.PHASE_PAUSED, pb.PHASE_MIGRATING})
GOOD_ENDS: Final = frozenset(
    {"stopped", "publisher_gone", "bridge_lost", "no_capacity", "breaks_runners", "credit_exhausted"}
)


@dataclass(slots=True)
class Shown:
    """What the viewers of one session got."""

    last_pts: int = 0
    last_epoch: int = 0
    last_s: float | None = None
    delivered_s: float = 0.0
    either_s: float = 0.0  # in gaps of which the meter's milliseconds decide whether they are a stall
    lost_s: float = 0.0  # of that, what an ingest process took along when it was killed, at most
    bridge: BridgeSession | None = None  # which showed it last
    at: Process | None = None  # and where that is
    deliveries: deque[tuple[float, float]] = field(default_factory=deque)  # the newest: when, and how long

    def delivered(self, at_s: float, gap_s: float) -> None:
        """A picture came `gap_s` after the one before it."""
        if abs(gap_s - LONGEST_GAP_S) <= ROUNDED_S:
            self.either_s += gap_s
        elif gap_s < LONGEST_GAP_S:
            self.delivered_s += gap_s
            self.deliveries.append((at_s, gap_s))
            while self.deliveries[0][0] < at_s - UNSTORED_S:
                self.deliveries.popleft()

    def unstored_s(self, now_s: float) -> float:
        """How much of it may be in no outbox yet."""
        return sum(long_s for at_s, long_s in self.deliveries if at_s >= now_s - UNSTORED_S)


@dataclass(frozen=True, slots=True)
class Run:
    """A session at a runner, and the parameters that its newest picture was made with."""

    of: Assignment
    params: Callable[[], Mapping[str, object]]


class Checks:
    """Fed by the broker, the runners and the viewers; `violations` is what it found."""

    def __init__(self, weather: Weather, note: Callable[[str], None], lives: Callable[[str], bool]) -> None:
        self._lives = lives
        self._weather = weather
        self._note = note
        self.violations: list[str] = []
        self.slots: dict[str, events_pb2.Slot] = {}
        self.records: dict[str, pb.Session] = {}
        self.streams: dict[str, pb.Stream] = {}
        self.freed_s: dict[str, float] = {}
        self.freezes: list[tuple[str, int]] = []
        self.shown: defaultdict[str, Shown] = defaultdict(Shown)
        self.running: dict[tuple[Process, int], Run] = {}
        self._holders: dict[tuple[str, int], str] = {}  # (slot key, epoch) to session
        self._highest: defaultdict[str, int] = defaultdict(int)
        self._ended: dict[str, tuple[str, int]] = {}
        self._events: set[str] = set()
        self._born_s: dict[str, float] = {}
        self._changed_s: dict[str, float] = {}

    def violated(self, what: str) -> None:
        self.violations.append(f"{asyncio.get_running_loop().time():.3f} s: {what}")

    # --- what is stored

    def written(self, bucket: str, key: str, message: Message) -> None:
        value = None if message.gone else message.data
        if bucket == "slots":
            slot = None if value is None else events_pb2.Slot.FromString(value)
            self._note(f"slot {key}: {slot.session or 'free'} {slot.epoch}" if slot else f"slot {key}: gone")
            self._slot(key, slot)
        elif bucket == "sessions":
            self._record(key, None if value is None else pb.Session.FromString(value))
        elif bucket == "runners":
            if value is None and self._lives(key):
                self.violated(f"{key} was forgotten, though it lives and says so")
        elif bucket == "streams":
            if value is None:
                self.streams.pop(key, None)
            else:
                self.streams[key] = pb.Stream.FromString(value)

    def _slot(self, key: str, now: events_pb2.Slot | None) -> None:
        was = self.slots.pop(key, None)
        if now is None:
            if was is not None and was.session:
                self.violated(f"slot {key} was forgotten while {was.session} holds it")
            return
        self.slots[key] = now
        if not now.session:
            if was is None or was.session:
                self.freed_s[key] = asyncio.get_running_loop().time()
            return
        holder = self._holders.setdefault((key, now.epoch), now.session)
        if holder != now.session:
            self.violated(f"epoch {now.epoch} of slot {key} is {now.session}'s, and was {holder}'s")
        if was is not None and was.session and was.session != now.session:
            self.violated(f"slot {key} went from {was.session} to {now.session}, nobody freed it")
        if now.epoch < self._highest[key]:
            self.violated(f"slot {key} went back from epoch {self._highest[key]} to {now.epoch}")
        self._highest[key] = max(self._highest[key], now.epoch)
        held = sum(slot.session == now.session for slot in self.slots.values())
        if held > MOST_SLOTS:
            self.violated(f"{now.session} holds {held} slots")

    def _record(self, key: str, now: pb.Session | None) -> None:
        was = self.records.get(key)
        if now is None:
            return
        self.records[key] = now
        self._changed_s[key] = asyncio.get_running_loop().time()
        if was is None:
            self._born_s[key] = asyncio.get_running_loop().time()
            return
        before, after = Phase(was.phase), Phase(now.phase)
        if before is not after and after not in NEXT[before]:
            self.violated(f"{key} went from {before.name} to {after.name}")
        self._progress(was, now)
        if was.epoch > now.epoch:
            self.violated(f"{key} went back from epoch {was.epoch} to {now.epoch}")
        if after is Phase.ENDED:
            end = (now.end_reason, now.ended_unix_ms)
            if self._ended.setdefault(key, end) != end:
                self.violated(f"{key} ended twice: {self._ended[key]}, {end}")

    def _reason(self, was: pb.Session, now: pb.Session) -> None:
        """What was live ends for a reason that is the user's, or when there is nothing left to run it."""
        if was.phase in ONCE_LIVE and now.end_reason not in GOOD_ENDS:
            self.violated(f"{now.id} was live and ended {now.end_reason}: {now.end_message}")

    def _progress(self, was: pb.Session, now: pb.Session) -> None:
        """Count what the world is there to see."""
        for move in now.moves[len(was.moves) :] if len(now.moves) > len(was.moves) else ():
            self._weather.sometimes(f"a session moved: {move.why}")
            self.freezes.append((move.why, move.freeze_ms))
        if was.bridge != now.bridge:
            self._weather.sometimes("a session went on at another ingest")
        if was.owner != now.owner:
            self._weather.sometimes("a session was adopted")
        if was.phase != now.phase and now.phase == pb.PHASE_ENDED:
            self._weather.sometimes(f"a session ended: {now.end_reason}")
            self._reason(was, now)

    def event(self, data: bytes) -> None:
        event = events_pb2.SessionEvent.FromString(data)
        if event.type == "ended":
            if event.session in self._events:
                self.violated(f"{event.session} was told to have ended twice")
            self._events.add(event.session)

    # --- what runs

    def attached(self, process: Process, run: Run) -> None:
        name, of = process.name, run.of
        holder = self._holders.get((f"{name}.{of.slot}", of.slot_epoch))
        if holder != of.session:
            self.violated(f"{name} runs {of.session}, slot {of.slot} epoch {of.slot_epoch} is {holder}'s")
        other = self.running.get((process, of.slot))
        if other is not None and other.of.session != of.session:
            self.violated(f"{name} runs {of.session} beside {other.of.session} in slot {of.slot}")
        self.running[process, of.slot] = run

    def detached(self, process: Process, of: Assignment) -> None:
        there = self.running.get((process, of.slot))
        if there is not None and there.of.session == of.session and there.of.slot_epoch == of.slot_epoch:
            del self.running[process, of.slot]

    def died(self, process: Process) -> None:
        for place in [place for place in self.running if place[0] is process]:
            del self.running[place]

    def killed(self, process: Process) -> None:
        """What it delivered and had put into no outbox yet, nobody can bill: a window of each session."""
        for shown in self.shown.values():
            if shown.at is process:
                shown.lost_s += shown.unstored_s(asyncio.get_running_loop().time())

    # --- what is shown

    def seen(self, session: BridgeSession, unit: AccessUnit, origin: Origin | None) -> None:
        if unit.codec is not Codec.H264:
            return
        name = session.identity.session
        shown = self.shown[name]
        if unit.pts <= shown.last_pts:
            self.violated(f"viewers of {name} got {unit.pts} after {shown.last_pts}")
        shown.last_pts = unit.pts
        if origin is None:
            self._weather.sometimes("viewers saw a still")
            return
        if origin == CAMERA:
            self.violated(f"viewers of {name} got a picture that no runner made")
            return
        if origin.epoch < shown.last_epoch:
            self.violated(f"viewers of {name} got epoch {origin.epoch} after {shown.last_epoch}")
        now_s = asyncio.get_running_loop().time()
        if session is not shown.bridge:
            shown.bridge, shown.at = session, PROCESS.get()
            shown.deliveries.clear()
        elif shown.last_s is not None:
            shown.delivered(now_s, now_s - shown.last_s)
        shown.last_epoch, shown.last_s = origin.epoch, now_s

    # --- where it must come to

    def live(self) -> list[str]:
        """The sessions that have not ended."""
        return sorted(name for name, record in self.records.items() if record.phase != pb.PHASE_ENDED)

    def astray(self) -> list[str]:
        """What is not as it is to be once no evil is done any more; empty when all is well.

        Each live session has one runner and one slot and shows something, and whatever is over holds nothing.
        """
        found: list[str] = []
        running: defaultdict[str, list[tuple[Process, Run]]] = defaultdict(list)
        for (process, _), run in self.running.items():
            running[run.of.session].append((process, run))
        live = self.live()
        for name in live:
            found += self._astray(name, running.pop(name, []))
        for name in sorted(running):
            found.append(f"{name} has ended and runs on {[process.name for process, _ in running[name]]}")
        for key, slot in sorted(self.slots.items()):
            if slot.session and slot.session not in live:
                found.append(f"slot {key} is held by {slot.session}, which is over")
            elif slot.session and slot.session not in self._fresh() and key not in self._places(slot.session):
                found.append(f"slot {key} is held by {slot.session}, which is elsewhere")
        for name, stream in sorted(self.streams.items()):
            if stream.session and stream.session not in live:
                found.append(f"stream {name} has {stream.session}, which is over")
        for name, record in sorted(self.records.items()):
            if record.phase == pb.PHASE_ENDED and not record.settled and name not in self._fresh():
                found.append(f"{name} ended and is not settled")
        return found

    def _places(self, name: str) -> set[str]:
        record = self.records[name]
        return {f"{record.runner}.{record.slot}", f"{record.next.runner}.{record.next.slot}"}

    def _fresh(self) -> set[str]:
        """Sessions that changed so lately that what follows is still on its way."""
        now_s = asyncio.get_running_loop().time()
        return {name for name, at_s in self._changed_s.items() if now_s - at_s < YOUNG_S}

    def _astray(self, name: str, there: list[tuple[Process, Run]]) -> list[str]:
        """Of one live session. One that waits for a slot, or is about to get one, is in order."""
        now_s = asyncio.get_running_loop().time()
        record = self.records[name]
        if record.phase == pb.PHASE_ALLOCATING and now_s - self._born_s[name] < YOUNG_S:
            return []
        if len(there) != 1:
            return [f"{name} is live and runs on {[process.name for process, _ in there]}"]
        found: list[str] = []
        process, run = there[0]
        of = run.of
        if (process.name, of.slot, of.slot_epoch) != (record.runner, record.slot, record.slot_epoch):
            found.append(f"{name} runs on {process.name}.{of.slot}, its record says {record.runner}")
        slot = self.slots.get(f"{record.runner}.{record.slot}")
        if slot is None or slot.session != name:
            found.append(f"{name} runs in a slot that is not its own: {slot}")
        shown_s = self.shown[name].last_s
        if record.phase != pb.PHASE_PAUSED and (shown_s is None or now_s - shown_s > SHOWS_WITHIN_S):
            found.append(f"{name} is live, and its viewers see nothing since {shown_s}")
        wanted = json.loads(self.streams[record.stream].params)
        if run.params() != wanted:
            found.append(f"{name} is shown with {run.params()}, accepted is {wanted}")
        return found
