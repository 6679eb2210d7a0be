"""The line of all routers: its order, who is skipped, and who takes whose place."""

from __future__ import annotations

from itertools import count
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.events.v1 import events_pb2 as events
from services.common.bus import Bucket, Entry
from services.router import waiting
from services.router.placement import Requirements, RunnerId, SessionId, Wish
from services.router.waiting import OVERDUE_US, Queue, Waiter

DEPTH = Wish(Requirements("depth"))
CANNY = Wish(Requirements("canny"))
NOT_A = Wish(Requirements("depth"), frozenset({RunnerId("a")}))


class Clock:
    def __init__(self) -> None:
        self.now_us = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "now_unix_us", clock)
    return clock


REVISIONS = count(1)


def queue() -> Queue:
    """One that shows nothing to others, for nobody asks it to."""
    return Queue(cast("Bucket", None), "here")


def seen(line: Queue, key: str, session: str, wish: Wish = DEPTH, **fields: object) -> None:
    """Another router shows a waiter."""
    priority = 100 - int(key.partition(".")[0])
    defaults: dict[str, object] = {
        "router": "there",
        "until_unix_ms": 2_000_000_000_000,
        "priority": priority,
    }
    waiter = events.Waiter(session=session, wish=wish.text(), **{**defaults, **fields})  # type: ignore[arg-type]
    line.view.put(key, Entry(waiter.SerializeToString(), next(REVISIONS)))


def order(line: Queue) -> list[str]:
    return [standing.waiter.session for standing in line.standings()]


def offered(line: Queue, *refused: Wish) -> list[str]:
    """Whom the line offers a slot, if those wishes cannot be met."""
    sessions: list[str] = []

    def offer(waiter: Waiter) -> bool:
        sessions.append(waiter.session)
        return waiter.wish not in refused

    line.serve(offer)
    return sessions


def test_the_order_is_by_priority_and_then_by_arrival_wherever_one_waits(clock: Clock) -> None:
    line = queue()
    line.join(SessionId("late"), DEPTH, 0, 9)
    line.join(SessionId("later"), DEPTH, 0, 9)  # in the same microsecond
    line.join(SessionId("urgent"), DEPTH, 7, 9)
    seen(line, "100.0000000000000001.early", "early")
    seen(line, "150.0000000000000001.idle", "idle")
    assert order(line) == ["urgent", "early", "late", "later", "idle"]
    assert offered(line) == ["urgent", "early", "late", "later", "idle"]


def test_who_is_refused_is_refused_for_all_with_the_same_wish_and_for_no_other(clock: Clock) -> None:
    line = queue()
    for number, wish in enumerate([DEPTH, CANNY, DEPTH, NOT_A, CANNY]):
        line.join(SessionId(f"s{number}"), wish, 0, 9)
    assert offered(line, DEPTH) == ["s0", "s1", "s3", "s4"]
    assert offered(line, DEPTH, CANNY, NOT_A) == ["s0", "s1", "s3"]


def test_the_position_counts_those_who_want_the_same_pipeline(clock: Clock) -> None:
    line = queue()
    waiters = [
        line.join(SessionId(f"s{number}"), wish, 0, 9)
        for number, wish in enumerate([DEPTH, CANNY, NOT_A, DEPTH])
    ]
    assert [line.position(waiter) for waiter in waiters] == [1, 1, 2, 3]
    assert (line.waiting("depth"), line.waiting("canny"), line.waiting("none")) == (3, 1, 0)
    line.leave(waiters[0])
    assert [line.position(waiter) for waiter in waiters[1:]] == [1, 1, 2]


def test_one_who_steps_out_is_offered_nothing_and_keeps_the_place(clock: Clock) -> None:
    line = queue()
    first = line.join(SessionId("first"), DEPTH, 0, 9)
    line.join(SessionId("second"), DEPTH, 0, 9)
    line.step_out(first)
    assert offered(line) == ["second"]
    line.stand(first)
    line.stand(first)
    assert offered(line) == ["first", "second"]


def test_one_who_steps_out_while_the_line_is_served_is_not_offered_any_more(clock: Clock) -> None:
    line = queue()
    waiters = [line.join(SessionId(f"s{number}"), DEPTH, 0, 9) for number in range(3)]
    sessions: list[str] = []

    def offer(waiter: Waiter) -> bool:
        sessions.append(waiter.session)
        line.step_out(waiters[1])
        return True

    line.serve(offer)
    assert sessions == ["s0", "s2"]


def test_a_waiter_of_another_router_long_beyond_its_deadline_counts_no_more(clock: Clock) -> None:
    line = queue()
    line.join(SessionId("mine"), DEPTH, 0, 9)
    seen(line, "000.0000000000000001.ghost", "ghost", until_unix_ms=clock.now_us // 1000)
    assert offered(line) == ["ghost", "mine"]
    clock.now_us += OVERDUE_US + 1000
    assert offered(line) == ["mine"]


def test_a_session_that_asks_here_takes_the_place_it_has_elsewhere(clock: Clock) -> None:
    line = queue()
    seen(line, "100.0000000000000001.first", "first")
    line.join(SessionId("second"), DEPTH, 0, 9)
    waiter = line.join(SessionId("first"), CANNY, 0, 9)
    assert waiter.key == "100.0000000000000001.first"
    assert waiter.revision > 0
    assert order(line) == ["first", "second"]
    assert line.own_standing == 2
    assert line.leave(waiter)  # the key is to be deleted, though it was another router's


def test_a_session_that_asks_elsewhere_leaves_its_place_to_that_router(clock: Clock) -> None:
    line = queue()
    waiter = line.join(SessionId("s"), DEPTH, 0, 9)
    seen(line, waiter.key, "s")
    assert waiter.superseded
    assert line.own_standing == 0
    assert offered(line) == ["s"]
    line.stand(waiter)  # its call goes on, and is told what the other one is given
    assert line.own_standing == 0
    assert not line.leave(waiter)
    assert order(line) == ["s"]


def test_what_goes_from_the_bucket_goes_from_the_line_and_is_told(clock: Clock) -> None:
    line = queue()
    mine = line.join(SessionId("mine"), DEPTH, 0, 9)
    mine.revision = 5
    seen(line, "100.0000000000000001.s", "s")
    version = line.changed.version
    line.view.put("100.0000000000000001.s", None)
    assert line.changed.version > version
    line.view.put(mine.key, None)  # it lapsed; it stands here all the same, and will be shown again
    assert mine.revision == 0
    assert order(line) == ["mine"]


def test_what_is_left_of_ones_own_is_nobody(clock: Clock) -> None:
    line = queue()
    seen(line, "100.0000000000000001.s", "s", router="here")
    assert order(line) == []


@pytest.mark.parametrize(
    "value", [b"\xff\xff", b"", events.Waiter(session="s", wish="?").SerializeToString()]
)
def test_what_makes_no_sense_is_refused(clock: Clock, value: bytes) -> None:
    line = queue()
    line.view.put("100.0000000000000001.s", Entry(value, 1))
    assert order(line) == []


@given(
    st.lists(
        st.tuples(st.integers(-100, 100), st.sampled_from([DEPTH, CANNY, NOT_A]), st.booleans()), max_size=20
    ),
    st.sets(st.sampled_from([DEPTH, CANNY, NOT_A])),
)
def test_nobody_is_offered_before_one_who_comes_first(
    waiters: list[tuple[int, Wish, bool]], refused: set[Wish]
) -> None:
    line = queue()
    for number, (priority, wish, own) in enumerate(waiters):
        if own:
            line.join(SessionId(f"s{number}"), wish, priority, 9)
        else:
            seen(line, f"{100 - priority:03d}.{number:016d}.s{number}", f"s{number}", wish)
    everybody = order(line)
    assert sorted(everybody) == sorted(f"s{number}" for number in range(len(waiters)))
    assert line.own_standing == sum(own for _, _, own in waiters)
    asked = offered(line, *refused)
    assert asked == [session for session in everybody if session in asked]
    wishes = {f"s{number}": wish for number, (_, wish, _) in enumerate(waiters)}
    for wish in (DEPTH, CANNY, NOT_A):
        alike = [session for session in everybody if wishes[session] == wish]
        assert [session for session in asked if wishes[session] == wish] == (
            alike[:1] if wish in refused else alike
        )
