"""Blocks that own their tasks: nothing ends quietly, nothing outlives its block."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

import pytest

from services.common.errors import UnavailableError
from services.common.lifecycle import Bulkhead, LoopEndedError, background, run, until_terminated


async def _for_ever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("ended")


async def _returns() -> None:
    await asyncio.sleep(0)


async def _fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("broken")


async def test_loops_end_with_the_block() -> None:
    ended: list[str] = []
    async with background(one=_for_ever(ended), two=_for_ever(ended)):
        await asyncio.sleep(0)
        assert ended == []
    assert ended == ["ended", "ended"]


async def test_a_loop_that_returns_is_an_error() -> None:
    with pytest.raises(ExceptionGroup) as failure:
        async with background(poller=_returns()):
            await asyncio.Event().wait()
    assert failure.group_contains(LoopEndedError, match="poller")


async def test_a_failing_loop_cancels_the_block_and_the_other_loops() -> None:
    ended: list[str] = []
    with pytest.raises(ExceptionGroup) as failure:
        async with background(good=_for_ever(ended), bad=_fails()):
            await _for_ever(ended)
    assert failure.group_contains(ValueError, match="broken")
    assert ended == ["ended", "ended"]


async def test_a_block_that_fails_at_once_leaves_no_loop_behind_and_no_warning() -> None:
    ended: list[str] = []
    with pytest.raises(ExceptionGroup) as failure:
        async with background(never_started=_for_ever(ended)):
            raise ValueError("broken")
    assert failure.group_contains(ValueError)
    assert ended == []


async def _swallows_one_cancellation(ended: list[str]) -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await _for_ever(ended)


@pytest.mark.looptime
async def test_who_swallows_a_cancellation_is_cancelled_again() -> None:
    ended: list[str] = []
    async with background(stubborn=_swallows_one_cancellation(ended)):
        await asyncio.sleep(1)
    async with Bulkhead(lambda *_: None) as bulkhead:
        bulkhead.start("stubborn", _swallows_one_cancellation(ended))
        await asyncio.sleep(1)
    assert ended == ["ended", "ended"]


async def test_a_bulkhead_contains_the_failure_of_one() -> None:
    ended: list[str] = []
    failures: list[tuple[str, str]] = []
    async with Bulkhead(lambda key, error: failures.append((key, str(error)))) as bulkhead:
        bulkhead.start("good", _for_ever(ended))
        await asyncio.wait({bulkhead.start("bad", _fails())})
        await asyncio.sleep(0)
        assert failures == [("bad", "broken")]
        assert "good" in bulkhead
        assert "bad" not in bulkhead
        assert len(bulkhead) == 1
        bulkhead.start("bad", _for_ever(ended))  # the key is free again
        await asyncio.sleep(0)
    assert ended == ["ended", "ended"]
    assert len(failures) == 1


async def test_a_bulkhead_cancels_one_by_its_key_and_that_is_no_failure() -> None:
    ended: list[str] = []
    failures: list[str] = []
    async with Bulkhead(lambda key, _: failures.append(key)) as bulkhead:
        task = bulkhead.start("one", _for_ever(ended))
        await asyncio.sleep(0)
        bulkhead.cancel("one")
        bulkhead.cancel("unknown")
        await asyncio.wait({task})
        assert task.cancelled()
    assert (ended, failures) == (["ended"], [])


async def test_a_bulkhead_that_ends_at_once_leaves_no_warning() -> None:
    ended: list[str] = []
    async with Bulkhead(lambda *_: None) as bulkhead:
        bulkhead.start("never started", _for_ever(ended))
    assert ended == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_until_terminated_returns_at_the_first_signal_and_gives_the_second_its_default(
    number: signal.Signals,
) -> None:
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        waiting = asyncio.create_task(until_terminated())
        await asyncio.sleep(0)
        os.kill(os.getpid(), number)
        await asyncio.wait_for(waiting, 1)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def test_run_ends_with_one_line_and_status_1_for_what_an_operator_can_mend(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def main() -> None:
        async with background(loop=_for_ever([])):
            raise UnavailableError("no NATS at nats://nowhere")

    with pytest.raises(SystemExit) as ended:
        run(main())
    assert ended.value.code == 1
    assert capsys.readouterr().err == "cannot run: no NATS at nats://nowhere\n"


def test_run_hides_no_bug() -> None:
    async def main() -> None:
        async with background(loop=_fails()):
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as failure:
        run(main())
    assert failure.group_contains(ValueError)
    assert "uvloop" in sys.modules
