"""Checks of a long life: it can end at any time, and does not grow while it lasts."""

from __future__ import annotations

import gc
import os
import tracemalloc
from pathlib import Path
from typing import Final

from sluice.authoring.rehearsal import Rehearsal
from sluice.conformance.subject import FailedError, Subject

STATM: Final = Path("/proc/self/statm")
QUARTERS: Final = 4
WARM_UP: Final = 60
# An allocator's own bookkeeping is below these; a kept picture of 64x64 is six times the first.
RESIDENT_BYTES: Final = 2048  # a frame
TRACED_BYTES: Final = 200  # a frame
RESIDENT_FRAMES: Final = 250  # growth is shared among so many at least, for few frames tell little
TRACED_FRAMES: Final = 80
TRACED_SHARE: Final = 4  # tracing is slow: a quarter of the frames
PATIENCE: Final = 1 / (1 + 2 * QUARTERS)  # of each part: the warm-up, and the quarters of both counts
SHOWN_LINES: Final = 3


def closing(subject: Subject) -> str:
    unloaded = subject.pipeline()
    _close(unloaded.close, "without a load")
    _close(unloaded.close, "twice without a load")
    loaded = subject.load()
    instance = loaded.instance
    _close(instance.close, "without a frame")
    _close(instance.close, "twice")
    used = subject.load()
    instance = used.instance
    subject.pictures(used, 2)
    _close(instance.close, "after frames")
    _close(instance.close, "twice after frames")
    with subject.load() as again:
        subject.pictures(again, 1)
    return "without a load, without a frame, twice, and it can be loaded again"


def leaks(subject: Subject) -> str:
    with subject.load() as rehearsal:
        _run(subject, rehearsal, 0, WARM_UP)
        traced = _traced(subject, rehearsal, max(QUARTERS, subject.plan.leak_frames // TRACED_SHARE))
        resident = _resident(subject, rehearsal, max(QUARTERS, subject.plan.leak_frames))
    return f"{traced}; {resident}"


def _close(close: object, when: str) -> None:
    assert callable(close)
    try:
        close()
    except Exception as error:
        raise FailedError(f"close raises {type(error).__name__} {when}: {error}") from error


def _run(subject: Subject, rehearsal: Rehearsal, start: int, count: int) -> int:
    """Show up to `count` pictures; how many the patience allowed."""
    done = 0
    for number in subject.patiently(range(start, start + count), PATIENCE):
        rehearsal.show(subject.film.frame(number))
        done += 1
    return done


def _traced(subject: Subject, rehearsal: Rehearsal, count: int) -> str:
    """Grow, by Python's and numpy's own count, in each of the last three quarters: that is a leak."""
    ours = not tracemalloc.is_tracing()
    if ours:
        tracemalloc.start()
    try:
        grown, done, lines = [], 0, ""
        for quarter in range(QUARTERS):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            earlier = tracemalloc.take_snapshot() if quarter == QUARTERS - 1 else None
            ran = _run(subject, rehearsal, WARM_UP + done, count // QUARTERS)
            done += ran
            gc.collect()
            grown.append((tracemalloc.get_traced_memory()[0] - before) / max(ran, TRACED_FRAMES))
            if earlier is not None:
                lines = _largest(earlier, tracemalloc.take_snapshot(), ran)
    finally:
        if ours:
            tracemalloc.stop()
    if min(grown[1:]) > TRACED_BYTES:
        raise FailedError(
            f"it keeps {min(grown[1:]):.0f} more bytes a frame over {done} frames, of at most {TRACED_BYTES};"
            f" most of it from\n{lines}"
        )
    return f"{done} frames keep {max(0.0, min(grown[1:])):.0f} bytes each (allowed: {TRACED_BYTES})"


def _largest(before: tracemalloc.Snapshot, after: tracemalloc.Snapshot, frames: int) -> str:
    grown = sorted(after.compare_to(before, "lineno"), key=lambda one: one.size_diff, reverse=True)
    return "\n".join(
        f"{one.traceback[0].filename}:{one.traceback[0].lineno}, {one.size_diff / frames:.0f} bytes a frame"
        for one in grown[:SHOWN_LINES]
    )


def _resident(subject: Subject, rehearsal: Rehearsal, count: int) -> str:
    """Grow, by the system's count, in each of the last three quarters: that is a leak, whoever allocates."""
    if not STATM.exists():
        return "the process's size was not measured: there is no /proc"
    grown, done = [], 0
    for _ in range(QUARTERS):
        gc.collect()
        before = _resident_bytes()
        ran = _run(subject, rehearsal, WARM_UP + done, count // QUARTERS)
        done += ran
        gc.collect()
        grown.append((_resident_bytes() - before) / max(ran, RESIDENT_FRAMES))
    if min(grown[1:]) > RESIDENT_BYTES:
        raise FailedError(
            f"the process grows by {min(grown[1:]):.0f} bytes a frame over {done} frames, of at most"
            f" {RESIDENT_BYTES}, outside of Python and numpy"
        )
    grew = max(0.0, min(grown[1:]))
    return f"over {done} frames the process grows by {grew:.0f} each (allowed: {RESIDENT_BYTES})"


def _resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
