"""The parameters of one frame, parsed: only what is switched on, checked where JSON Schema cannot. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from services.inference.engine.pipelines.streamdiffusion.controls import Step
from services.inference.engine.pipelines.streamdiffusion.structures import FEEDBACK_STRENGTH
from sluice.pipeline import ParamError, weighted_texts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ControlNet:
    """A network that is switched on; `preprocessor` makes its control picture of the source's."""

    model_id: str
    conditioning_scale: float
    preprocessor: Step
    control_guidance_start: float
    control_guidance_end: float

    def acts_at(self, share: float) -> bool:
        """Whether it has an effect at that share of the steps, 0..1."""
        return (
            self.conditioning_scale > 0 and self.control_guidance_start <= share <= self.control_guidance_end
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """The parameters of one frame, parsed: only what is switched on, weighted texts and seeds as pairs."""

    model_id: str
    width: int
    height: int
    use_tiny_vae: bool
    use_lcm_lora: bool
    lcm_lora_id: str
    lora_dict: tuple[tuple[str, float], ...]  # in order of their names
    acceleration: str
    mode: str
    prompt: tuple[tuple[str, float], ...]
    prompt_interpolation_method: str
    normalize_prompt_weights: bool
    negative_prompt: str
    transition_s: float
    guidance_scale: float
    cfg_type: str
    delta: float
    num_inference_steps: int
    t_index_list: tuple[int, ...]
    seed: tuple[tuple[int, float], ...]
    seed_interpolation_method: str
    normalize_seed_weights: bool
    motion_noise: float
    use_denoising_batch: bool
    do_add_noise: bool
    skip_diffusion: bool
    enable_similar_image_filter: bool
    similar_image_filter_threshold: float
    similar_image_filter_max_skip_frame: int
    controlnets: tuple[ControlNet, ...]
    image_preprocessing: tuple[Step, ...]
    image_postprocessing: tuple[Step, ...]
    latent_preprocessing: tuple[float, ...]  # the strength of each latent_feedback
    latent_postprocessing: tuple[float, ...]

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Wanted:
        """Parse complete parameters that their schema accepts. Raises ParamError for what it cannot say."""
        return cls(
            model_id=params["model_id"],
            width=int(params["width"]),
            height=int(params["height"]),
            use_tiny_vae=params["use_tiny_vae"],
            use_lcm_lora=params["use_lcm_lora"],
            lcm_lora_id=params["lcm_lora_id"],
            lora_dict=tuple(
                sorted((name, float(weight)) for name, weight in (params["lora_dict"] or {}).items())
            ),
            acceleration=params["acceleration"],
            mode=params["mode"],
            prompt=_some_weight("prompt", weighted_texts(params["prompt"])),
            prompt_interpolation_method=params["prompt_interpolation_method"],
            normalize_prompt_weights=params["normalize_prompt_weights"],
            negative_prompt=params["negative_prompt"],
            transition_s=float(params["transition_s"]),
            guidance_scale=float(params["guidance_scale"]),
            cfg_type=params["cfg_type"],
            delta=float(params["delta"]),
            num_inference_steps=int(params["num_inference_steps"]),
            t_index_list=_grades(params["t_index_list"], int(params["num_inference_steps"])),
            seed=_some_weight("seed", _weighted_seeds(params["seed"])),
            seed_interpolation_method=params["seed_interpolation_method"],
            normalize_seed_weights=params["normalize_seed_weights"],
            motion_noise=float(params["motion_noise"]),
            use_denoising_batch=params["use_denoising_batch"],
            do_add_noise=params["do_add_noise"],
            skip_diffusion=params["skip_diffusion"],
            enable_similar_image_filter=params["enable_similar_image_filter"],
            similar_image_filter_threshold=float(params["similar_image_filter_threshold"]),
            similar_image_filter_max_skip_frame=int(params["similar_image_filter_max_skip_frame"]),
            controlnets=_controlnets(params["controlnets"]),
            image_preprocessing=_steps(params["image_preprocessing"]),
            image_postprocessing=_steps(params["image_postprocessing"]),
            latent_preprocessing=_strengths(params["latent_preprocessing"]),
            latent_postprocessing=_strengths(params["latent_postprocessing"]),
        )


def _some_weight(field: str, weighted: Sequence[tuple[T, float]]) -> tuple[tuple[T, float], ...]:
    kept = tuple((item, weight) for item, weight in weighted if weight > 0)
    if not kept:
        raise ParamError(field, "none of them has a weight above 0; at least one needs it")
    return kept


def _weighted_seeds(seed: Any) -> list[tuple[int, float]]:
    if isinstance(seed, Sequence):
        return [(int(one), float(weight)) for one, weight in seed]
    return [(int(seed), 1.0)]


def _grades(indices: Sequence[Any], steps: int) -> tuple[int, ...]:
    grades = tuple(int(index) for index in indices)
    if list(grades) != sorted(grades):
        raise ParamError("t_index_list", f"{list(grades)} falls; each entry is at least the one before it")
    if grades[-1] >= steps:
        raise ParamError("t_index_list", f"{grades[-1]} is not below num_inference_steps, which is {steps}")
    return grades


def _on(item: Mapping[str, Any]) -> bool:
    return bool(item.get("enabled", True))


def _active(chain: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if chain is None or not _on(chain):
        return []
    return [item for item in chain.get("processors", ()) if _on(item)]


def _steps(chain: Mapping[str, Any] | None) -> tuple[Step, ...]:
    return tuple(Step.of(item["type"], item.get("params") or {}) for item in _active(chain))


def _strengths(chain: Mapping[str, Any] | None) -> tuple[float, ...]:
    return tuple(
        float((item.get("params") or {}).get("feedback_strength", FEEDBACK_STRENGTH))
        for item in _active(chain)
    )


def _controlnets(items: Sequence[Mapping[str, Any]]) -> tuple[ControlNet, ...]:
    nets: list[ControlNet] = []
    for index, item in enumerate(items):
        if not _on(item):
            continue
        net = ControlNet(
            model_id=item["model_id"],
            conditioning_scale=float(item.get("conditioning_scale", 1)),
            preprocessor=Step.of(
                item.get("preprocessor") or "passthrough", item.get("preprocessor_params") or {}
            ),
            control_guidance_start=float(item.get("control_guidance_start", 0)),
            control_guidance_end=float(item.get("control_guidance_end", 1)),
        )
        if any(other.model_id == net.model_id for other in nets):
            raise ParamError(f"controlnets.{index}.model_id", f"{net.model_id} is there twice")
        if net.control_guidance_start > net.control_guidance_end:
            raise ParamError(f"controlnets.{index}.control_guidance_start", "is above control_guidance_end")
        nets.append(net)
    return tuple(nets)
