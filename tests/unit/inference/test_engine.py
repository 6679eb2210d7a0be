from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.inference.blackbox import BlackBox
from services.inference.packets import Media
from tests.support.engine import FRAME, START, EngineChild, command, decoded, engine, video, wait_for

PIPELINES = ",".join(
    ["passthrough", *(f"tests.support.pipelines:{name}" for name in ("Grey", "Slow", "Broken", "Odd"))]
)


@pytest.fixture(scope="module")
def shared() -> Iterator[EngineChild]:
    with engine(PIPELINES, slots=2) as child:
        yield child


@pytest.fixture
def child(shared: EngineChild) -> Iterator[EngineChild]:
    shared.said.clear()
    yield shared
    shared.close_all()


def levels(packets: list[Media]) -> list[int]:
    return [round(float(np.mean(frame.rgb()))) for frame in decoded(packets)]


def play(child: EngineChild, packets: list[Media], *, fps: float) -> None:
    for packet in packets:
        child.send(packet)
        time.sleep(1 / fps)


def test_complete_delivery_returns_every_frame_at_its_time(child: EngineChild) -> None:
    sent = video(100)
    child.open("passthrough")
    child.send(*sent)
    child.say("end_of_input")
    child.until_said("finished")
    assert [one.pts for one in child.media()] == [one.pts for one in sent]
    assert sum(int(one.fields["packets"]) for one in child.messages("taken")) == len(sent)
    back = decoded(child.media())
    for before, after in zip(decoded(sent), back, strict=True):
        assert float(np.mean(np.abs(before.rgb().astype(int) - after.rgb().astype(int)))) < 8
    stats = child.messages("stats")[-1].fields
    assert (stats["decoded"], stats["inferred"], stats["encoded"]) == (100, 100, 100)
    assert stats["dropped"] == 0
    assert stats["infer_ms"] > 0


def test_every_picture_says_when_it_passed_each_stage(child: EngineChild) -> None:
    sent = video(40)
    before_s = time.monotonic()
    child.open("slow", params={"ms": 5})
    child.send(*sent)
    child.say("end_of_input")
    child.until_said("finished")
    after_s = time.monotonic()
    stamps = [stamp for one in child.messages("stats") for stamp in one.fields["stamps"]]
    assert [pts for pts, *_ in stamps] == [one.pts for one in sent]
    for _, *moments_s in stamps:
        assert moments_s == sorted(moments_s)
        assert before_s <= moments_s[0]
        assert moments_s[-1] <= after_s
        _, taken_s, inferred_s, _ = moments_s
        assert inferred_s - taken_s >= 0.005


def test_key_frames_come_first_each_two_seconds_and_when_asked_for(child: EngineChild) -> None:
    child.open("passthrough")
    sent = video(140, every=1000)
    child.send(*sent[:30])
    child.until(lambda one: isinstance(one, Media) and one.pts == sent[29].pts)
    child.say("keyframe")
    child.send(*sent[30:])
    child.say("end_of_input")
    child.until_said("finished")
    keys = [(one.pts - START) // FRAME for one in child.media() if one.keyframe]
    assert keys == [0, 30, 90]


def test_what_is_only_to_be_decoded_is_not_shown_and_what_follows_refers_to_it(child: EngineChild) -> None:
    child.open("passthrough", live=True, after_pts=START + 5 * FRAME)
    sent = video(60, every=1000)
    child.send(*(replace(one, only_decode=True) for one in sent[:40]))
    for one in sent[40:]:
        child.send(one)
        child.until(lambda back, one=one: isinstance(back, Media) and back.pts == one.pts)  # type: ignore[misc]
    child.close()
    assert [one.pts for one in child.media()] == [one.pts for one in sent[40:]]
    assert child.media()[0].keyframe
    assert [frame.rgb().mean() for frame in decoded(child.media())] == pytest.approx(
        [frame.rgb().mean() for frame in decoded(sent)[40:]], abs=2
    )


def test_live_delivery_drops_what_a_slow_pipeline_cannot_take_and_counts_it(child: EngineChild) -> None:
    child.open("slow", live=True, params={"ms": 100})
    sent = video(60)
    playing = threading.Thread(target=play, args=(child, sent), kwargs={"fps": 60})
    playing.start()
    child.until(lambda one: isinstance(one, Media) and one.pts >= sent[-5].pts)
    playing.join()
    child.say("end_of_input")
    child.until_said("finished")
    stats = child.messages("stats")[-1].fields
    assert stats["decoded"] == 60
    assert 5 <= stats["inferred"] <= 30
    assert stats["dropped"] == stats["decoded"] - stats["inferred"]
    times = [one.pts for one in child.media()]
    assert times == sorted(times)
    assert len(times) == stats["inferred"]
    assert times[-1] == sent[-1].pts  # the newest wins


def test_a_scheduled_parameter_is_in_effect_exactly_from_its_frame_on(child: EngineChild) -> None:
    at = START + 20 * FRAME
    scheduled = [{"revision": 3, "patch": {"level": 200}, "apply_at_pts": START + 40 * FRAME}]
    child.open("grey", revision=2, params={"level": 50}, scheduled=scheduled)
    child.say("update", revision=4, patch={"level": 100}, apply_at_pts=at)
    child.say("update", revision=4, patch={"level": 100}, apply_at_pts=at)
    child.send(*video(60))
    child.say("end_of_input")
    child.until_said("finished")
    shown = levels(child.media())
    assert shown[:20] == pytest.approx([50] * 20, abs=4)
    assert shown[20:40] == pytest.approx([100] * 20, abs=4)
    assert shown[40:] == pytest.approx([200] * 20, abs=4)
    applied = [(one.fields["revision"], one.fields["pts"]) for one in child.messages("applied")]
    assert applied == [(2, START), (4, at), (3, START + 40 * FRAME)]


def test_an_update_is_acknowledged_after_the_first_frame_that_shows_it(child: EngineChild) -> None:
    child.open("grey")
    sent = video(30)
    child.send(*sent[:10])
    child.until(lambda one: isinstance(one, Media) and one.pts == sent[9].pts)
    child.say("update", revision=2, patch={"boost": 30}, apply_at_pts=0)
    child.send(*sent[10:])
    child.say("end_of_input")
    child.until_said("finished")
    acknowledged = child.messages("applied")[-1]
    assert acknowledged.fields == {"revision": 2, "pts": sent[10].pts, "applies": "reload"}
    place = child.said.index(acknowledged)
    shown = [one.pts for one in child.said[:place] if isinstance(one, Media)]
    assert shown[-1] == sent[10].pts
    assert levels(child.media())[-1] == pytest.approx(70, abs=4)


def test_the_size_of_pictures_may_change_in_the_stream(child: EngineChild) -> None:
    child.open("passthrough")
    small, large = video(20), video(20, size=(320, 176), start=START + 20 * FRAME)
    child.send(*small, *large)
    child.say("end_of_input")
    child.until_said("finished")
    sizes = [frame.rgb().shape[:2] for frame in decoded(child.media())]
    assert sizes == [(96, 128)] * 20 + [(176, 320)] * 20
    assert [one.keyframe for one in child.media()].index(True, 1) == 20


def test_a_pipeline_may_change_the_size_too(child: EngineChild) -> None:
    child.open("grey")
    child.say("update", revision=2, patch={"scale": 2}, apply_at_pts=START + 5 * FRAME)
    child.send(*video(10))
    child.say("end_of_input")
    child.until_said("finished")
    sizes = [frame.rgb().shape[:2] for frame in decoded(child.media())]
    assert sizes == [(96, 128)] * 5 + [(192, 256)] * 5


def test_odd_sides_are_cropped(child: EngineChild) -> None:
    child.open("odd")
    child.send(*video(5))
    child.say("end_of_input")
    child.until_said("finished")
    assert {frame.rgb().shape[:2] for frame in decoded(child.media())} == {(94, 126)}


def test_a_pipeline_that_goes_on_raising_ends_its_session_and_no_other(child: EngineChild) -> None:
    child.open("broken", slot=0)
    child.open("grey", slot=1)
    for packet in video(30):
        child.send(packet, Media(1, packet.pts, packet.dts, packet.keyframe, packet.data))
    child.say("end_of_input", slot=1)
    child.until_said("finished", slot=1)
    (failed,) = child.messages("failed") or (child.until_said("failed"),)
    assert failed.slot == 0
    assert failed.fields["reason"] == "pipeline_failed"
    assert failed.fields["message"] == "RuntimeError: the tenth frame (after 18 frames)"
    assert len([one for one in child.media() if one.slot == 1]) == 30
    if not any(one.slot == 0 for one in child.messages("closed")):
        child.until_said("closed", slot=0)
    child.open("broken", slot=0)  # its slot is of use again
    child.send(*video(5))
    child.until(lambda one: isinstance(one, Media) and one.slot == 0)


def test_input_that_nothing_decodes_is_a_fault(child: EngineChild) -> None:
    child.open("passthrough")
    garbage = b"\0\0\0\x01\x65" + os.urandom(500)
    playing = threading.Thread(
        target=play,
        args=(child, [Media(0, n * FRAME, n * FRAME, True, garbage) for n in range(65)]),
        kwargs={"fps": 12},
    )
    playing.start()
    failed = child.until_said("failed")
    playing.join()
    assert failed.fields["reason"] == "input_undecodable"
    assert failed.fields["message"] == "no picture in 5 s of video"


def test_a_few_bad_packets_are_counted_and_survived(child: EngineChild) -> None:
    child.open("passthrough")
    sent = video(30, every=10)
    for place in (3, 4, 5):
        sent[place] = Media(0, sent[place].pts, sent[place].dts, False, b"\0\0\0\x01\x41garbage")
    child.send(*sent)
    child.say("end_of_input")
    child.until_said("finished")
    assert child.messages("stats")[-1].fields["undecodable"] >= 3
    assert [one.pts for one in child.media()][-20:] == [one.pts for one in sent[10:]]


def test_a_close_gives_the_slot_back_whatever_is_inside(child: EngineChild) -> None:
    child.open("slow", params={"ms": 50})
    child.send(*video(16))
    child.until(lambda one: isinstance(one, Media))
    child.say("close")
    child.until_said("closed")
    sent = len(child.media())
    assert sent < 16
    child.open("slow", params={"ms": 0})
    child.send(*video(3))
    child.say("end_of_input")
    child.until_said("finished")
    assert len(child.media()) == sent + 3


def test_the_engine_leaves_when_its_pipe_is_closed() -> None:
    with engine("passthrough") as child:
        child.open("passthrough")
        child.send(*video(10))
        child.hang_up()
        assert child.process.wait(5) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_engine_leaves_signals_to_its_supervisor(child: EngineChild, number: signal.Signals) -> None:
    child.process.send_signal(number)
    child.open("passthrough")
    child.send(*video(2))
    child.until(lambda one: isinstance(one, Media))


def test_a_pipeline_that_is_not_there_ends_the_engine_with_a_sentence() -> None:
    for name, said in (("nothing", "no pipeline 'nothing'"), ("json:loads", "no class of a Pipeline")):
        ours, theirs = socket.socketpair()
        box, box_file = BlackBox.make(1)
        with ours, theirs:
            ended = subprocess.run(
                command(theirs.fileno(), box_file, name, here={}),
                check=False,
                capture_output=True,
                text=True,
                pass_fds=[theirs.fileno(), box_file],
            )
        os.close(box_file)
        box.close()
        assert ended.returncode == 1
        assert said in ended.stderr


def test_the_engine_dies_with_its_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    wait_for(lambda: not alive(pid))


PARENT = """
import time
from tests.support.engine import engine
with engine("tests.support.pipelines:Slow") as child:
    child.open("slow", params={"ms": 60_000})
    print(child.process.pid, flush=True)
    time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
