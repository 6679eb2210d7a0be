from __future__ import annotations

import pytest
import torch

from services.inference.engine.pipelines.streamdiffusion.similarity import (
    Draws,
    SimilarityFilter,
    likeness,
    skip_probability,
)


@pytest.mark.parametrize(
    ("like", "probability"),
    [(0.98, 0.0), (0.985, 0.25), (0.99, 0.5), (0.995, 0.75), (0.999, 0.95), (1.0, 1.0), (0.5, 0.0)],
)
def test_the_more_alike_the_more_probably_it_is_skipped(like: float, probability: float) -> None:
    assert skip_probability(like, 0.98) == pytest.approx(probability)


def test_a_threshold_of_one_skips_nothing() -> None:
    assert skip_probability(1.0, 1.0) == 0


def test_likeness_is_the_cosine() -> None:
    one = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert likeness(one, other) == pytest.approx(0.5**0.5)
    assert likeness(one, -one) == pytest.approx(-1)
    assert likeness(torch.zeros(2, 2), torch.zeros(2, 2)) == 0  # black is like nothing, and is processed


def test_the_same_picture_is_skipped_but_not_for_ever() -> None:
    like = SimilarityFilter(Draws())
    picture = torch.ones(1, 3, 4, 4)
    skipped = [like.skips(picture, 0.98, 3) for _ in range(9)]
    assert skipped == [False, True, True, True, False, True, True, True, False]


def test_pictures_are_compared_with_the_last_one_that_was_processed() -> None:
    like = SimilarityFilter(lambda: 0.5)
    turning = [torch.tensor([1.0, 0.05 * step]) for step in range(8)]  # each is like the one before
    skipped = [like.skips(picture, 0.98, 100) for picture in turning]
    assert skipped[0] is False
    assert skipped[1] is True
    assert False in skipped[2:]


def test_half_way_half_are_skipped() -> None:
    draws = Draws(seed=3)
    like = SimilarityFilter(draws)
    base = torch.tensor([1.0, 0.0])
    angle = torch.arccos(torch.tensor(0.99))
    other = torch.stack([torch.cos(angle), torch.sin(angle)])
    skipped = 0
    for _ in range(400):
        like.forget()
        like.skips(base, 0.98, 10)
        skipped += like.skips(other, 0.98, 10)
    assert 150 < skipped < 250


def test_draws_are_the_same_for_the_same_seed_and_count() -> None:
    one, other = Draws(1), Draws(1)
    drawn = [one() for _ in range(5)]
    assert [other() for _ in range(5)] == drawn
    assert [Draws(1, 3)(), Draws(2, 3)()] != [drawn[3], drawn[3]]
    assert Draws(1, 3)() == drawn[3]
    assert all(0 <= number < 1 for number in drawn)


def test_after_forgetting_the_next_is_processed() -> None:
    like = SimilarityFilter(lambda: 0.0)
    picture = torch.ones(4)
    like.skips(picture, 0.9, 10)
    assert like.skips(picture, 0.9, 10)
    like.forget()
    assert not like.skips(picture, 0.9, 10)


def test_a_picture_of_another_size_is_processed() -> None:
    like = SimilarityFilter(lambda: 0.0)
    like.skips(torch.ones(1, 3, 4, 4), 0.9, 10)
    assert not like.skips(torch.ones(1, 3, 8, 8), 0.9, 10)
