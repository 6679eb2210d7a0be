"""A skewed process has another wall clock and the same monotonic one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.support.stack import ROOT

SHOWS = "import time, datetime; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"


def test_only_the_wall_clock_is_wrong(tmp_path: Path) -> None:
    clock, module = tmp_path / "clock", tmp_path / "shows.py"
    clock.write_text("300")
    module.write_text(SHOWS)
    words = [sys.executable, "-m", "tests.chaos.harness.skewed", str(clock), "shows"]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=20
    )
    wall_s, dated_s, monotonic_s = (float(word) for word in done.stdout.split())
    assert 280 < wall_s - time.time() < 301
    assert abs(dated_s - wall_s) < 1
    assert abs(monotonic_s - time.monotonic()) < 20
