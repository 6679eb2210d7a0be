from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from services.common.media import h264
from services.common.media.mpegts import CLOCK_HZ
from sluice.transform.picture import Framer, Orientation, fitted
from sluice.transform.source import Source
from sluice.transform.tally import Tally
from tests.support import clips

HD = (1920, 1080)


@pytest.mark.parametrize(
    ("size", "limit", "sent"),
    [
        ((1280, 720), HD, (1280, 720)),
        ((321, 241), HD, (320, 240)),
        ((3840, 2160), HD, (1920, 1080)),
        ((2160, 3840), HD, (1080, 1920)),
        ((4096, 1716), HD, (1920, 804)),
        ((1080, 1920), (640, 360), (360, 640)),
        ((10_000, 16), HD, (1920, 2)),
    ],
)
def test_a_picture_fits_lying_or_standing_and_has_even_sides(
    size: tuple[int, int], limit: tuple[int, int], sent: tuple[int, int]
) -> None:
    assert fitted(*size, limit) == sent


def test_every_orientation_is_its_own_inverse_or_that_of_another() -> None:
    plane = np.arange(6, dtype=np.uint8).reshape(2, 3)
    turned = {
        (transpose, x, y): Orientation(transpose, mirror_x=x, mirror_y=y).turned(plane)
        for transpose in (False, True)
        for x in (False, True)
        for y in (False, True)
    }
    assert len({(one.shape, one.tobytes()) for one in turned.values()}) == 8
    np.testing.assert_array_equal(turned[True, False, True], np.rot90(plane))
    np.testing.assert_array_equal(turned[True, True, False], np.rot90(plane, -1))
    np.testing.assert_array_equal(turned[False, True, True], np.rot90(plane, 2))


def test_a_mirrored_picture_is_mirrored_back() -> None:
    frame = clips.picture(64, 32, 0)
    upright = Framer((64, 32), Orientation(mirror_y=True), 6).picture(frame)
    pixels = upright.to_ndarray(format="rgb24")
    assert pixels[24, 32].tolist() == pytest.approx(clips.RED, abs=8)
    assert pixels[8, 32].tolist() == pytest.approx(clips.BLUE, abs=8)


def test_key_frames_come_every_second_and_there_are_no_b_frames(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "in.mp4", [number * 3000 for number in range(100)])
    with Source(path, HD) as source:
        pictures = list(source.pictures())
    assert [picture.unit.pts for picture in pictures] == [number * 3000 for number in range(100)]
    keys = [picture.unit.pts for picture in pictures if picture.unit.keyframe]
    assert keys == [0, CLOCK_HZ, 2 * CLOCK_HZ, 3 * CLOCK_HZ]
    for picture in pictures:
        assert h264.has_parameter_sets(picture.unit.data) == picture.unit.keyframe
    with av.open(str(path)) as container:
        decoder = av.CodecContext.create("h264", "r")
        context = decoder
        for picture in pictures:
            context.decode(av.Packet(picture.unit.data))
        assert isinstance(context, av.VideoCodecContext)
        assert not context.has_b_frames
        assert context.profile in {"Main", "Constrained Baseline"}
        assert container.streams.video[0].frames == source.count


def test_what_is_lost_on_the_way_is_not_seen(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "in.mp4", [0, 3600, 7200])
    with Source(path, HD) as source:
        decoder = av.CodecContext.create("h264", "r")
        assert isinstance(decoder, av.VideoCodecContext)
        sent = [frame for one in source.pictures() for frame in decoder.decode(av.Packet(one.unit.data))]
        sent += decoder.decode(None)
    with av.open(str(path)) as container:
        original = list(container.decode(container.streams.video[0]))
    for ours, theirs in zip(sent, original, strict=True):
        difference = ours.to_ndarray(format="gray").astype(float) - theirs.to_ndarray(format="gray")
        assert 10 * np.log10(255**2 / max(1e-9, float(np.mean(difference**2)))) > 38  # dB


def test_a_file_that_is_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    whole = clips.clip(tmp_path / "in.mkv", [number * 3600 for number in range(50)], codec="ffv1")
    path = tmp_path / "cut.mkv"
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 5])
    with Source(path, HD) as source:
        count = len(list(source.pictures()))
    assert 20 < count < 40


def test_damaged_packets_cost_their_pictures_only(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "in.mov", [number * 3600 for number in range(20)], codec="png")
    data = bytearray(path.read_bytes())
    place = data.find(b"\x89PNG", len(data) // 2)
    data[place : place + 4] = b"oops"
    path.write_bytes(data)
    with Source(path, HD) as source:
        pts = [one.unit.pts for one in source.pictures()]
    assert len(pts) == 19
    assert pts[-1] == 19 * 3600
    assert source.damaged == 1


def test_a_gap_is_bridged_by_the_picture_before_it(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "in.mp4", [0, 3600, 3600 + 3 * CLOCK_HZ])
    with Source(path, HD) as source:
        pictures = [(one.unit.pts, one.repeated) for one in source.pictures()]
    assert pictures == [
        (0, False),
        (3600, False),
        (3600 + CLOCK_HZ, True),
        (3600 + 2 * CLOCK_HZ, True),
        (3600 + 3 * CLOCK_HZ, False),
    ]


def test_pixels_that_are_not_square_become_square(tmp_path: Path) -> None:
    path = tmp_path / "in.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", width=160, height=120)
        assert isinstance(stream, av.VideoStream)
        stream.sample_aspect_ratio = Fraction(2, 1)
        container.mux(stream.encode(clips.picture(160, 120, 0)))
        container.mux(stream.encode(None))
    with Source(path, HD) as source:
        assert source.size == (320, 120)


def test_the_tally_counts_and_times_what_returns() -> None:
    tally = Tally()
    for number in range(10):
        tally.send(number, number * 0.1, repeated=number == 4)
    assert [tally.receive(pts, pts * 0.1 + 0.05) for pts in (0, 1, 3, 4, 9)] == [
        True,
        True,
        True,
        False,
        True,
    ]
    assert tally.receive(100, 1.0), "a pipeline may make pictures of its own"
    assert (tally.sent, tally.returned, tally.received) == (9, 4, 5)
    assert tally.latency_percentile_ms(50) == pytest.approx(50)
    assert tally.fps == pytest.approx(4 / 0.95)
    assert tally.fps_now == pytest.approx(4 / 0.95)


def test_an_empty_tally_knows_nothing() -> None:
    tally = Tally()
    assert (tally.fps, tally.fps_now, tally.latency_percentile_ms(50)) == (0.0, 0.0, None)
