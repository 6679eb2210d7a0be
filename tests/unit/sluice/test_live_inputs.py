from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import av
import pytest

from services.common.errors import InvalidError
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec, Muxer
from sluice.live.inputs import Input, Kind, Place, camera, in_order, place_of, units_of
from tests.support import clips
from tests.support.media import pictures, shown, sound

ROOT = Path(__file__).parents[3]
BUNNY = ROOT / "tests/data/bigbuckbunny.mp4"
STEADY = [number * 3600 for number in range(50)]


def read(path: Path, *, most: int = 10_000, loop: bool = False) -> list[AccessUnit]:
    with Input(place_of(str(path))) as source:
        return [unit for unit, _ in zip(units_of(source, loop=loop), range(most), strict=False)]


def described(path: Path) -> str:
    with Input(place_of(str(path))) as source:
        return source.described()


def of(units: Iterable[AccessUnit], codec: Codec) -> list[AccessUnit]:
    return [unit for unit in units if unit.codec is codec]


def sent(units: list[AccessUnit]) -> bytes:
    """What a platform gets."""
    audio = next((unit.codec for unit in units if unit.codec is not Codec.H264), None)
    muxer = Muxer(audio=audio)
    return b"".join(
        (muxer.begin_segment() if unit.codec is Codec.H264 and unit.keyframe else b"") + muxer.write(unit)
        for unit in units
    )


def passing(path: Path, *, gop: int = 25, b_frames: int = 0, audio: str | None = "aac") -> Path:
    """Two seconds of H.264 at 25 fps, and a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        assert isinstance(video, av.VideoStream)
        video.width, video.height, video.pix_fmt = 160, 120, "yuv420p"
        video.gop_size, video.max_b_frames = gop, b_frames
        video.options = {"preset": "ultrafast", "sc_threshold": "0"}
        track = container.add_stream(audio, rate=48_000, layout="stereo") if audio else None
        assert track is None or isinstance(track, av.AudioStream)
        for number in range(50):
            frame = clips.picture(160, 120, number)
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if track is not None:
            for number in range(94):
                frame_ = av.AudioFrame(
                    "fltp" if audio == "aac" else "flt", "stereo", track.frame_size or 1024
                )
                frame_.pts, frame_.sample_rate = number * frame_.samples, 48_000
                for plane in frame_.planes:
                    plane.update(bytes(plane.buffer_size))
                container.mux(track.encode(frame_))
            container.mux(track.encode(None))
    return path


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.flv"])
def test_h264_and_aac_are_sent_as_they_are_from_any_container(tmp_path: Path, name: str) -> None:
    clip = passing(tmp_path / name)
    assert described(clip) == "160x120 H.264 as it is, AAC"
    units = read(clip)
    video, audio = of(units, Codec.H264), of(units, Codec.AAC)
    assert len(video) == 50
    assert [unit.keyframe for unit in video].count(True) == 2
    assert video[0].keyframe
    with av.open(str(clip), "r") as container:
        kept = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    assert [unit.data[7:] for unit in audio] == [
        packet if name != "clip.ts" else packet[7:] for packet in kept
    ], "not encoded again"
    assert [unit.dts for unit in units] == sorted(unit.dts for unit in units)
    assert len(shown(sent(units))) == 50


def test_opus_is_sent_as_it_is(tmp_path: Path) -> None:
    clip = passing(tmp_path / "clip.mkv", audio="libopus")
    assert described(clip).endswith("Opus")
    heard = of(read(clip), Codec.OPUS)
    assert len(heard) > 80
    assert {later.pts - earlier.pts for earlier, later in pairwise(heard[1:-1])} == {1800}


def test_b_frames_are_sent_as_they_are(tmp_path: Path) -> None:
    clip = passing(tmp_path / "clip.mp4", b_frames=2, audio=None)
    assert "as it is" in described(clip)
    units = read(clip)
    assert any(unit.pts != unit.dts for unit in units)
    assert [unit.dts for unit in units] == sorted({unit.dts for unit in units})
    times = shown(sent(units))
    assert times == sorted(times)
    assert len(times) == 50


def test_what_has_too_few_key_frames_is_encoded_with_one_a_second() -> None:
    assert described(BUNNY) == "1280x720 h264, encoded to H.264, AAC"
    units = read(BUNNY)
    video = of(units, Codec.H264)
    assert len(video) == 132
    assert [unit.keyframe for unit in video].count(True) == 6
    assert all(unit.pts == unit.dts for unit in video)
    heard = of(units, Codec.AAC)
    assert heard[0].data[:4] == bytes((0xFF, 0xF1, 0x4C, 0x80)), "six channels became two"
    assert {later.pts - earlier.pts for earlier, later in pairwise(heard)} <= {1919, 1920, 1921}


def test_a_picture_that_lies_on_its_side_is_encoded_upright(tmp_path: Path) -> None:
    clip = clips.clip(tmp_path / "clip.mp4", STEADY, rotation=90)
    units = read(clip)
    with av.open(io.BytesIO(sent(units)), "r", format="mpegts") as container:
        frame = next(container.decode(video=0))
        assert isinstance(frame, av.VideoFrame)
        assert (frame.width, frame.height) == (240, 320)


@pytest.mark.parametrize(("codec", "audio"), [("libvpx", "flac"), ("libx264", "ac3")])
def test_other_codecs_are_encoded(tmp_path: Path, codec: str, audio: str) -> None:
    units = read(clips.clip(tmp_path / "clip.mkv", STEADY, codec=codec, audio=audio))
    assert len(shown(sent(units))) == 50
    assert of(units, Codec.AAC)


def test_a_loop_goes_on_where_the_file_ended(tmp_path: Path) -> None:
    units = of(read(passing(tmp_path / "clip.mp4"), most=450, loop=True), Codec.H264)
    assert len(units) > 140
    distances = [later.dts - earlier.dts for earlier, later in pairwise(units)]
    assert min(distances) > 0
    assert max(distances) < CLOCK_HZ // 2
    assert units[50].keyframe


def test_a_damaged_file_costs_what_is_damaged(tmp_path: Path) -> None:
    whole = passing(tmp_path / "clip.ts").read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole[: len(whole) // 2])
    assert 10 < len(of(read(cut), Codec.H264)) < 50


def test_sound_and_pictures_are_put_in_the_order_of_their_times() -> None:
    video, audio = pictures(50), sound(90)
    apart = [*audio[:45], *video[:25], *audio[45:], *video[25:]]
    merged = list(in_order(iter(apart), audible=True))
    assert sorted(unit.dts for unit in apart) == [unit.dts for unit in merged]


def test_sound_that_ends_early_does_not_hold_the_pictures() -> None:
    def units() -> Iterator[AccessUnit]:
        for unit in [*sound(1), *pictures(1000)]:
            taken.append(unit)
            yield unit

    taken: list[AccessUnit] = []
    first = [unit for unit, _ in zip(in_order(units(), audible=True), range(100), strict=False)]
    assert len(first) == 100
    assert len(taken) < 600


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("clip.mp4", Kind.FILE, "clip.mp4"),
        ("/a/b c:d.ts", Kind.FILE, "b c:d.ts"),
        ("rtmp://user:secret@example.com/live/key", Kind.LIVE, "rtmp://example.com"),
        ("https://example.com/a.m3u8?token=secret", Kind.PACED, "https://example.com"),
    ],
)
def test_a_source_is_a_file_or_a_url(source: str, kind: Kind, name: str) -> None:
    place = place_of(source)
    assert (place.kind, place.name) == (kind, name)


@pytest.mark.parametrize("source", ["ftp://example.com/a", "rtmp://", "srt://example.com:9000"])
def test_a_url_that_is_not_read_is_refused(source: str) -> None:
    with pytest.raises(InvalidError, match="no URL"):
        place_of(source)


def test_what_cannot_be_opened_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="there is no camera at /dev/video97"):
        Input(camera("/dev/video97"))
    not_a_camera = tmp_path / "video0"
    not_a_camera.write_bytes(b"")
    with pytest.raises(InvalidError, match="no camera that can be used now"):
        Input(camera(str(not_a_camera)))
    with pytest.raises(InvalidError, match=r"rtmp://127.0.0.1 cannot be read \(Connection refused\)"):
        Input(place_of("rtmp://127.0.0.1:9/live/secret"))
    with pytest.raises(InvalidError, match="does not exist"):
        Input(place_of(str(tmp_path / "none.mp4")))
    sounding = tmp_path / "only_sound.mkv"
    with av.open(str(sounding), "w") as container:
        track = container.add_stream("aac", rate=48_000, layout="stereo")
        container.mux(track.encode(None))
    with pytest.raises(InvalidError):
        Input(Place(Kind.FILE, str(sounding), "only_sound.mkv"))


def test_a_file_whose_pictures_cannot_be_read_is_no_input(tmp_path: Path) -> None:
    clip = passing(tmp_path / "clip.mp4")
    data = clip.read_bytes()
    place = data.index(b"mdat") - 4
    size = int.from_bytes(data[place : place + 4], "big")
    clip.write_bytes(data[: place + 8] + bytes(size - 8) + data[place + size :])
    with pytest.raises(InvalidError, match="nothing in it can be read"):
        read(clip)
