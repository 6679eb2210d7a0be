"""What a session and a stream may become: the whole table, and what no sequence of steps can break."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.errors import ConflictError, InvalidError
from services.common.json_objects import json_object, merge_patch
from services.session_manager.machine import (
    HISTORY_BYTES,
    MAX_HISTORY,
    MAX_MOVES,
    MAX_SCHEDULED,
    NEXT,
    Move,
    Phase,
    Place,
    Reason,
    Session,
    SessionId,
    Stream,
    StreamId,
)
from services.session_manager.revisions import Scheduled, difference, whole

A, B = SessionId("ses_aaaaaaaa"), SessionId("ses_bbbbbbbb")
# Section 7 of the architecture, written out once more by hand.
LEGAL = {
    ("ALLOCATING", "STARTING"),
    ("STARTING", "LIVE"),
    ("STARTING", "PAUSED"),
    ("LIVE", "DEGRADED"),
    ("DEGRADED", "LIVE"),
    ("LIVE", "PAUSED"),
    ("DEGRADED", "PAUSED"),
    ("PAUSED", "LIVE"),
    ("LIVE", "MIGRATING"),
    ("DEGRADED", "MIGRATING"),
    ("PAUSED", "MIGRATING"),
    ("STARTING", "MIGRATING"),
    ("MIGRATING", "STARTING"),
    ("MIGRATING", "LIVE"),
    ("MIGRATING", "DEGRADED"),
    ("MIGRATING", "PAUSED"),
    *((phase.name, "ENDED") for phase in Phase if phase is not Phase.ENDED),
}


def session(phase: Phase = Phase.ALLOCATING) -> Session:
    return Session(
        id=A,
        stream=StreamId("str_aaaaaaaa"),
        tenant="acme",
        pipeline="effects",
        owner="replica",
        bridge="ingest:7000",
        created_unix_ms=1000,
        phase=phase,
    )


def stream(**facts: object) -> Stream:
    one = Stream(
        id=StreamId("str_aaaaaaaa"),
        tenant="acme",
        name="",
        pipeline="effects",
        params={"prompt": "neon", "strength": 1.0},
        params_schema={},
        created_unix_ms=1000,
    )
    return replace(one, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("was", "asked"), list(product(Phase, Phase)), ids=lambda phase: phase.name)
def test_a_phase_follows_another_only_along_an_edge(was: Phase, asked: Phase) -> None:
    if (was.name, asked.name) in LEGAL:
        moved = session(was).to(asked)
        assert (moved.phase, moved.revision) == (asked, 1)
        return
    with pytest.raises(ConflictError) as refusal:
        session(was).to(asked)
    assert refusal.value.details == {"session": A, "was": was.name, "asked": asked.name}


def test_every_phase_has_a_row_in_the_table() -> None:
    assert set(NEXT) == set(Phase)


def test_of_several_ends_the_first_one_holds() -> None:
    ended = session(Phase.LIVE).end(Reason.STOPPED, "by hand", 2000)
    assert ended.end(Reason.INTERNAL_ERROR, "later", 3000) is ended
    assert (ended.end_reason, ended.end_message, ended.ended_unix_ms) == ("stopped", "by hand", 2000)


def test_facts_change_without_the_phase_and_count_as_a_revision() -> None:
    granted = session().with_(runner="r1", slot_epoch=7)
    assert (granted.phase, granted.runner, granted.slot_epoch, granted.revision) == (
        Phase.ALLOCATING,
        "r1",
        7,
        1,
    )


R1 = Place(runner="r1", address="r1:1", slot=2, slot_epoch=7, boot_id="boot", why="drain")


def move(epoch: int) -> Move:
    return Move(unix_ms=5, left="r0", to="r1", why="drain", epoch=epoch, freeze_ms=40)


def test_a_session_that_moves_is_where_it_was_until_it_has_arrived() -> None:
    was = session(Phase.LIVE).with_(runner="r0", epoch=3, move_wanted="drain")
    going = was.heading(R1)
    assert (going.phase, going.runner, going.epoch) == (Phase.MIGRATING, "r0", 3)
    assert going.next == replace(R1, epoch=4)
    there = going.moved(move(4), failures=1)
    assert (there.phase, there.next, there.move_wanted) == (Phase.LIVE, None, "")
    assert there.place == replace(R1, epoch=4, why="")
    assert (there.moves, there.failures) == ((move(4),), 1)


def test_every_candidate_has_an_epoch_above_all_that_were_there() -> None:
    going = session(Phase.LIVE).heading(R1).heading(R1)
    assert going.next is not None
    assert (going.epoch, going.next.epoch, going.newest_epoch) == (1, 3, 3)
    assert going.heading(R1, above=9).newest_epoch == 10


@pytest.mark.parametrize("epoch", [1, 3])
def test_nobody_arrives_where_the_session_does_not_go(epoch: int) -> None:
    going = session(Phase.LIVE).heading(R1)
    with pytest.raises(ConflictError):
        going.moved(move(epoch))
    with pytest.raises(ConflictError):
        session(Phase.LIVE).moved(move(2))


def test_a_record_tells_of_its_newest_moves() -> None:
    one = session(Phase.LIVE)
    for _ in range(MAX_MOVES + 3):
        one = one.heading(R1)
        one = one.moved(move(one.newest_epoch))
    assert [each.epoch for each in one.moves] == list(range(5, 5 + MAX_MOVES))


@pytest.mark.parametrize("phase", [Phase.LIVE, Phase.STARTING, Phase.PAUSED])
def test_a_move_that_is_called_off_leaves_the_session_where_it_was(phase: Phase) -> None:
    was = session(Phase.LIVE)
    stayed = was.heading(R1).staying(phase)
    assert (stayed.phase, stayed.next, stayed.place) == (phase, None, was.place)


def test_a_session_without_a_bridge_is_paused_and_goes_nowhere() -> None:
    lost = session(Phase.LIVE).without_bridge("ingest:7000", now_unix_ms=9)
    assert (lost.phase, lost.bridge_lost_unix_ms) == (Phase.PAUSED, 9)
    assert lost.without_bridge("ingest:7000", now_unix_ms=10) is lost
    assert lost.without_bridge("another:1", now_unix_ms=10) is lost
    with pytest.raises(ConflictError) as refusal:
        lost.heading(R1)
    assert refusal.value.reason == "BRIDGE_LOST"
    assert lost.with_bridge().bridge_lost_unix_ms == 0


def test_a_publisher_that_comes_back_elsewhere_has_an_epoch_of_its_own_and_calls_a_move_off() -> None:
    going = session(Phase.LIVE).heading(R1)
    back = going.rejoined(bridge="other:7000", signalling="http://other")
    assert (back.bridge, back.epoch, back.next, back.phase) == ("other:7000", 3, None, Phase.PAUSED)
    ended = going.end(Reason.STOPPED, "", 9)
    with pytest.raises(ConflictError):
        ended.rejoined(bridge="other:7000", signalling="")
    assert ended.without_bridge("ingest:7000", now_unix_ms=9) is ended
    assert ended.proven(1) is ended


def test_only_the_runner_that_shows_the_session_clears_it_of_failures() -> None:
    failed = session(Phase.LIVE).with_(failures=2, epoch=4)
    assert failed.proven(3) is failed
    assert failed.proven(4).failures == 0


@pytest.mark.parametrize(
    ("was", "reason"),
    [
        (session(Phase.STARTING), "NOT_LIVE"),
        (session(Phase.ENDED), "NOT_LIVE"),
        (session(Phase.PAUSED).with_(bridge_lost_unix_ms=9), "NOT_LIVE"),
        (session(Phase.LIVE).with_(move_wanted="drain"), "MOVES_ALREADY"),
        (session(Phase.MIGRATING), "MOVES_ALREADY"),
    ],
    ids=["starting", "ended", "without a bridge", "wished already", "moving"],
)
def test_only_a_session_that_lives_and_stays_is_wished_elsewhere(was: Session, reason: str) -> None:
    with pytest.raises(ConflictError) as refusal:
        was.wished_elsewhere("asked")
    assert refusal.value.reason == reason
    assert session(Phase.DEGRADED).wished_elsewhere("asked").move_wanted == "asked"


def test_the_same_slot_is_told_from_its_later_grants() -> None:
    assert R1.same_slot(replace(R1, epoch=9, boot_id="another", why=""))
    assert not R1.same_slot(replace(R1, slot_epoch=8))


class AnySteps(RuleBasedStateMachine):
    """A record under whatever several replicas and their timers do to it."""

    def __init__(self) -> None:
        super().__init__()
        self.record = session()
        self.was = self.record

    def become(self, now: Session) -> None:
        self.was, self.record = self.record, now

    @rule(phase=st.sampled_from([phase for phase in Phase if phase is not Phase.ENDED]))
    def move(self, phase: Phase) -> None:
        try:
            self.become(self.record.to(phase))
        except ConflictError:
            assert phase not in NEXT[self.record.phase]

    @rule(reason=st.sampled_from(Reason), at=st.integers(1, 10**6))
    def end(self, reason: Reason, at: int) -> None:
        self.become(self.record.end(reason, reason.value, at))

    @rule(paid=st.integers(0, 10**6))
    def renew(self, paid: int) -> None:
        self.become(self.record.with_(paid_until_ms=paid))

    @precondition(lambda self: self.record.phase is not Phase.ENDED)
    @rule()
    def attach_elsewhere(self) -> None:
        self.become(self.record.with_(epoch=self.record.epoch + 1))

    @invariant()
    def an_end_is_final(self) -> None:
        if self.was.phase is Phase.ENDED:
            assert self.record.phase is Phase.ENDED
            assert self.record.end_reason == self.was.end_reason
            assert self.record.ended_unix_ms == self.was.ended_unix_ms

    @invariant()
    def only_what_has_ended_has_a_reason(self) -> None:
        assert bool(self.record.end_reason) == (self.record.phase is Phase.ENDED)
        assert bool(self.record.ended_unix_ms) == (self.record.phase is Phase.ENDED)

    @invariant()
    def every_change_is_a_revision(self) -> None:
        if self.record is not self.was:
            assert self.record.revision == self.was.revision + 1

    @invariant()
    def the_epoch_never_falls(self) -> None:
        assert self.record.epoch >= self.was.epoch


TestAnySteps = AnySteps.TestCase


def test_a_patch_is_the_streams_next_revision_and_takes_effect_at_once() -> None:
    patched = stream().patched({"prompt": "sketch"}, 0)
    assert patched.params == {"prompt": "sketch", "strength": 1.0}
    assert (patched.revision, patched.scheduled) == (2, ())


def test_a_degraded_session_names_the_fault_and_a_healthy_one_none() -> None:
    live = session().to(Phase.STARTING).to(Phase.LIVE)
    bad = live.seen_in(Phase.DEGRADED, degraded_by="input")
    assert (bad.phase, bad.degraded_by, bad.revision) == (Phase.DEGRADED, "input", live.revision + 1)
    worse = bad.seen_in(Phase.DEGRADED, degraded_by="inference")
    assert (worse.degraded_by, worse.revision) == ("inference", bad.revision + 1)
    assert worse.seen_in(Phase.DEGRADED, degraded_by="inference") is worse
    assert worse.to(Phase.PAUSED).degraded_by == ""
    ended = bad.end(Reason.STOPPED, "", 1)
    assert ended.seen_in(Phase.LIVE, degraded_by="") is ended


def running() -> Stream:
    """A stream with a session, which a runner may refuse something to."""
    return stream().claimed_by(SessionId("ses_aaaaaaaa"))


def test_a_refused_revision_is_taken_back_as_a_revision_of_its_own() -> None:
    changed = running().patched({"prompt": "sketch", "seed": 7}, 0)
    assert changed.without({9}) == changed
    back = changed.without({2})
    assert (back.params, back.revision, back.history) == (running().params, 3, ())
    assert back.without({2}) is not None
    assert back.without({2}).revision == 3, "once"


def test_what_a_later_revision_made_of_it_stays() -> None:
    changed = running().patched({"prompt": "a", "strength": 0.5}, 0).patched({"prompt": "b"}, 0)
    back = changed.without({2})
    assert back.params == {"prompt": "b", "strength": 1.0}
    assert back.without({3}).params == running().params, "and leads back to before both"
    assert changed.without({2, 3}).params == running().params


def test_what_was_scheduled_and_is_refused_does_not_come() -> None:
    waiting = running().patched({"prompt": "sketch"}, 180_000)
    assert waiting.without({2}).past(180_000).params == running().params
    shown = waiting.past(180_000)
    assert shown.params["prompt"] == "sketch"
    assert shown.without({2}).params == running().params


def test_without_a_session_there_is_nothing_to_take_back() -> None:
    assert stream().patched({"prompt": "sketch"}, 0).history == ()
    changed = running().patched({"prompt": "sketch"}, 0)
    assert changed.released_by(SessionId("ses_aaaaaaaa")).history == ()


def test_only_so_much_is_kept_to_be_taken_back() -> None:
    many = running()
    for number in range(2 * MAX_HISTORY):
        many = many.patched({"seed": number}, 0)
    assert [one.revision for one in many.history] == list(range(2 + MAX_HISTORY, 2 + 2 * MAX_HISTORY))
    large = running()
    for letter in "abcde":
        large = large.patched({"prompt": letter * (HISTORY_BYTES // 3)}, 0)
    assert [one.revision for one in large.history] == [5, 6]


NAMES = st.sampled_from(["a", "b", "c"])
CHANGES = st.lists(st.dictionaries(NAMES, st.integers(0, 3), min_size=1), min_size=1, max_size=8)


@given(CHANGES, st.data())
def test_without_the_refused_ones_it_is_as_if_they_had_never_been(
    changes: list[dict[str, int]], data: st.DataObject
) -> None:
    revisions = st.integers(2, 1 + len(changes))
    refused = data.draw(st.lists(revisions, unique=True))
    bare = replace(running(), params={})
    changed, wanted = bare, bare
    for revision, patch in enumerate(changes, start=2):
        changed = changed.patched(patch, 0)
        wanted = wanted if revision in refused else wanted.patched(patch, 0)
    for revision in data.draw(st.permutations(refused)):
        changed = changed.without({revision})
    assert changed.params == wanted.params


def test_a_value_takes_the_place_of_all_of_what_was_there() -> None:
    params = {"loras": {"a": 1, "b": {"c": 1, "d": 2}}, "seed": 1}
    patch = whole({"loras": {"b": {"d": 3}, "e": 4}, "seed": 2}, params)
    assert merge_patch(params, patch) == {"loras": {"b": {"d": 3}, "e": 4}, "seed": 2}
    assert whole({"loras": {}}, {}) == {"loras": {}}
    assert merge_patch(params, whole({"loras": {}}, params)) == {"loras": {}, "seed": 1}


def test_a_scheduled_patch_leaves_the_parameters_until_its_picture() -> None:
    waiting = stream().patched({"prompt": "sketch"}, 180_000)
    assert waiting.params["prompt"] == "neon"
    assert waiting.revision == 2
    assert waiting.past(179_999) is waiting
    due = waiting.past(180_000)
    assert due.params["prompt"] == "sketch"
    assert (due.revision, due.scheduled) == (2, ())


def test_patches_that_are_due_are_folded_in_the_order_of_their_pictures() -> None:
    waiting = (
        stream()
        .patched({"prompt": "third"}, 300)
        .patched({"prompt": "first", "strength": 0.1}, 100)
        .patched({"prompt": "second"}, 200)
    )
    assert waiting.past(250).params == {"prompt": "second", "strength": 0.1}
    assert [item.revision for item in waiting.past(250).scheduled] == [2]
    assert waiting.past(300).params == {"prompt": "third", "strength": 0.1}


def test_of_two_patches_for_one_picture_the_newer_wins() -> None:
    waiting = stream().patched({"prompt": "older"}, 100).patched({"prompt": "newer"}, 100)
    assert waiting.past(100).params["prompt"] == "newer"


def test_at_most_a_hundred_patches_wait_at_a_time() -> None:
    full = stream(scheduled=tuple(Scheduled(2 + i, {}, 100) for i in range(MAX_SCHEDULED)), revision=101)
    with pytest.raises(InvalidError) as refusal:
        full.patched({"prompt": "x"}, 100)
    assert refusal.value.details["field"] == "apply_at_pts"
    assert full.patched({"prompt": "x"}, 0).revision == 102, "one that waits for nothing is taken"


def test_a_stream_has_one_session_at_a_time() -> None:
    claimed = stream().claimed_by(A)
    assert (claimed.session, claimed.last_session) == (A, A)
    assert claimed.claimed_by(A) == claimed, "again is harmless"
    with pytest.raises(ConflictError) as refusal:
        claimed.claimed_by(B)
    assert refusal.value.reason == "STREAM_BUSY"
    assert refusal.value.details["session"] == A


def test_only_its_own_session_makes_a_stream_idle() -> None:
    claimed = stream().claimed_by(A)
    assert claimed.released_by(B) is claimed
    idle = claimed.released_by(A)
    assert (idle.session, idle.last_session) == ("", A)
    assert idle.claimed_by(B).last_session == B


def test_what_was_scheduled_goes_with_the_session_whose_pictures_it_named() -> None:
    assert stream().claimed_by(A).patched({"prompt": "x"}, 100).released_by(A).scheduled == ()


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '"text"',
        "1",
        "null",
        "{",
        "nonsense",
        '{"strength": NaN}',
        '{"strength": -Infinity}',
        '{"strength": 1e999}',
        '{"a": ' * 5000 + "1" + "}" * 5000,
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_json_object_is_refused_by_the_fields_name(text: str) -> None:
    with pytest.raises(InvalidError) as refusal:
        json_object(text, "params")
    assert refusal.value.details["field"] == "params"


OBJECTS = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers() | st.lists(st.integers(), max_size=2), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers(), max_size=3),
    max_leaves=6,
)


@given(OBJECTS, OBJECTS)
def test_a_difference_is_the_patch_that_makes_one_of_the_other(
    was: dict[str, object], now: dict[str, object]
) -> None:
    patch = difference(was, now)
    assert merge_patch(was, patch) == now
    assert bool(patch) == (was != now)


def test_an_empty_text_is_an_empty_object() -> None:
    assert json_object("", "params") == {}
    assert json_object('{"a": {"b": 1.5}}', "params") == {"a": {"b": 1.5}}
