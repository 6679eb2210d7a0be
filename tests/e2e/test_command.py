"""`sluice` as a newcomer types it, against the whole platform."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np

from tests.support import publisher
from tests.support.stack import Stack, running, until


def seconds(ticks: int | None, stream: av.AudioStream | av.VideoStream) -> float:
    assert ticks is not None
    assert stream.time_base is not None
    return float(ticks * stream.time_base)


def pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    """Every picture of `path`: seconds from its start, uint8 (90, 160, 3) RGB."""
    with av.open(str(path)) as clip:
        return [
            (float(frame.time or 0), frame.reformat(160, 90, "rgb24").to_ndarray())
            for frame in clip.decode(clip.streams.video[0])
        ]


def test_a_file_is_transformed_at_its_own_pace_with_its_sound(
    stack: Stack, sample: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    done = stack.command(
        *("transform", str(sample), "-o", str(out), "--pipeline", "effects", "--prompt", "watercolor"),
        *("--at", "2s", "prompt=neon", "--param", "transition_s=0.2", "--json"),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    shown = pictures(out)
    assert len(shown) == told["frames_returned"] >= 100
    light = {when: picture.mean() for when, picture in shown}
    assert min(light[when] for when in light if 0.5 < when < 1.9) > 80, "watercolor is bright"
    assert max(light[when] for when in light if when > 2.4) < 60, "neon is dark"
    with av.open(str(out)) as clip:
        sound, video = clip.streams.audio[0], clip.streams.video[0]
        assert (sound.codec_context.name, sound.channels) == ("aac", 6)
        start_s, end_s = seconds(sound.start_time, sound), seconds(sound.duration, sound)
        assert abs(start_s - seconds(video.start_time, video)) < 0.05
        assert abs(end_s - 5.312) < 0.1
    ended = stack.ended(told["session"])
    assert ended["end_reason"] == "input_ended"
    assert told["cost_settled"]
    usage = stack.usage(told["session"])
    assert usage["cost_micro"] == told["cost_micro"]
    assert usage["cost_micro"] == usage["delivered_ms"] * usage["micro_per_second"] // 1000
    assert 3500 <= usage["delivered_ms"] <= 6500


def test_fast_brings_every_frame_back_where_it_was(stack: Stack, sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = stack.command("transform", str(sample), "-o", str(out), "--pipeline", "passthrough", "--fast")
    assert done.returncode == 0, done.stderr
    before, after = pictures(sample), pictures(out)
    assert len(before) == len(after) == 132
    for (sent_s, sent), (back_s, back) in zip(before, after, strict=True):
        assert abs(sent_s - back_s) < 0.002
        assert np.abs(sent.astype(int) - back).mean() < 12, "the same picture"


def test_what_is_no_video_is_refused_with_a_sentence(stack: Stack, tmp_path: Path) -> None:
    text = tmp_path / "clip.mp4"
    text.write_text("this is not a video")
    done = stack.command("transform", str(text), "-o", str(tmp_path / "out.mp4"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    assert not (tmp_path / "out.mp4").exists()


def test_a_wrong_parameter_is_the_users_mistake(stack: Stack, sample: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.mp4")
    done = stack.command(
        "transform", str(sample), "-o", out, "--pipeline", "effects", "--param", "strength=7"
    )
    assert done.returncode == 2
    assert "strength" in done.stderr
    done = stack.command("transform", str(sample), "-o", out, "--pipeline", "nope")
    assert done.returncode == 2
    assert "passthrough" in done.stderr, "what there is instead is said"


def test_without_a_free_slot_the_exit_code_is_3(stack: Stack, sample: Path, tmp_path: Path) -> None:
    stream = stack.stream()
    process = publisher.start(stream["publish_url"], seconds=60)
    stack.live_session(stream["id"])
    done = stack.command("transform", str(sample), "-o", str(tmp_path / "out.mp4"))
    process.kill()
    process.communicate(timeout=20)
    assert done.returncode == 3, done.stderr


def test_ctrl_c_ends_with_130_and_leaves_nothing(stack: Stack, sample: Path, tmp_path: Path) -> None:
    environment = {**stack.environment, "SLUICE_URL": stack.url, "SLUICE_API_KEY": stack.key}
    command = [
        str(Path(sys.executable).with_name("sluice")),
        "transform",
        str(sample),
        "-o",
        str(tmp_path / "o.mp4"),
    ]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    until(lambda: stack.free_slots() == 0 or None, 10, "it is sending")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert not list(tmp_path.iterdir())
    stack.until_free(5)


def test_tables_show_sessions_runners_and_usage(stack: Stack) -> None:
    for words in (("sessions", "--ended"), ("runners",), ("usage",)):
        table = stack.command(*words)
        assert table.returncode == 0, table.stderr
        data = json.loads(stack.command(*words, "--json").stdout)["data"]
        assert data
        first = data[0]
        assert str(first.get("session") or first["runner"])[:12] in table.stdout


def test_without_credit_the_exit_code_is_4(sample: Path, tmp_path: Path) -> None:
    with running(tmp_path, SLUICE_LOCAL_CREDIT_MICRO="0") as stack:
        done = stack.command("transform", str(sample), "-o", str(tmp_path / "out.mp4"))
        assert done.returncode == 4, done.stderr
        assert "credit" in done.stderr.lower()
        assert stack.free_slots() == 1


def test_without_a_platform_the_command_says_so(stack: Stack, sample: Path, tmp_path: Path) -> None:
    done = stack.command(
        "transform", str(sample), "-o", str(tmp_path / "o.mp4"), "--url", "http://127.0.0.1:9"
    )
    assert done.returncode == 1
    assert "make run" in done.stderr
