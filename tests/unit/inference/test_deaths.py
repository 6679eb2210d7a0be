"""How many deaths of its engine a session survives."""

from __future__ import annotations

from services.inference.deaths import FORGOTTEN_AFTER_S, MOST, Deaths, Sequel


def test_a_session_survives_some_deaths_and_not_one_more() -> None:
    deaths = Deaths()
    sequels = [deaths.happened(float(second), guilty=True) for second in range(MOST)]
    assert [sequel.again for sequel in sequels] == [True] * (MOST - 1) + [False]


def test_deaths_are_forgotten() -> None:
    deaths = Deaths()
    for number in range(50):
        assert deaths.happened(number * FORGOTTEN_AFTER_S / (MOST - 1), guilty=True).again


def test_who_did_nothing_begins_again_however_often_it_happens() -> None:
    deaths = Deaths()
    assert all(deaths.happened(float(second), guilty=False, newest=7).again for second in range(50))


def test_a_revision_that_was_tried_twice_in_a_row_is_poisoned_and_the_deaths_with_it_are_forgiven() -> None:
    deaths = Deaths()
    assert deaths.happened(0.0, guilty=True, oldest=7, newest=7) == Sequel(again=True)
    assert deaths.happened(1.0, guilty=True, oldest=7, newest=7) == Sequel(again=True, poisoned=7)
    sequels = [deaths.happened(2.0 + second, guilty=True) for second in range(MOST)]
    assert [sequel.again for sequel in sequels] == [True] * (MOST - 1) + [False]


def test_of_several_the_one_that_was_tried_alone_is_poisoned() -> None:
    deaths = Deaths()
    deaths.happened(0.0, guilty=True, oldest=5, newest=8)
    assert deaths.happened(1.0, guilty=True, oldest=6, newest=6).poisoned == 6


def test_two_revisions_that_were_tried_once_each_are_not() -> None:
    deaths = Deaths()
    deaths.happened(0.0, guilty=True, oldest=7, newest=7)
    assert deaths.happened(1.0, guilty=True, oldest=8, newest=8).poisoned is None


def test_no_revision_is_none_to_blame() -> None:
    deaths = Deaths()
    deaths.happened(0.0, guilty=True)
    assert deaths.happened(1.0, guilty=True).poisoned is None
