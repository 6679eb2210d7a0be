from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from sluice.pipeline import Setup, Shared, Sharing


class Model:
    """Says when it is closed, and can be told to take its time."""

    def __init__(self) -> None:
        self.closed = 0
        self.may_close = threading.Event()
        self.may_close.set()
        self.closing = threading.Event()

    def close(self) -> None:
        self.closing.set()
        assert self.may_close.wait(20)
        self.closed += 1


@pytest.fixture
def streams() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_what_is_shared_is_made_once_and_closed_with_its_last_user() -> None:
    sharing = Sharing()
    first = sharing.share("model", Model)
    second = sharing.share("model", Model)
    model = first.value
    assert second.value is model
    first.close()
    first.close()
    assert model.closed < 1, "one uses it still"
    second.close()
    assert model.closed == 1
    with sharing.share("model", Model) as another:
        assert another is not model
    assert another.closed == 1


def test_keys_are_apart() -> None:
    sharing = Sharing()
    with sharing.share(("sd", 512), Model) as one, sharing.share(("sd", 768), Model) as other:
        assert one is not other


def test_what_cannot_be_closed_is_shared_too() -> None:
    with Setup.plain().share("numbers", lambda: [1, 2, 3]) as numbers:
        assert numbers == [1, 2, 3]


def test_whoever_asks_while_it_is_made_waits_for_it(streams: ThreadPoolExecutor) -> None:
    sharing = Sharing()
    making, may_end = threading.Event(), threading.Event()
    made: list[Model] = []

    def make() -> Model:
        making.set()
        assert may_end.wait(20)
        made.append(Model())
        return made[-1]

    asked = [streams.submit(sharing.share, "model", make)]
    assert making.wait(20)
    asked += [streams.submit(sharing.share, "model", make) for _ in range(4)]
    other = streams.submit(sharing.share, "other", Model)
    assert isinstance(other.result(20).value, Model), "another key does not wait"
    may_end.set()
    held = [future.result(20) for future in asked]
    assert len(made) == 1
    assert {id(one.value) for one in held} == {id(made[0])}
    for one in held:
        assert not made[0].closed
        one.close()
    assert made[0].closed == 1


def test_who_waits_gets_what_went_wrong_and_who_comes_later_tries_anew(streams: ThreadPoolExecutor) -> None:
    sharing = Sharing()
    making, may_end = threading.Event(), threading.Event()
    attempts = 0

    def make() -> Model:
        nonlocal attempts
        attempts += 1
        making.set()
        assert may_end.wait(20)
        raise MemoryError("too large")

    asked = [streams.submit(sharing.share, "model", make)]
    assert making.wait(20)
    asked += [streams.submit(sharing.share, "model", make) for _ in range(3)]
    while len(sharing._changed._waiters) < 3:  # type: ignore[attr-defined]
        threading.Event().wait(0.001)
    may_end.set()
    for future in asked:
        with pytest.raises(MemoryError, match="too large"):
            future.result(20)
    assert attempts == 1
    with sharing.share("model", Model) as model:
        assert isinstance(model, Model)


def test_the_next_is_made_only_when_the_last_is_closed(streams: ThreadPoolExecutor) -> None:
    sharing = Sharing()
    held = sharing.share("model", Model)
    old = held.value
    old.may_close.clear()
    leaving = streams.submit(held.close)
    assert old.closing.wait(20)
    asked = streams.submit(sharing.share, "model", Model)
    assert not asked.done()
    old.may_close.set()
    leaving.result(20)
    with asked.result(20) as new:
        assert new is not old
        assert old.closed == 1


def test_a_value_that_cannot_be_closed_well_is_gone_all_the_same() -> None:
    class Stubborn:
        def close(self) -> None:
            raise OSError("busy")

    sharing = Sharing()
    held = sharing.share("model", Stubborn)
    with pytest.raises(OSError, match="busy"):
        held.close()
    assert isinstance(sharing.share("model", Model).value, Model)


def test_what_is_given_up_is_not_kept() -> None:
    sharing = Sharing()
    held = sharing.share("model", Model)
    model = weakref.ref(held.value)
    held.close()
    gc.collect()
    assert model() is None, "its memory is needed for the next"
    with pytest.raises(RuntimeError, match="given up"):
        _ = held.value


def test_what_asks_for_itself_is_told_so() -> None:
    sharing = Sharing()

    def make() -> Shared[Model]:
        return sharing.share("model", Model)

    with pytest.raises(RuntimeError, match="asks for it"):
        sharing.share("model", make)
    with sharing.share("model", Model) as model:
        assert isinstance(model, Model)


def test_a_model_may_share_a_part_of_it() -> None:
    sharing = Sharing()
    with sharing.share("model", lambda: sharing.share("part", Model)) as inner:
        part = inner.value
        assert part.closed < 1
    assert part.closed == 1


def test_many_streams_that_come_and_go_never_see_two_of_a_kind(streams: ThreadPoolExecutor) -> None:
    sharing = Sharing()
    lock = threading.Lock()
    alive, most = 0, 0

    class Counted:
        def __init__(self) -> None:
            nonlocal alive, most
            with lock:
                alive += 1
                most = max(most, alive)

        def close(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def serve() -> None:
        for _ in range(200):
            with sharing.share("model", Counted):
                pass

    for served in [streams.submit(serve) for _ in range(8)]:
        served.result(25)
    assert (alive, most) == (0, 1)
