"""What a client may set of StreamDiffusion, and what holds between the parameters. Pure.

Names and shapes are those of the Daydream API and of ai-runner, whose clients send them. What is not built is
in the schema all the same, so that a client that sends it switched off is understood, and one that wants it
is told so in words. `wanted.py` parses the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from services.inference.engine.pipelines.streamdiffusion.structures import (
    CONTROLNET,
    IMAGE_CHAIN,
    LATENT_CHAIN,
    SEED_MAX,
    WEIGHTLESS,
    seeds,
)
from sluice.pipeline import Apply, Json, Param, Prompt
from sluice.pipeline.models import MODEL_NAME

LINEAR, SLERP = "linear", "slerp"
IMAGE_TO_IMAGE, TEXT_TO_IMAGE = "img2img", "txt2img"

STEPS_MAX: Final = 50  # the schedule of the consistency models was distilled for so many
CALLS_MAX: Final = 4  # of the UNet for one picture, all in one batch
SIDE_MULTIPLE: Final = 64  # eight times smaller as a latent, and the UNet halves that three times
TEXT_MAX: Final = 2000
CONTROLNETS_MAX: Final = 8
LORAS_MAX: Final = 8


def _side(help_text: str) -> Json:
    return Json(
        default=512,
        help=help_text,
        apply=Apply.RELOAD,
        schema={
            "type": "integer",
            "minimum": SIDE_MULTIPLE,
            "maximum": 1024,
            "multipleOf": SIDE_MULTIPLE,
        },
    )


PARAMS: Final[Mapping[str, Param]] = MappingProxyType(
    {
        # The model.
        "model_id": Json(
            default="stabilityai/sd-turbo",
            help="A name of this machine's model cache, such as stabilityai/sd-turbo; not a path.",
            apply=Apply.RELOAD,
            schema={"type": "string", "pattern": MODEL_NAME},
        ),
        "width": _side(
            "Of the picture that is made, in pixels, a multiple of 64; the source is cropped to its shape. "
            "Models are trained at 512 and above, and below 384 it shows."
        ),
        "height": _side("As width."),
        "use_tiny_vae": Param(
            default=True,
            help=(
                "With the tiny autoencoder that belongs to the model, where this machine has it: many times "
                "quicker than the model's own, which is used otherwise."
            ),
            apply=Apply.RELOAD,
        ),
        "use_lcm_lora": Param(
            default=True,
            help="Makes a model that is not a turbo one work in few steps; turbo models need none.",
            apply=Apply.RELOAD,
        ),
        "lcm_lora_id": Json(
            default="latent-consistency/lcm-lora-sdv1-5",
            help="Which, by its name in the model cache. At an SDXL model this default means lcm-lora-sdxl.",
            apply=Apply.RELOAD,
            schema={"type": "string", "pattern": MODEL_NAME},
        ),
        "lora_dict": Json(
            default=None,
            help="Weights of LoRAs by their names in the model cache, such as {'my-style': 0.8}; or null.",
            apply=Apply.WARM,
            schema={
                "type": ["object", "null"],
                "propertyNames": {
                    "pattern": MODEL_NAME,
                    "description": "each is a name of this machine's model cache",
                },
                "additionalProperties": {
                    "type": "number",
                    "minimum": -4,
                    "maximum": 4,
                    "description": "0 is none of it, 1 all.",
                },
                "maxProperties": LORAS_MAX,
            },
        ),
        "acceleration": Param(
            default="auto",
            help=(
                "none: as PyTorch runs it; compile: compiled when it is loaded, which takes a minute or "
                "more, CUDA only; auto: compile on CUDA, none on a CPU. "
                "tensorrt and xformers are not built in: use auto."
            ),
            choices=("auto", "none", "compile"),
            apply=Apply.RELOAD,
        ),
        # What is made.
        "mode": Param(
            default=IMAGE_TO_IMAGE,
            help="img2img: of the source's pictures; txt2img: of the prompt alone, in time with the source.",
            choices=(IMAGE_TO_IMAGE, TEXT_TO_IMAGE),
            apply=Apply.WARM,
        ),
        "prompt": Prompt(
            default="flowers",
            help="What to paint: a text, or texts with weights to mix: [[text, weight], ...].",
            max_length=TEXT_MAX,
            apply=Apply.WARM,
        ),
        "prompt_interpolation_method": Param(
            default=SLERP,
            help="How texts are mixed: two of them along an arc with slerp; more are always added up.",
            choices=(LINEAR, SLERP),
            apply=Apply.WARM,
        ),
        "normalize_prompt_weights": Param(
            default=True, help="Weights of texts count in relation to their sum.", apply=Apply.WARM
        ),
        "negative_prompt": Param(
            default="blurry, low quality, flat, 2d",
            help="What to stay away from; with guidance_scale above 1 and cfg_type full or initialize.",
            max_length=TEXT_MAX,
            apply=Apply.WARM,
        ),
        "transition_s": Param(
            default=0.0,
            help="How long a new prompt takes to replace the one before, in seconds of the video.",
            minimum=0,
            maximum=60,
        ),
        "guidance_scale": Param(
            default=1.0,
            help="How strictly the prompt is followed. Up to 1 is off, which is right for turbo models.",
            minimum=0,
            maximum=20,
        ),
        "cfg_type": Param(
            default="self",
            help=(
                "How guidance is found when guidance_scale is above 1: none; full, at twice the work; self, "
                "from what is left of the noise; initialize, with the negative prompt at the first step."
            ),
            choices=("none", "full", "self", "initialize"),
            apply=Apply.WARM,
        ),
        "delta": Param(
            default=0.7,
            help="Of cfg_type self and initialize: how much of the noise that is left is taken away.",
            minimum=0,
            maximum=5,
        ),
        "num_inference_steps": Param(
            default=50,
            help=f"How finely noise is graded; 1 to {STEPS_MAX}, above which there is no schedule.",
            minimum=1,
            maximum=STEPS_MAX,
            apply=Apply.WARM,
        ),
        "t_index_list": Json(
            default=[12, 20, 32],
            help=(
                "At which grades of noise the UNet is applied: 1 to 4, none smaller than the one before, "
                "each below num_inference_steps. The first decides how much of the source remains."
            ),
            apply=Apply.WARM,
            schema={
                "type": "array",
                "items": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": STEPS_MAX - 1,
                    "description": "0 is all noise, and num_inference_steps - 1 almost none.",
                },
                "minItems": 1,
                "maxItems": CALLS_MAX,
            },
        ),
        "seed": Json(
            default=789,
            help=f"Which noise: 0 to {SEED_MAX}, or several with weights to mix: [[seed, weight], ...].",
            schema=seeds(),
        ),
        "seed_interpolation_method": Param(
            default=LINEAR,
            help="How noises are mixed: two of them along an arc with slerp; more are always added up.",
            choices=(LINEAR, SLERP),
        ),
        "normalize_seed_weights": Param(
            default=True, help="Weights of seeds count in relation to their sum."
        ),
        "motion_noise": Param(
            default=0.0,
            help="How far quick motion lowers the noise that is added, so that it is not smeared; 0 is off.",
            minimum=0,
            maximum=1,
        ),
        "use_denoising_batch": Param(
            default=True,
            help="All steps in one batch, one picture late for each but the first; else one after the other.",
            apply=Apply.RELOAD,
        ),
        "do_add_noise": Param(default=True, help="New noise between the steps."),
        "skip_diffusion": Param(
            default=False,
            help="The source goes past the model; what is set of processing is done all the same.",
        ),
        "enable_similar_image_filter": Param(
            default=False, help="A picture like the one before is not computed: the last result is repeated."
        ),
        "similar_image_filter_threshold": Param(
            default=0.98,
            help="How alike they must be at least to be skipped at times; at 1 none is.",
            minimum=0,
            maximum=1,
        ),
        "similar_image_filter_max_skip_frame": Param(
            default=10, help="Pictures that are skipped in a row at most.", minimum=0, maximum=1000
        ),
        # What leads it.
        "controlnets": Json(
            default=[],
            help=(
                "Networks that lead the picture by what a preprocessor finds in the source. A change of "
                "conditioning_scale is quick; one that is not loaded yet is loaded beside."
            ),
            apply=Apply.WARM,
            schema={"type": "array", "items": CONTROLNET, "maxItems": CONTROLNETS_MAX},
        ),
        "image_preprocessing": Json(
            default={"enabled": False, "processors": []},
            help=f"Filters of the source's picture, in a row, or null: {', '.join(WEIGHTLESS)}.",
            schema=IMAGE_CHAIN,
        ),
        "image_postprocessing": Json(
            default={"enabled": False, "processors": []},
            help="The same of the picture that was made; upscale changes the size of the output.",
            schema=IMAGE_CHAIN,
        ),
        "latent_preprocessing": Json(
            default={"enabled": False, "processors": []},
            help="latent_feedback of what goes into the UNet, or null.",
            schema=LATENT_CHAIN,
        ),
        "latent_postprocessing": Json(
            default={"enabled": False, "processors": []},
            help="latent_feedback of what comes out of it, or null.",
            schema=LATENT_CHAIN,
        ),
        # What is not built: only what switches it off is accepted.
        "ip_adapter": Json(
            default={"type": "regular", "enabled": False, "scale": 1.0, "weight_type": "linear"},
            help="Not built in: null, or an object with enabled: false.",
            schema={
                "type": ["object", "null"],
                "properties": {
                    "enabled": {
                        "const": False,
                        "description": "IP-Adapter is not built in: only false is accepted",
                    },
                    "type": {"enum": ["regular", "faceid"]},
                    "scale": {"type": "number"},
                    "weight_type": {"type": "string", "maxLength": 64},
                    "insightface_model_name": {"type": "string", "maxLength": 128},
                },
                "required": ["enabled"],
            },
        ),
        "ip_adapter_style_image_url": Json(
            default="",
            help="Without effect and never fetched, for IP-Adapter is not built in; null, or a text.",
            schema={"type": ["string", "null"], "maxLength": 2048},
        ),
        "cached_attention": Json(
            default={"enabled": False, "max_frames": 1, "interval": 1},
            help="Not built in: null, or an object with enabled: false.",
            schema={
                "type": ["object", "null"],
                "properties": {
                    "enabled": {
                        "const": False,
                        "description": "cached attention is not built in: only false is accepted",
                    },
                    "max_frames": {"type": "integer", "minimum": 1, "maximum": 4},
                    "interval": {"type": "integer", "minimum": 1, "maximum": 1440},
                },
                "required": ["enabled"],
                "additionalProperties": False,
            },
        ),
        "use_safety_checker": Json(
            default=False,
            help="Not built in: only false is accepted, so that nobody relies on a check that is not made.",
            schema={"type": "boolean", "const": False},
        ),
        "safety_checker_threshold": Param(
            default=0.5, help="Without effect: there is no safety checker.", minimum=0, maximum=1
        ),
        "show_reloading_frame": Param(
            default=True,
            help="Without effect: while a model loads, viewers keep the last picture or see a placeholder.",
        ),
    }
)

# Each entry of t_index_list is below num_inference_steps, which JSON Schema can say only of one number of
# steps at a time.
RULES: Final[tuple[Mapping[str, Any], ...]] = tuple(
    {
        "if": {"properties": {"num_inference_steps": {"const": steps}}, "required": ["num_inference_steps"]},
        "then": {
            "properties": {
                "t_index_list": {
                    "items": {"maximum": steps - 1, "description": f"num_inference_steps is {steps}"}
                }
            }
        },
    }
    for steps in range(1, STEPS_MAX)
)
