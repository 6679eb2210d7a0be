"""Sound through a real engine: at its time, in order, and whatever happens to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from services.common.media.mpegts import CLOCK_HZ, Codec
from services.common.media.sound import RATE, AudioDecoder
from services.inference.packets import Media, Message, Sound
from tests.support.engine import FRAME, START, EngineChild, chirp, decoded, engine, mixed, sound, video

PIPELINES = ",".join(
    ["passthrough", *(f"tests.support.pipelines:{name}" for name in ("Negative", "Ordered", "Curt"))]
)
CODECS = pytest.mark.parametrize("codec", [Codec.OPUS, Codec.AAC])


@pytest.fixture(scope="module")
def shared() -> Iterator[EngineChild]:
    with engine(PIPELINES, slots=1) as child:
        yield child


@pytest.fixture
def child(shared: EngineChild) -> Iterator[EngineChild]:
    shared.said.clear()
    yield shared
    shared.close_all()


def heard(packets: Sequence[Sound], seconds: float, origin: int = START) -> npt.NDArray[np.float32]:
    """The left channel, each sample where its time stamp says."""
    decoder = AudioDecoder(packets[0].codec)
    out = np.zeros(round(seconds * RATE), np.float32)
    for packet in packets:
        for part in decoder.decode(packet.data, packet.pts):
            first = round((part.pts - origin) * RATE / CLOCK_HZ)
            begin, end = max(first, 0), min(first + part.samples.shape[1], len(out))
            if begin < end:
                out[begin:end] = part.samples[0, begin - first : end - first]
    assert decoder.errors == 0
    return out


def shift_ms(late: npt.NDArray[np.float32], said: npt.NDArray[np.float32]) -> float:
    size = 1 << (2 * len(said)).bit_length()
    spectrum = np.fft.rfft(late, size) * np.conj(np.fft.rfft(said, size))
    lag = int(np.argmax(np.fft.irfft(spectrum, size)))
    return (lag - size if lag > size // 2 else lag) * 1000 / RATE


@CODECS
def test_sound_and_pictures_come_back_processed_and_at_their_times(child: EngineChild, codec: Codec) -> None:
    pictures = video(90)
    child.open("negative")
    child.send(*mixed(pictures, sound(3, codec)))
    child.say("end_of_input")
    child.until_said("finished")
    assert [one.pts for one in child.media()] == [one.pts for one in pictures]
    before, after = decoded(pictures)[45], decoded(child.media())[45]
    assert float(np.mean(np.abs(255 - before.rgb().astype(int) - after.rgb().astype(int)))) < 8
    back = child.sound()
    assert {one.codec for one in back} == {codec}
    assert all(later.pts > earlier.pts for earlier, later in pairwise(back))
    said = chirp(3)[0]
    result = heard(back, 3)
    assert abs(shift_ms(result, said)) <= 1
    inner = slice(RATE // 2, -RATE // 2)
    level = np.sqrt(np.mean(result[inner] ** 2) / np.mean(said[inner] ** 2))
    assert level == pytest.approx(0.25, rel=0.15)
    assert np.corrcoef(result[-RATE // 4 :], said[-RATE // 4 :])[0, 1] > 0.8, "to the end"
    assert child.messages("stats")[-1].fields["dropped_sounds"] == 0
    assert sum(int(one.fields["packets"]) for one in child.messages("taken")) == 90 + len(sound(3, codec))


@pytest.mark.parametrize("lump", [1, 8], ids=["even", "in lumps"])
def test_a_pipeline_gets_sound_and_pictures_in_order_on_its_own_thread(child: EngineChild, lump: int) -> None:
    """Lumps of eight packets are what libav's muxer makes: sound comes after the picture of its time."""
    sounds = sound(3)
    timed: list[tuple[int, Media | Sound]] = [(one.pts, one) for one in video(90)]
    for first in range(0, len(sounds), lump):
        together = sounds[first : first + lump]
        timed += [(together[-1].pts, one) for one in together]
    sent = sorted(timed, key=lambda item: item[0])
    child.open("ordered")
    child.send(*(one for _, one in sent))
    child.say("end_of_input")
    child.until(lambda one: isinstance(one, Message) and one.type in {"finished", "failed"})
    assert child.messages("failed") == []
    assert len(child.media()) == 90
    assert abs(shift_ms(heard(child.sound(), 3), chirp(3)[0])) <= 1


def test_live_sound_that_comes_alone_goes_through_alone(child: EngineChild) -> None:
    child.open("negative", live=True)
    child.send(video(1)[0])
    child.until(lambda one: isinstance(one, Media))
    sounds = sound(1)
    child.send(*sounds[:16])
    child.until(lambda one: isinstance(one, Sound))
    assert len(child.media()) == 1


def test_a_pipeline_that_is_busy_for_long_leaves_a_gap_in_the_sound_and_no_shift(child: EngineChild) -> None:
    child.open("negative", live=True, params={"gain": 1.0, "ms": 0})
    child.say("update", revision=2, patch={"ms": 3000}, apply_at_pts=START + 30 * FRAME)
    child.say("update", revision=3, patch={"ms": 0}, apply_at_pts=START + 31 * FRAME)
    sent = mixed(video(180), sound(6))
    playing = threading.Thread(target=play, args=(child, sent))
    playing.start()
    child.until(lambda one: isinstance(one, Media) and one.pts >= START + 175 * FRAME)
    playing.join()
    child.say("end_of_input")
    child.until_said("finished")
    assert child.messages("stats")[-1].fields["dropped_sounds"] > 20
    result, said = heard(child.sound(), 6), chirp(6)[0]
    for part in (slice(RATE // 10, RATE * 9 // 10), slice(RATE * 5, RATE * 59 // 10)):
        assert abs(shift_ms(result[part], said[part])) <= 1
    assert np.abs(result).max() < 1


def play(child: EngineChild, packets: Sequence[Media | Sound]) -> None:
    """Send `packets` at their pace."""
    started_s = time.monotonic()
    for packet in packets:
        time.sleep(max(0.0, started_s + (packet.pts - START) / CLOCK_HZ - time.monotonic()))
        child.send(packet)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "TypeError: process_audio returned 959 samples for 960"),
        ({"nothing": True}, "TypeError: process_audio returned NoneType, not an AudioFrame"),
    ],
)
def test_a_pipeline_that_returns_something_else_ends_its_session_with_a_sentence(
    child: EngineChild, params: dict[str, object], said: str
) -> None:
    child.open("curt", params=params)
    child.send(*mixed(video(10), sound(0.3)))
    failed = child.until_said("failed")
    assert failed.fields["reason"] == "pipeline_failed"
    assert failed.fields["message"].startswith(said)


def test_bad_sound_is_counted_and_survived(child: EngineChild) -> None:
    child.open("negative")
    sounds = sound(2)
    sounds[20:22] = [Sound(0, Codec.OPUS, one.pts, b"\xff" * 30) for one in sounds[20:22]]
    child.send(*mixed(video(60), sounds))
    child.say("end_of_input")
    child.until_said("finished")
    assert child.messages("stats")[-1].fields["undecodable"] >= 1
    assert len(child.media()) == 60
    assert abs(shift_ms(heard(child.sound(), 2)[RATE:], chirp(2)[0][RATE:])) <= 1


def test_a_pipeline_for_sound_serves_a_stream_without_any(child: EngineChild) -> None:
    child.open("negative")
    child.send(*video(30))
    child.say("end_of_input")
    child.until_said("finished")
    assert len(child.media()) == 30
    assert child.sound() == []


def test_a_close_in_the_middle_of_sound_gives_the_slot_back(child: EngineChild) -> None:
    child.open("negative", params={"ms": 50})
    child.send(*mixed(video(8), sound(0.2)))
    child.until(lambda one: isinstance(one, Media))
    child.close()
    child.open("negative")
    child.send(*video(2))
    child.until(lambda one: isinstance(one, Media))
