"""The router's only look at the wall clock: for what other processes read, never for a duration."""

from __future__ import annotations

import time


def now_unix_us() -> int:
    return time.time_ns() // 1_000
