from __future__ import annotations

import pytest
import torch

from services.inference.engine.pipelines.streamdiffusion.blending import (
    Conditioning,
    Transition,
    blend,
    blend_noises,
    slerp,
)
from services.inference.engine.pipelines.streamdiffusion.noise import Seeds


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (4, 32, 32)), generator=torch.Generator().manual_seed(seed))


def test_an_arc_between_two_noises_keeps_their_length_where_a_line_does_not() -> None:
    one, other = drawn(1), drawn(2)
    length = float(one.norm())
    assert float(slerp(one, other, 0.5).norm()) / length == pytest.approx(1, abs=0.02)
    assert float(torch.lerp(one, other, 0.5).norm()) / length == pytest.approx(0.707, abs=0.02)


def test_an_arc_begins_and_ends_where_it_should() -> None:
    one, other = drawn(1), drawn(2)
    torch.testing.assert_close(slerp(one, other, 0.0), one)
    torch.testing.assert_close(slerp(one, other, 1.0), other)


def test_equal_and_opposite_tensors_have_no_arc_and_are_mixed_all_the_same() -> None:
    one = drawn(1)
    torch.testing.assert_close(slerp(one, one.clone(), 0.3), one)
    assert torch.isfinite(slerp(one, -one, 0.3)).all()
    assert torch.isfinite(slerp(one, torch.zeros_like(one), 0.3)).all()


def test_two_prompts_are_mixed_along_an_arc_by_the_second_weight() -> None:
    one, other = drawn(1), drawn(2)
    torch.testing.assert_close(blend([one, other], [3, 1], "slerp", normalize=True), slerp(one, other, 0.25))


def test_more_than_two_prompts_are_added_up_by_their_shares() -> None:
    one, two, three = drawn(1), drawn(2), drawn(3)
    mixed = blend([one, two, three], [2, 1, 1], "slerp", normalize=True)
    torch.testing.assert_close(mixed, 0.5 * one + 0.25 * two + 0.25 * three)


def test_weights_count_as_they_are_unless_they_are_normalised() -> None:
    one, two = drawn(1), drawn(2)
    torch.testing.assert_close(blend([one], [2], "linear", normalize=False), 2 * one)
    torch.testing.assert_close(blend([one], [2], "linear", normalize=True), one)
    torch.testing.assert_close(blend([one, two], [2, 1], "linear", normalize=False), 2 * one + two)


def test_weights_that_are_all_zero_count_alike() -> None:
    one, two = drawn(1), drawn(2)
    torch.testing.assert_close(blend([one, two], [0, 0], "linear", normalize=True), (one + two) / 2)


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_mixed_noise_is_as_strong_as_noise(count: int, method: str) -> None:
    noises = [drawn(seed) for seed in range(count)]
    mixed = blend_noises(noises, [1.0] * count, method, normalize=True)
    mean = sum(float(noise.norm()) for noise in noises) / count
    assert float(mixed.norm()) == pytest.approx(mean, rel=0.02)


def test_a_seed_makes_the_same_noise_whatever_the_number_of_steps() -> None:
    seeds = Seeds(((7, 1.0),), "linear", normalize=True)
    three, one = seeds.noise((3, 4, 8, 8)), seeds.noise((1, 4, 8, 8))
    torch.testing.assert_close(three[:1], one)
    assert not torch.equal(three[0], three[1])


def test_seeds_are_mixed_by_their_weights() -> None:
    first, second = (Seeds(((seed, 1.0),), "linear", normalize=True).noise((1, 4, 8, 8)) for seed in (1, 2))
    mixed = Seeds(((1, 1.0), (2, 0.0)), "linear", normalize=True).noise((1, 4, 8, 8))
    mostly = Seeds(((1, 0.9), (2, 0.1)), "slerp", normalize=True).noise((1, 4, 8, 8))
    assert torch.nn.functional.cosine_similarity(mixed.flatten(), first.flatten(), 0) > 0.999
    to_first = torch.nn.functional.cosine_similarity(mostly.flatten(), first.flatten(), 0)
    to_second = torch.nn.functional.cosine_similarity(mostly.flatten(), second.flatten(), 0)
    assert to_first > 0.95
    assert to_second < 0.5


def test_fresh_noise_is_other_noise_and_can_be_drawn_again() -> None:
    seeds = Seeds(((7, 1.0),), "linear", normalize=True)
    kept, fresh = seeds.noise((1, 4, 8, 8)), seeds.noise((1, 4, 8, 8), fresh=5)
    assert abs(float(torch.nn.functional.cosine_similarity(kept.flatten(), fresh.flatten(), 0))) < 0.3
    torch.testing.assert_close(seeds.noise((1, 4, 8, 8), fresh=5), fresh)


def asked(seed: int) -> Conditioning:
    return Conditioning(drawn(seed, 7, 8), drawn(seed + 1, 7, 8), drawn(seed + 2, 8), drawn(seed + 3, 8))


def test_a_transition_goes_gently_from_one_to_the_other_in_media_time() -> None:
    before, after = asked(1), asked(11)
    passing = Transition(before, after, 90_000, 2.0, "slerp")
    assert passing.at(90_000).same(before)
    assert passing.share(180_000) == pytest.approx(0.5)
    assert passing.share(90_000 + 18_000) < 0.05
    assert passing.at(270_000) is after
    assert passing.at(0) is after  # another clock
    torch.testing.assert_close(passing.at(180_000).prompt, slerp(before.prompt, after.prompt, 0.5))
    torch.testing.assert_close(
        passing.at(180_000).negative_pooled,
        slerp(before.negative_pooled, after.negative_pooled, 0.5),  # type: ignore[arg-type]
    )


def test_conditionings_are_the_same_only_in_all_parts() -> None:
    one = asked(1)
    assert one.same(asked(1))
    assert not one.same(asked(2))
    assert not one.same(Conditioning(one.prompt, one.negative))
    assert Conditioning.of(one.tensors()) is not None
    assert Conditioning.of({"prompt": one.prompt}) is None
