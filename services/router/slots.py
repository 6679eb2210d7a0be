"""Taking and freeing slots, by compare-and-set on their keys: no two routers give one slot to two sessions.

The rules it keeps: the bucket decides, never the view; an epoch grows by one with every grant; a write whose
outcome is unknown is read back before anything else is tried; a slot is freed only while it names its
session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import Counter

from protos.events.v1.events_pb2 import Slot
from services.common.bus import Bucket, Entry, View
from services.common.errors import ConflictError, UnavailableError
from services.common.lifecycle import background
from services.common.topology import slot_key
from services.router.fleet import Fleet
from services.router.placement import RunnerId, SessionId
from services.router.runner import MAX_SLOTS
from services.router.wall import now_unix_us

log = structlog.get_logger()

CONFLICTS: Final = Counter("sluice_alloc_cas_conflicts_total", "Slots that somebody else wrote first.")

ATTEMPTS: Final = 3  # of one write whose outcome stays unknown, 3 s each; callers wait longer
REPLICA_LAG_S: Final = 0.05  # a read may be answered by a replica that has not heard of the write
READ_ALL_WITHIN_S: Final = 3.0  # thousands of keys take a tenth of it
FORGET_EVERY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Granted:
    """A slot that is its session's. `revision` fences the grant: who re-grants the slot writes a new one."""

    runner: RunnerId
    slot: int
    session: SessionId
    epoch: int
    revision: int
    address: str
    boot_id: str
    micro_per_second: int  # the runner's own price


class Slots:
    """The `slots` bucket, and the `runners` bucket as far as forgetting goes."""

    def __init__(self, slots: Bucket, runners: Bucket, fleet: Fleet) -> None:
        self._slots = slots
        self._runners = runners
        self._fleet = fleet
        self._reading = asyncio.Lock()
        self._read: Mapping[str, Entry] = {}
        self._read_s = float("-inf")  # when the newest reading began

    async def take(self, runner: RunnerId, slot: int, session: SessionId) -> Granted | None:
        """Take the slot, or confirm it if it is the session's own; None if somebody else was faster.

        Raises UnavailableError if the outcome stays unknown: the slot may be the session's, and a second call
        for that session finds it.
        """
        advert = self._fleet.advert(runner)
        if advert is None:
            return None
        key = slot_key(runner, slot)
        entry = self._fleet.slots.entries.get(key)
        held = _slot(entry)
        if held.session not in {"", session}:
            return None
        # Its own slot is written again all the same: the new revision keeps an earlier, cancelled call for
        # this session from giving it back.
        epoch = held.epoch if held.session else held.epoch + 1
        value = Slot(session=session, epoch=epoch, granted_unix_ms=now_unix_us() // 1000)
        revision = await self._write(key, value, after=_revision(entry))
        if revision is None:
            return None
        return Granted(
            runner=runner,
            slot=slot,
            session=session,
            epoch=epoch,
            revision=revision,
            address=advert.address,
            boot_id=advert.boot_id,
            micro_per_second=advert.micro_per_second,
        )

    async def give_back(self, granted: Granted) -> None:
        """Free a slot that nobody got to use, unless it was granted again or freed since."""
        key = slot_key(granted.runner, granted.slot)
        await self._write(key, Slot(epoch=granted.epoch), after=granted.revision)

    async def release(self, session: SessionId, runner: RunnerId | None = None) -> int:
        """Free what `session` holds, everywhere or on one runner; returns how many slots that was."""
        released = await self._free_all(_on(self._fleet.held_by(session), runner), session)
        if released == 0:  # the view may lag behind a grant of another router
            released = await self._free_all(await self._look(session, runner), session)
        log.info("slots released", session=session, runner=runner, count=released)
        return released

    async def _look(self, session: SessionId, runner: RunnerId | None) -> Sequence[str]:
        """The keys to try when nothing is known: of one runner all, else those that name the session."""
        advert = None if runner is None else self._fleet.advert(runner)
        if runner is not None and advert is not None:
            return [slot_key(runner, slot) for slot in range(min(advert.slots, MAX_SLOTS))]
        everything = await self._everything()
        keys = [key for key, entry in everything.items() if _slot(entry).session == session]
        return _on(keys, runner)

    async def forget_gone(self) -> None:
        """Remove runners that are long gone, with their free slots; held ones stay until released."""
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            self._fleet.forget_silent()
            for runner in self._fleet.gone():
                await self._forget(runner)

    async def _forget(self, runner: RunnerId) -> None:
        slots = self._fleet.slots.entries
        free = {
            key: entry
            for key, entry in slots.items()
            if key.rpartition(".")[0] == runner and not _slot(entry).session
        }
        advert = self._fleet.adverts.entries.get(runner)
        try:
            if advert is not None:
                await self._runners.delete(runner, advert.revision)
                self._fleet.adverts.put(runner, None)
                log.info("runner forgotten", runner=runner)
            for key, entry in free.items():
                await self._slots.delete(key, entry.revision)
                self._fleet.slots.put(key, None)
        except (
            ConflictError,
            UnavailableError,
        ) as error:  # another router did it: look again later
            log.info("runner not forgotten", runner=runner, reason=error.reason)

    async def _free_all(self, keys: Iterable[str], session: SessionId) -> int:
        return sum([await self._free(key, session) for key in keys])

    async def _free(self, key: str, session: SessionId) -> bool:
        """Free the slot while the bucket says that it is the session's; whether it was."""
        entry = self._fleet.slots.entries.get(key)  # most often the newest, and a write tells if it is not
        for _ in range(ATTEMPTS):
            held = _slot(entry)
            freed = Slot(epoch=held.epoch)
            if held.session == session and await self._write(key, freed, after=_revision(entry)) is not None:
                return True
            entry = await self._slots.get(key)
            if _slot(entry).session != session:
                self._fleet.slots.put(key, entry)
                return False
        raise UnavailableError(f"too much contention on {key}", reason="CONTENTION")

    async def _write(self, key: str, slot: Slot, *, after: int) -> int | None:
        """Replace revision `after`, 0 for none; returns the new one, or None if somebody else was faster."""
        value = slot.SerializeToString()
        for _ in range(ATTEMPTS):
            try:
                if after == 0:
                    revision = await self._slots.create(key, value)
                else:
                    revision = await self._slots.update(key, value, after)
            except (ConflictError, UnavailableError) as error:
                log.debug("slot not written", key=key, reason=error.reason)
            else:
                self._fleet.slots.put(key, Entry(value, revision))
                return revision
            found = await self._slots.get(key)
            if found is not None and found.value == value:  # it was stored, only the answer got lost
                self._fleet.slots.put(key, found)
                return found.revision
            if _revision(found) != after:
                self._fleet.slots.put(key, found)
                CONFLICTS.inc()
                return None
            await asyncio.sleep(REPLICA_LAG_S)
        raise UnavailableError(f"no certain answer for {key}", reason="CONTENTION")

    async def _everything(self) -> Mapping[str, Entry]:
        """What the bucket holds now or since this call; calls that come together share a reading."""
        loop = asyncio.get_running_loop()
        called_s = loop.time()
        async with self._reading:
            if self._read_s < called_s:
                began_s = loop.time()
                self._read = await self._read_all()
                self._read_s = began_s
            return self._read

    async def _read_all(self) -> Mapping[str, Entry]:
        fresh = View()
        try:
            async with asyncio.timeout(READ_ALL_WITHIN_S), background(read=self._slots.follow(fresh)):
                await fresh.ready.wait()
        except TimeoutError:
            raise UnavailableError("the slots cannot be read", reason="NATS_UNREACHABLE") from None
        return fresh.entries


def _on(keys: Iterable[str], runner: RunnerId | None) -> Sequence[str]:
    return [key for key in keys if runner is None or key.rpartition(".")[0] == runner]


def _slot(entry: Entry | None) -> Slot:
    return Slot() if entry is None else Slot.FromString(entry.value)


def _revision(entry: Entry | None) -> int:
    return 0 if entry is None else entry.revision
