from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.pipeline import batching
from sluice.pipeline.batching import SAMPLES, TRUSTED, TRY_EVERY, TRY_SOON, Batcher, Throughput

NEVER_S = 60.0  # a wait that would end the test by its timeout


class Gate:
    """A `run` that goes on only when it is let: what it makes of a number is ten times as much."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.leave = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.release()
        assert self.leave.acquire(timeout=20)
        return [10 * item for item in items]


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def waiting(batcher: Batcher[int, int]) -> int:
    return len(batcher._waiting)


@pytest.fixture
def streams() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ask_in_order(
    streams: ThreadPoolExecutor, batcher: Batcher[int, int], items: Sequence[int]
) -> list[Future[int]]:
    """Each from a stream of its own, one after the other."""
    asked: list[Future[int]] = []
    before = waiting(batcher)
    for count, item in enumerate(items, start=1):
        asked.append(streams.submit(batcher, item))
        until(lambda: waiting(batcher) >= before + count)  # noqa: B023 - it is called at once
    return asked


def test_a_stream_that_is_alone_does_not_wait() -> None:
    batcher = Batcher[int, int](lambda items: [item + 1 for item in items], largest=4, wait_s=NEVER_S)
    batcher.join()
    assert [batcher(item) for item in range(100)] == list(range(1, 101))
    batcher.close()


def test_a_batch_starts_when_everybody_waits(streams: ThreadPoolExecutor) -> None:
    gate = Gate()
    batcher = Batcher[int, int](gate, largest=8, wait_s=NEVER_S)
    for _ in range(3):
        batcher.join()
    asked = ask_in_order(streams, batcher, [1, 2])
    assert not gate.entered.acquire(timeout=0.05), "the third is missing"
    asked.append(streams.submit(batcher, 3))
    gate.leave.release()
    assert [future.result(20) for future in asked] == [10, 20, 30]
    assert gate.batches == [[1, 2, 3]]
    batcher.close()


def test_a_batch_starts_without_somebody_who_does_not_come(streams: ThreadPoolExecutor) -> None:
    gate = Gate()
    gate.leave.release(100)
    batcher = Batcher[int, int](gate, largest=8, wait_s=0.05)
    for _ in range(3):
        batcher.join()  # of which one's thread has died
    started = time.monotonic()
    asked = [streams.submit(batcher, item) for item in (1, 2)]
    assert sorted(future.result(20) for future in asked) == [10, 20]
    assert time.monotonic() - started >= 0.05
    batcher.close()


def test_whoever_leaves_is_not_waited_for(streams: ThreadPoolExecutor) -> None:
    gate = Gate()
    gate.leave.release(100)
    batcher = Batcher[int, int](gate, largest=8, wait_s=NEVER_S)
    batcher.join()
    batcher.join()
    (asked,) = ask_in_order(streams, batcher, [1])
    until(lambda: bool(batcher._changed._waiters))  # type: ignore[attr-defined] # for the second stream
    batcher.leave()
    assert asked.result(20) == 10
    batcher.close()


def test_a_batch_is_no_larger_than_allowed_and_takes_who_came_first(streams: ThreadPoolExecutor) -> None:
    gate = Gate()
    batcher = Batcher[int, int](gate, largest=3, wait_s=NEVER_S)
    for _ in range(6):
        batcher.join()
    first = ask_in_order(streams, batcher, [1, 2])
    first.append(streams.submit(batcher, 3))
    assert gate.entered.acquire(timeout=20)
    rest = ask_in_order(streams, batcher, [4, 5, 6])
    gate.leave.release(2)
    assert [future.result(20) for future in (*first, *rest)] == [10, 20, 30, 40, 50, 60]
    assert gate.batches == [[1, 2, 3], [4, 5, 6]]
    batcher.close()


def test_what_comes_while_a_batch_is_under_way_is_in_the_next(streams: ThreadPoolExecutor) -> None:
    gate = Gate()
    batcher = Batcher[int, int](gate, largest=8, wait_s=0.001)
    early = streams.submit(batcher, 1)
    assert gate.entered.acquire(timeout=20)
    late = ask_in_order(streams, batcher, [2, 3, 4])
    gate.leave.release(2)
    assert [future.result(20) for future in (early, *late)] == [10, 20, 30, 40]
    assert gate.batches == [[1], [2, 3, 4]]
    batcher.close()


def test_two_streams_that_began_out_of_step_come_to_share_their_batches(
    streams: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now))
    gate = Gate()
    batcher = Batcher[int, int](gate, largest=2, wait_s=NEVER_S, clock=lambda: now)
    batcher.join()
    one = streams.submit(batcher, 1)
    assert gate.entered.acquire(timeout=20)
    batcher.join()
    (two,) = ask_in_order(streams, batcher, [2])
    now += 2 * NEVER_S  # longer than anybody is to be waited for, but for a batch that was under way
    gate.leave.release()
    assert one.result(20) == 10
    assert not gate.entered.acquire(timeout=0.05), "the second waits for the first to come again"
    again = streams.submit(batcher, 3)
    gate.leave.release()
    assert (two.result(20), again.result(20)) == (20, 30)
    assert gate.batches == [[1], [2, 3]]
    batcher.close()


def test_what_goes_wrong_is_raised_in_the_stream_whose_item_it_is_and_in_no_other(
    streams: ThreadPoolExecutor,
) -> None:
    batches: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        batches.append(len(items))
        return [100 // item for item in items]

    batcher = Batcher[int, int](run, largest=2, wait_s=NEVER_S)
    batcher.join()
    batcher.join()
    asked = ask_in_order(streams, batcher, [5])
    asked.append(streams.submit(batcher, 0))
    assert asked[0].result(20) == 20
    with pytest.raises(ZeroDivisionError):
        asked[1].result(20)
    assert batches == [2, 1, 1]
    after = [streams.submit(batcher, item) for item in (5, 10)]
    assert [future.result(20) for future in after] == [20, 10]
    batcher.close()


def test_a_run_that_ends_its_thread_ends_no_other(streams: ThreadPoolExecutor) -> None:
    def run(items: Sequence[int]) -> list[int]:
        if 0 in items:
            raise SystemExit(3)
        return list(items)

    batcher = Batcher[int, int](run, largest=1)
    with pytest.raises(SystemExit):
        batcher(0)
    assert batcher(1) == 1
    batcher.close()


@pytest.mark.parametrize("results", [[], [1, 2]])
def test_a_run_that_makes_too_few_or_too_many_results_is_wrong(results: list[int]) -> None:
    batcher = Batcher[int, int](lambda items: results, largest=4)
    with pytest.raises(ValueError, match=f"{len(results)} results of 1 items"):
        batcher(1)
    batcher.close()


def test_closing_ends_the_batch_that_is_under_way_well_and_refuses_all_others(
    streams: ThreadPoolExecutor,
) -> None:
    gate = Gate()
    batcher = Batcher[int, int](gate, largest=1)
    served = streams.submit(batcher, 1)
    assert gate.entered.acquire(timeout=20)
    (refused,) = ask_in_order(streams, batcher, [2])
    closing = streams.submit(batcher.close)
    until(lambda: batcher._closed)
    gate.leave.release()
    closing.result(20)
    assert served.result(20) == 10
    with pytest.raises(RuntimeError, match="closed"):
        refused.result(20)
    with pytest.raises(RuntimeError, match="closed"):
        batcher(3)
    assert gate.batches == [[1]]
    batcher.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is the point
def test_nobody_waits_for_a_thread_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(self: Throughput, waiting: int) -> int:
        raise NameError

    monkeypatch.setattr(Throughput, "best", bug)
    batcher = Batcher[int, int](list, largest=1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            batcher(1)
    batcher.close()


def test_nothing_of_a_batch_is_kept_once_it_is_served() -> None:
    import gc
    import weakref

    class Tensor:
        pass

    batcher = Batcher[Tensor, Tensor](lambda items: [Tensor() for _ in items], largest=1)
    item = Tensor()
    made = batcher(item)
    kept = weakref.ref(item), weakref.ref(made)
    del item, made
    until(lambda: (gc.collect(), kept[0]() is None and kept[1]() is None)[1])
    batcher.close()


def test_all_who_wait_are_taken_until_something_else_is_known() -> None:
    assert [Throughput().best(waiting) for waiting in (1, 2, 7)] == [1, 2, 7]


def measured(seconds: dict[int, float], *, times: int = TRUSTED) -> Throughput:
    throughput = Throughput()
    for size, took in seconds.items():
        for _ in range(times):
            throughput.record(size, took)
    return throughput


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1.0, 2: 1.5, 4: 2.0}, 4),  # more together is quicker
        ({1: 1.0, 2: 2.0, 4: 4.0}, 4),  # as quick: once is simpler
        ({1: 1.0, 2: 1.5, 4: 9.0}, 2),  # four do not fit
        ({1: 1.0, 2: 2.5, 4: 9.0}, 1),
        ({1: 1.0, 2: 1.94, 4: 4.0}, 4),  # too little to tell from noise
        ({3: 0.1, 4: 4.0}, 4),  # three leave one behind, who would wait for all
        ({4: 4.0}, 4),
        ({1: 0.1}, 4),  # nothing is known of four yet
    ],
)
def test_the_size_with_which_most_is_done_in_a_second_is_taken(seconds: dict[int, float], best: int) -> None:
    assert measured(seconds).best(4) == best


def test_few_measurements_decide_nothing() -> None:
    assert measured({1: 0.1, 4: 4.0}, times=TRUSTED - 1).best(4) == 4


def test_one_slow_call_says_nothing_about_the_size() -> None:
    throughput = measured({1: 1.0, 4: 2.0}, times=SAMPLES)
    throughput.record(4, 60.0)  # a compilation
    assert throughput.best(4) == 4


def test_a_size_that_was_given_up_is_tried_again_and_taken_when_it_has_become_quick() -> None:
    throughput = measured({1: 1.0, 4: 9.0})
    sizes: list[int] = []
    for _ in range(4 * TRY_EVERY):
        size = throughput.best(4)
        sizes.append(size)
        throughput.record(size, {1: 1.0, 4: 2.0}[size])
    assert sizes[:100] == [1] * 100
    assert sizes[-1] == 4


def test_a_size_of_which_too_little_is_known_is_tried_soon() -> None:
    throughput = Throughput()
    throughput.record(1, 1.0)  # before the others came
    sizes: list[int] = []
    for _ in range(4 * TRY_SOON):
        size = throughput.best(4)
        sizes.append(size)
        throughput.record(size, {1: 1.0, 4: 9.0}[size])
    assert sizes[: TRY_SOON - 1] == [4] * (TRY_SOON - 1)
    assert sizes[-TRY_SOON:] == [1] * TRY_SOON, "three are enough"


def test_a_size_that_was_never_needed_is_not_tried() -> None:
    throughput = Throughput()
    for _ in range(3 * TRY_EVERY):
        assert throughput.best(4) == 4
        throughput.record(4, 1.0)


def test_streams_are_served_one_by_one_once_that_is_known_to_be_quicker(
    streams: ThreadPoolExecutor,
) -> None:
    now = 0.0
    sizes: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        nonlocal now
        now += len(items) ** 2  # what does not fit is swapped in and out
        sizes.append(len(items))
        return list(items)

    batcher = Batcher[int, int](run, largest=4, wait_s=NEVER_S, clock=lambda: now)
    for joined in (1, 2, 3, 4):  # as streams come, one after the other
        batcher.join()
        for _ in range(2 * SAMPLES):
            list(streams.map(batcher, range(joined)))
    assert [sizes.count(size) for size in (2, 3, 4)] == [TRUSTED] * 3, "and no more"
    assert sizes[-8:] == [1] * 8
    batcher.close()


def test_the_measured_seconds_decide_in_a_batcher_too(streams: ThreadPoolExecutor) -> None:
    now = 0.0
    sizes: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        nonlocal now
        now += 1.0  # a batch costs as much as one
        sizes.append(len(items))
        return list(items)

    batcher = Batcher[int, int](run, largest=4, wait_s=NEVER_S, clock=lambda: now)
    for joined in (1, 2, 3, 4):
        batcher.join()
        for _ in range(2 * SAMPLES):
            list(streams.map(batcher, range(joined)))
    assert sizes == [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10
    batcher.close()


@settings(deadline=None)
@given(
    streams=st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=6),
    largest=st.integers(1, 7),
    joined=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_each_stream_gets_what_was_made_of_its_own_items(
    streams: list[list[int]], largest: int, joined: list[bool]
) -> None:
    """An item that is 0 fails, and no other; nobody is ever given somebody else's."""
    batches: list[int] = []

    def run(items: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        batches.append(len(items))
        if any(item == 0 for _, item in items):
            raise LookupError
        return [(stream, 7 * item) for stream, item in items]

    batcher = Batcher[tuple[int, int], tuple[int, int]](run, largest=largest, wait_s=0.0005)

    def serve(stream: int) -> None:
        if joined[stream]:
            batcher.join()
        for item in streams[stream]:
            if item == 0:
                with pytest.raises(LookupError):
                    batcher((stream, item))
            else:
                assert batcher((stream, item)) == (stream, 7 * item)
        if joined[stream]:
            batcher.leave()

    with ThreadPoolExecutor(len(streams)) as pool:
        for served in [pool.submit(serve, stream) for stream in range(len(streams))]:
            served.result(20)
    batcher.close()
    assert sum(batches) >= sum(map(len, streams))
    assert max(batches, default=1) <= min(largest, len(streams))


def test_many_streams_that_come_and_go_are_all_served(streams: ThreadPoolExecutor) -> None:
    batcher = Batcher[int, int](lambda items: [-item for item in items], largest=4, wait_s=0.001)

    def serve(seed: int) -> int:
        luck = random.Random(seed)
        served = 0
        for visit in range(15):
            batcher.join()
            for turn in range(luck.randrange(20)):
                item = seed * 1_000_000 + visit * 1_000 + turn
                assert batcher(item) == -item
                served += 1
                if luck.random() < 0.05:
                    time.sleep(0.002)
            batcher.leave()
        return served

    asked = [streams.submit(serve, seed) for seed in range(8)]
    assert sum(future.result(25) for future in asked) > 500
    assert batcher._participants == 0
    assert not batcher._waiting
    batcher.close()


def test_a_stream_that_comes_again_is_behind_those_who_wait_already(streams: ThreadPoolExecutor) -> None:
    gate = Gate()
    batcher = Batcher[int, int](gate, largest=1)
    quick = streams.submit(batcher, 1)
    assert gate.entered.acquire(timeout=20)
    patient = ask_in_order(streams, batcher, [2, 3])
    gate.leave.release()
    assert quick.result(20) == 10
    assert gate.entered.acquire(timeout=20)
    again = ask_in_order(streams, batcher, [4])
    gate.leave.release(3)
    assert [future.result(20) for future in (*patient, *again)] == [20, 30, 40]
    assert gate.batches == [[1], [2], [3], [4]]
    batcher.close()
