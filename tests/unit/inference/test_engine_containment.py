"""What is done about a pipeline that fails, row by row of the table."""

from __future__ import annotations

from services.inference.engine.containment import (
    FORGIVEN_AFTER,
    IN_A_ROW,
    PROBATION,
    Action,
    Containment,
    Verdict,
)

HELD, RELOADING, ENDED = Verdict(Action.HELD), Verdict(Action.RELOADING), Verdict(Action.ENDED)


def fails(containment: Containment, times: int = IN_A_ROW) -> list[Verdict]:
    return [containment.failed(out_of_memory=False) for _ in range(times)]


def works(containment: Containment, times: int) -> int:
    """Returns after how many of them a probation ended, 0 if none did."""
    ended = [count for count in range(1, times + 1) if containment.worked()]
    return ended[0] if ended else 0


def test_an_odd_picture_is_held() -> None:
    containment = Containment()
    for _ in range(20):
        assert fails(containment, IN_A_ROW - 1) == [HELD] * (IN_A_ROW - 1)
        works(containment, 1)


def test_failures_without_a_suspect_load_the_instance_anew_once_and_then_end_the_stream() -> None:
    containment = Containment()
    assert fails(containment) == [HELD, HELD, RELOADING]
    works(containment, FORGIVEN_AFTER - 1)
    assert fails(containment) == [HELD, HELD, ENDED]


def test_good_frames_make_up_for_an_instance_that_was_loaded_anew() -> None:
    containment = Containment()
    for _ in range(5):
        assert fails(containment)[-1] == RELOADING
        works(containment, FORGIVEN_AFTER)


def test_a_revision_since_which_it_fails_is_rolled_back() -> None:
    containment = Containment()
    containment.showing([1])
    assert works(containment, 100) == PROBATION
    containment.showing([7])
    assert fails(containment) == [HELD, HELD, Verdict(Action.ROLLED_BACK, 7)]
    assert containment.on_probation == ()
    works(containment, 1)
    assert fails(containment)[-1] == RELOADING  # nobody else is suspected


def test_a_revision_that_fails_after_some_good_frames_is_still_on_probation() -> None:
    containment = Containment()
    containment.showing([7])
    assert works(containment, PROBATION - 1) == 0
    assert fails(containment)[-1] == Verdict(Action.ROLLED_BACK, 7)


def test_a_revision_that_proved_itself_is_not_suspected() -> None:
    containment = Containment()
    containment.showing([7])
    assert works(containment, PROBATION) == PROBATION
    assert fails(containment)[-1] == RELOADING


def test_several_suspects_are_rolled_back_one_after_the_other_the_newest_first() -> None:
    containment = Containment()
    containment.showing([7, 8])
    assert fails(containment)[-1] == Verdict(Action.ROLLED_BACK, 8)
    assert fails(containment, IN_A_ROW - 1)[-1] == Verdict(Action.ROLLED_BACK, 7)
    assert fails(containment)[-1] == RELOADING


def test_a_revision_that_comes_while_it_fails_already_is_not_to_blame() -> None:
    containment = Containment()
    containment.showing([7])
    fails(containment, 1)
    containment.showing([8])
    assert fails(containment, IN_A_ROW - 1)[-1] == Verdict(Action.ROLLED_BACK, 7)
    assert containment.on_probation == (8,)


def test_a_pipeline_that_names_the_parameter_is_believed_at_once() -> None:
    containment = Containment()
    containment.showing([7])
    works(containment, 2)
    assert containment.failed(out_of_memory=False, blamed=7) == Verdict(Action.ROLLED_BACK, 7)


def test_a_parameter_that_nobody_set_lately_is_an_ordinary_failure() -> None:
    containment = Containment()
    assert containment.failed(out_of_memory=False, blamed=3) == HELD


def test_want_of_memory_is_tried_again_once_for_each_frame() -> None:
    containment = Containment()
    for _ in range(10):
        assert containment.failed(out_of_memory=True) == Verdict(Action.AGAIN)
        works(containment, 1)
    assert containment.failed(out_of_memory=True) == Verdict(Action.AGAIN)
    assert containment.failed(out_of_memory=True) == HELD
    assert containment.failed(out_of_memory=True) == Verdict(Action.AGAIN)
    assert containment.failed(out_of_memory=True) == HELD
    assert containment.failed(out_of_memory=True) == Verdict(Action.AGAIN)
    assert containment.failed(out_of_memory=True) == RELOADING


def test_what_was_refused_is_no_suspect() -> None:
    containment = Containment()
    containment.showing([7])
    containment.forget([7])
    assert fails(containment)[-1] == RELOADING
