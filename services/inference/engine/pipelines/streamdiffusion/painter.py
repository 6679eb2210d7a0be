"""One stream: pictures in, pictures out, and what is remembered between them.

A picture that goes in comes out after `delay` more, at the time of the one that goes in then. When
something changes at once, such as the seed or a prompt without a transition, the steps are run in with the
picture at hand before one is shown: none ever shows a state in between, and the first is as right as any.
What changes by degrees (guidance, the scale of a ControlNet, a prompt under way) needs none of that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.inference.engine.pipelines.streamdiffusion import codec as pixels
from services.inference.engine.pipelines.streamdiffusion.blending import Conditioning, Transition
from services.inference.engine.pipelines.streamdiffusion.codec import FACTOR, Codec
from services.inference.engine.pipelines.streamdiffusion.controls import Step as Filter
from services.inference.engine.pipelines.streamdiffusion.controls import latent_feedback, through
from services.inference.engine.pipelines.streamdiffusion.denoiser import Control, Controller, Rows
from services.inference.engine.pipelines.streamdiffusion.guidance import Guide
from services.inference.engine.pipelines.streamdiffusion.memory import pack, unpack
from services.inference.engine.pipelines.streamdiffusion.motion import Motion
from services.inference.engine.pipelines.streamdiffusion.noise import Seeds
from services.inference.engine.pipelines.streamdiffusion.params import TEXT_TO_IMAGE
from services.inference.engine.pipelines.streamdiffusion.schedule import Step
from services.inference.engine.pipelines.streamdiffusion.similarity import Draws, SimilarityFilter
from services.inference.engine.pipelines.streamdiffusion.stream_batch import Asked, Sequential, StreamBatch
from services.inference.engine.pipelines.streamdiffusion.wanted import ControlNet, Wanted
from services.inference.engine.pipelines.streamdiffusion.weights import Brain
from sluice.pipeline import fit

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Painting:
    """What a stream paints with: a model, networks that lead it, and what it is asked for."""

    brain: Brain
    controllers: dict[str, Controller]
    conditioning: Conditioning


@dataclass(frozen=True, slots=True)
class _Shape:
    """What makes the frames under way another batch: steps and how they are taken."""

    count: int
    indices: tuple[int, ...]
    batched: bool
    add_noise: bool
    mode: str
    guidance: str


class Painter:
    """Called from one thread. `close` lets go of the model."""

    def __init__(self, codec: Codec, device: torch.device, width: int, height: int) -> None:
        self._codec = codec
        self._device = device
        self._width, self._height = width, height
        self._painting: Painting | None = None
        self._joined = False
        self.frames = 0  # that went into the model
        self.denoising: StreamBatch | Sequential | None = None
        self.shape: _Shape | None = None
        self._seeds: Seeds | None = None
        self.conditioning: Conditioning | None = None  # of the last frame
        self.transition: Transition | None = None
        self.settled = False  # whether the frames under way are what they would be, had nothing changed
        self.draws = Draws()
        self._filter = SimilarityFilter(self.draws)
        self._filtered_for: Wanted | None = None
        self.motion = Motion()
        self._controls: dict[str, deque[torch.Tensor]] = {}  # newest first
        self.fed_before: torch.Tensor | None = None  # the latent that went in last
        self.fed_after: torch.Tensor | None = None  # and that came out
        self._shown: Picture | None = None

    def adopt(self, painting: Painting) -> None:
        """From the next picture on."""
        if self._painting is not None and self._painting.brain is not painting.brain:
            self._leave()
            self.settled = False
        self._painting = painting

    def remembered(self) -> bytes | None:
        """What goes on in another painter as here, as far as it fits: see `memory.py`."""
        if not isinstance(self.denoising, StreamBatch | Sequential) or not self.settled:
            return None
        state: dict[str, Any] = {
            "size": [self._width, self._height],
            "shape": repr(self.shape),
            "seeds": repr(self._seeds),
            "frames": self.frames,
            "draws": self.draws.count,
            "differences": list(self.motion.differences),
            "lowered": self.motion.lowered,
        }
        tensors: dict[str, torch.Tensor | None] = {"fed_before": self.fed_before, "fed_after": self.fed_after}
        if isinstance(self.denoising, StreamBatch):
            tensors = {"under_way": self.denoising.under_way, "stock": self.denoising.stock, **tensors}
        if self.motion.before is not None:
            tensors["motion"] = torch.from_numpy(self.motion.before)
        if self.transition is not None:
            state["transition"] = [self.transition.start_pts, self.transition.seconds, self.transition.method]
            tensors |= {f"before.{name}": tensor for name, tensor in self.transition.before.tensors().items()}
        return pack(state, tensors)

    def recall(self, memory: bytes, wanted: Wanted) -> None:
        """Go on where `remembered` was called. Raises ValueError."""
        state, tensors = unpack(memory)
        denoising, _ = self._denoising(wanted)
        if state["size"] != [self._width, self._height]:
            raise ValueError("it is of pictures of another size")
        self.frames, self.draws.count = int(state["frames"]), int(state["draws"])
        self.motion.differences.extend(map(float, state["differences"]))
        self.motion.lowered = float(state["lowered"])
        if "motion" in tensors:
            self.motion.before = tensors.pop("motion").numpy()
        tensors = {name: tensor.to(self._device) for name, tensor in tensors.items()}
        self.fed_before, self.fed_after = tensors.get("fed_before"), tensors.get("fed_after")
        if state.get("transition") and self._painting is not None:
            before = Conditioning.of(
                {name.removeprefix("before."): t for name, t in tensors.items() if name.startswith("before.")}
            )
            if before is not None and before.alike(self._painting.conditioning):
                self.transition = Transition(before, self._painting.conditioning, *state["transition"])
                self.conditioning = before
        # Of other noise or other steps the frames under way are of no use: they are run in anew.
        same = state["shape"] == repr(self.shape) and state["seeds"] == repr(self._seeds)
        if same and isinstance(denoising, StreamBatch):
            under_way, stock = tensors.get("under_way"), tensors.get("stock")
            if under_way is not None and under_way.shape == denoising.under_way.shape:
                denoising.under_way = under_way
                self.settled = True
                if stock is not None and stock.shape == denoising.stock.shape:
                    denoising.stock = stock

    def close(self) -> None:
        """No more pictures."""
        self._leave()
        self._painting = None

    def _join(self) -> None:
        """Others wait for this stream from now on: not before its first picture."""
        if not self._joined and self._painting is not None:
            self._painting.brain.denoiser.batcher.join()
            self._joined = True

    def _leave(self) -> None:
        if self._joined and self._painting is not None:
            self._painting.brain.denoiser.batcher.leave()
            self._joined = False

    @torch.inference_mode()
    def paint(self, rgb: Picture, pts: int, wanted: Wanted) -> Picture:
        """Return the picture that comes out when this one goes in."""
        source = self._sized(rgb)
        if wanted.image_preprocessing:
            source = self._sized(through(wanted.image_preprocessing, source, self._shown))
        if wanted.skip_diffusion:
            self.settled = False
            return self._finished(source, wanted)
        self._join()
        self._steer(pts, wanted)
        signal = pixels.signal(source, self._device)
        if self._repeats(signal, wanted):
            assert self._shown is not None
            return self._shown
        denoising, schedule = self._denoising(wanted)
        first: Step | None = None
        if wanted.mode == TEXT_TO_IMAGE:
            # The latent with which the first step is nothing but its noise.
            start = denoising.steps[0]
            latent = denoising.noise[:1] * ((1 - start.b) / start.a)
        else:
            latent = self._codec.encode(signal)
            if wanted.motion_noise > 0:
                first = self.motion.first_step(source, schedule, denoising.steps, wanted.motion_noise)
        for strength in wanted.latent_preprocessing:
            latent = latent_feedback(latent, self.fed_before, strength)
        self.fed_before = latent
        self._see_controls(source, wanted)
        guide = Guide.of(wanted.cfg_type, wanted.guidance_scale, wanted.delta)
        ask = self._asking(wanted, len(denoising.steps))
        for _ in range(0 if self.settled else denoising.delay):
            denoising.denoise(latent, guide, ask, first)
        made = denoising.denoise(latent, guide, ask, first)
        self.settled = True
        self.frames += 1
        for strength in wanted.latent_postprocessing:
            made = latent_feedback(made, self.fed_after, strength)
        self.fed_after = made
        return self._finished(pixels.picture(self._codec.decode(made)), wanted)

    def _sized(self, rgb: Picture) -> Picture:
        return fit(rgb, self._width, self._height)

    def _finished(self, made: Picture, wanted: Wanted) -> Picture:
        self._shown = through(wanted.image_postprocessing, made, self._shown)
        return self._shown

    def _steer(self, pts: int, wanted: Wanted) -> None:
        """Bring what is asked for to where it is at this time."""
        assert self._painting is not None
        target = self._painting.conditioning
        at = self.conditioning if self.transition is None else self.transition.at(pts)
        aim = self.conditioning if self.transition is None else self.transition.after
        if at is None or aim is None:
            at = target
        elif not aim.same(target):
            if wanted.transition_s > 0:
                self.transition = Transition(
                    at, target, pts, wanted.transition_s, wanted.prompt_interpolation_method
                )
            else:
                self.transition, at, self.settled = None, target, False
        elif self.transition is not None and self.transition.share(pts) >= 1:
            self.transition = None
        self.conditioning = at

    def _repeats(self, signal: torch.Tensor, wanted: Wanted) -> bool:
        """Whether the picture that was shown last will do."""
        was, self._filtered_for = self._filtered_for, wanted
        if not wanted.enable_similar_image_filter:
            self._filter.forget()
            return False
        if wanted != was or self.transition is not None or not self.settled or self._shown is None:
            self._filter.forget()
        return self._filter.skips(
            signal, wanted.similar_image_filter_threshold, wanted.similar_image_filter_max_skip_frame
        )

    def _denoising(self, wanted: Wanted) -> tuple[StreamBatch | Sequential, Any]:
        assert self._painting is not None
        schedule = self._painting.brain.checkpoint.schedule
        shape = _Shape(
            wanted.num_inference_steps,
            wanted.t_index_list,
            wanted.use_denoising_batch,
            wanted.do_add_noise,
            wanted.mode,
            wanted.cfg_type,
        )
        seeds = Seeds(wanted.seed, wanted.seed_interpolation_method, wanted.normalize_seed_weights)
        if self.denoising is None or shape != self.shape:
            steps = schedule.steps(wanted.num_inference_steps, wanted.t_index_list)
            noise = self._noise(seeds, len(steps))
            if wanted.use_denoising_batch:
                self.denoising = StreamBatch(steps, noise, add_noise=wanted.do_add_noise)
            else:
                self.denoising = Sequential(steps, noise, self._fresh, add_noise=wanted.do_add_noise)
            self.settled = False
        elif seeds != self._seeds:
            self.denoising.renoise(self._noise(seeds, len(self.denoising.steps)))
            self.settled = False
        self.shape, self._seeds = shape, seeds
        return self.denoising, schedule

    def _noise(self, seeds: Seeds, steps: int, fresh: int = 0) -> torch.Tensor:
        size = self._height // FACTOR, self._width // FACTOR
        return seeds.noise((steps, 4, *size), fresh=fresh).to(self._device)

    def _fresh(self, step: int) -> torch.Tensor:
        assert self._seeds is not None
        return self._noise(self._seeds, step + 1, fresh=self.frames + 1)[-1:]

    def _see_controls(self, source: Picture, wanted: Wanted) -> None:
        """Remember the control pictures of as many frames as are under way."""
        length = len(wanted.t_index_list)
        made: dict[Filter, torch.Tensor] = {}
        kept: dict[str, deque[torch.Tensor]] = {}
        for net in wanted.controlnets:
            if net.conditioning_scale <= 0:
                continue
            if net.preprocessor not in made:
                picture = self._sized(net.preprocessor(source, self._shown))
                made[net.preprocessor] = (pixels.signal(picture, self._device)[0] + 1) / 2
            newest = made[net.preprocessor]
            before = self._controls.get(net.model_id)
            if before is None or not self.settled or before.maxlen != length:
                before = deque([newest] * length, maxlen=length)
            before.appendleft(newest)
            kept[net.model_id] = before
        self._controls = kept

    def _asking(self, wanted: Wanted, steps: int) -> Any:
        assert self._painting is not None
        assert self.conditioning is not None
        brain, asked_for = self._painting.brain, self.conditioning
        texts = torch.stack([asked_for.prompt, asked_for.negative])
        pooled = sizes = None
        if asked_for.pooled is not None and asked_for.negative_pooled is not None:
            pooled = torch.stack([asked_for.pooled, asked_for.negative_pooled])
            sides = [self._height, self._width]
            sizes = torch.tensor([*sides, 0, 0, *sides], dtype=torch.float32, device=self._device)

        def ask(asked: Asked) -> torch.Tensor:
            negative = [int(one) for one in asked.negative]
            rows = Rows(
                asked.latents,
                torch.tensor(asked.timesteps, device=self._device),
                texts[negative],
                None if pooled is None else pooled[negative],
                None if sizes is None else sizes.expand(len(negative), -1),
                self._controlling(wanted.controlnets, asked, steps),
            )
            return brain.denoiser(rows)

        return ask

    def _controlling(self, nets: Sequence[ControlNet], asked: Asked, steps: int) -> tuple[Control, ...]:
        assert self._painting is not None
        return tuple(
            Control(
                self._painting.controllers[net.model_id],
                torch.stack([self._controls[net.model_id][age] for age in asked.ages]),
                tuple(net.conditioning_scale if net.acts_at(step / steps) else 0.0 for step in asked.steps),
            )
            for net in nets
            if net.model_id in self._controls
        )
