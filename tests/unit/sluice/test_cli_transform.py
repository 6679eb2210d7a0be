from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from typer.testing import CliRunner, Result

from services.common.media.mpegts import CLOCK_HZ
from sluice.cli import app
from tests.support import clips
from tests.support.platform import KEY, Platform, platform

ROOT = Path(__file__).parents[3]
BUNNY = ROOT / "tests/data/bigbuckbunny.mp4"
STEADY = [number * 3600 for number in range(25)]


@pytest.fixture(autouse=True)
def _settled_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.transform.run.SETTLE_POLL_S", 0.02)


@pytest.fixture
def at() -> Iterator[Platform]:
    with platform() as serving:
        yield serving


def sluice(at: Platform, *arguments: str | Path, key: str = KEY) -> Result:
    environment = {"SLUICE_URL": at.url, "SLUICE_API_KEY": key, "COLUMNS": "200"}
    return CliRunner(env=environment).invoke(app, [str(argument) for argument in arguments])


def left_over(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.endswith(".part"))


def distance_s(path: Path) -> float:
    """How long after the first picture the tone sets in."""
    return clips.tone_from_s(path) - float(clips.video_times(path)[0])


def ticks(times: list[Fraction]) -> list[int]:
    return [round(time * CLOCK_HZ) for time in times]


def test_every_frame_of_a_film_comes_back_at_its_time_with_its_5_1_sound(
    at: Platform, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    result = sluice(
        at, "transform", BUNNY, "-o", out, "--fast", "--pipeline", "effects", "--prompt", "watercolor"
    )
    assert result.exit_code == 0, result.output
    assert at.stream.body["pipeline"] == "effects"
    assert at.stream.body["params"] == {"prompt": "watercolor"}
    assert at.stream.body["delivery"] == "complete"
    assert clips.video_times(out) == clips.video_times(BUNNY)
    assert clips.sound_span(out) == clips.sound_span(BUNNY)
    assert clips.sound_span(out)[2] == 6
    for ours, theirs in zip(clips.halves(out), clips.halves(BUNNY), strict=True):
        assert ours == pytest.approx(theirs, abs=4)
    assert "132 of 132 frames came back" in result.stdout
    assert at.stream.session in result.stdout
    assert "cost 0.001234 EUR" in result.stdout
    assert "p95" in result.stdout
    assert at.deleted == [at.stream.id]
    assert out.read_bytes().find(b"moov") < out.read_bytes().find(b"mdat"), "it plays while it downloads"
    assert left_over(tmp_path) == []


def test_an_uneven_frame_rate_is_kept_and_a_file_without_sound_has_none(at: Platform, tmp_path: Path) -> None:
    pts = [0, 3003, 4500, 9000, 9100, 27_000, 45_123, 60_000]
    source = clips.clip(tmp_path / "in.mp4", pts).rename(tmp_path / "a:b %d [c].mp4")
    out = tmp_path / "out:put %d [c].mp4"
    assert sluice(at, "transform", source, "-o", out, "--fast").exit_code == 0
    assert at.stream.pts == pts
    assert ticks(clips.video_times(out)) == pts
    with av.open(str(out)) as container:
        assert not container.streams.audio


@pytest.mark.parametrize("suffix", [".mov", ".mkv", ".m4v"])
def test_other_containers(at: Platform, tmp_path: Path, suffix: str) -> None:
    source = clips.clip(tmp_path / "in.mp4", STEADY, audio="aac")
    out = tmp_path / f"out{suffix}"
    assert sluice(at, "transform", source, "-o", out, "--fast").exit_code == 0
    assert [float(time) for time in clips.video_times(out)] == pytest.approx(
        [at / CLOCK_HZ for at in STEADY], abs=0.03 if suffix == ".mkv" else 1e-9
    )
    assert clips.sound_span(out)[1] == pytest.approx(clips.sound_span(source)[1], abs=0.03)


def test_an_odd_side_loses_one_pixel(at: Platform, tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mkv", [0, 3600, 7200], size=(321, 241), codec="ffv1")
    out = tmp_path / "out.mp4"
    assert sluice(at, "transform", source, "-o", out, "--fast").exit_code == 0
    with av.open(str(out)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (320, 240)
    above, below, _, _ = clips.halves(out)
    assert above == pytest.approx(clips.RED, abs=8)
    assert below == pytest.approx(clips.BLUE, abs=8)


@pytest.mark.parametrize(("rotation", "red_is"), [(90, "left"), (-90, "right"), (180, "below")])
def test_a_turned_picture_is_sent_upright(at: Platform, tmp_path: Path, rotation: int, red_is: str) -> None:
    source = clips.clip(tmp_path / "in.mp4", [0, 3600, 7200], rotation=rotation)
    out = tmp_path / "out.mp4"
    assert sluice(at, "transform", source, "-o", out, "--fast").exit_code == 0
    with av.open(str(out)) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation == 0
    assert (frame.width, frame.height) == ((320, 240) if rotation == 180 else (240, 320))
    found = dict(zip(("above", "below", "left", "right"), clips.halves(out), strict=True))
    assert found[red_is] == pytest.approx(clips.RED, abs=10)


def test_large_pictures_are_scaled_down_to_what_is_asked(at: Platform, tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", [0, 3600], size=(640, 480))
    out = tmp_path / "out.mp4"
    assert sluice(at, "transform", source, "-o", out, "--fast", "--max-size", "200x100").exit_code == 0
    with av.open(str(out)) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (132, 100)


@pytest.mark.parametrize("audio_from_s", [0.0, 0.4])
@pytest.mark.parametrize("video_from_s", [0.0, 0.32])
def test_sound_and_pictures_keep_their_distance(
    at: Platform, tmp_path: Path, audio_from_s: float, video_from_s: float
) -> None:
    pts = [round(video_from_s * CLOCK_HZ) + one for one in STEADY]
    source = clips.clip(tmp_path / "in.mkv", pts, audio="aac", audio_from_s=audio_from_s)
    out = tmp_path / "out.mp4"
    assert sluice(at, "transform", source, "-o", out, "--fast").exit_code == 0
    assert distance_s(source) == pytest.approx(audio_from_s - video_from_s, abs=0.025)
    assert distance_s(out) == pytest.approx(distance_s(source), abs=0.002)
    assert len(clips.video_times(out)) == len(pts)
    assert clips.sound_span(out)[1] == pytest.approx(clips.sound_span(source)[1], abs=0.03)


@pytest.mark.parametrize(("codec", "layout", "channels"), [("pcm_s16le", "5.1", 6), ("wmav2", "stereo", 2)])
def test_sound_that_an_mp4_cannot_carry_becomes_aac(
    at: Platform, tmp_path: Path, codec: str, layout: str, channels: int
) -> None:
    suffix = ".mkv" if codec.startswith("pcm") else ".wmv"
    source = clips.clip(tmp_path / f"in{suffix}", STEADY, audio=codec, layout=layout, audio_from_s=0.2)
    out = tmp_path / "out.mp4"
    assert sluice(at, "transform", source, "-o", out, "--fast").exit_code == 0
    with av.open(str(out)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    _, length_s, found = clips.sound_span(out)
    assert found == channels
    assert length_s == pytest.approx(1.0, abs=0.06)
    assert distance_s(out) == pytest.approx(distance_s(source), abs=0.005)


@pytest.mark.parametrize("suffix", [".mkv", ".ts"])
@pytest.mark.parametrize("codec", ["mp3", "aac", "ac3"])
def test_sound_that_an_mp4_can_carry_is_copied(at: Platform, tmp_path: Path, codec: str, suffix: str) -> None:
    source = clips.clip(tmp_path / f"in{suffix}", STEADY, audio=codec)
    out = tmp_path / "out.mp4"
    assert sluice(at, "transform", source, "-o", out, "--fast").exit_code == 0
    with av.open(str(source)) as before, av.open(str(out)) as after:
        names = [file.streams.audio[0].codec_context.codec.canonical_name for file in (before, after)]
        sizes = [sum(packet.size for packet in file.demux(audio=0)) for file in (before, after)]
    assert names == [codec, codec]
    headers = 7 * 47 if (codec, suffix) == ("aac", ".ts") else 0  # ADTS, which an MP4 has once
    assert sizes[0] - sizes[1] == pytest.approx(headers, abs=14)
    assert distance_s(out) == pytest.approx(distance_s(source), abs=0.003)


def test_sound_whose_times_overlap_is_encoded_without_gaps(
    at: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice.transform.sound.COPIED_INTO_MP4", frozenset[str]())
    source = clips.clip(tmp_path / "in.avi", STEADY, audio="mp3")
    out = tmp_path / "out.mp4"
    assert sluice(at, "transform", source, "-o", out, "--fast").exit_code == 0
    assert clips.sound_span(out)[1] == pytest.approx(clips.sound_span(source)[1], abs=0.03)
    assert distance_s(out) == pytest.approx(distance_s(source), abs=0.005)


def test_a_long_still_picture_keeps_the_session_alive_and_is_one_frame(at: Platform, tmp_path: Path) -> None:
    pts = [0, 3600, 3600 + 14 * CLOCK_HZ, 7200 + 14 * CLOCK_HZ]
    source = clips.clip(tmp_path / "in.mp4", pts)
    out = tmp_path / "out.mp4"
    result = sluice(at, "transform", source, "-o", out, "--fast")
    assert result.exit_code == 0
    assert "4 of 4 frames" in result.stdout
    assert len(at.stream.pts) > len(pts), "a gap of more than 10 s would be taken for a jump of the clock"
    assert ticks(clips.video_times(out)) == pts


def test_realtime_takes_the_clips_time_and_says_what_did_not_come_back(at: Platform, tmp_path: Path) -> None:
    at.lost = lambda number: number % 5 == 4
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    out = tmp_path / "out.mp4"
    began_s = time.monotonic()
    result = sluice(at, "transform", source, "-o", out)
    assert result.exit_code == 0, result.output
    assert time.monotonic() - began_s >= 0.9
    assert at.stream.body["delivery"] == "live"
    assert "20 of 25 frames came back" in result.stdout
    assert ticks(clips.video_times(out)) == [at for number, at in enumerate(STEADY) if number % 5 != 4]


def test_fast_without_every_frame_fails_and_leaves_nothing(at: Platform, tmp_path: Path) -> None:
    at.lost = lambda number: number == 7
    source = clips.clip(tmp_path / "in.mp4", STEADY, audio="aac")
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4", "--fast")
    assert result.exit_code == 1
    assert "1 of 25 frames did not come back" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    assert at.deleted == [at.stream.id]


def test_changes_are_accepted_before_their_time_is_sent(at: Platform, tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    arguments = [
        "--at",
        "400ms",
        "prompt=a cat, oil,strength=0.5",
        "--at",
        "0:00.8 prompt=neon",
        "--at",
        "0s",
        "fps=7",
    ]
    arguments += ["--param", "seed=3", "--param", "name=x=y"]
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4", "--fast", *arguments)
    assert result.exit_code == 0, result.output
    assert at.stream.body["params"] == {"seed": 3, "name": "x=y", "fps": 7}
    assert [patch for patch, _ in at.patches] == [
        {"params": {"prompt": "a cat, oil", "strength": 0.5}, "apply_at_ms": 400},
        {"params": {"prompt": "neon"}, "apply_at_ms": 800},
    ]
    assert max(came for _, came in at.patches) <= 2


def test_a_change_that_is_refused_stops_the_run(at: Platform, tmp_path: Path) -> None:
    at.refuse["PATCH /v1/streams"] = (400, "STREAMS/INVALID", "strength: 7 is more than 1")
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4", "--at", "0.5s", "strength=7")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, "sluice: strength: 7 is more than 1")
    assert at.deleted == [at.stream.id]
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize("where", ["POST /v1/streams", "POST /ts/"])
@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        ((400, "STREAMS/INVALID", "there is no pipeline 'x'"), 2),
        ((402, "SLUICE/PAYMENT_REQUIRED", "the credit does not cover it"), 4),
        ((409, "SLUICE/STREAM_BUSY", "the stream has a publisher already"), 2),
        ((503, "SLUICE/NO_CAPACITY", "no slot is free"), 3),
        ((503, "SLUICE/INGEST_FULL", "this ingest process is full"), 3),
        ((503, "SLUICE/UNAVAILABLE", "billing cannot be reached"), 1),
        ((500, "SLUICE/INTERNAL", "internal error"), 1),
    ],
)
def test_what_the_server_refuses(
    at: Platform, tmp_path: Path, where: str, refusal: tuple[int, str, str], code: int
) -> None:
    at.refuse[where] = refusal
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    began_s = time.monotonic()
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4")
    assert (result.exit_code, result.stderr) == (code, f"sluice: {refusal[2]}\n")
    assert time.monotonic() - began_s < 8
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    assert at.deleted == list(at.streams)


@pytest.mark.parametrize("mode", ["--fast", "--realtime"])
@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        ((402, "SLUICE/CREDIT_EXHAUSTED", "the credit is used up"), 4),
        ((409, "SLUICE/STOPPED", "the session ended: stopped"), 1),
        ((503, "SLUICE/RUNNER_LOST", "the runner does not answer"), 1),
    ],
)
def test_a_session_that_ends_early_says_why(
    at: Platform, tmp_path: Path, mode: str, refusal: tuple[int, str, str], code: int
) -> None:
    at.end_after = (10, refusal)
    source = clips.clip(tmp_path / "in.mp4", [number * 3600 for number in range(200)])
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4", mode)
    assert result.exit_code == code
    assert refusal[2] in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    assert at.deleted == [at.stream.id]


def test_a_result_that_breaks_off_fails(
    at: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice.transform.exchange.LAST_WORD_S", 0.1)
    at.cut_play_after = 5
    source = clips.clip(tmp_path / "in.mp4", [number * 3600 for number in range(100)])
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4")
    assert result.exit_code == 1
    assert "the platform ended the result before the clip had ended" in result.stderr
    assert not (tmp_path / "out.mp4").exists()


def test_a_platform_on_which_nothing_moves_is_given_up(
    at: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice.transform.exchange.STALL_S", 0.5)
    at.refuse["GET /v1/streams/str_00000001/status"] = (503, "STREAMS/UNAVAILABLE", "not now")
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4", "--fast")
    assert (result.exit_code, result.stderr) == (1, "sluice: nothing came or went for 0.5 s\n")
    assert at.deleted == [at.stream.id]


def _text(path: Path) -> Path:
    path = path.with_suffix(".txt")
    path.write_text("this is no video\n" * 50)
    return path


def _empty(path: Path) -> Path:
    path.touch()
    return path


def _truncated(path: Path) -> Path:
    path.write_bytes(BUNNY.read_bytes()[:500_000])
    return path


def _picture(path: Path) -> Path:
    path = path.with_suffix(".png")
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", width=64, height=64)
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(clips.picture(64, 64, 0)))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_text, "is not a video"),
        (_empty, "is empty"),
        (_truncated, "is not a video, or not a whole one"),
        (_picture, "is not a video"),
        (clips.sound_only, "has no video in it, only audio"),
        (lambda path: path.parent, "is a directory"),
        (lambda path: path / "nothing.mp4", "does not exist"),
        (lambda path: clips.clip(path, [0, 3600], size=(8, 8)), "is too small"),
    ],
)
def test_an_input_that_is_no_video_is_refused_before_anything_is_asked(
    at: Platform, tmp_path: Path, make: Callable[[Path], Path], says: str
) -> None:
    result = sluice(at, "transform", make(tmp_path / "in.mp4"), "-o", tmp_path / "out.mp4")
    assert result.exit_code == 2
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert at.calls == []
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--at", "2s"], "--at '2s' changes nothing"),
        (["--at", "soon", "prompt=x"], "'soon' is no time"),
        (["--at", "9s", "prompt=x"], "--at 9s is behind the clip's end, 1.0 s"),
        (["--param", "prompt"], "'prompt' is no parameter"),
        (["--max-size", "big"], "'big' is no size"),
        (["-o", "out.avi"], "out.avi: the output is .mp4"),
        (["-o", "nowhere/out.mp4"], "cannot be written"),
        (["--url", "localhost:8000"], "is no http or https URL"),
        (["--key", "two words"], "characters that no key has"),
    ],
)
def test_wrong_usage_is_one_sentence(at: Platform, tmp_path: Path, arguments: list[str], says: str) -> None:
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4", *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert at.calls == []


def test_an_output_that_exists_is_replaced_only_when_told(at: Platform, tmp_path: Path) -> None:
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    out = tmp_path / "out.mp4"
    out.write_text("mine")
    refused = sluice(at, "transform", source, "-o", out, "--fast")
    assert (refused.exit_code, out.read_text()) == (2, "mine")
    assert "--force replaces it" in refused.stderr
    assert sluice(at, "transform", source, "-o", source, "--fast", "-y").exit_code == 2
    assert sluice(at, "transform", source, "-o", out, "--fast", "-y").exit_code == 0
    assert len(clips.video_times(out)) == len(STEADY)


def test_json_is_one_object_also_for_a_failure(
    at: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice.transform.run.SETTLE_S", 0.5)
    at.settled = False
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    out = tmp_path / "out.mp4"
    report: dict[str, Any] = json.loads(sluice(at, "transform", source, "-o", out, "--fast", "--json").stdout)
    assert report["output"] == str(out)
    assert report["session"] == at.stream.session
    assert (report["frames_sent"], report["frames_returned"]) == (25, 25)
    assert (report["cost_micro"], report["cost_settled"], report["currency"]) == (1234, False, "EUR")
    assert report["latency_ms_p50"] <= report["latency_ms_p95"]
    failure = json.loads(sluice(at, "transform", source, "-o", out, "--fast", "--json").stdout)
    assert failure["code"] is None
    assert "exists" in failure["error"]


def test_an_unsettled_cost_is_marked(at: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sluice.transform.run.SETTLE_S", 0.5)
    at.settled = False
    source = clips.clip(tmp_path / "in.mp4", STEADY)
    result = sluice(at, "transform", source, "-o", tmp_path / "out.mp4", "--fast")
    assert "cost ~0.001234 EUR" in result.stdout


@pytest.mark.parametrize(("with_signal", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_its_stream_and_leaves_nothing(
    at: Platform, tmp_path: Path, with_signal: signal.Signals, code: int
) -> None:
    source = clips.clip(tmp_path / "in.mp4", [number * 3600 for number in range(250)], audio="aac")
    out = tmp_path / "out.mp4"
    command = [
        sys.executable,
        "-c",
        "from sluice.cli import main; main()",
        "transform",
        str(source),
        "-o",
        str(out),
    ]
    environment = {**os.environ, "SLUICE_URL": at.url, "SLUICE_API_KEY": KEY, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        deadline_s = time.monotonic() + 15
        while not at.streams or len(at.stream.pts) < 10:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        process.send_signal(with_signal)
        _, said = process.communicate(timeout=10)
    assert process.returncode == code, said
    assert b"Traceback" not in said
    assert at.deleted == [at.stream.id]
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
