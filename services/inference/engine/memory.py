"""How much memory there is and is used, and what is done when there is none. It never imports torch."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

PAGE_BYTES: Final = 4096
SPARE_BYTES: Final = 256 << 20  # for what nobody has measured
SPARE_FACTOR: Final = 1.25  # loading takes more than what is loaded
CGROUP: Final = Path("/sys/fs/cgroup")


def is_exhausted(error: BaseException) -> bool:
    """Whether `error` says so: Python's own, or a library's by its name."""
    return any(kind.__name__ in {"MemoryError", "OutOfMemoryError"} for kind in type(error).__mro__)


def free() -> None:
    """Give back what nobody uses."""
    gc.collect()
    if (torch := _cuda()) is not None:
        torch.cuda.empty_cache()


def used_bytes(device: str) -> int:
    """By this process, on `device`."""
    torch = _cuda() if device != "cpu" else None
    return int(torch.cuda.memory_allocated(device)) if torch is not None else _resident_bytes()


def room_for(needed_bytes: int, device: str, limit_bytes: int | None) -> bool:
    """Whether so much more fits beside what there is; `limit_bytes` is the most that this process may use."""
    wanted = SPARE_FACTOR * needed_bytes + SPARE_BYTES
    torch = _cuda() if device != "cpu" else None
    if torch is not None and torch.cuda.mem_get_info(device)[0] < wanted:
        return False
    spare = [_available_bytes(), _spare_in_cgroup()]
    if limit_bytes is not None:
        spare.append(limit_bytes - _resident_bytes())
    return all(one is None or one >= wanted for one in spare)


def _cuda() -> ModuleType | None:
    """torch, if a pipeline imported it and computes on a GPU."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


def _available_bytes() -> int | None:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _spare_in_cgroup() -> int | None:
    """Below the limit of the container, if it has one."""
    try:
        limit, current = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return None if limit == "max" else int(limit) - int(current)
