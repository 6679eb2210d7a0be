"""StreamDiffusion: a stream of pictures repainted by a diffusion model as a prompt says, in a few steps.

With K steps (`t_index_list`) and `use_denoising_batch`, K frames are under way at once, and what is
returned for a frame shows the one that came K - 1 calls before. It carries the time of the frame that it is
returned for, not of the one that it shows: the platform pairs what goes out with what came in by that time,
one for one, and holds sound by it; a picture with an older time would be one that has been seen. So
pictures are late by K - 1 frames against their time and against the sound: 67 ms with three steps at 30
frames a second. The last K - 1 frames of a stream do not come out.

Streams with the same model in one engine share it: see `loading.py` and `denoiser.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from services.inference.engine.pipelines.streamdiffusion.codec import Codec
from services.inference.engine.pipelines.streamdiffusion.denoiser import Controller
from services.inference.engine.pipelines.streamdiffusion.loading import Loader, conditioning, offered_models
from services.inference.engine.pipelines.streamdiffusion.painter import Painter, Painting
from services.inference.engine.pipelines.streamdiffusion.params import PARAMS, RULES
from services.inference.engine.pipelines.streamdiffusion.wanted import Wanted
from services.inference.engine.pipelines.streamdiffusion.weights import Brain
from sluice.pipeline import Param, Pipeline, Setup, Shared, VideoFrame, schema


@dataclass(frozen=True, slots=True)
class _Needs:
    """What has to be loaded or read before it can be painted with."""

    loras: tuple[tuple[str, float], ...]
    controlnets: tuple[str, ...]
    prompt: tuple[tuple[str, float], ...]
    method: str
    normalize: bool
    negative_prompt: str

    @classmethod
    def of(cls, wanted: Wanted) -> _Needs:
        return cls(
            wanted.lora_dict,
            tuple(net.model_id for net in wanted.controlnets),
            wanted.prompt,
            wanted.prompt_interpolation_method,
            wanted.normalize_prompt_weights,
            wanted.negative_prompt,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What `prepare` has loaded and read; held until another is adopted."""

    needs: _Needs
    painting: Painting
    brain: Shared[Brain]
    controllers: tuple[Shared[Controller], ...]

    def close(self) -> None:
        self.brain.close()
        for controller in self.controllers:
            controller.close()


class StreamDiffusion(Pipeline):
    """One stream's."""

    name = "streamdiffusion"
    version = "1.0"
    description = (
        "Repaints each picture as a prompt says, with Stable Diffusion 1.5, SD-Turbo or SDXL-Turbo, "
        "LoRAs and ControlNets."
    )
    params: ClassVar[Mapping[str, Param]] = PARAMS
    rules = RULES
    slots_per_engine = 4

    def __init__(self) -> None:
        self._loader: Loader | None = None
        self._codec: Shared[Codec] | None = None
        self._painter: Painter | None = None
        self._held: list[Prepared] = []  # in the order in which they were prepared
        self._lock = threading.Lock()  # of that, for `prepare` has a thread of its own
        self._adopted: Prepared | None = None
        self._parsed: tuple[Mapping[str, Any], Wanted] | None = None

    @classmethod
    def offered(cls, setup: Setup) -> dict[str, Any]:
        """With the models of this machine to choose from, if it has any."""
        offered = schema(cls)
        if names := offered_models(setup):
            properties = offered["properties"]
            properties["model_id"] = {**properties["model_id"], "enum": names}
        return offered

    def load(self, setup: Setup, params: Mapping[str, Any]) -> None:
        wanted = self._wanted(params)
        self._loader = Loader(setup, wanted, streams=self.slots_per_engine)
        self._codec = self._loader.codec(wanted)
        self.adopt(self.prepare(params))
        setup.progress("warm-up", 0.0)
        # What a first run allocates, chooses or compiles is done before somebody waits for it.
        self._new_painter(wanted).paint(np.zeros((wanted.height, wanted.width, 3), np.uint8), 0, wanted)
        self._new_painter(wanted)
        setup.progress("warm-up", 1.0)

    def prepare(self, params: Mapping[str, Any]) -> Prepared:
        assert self._loader is not None, "load comes first"
        wanted = Wanted.of(params)
        controllers: list[Shared[Controller]] = []
        brain = self._loader.brain(wanted)
        try:
            for index, net in enumerate(wanted.controlnets):
                controllers.append(self._loader.controller(index, net.model_id))
            with torch.inference_mode():
                asked = conditioning(brain.value, wanted)
        except BaseException:
            brain.close()
            for controller in controllers:
                controller.close()
            raise
        names = (net.model_id for net in wanted.controlnets)
        by_name = {name: shared.value for name, shared in zip(names, controllers, strict=True)}
        prepared = Prepared(
            _Needs.of(wanted), Painting(brain.value, by_name, asked), brain, tuple(controllers)
        )
        with self._lock:
            self._held.append(prepared)
        return prepared

    def adopt(self, prepared: object) -> None:
        assert isinstance(prepared, Prepared), prepared
        if self._painter is not None:
            self._painter.adopt(prepared.painting)
        self._adopted = prepared
        with self._lock:
            # Those before it are over, and those that nobody came to adopt.
            at = self._held.index(prepared)
            over, self._held = self._held[:at], self._held[at:]
        for one in over:
            one.close()

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        wanted = self._wanted(params)
        if self._adopted is None or self._adopted.needs != _Needs.of(wanted):
            self.adopt(self.prepare(params))  # whoever has not prepared for it waits for it here
        assert self._painter is not None
        return frame.with_rgb(self._painter.paint(frame.rgb, frame.pts, wanted))

    def snapshot(self) -> bytes | None:
        return None if self._painter is None else self._painter.remembered()

    def restore(self, snapshot: bytes) -> None:
        assert self._painter is not None, "load comes first"
        assert self._parsed is not None, "load comes first"
        self._painter.recall(snapshot, self._parsed[1])

    def close(self) -> None:
        if self._painter is not None:
            self._painter.close()
            self._painter = None
        with self._lock:
            held, self._held = self._held, []
        for prepared in held:
            prepared.close()
        if self._codec is not None:
            self._codec.close()
            self._codec = None
        self._adopted = None

    def _wanted(self, params: Mapping[str, Any]) -> Wanted:
        """Parse the parameters, once for as long as they are the same."""
        if self._parsed is None or self._parsed[0] != params:
            self._parsed = dict(params), Wanted.of(params)
        return self._parsed[1]

    def _new_painter(self, wanted: Wanted) -> Painter:
        assert self._loader is not None
        assert self._codec is not None
        assert self._adopted is not None
        if self._painter is not None:
            self._painter.close()
        self._painter = Painter(
            self._codec.value, self._loader.acceleration.device, wanted.width, wanted.height
        )
        self._painter.adopt(self._adopted.painting)
        return self._painter
