"""The words of `sluice publish` and `sluice play` that need no platform."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.common.errors import InvalidError
from sluice.cli import app
from sluice.live.play import container_of, player
from sluice.settings import CREDENTIALS, DEFAULT_URL, place
from sluice.transform.arguments import with_default
from tests.support.clips import clip
from tests.support.platform import KEY, Platform, Refusal, platform


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--camera"], ["--camera", "/dev/video0"]),
        (["--camera", "--prompt", "neon"], ["--camera", "/dev/video0", "--prompt", "neon"]),
        (["--camera", "/dev/video2", "--loop"], ["--camera", "/dev/video2", "--loop"]),
        (["clip.mp4"], ["clip.mp4"]),
    ],
)
def test_a_camera_without_a_device_is_the_first_one(words: list[str], meant: list[str]) -> None:
    assert with_default(words, "--camera", "/dev/video0") == meant


def test_a_playback_id_needs_no_key_but_finds_the_platform(tmp_path: Path) -> None:
    assert place(None, tmp_path).url == DEFAULT_URL
    assert place("https://video.example", tmp_path).url == "https://video.example"
    credentials = tmp_path / CREDENTIALS
    credentials.parent.mkdir()
    credentials.write_text(json.dumps({"url": "http://127.0.0.1:8100", "key": "sk_secret"}))
    found = place(None, tmp_path)
    assert (found.url, found.key) == ("http://127.0.0.1:8100", ""), "the key goes nowhere"
    with pytest.raises(InvalidError):
        place("ftp://video.example", tmp_path)


@pytest.mark.parametrize(
    ("name", "container"), [("a.ts", None), ("a.TS", None), ("a.mp4", "mp4"), ("a.mkv", "matroska")]
)
def test_the_suffix_says_what_is_written(name: str, container: str | None) -> None:
    assert container_of(Path(name)) == container


def test_without_a_player_it_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InvalidError, match=r"-o out\.ts"):
        player()
    found = tmp_path / "mpv"
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    assert player()[0] == str(found)


def test_an_output_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    out = tmp_path / "out.ts"
    out.write_bytes(b"precious")
    done = CliRunner(env={"SLUICE_URL": "http://127.0.0.1:9"}).invoke(app, ["play", "pbk_a", "-o", str(out)])
    assert done.exit_code == 2
    assert "--force" in done.output
    assert out.read_bytes() == b"precious"
    forced = ["play", "pbk_a", "-o", str(out), "--force"]
    done = CliRunner(env={"SLUICE_URL": "http://127.0.0.1:9"}).invoke(app, forced)
    assert done.exit_code == 1, "nothing answers there"
    assert out.read_bytes() == b"precious", "nothing came, so nothing is replaced"
    assert list(tmp_path.iterdir()) == [out]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    monkeypatch.setattr("sluice.live.publish.LAST_WORD_S", 3.0)
    with platform() as serving:
        yield serving


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return clip(tmp_path / "film.mp4", [number * 3600 for number in range(25)])


def sluice(at: Platform, *words: str | Path) -> Result:
    environment = {"SLUICE_URL": at.url, "SLUICE_API_KEY": KEY, "COLUMNS": "200"}
    return CliRunner(env=environment).invoke(app, [str(word) for word in words])


def test_a_film_is_published_with_what_was_asked_for(at: Platform, film: Path) -> None:
    done = sluice(
        at, "publish", film, "-p", "effects", "--prompt", "neon", "--param", "strength=0.5", "--json"
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["frames_sent"], told["connections"]) == (25, 1)
    assert at.stream.body["params"] == {"prompt": "neon", "strength": 0.5}
    assert at.stream.body["name"] == "film.mp4"
    assert len(at.stream.pts) == 25
    assert not at.deleted, "the stream stays, to be published again"


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        ((402, "SLUICE/CREDIT_EXHAUSTED", "the credit is used up"), 4),
        ((503, "SLUICE/NO_CAPACITY", "no slot is free"), 3),
        ((409, "SLUICE/STREAM_BUSY", "the stream has a publisher already"), 2),
    ],
)
def test_what_the_platform_refuses_is_not_tried_again(
    at: Platform, film: Path, refusal: Refusal, status: int
) -> None:
    at.refuse["POST /ts/"] = refusal
    done = sluice(at, "publish", film)
    assert done.exit_code == status
    assert refusal[2] in done.output
    assert sum(call.startswith("POST /ts/") for call in at.calls) == 1


def test_a_stream_keeps_its_pipeline_and_takes_parameters(at: Platform, film: Path) -> None:
    assert sluice(at, "publish", film).exit_code == 0
    stream = at.stream.id
    refused = sluice(at, "publish", film, "--stream", stream, "--pipeline", "effects")
    assert refused.exit_code == 2
    assert "leave --pipeline out" in refused.output
    sluice(at, "publish", film, "--stream", stream, "--prompt", "oil")
    assert at.patches[0][0] == {"params": {"prompt": "oil"}}
