"""`python -m tests.chaos.harness.skewed FILE services.router`: a service whose wall clock is wrong.

The file says by how many seconds; it may change while the service runs. The rule it keeps: only the wall
clock is wrong, never the monotonic one, as after a step of NTP.
"""

from __future__ import annotations

import datetime
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.2  # how often the file is looked at


class Skew:
    """How wrong the clock is, from a file, read now and then."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seconds = 0.0
        self._next_s = 0.0

    def seconds(self) -> float:
        if (now_s := time.monotonic()) >= self._next_s:
            self._next_s = now_s + LOOK_S
            try:
                self._seconds = float(self._file.read_text())
            except (FileNotFoundError, ValueError):  # not written yet, or just being written
                return self._seconds
        return self._seconds


def install(skew: Skew) -> None:
    """Make every later `time.time`, `time.time_ns` and `datetime.now` of this process wrong."""
    true_time: Callable[[], float] = time.time
    true_ns: Callable[[], int] = time.time_ns

    class WrongDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> WrongDatetime:
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: true_time() + skew.seconds()
    time.time_ns = lambda: true_ns() + round(skew.seconds() * 1e9)
    datetime.datetime = WrongDatetime  # type: ignore[misc]


def main() -> None:
    file, module, *words = sys.argv[1:]
    install(Skew(Path(file)))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
