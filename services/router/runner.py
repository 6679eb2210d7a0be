"""One runner as this router knows it: its advert, its last heartbeat, what the bucket says of its slots.

The rules it keeps: a runner that is not heard is never READY; a slot that its runner claims, or that the
bucket says is held, is never READY; silence is evidence of death only after our own link was up long enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from protos.events.v1.events_pb2 import (
    RUNNER_STATE_DRAINING,
    RUNNER_STATE_READY,
    Heartbeat,
    RunnerAdvert,
    Slot,
    SlotClaim,
)
from services.router.placement import RunnerId, SessionId, SlotState
from services.router.table import OFFERED, WARM

MAX_SLOTS: Final = 1024  # of one runner; the numbers of slots come from outside


@dataclass(frozen=True, slots=True)
class SlotPicture:
    """One slot as it was last known; `session` and `epoch` are the bucket's, else what the runner claims."""

    slot: int
    state: SlotState
    session: SessionId
    epoch: int


@dataclass(frozen=True, slots=True)
class RunnerPicture:
    """One runner as it was last known. The advert and the claims are shared: never change them."""

    advert: RunnerAdvert  # without schemas and descriptions
    heard: bool
    slots: tuple[SlotPicture, ...]
    claims: tuple[SlotClaim, ...]
    penalty: float


def slot_states(
    *, advert: RunnerAdvert, beat: Heartbeat | None, heard: bool, link_settled: bool
) -> tuple[SlotState, SlotState]:
    """The states of a runner's slots: of those that are not taken, and of those that are.

    `beat` is the last heartbeat, fresh if `heard`.
    """
    if not heard and link_settled:
        return SlotState.LOST, SlotState.LOST
    if beat is None or beat.boot_id != advert.boot_id:
        return SlotState.STARTING, SlotState.STARTING
    if beat.state == RUNNER_STATE_DRAINING:
        return SlotState.DRAINING, SlotState.DRAINING
    if beat.state != RUNNER_STATE_READY:
        return SlotState.STARTING, SlotState.STARTING
    return SlotState.READY if heard else SlotState.STARTING, SlotState.HELD


@dataclass(slots=True, eq=False)
class Runner:
    """Changed in place as words arrive; the sets of slots are bits."""

    name: RunnerId
    row: int = -1  # in the table; it has one while it is advertised
    advert: RunnerAdvert | None = None
    listed: RunnerAdvert | None = None  # the same without what `Capacity` tells once for all who offer it
    offers: Mapping[str, int] = field(default_factory=dict)  # OFFERED or WARM, by pipeline
    beat: Heartbeat | None = None
    payload: bytes = b""  # of that heartbeat
    heard: bool = False
    heard_s: float = float("-inf")  # when the last heartbeat came
    noticed_s: float = float("-inf")  # the last sign of life that was no heartbeat
    values: dict[int, Slot] = field(default_factory=dict)  # what the bucket says
    held: int = 0
    claimed: int = 0
    here: int = 0  # taken by this process just now
    penalty: float = 0.0
    told: tuple[object, ...] = ()  # from what its row was written last
    told_us: int = -1  # and which frame time

    @property
    def facts(self) -> tuple[object, ...]:
        """What its row is written from, besides the state of our link."""
        return self.held | self.claimed | self.here, self.heard, self.beat, self.advert

    @property
    def known(self) -> bool:
        """Whether anything but heartbeats speaks of it."""
        return self.advert is not None or bool(self.values)

    @property
    def last_sign_s(self) -> float:
        return max(self.heard_s, self.noticed_s)

    @property
    def slots(self) -> int:
        assert self.advert is not None, self.name
        return max(0, min(self.advert.slots, MAX_SLOTS))

    @property
    def taken(self) -> int:
        """The slots that nobody else can have."""
        return (self.held | self.claimed | self.here) & ((1 << self.slots) - 1)

    def untaken(self) -> list[int]:
        taken = self.taken
        return [slot for slot in range(self.slots) if not taken >> slot & 1]

    def advertise(self, advert: RunnerAdvert | None) -> None:
        """Take what it says of itself now; None: nothing any more."""
        self.advert = advert
        self.listed = None
        self.offers = {}
        if advert is not None:
            self.offers = {offer.name: WARM if offer.warm else OFFERED for offer in advert.pipelines}
            self.listed = RunnerAdvert()
            self.listed.CopyFrom(advert)
            for offer in self.listed.pipelines:
                offer.ClearField("params_schema")
                offer.ClearField("description")

    def hear(self, beat: Heartbeat) -> bool:
        """Take a heartbeat; whether it says more than how fast the runner is."""
        before = self.beat
        self.beat = beat
        self.claimed = 0
        for claim in beat.claims:
            if 0 <= claim.slot < MAX_SLOTS:
                self.claimed |= 1 << claim.slot
        return (
            before is None
            or (before.state, before.boot_id) != (beat.state, beat.boot_id)
            or before.claims != beat.claims
        )

    def put(self, slot: int, value: Slot | None) -> Slot | None:
        """Take what the bucket says of a slot now; returns what it said before."""
        before = self.values.pop(slot, None)
        self.held &= ~(1 << slot)
        if value is not None:
            self.values[slot] = value
            if value.session:
                self.held |= 1 << slot
        return before

    def states(self, link_settled: bool) -> tuple[SlotState, SlotState]:
        """Of its slots that are not taken, and of those that are."""
        assert self.advert is not None, self.name
        return slot_states(advert=self.advert, beat=self.beat, heard=self.heard, link_settled=link_settled)

    def picture(self, link_settled: bool) -> RunnerPicture:
        assert self.listed is not None, self.name
        claims = tuple(self.beat.claims) if self.beat else ()
        return RunnerPicture(
            self.listed, self.heard, tuple(self._slots(claims, link_settled)), claims, self.penalty
        )

    def _slots(self, claims: tuple[SlotClaim, ...], link_settled: bool) -> Iterator[SlotPicture]:
        untaken, taken = self.states(link_settled)
        bits = self.taken
        claimed = {claim.slot: claim for claim in claims}
        for slot in range(self.slots):
            value, claim = self.values.get(slot), claimed.get(slot)
            session = value.session if value and value.session else claim.session if claim else ""
            epoch = value.epoch if value else claim.slot_epoch if claim else 0
            yield SlotPicture(slot, taken if bits >> slot & 1 else untaken, SessionId(session), epoch)
