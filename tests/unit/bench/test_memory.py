from __future__ import annotations

import pytest

from tests.bench.memory import Sample, figures, named, slope_mb_per_min


def test_a_slope_is_in_mb_per_minute_and_noise_around_a_line_does_not_bend_it() -> None:
    line = [(second, 50e6 + second * 1e6 / 60 * 2) for second in range(120)]
    noisy = [(second, size + (1e5 if second % 2 else -1e5)) for second, size in line]
    assert slope_mb_per_min(line) == pytest.approx(2.0)
    assert slope_mb_per_min(noisy) == pytest.approx(2.0, abs=0.01)


def test_processes_are_named_after_what_they_run() -> None:
    assert named(["/usr/bin/python", "-m", "services.inference.engine", "--fd", "7"]) == "engine"
    assert named(["python", "-m", "services.inference"]) == "runner"
    assert named(["/opt/venv/bin/nats-server", "--jetstream"]) == "nats"
    assert named(["python", "-c", "from multiprocessing.resource_tracker import main"]) is None
    assert named([]) is None


def test_of_several_runners_the_figures_are_the_mean_size_and_the_fastest_growth() -> None:
    names = {1: "runner", 2: "runner", 3: "router"}
    rest = [Sample(0, {1: 10_000_000, 2: 30_000_000, 3: 5_000_000})]
    live = [
        Sample(60 * minute, {1: 20_000_000, 2: 40_000_000 + minute * 3_000_000, 3: 5_000_000})
        for minute in range(3)
    ]
    found = {figure.figure: figure for figure in figures(names, rest, live)}
    assert found["rss_mb_runner"].value == 20
    assert found["rss_mb_runner_4_streams"].value == pytest.approx((20 + 43) / 2)
    assert found["rss_mb_runner_4_streams"].baseline == 20
    assert found["slope_mb_per_min_runner"].value == pytest.approx(3)
    assert found["slope_mb_per_min_router"].value == pytest.approx(0)
    assert found["slope_mb_per_min"].value == pytest.approx(3)
    assert found["rss_mb"].value == 45
