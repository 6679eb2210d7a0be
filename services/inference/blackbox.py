"""What each slot's pipeline is at, in memory that outlives the engine: who hung or crashed it, and with what.

The engine writes, which costs a frame about a microsecond; its supervisor reads when the engine has died, or
says nothing any more. The rule it keeps: nothing else is ever asked of an engine that may be stuck.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

RECORD: Final = struct.Struct("=qqqqqd")  # stage, oldest and newest revision, frame, pts, since when
LANES: Final = 2  # the pipeline's thread, and the one beside it that prepares or loads


class Stage(enum.IntEnum):
    """Which of the author's methods is being called."""

    NONE = 0
    LOAD = 1
    PREPARE = 2
    ADOPT = 3
    PROCESS = 4
    PROCESS_AUDIO = 5
    SNAPSHOT = 6
    RESTORE = 7
    CLOSE = 8
    FIRST = 9  # `process`, with the first frame of an instance: what is compiled when it is needed, is then

    @property
    def word(self) -> str:
        return "process" if self is Stage.FIRST else self.name.lower()

    @property
    def long(self) -> bool:
        """Whether it may take as long as loading does."""
        return self in {Stage.LOAD, Stage.PREPARE, Stage.FIRST, Stage.CLOSE}


NOTHING: Final = (Stage.NONE, 0, 0, 0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class Moment:
    """A call that has begun and not returned. `oldest`, `newest`: the revisions on probation, 0 for none."""

    stage: Stage
    oldest: int
    newest: int
    frame: int
    pts: int
    since_s: float  # `time.monotonic`, which all processes of a machine share

    def __str__(self) -> str:
        return f"{self.stage.word}, frame {self.frame}, pts {self.pts}"


class BlackBox:
    """`size(slots)` bytes at a file's beginning, of which each process has a mapping."""

    def __init__(self, file: int, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(file, size(slots))

    @classmethod
    def make(cls, slots: int) -> tuple[BlackBox, int]:
        """One in anonymous memory; the descriptor is for another process, and to be closed."""
        file = os.memfd_create("sluice-blackbox")
        os.ftruncate(file, size(slots))
        return cls(file, slots), file

    def enter(
        self,
        slot: int,
        stage: Stage,
        *,
        revisions: Collection[int] = (),
        frame: int = 0,
        pts: int = 0,
        lane: int = 0,
    ) -> None:
        """`revisions`: what is tried with this call."""
        oldest, newest = (min(revisions), max(revisions)) if revisions else (0, 0)
        RECORD.pack_into(
            self._memory, _offset(slot, lane), stage, oldest, newest, frame, pts, time.monotonic()
        )

    def leave(self, slot: int, lane: int = 0) -> None:
        RECORD.pack_into(self._memory, _offset(slot, lane), *NOTHING)

    def moments(self, slot: int) -> tuple[Moment, ...]:
        """What the slot is at."""
        found = []
        for lane in range(LANES):
            stage, oldest, newest, frame, pts, since_s = RECORD.unpack_from(self._memory, _offset(slot, lane))
            if Stage.NONE < stage <= Stage.FIRST:
                found.append(Moment(Stage(stage), oldest, newest, frame, pts, since_s))
        return tuple(found)

    def close(self) -> None:
        self._memory.close()


def size(slots: int) -> int:
    return slots * LANES * RECORD.size


def _offset(slot: int, lane: int) -> int:
    return (slot * LANES + lane) * RECORD.size
