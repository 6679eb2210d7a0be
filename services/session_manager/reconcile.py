"""Repairs what records, slots and runners say differently: level-triggered, whatever was missed before.

Every replica looks; which of them repairs a session's things follows from the names of those that live, and
two that think it is theirs do no harm: every write is a compare-and-set, every call idempotent. What is
repaired was seen twice over a sound link, and is true of the record as it is at that moment.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from prometheus_client import Counter

from protos.events.v1 import events_pb2
from protos.router.v1 import router_pb2
from services.common.bus import Bucket, Bus, ParsedView, View
from services.common.errors import ConflictError, NotFoundError, SluiceError
from services.common.topology import slot_key
from services.session_manager import drift
from services.session_manager.drift import Claim, Drift, Facts, Heard, HeldSlot, Kind, Sightings
from services.session_manager.machine import ID, Session, SessionId
from services.session_manager.neighbours import Neighbours
from services.session_manager.ownership import heir
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from services.session_manager.telling import now_unix_ms

log = structlog.get_logger()

DRIFT: Final = Counter(
    "sluice_drift_total",
    "Differences between records, slots and runners that lasted and were repaired.",
    ["kind"],
)
UNREPAIRED: Final = Counter(
    "sluice_drift_unrepaired_total", "Attempts to repair such a difference that failed.", ["kind"]
)

EVERY_S: Final = 5.0
LINK_SETTLE_S: Final = 3.0  # others' silence is evidence only after our own link was healthy for so long
FRESH_MS: Final = 3000  # a heartbeat that is older says nothing
UNRECORDED_PATIENCE_S: Final = 30.0  # a bucket that NATS lost is restored within seconds
REPAIRS: Final = 50  # a round: what is wrong with more at once is wrong with us, or goes on in the next


class Reconciler:
    """`run` for ever, beside `slots.follow(reconciler.slots_view)`."""

    def __init__(
        self,
        *,
        replica: str,
        store: Store,
        slots: Bucket,
        replicas: View,
        neighbours: Neighbours,
        bus: Bus,
        settings: SessionManagerSettings,
    ) -> None:
        self.slots_view = ParsedView(events_pb2.Slot.FromString)
        self._replica = replica
        self._store = store
        self._slots = slots
        self._replicas = replicas
        self._neighbours = neighbours
        self._bus = bus
        # Whoever is at something is through, or has given up.
        self._settle_ms = round((settings.call_timeout_s + settings.attach_timeout_s) * 1000)
        self._sightings = Sightings(
            patience_s=EVERY_S / 2, unrecorded_patience_s=max(UNRECORDED_PATIENCE_S, EVERY_S)
        )

    async def run(self) -> None:
        """Look every few seconds, for ever: a loop for `background`."""
        for view in (self.slots_view, self._store.streams_view, self._store.sessions_view, self._replicas):
            await view.ready.wait()
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except SluiceError as error:  # the router is away, or does not know the fleet yet
                self._sightings.forget()
                log.info("not reconciled", reason=error.reason)

    async def look(self) -> None:
        """Compare once, and repair what was there the last time too."""
        if self._bus.healthy_for_s < LINK_SETTLE_S:
            self._sightings.forget()
            return
        facts = Facts(
            sessions=self._store.sessions_view.parsed,
            streams=self._store.streams_view.parsed,
            slots=self._held(),
            runners=drift.by_name(map(heard, filter(fresh, await self._neighbours.runners()))),
        )
        seen = [found for found in self._judge(facts) if self._mine(found.session)]
        lasting = self._sightings.lasting(seen, asyncio.get_running_loop().time())
        for found in lasting[:REPAIRS]:
            await self._see_to(found, facts)

    def _judge(self, facts: Facts) -> list[Drift]:
        return drift.drifts(facts, now_unix_ms=now_unix_ms(), settle_ms=self._settle_ms)

    def _held(self) -> dict[str, HeldSlot]:
        entries = self.slots_view.entries
        slots = self.slots_view.parsed.items()
        return {key: held_slot(value, entries[key].revision) for key, value in slots if numbered(key)}

    def _mine(self, session: str) -> bool:
        """Whether this replica is the one, among those that live, that sees to `session`."""
        return heir(session, {*self._replicas.entries, self._replica}) == self._replica

    async def _see_to(self, found: Drift, facts: Facts) -> None:
        try:
            if not await self._still(found, facts):
                return
            log.warning(
                "drift",
                kind=found.kind,
                session=found.session,
                runner=found.place.runner,
                stream=found.stream,
            )
            await self._repair(found)
        except SluiceError as error:
            UNREPAIRED.labels(found.kind.value).inc()
            log.warning("drift not repaired", kind=found.kind, session=found.session, reason=error.reason)
            return
        DRIFT.labels(found.kind.value).inc()
        self._sightings.repaired(found)

    async def _still(self, found: Drift, facts: Facts) -> bool:
        """Whether it is so by the record and the slot as they are in the buckets now."""
        slot = None
        if found.place.runner:
            entry = await self._slots.get(slot_key(found.place.runner, found.place.slot))
            if entry is not None:
                slot = held_slot(events_pb2.Slot.FromString(entry.value), entry.revision)
        now = facts.of(found, session=await self._record(found.session), slot=slot)
        return found in self._judge(now)

    async def _record(self, session: str) -> Session | None:
        try:
            return await self._store.session(session) if ID.match(session) else None
        except NotFoundError:
            return None

    async def _repair(self, found: Drift) -> None:
        place = found.place
        if found.kind in drift.CLAIMS:
            await self._neighbours.detach(found.session, place, found.kind.value)
        elif found.kind is Kind.SLOT_MISSING:
            slot = events_pb2.Slot(session=found.session, epoch=place.slot_epoch)
            slot.granted_unix_ms = now_unix_ms()
            await self._write(found, slot)
        elif found.kind in drift.SLOTS:
            await self._write(found, events_pb2.Slot(epoch=place.slot_epoch))
        elif found.kind in drift.MOVES:
            await self._store.change_session(found.session, lambda was: wished_away(was, found))
        else:
            session = SessionId(found.session)
            await self._store.change_stream(found.stream, lambda was: was.released_by(session))

    async def _write(self, found: Drift, slot: events_pb2.Slot) -> None:
        """Write the slot's key, unless anybody wrote it since it was looked at."""
        key, value = slot_key(found.place.runner, found.place.slot), slot.SerializeToString()
        try:
            if found.revision:
                await self._slots.update(key, value, found.revision)
            else:
                await self._slots.create(key, value)
        except ConflictError:
            log.info("slot was written meanwhile", key=key)


def wished_away(was: Session, found: Drift) -> Session:
    """Return the session with the wish to move, if it is still where it cannot stay."""
    if was.move_wanted or not was.place.same_slot(found.place):
        return was
    return was.with_(move_wanted=found.kind.value)


def held_slot(value: events_pb2.Slot, revision: int) -> HeldSlot:
    return HeldSlot(value.session, value.epoch, value.granted_unix_ms, revision)


def numbered(key: str) -> bool:
    """Whether the key of a slot ends as one does."""
    return key.rpartition(".")[2].isdecimal()


def fresh(view: router_pb2.RunnerView) -> bool:
    return 0 <= view.heartbeat_age_ms < FRESH_MS


def heard(view: router_pb2.RunnerView) -> Heard:
    claims = (Claim(claim.slot, claim.session, claim.slot_epoch) for claim in view.claims)
    return Heard(view.advert.runner, view.advert.address, view.advert.boot_id, tuple(claims))
