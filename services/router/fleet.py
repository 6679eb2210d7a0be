"""The picture of the fleet: what runners advertise, who is heard, which slots are held, whom sessions fled.

The rules it keeps are those of `runner.py`, for all, as time passes and words arrive. What is compared when
a place is chosen lies in the table; a heartbeat that says nothing new touches none of it. One event loop
owns it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from random import Random
from typing import Final

import numpy as np
import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Counter

from protos.events.v1.events_pb2 import Heartbeat, PipelineOffer, RunnerAdvert, RunnerFault, Slot
from services.common.bus import Bus, Entry
from services.common.errors import UnavailableError
from services.common.latest import Latest
from services.common.topology import HEARTBEATS, RUNNER_FAULTS
from services.router.faults import ANEW, FAULT, Faults
from services.router.placement import (
    QUARANTINED_FROM,
    Place,
    Refusal,
    RunnerId,
    SessionId,
    SlotState,
    Wish,
)
from services.router.ranking import Rankings, offering
from services.router.rates import Rate
from services.router.runner import MAX_SLOTS, Runner, RunnerPicture
from services.router.settings import RouterSettings
from services.router.sums import Capacity, capacity_of, measure, newest_offers
from services.router.table import OFFERED, STATES, Table
from services.router.views import MarkedView

log = structlog.get_logger()

FAULTS: Final = Counter(
    "sluice_runner_faults_total",
    "Sessions that were moved away because their runner failed them.",
    ["reason"],
)
REASONS_SHOWN: Final = {
    *("runner_lost", "stalled", "slow", "start_failed"),
    *("engine_crashed", "engine_hung", "out_of_memory", "bridge_lost"),
}

TICK_S: Final = 0.2  # how late silence is noticed
STOOD_STILL_S: Final = 1.0  # a tick so late is our own silence, not the runners'
FRESH_S: Final = 0.005  # what only time changes is not looked at more often
FADE_EVERY_S: Final = 1.0  # penalties
LISTEN_S: Final = 2.0  # two heartbeats: who was not heard in this time is not there
KNOWN_WITHIN_S: Final = 4.0  # from start or reconnection: listening, and the views' first content
FORGET_AFTER_S: Final = 600.0  # longer than a node takes to come back from a reboot


class Fleet:
    """Fed by two views, the heartbeats and the faults; asked for places, pictures and sums."""

    def __init__(
        self, settings: RouterSettings, link_healthy_for_s: Callable[[], float], random: Random
    ) -> None:
        self.adverts = MarkedView(self._advert_changed)
        self.slots = MarkedView(self._slot_changed)
        self.changed = Latest(None)  # set when a picture may look different
        self._stale_after_s = settings.runner_stale_after_s
        self._link_settle_s = settings.link_settle_s
        self._among = settings.choose_among
        self._link_healthy_for_s = link_healthy_for_s
        self._random = random
        self._now_s = asyncio.get_running_loop().time
        self._listening_since_s: float | None = None
        self._table = Table()
        self._rankings = Rankings(self._table, random)
        self._faults = Faults()
        self._runners: dict[RunnerId, Runner] = {}
        self._by_row: dict[int, Runner] = {}
        self._heard: dict[RunnerId, Runner] = {}  # by time of arrival, the oldest first
        self._keys_by_session: dict[SessionId, set[str]] = {}
        self._freed: dict[str, Rate] = {}  # by pipeline
        self._newest: dict[str, PipelineOffer] | None = {}  # None: to be made again
        self._dirty: set[RunnerId] = set()
        self._penalized: set[RunnerId] = set()
        self._faded_s = float("-inf")
        self._looked_s = float("-inf")
        self._linked = False
        self._link_settled = False
        self._known = False

    # --- what comes in

    async def listen(self, bus: Bus) -> None:
        """Hear heartbeats for ever: a loop for `background`."""
        self._listening_since_s = self._now_s()
        async for message in bus.subscribe(HEARTBEATS):
            self.hear(RunnerId(message.subject.rpartition(".")[2]), message.data)

    async def listen_faults(self, bus: Bus) -> None:
        """Hear of runners that failed sessions, for ever: a loop for `background`."""
        async for message in bus.subscribe(RUNNER_FAULTS):
            self.hear_fault(RunnerId(message.subject.rpartition(".")[2]), message.data)

    def hear(self, name: RunnerId, payload: bytes) -> None:
        """Take one heartbeat. Most are the same as the one before and cost no more than a new time."""
        runner = self._heard.get(name)
        if runner is not None and runner.payload == payload:
            del self._heard[name]
            self._heard[name] = runner
            runner.heard_s = self._now_s()
            return
        try:
            beat = Heartbeat.FromString(payload)
        except DecodeError:
            beat = Heartbeat()
        if beat.runner != name:
            log.warning("heartbeat refused", runner=name, claims_to_be=beat.runner)
            return
        self._heard.pop(name, None)
        runner = self._runner(name)
        self._heard[name] = runner
        runner.heard_s, runner.payload = self._now_s(), payload
        news = runner.hear(beat)
        if news or not runner.heard:
            runner.heard = True
            self._touch(runner)
        else:
            self._dirty.add(name)  # how fast it is changes no picture: nobody is woken for that

    def hear_fault(self, name: RunnerId, payload: bytes) -> None:
        """Take that a session was moved away because `name` failed it."""
        try:
            fault = RunnerFault.FromString(payload)
        except DecodeError:
            fault = RunnerFault()
        if fault.runner != name:
            log.warning("runner fault refused", runner=name, names=fault.runner)
            return
        FAULTS.labels(fault.reason if fault.reason in REASONS_SHOWN else "other").inc()
        runner = self._runners.get(name)
        if runner is None or runner.advert is None:
            return
        share = FAULT if fault.boot_id in {"", runner.advert.boot_id} else FAULT * ANEW
        self._faults.add(name, fault.session, self._now_s(), share)
        self._fade()
        log.info(
            "runner failed a session", runner=name, reason=fault.reason, penalty=round(runner.penalty, 2)
        )

    def _advert_changed(self, key: str, entry: Entry | None) -> None:
        runner = self._runner(RunnerId(key))
        before = runner.advert
        runner.advertise(None)
        if entry is not None:
            try:
                advert = RunnerAdvert.FromString(entry.value)
            except DecodeError:
                advert = RunnerAdvert()
            if advert.runner == runner.name:
                runner.advertise(advert)
            else:
                log.warning("advert refused", key=key, claims_to_be=advert.runner)
        runner.noticed_s = self._now_s()
        self._newest = None
        if runner.advert is None:
            if runner.row >= 0:
                del self._by_row[runner.row]
                self._table.remove(runner.row)
                runner.row = -1
        else:
            if runner.row < 0:
                runner.row, runner.told, runner.told_us = self._table.add(), (), -1
                self._by_row[runner.row] = runner
            self._describe(runner, runner.advert)
            if before is not None and before.boot_id != runner.advert.boot_id:
                self._faults.booted(runner.name, self._now_s())
                self._fade()
        self._touch(runner)

    def _describe(self, runner: Runner, advert: RunnerAdvert) -> None:
        self._table.describe(
            runner.row,
            region=advert.region,
            gpu_class=advert.gpu_class,
            labels=frozenset(advert.labels.items()),
            offers=runner.offers,
            price=advert.micro_per_second,
        )
        self._table.set_penalty(runner.row, runner.penalty)

    def _slot_changed(self, key: str, entry: Entry | None) -> None:
        name, _, number = key.rpartition(".")
        if not number.isdecimal() or int(number) >= MAX_SLOTS:
            log.warning("slot refused", key=key)
            return
        runner = self._runner(RunnerId(name))
        value = None if entry is None else Slot.FromString(entry.value)
        before = runner.put(int(number), value)
        if before is not None and before.session:
            keys = self._keys_by_session[SessionId(before.session)]
            keys.discard(key)
            if not keys:
                del self._keys_by_session[SessionId(before.session)]
        if value is not None and value.session:
            self._keys_by_session.setdefault(SessionId(value.session), set()).add(key)
        elif before is not None and before.session:
            self._count_freed(runner)
        if runner.last_sign_s == float("-inf"):
            runner.noticed_s = self._now_s()
        self._touch(runner)

    def _count_freed(self, runner: Runner) -> None:
        now_s = self._now_s()
        for pipeline in runner.offers:
            self._freed.setdefault(pipeline, Rate(now_s)).add(now_s)

    def claim(self, place: Place) -> None:
        """Offer the slot to nobody else in this process until `unclaim`: it is being taken."""
        runner = self._runner(place.runner)
        runner.here |= 1 << place.slot
        self._touch(runner)

    def unclaim(self, place: Place) -> None:
        runner = self._runner(place.runner)
        runner.here &= ~(1 << place.slot)
        self._touch(runner)

    async def keep_time(self) -> None:
        """Notice what the passing of time alone changes, and measure: a loop for `background`."""
        version = -1
        due_s = self._now_s()
        while True:
            if self._now_s() > due_s + STOOD_STILL_S:
                log.warning("this router stood still", for_s=round(self._now_s() - due_s, 1))
                self._listening_since_s = self._now_s()  # what runners said meanwhile is still to be read
            self._refresh()
            if version != self.changed.version:
                version = self.changed.version
                quarantined = sum(self._runners[name].penalty >= QUARANTINED_FROM for name in self._penalized)
                measure(self._table, quarantined)
            due_s = self._now_s() + TICK_S
            await asyncio.sleep(TICK_S)

    # --- what is read

    @property
    def linked(self) -> bool:
        """Whether anything can be written now."""
        self._look()
        return self._linked

    @property
    def known(self) -> bool:
        """Whether absence means something: views filled, listened long enough over a sound link."""
        self._look()
        return self._known

    async def until_known(self) -> None:
        """Wait for `known`. Raises UnavailableError with the reason FLEET_UNKNOWN."""
        try:
            async with asyncio.timeout(KNOWN_WITHIN_S):
                while not self.known:
                    await self.changed.newer_than(self.changed.version)
        except TimeoutError:
            raise fleet_unknown() from None

    def choose(self, wish: Wish, reserved: Mapping[RunnerId, int]) -> Place | None:
        """One of the best free slots for the wish, leaving the number of slots that is `reserved`."""
        self._refresh()
        row = self._rankings.choose(
            wish.requirements,
            exclude=self._excluded(wish),
            reserved={self._row_of(name): count for name, count in reserved.items()},
            among=self._among,
        )
        if row is None:
            return None
        runner = self._by_row[row]
        return Place(runner.name, self._random.choice(runner.untaken()))

    def why_none(self, wish: Wish) -> Refusal:
        """Why nothing was chosen for the wish."""
        self._refresh()
        return self._rankings.why_none(wish.requirements, self._excluded(wish))

    def offers(self, pipeline: str) -> bool:
        """Whether any runner that is advertised offers it."""
        return self._table.offers(pipeline) is not None

    def _excluded(self, wish: Wish) -> list[int]:
        return [row for name in wish.exclude if (row := self._row_of(name)) >= 0]

    def _row_of(self, name: RunnerId) -> int:
        runner = self._runners.get(name)
        return -1 if runner is None else runner.row

    def own(self, session: SessionId, wish: Wish) -> Place | None:
        """The slot that the session holds already on a runner that is heard, if it fits."""
        self._refresh()
        for key in self.held_by(session):
            name, _, slot = key.rpartition(".")
            runner = self._runners[RunnerId(name)]
            if (
                runner.heard
                and runner.row >= 0
                and runner.name not in wish.exclude
                and int(slot) < runner.slots
                and runner.states(self._link_settled)[1] is SlotState.HELD
                and offering(self._table, wish.requirements, np.array([runner.row]))[0]
            ):
                return Place(runner.name, int(slot))
        return None

    def runners(self) -> Iterator[RunnerPicture]:
        """Every advertised runner, as it is when it is come to: who iterates may pause."""
        self._refresh()
        for runner in list(self._by_row.values()):
            if runner.advert is not None:
                yield runner.picture(self._link_settled)

    def capacity(self) -> list[Capacity]:
        """What can be had of those who are heard, by the pipeline's name."""
        self._refresh()
        if self._newest is None:
            heard = [runner.advert for runner in self._by_row.values() if runner.heard and runner.advert]
            self._newest = newest_offers(heard)
        return [capacity_of(self._table, offer) for _, offer in sorted(self._newest.items())]

    def slots_of(self, pipeline: str) -> tuple[int, int]:
        """How many slots of runners that are not lost offer `pipeline`, and how many of them are free."""
        self._refresh()
        table = self._table
        offers = table.offers(pipeline)
        if offers is None:
            return 0, 0
        rows = (offers[table.all] >= OFFERED) & (table.untaken[table.all] != STATES.index(SlotState.LOST))
        return int(table.slots[table.all][rows].sum()), int(table.ready[table.all][rows].sum())

    def freed_per_s(self, pipeline: str) -> float:
        """How often lately a slot that offers `pipeline` came free; 0: not seen yet."""
        rate = self._freed.get(pipeline)
        return 0.0 if rate is None else rate.per_s(self._now_s())

    def offered(self) -> list[str]:
        """The pipelines of the runners that are heard."""
        return [line.offer.name for line in self.capacity()]

    def held_by(self, session: SessionId) -> tuple[str, ...]:
        """The keys of the slots that the bucket says `session` holds."""
        keys = self._keys_by_session.get(session)
        return tuple(sorted(keys)) if keys else ()

    def holders(self) -> Collection[SessionId]:
        """The sessions that hold a slot."""
        return self._keys_by_session.keys()

    def advert(self, name: RunnerId) -> RunnerAdvert | None:
        runner = self._runners.get(name)
        return None if runner is None else runner.advert

    def age_s(self, name: RunnerId) -> float | None:
        """How long ago the last heartbeat came; None if this router never heard one."""
        runner = self._runners.get(name)
        return None if runner is None or runner.beat is None else self._now_s() - runner.heard_s

    def gone(self) -> list[RunnerId]:
        """Runners, advertised or with slots, that for very long gave no sign of life to us who listened."""
        now_s = self._now_s()
        if self._link_for_s(now_s) < FORGET_AFTER_S:
            return []
        return [
            name
            for name, runner in self._runners.items()
            if runner.known and now_s - runner.last_sign_s >= FORGET_AFTER_S
        ]

    def forget_silent(self) -> None:
        """Drop what is known of those long silent, so that names do not pile up."""
        now_s = self._now_s()
        silent = [
            name
            for name, runner in self._runners.items()
            if not runner.known and not runner.here and now_s - runner.last_sign_s >= FORGET_AFTER_S
        ]
        for name in silent:
            del self._runners[name]
            self._dirty.discard(name)
            self._penalized.discard(name)
        for pipeline in self._freed.keys() - set(self._table.pipelines()):
            del self._freed[pipeline]

    # --- how it is computed

    def _runner(self, name: RunnerId) -> Runner:
        runner = self._runners.get(name)
        if runner is None:
            runner = self._runners[name] = Runner(name)
        return runner

    def _link_for_s(self, now_s: float) -> float:
        """For how long heartbeats would have reached us."""
        if self._listening_since_s is None:
            return 0.0
        return min(self._link_healthy_for_s(), now_s - self._listening_since_s)

    def _touch(self, runner: Runner) -> None:
        self._dirty.add(runner.name)
        self.changed.set(None)

    def _refresh(self) -> None:
        """Bring the table up to date."""
        self._look()
        for name in self._dirty:
            self._write(self._runners[name])
        self._dirty.clear()

    def _look(self) -> None:
        """Notice what the passing of time changed."""
        now_s = self._now_s()
        linked = self._link_healthy_for_s() > 0
        if linked == self._linked and now_s - self._looked_s < FRESH_S:
            return
        self._looked_s = now_s
        link_for_s = self._link_for_s(now_s)
        link_settled = link_for_s >= self._link_settle_s
        known = self.adverts.ready.is_set() and self.slots.ready.is_set() and link_for_s >= LISTEN_S
        by_time: set[RunnerId] = set()
        if link_settled != self._link_settled:
            by_time.update(runner.name for runner in self._by_row.values())
        while self._heard:
            runner = next(iter(self._heard.values()))
            if now_s - runner.heard_s < self._stale_after_s:
                break
            del self._heard[runner.name]
            runner.heard = False
            self._newest = None
            by_time.add(runner.name)
        news = bool(by_time) or (linked, known) != (self._linked, self._known)
        self._linked, self._link_settled, self._known = linked, link_settled, known
        self._dirty |= by_time
        if now_s - self._faded_s >= FADE_EVERY_S:
            self._fade()
        if news:
            self.changed.set(None)

    def _write(self, runner: Runner) -> None:
        """Put into the table what is known of its slots.

        Most often nothing is new: a slot that was claimed here, then written, then heard of is taken once.
        """
        told = (self._link_settled, *runner.facts)
        if runner.row < 0 or told == runner.told:
            return
        runner.told = told
        untaken, taken = runner.states(self._link_settled)
        bits = runner.taken
        if runner.heard != bool(self._table.heard[runner.row]):
            self._newest = None
        self._table.set_slots(
            runner.row,
            slots=runner.slots,
            held=bits.bit_count(),
            untaken=untaken,
            taken=taken,
            first=taken if bits & 1 else untaken,
            heard=runner.heard,
        )
        if runner.beat is not None and runner.beat.frame_us != runner.told_us:
            runner.told_us = runner.beat.frame_us
            self._table.set_frame_us(runner.row, runner.told_us)

    def _fade(self) -> None:
        """Let penalties take effect, and wear off."""
        now_s = self._faded_s = self._now_s()
        penalties = self._faults.penalties(now_s)
        for name in self._penalized | penalties.keys():
            runner = self._runners.get(name)
            if runner is None:
                continue
            before, runner.penalty = runner.penalty, penalties.get(name, 0.0)
            if runner.row >= 0:
                self._table.set_penalty(runner.row, runner.penalty)
            if (before >= QUARANTINED_FROM) != (runner.penalty >= QUARANTINED_FROM):
                self.changed.set(None)
        self._penalized = set(penalties)


def fleet_unknown() -> UnavailableError:
    return UnavailableError("this router does not know the fleet yet", reason="FLEET_UNKNOWN")
