"""Differences between records, slots and runners: none in a consistent world, and repairs make one of any."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.topology import slot_key
from services.session_manager import drift
from services.session_manager.drift import (
    SETTLED_IN,
    Claim,
    Drift,
    Facts,
    Heard,
    HeldSlot,
    Kind,
    Sightings,
    drifts,
)
from services.session_manager.machine import Phase, Place, Session, SessionId, Stream, StreamId

NOW_MS = 1_700_000_000_000
SETTLE_MS = 15_000
OLD_MS = NOW_MS - 600_000
NAMES = tuple(f"ses_{letter * 10}" for letter in "abcdef")
RUNNERS = ("r0", "r1", "r2.gpu")
SLOTS_EACH = 2


def session(name: str = NAMES[0], **facts: Any) -> Session:
    common: dict[str, Any] = {
        "id": SessionId(name),
        "stream": StreamId("str_" + name[4:]),
        "tenant": "acme",
        "pipeline": "effects",
        "owner": "one",
        "bridge": "ingest:7000",
        "created_unix_ms": OLD_MS,
        "phase": Phase.LIVE,
        "runner": "r0",
        "runner_address": "r0:7004",
        "slot": 0,
        "slot_epoch": 5,
        "boot_id": "boot r0",
    }
    return Session(**{**common, **facts})


def ended(name: str = NAMES[0], at_ms: int = OLD_MS, **facts: Any) -> Session:
    return session(name, phase=Phase.ENDED, ended_unix_ms=at_ms, **facts)


def stream(name: str = NAMES[0]) -> Stream:
    return Stream(
        id=StreamId("str_" + name[4:]),
        tenant="acme",
        name="",
        pipeline="effects",
        params={},
        params_schema={},
        created_unix_ms=OLD_MS,
        session=name,
    )


def held(name: str = NAMES[0], epoch: int = 5, granted_ms: int = OLD_MS, revision: int = 3) -> HeldSlot:
    return HeldSlot(name, epoch, granted_ms, revision)


def heard(runner: str = "r0", *claims: Claim, boot_id: str = "") -> Heard:
    return Heard(runner, f"{runner}:7004", boot_id or f"boot {runner}", claims)


def claim(name: str = NAMES[0], slot: int = 0, epoch: int = 5) -> Claim:
    return Claim(slot, name, epoch)


@dataclass
class World:
    """Everything that is, and what the repairs make of it."""

    sessions: dict[str, Session] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    slots: dict[str, HeldSlot] = field(default_factory=dict)
    runners: dict[str, Heard] = field(default_factory=dict)

    def look(self) -> list[Drift]:
        facts = Facts(self.sessions, self.streams, self.slots, self.runners)
        return drifts(facts, now_unix_ms=NOW_MS, settle_ms=SETTLE_MS)

    def repair(self, found: Drift) -> None:
        key = slot_key(found.place.runner, found.place.slot)
        if found.kind in drift.CLAIMS:
            runner = self.runners[found.place.runner]
            left = tuple(
                one for one in runner.claims if (one.session, one.slot) != (found.session, found.place.slot)
            )
            self.runners[runner.runner] = replace(runner, claims=left)
        elif found.kind is Kind.SLOT_MISSING:
            assert found.revision == (self.slots[key].revision if key in self.slots else 0)
            self.slots[key] = HeldSlot(found.session, found.place.slot_epoch, NOW_MS, found.revision + 1)
        elif found.kind in drift.SLOTS:
            assert found.revision == self.slots[key].revision
            self.slots[key] = HeldSlot("", found.place.slot_epoch, 0, found.revision + 1)
        elif found.kind in drift.MOVES:
            self.sessions[found.session] = self.sessions[found.session].with_(move_wanted=found.kind.value)
        else:
            was = self.streams[found.stream]
            self.streams[found.stream] = was.released_by(SessionId(found.session))

    def with_session(self, one: Session, granted_ms: int = OLD_MS) -> World:
        """A session, with all that belongs to it."""
        self.sessions[one.id] = one
        self.streams[one.stream] = stream(one.id)
        for place in (one.place, one.next):
            if place is None:
                continue
            self.slots[slot_key(place.runner, place.slot)] = held(one.id, place.slot_epoch, granted_ms)
            runner = self.runners.get(place.runner, heard(place.runner))
            mine = claim(one.id, place.slot, place.slot_epoch)
            self.runners[place.runner] = replace(runner, claims=(*runner.claims, mine))
        return self


@st.composite
def consistent(draw: st.DrawFn) -> World:
    """A world in which everybody says the same; some sessions are on their way."""
    world = World()
    free = [(runner, slot) for runner in RUNNERS for slot in range(SLOTS_EACH)]
    free = list(draw(st.permutations(free)))
    for runner in RUNNERS:
        if draw(st.booleans()):
            world.runners[runner] = heard(runner)
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3)):
        runner, slot = free.pop()
        epoch = draw(st.integers(1, 9))
        phase = draw(st.sampled_from([*SETTLED_IN, Phase.MIGRATING]))
        moving = None
        if free and phase is Phase.MIGRATING:
            other, number = free.pop()
            moving = Place(other, f"{other}:7004", number, epoch + 1, 2, f"boot {other}")
        world.with_session(
            session(
                name,
                phase=phase,
                runner=runner,
                runner_address=f"{runner}:7004",
                slot=slot,
                slot_epoch=epoch,
                boot_id=f"boot {runner}",
                next=moving,
            )
        )
    for runner, slot in free:
        if draw(st.booleans()):
            world.slots[slot_key(runner, slot)] = HeldSlot("", draw(st.integers(1, 9)), OLD_MS, 4)
    silent = draw(st.sets(st.sampled_from(RUNNERS)))
    world.runners = {name: runner for name, runner in world.runners.items() if name not in silent}
    return world


@st.composite
def torn(draw: st.DrawFn) -> World:
    """A consistent world in which things were lost, forgotten and left behind."""
    world = draw(consistent())
    for name in draw(st.sets(st.sampled_from(NAMES))):
        what = draw(st.sampled_from(["ends", "vanishes", "nothing"]))
        if what == "ends" and name in world.sessions:
            world.sessions[name] = world.sessions[name].end("stopped", "", OLD_MS)
        elif what == "vanishes":
            world.sessions.pop(name, None)
    for key in draw(st.sets(st.sampled_from(sorted(world.slots)))) if world.slots else ():
        was = world.slots[key]
        name = draw(st.sampled_from([*NAMES, ""]))
        world.slots[key] = replace(was, session=name, epoch=was.epoch + draw(st.integers(0, 2)))
    for runner in list(world.runners.values()):
        kept = tuple(one for one in runner.claims if draw(st.booleans()))
        if len({one.slot for one in kept}) < SLOTS_EACH and draw(st.booleans()):
            free = next(slot for slot in range(SLOTS_EACH) if slot not in {one.slot for one in kept})
            kept += (claim(draw(st.sampled_from(NAMES)), free, draw(st.integers(1, 9))),)
        world.runners[runner.runner] = replace(runner, claims=kept)
    return world


@given(consistent())
def test_a_world_in_which_everybody_says_the_same_has_no_drift(world: World) -> None:
    assert world.look() == []


@given(torn())
def test_repairs_come_to_an_end_and_leave_nothing_behind(world: World) -> None:
    for _ in range(4):
        found = world.look()
        for one in found:
            if one in world.look():  # as it is looked at again before it is repaired
                world.repair(one)
        if not found:
            break
    assert world.look() == []
    for held_now in world.slots.values():
        alive = world.sessions.get(held_now.session)
        assert not held_now.session or (alive is not None and alive.phase is not Phase.ENDED)
    for runner in world.runners.values():
        for said in runner.claims:
            assert said.session in world.sessions
            assert world.sessions[said.session].phase is not Phase.ENDED


@given(torn())
def test_no_repair_takes_from_a_session_what_it_has(world: World) -> None:
    settled = {one.id: one for one in world.sessions.values() if one.phase in SETTLED_IN}
    for found in world.look():
        one = settled.get(SessionId(found.session))
        if one is None:
            continue
        at_home = one.place.same_slot(replace(found.place, slot_epoch=one.slot_epoch))
        if found.kind in {Kind.SLOT_OF_NOBODY, Kind.SLOT_BESIDE}:
            assert not at_home
        if found.kind in drift.CLAIMS:
            assert not one.place.same_slot(found.place)
        assert found.kind is not Kind.STREAM_OF_NOBODY


# --- one by one


def kinds(world: World) -> list[Kind]:
    return [found.kind for found in world.look()]


def test_a_slot_of_a_session_that_ended_is_nobody_s() -> None:
    world = World(sessions={NAMES[0]: ended()}, slots={"r0.0": held()})
    (found,) = world.look()
    assert (found.kind, found.place.runner, found.place.slot) == (Kind.SLOT_OF_NOBODY, "r0", 0)
    assert (found.revision, found.recorded) == (3, True)


def test_a_slot_of_a_session_that_never_was_is_nobody_s_but_that_takes_longer_to_believe() -> None:
    (found,) = World(slots={"r0.0": held()}).look()
    assert (found.kind, found.recorded) == (Kind.SLOT_OF_NOBODY, False)


def test_slots_and_claims_of_others_than_sessions_are_let_be() -> None:
    world = World(slots={"r0.0": held("job-1")}, runners={"r0": heard("r0", claim("worker-1"))})
    assert world.look() == []


@pytest.mark.parametrize("phase", [Phase.ALLOCATING, Phase.MIGRATING])
def test_what_a_session_on_its_way_holds_is_its_owner_s_business(phase: Phase) -> None:
    world = World().with_session(session(phase=phase))
    world.slots["r1.0"] = held()
    world.runners["r1"] = heard("r1", claim())
    assert world.look() == []


def test_what_is_young_is_no_drift() -> None:
    young_ms = NOW_MS - 1_000
    world = World(sessions={NAMES[0]: ended(at_ms=young_ms)}, streams={"s": stream()})
    world.slots["r0.0"] = held()
    world.runners["r0"] = heard("r0", claim())
    assert world.look() == []
    world = World(slots={"r0.0": held(granted_ms=young_ms)})
    assert world.look() == []
    world = World(sessions={NAMES[0]: session(created_unix_ms=young_ms)}, runners={"r0": heard()})
    assert world.look() == []


def test_a_slot_that_a_session_left_behind_is_freed_and_so_is_the_runner() -> None:
    world = World().with_session(session())
    world.slots["r1.0"] = held()
    world.runners["r1"] = heard("r1", claim())
    assert kinds(world) == [Kind.CLAIM_BESIDE, Kind.SLOT_BESIDE]


def test_a_zombie_of_an_older_grant_of_the_same_slot_is_detached() -> None:
    world = World().with_session(session())
    world.runners["r0"] = heard("r0", claim(epoch=4), claim(epoch=5))
    (found,) = world.look()
    assert (found.kind, found.place.slot_epoch) == (Kind.CLAIM_BESIDE, 4)


def test_a_session_that_is_given_its_own_slot_again_is_in_both_its_grants() -> None:
    again = Place("r0", "r0:7004", 0, 6, 2, "boot r0")
    world = World().with_session(session(next=again))
    assert {one.slot_epoch for one in world.runners["r0"].claims} == {5, 6}
    assert world.look() == []


def test_a_slot_that_was_freed_under_a_session_is_held_again() -> None:
    world = World().with_session(session())
    world.slots["r0.0"] = HeldSlot("", 5, 0, 7)
    (found,) = world.look()
    assert (found.kind, found.revision) == (Kind.SLOT_MISSING, 7)
    del world.slots["r0.0"]
    (found,) = world.look()
    assert (found.kind, found.revision) == (Kind.SLOT_MISSING, 0)


def test_a_slot_that_is_another_s_or_was_meanwhile_is_lost() -> None:
    world = World().with_session(session())
    world.slots["r0.0"] = HeldSlot("", 6, 0, 7)
    assert kinds(world) == [Kind.SLOT_LOST]
    world.slots["r0.0"] = held(NAMES[1], epoch=6)
    world.sessions[NAMES[1]] = session(NAMES[1], phase=Phase.ALLOCATING)
    assert kinds(world) == [Kind.SLOT_LOST]
    world.sessions[NAMES[0]] = session(move_wanted="slot_lost")
    assert kinds(world) == []


def test_a_session_that_its_runner_forgot_moves() -> None:
    world = World().with_session(session())
    world.runners["r0"] = heard("r0")
    assert kinds(world) == [Kind.RUNNER_FORGOT]
    world.runners["r0"] = heard("r0", boot_id="another process")
    assert kinds(world) == [], "who watches the session sees that"
    del world.runners["r0"]
    assert kinds(world) == [], "who is not heard says nothing"


def test_a_stream_of_a_session_that_ended_is_idle_again() -> None:
    world = World(sessions={NAMES[0]: ended()}, streams={"s": stream()})
    (found,) = world.look()
    assert (found.kind, found.stream) == (Kind.STREAM_OF_NOBODY, stream().id)
    world.streams["s"] = replace(stream(), deleted=True)
    assert world.look() == []


# --- patience


def test_a_difference_counts_when_it_is_seen_again() -> None:
    one = Drift(Kind.SLOT_OF_NOBODY, NAMES[0], revision=1)
    missing = replace(one, recorded=False)
    sightings = Sightings(patience_s=2.5, unrecorded_patience_s=30)
    assert sightings.lasting([one, missing], 100) == []
    assert sightings.lasting([one, missing], 105) == [one]
    assert sightings.lasting([one, missing], 130) == [one, missing]
    assert sightings.lasting([], 135) == []
    assert sightings.lasting([one], 140) == [], "it went, and is seen for the first time"
    assert sightings.lasting([replace(one, revision=2)], 145) == [], "it is another one"
    assert sightings.lasting([replace(one, revision=2)], 150) != []
    sightings.forget()
    assert sightings.lasting([replace(one, revision=2)], 155) == []


def test_what_was_repaired_has_to_be_seen_twice_again() -> None:
    one = Drift(Kind.SLOT_OF_NOBODY, NAMES[0], revision=1)
    sightings = Sightings(patience_s=2.5, unrecorded_patience_s=30)
    sightings.lasting([one], 100)
    assert sightings.lasting([one], 105) == [one]
    sightings.repaired(one)
    assert sightings.lasting([one], 110) == []
