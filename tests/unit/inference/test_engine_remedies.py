"""A real engine whose pipeline changes, fails and recovers: what is shown, and what is said of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from services.inference.engine.containment import PROBATION
from services.inference.packets import Media, Snapshot
from tests.support.engine import FRAME, START, EngineChild, decoded, engine, video, wait_for

PIPELINES = ",".join(f"tests.support.pipelines:{name}" for name in ("Moody", "Counting", "Unloadable"))


@pytest.fixture(scope="module")
def shared() -> Iterator[EngineChild]:
    with engine(PIPELINES, slots=2, here={"moody": {"level": 30}}) as child:
        yield child


@pytest.fixture
def child(shared: EngineChild) -> Iterator[EngineChild]:
    shared.said.clear()
    yield shared
    shared.close_all()


def levels(child: EngineChild) -> dict[int, int]:
    """Of the pictures that came out, by their number in the input."""
    packets = child.media()
    return {
        (packet.pts - START) // FRAME: round(float(np.mean(frame.rgb())))
        for packet, frame in zip(packets, decoded(packets), strict=True)
    }


def fields(child: EngineChild, kind: str, *names: str, slot: int = 0) -> list[tuple[Any, ...]]:
    return [tuple(one.fields[name] for name in names) for one in child.messages(kind) if one.slot == slot]


def through(child: EngineChild, sent: list[Media], *updates: dict[str, Any], at: int = 10) -> None:
    """Open in complete delivery, and change parameters from frame `at` on: one revision each, from 2 on."""
    for revision, patch in enumerate(updates, 2):
        child.say(
            "update", revision=revision, patch=patch, apply_at_pts=START + (at + 10 * (revision - 2)) * FRAME
        )
    child.send(*sent)
    child.say("end_of_input")
    child.until_said("finished")


@contextmanager
def playing(child: EngineChild, count: int = 400, fps: float = 60) -> Iterator[None]:
    """Pictures flow in while the block runs, as a live publisher's do."""
    over = threading.Event()

    def play() -> None:
        for packet in video(count):
            child.send(packet)
            if over.wait(1 / fps):
                return

    thread = threading.Thread(target=play)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_what_does_not_load_is_not_offered_and_the_others_are(shared: EngineChild) -> None:
    with engine(PIPELINES) as child:
        (ready,) = child.messages("ready")
        assert [offer["name"] for offer in ready.fields["pipelines"]] == ["moody", "counting"]
        assert fields(child, "not_offered", "pipeline", "error", slot=-1) == [
            ("tests.support.pipelines:Unloadable", "weights.safetensors")
        ]


def test_a_runners_defaults_are_in_its_schema_and_in_its_pictures() -> None:
    with engine("tests.support.pipelines:Moody", here={"moody": {"level": 90, "model": "large"}}) as child:
        (ready,) = child.messages("ready")
        properties = ready.fields["pipelines"][0]["params_schema"]["properties"]
        assert (properties["level"]["default"], properties["model"]["default"]) == (90, "large")
        child.open("moody")
        through(child, video(3))
        assert list(levels(child).values()) == pytest.approx([190] * 3, abs=4)


@pytest.mark.parametrize(
    ("here", "why"),
    [
        ({"nothing": 1}, "no parameter 'nothing'"),
        ({"level": 900}, "params.level"),
    ],
)
def test_a_default_that_cannot_be_is_no_offer(here: dict[str, Any], why: str) -> None:
    names = "passthrough,tests.support.pipelines:Moody"
    with engine(names, here={"moody": here}) as child:
        ((pipeline, error),) = fields(child, "not_offered", "pipeline", "error", slot=-1)
        assert pipeline == "tests.support.pipelines:Moody"
        assert why in error


def test_a_stream_begins_with_the_values_that_it_asks_for_however_they_apply(child: EngineChild) -> None:
    child.open("moody", params={"model": "large", "style": "bright", "level": 20})
    through(child, video(3))
    assert list(levels(child).values()) == pytest.approx([170] * 3, abs=4)
    assert fields(child, "applied", "revision", "pts", "applies") == [(1, START, "live")]
    told = fields(child, "loading", "why", "percent")
    assert told[0] == ("start", 0)
    assert told[-1][1] == 100


def test_warm_values_alone_are_prepared_before_the_first_picture(child: EngineChild) -> None:
    child.open("moody", params={"style": "bright"})
    through(child, video(3))
    assert list(levels(child).values()) == pytest.approx([80] * 3, abs=4)


def test_complete_delivery_waits_for_a_change_so_that_each_picture_is_as_it_was_asked_for(
    child: EngineChild,
) -> None:
    child.open("moody")
    through(child, video(40), {"style": "bright"}, {"model": "large"}, {"level": 0})
    shown = levels(child)
    assert [shown[number] for number in range(40)] == pytest.approx(
        [30] * 10 + [80] * 10 + [180] * 10 + [150] * 10, abs=4
    )
    assert fields(child, "applied", "revision", "pts", "applies") == [
        (1, START, "live"),
        (2, START + 10 * FRAME, "warm"),
        (3, START + 20 * FRAME, "reload"),
        (4, START + 30 * FRAME, "live"),
    ]


@pytest.mark.parametrize("change", [{"style": "silent"}, {"model": "silent"}])
def test_a_stream_that_ends_does_not_wait_for_what_is_made_beside_it(change: dict[str, str]) -> None:
    with engine(PIPELINES) as child:
        child.open("moody", live=True)
        with playing(child):
            child.until(lambda one: isinstance(one, Media))
            child.say("update", revision=2, patch=change, apply_at_pts=0)
            child.until_said("loading")
            begun_s = time.monotonic()
            child.close()
        assert time.monotonic() - begun_s < 5  # of the minute that it would take
        assert not child.box.moments(0)
        child.open("moody", params={"level": 50})
        through(child, video(3))
        assert list(levels(child).values())[-3:] == pytest.approx([50] * 3, abs=4)


def test_live_delivery_goes_on_while_a_warm_value_is_prepared_and_takes_live_ones(child: EngineChild) -> None:
    child.open("moody", live=True)
    with playing(child):
        child.until(lambda one: isinstance(one, Media))
        child.say("update", revision=2, patch={"style": "slow"}, apply_at_pts=0)
        child.say("update", revision=3, patch={"level": 70}, apply_at_pts=0)
        child.until_said("applied")
        child.until(lambda one: getattr(one, "fields", {}).get("revision") == 2)
        child.until(lambda one: isinstance(one, Media))
    applied = {
        revision: (pts, how) for revision, pts, how in fields(child, "applied", "revision", "pts", "applies")
    }
    assert (applied[2][1], applied[3][1]) == ("warm", "live")
    between = [one for one in child.media() if applied[3][0] <= one.pts < applied[2][0]]
    assert len(between) > 10  # of the 36 that come in the meantime
    assert applied[3][0] < applied[2][0]


def test_live_delivery_goes_on_while_another_instance_loads_and_clients_see_how_far_it_is(
    child: EngineChild,
) -> None:
    child.open("moody", live=True)
    with playing(child):
        child.until(lambda one: isinstance(one, Media))
        child.say("update", revision=2, patch={"model": "slow"}, apply_at_pts=0)
        began_s = time.monotonic()
        child.until(lambda one: getattr(one, "fields", {}).get("revision") == 2)
        took_s = time.monotonic() - began_s
    told = [one for one in child.messages("loading") if one.slot == 0]
    assert {(one.fields["why"], one.fields["beside"]) for one in told} == {("reload", True)}
    percents = [one.fields["percent"] for one in told]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert {"weights"} <= {one.fields["stage"] for one in told}
    assert len(told) <= 2 + took_s / 0.2 + 1  # five a second at most, and its ends
    first, last = child.said.index(told[0]), child.said.index(told[-1])
    assert len([one for one in child.said[first:last] if isinstance(one, Media)]) > 10


@pytest.mark.parametrize(
    ("patch", "field", "reason"),
    [
        ({"style": "refused"}, "params.style", "param_refused"),
        ({"style": "raises"}, "", "poisoned_param"),
        ({"style": "unadoptable"}, "", "poisoned_param"),
        ({"model": "refused"}, "params.model", "param_refused"),
        ({"model": "raises"}, "", "poisoned_param"),
        ({"model": "exhausts"}, "", "out_of_memory"),
    ],
)
@pytest.mark.parametrize("live", [True, False], ids=["live", "complete"])
def test_a_value_that_cannot_be_had_is_refused_and_later_ones_are_shown(
    child: EngineChild, patch: dict[str, Any], field: str, reason: str, live: bool
) -> None:
    child.open("moody", live=live)
    sent = video(400)
    child.send(sent[0])
    child.until(lambda one: isinstance(one, Media))
    child.say("update", revision=2, patch=patch, apply_at_pts=0)
    for packet in sent[1:]:
        child.send(packet)
        time.sleep(0.005)
        if packet is sent[20]:
            child.say("update", revision=3, patch={"level": 100}, apply_at_pts=0)
            break
    child.until_said("refused")
    for packet in sent[21:40]:
        child.send(packet)
        time.sleep(0.005)
    child.say("end_of_input")
    child.until_said("finished")
    assert fields(child, "refused", "revision", "field", "reason") == [(2, field, reason)]
    assert [one[0] for one in fields(child, "applied", "revision")] == [1, 3]
    shown = levels(child)
    assert shown[0] == pytest.approx(30, abs=4)
    assert shown[39] == pytest.approx(100, abs=4)
    assert set(shown) == set(range(40)) or live
    (problem,) = [one.fields for one in child.messages("problem")]
    assert problem["stage"] in {"load", "prepare", "adopt"}


def test_a_value_that_its_first_picture_cannot_take_is_taken_back(child: EngineChild) -> None:
    child.open("moody")
    through(child, video(40), {"level": 13}, {"style": "bright"})
    assert fields(child, "refused", "revision", "reason", "message") == [
        (2, "poisoned_param", "ValueError: 13 is bad luck")
    ]
    shown = levels(child)
    assert sorted(set(range(40)) - set(shown)) == [10, 11, 12]  # held: what came in is not shown either
    assert [shown[number] for number in (9, 13, 19, 20, 39)] == pytest.approx([30, 30, 30, 80, 80], abs=4)
    assert fields(child, "problem", "stage", "kind", "error", "message", "frame", "pts", "action") == [
        ("process", "pipeline_error", "ValueError", "13 is bad luck", 11, START + 10 * FRAME, "held"),
        ("process", "poisoned_param", "ValueError", "13 is bad luck", 13, START + 12 * FRAME, "rolled_back"),
    ]
    assert child.messages("stats")[-1].fields["dropped"] == 3


def test_a_pipeline_that_names_the_parameter_loses_one_picture(child: EngineChild) -> None:
    child.open("moody")
    through(child, video(30), {"mishap": "refuses"})
    assert fields(child, "refused", "revision", "field", "reason") == [(2, "params.mishap", "param_refused")]
    assert set(range(30)) - set(levels(child)) == {10}


def test_want_of_memory_that_freeing_helps_is_not_seen(child: EngineChild) -> None:
    child.open("moody", params={"mishap": "exhausts once"})
    through(child, video(20))
    assert len(levels(child)) == 20
    assert child.messages("problem") == []


@pytest.mark.parametrize(
    ("mishap", "reason"),
    [
        ("raises", "pipeline_failed"),
        ("exhausts", "out_of_memory"),
        ("exits", "pipeline_failed"),
        ("refuses", "params_refused"),
    ],
)
def test_what_never_worked_ends_the_stream_after_another_load(
    child: EngineChild, mishap: str, reason: str
) -> None:
    child.open("moody", params={"mishap": mishap})
    child.send(*video(12))
    failed = child.until_said("failed")
    assert failed.fields["reason"] == reason
    assert [one[0] for one in fields(child, "problem", "action")] == ["held", "reloading", "ended"] or [
        one[0] for one in fields(child, "problem", "action")
    ] == ["held", "reloading", "held", "ended"]
    assert ("restart", 100) in fields(child, "loading", "why", "percent")
    child.close()
    child.said.clear()
    child.open("moody")  # the engine is as good as before
    through(child, video(3))
    assert len(levels(child)) == 3


@pytest.mark.parametrize("params", [{"model": "refused"}, {"style": "refused"}])
def test_values_that_a_stream_begins_with_and_that_cannot_be_had_end_it_with_words(
    child: EngineChild, params: dict[str, Any]
) -> None:
    child.open("moody", params=params)
    child.send(*video(3))
    failed = child.until_said("failed")
    assert failed.fields["reason"] == "params_refused"
    assert "is not to be had here" in failed.fields["message"]


def test_an_engine_that_takes_over_shows_what_was_not_shown_and_says_nothing_twice(
    child: EngineChild,
) -> None:
    child.open(
        "counting",
        revision=4,
        params={"snapshots": "none"},
        scheduled=[{"revision": 5, "patch": {"dies_at": 0}, "apply_at_pts": 0}],
        shown={"5": START},
        resumed=True,
        after_pts=START + 19 * FRAME,
        snapshot="MTIz",  # 123
    )
    through(child, video(30))
    assert [one.pts for one in child.media()] == [START + number * FRAME for number in range(20, 30)]
    assert child.media()[0].keyframe
    assert fields(child, "applied", "revision") == []
    assert fields(child, "said", "text")[0] == ('{"seen":124}',)


def test_a_snapshot_that_a_pipeline_cannot_use_costs_nothing(child: EngineChild) -> None:
    child.open("counting", resumed=True, snapshot="eA==")
    through(child, video(3))
    assert len(child.media()) == 3
    assert child.messages("problem") == []


def test_what_a_pipeline_remembers_is_sent_about_once_a_second(child: EngineChild) -> None:
    child.open("counting", live=True)
    with playing(child, fps=30):
        child.until(lambda one: isinstance(one, Snapshot))
        child.until(lambda one: isinstance(one, Snapshot))
    snapshots = [one for one in child.said if isinstance(one, Snapshot)]
    assert 20 < int(snapshots[1].data) - int(snapshots[0].data) <= 40


@pytest.mark.parametrize(
    ("kind", "why"), [("large", "too_large"), ("slow", "too_slow"), ("raises", "failed")]
)
def test_a_snapshot_that_cannot_be_kept_is_counted_and_asked_for_more_rarely(
    child: EngineChild, kind: str, why: str
) -> None:
    child.open("counting", live=True, params={"snapshots": kind})
    with playing(child, fps=30):
        until_s = time.monotonic() + 4
        child.until(lambda _: time.monotonic() > until_s)
    assert child.messages("stats")[-1].fields["snapshots_dropped"] in ({why: 1}, {why: 2})
    assert [one for one in child.said if isinstance(one, Snapshot)] == []
    assert len(child.media()) > 60


def test_the_black_box_says_what_a_slot_is_at() -> None:
    with engine("tests.support.pipelines:Moody", slots=2) as child:
        child.open("moody", slot=1)
        packets = [Media(1, one.pts, one.dts, one.keyframe, one.data) for one in video(20)]
        child.send(*packets[:10])
        child.until(lambda one: isinstance(one, Media) and one.pts == packets[9].pts)
        assert child.box.moments(1) == ()
        child.say("update", 1, revision=7, patch={"mishap": "hangs"}, apply_at_pts=0)
        child.send(*packets[10:])
        wait_for(lambda: child.box.moments(1) != ())
        (moment,) = child.box.moments(1)
        found = moment.stage.word, moment.newest, moment.frame, moment.pts
        assert found == ("process", 7, 11, packets[10].pts)
        assert 0 <= time.monotonic() - moment.since_s < 5
        assert child.box.moments(0) == ()


def test_after_a_death_what_is_still_to_be_shown_is_tried_one_after_the_other(child: EngineChild) -> None:
    patches = [{"level": 50}, {"style": "bright"}, {"level": 60}]
    scheduled = [
        {"revision": revision, "patch": patch, "apply_at_pts": 0} for revision, patch in enumerate(patches, 2)
    ]
    child.open("moody", scheduled=scheduled, resumed=True, cautious=True)
    through(child, video(100))
    applied = fields(child, "applied", "revision", "pts")
    assert [revision for revision, _ in applied] == [2, 4, 3]
    assert [(pts - START) // FRAME for _, pts in applied] == [0, PROBATION, 2 * PROBATION]
    assert levels(child)[99] == pytest.approx(110, abs=4)


def test_where_two_do_not_fit_the_old_instance_goes_before_the_new_one_loads() -> None:
    with engine("tests.support.pipelines:Moody", memory_mb=1) as child:
        child.open("moody", live=True)
        with playing(child):
            child.until(lambda one: isinstance(one, Media))
            child.say("update", revision=2, patch={"model": "slow"}, apply_at_pts=0)
            child.until(lambda one: getattr(one, "fields", {}).get("percent") == 0)
            first = len(child.said)
            child.until(lambda one: getattr(one, "fields", {}).get("percent") == 100)
            last = len(child.said)
            child.until(lambda one: getattr(one, "fields", {}).get("revision") == 2)
        told = [one.fields for one in child.messages("loading") if one.slot == 0]
        assert {(one["why"], one["beside"]) for one in told} == {("reload", False)}
        assert len([one for one in child.said[first:last] if isinstance(one, Media)]) <= 3  # on their way
        assert fields(child, "applied", "revision", "applies")[-1] == (2, "reload")


def test_where_two_do_not_fit_and_the_new_one_cannot_be_had_the_old_one_is_loaded_anew() -> None:
    with engine("tests.support.pipelines:Moody", memory_mb=1) as child:
        child.open("moody", params={"level": 60})
        through(child, video(40), {"model": "refused"}, {"level": 90})
        assert fields(child, "refused", "revision", "field", "reason") == [
            (2, "params.model", "param_refused")
        ]
        shown = levels(child)
        assert [shown[number] for number in range(40)] == pytest.approx([60] * 20 + [90] * 20, abs=4)
        assert fields(child, "problem", "stage", "action") == [("load", "reloading")]


def test_what_has_proved_itself_is_told_so_that_nobody_keeps_what_was_before(child: EngineChild) -> None:
    child.open("moody")
    through(child, video(60), {"level": 50}, {"level": 60})
    assert fields(child, "settled", "keep") == [([3],), ([],)]


def test_a_pipeline_that_waits_for_sound_which_there_is_not_keeps_no_revision_on_probation() -> None:
    with engine("tests.support.pipelines:Negative") as child:
        child.open("negative")
        through(child, video(60), {"gain": 0.5})
        assert fields(child, "settled", "keep") == [([],)]


def test_a_stream_that_waits_for_an_instance_that_loads_is_told_so_and_so_is_the_black_box() -> None:
    with engine("tests.support.pipelines:Moody", here={"moody": {"model": "slow"}}) as child:
        child.open("moody")
        child.close()  # its instance has served, and another one loads for the next stream
        child.said.clear()
        child.open("moody")
        wait_for(lambda: [one.stage.word for one in child.box.moments(0)] == ["load"])
        child.send(*video(3))
        child.say("end_of_input")
        child.until_said("finished")
        told = fields(child, "loading", "why", "percent", "beside")
        assert {(why, beside) for why, _, beside in told} == {("start", False)}
        assert told[-1][1] == 100
        assert child.box.moments(0) == ()
