from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine import inbox as module
from services.inference.engine.inbox import PICTURES_TO_TELL, PICTURES_WITH_SOUND, SOUNDS, Inbox


def both(live: bool) -> Inbox[str, str]:
    return Inbox(live=live, sound=True)


def rest(inbox: Inbox[str, str]) -> list[int]:
    inbox.finish_pictures()
    inbox.finish_sound()
    found = []
    while (item := inbox.get()) is not None:
        found.append(item[0])
    return found


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("live", [False, True])
def test_sound_goes_before_the_picture_that_is_not_earlier(live: bool) -> None:
    inbox = both(live)
    for pts in (0, 20, 40, 60):
        inbox.put_sound(pts, "s")
    inbox.put_picture(40, "p")
    assert [inbox.get() for _ in range(4)] == [(0, "s"), (20, "s"), (40, "s"), (40, "p")]
    assert len(inbox) == 1, "what is later than every picture waits"
    inbox.put_picture(80, "p")
    inbox.finish_sound()
    assert [inbox.get() for _ in range(2)] == [(60, "s"), (80, "p")]


def test_live_the_newest_picture_wins_and_the_sound_of_the_others_is_kept() -> None:
    inbox = both(live=True)
    for pts in range(0, 200, 20):
        inbox.put_sound(pts, "s")
        inbox.put_picture(pts, "p")
    assert inbox.dropped == 9
    assert rest(inbox) == [*range(0, 200, 20), 180]
    assert inbox.dropped_sounds == 0


def wait_for(inbox: Inbox[str, str], pts: int) -> None:
    """Have somebody wait for a picture, who gets this one."""
    waiting = in_thread(inbox.get)
    while not inbox._changed._waiters:  # type: ignore[attr-defined]
        time.sleep(0.001)
    inbox.put_picture(pts, "p")
    waiting.join(5)
    assert not waiting.is_alive()


def test_live_who_keeps_up_and_is_late_once_loses_nothing() -> None:
    inbox: Inbox[str, str] = Inbox(live=True, sound=False)
    wait_for(inbox, 0)
    inbox.put_picture(20, "p")
    inbox.put_picture(40, "p")
    assert (inbox.get(), inbox.get()) == ((20, "p"), (40, "p"))
    assert inbox.dropped == 0
    wait_for(inbox, 60)
    for pts in (80, 100, 120):
        inbox.put_picture(pts, "p")
    assert inbox.dropped == 1
    assert rest(inbox) == [100, 120]


def test_live_who_does_not_keep_up_always_gets_the_newest() -> None:
    inbox: Inbox[str, str] = Inbox(live=True, sound=False)
    wait_for(inbox, 0)
    for pts in range(1, 1 + PICTURES_TO_TELL):
        inbox.put_picture(pts, "p")
        assert inbox.get() == (pts, "p"), "which was there before it was asked for"
    inbox.put_picture(40, "p")
    inbox.put_picture(60, "p")
    assert inbox.get() == (60, "p")
    assert inbox.dropped == 1
    wait_for(inbox, 80)
    inbox.put_picture(100, "p")
    inbox.put_picture(120, "p")
    assert rest(inbox) == [100, 120], "it keeps up again"


def test_live_a_picture_waits_for_no_sound() -> None:
    inbox = both(live=True)
    inbox.put_sound(0, "s")
    inbox.put_picture(0, "p")
    assert (inbox.get(), inbox.get()) == ((0, "s"), (0, "p"))
    started_s = time.monotonic()
    inbox.put_picture(1000, "p")
    assert inbox.get() == (1000, "p")
    assert time.monotonic() - started_s < module.ALONE_AFTER_S


def test_live_sound_is_bounded_and_loses_its_oldest() -> None:
    inbox = both(live=True)
    for pts in range(SOUNDS + 10):
        inbox.put_sound(pts, "s")
    assert inbox.dropped_sounds == 10
    assert rest(inbox) == list(range(10, SOUNDS + 10))


def test_sound_goes_alone_when_no_picture_comes() -> None:
    inbox = both(live=True)
    started_s = time.monotonic()
    inbox.put_sound(0, "s")
    assert inbox.get() == (0, "s")
    assert time.monotonic() - started_s >= module.ALONE_AFTER_S * 0.9


def test_sound_of_a_time_that_was_seen_goes_at_once() -> None:
    inbox = both(live=True)
    inbox.put_picture(100, "p")
    inbox.get()
    started_s = time.monotonic()
    inbox.put_sound(90, "s")
    assert inbox.get() == (90, "s")
    assert time.monotonic() - started_s < module.ALONE_AFTER_S


def test_complete_a_picture_waits_for_its_sound() -> None:
    inbox = both(live=False)
    inbox.put_picture(100, "p")
    got: list[object] = []
    thread = in_thread(lambda: got.extend(inbox.get() for _ in range(3)))
    inbox.put_sound(60, "s")
    inbox.put_sound(120, "s")
    inbox.put_picture(200, "p")
    thread.join(5)
    assert got == [(60, "s"), (100, "p"), (120, "s")]


def test_complete_a_picture_does_not_wait_for_sound_that_has_ended_or_that_there_is_none_of() -> None:
    inbox = both(live=False)
    inbox.finish_sound()
    inbox.put_picture(100, "p")
    assert inbox.get() == (100, "p")
    silent: Inbox[str, str] = Inbox(live=False, sound=False)
    silent.put_picture(100, "p")
    assert silent.get() == (100, "p")


def test_complete_nobody_waits_for_room_for_ever() -> None:
    """Eight pictures without sound: those who send it may send it later than that, or never."""
    inbox = both(live=False)
    for pts in range(PICTURES_WITH_SOUND):
        inbox.put_picture(pts, "p")
    started_s = time.monotonic()
    assert inbox.get() == (0, "p")
    assert time.monotonic() - started_s < module.COMPLETE_AFTER_S
    for pts in range(SOUNDS):
        inbox.put_sound(1000 + pts, "s")
    assert inbox.get() == (1, "p")


def test_complete_a_picture_waits_for_sound_that_is_being_decoded_though_there_is_no_room() -> None:
    inbox = both(live=False)
    inbox.announce_sound()
    for pts in range(PICTURES_WITH_SOUND):
        inbox.put_picture(100 + pts, "p")
    got: list[object] = []
    thread = in_thread(lambda: got.extend(inbox.get() for _ in range(2)))
    inbox.put_sound(90, "s")
    inbox.sound_decoded()
    thread.join(5)
    assert got == [(90, "s"), (100, "p")]


def test_complete_who_puts_waits_for_room_and_nothing_is_dropped() -> None:
    inbox = both(live=False)
    putting = [
        in_thread(lambda: put_all(inbox.put_picture, "p", 40)),
        in_thread(lambda: put_all(inbox.put_sound, "s", 20)),
    ]
    found = [inbox.get() for _ in range(300)]
    for thread in putting:
        thread.join(5)
    # In which order the two kinds come is up to who is quicker: with its room full, none waits for the other.
    for kind, step in (("p", 40), ("s", 20)):
        assert [item[0] for item in found if item and item[1] == kind] == [*range(0, 4000, step)]
    assert (inbox.dropped, inbox.dropped_sounds) == (0, 0)


def put_all(put: Callable[[int, str], None], kind: str, step: int) -> None:
    for pts in range(0, 4000, step):
        put(pts, kind)


@pytest.mark.parametrize("full", ["picture", "sound"])
def test_an_abort_lets_everybody_go(full: str) -> None:
    inbox = both(live=False)

    def fill() -> None:
        for pts in range(1000):
            inbox.put_picture(pts, "p") if full == "picture" else inbox.put_sound(pts, "s")

    thread = in_thread(fill)
    time.sleep(0.05)
    assert thread.is_alive()
    inbox.abort()
    thread.join(5)
    assert not thread.is_alive()
    assert inbox.get() is None
    assert len(inbox) == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=60), st.booleans())
def test_each_kind_comes_out_in_order_and_all_is_counted(puts: list[tuple[bool, int]], live: bool) -> None:
    inbox = both(live)
    inbox._alone_after_s = 0.001  # who waits for what never comes would make this slow
    times = {"p": 0, "s": 0}
    put = {"p": 0, "s": 0}
    out: list[tuple[int, str]] = []
    for picture, step in puts:
        kind = "p" if picture else "s"
        if not live and len(inbox) >= PICTURES_WITH_SOUND:
            item = inbox.get()
            assert item is not None
            out.append(item)
        times[kind] += step
        put[kind] += 1
        (inbox.put_picture if picture else inbox.put_sound)(times[kind], kind)
    inbox.finish_pictures()
    inbox.finish_sound()
    while (item := inbox.get()) is not None:
        out.append(item)
    for kind, dropped in (("p", inbox.dropped), ("s", inbox.dropped_sounds)):
        found = [pts for pts, what in out if what == kind]
        assert found == sorted(found)
        assert len(found) + dropped == put[kind]
