"""Which models the parameters of a stream mean: found on this machine, shared with its neighbours.

What cannot be had is a `ParamError` that names the parameter and says what would be right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from services.inference.engine.pipelines.streamdiffusion.accelerate import Acceleration
from services.inference.engine.pipelines.streamdiffusion.blending import Conditioning, blend
from services.inference.engine.pipelines.streamdiffusion.checkpoint import Checkpoint, CheckpointError
from services.inference.engine.pipelines.streamdiffusion.codec import Codec
from services.inference.engine.pipelines.streamdiffusion.denoiser import Controller
from services.inference.engine.pipelines.streamdiffusion.params import PARAMS
from services.inference.engine.pipelines.streamdiffusion.wanted import Wanted
from services.inference.engine.pipelines.streamdiffusion.weights import (
    Brain,
    load_brain,
    load_codec,
    load_controller,
)
from sluice.pipeline import ModelMissingError, ModelTooLargeError, ParamError, Setup, Shared

T = TypeVar("T")


@contextmanager
def refused(field: str) -> Iterator[None]:
    """A model that cannot be had is a value that is refused."""
    try:
        yield
    except (CheckpointError, ModelMissingError, ModelTooLargeError) as error:
        raise ParamError(field, str(error)) from error


class Loader:
    """Of one stream: for one model, as fast as this machine runs it."""

    def __init__(self, setup: Setup, wanted: Wanted, *, streams: int) -> None:
        """Reads what the model says of itself; loads nothing. Raises ParamError."""
        self._setup = setup
        self._streams = streams
        try:
            self.acceleration = Acceleration.of(wanted.acceleration, setup.device)
        except ValueError as error:
            raise ParamError("acceleration", str(error)) from error
        with refused("model_id"):
            self.checkpoint = Checkpoint.read(
                wanted.model_id, setup.models.path(wanted.model_id), unsafe=setup.models.unsafe
            )
        self._lcm = self._lcm_lora(wanted)

    def _lcm_lora(self, wanted: Wanted) -> tuple[tuple[str, float], ...]:
        if self.checkpoint.distilled or not wanted.use_lcm_lora:
            return ()
        name: str | None = wanted.lcm_lora_id
        if name == PARAMS["lcm_lora_id"].default:
            name = self.checkpoint.family.lcm_lora
        if name is None:
            raise ParamError(
                "use_lcm_lora",
                f"there is none for {self.checkpoint.family}; take a turbo model, or set it to false",
            )
        with refused("lcm_lora_id"):
            self._setup.models.path(name)
        return ((name, 1.0),)

    def brain(self, wanted: Wanted) -> Shared[Brain]:
        """The model with the LoRAs that are wanted."""
        loras = tuple((name, weight) for name, weight in wanted.lora_dict if weight)
        with refused("lora_dict"):
            for name, _ in loras:
                self._setup.models.path(name)

        def load() -> Brain:
            return load_brain(
                self.checkpoint,
                (*self._lcm, *loras),
                self._setup.models,
                self.acceleration,
                self._setup.progress,
                streams=self._streams,
            )

        with refused("lora_dict" if loras else "model_id"):
            return self._share(("brain", self.checkpoint.name, self._lcm, loras), load)

    def codec(self, wanted: Wanted) -> Shared[Codec]:
        """The autoencoder: the tiny one if it is wanted and here."""
        tiny: str | None = self.checkpoint.family.tiny_vae
        if not wanted.use_tiny_vae or tiny not in self._setup.models.names():
            tiny = None

        def load() -> Codec:
            return load_codec(
                self.checkpoint, tiny, self._setup.models, self.acceleration, self._setup.progress
            )

        name = tiny or self.checkpoint.name
        with refused("model_id"):
            return self._share(("autoencoder", name), load)

    def controller(self, index: int, name: str) -> Shared[Controller]:
        """The ControlNet of that name, which is the `index`th of those wanted."""

        def load() -> Controller:
            return load_controller(
                name, self.checkpoint, self._setup.models, self.acceleration, self._setup.progress
            )

        with refused(f"controlnets.{index}.model_id"):
            return self._share(("controlnet", name, self.checkpoint.width), load)

    def _share(self, key: tuple[Hashable, ...], load: Callable[[], T]) -> Shared[T]:
        def load_alone() -> T:
            # While they load, the libraries change how PyTorch makes parameters, for all threads.
            with self._setup.share(("streamdiffusion", "loading"), threading.Lock) as loading, loading:
                return load()

        return self._setup.share(("streamdiffusion", *key, self.acceleration), load_alone)


def conditioning(brain: Brain, wanted: Wanted) -> Conditioning:
    """Read the texts: the prompt's, mixed by their weights, and the negative prompt's."""
    read = [brain.read(text) for text, _ in wanted.prompt]
    weights = [weight for _, weight in wanted.prompt]
    method, normalize = wanted.prompt_interpolation_method, wanted.normalize_prompt_weights
    negative, negative_pooled = brain.read(wanted.negative_prompt)
    pooled = [vector for _, vector in read if vector is not None]
    return Conditioning(
        blend([embedding for embedding, _ in read], weights, method, normalize),
        negative,
        blend(pooled, weights, method, normalize) if pooled else None,
        negative_pooled,
    )


def offered_models(setup: Setup) -> list[str]:
    """The names of the models on this machine that are of a family of ours."""
    names = []
    for name in setup.models.names():
        try:
            Checkpoint.read(name, setup.models.path(name), unsafe=setup.models.unsafe)
        except (CheckpointError, ModelMissingError):
            continue
        names.append(name)
    return names
