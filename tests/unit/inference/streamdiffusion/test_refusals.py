from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.inference.engine.pipelines.streamdiffusion.accelerate import Acceleration
from services.inference.engine.pipelines.streamdiffusion.pipeline import StreamDiffusion
from sluice.pipeline import ModelCache, ModelTooLargeError, ParamError, Setup, defaults
from tests.unit.inference.streamdiffusion.driving import SIDE, Open, Picture, same


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"model_id": "no/such"}, "model_id", "no/such"),
        ({"model_id": "pix2pix"}, "model_id", "pix2pix takes 8 channels"),
        ({"model_id": "v-prediction"}, "model_id", "predicts v_prediction"),
        ({"model_id": "lora"}, "model_id", "no model_index.json"),
        ({"model_id": "sd15", "lcm_lora_id": "no/such"}, "lcm_lora_id", "no/such"),
        ({"lora_dict": {"no-such": 1.0}}, "lora_dict", "no-such"),
        (
            {"lora_dict": {"lora": 1.0}, "model_id": "sdxl-turbo"},
            "lora_dict",
            "lora is no LoRA of this model",
        ),
        ({"lora_dict": {"controlnet": 1.0}}, "lora_dict", "controlnet is no LoRA of this model"),
        ({"controlnets": [{"model_id": "no-such"}]}, "controlnets.0.model_id", "no-such"),
        ({"controlnets": [{"model_id": "sd15"}]}, "controlnets.0.model_id", "sd15 is no ControlNet"),
        (
            {"controlnets": [{"model_id": "controlnet"}, {"model_id": "controlnet-xl"}]},
            "controlnets.1.model_id",
            "of another family",
        ),
        ({"acceleration": "compile"}, "acceleration", "compile is for CUDA"),
    ],
    ids=str,
)
def test_what_cannot_be_had_is_refused_by_its_name_and_in_words(
    kept: Setup, changes: dict[str, Any], field: str, words: str
) -> None:
    before = set(kept.sharing._entries)
    pipeline = StreamDiffusion()
    params = {**defaults(StreamDiffusion), "model_id": "sd-turbo", "width": SIDE, "height": SIDE, **changes}
    with pytest.raises(ParamError, match=words) as refused:
        pipeline.load(kept, params)
    assert refused.value.field == field
    pipeline.close()
    assert set(kept.sharing._entries) == before


def test_a_refused_preparation_leaves_the_stream_as_it_was(opened: Open, pictures: list[Picture]) -> None:
    stream, other = opened(), opened()
    for changes in ({"lora_dict": {"nope": 1.0}}, {"controlnets": [{"model_id": "controlnet-xl"}]}):
        with pytest.raises(ParamError):
            stream.pipeline.prepare({**stream.params, **changes})
    assert same(stream.show_all(pictures), other.show_all(pictures))


def test_a_model_that_does_not_fit_is_refused_with_what_it_needs(
    models: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Acceleration, "free_bytes", lambda self: 1_000_000)
    pipeline = StreamDiffusion()
    params = {**defaults(StreamDiffusion), "model_id": "sd-turbo", "width": SIDE, "height": SIDE}
    with pytest.raises(ParamError, match="sd-turbo needs") as refused:
        pipeline.load(Setup("cpu", models), params)
    assert isinstance(refused.value.__cause__, ModelTooLargeError)
    pipeline.close()


def test_the_schema_offers_the_models_that_are_here(kept: Setup, tmp_path: Path) -> None:
    offered = StreamDiffusion.offered(kept)["properties"]["model_id"]
    assert offered["enum"] == ["sd-turbo", "sd15", "sdxl-turbo"]
    nothing_here = StreamDiffusion.offered(Setup("cpu", ModelCache(tmp_path)))
    assert "enum" not in nothing_here["properties"]["model_id"]
