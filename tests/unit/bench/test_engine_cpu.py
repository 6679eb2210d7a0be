from __future__ import annotations

import json
from pathlib import Path
from subprocess import SubprocessError

import numpy as np
import pytest

from services.inference.engine.pipelines.looks import LOOKS
from tests.bench import engine_cpu, pytrickle_peer
from tests.bench.engine_cpu import FPS, WARM_UP, beside_pytrickle, encoded, look_ms
from tests.bench.figures import Figure
from tests.bench.latency import WARM_UP as UNCOUNTED
from tests.bench.latency import Journey
from tests.bench.pytrickle_peer import Run
from tests.support.engine import decoded


def run(latency_ms: float, cpu_ms: float, *, lost: int = 0) -> Run:
    """600 pictures, each back after `latency_ms`; the last `lost` are not."""
    sent_s = {number: number / FPS for number in range(600)}
    received_s = {number: at_s + latency_ms / 1000 for number, at_s in sent_s.items() if number < 600 - lost}
    return Run(Journey(sent_s, received_s), cpu_ms)


def values(figures: list[Figure]) -> dict[str, float | None]:
    return {figure.figure: figure.value for figure in figures}


def test_the_ratio_is_how_much_longer_pytrickle_takes() -> None:
    found = values(beside_pytrickle(run(5, 4), run(50, 12, lost=6)))
    assert found["ratio_to_pytrickle"] == pytest.approx(10)
    assert found["cpu_ratio_to_pytrickle"] == pytest.approx(3)
    assert found["runner_p50_ms"] == pytest.approx(5)
    (loss,) = [one for one in beside_pytrickle(run(5, 4), run(50, 12, lost=6)) if "lost" in one.figure]
    assert loss.value == 0
    assert loss.baseline == pytest.approx(0.01)


def test_without_pytrickle_its_figures_are_null_and_ours_are_there() -> None:
    lines = {one.figure: json.loads(one.line()) for one in beside_pytrickle(run(5, 4), None)}
    assert lines["ratio_to_pytrickle"]["value"] is None
    assert lines["cpu_ratio_to_pytrickle"]["value"] is None
    assert lines["runner_p50_ms"]["value"] == pytest.approx(5)
    assert lines["runner_p50_ms"]["baseline"] is None
    assert UNCOUNTED == 90


@pytest.mark.parametrize(("there", "status"), [(True, 0), (False, 1)])
def test_the_exit_status_says_whether_there_was_a_comparison(
    there: bool,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["engine_cpu"])
    monkeypatch.setattr(engine_cpu, "film", lambda *_, **__: [np.zeros((64, 64, 3), np.uint8)])
    monkeypatch.setattr(engine_cpu, "look_ms", lambda *_: 1.0)
    monkeypatch.setattr(engine_cpu, "of_the_engine", lambda _: [])
    found = beside_pytrickle(run(5, 4), run(50, 12) if there else None)
    monkeypatch.setattr(engine_cpu, "compared", lambda _: (found, there))
    with pytest.raises(SystemExit) as caught:
        engine_cpu.main()
    assert caught.value.code == status
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {f"look_{look}_ms" for look in LOOKS} <= {line["figure"] for line in lines}


def test_an_environment_that_cannot_be_made_is_not_to_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        pytrickle_peer.peer_python(tmp_path / "file" / "environment")


def test_a_package_that_cannot_be_installed_is_not_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pytrickle_peer, "PACKAGES", (str(tmp_path / "pytrickle-0.1.6-py3-none-any.whl"),))
    with pytest.raises(SubprocessError):
        pytrickle_peer.peer_python(tmp_path / "environment")


def test_the_pictures_go_there_and_back_and_each_has_its_time() -> None:
    pictures = [np.full((512, 512, 3), level, np.uint8) for level in (30, 110, 190)]
    media = encoded(pictures, 8)
    shown = [round(float(frame.rgb().mean()) / 80) for frame in decoded(media)]
    assert shown == [0, 1, 2, 2, 1, 0, 0, 1]
    assert len({one.pts for one in media}) == 8
    assert WARM_UP < engine_cpu.LIVE_S * FPS


def test_a_look_is_timed_by_its_median_picture() -> None:
    assert 0 < look_ms("glitch", [np.zeros((512, 512, 3), np.uint8)] * 3) < 1000
