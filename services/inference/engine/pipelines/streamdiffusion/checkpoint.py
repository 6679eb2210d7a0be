"""What a model's directory says of itself before anything is loaded: its family, its steps, its size.

A directory is one of diffusers' Stable Diffusion pipelines; nothing in it is run, and unless the cache says
otherwise nothing is unpickled.
"""

from __future__ import annotations

import enum
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from services.inference.engine.pipelines.streamdiffusion.schedule import Schedule

PIPELINES: Final = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")  # and their image-to-image forms
SD21_WIDTH: Final = 1024  # of the texts; Stable Diffusion 1.x reads 768
LATENT_CHANNELS: Final = 4
LORA_FILE: Final = "pytorch_lora_weights.safetensors"  # as diffusers saves it
LORA_INPUTS: Final = (
    ".lora_A.weight",
    ".lora_down.weight",
    ".lora.down.weight",
)  # as peft, kohya, diffusers say
HEADER_MAX: Final = 100_000_000  # bytes; the safetensors format's own limit


class CheckpointError(Exception):
    """A directory that is no model of ours; the message says why."""


class Family(enum.StrEnum):
    """Whose text encoders, LoRAs, ControlNets and tiny autoencoders a model takes."""

    SD15 = "sd15"
    SD21 = "sd21"
    SDXL = "sdxl"

    @property
    def tiny_vae(self) -> str:
        """The tiny autoencoder's name on the hub."""
        return "madebyollin/taesdxl" if self is Family.SDXL else "madebyollin/taesd"

    @property
    def lcm_lora(self) -> str | None:
        """The name on the hub of what makes such a model work in few steps, if there is one."""
        return {
            Family.SD15: "latent-consistency/lcm-lora-sdv1-5",
            Family.SDXL: "latent-consistency/lcm-lora-sdxl",
        }.get(self)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be loaded.

    width: of the texts that its U-Net reads. distilled: made for few steps, so that it needs no LCM-LoRA.
    wide_vae: whether its autoencoder overflows in float16.
    """

    name: str
    directory: Path
    family: Family
    width: int
    distilled: bool
    schedule: Schedule
    wide_vae: bool

    @classmethod
    def read(cls, name: str, directory: Path, *, unsafe: bool = False) -> Checkpoint:
        """Raises CheckpointError."""
        kind = str(_json(name, directory / "model_index.json").get("_class_name"))
        if kind.replace("Img2Img", "") not in PIPELINES:
            raise CheckpointError(f"{name} is a {kind}; Stable Diffusion 1.x, 2.x and XL are supported")
        unet = _json(name, directory / "unet" / "config.json")
        scheduler = _json(name, directory / "scheduler" / "scheduler_config.json")
        vae = _json(name, directory / "vae" / "config.json")
        if unet.get("in_channels") != LATENT_CHANNELS:
            raise CheckpointError(
                f"{name} takes {unet.get('in_channels')} channels, and a picture's latent has "
                f"{LATENT_CHANNELS}: it is for inpainting or editing"
            )
        if (predicts := scheduler.get("prediction_type", "epsilon")) != "epsilon":
            raise CheckpointError(f"{name} predicts {predicts}; models that predict epsilon are supported")
        for part in ("unet", "vae", "text_encoder"):
            if not unsafe and not any((directory / part).glob("*.safetensors")):
                raise CheckpointError(
                    f"{name} has no safetensors in {part}; files that run code are not read"
                )
        try:
            schedule = Schedule.of(scheduler)
        except ValueError as error:
            raise CheckpointError(f"{name}: {error}") from error
        family = _family(unet)
        return cls(
            name=name,
            directory=directory,
            family=family,
            width=int(unet["cross_attention_dim"]),
            # Turbo models come with trailing timesteps, consistency models with their own scheduler.
            distilled=scheduler.get("timestep_spacing") == "trailing"
            or scheduler.get("_class_name") == "LCMScheduler",
            schedule=schedule,
            wide_vae=family is Family.SDXL and bool(vae.get("force_upcast", True)),
        )

    @property
    def variant(self) -> str | None:
        """Which of diffusers' variants to read: fp16 where there is nothing else."""
        names = [file.name for file in (self.directory / "unet").glob("*.safetensors")]
        return "fp16" if names and all(".fp16" in name for name in names) else None

    def brain_bytes(self, bytes_each: int) -> int:
        """How much memory its U-Net and text encoders need."""
        parts = ("unet", "text_encoder", "text_encoder_2")
        return sum(weights_bytes(self.directory / part, bytes_each, self.variant) for part in parts)


def weights_bytes(directory: Path, bytes_each: int, variant: str | None = None) -> int:
    """How much memory the numbers of a directory's safetensors need at so many bytes each."""
    files = [
        file
        for file in directory.glob("*.safetensors")
        if (".fp16" in file.name) == (variant == "fp16") and "non_ema" not in file.name
    ]
    return bytes_each * sum(_numbers(file) for file in files)


def lora_file(name: str, directory: Path) -> Path:
    """The one file of a LoRA's directory. Raises CheckpointError."""
    if (usual := directory / LORA_FILE).is_file():
        return usual
    files = sorted(directory.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{name} has {len(files)} safetensors files; a LoRA is one, such as {LORA_FILE}"
        )
    return files[0]


def _family(unet: Mapping[str, Any]) -> Family:
    if unet.get("addition_embed_type") == "text_time":
        return Family.SDXL
    return Family.SD21 if unet.get("cross_attention_dim") == SD21_WIDTH else Family.SD15


def _json(name: str, file: Path) -> dict[str, Any]:
    where = file.relative_to(file.parent.parent) if file.name != "model_index.json" else file.name
    try:
        read = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{name} has no {where}; it is not one of diffusers' pipelines") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: {where} cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{name}: {where} is no JSON object")
    return read


def lora_width(file: Path) -> int | None:
    """How wide the texts are that a LoRA's layers read; None if it has none that read texts."""
    for key, entry in _header(file).items():
        if "attn2" in key and "to_k" in key and key.endswith(LORA_INPUTS):
            return int(entry["shape"][1])
    return None


def _numbers(file: Path) -> int:
    """How many numbers are in a safetensors file."""
    return sum(math.prod(entry["shape"]) for entry in _header(file).values())


def _header(file: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors. Raises CheckpointError."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > HEADER_MAX:
                raise CheckpointError(f"{file.name} is damaged: its header has {length} bytes")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        if not all(isinstance(entry["shape"], list) for entry in header.values()):
            raise CheckpointError(f"{file.name} is damaged: a tensor has no shape")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointError(f"{file.name} is damaged: {error}") from error
    return dict(header)
