"""What an engine was at, read by somebody else when it is dead."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from services.inference.blackbox import BlackBox, Stage

WRITER = """
import os, signal, sys
from services.inference.blackbox import BlackBox, Stage
box = BlackBox(int(sys.argv[1]), 3)
box.enter(0, Stage.PROCESS)
box.leave(0)
box.enter(1, Stage.PROCESS, revisions=(7, 9), frame=412, pts=123456)
box.enter(1, Stage.PREPARE, revisions=(10,), lane=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_under_way_outlives_a_process_that_was_killed() -> None:
    box, file = BlackBox.make(3)
    before_s = time.monotonic()
    subprocess.run([sys.executable, "-c", WRITER, str(file)], check=False, pass_fds=[file])
    os.close(file)
    assert box.moments(0) == box.moments(2) == ()
    process, prepare = box.moments(1)
    assert (process.stage, process.oldest, process.newest) == (Stage.PROCESS, 7, 9)
    assert (process.frame, process.pts) == (412, 123456)
    assert str(process) == "process, frame 412, pts 123456"
    assert before_s <= process.since_s <= time.monotonic()
    assert (prepare.stage, prepare.oldest, prepare.newest) == (Stage.PREPARE, 10, 10)
    box.close()


def test_what_returned_is_under_way_no_more() -> None:
    box, file = BlackBox.make(1)
    os.close(file)
    box.enter(0, Stage.LOAD, lane=1)
    box.leave(0, 1)
    assert box.moments(0) == ()
    box.close()


def test_stages_have_words_and_some_may_take_long() -> None:
    assert {stage.word for stage in Stage} == {
        "none",
        "load",
        "prepare",
        "adopt",
        "process",
        "process_audio",
        "snapshot",
        "restore",
        "close",
    }
    assert [stage for stage in Stage if stage.long] == [Stage.LOAD, Stage.PREPARE, Stage.CLOSE, Stage.FIRST]
