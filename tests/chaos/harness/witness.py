"""`python -m tests.chaos.harness.witness FILE services.ingest`: an ingest process, looked at from within.

Each picture that a runner's leg took in, and each that went out to the viewers, is a line in FILE, when it
happened. The rule it keeps: it stands at the two ends of the bridge and asks neither its meter nor its
handover, so that both can be judged by it; a kill loses no line.
"""

from __future__ import annotations

import itertools
import os
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from services.common.media.mpegts import AccessUnit, Codec, Demuxer
from services.ingest.bridge.leg import Leg
from services.ingest.bridge.playout import Playout
from services.ingest.bridge.session import BridgeSession
from tests.chaos.harness.passed import IN, OUT, Passed, line_of


def install(note: Callable[[Passed], None]) -> None:
    """Have every bridge of this process say what passes."""
    bridges: WeakKeyDictionary[Playout, tuple[BridgeSession, str]] = WeakKeyDictionary()
    numbers = itertools.count()
    begin, show, take = BridgeSession.__init__, Playout.show, Leg._take

    def begun(self: BridgeSession, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        bridges[self._playout] = self, f"{os.getpid()}.{next(numbers)}"

    def shown(self: Playout, picture: AccessUnit, now_s: float, next_pts: int | None) -> None:
        show(self, picture, now_s, next_pts)
        session, bridge = bridges[self]
        note(
            Passed(
                OUT,
                session.identity.session,
                bridge,
                session.epoch,
                time.monotonic(),
                picture.pts,
                session.frames_dropped,
            )
        )

    def taken(self: Leg, demuxer: Demuxer, units: Sequence[AccessUnit]) -> None:
        if not self.closed:
            for unit in units:
                if unit.codec is Codec.H264:
                    note(Passed(IN, self._channels._session, "-", self.epoch, time.monotonic(), unit.pts))
        take(self, demuxer, units)

    BridgeSession.__init__ = begun  # type: ignore[method-assign]
    Playout.show = shown  # type: ignore[method-assign]
    Leg._take = taken  # type: ignore[method-assign]


def main() -> None:
    file, module, *words = sys.argv[1:]
    written = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(passed: Passed) -> None:
        os.write(written, line_of(passed).encode())

    install(note)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
