"""The name of this machine's monotonic clock: processes that give the same one can compare their times."""

from __future__ import annotations

from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")  # one for each boot, the same in every container


def clock_name() -> str:
    """What `time.monotonic` counts from, or "" where the kernel does not say, which compares with nothing."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
