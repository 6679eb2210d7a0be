"""The picture of the fleet: what runners advertise, who is heard, which slots are held.

The rules it keeps: a runner that is not heard is never READY; a slot that its runner claims, or that the
bucket says is held, is never READY; silence is evidence of death only after our own link was up long enough.
One event loop owns it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from prometheus_client import Gauge

from protos.events.v1.events_pb2 import (
    RUNNER_STATE_DRAINING,
    RUNNER_STATE_READY,
    Heartbeat,
    RunnerAdvert,
    Slot,
)
from services.common.bus import Bus, Entry, View
from services.common.errors import UnavailableError
from services.common.latest import Latest
from services.common.topology import HEARTBEATS, slot_key
from services.router.placement import Candidate, RunnerId, SessionId, SlotState
from services.router.settings import RouterSettings

log = structlog.get_logger()

RUNNERS: Final = Gauge(
    "sluice_runners",
    "Runners, by the state of their first slot.",
    ["state", "gpu_class", "region"],
)
SLOTS: Final = Gauge("sluice_slots", "Slots by state.", ["state"])

KINDS_SHOWN: Final = 200  # runners name their class and region themselves
TICK_S: Final = 0.2  # how late silence is noticed
LISTEN_S: Final = 2.0  # two heartbeats: who was not heard in this time is not there
KNOWN_WITHIN_S: Final = 4.0  # from start or reconnection: listening, and the views' first content
FORGET_AFTER_S: Final = 600.0  # longer than a node takes to come back from a reboot


@dataclass(frozen=True, slots=True)
class SlotPicture:
    """One slot as it was last known; `session` and `epoch` are the bucket's, else what the runner claims."""

    slot: int
    state: SlotState
    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True)
class RunnerPicture:
    """One runner as it was last known. The advert is shared: never change it."""

    advert: RunnerAdvert
    heard: bool
    slots: tuple[SlotPicture, ...]


@dataclass(frozen=True, slots=True)
class _Heard:
    at_s: float
    payload: bytes
    beat: Heartbeat


def slot_state(
    slot: int,
    *,
    advert: RunnerAdvert,
    value: Slot | None,
    beat: Heartbeat | None,
    heard: bool,
    link_settled: bool,
) -> SlotState:
    """The state of one slot. `value` is the bucket's; `beat` the last heartbeat, fresh if `heard`."""
    if not heard and link_settled:
        return SlotState.LOST
    if beat is None or beat.boot_id != advert.boot_id:
        return SlotState.STARTING
    if beat.state == RUNNER_STATE_DRAINING:
        return SlotState.DRAINING
    if beat.state != RUNNER_STATE_READY:
        return SlotState.STARTING
    if (value is not None and value.session) or any(claim.slot == slot for claim in beat.claims):
        return SlotState.HELD
    return SlotState.READY if heard else SlotState.STARTING


class _MarkedView(View):
    """A view that tells which keys changed, and never goes back behind what we wrote ourselves."""

    def __init__(self, changed: Callable[[str, Entry | None], None]) -> None:
        super().__init__()
        self._changed = changed

    def replace(self, entries: dict[str, Entry]) -> None:
        before = self.entries
        super().replace(entries)
        for key in before.keys() | entries.keys():
            if before.get(key) != entries.get(key):
                self._changed(key, entries.get(key))

    def put(self, key: str, entry: Entry | None) -> None:
        known = self.entries.get(key)
        if entry is not None and known is not None and entry.revision <= known.revision:
            return
        super().put(key, entry)
        self._changed(key, entry)


class Fleet:
    """Fed by two views and the heartbeats; read as frozen pictures, computed anew only where needed."""

    def __init__(self, settings: RouterSettings, link_healthy_for_s: Callable[[], float]) -> None:
        self.adverts = _MarkedView(self._advert_changed)
        self.slots = _MarkedView(self._slot_changed)
        self.changed = Latest(None)  # set when a picture may look different
        self._stale_after_s = settings.runner_stale_after_s
        self._link_settle_s = settings.link_settle_s
        self._link_healthy_for_s = link_healthy_for_s
        self._listening_since_s: float | None = None
        self._heard: dict[RunnerId, _Heard] = {}  # by time of arrival, the oldest first
        self._silent: dict[RunnerId, _Heard] = {}
        self._noticed_s: dict[RunnerId, float] = {}  # the last sign of life that was no heartbeat
        self._adverts: dict[RunnerId, RunnerAdvert] = {}
        self._values: dict[RunnerId, dict[int, Slot]] = {}
        self._keys_by_session: dict[SessionId, set[str]] = {}
        self._claimed_here: set[str] = set()
        self._dirty: set[RunnerId] = set()
        self._linked = False
        self._link_settled = False
        self._known = False
        self._pictures: dict[RunnerId, RunnerPicture] = {}
        self._candidates: dict[RunnerId, tuple[Candidate, ...]] = {}
        self._all: tuple[Candidate, ...] | None = ()  # None: to be made again

    # --- what comes in

    async def listen(self, bus: Bus) -> None:
        """Hear heartbeats for ever: a loop for `background`."""
        self._listening_since_s = _now_s()
        async for message in bus.subscribe(HEARTBEATS):
            self.hear(RunnerId(message.subject.rpartition(".")[2]), message.data)

    def hear(self, runner: RunnerId, payload: bytes) -> None:
        """Take one heartbeat. Most are the same as the one before and cost no more than a new time."""
        before = self._heard.pop(runner, None)
        if before is not None and before.payload == payload:
            self._heard[runner] = _Heard(_now_s(), payload, before.beat)
            return
        try:
            beat = Heartbeat.FromString(payload)
        except DecodeError:
            beat = Heartbeat()
        if beat.runner != runner:
            log.warning("heartbeat refused", runner=runner, claims_to_be=beat.runner)
            return
        self._silent.pop(runner, None)
        self._heard[runner] = _Heard(_now_s(), payload, beat)
        self._touch(runner)

    def _advert_changed(self, key: str, entry: Entry | None) -> None:
        runner = RunnerId(key)
        self._adverts.pop(runner, None)
        if entry is not None:
            try:
                advert = RunnerAdvert.FromString(entry.value)
            except DecodeError:
                advert = RunnerAdvert()
            if advert.runner == runner:
                self._adverts[runner] = advert
            else:
                log.warning("advert refused", key=key, claims_to_be=advert.runner)
        self._noticed_s[runner] = _now_s()
        self._touch(runner)

    def _slot_changed(self, key: str, entry: Entry | None) -> None:
        name, _, number = key.rpartition(".")
        if not number.isdecimal():
            log.warning("slot refused", key=key)
            return
        runner, slot = RunnerId(name), int(number)
        values = self._values.setdefault(runner, {})
        before = values.pop(slot, None)
        if before is not None and before.session:
            keys = self._keys_by_session[SessionId(before.session)]
            keys.discard(key)
            if not keys:
                del self._keys_by_session[SessionId(before.session)]
        if entry is not None:
            value = values[slot] = Slot.FromString(entry.value)
            if value.session:
                self._keys_by_session.setdefault(SessionId(value.session), set()).add(key)
        if not values:
            del self._values[runner]
        self._noticed_s.setdefault(runner, _now_s())
        self._touch(runner)

    @contextmanager
    def claimed_here(self, candidate: Candidate) -> Iterator[None]:
        """Nobody else in this process is offered the slot while the block tries to take it."""
        key = slot_key(candidate.runner, candidate.slot)
        self._claimed_here.add(key)
        self._touch(candidate.runner)
        try:
            yield
        finally:
            self._claimed_here.discard(key)
            self._touch(candidate.runner)

    async def keep_time(self) -> None:
        """Notice what the passing of time alone changes, and measure: a loop for `background`."""
        version = -1
        while True:
            self._refresh()
            if version != self.changed.version:
                version = self.changed.version
                self._measure()
            await asyncio.sleep(TICK_S)

    # --- what is read

    @property
    def linked(self) -> bool:
        """Whether anything can be written now."""
        self._refresh()
        return self._linked

    @property
    def known(self) -> bool:
        """Whether absence means something: views filled, listened long enough over a sound link."""
        self._refresh()
        return self._known

    async def until_known(self) -> None:
        """Wait for `known`. Raises UnavailableError with the reason FLEET_UNKNOWN."""
        try:
            async with asyncio.timeout(KNOWN_WITHIN_S):
                while not self.known:
                    await self.changed.newer_than(self.changed.version)
        except TimeoutError:
            raise fleet_unknown() from None

    def candidates(self) -> Sequence[Candidate]:
        """Every slot of every advertised runner."""
        self._refresh()
        if self._all is None:
            self._all = tuple(itertools.chain.from_iterable(self._candidates.values()))
        return self._all

    def runners(self) -> Collection[RunnerPicture]:
        self._refresh()
        return self._pictures.values()

    def held_by(self, session: SessionId) -> tuple[str, ...]:
        """The keys of the slots that the bucket says `session` holds."""
        keys = self._keys_by_session.get(session)
        return tuple(sorted(keys)) if keys else ()

    def holdings(self, session: SessionId) -> Sequence[Candidate]:
        """The slots that `session` holds on runners that are heard."""
        self._refresh()
        keys = self.held_by(session)
        runners = {RunnerId(key.rpartition(".")[0]) for key in keys}
        return [
            candidate
            for runner in runners & self._heard.keys()
            for candidate in self._candidates.get(runner, ())
            if slot_key(candidate.runner, candidate.slot) in keys
        ]

    def advert(self, runner: RunnerId) -> RunnerAdvert | None:
        return self._adverts.get(runner)

    def age_s(self, runner: RunnerId) -> float | None:
        """How long ago the last heartbeat came; None if this router never heard one."""
        last = self._heard.get(runner) or self._silent.get(runner)
        return None if last is None else _now_s() - last.at_s

    def gone(self) -> list[RunnerId]:
        """Runners, advertised or with slots, that for very long gave no sign of life to us who listened."""
        now_s = _now_s()
        if self._link_for_s(now_s) < FORGET_AFTER_S:
            return []
        names = self._adverts.keys() | self._values.keys()
        return [runner for runner in names if now_s - self._last_sign_s(runner) >= FORGET_AFTER_S]

    def forget_silent(self) -> None:
        """Drop the heartbeats of those long silent, so that names do not pile up."""
        now_s = _now_s()
        for runner in [name for name in self._silent if now_s - self._last_sign_s(name) >= FORGET_AFTER_S]:
            del self._silent[runner]
        for runner in self._noticed_s.keys() - self._adverts.keys() - self._values.keys():
            del self._noticed_s[runner]

    # --- how it is computed

    def _last_sign_s(self, runner: RunnerId) -> float:
        last = self._heard.get(runner) or self._silent.get(runner)
        noticed_s = self._noticed_s.get(runner, float("-inf"))
        return noticed_s if last is None else max(last.at_s, noticed_s)

    def _link_for_s(self, now_s: float) -> float:
        """For how long heartbeats would have reached us."""
        if self._listening_since_s is None:
            return 0.0
        return min(self._link_healthy_for_s(), now_s - self._listening_since_s)

    def _touch(self, runner: RunnerId) -> None:
        self._dirty.add(runner)
        self.changed.set(None)

    def _refresh(self) -> None:
        now_s = _now_s()
        linked = self._link_healthy_for_s() > 0
        link_for_s = self._link_for_s(now_s)
        link_settled = link_for_s >= self._link_settle_s
        known = self.adverts.ready.is_set() and self.slots.ready.is_set() and link_for_s >= LISTEN_S
        by_time: set[RunnerId] = set()
        if link_settled != self._link_settled:
            by_time.update(self._adverts)
        while self._heard:
            runner, heard = next(iter(self._heard.items()))
            if now_s - heard.at_s < self._stale_after_s:
                break
            self._silent[runner] = self._heard.pop(runner)
            by_time.add(runner)
        news = bool(by_time) or (linked, known) != (self._linked, self._known)
        self._linked, self._link_settled, self._known = linked, link_settled, known
        self._dirty |= by_time
        if self._dirty:
            for runner in self._dirty:
                self._picture(runner)
            self._dirty.clear()
            self._all = None
        if news:
            self.changed.set(None)

    def _picture(self, runner: RunnerId) -> None:
        advert = self._adverts.get(runner)
        if advert is None:
            self._pictures.pop(runner, None)
            self._candidates.pop(runner, None)
            return
        values = self._values.get(runner, {})
        last = self._heard.get(runner) or self._silent.get(runner)
        beat = None if last is None else last.beat
        slots = tuple(
            self._slot_picture(slot, advert, values.get(slot), beat) for slot in range(advert.slots)
        )
        self._pictures[runner] = RunnerPicture(advert, runner in self._heard, slots)
        offered = frozenset(offer.name for offer in advert.pipelines)
        warm = frozenset(offer.name for offer in advert.pipelines if offer.warm)
        labels = frozenset(advert.labels.items())
        held = sum(picture.state is SlotState.HELD for picture in slots)
        self._candidates[runner] = tuple(
            Candidate(
                runner=runner,
                slot=picture.slot,
                state=picture.state,
                offered=offered,
                warm=warm,
                load=held / len(slots),
                region=advert.region,
                gpu_class=advert.gpu_class,
                labels=labels,
            )
            for picture in slots
        )

    def _slot_picture(
        self, slot: int, advert: RunnerAdvert, value: Slot | None, beat: Heartbeat | None
    ) -> SlotPicture:
        runner = RunnerId(advert.runner)
        state = slot_state(
            slot,
            advert=advert,
            value=value,
            beat=beat,
            heard=runner in self._heard,
            link_settled=self._link_settled,
        )
        if state is SlotState.READY and slot_key(runner, slot) in self._claimed_here:
            state = SlotState.HELD
        claimed = next((claim for claim in beat.claims if claim.slot == slot), None) if beat else None
        session = value.session if value and value.session else claimed.session if claimed else ""
        epoch = value.epoch if value else claimed.slot_epoch if claimed else 0
        return SlotPicture(slot, state, SessionId(session), epoch)

    def _measure(self) -> None:
        slots = [candidate.state for candidate in self.candidates()]
        for state in SlotState:
            SLOTS.labels(state.value).set(slots.count(state))
        kinds = Counter(
            (picture.slots[0].state.value, picture.advert.gpu_class, picture.advert.region)
            for picture in self._pictures.values()
            if picture.slots
        )
        RUNNERS.clear()  # a kind whose last runner went is not there any more
        for kind, count in kinds.most_common(KINDS_SHOWN):
            RUNNERS.labels(*kind).set(count)


def fleet_unknown() -> UnavailableError:
    return UnavailableError("this router does not know the fleet yet", reason="FLEET_UNKNOWN")


def _now_s() -> float:
    return asyncio.get_running_loop().time()
