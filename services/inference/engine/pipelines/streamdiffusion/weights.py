"""Loads models from the cache: the U-Net with its text encoders and LoRAs, the autoencoder, ControlNets.

LoRAs are melted into the weights when these are loaded: they cost nothing in a frame, and streams with the
same ones share a model. Another weight of one is another model, loaded beside the first. Only files of this
machine are read, and before anything is loaded the memory for it is there.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from services.inference.engine.pipelines.streamdiffusion.accelerate import Acceleration
from services.inference.engine.pipelines.streamdiffusion.checkpoint import (
    Checkpoint,
    CheckpointError,
    Family,
    lora_file,
    lora_width,
    weights_bytes,
)
from services.inference.engine.pipelines.streamdiffusion.codec import Codec
from services.inference.engine.pipelines.streamdiffusion.denoiser import Controller, Denoiser
from sluice.pipeline import ModelCache

HEADROOM: Final = 1.2  # of the weights' size: what loading and running need besides
TEXTS: Final = 256  # whose embeddings are kept

Progress = Callable[[str, float], None]


class Brain:
    """A U-Net with what reads texts for it."""

    def __init__(
        self, checkpoint: Checkpoint, pipe: Any, acceleration: Acceleration, *, streams: int
    ) -> None:
        self.checkpoint = checkpoint
        self.denoiser = Denoiser(pipe.unet, acceleration, streams=streams)
        self._pipe = pipe
        self._device = acceleration.device
        self._lock = threading.Lock()  # `prepare` has a thread of its own in each stream
        self._read: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}

    @torch.inference_mode()
    def read(self, text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a text's embedding, float32 (tokens, width), and SDXL's pooled one (width,)."""
        with self._lock:
            if text not in self._read:
                if len(self._read) >= TEXTS:
                    del self._read[next(iter(self._read))]
                self._read[text] = self._encode(text)
            return self._read[text]

    def _encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        encoded = self._pipe.encode_prompt(
            prompt=text, device=self._device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        pooled = encoded[2][0].float() if self.checkpoint.family is Family.SDXL else None
        return encoded[0][0].float(), pooled

    def close(self) -> None:
        """Nobody uses it any more."""
        self.denoiser.close()
        self._pipe = None


def load_brain(
    checkpoint: Checkpoint,
    loras: Sequence[tuple[str, float]],
    models: ModelCache,
    acceleration: Acceleration,
    progress: Progress,
    *,
    streams: int,
) -> Brain:
    """Load a model with LoRAs of these names and weights melted in.

    Raises CheckpointError, ModelMissingError, ModelTooLargeError.
    """
    files = [(name, lora_file(name, models.path(name)), weight) for name, weight in loras if weight]
    for name, file, _ in files:
        if (width := lora_width(file)) not in {None, checkpoint.width}:
            raise CheckpointError(
                f"{name} is no LoRA of this model: it reads texts of width {width}, and {checkpoint.name} of "
                f"{checkpoint.width}, so it is of another family than {checkpoint.family}"
            )
    needed = HEADROOM * checkpoint.brain_bytes(acceleration.dtype.itemsize)
    models.require_memory(checkpoint.name, int(needed), acceleration.free_bytes())
    progress("weights", 0.0)
    kind, unused = _diffusers().StableDiffusionXLPipeline, {}
    if checkpoint.family is not Family.SDXL:
        kind = _diffusers().StableDiffusionPipeline
        unused = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
    with _loading(f"{checkpoint.name} cannot be loaded"):
        pipe = kind.from_pretrained(
            checkpoint.directory,
            vae=None,
            scheduler=None,
            dtype=acceleration.dtype,
            variant=checkpoint.variant,
            use_safetensors=None if models.unsafe else True,
            local_files_only=True,
            **unused,
        )
    progress("weights", 1.0)
    for index, (name, file, weight) in enumerate(files):
        _melt(pipe, name, file, weight)
        progress("loras", (index + 1) / len(files))
    for part in ("text_encoder", "text_encoder_2"):
        if (encoder := getattr(pipe, part, None)) is not None:
            acceleration.place(encoder)
    return Brain(checkpoint, pipe, acceleration, streams=streams)


def _melt(pipe: Any, name: str, file: Path, weight: float) -> None:
    # One at a time: melted together, each would have to be in each part of the model.
    with _loading(f"{name} is no LoRA of this model"):
        pipe.load_lora_weights(
            file.parent, weight_name=file.name, adapter_name="melted", local_files_only=True
        )
        pipe.fuse_lora(components=_parts(pipe), lora_scale=weight)
        pipe.unload_lora_weights()


def _parts(pipe: Any) -> list[str]:
    """The parts of a model that a LoRA has been loaded into."""
    return sorted({part for part, adapters in pipe.get_list_adapters().items() if adapters})


def load_codec(
    checkpoint: Checkpoint,
    tiny: str | None,
    models: ModelCache,
    acceleration: Acceleration,
    progress: Progress,
) -> Codec:
    """Load the autoencoder, or the tiny one of that name. Raises as `load_brain` does."""
    name = tiny or checkpoint.name
    directory = models.path(tiny) if tiny else checkpoint.directory / "vae"
    dtype = acceleration.wide_dtype if tiny is None and checkpoint.wide_vae else acceleration.dtype
    needed = HEADROOM * weights_bytes(directory, dtype.itemsize, None if tiny else checkpoint.variant)
    models.require_memory(name, int(needed), acceleration.free_bytes())
    progress("autoencoder", 0.0)
    kind = _diffusers().AutoencoderTiny if tiny else _diffusers().AutoencoderKL
    with _loading(f"{name} cannot be loaded"):
        vae = kind.from_pretrained(
            directory,
            dtype=dtype,
            variant=None if tiny else checkpoint.variant,
            use_safetensors=None if models.unsafe else True,
            local_files_only=True,
        )
    codec = Codec(vae, acceleration, tiny=tiny is not None)
    progress("autoencoder", 1.0)
    return codec


def load_controller(
    name: str, checkpoint: Checkpoint, models: ModelCache, acceleration: Acceleration, progress: Progress
) -> Controller:
    """Load a ControlNet of the model's family. Raises as `load_brain` does."""
    directory = models.path(name)
    needed = HEADROOM * weights_bytes(directory, acceleration.dtype.itemsize)
    models.require_memory(name, int(needed), acceleration.free_bytes())
    progress("controlnet", 0.0)
    kind = _diffusers().ControlNetModel
    with _loading(f"{name} is no ControlNet that can be loaded"):
        net = kind.from_pretrained(
            directory,
            dtype=acceleration.dtype,
            use_safetensors=None if models.unsafe else True,
            local_files_only=True,
        )
    controller = Controller(net, acceleration)
    if controller.width != checkpoint.width:
        raise CheckpointError(
            f"{name} reads texts of width {controller.width}, and {checkpoint.name} of {checkpoint.width}: "
            f"it is of another family than {checkpoint.family}"
        )
    progress("controlnet", 1.0)
    return controller


def _diffusers() -> Any:
    """The library, which is imported when something is loaded: it takes seconds, and has much to print.

    What matters of that is in `progress` and in errors; bars and hints on stderr belong to nobody.
    """
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.set_verbosity(logging.CRITICAL)
    diffusers: Any = importlib.import_module("diffusers")
    diffusers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    diffusers.logging.disable_progress_bar()
    return diffusers


@contextmanager
def _loading(failing: str) -> Iterator[None]:
    """What the library raises for files that do not fit becomes a CheckpointError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(f"{failing}: {' '.join(line.strip() for line in lines[:2])}") from error
