"""What `make run` offers by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.local import offers
from sluice.pipeline import ModelCache


class Models(ModelCache):
    def __init__(self, *names: str) -> None:
        super().__init__(Path("/nowhere"))
        self._named = list(names)

    def names(self) -> list[str]:
        return self._named


def test_without_a_model_nothing_is_offered_that_needs_one() -> None:
    assert offers.offered(Models()) == "effects,comfyui,passthrough"


def test_with_a_model_and_its_packages_diffusion_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "DIFFUSION", ("json",))
    assert offers.offered(Models("stabilityai/sd-turbo")).split(",")[-1] == "streamdiffusion"


def test_a_model_without_the_packages_is_no_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "DIFFUSION", ("json", "no_such_package"))
    assert "streamdiffusion" not in offers.offered(Models("stabilityai/sd-turbo"))
