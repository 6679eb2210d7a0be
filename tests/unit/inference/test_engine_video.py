"""An engine whose source changes: what comes out is as the source is, from a key frame on, and all there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from services.common.media import h264
from services.inference.engine import stream
from services.inference.engine.pictures import SOFTWARE, BitRates
from services.inference.engine.pipelines.passthrough import Passthrough
from services.inference.engine.worker import Worker
from services.inference.packets import Media, Message, Packet
from services.inference.params import Fold
from tests.support.awkward import take
from tests.support.clips import BLUE, RED
from tests.support.engine import FRAME, START, EngineChild, decoded, engine, video, workshop

SECONDS = 2 * 90_000  # between key frames, at most


@pytest.fixture(scope="module")
def shared() -> Iterator[EngineChild]:
    with engine("passthrough,effects,tests.support.pipelines:Grey") as child:
        yield child


@pytest.fixture
def child(shared: EngineChild) -> Iterator[EngineChild]:
    shared.said.clear()
    yield shared
    shared.close_all()


def through(child: EngineChild, sent: list[Media], pipeline: str = "passthrough") -> list[Media]:
    """All of `sent` through a pipeline; fails where a decoder of what comes out would stumble."""
    child.open(pipeline)
    for packet in sent:
        child.send(packet)
    child.say("end_of_input")
    child.until_said("finished")
    back = child.media()
    assert len(decoded(back)) == len(back)
    assert child.messages("stats")[-1].fields["undecodable"] == 0
    return back


def sizes(packets: list[Media]) -> list[tuple[int, int]]:
    """Of each picture, as its own SPS says: those of key frames, in order."""
    return [h264.picture_size(one.data) for one in packets if one.keyframe]


def times(count: int, *, after: int = 0, step: int = FRAME) -> range:
    return range(START + after, START + after + count * step, step)


def test_a_source_that_changes_its_size_and_turns_loses_nothing(child: EngineChild) -> None:
    shapes = [(512, 512), (384, 384), (640, 360), (360, 640), (512, 512)]
    sent = [
        packet
        for place, shape in enumerate(shapes)
        for packet in take(times(20, after=place * 20 * FRAME), size=shape)
    ]
    back = through(child, sent)
    assert [one.pts for one in back] == list(times(100))
    assert sizes(back) == [*shapes[:3], (360, 640), (512, 512)]
    assert [index for index, one in enumerate(back) if one.keyframe] == [0, 20, 40, 60, 80]
    for index, frame in enumerate(decoded(back)):
        rgb = frame.rgb()
        assert rgb.shape[:2] == shapes[index // 20][::-1]
        above, below = rgb[: rgb.shape[0] // 2 - 8, 90:], rgb[rgb.shape[0] // 2 + 8 :, 90:]
        assert above.mean(axis=(0, 1)) == pytest.approx(RED, abs=12)
        assert below.mean(axis=(0, 1)) == pytest.approx(BLUE, abs=12)


def test_a_source_with_b_frames_that_changes_its_size_loses_nothing(child: EngineChild) -> None:
    reordered = {"preset": "superfast", "bf": "2", "b-adapt": "0"}
    shapes = [(320, 240), (240, 320), (320, 240)]
    sent = []
    for place, shape in enumerate(shapes):
        # libx264 gives the first of such a stream a DTS before it: an encoder that begins anew leaves room.
        sent += take(times(30, after=place * 40 * FRAME), size=shape, options=reordered)
    back = through(child, sent)
    assert [one.pts for one in back] == [
        pts for place in range(3) for pts in times(30, after=place * 40 * FRAME)
    ]
    assert sizes(back)[:1] == [(320, 240)]
    assert list(dict.fromkeys(sizes(back))) == [(320, 240), (240, 320)]


@pytest.mark.parametrize(
    ("size", "pixels", "shown"),
    [
        ((513, 511), "yuv444p", (512, 510)),
        ((514, 510), "yuv422p", (514, 510)),
        ((64, 64), "yuv420p", (64, 64)),
        ((16, 16), "yuv420p", (16, 16)),
        ((1920, 1080), "yuv420p", (1920, 1080)),
        ((1080, 1920), "yuv420p", (1080, 1920)),
        ((854, 480), "yuvj420p", (854, 480)),
    ],
)
def test_any_size_and_sampling_comes_back_as_h264_for_any_player(
    child: EngineChild, size: tuple[int, int], pixels: str, shown: tuple[int, int]
) -> None:
    back = through(child, take(times(6), size=size, pixels=pixels))
    assert sizes(back) == [shown]
    assert all(frame.frame.format.name == "yuv420p" for frame in decoded(back))


def test_a_look_survives_sources_that_change(child: EngineChild) -> None:
    shapes = [(96, 64), (63, 97), (16, 16)]
    sent = [
        packet
        for place, shape in enumerate(shapes)
        for packet in take(times(5, after=place * 5 * FRAME), size=shape, pixels="yuv444p")
    ]
    assert sizes(through(child, sent, "effects")) == [(96, 64), (62, 96), (16, 16)]


@pytest.mark.parametrize("paces", [(30, 10, 60), (60, 1, 30), (24, 15, 2)])
def test_a_source_that_changes_its_pace_keeps_its_key_frames(
    child: EngineChild, paces: tuple[int, ...]
) -> None:
    at: list[int] = []
    for fps in paces:
        begun = at[-1] + 90_000 // fps if at else START
        at += range(begun, begun + 5 * 90_000, 90_000 // fps)
    back = through(child, take(at, size=(64, 64)))
    assert [one.pts for one in back] == at
    found = [one.pts for one in back if one.keyframe]
    slowest = 90_000 // min(paces)  # the first picture of a slower pace is later than could be known
    assert max(after - before for before, after in pairwise(found)) <= SECONDS + slowest
    assert len(found) >= (at[-1] - START) // SECONDS


def test_a_key_frame_is_the_next_picture_after_it_was_asked_for(child: EngineChild) -> None:
    child.open("passthrough", live=True)
    sent = video(90, every=1000)
    took_s = []
    for index, packet in enumerate(sent):
        asked = index in {20, 40, 70}
        if asked:
            child.say("keyframe")
        sent_s = time.monotonic()
        child.send(packet)
        back = child.until(lambda one: isinstance(one, Media))
        took_s += [time.monotonic() - sent_s] if asked else []
        assert isinstance(back, Media)
        assert (back.pts, back.keyframe) == (packet.pts, asked or index == 0)
    assert min(took_s) < 0.1  # that of the quickest, for the machine may be busy


def test_a_picture_that_h264_cannot_have_is_the_pipelines_fault(child: EngineChild) -> None:
    child.open("grey", params={"scale": 4})
    child.send(*take(times(10), size=(4100, 16)))
    failed = child.until_said("failed")
    assert failed.fields["reason"] == "pipeline_failed"
    assert "16400x64" in failed.fields["message"]


def test_a_pause_between_two_damaged_pictures_is_no_undecodable_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "UNDECODABLE_AFTER_S", 0.2)
    monkeypatch.setattr(stream, "NO_KEYFRAME_AFTER_S", 0.2)
    monkeypatch.setattr(stream, "PAUSE_S", 0.05)
    said: list[Packet] = []
    over = threading.Event()
    with workshop() as with_what:
        one = stream.Stream(
            0,
            Passthrough,
            stream.Opening(Fold.starting(1, {}, []), live=True),
            complete={},
            workshop=with_what,
            bit_rates=BitRates(1, 10**7),
            equipment=SOFTWARE,
            send=said.append,
            over=lambda _: over.set(),
        )
        Worker(Passthrough, {}, with_what, why="start", tell=print).serve(one)
        for _ in range(2):
            one.take(Media(0, START, START, False, b"\0\0\0\x01\x41garbage"))
            time.sleep(0.5)
        for packet in video(3, start=START + 300 * 90_000):
            one.take(packet)
        one.finish()
        assert over.wait(10)
        one.join()
    assert [packet.type for packet in said if isinstance(packet, Message)][-1] == "finished"
    assert any(isinstance(packet, Media) for packet in said)
