from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from services.inference.engine.pipelines.looks import LOOKS
from services.inference.engine.pipelines.looks.words import _WORDS_OF_LOOKS, between, blend_of
from tests.support.paintings import (
    params,
)


@pytest.mark.parametrize(
    ("prompt", "blend"),
    [
        ("watercolor", {"watercolor": 1}),
        ("a pencil sketch", {"sketch": 1}),
        ("Neon city at night, slightly watercolor", {"neon": 1 / 1.35, "watercolor": 0.35 / 1.35}),
        ("neon:0.7 watercolor:0.3", {"neon": 0.7, "watercolor": 0.3}),
        ("neon: 3, ink: 1", {"neon": 0.75, "sketch": 0.25}),
        ("(neon:1.2)", {"neon": 1}),
        ("(glowing cyberpunk street:3) charcoal", {"neon": 0.75, "sketch": 0.25}),
        ("a painting of a CAT", {"watercolor": 1}),
        ("an oil painting of a CAT", {"oil": 1}),
        ("Oil-Painting, slightly stained glass", {"oil": 1 / 1.35, "stainedglass": 0.35 / 1.35}),
        ("pop art:3, 8-bit", {"popart": 0.75, "pixel": 0.25}),
        ("film  noir", {"noir": 1}),
        ("black and white, no film noir", {"noir": 1}),
        ("an etching, then a comic book:3", {"engraving": 0.25, "comic": 0.75}),
        ("a glass of water, some film, a pop song", {"watercolor": 1}),
        ("synthwave, a hint of pencil", {"neon": 1 / 1.35, "sketch": 0.35 / 1.35}),
        ("very neon, drawing", {"neon": 2 / 3, "sketch": 1 / 3}),
        ("slightly strange, neon and sketch", {"neon": 0.5, "sketch": 0.5}),
        ("sketch, no neon", {"sketch": 1}),
        ("pencil pencil pencil neon", {"sketch": 0.5, "neon": 0.5}),
        ("a cat", {"watercolor": 1}),
        ("", {"watercolor": 1}),
        ("sketch:0", {"watercolor": 1}),
        ("((((neon", {"neon": 1}),
        ([], {"watercolor": 1}),
        ([["neon", 3], ["a cat", 9], ["sketch", 1]], {"neon": 0.75, "sketch": 0.25}),
        (
            [{"text": "neon", "weight": 100}, {"text": "aquarelle", "weight": 300}],
            {"watercolor": 0.75, "neon": 0.25},
        ),
        ([{"text": "ink"}, ["neon:0.5", 2]], {"sketch": 0.5, "neon": 0.5}),
    ],
)
def test_the_words_of_a_prompt_choose_the_looks(prompt: Any, blend: dict[str, float]) -> None:
    params(prompt=prompt)
    assert blend_of(prompt) == pytest.approx(blend)


def test_no_word_means_two_looks() -> None:
    spelt = Counter(word for look, words in _WORDS_OF_LOOKS.items() for word in {look, *words.split()})
    assert [word for word, count in spelt.items() if count > 1] == []
    assert set(_WORDS_OF_LOOKS) == set(LOOKS)


def test_a_long_prompt_is_read_in_no_time() -> None:
    for text in (
        "oil " * 500,
        "oil - painting" * 140,
        "(" * 2000,
        "a:" * 1000,
        "(a" * 1000,
        "9" * 2000,
        "neon:" + "9" * 1995,
    ):
        assert math.isclose(sum(blend_of([[text, 1000]] * 32).values()), 1)


def test_two_looks_share_by_weight_or_along_an_arc() -> None:
    prompt = [{"text": "neon", "weight": 3}, {"text": "sketch", "weight": 1}]
    assert blend_of(prompt) == pytest.approx({"neon": 0.75, "sketch": 0.25})
    arc = blend_of(prompt, "slerp")
    assert sum(arc.values()) == pytest.approx(1)
    assert arc["sketch"] / arc["neon"] == pytest.approx(math.tan(math.radians(22.5)))
    assert blend_of("neon sketch", "slerp") == pytest.approx({"neon": 0.5, "sketch": 0.5})


@pytest.mark.parametrize("prompt", ["neon", "neon sketch:2 watercolor"])
def test_slerp_is_for_two_looks_and_leaves_others_alone(prompt: str) -> None:
    assert blend_of(prompt, "slerp") == blend_of(prompt)


@pytest.mark.parametrize("method", ["linear", "slerp"])
@pytest.mark.parametrize("after", [{"neon": 1.0}, {"neon": 0.5, "sketch": 0.5}, {"sketch": 0.6, "neon": 0.4}])
def test_a_way_from_blend_to_blend_begins_and_ends_at_them_and_always_adds_up(
    method: str, after: Mapping[str, float]
) -> None:
    before = {"sketch": 0.6, "neon": 0.4}
    assert between(before, after, 0.0, method) == pytest.approx(before)
    assert between(before, after, 1.0, method) == pytest.approx(after)
    shares = [between(before, after, share / 20, method) for share in range(21)]
    assert all(sum(blend.values()) == pytest.approx(1) for blend in shares)
    assert min(np.diff([blend["neon"] for blend in shares])) > -1e-9
