from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.inference.engine.pipelines.streamdiffusion.checkpoint import (
    Checkpoint,
    CheckpointError,
    Family,
    lora_file,
    lora_width,
    weights_bytes,
)
from sluice.pipeline import ModelCache


def test_a_model_says_its_family_and_whether_it_needs_an_lcm_lora(models: ModelCache) -> None:
    turbo = Checkpoint.read("sd-turbo", models.path("sd-turbo"))
    plain = Checkpoint.read("sd15", models.path("sd15"))
    xl = Checkpoint.read("sdxl-turbo", models.path("sdxl-turbo"))
    assert (turbo.distilled, plain.distilled, xl.distilled) == (True, False, True)
    assert (plain.family, xl.family) == (Family.SD15, Family.SDXL)
    assert (plain.width, xl.width) == (32, 64)
    assert (plain.wide_vae, xl.wide_vae) == (False, True)
    assert turbo.variant is None
    assert len(turbo.schedule.kept) == 1000


def test_the_hubs_names_go_with_the_families() -> None:
    assert Family.SDXL.tiny_vae == "madebyollin/taesdxl"
    assert Family.SD21.tiny_vae == Family.SD15.tiny_vae == "madebyollin/taesd"
    assert Family.SD15.lcm_lora == "latent-consistency/lcm-lora-sdv1-5"
    assert Family.SD21.lcm_lora is None


def changed(models: ModelCache, to: Path, file: str, **changes: Any) -> Path:
    shutil.copytree(models.path("sd15"), to, symlinks=False)
    config = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps({**config, **changes}))
    return to


def test_a_unet_that_reads_wide_texts_is_of_the_second_family(models: ModelCache, tmp_path: Path) -> None:
    made = changed(models, tmp_path / "m", "unet/config.json", cross_attention_dim=1024)
    assert Checkpoint.read("m", made).family is Family.SD21


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "m is a FluxPipeline; Stable Diffusion"),
        ("unet/config.json", {"in_channels": 9}, "m takes 9 channels"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "predicts v_prediction"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "odd"}, "m: its beta_schedule is 'odd'"),
    ],
)
def test_a_model_of_another_kind_is_refused_in_words(
    models: ModelCache, tmp_path: Path, file: str, changes: dict[str, Any], words: str
) -> None:
    made = changed(models, tmp_path / "m", file, **changes)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.read("m", made)


def test_pickled_weights_are_refused_unless_the_cache_says_otherwise(
    models: ModelCache, tmp_path: Path
) -> None:
    made = changed(models, tmp_path / "m", "unet/config.json")
    weights = made / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match="m has no safetensors in unet"):
        Checkpoint.read("m", made)
    assert Checkpoint.read("m", made, unsafe=True).family is Family.SD15


def test_only_half_precision_files_are_read_as_that_variant(models: ModelCache, tmp_path: Path) -> None:
    made = changed(models, tmp_path / "m", "unet/config.json")
    weights = made / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert Checkpoint.read("m", made).variant == "fp16"


def test_a_directory_that_is_no_pipeline_is_refused(models: ModelCache, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lora has no model_index.json"):
        Checkpoint.read("lora", models.path("lora"))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.read("m", tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no JSON object"):
        Checkpoint.read("m", tmp_path)


def test_the_memory_of_weights_is_read_from_their_headers(models: ModelCache, tmp_path: Path) -> None:
    directory = models.path("madebyollin/taesd")
    size = (directory / "diffusion_pytorch_model.safetensors").stat().st_size
    assert weights_bytes(directory, 4) == pytest.approx(size, rel=0.2)
    assert weights_bytes(directory, 2) * 2 == weights_bytes(directory, 4)
    assert weights_bytes(directory, 4, "fp16") == 0
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="damaged"):
        weights_bytes(tmp_path, 4)


def test_a_lora_is_one_file(models: ModelCache, tmp_path: Path) -> None:
    assert lora_file("lora", models.path("lora")).name == "pytorch_lora_weights.safetensors"
    with pytest.raises(CheckpointError, match="x has 0 safetensors files"):
        lora_file("x", tmp_path)
    (tmp_path / "style.safetensors").write_bytes(b"")
    assert lora_file("x", tmp_path).name == "style.safetensors"
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="x has 2 safetensors files"):
        lora_file("x", tmp_path)


def test_a_lora_tells_the_family_by_the_texts_that_it_reads(models: ModelCache) -> None:
    assert lora_width(lora_file("lora", models.path("lora"))) == 32
    assert lora_width(lora_file("text-lora", models.path("text-lora"))) is None
