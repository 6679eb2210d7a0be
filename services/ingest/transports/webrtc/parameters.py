"""Scope's parameters: checked by Scope's own ranges, then said in the words of whatever pipeline runs. Pure.

The rule it keeps: nothing that a client said is lost silently; what means nothing to the pipeline is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from services.common.errors import InvalidError

TEXTS_MAX: Final = 32  # as many as a `Prompt` takes
TEXT_MAX: Final = 10_000  # characters; a pipeline's own limit is below it
PATHS_MAX: Final = 64
DEPTH_MAX: Final = 32  # of nesting
STEPS_MAX: Final = 1000  # the diffusion schedule that Scope's timesteps count in

# Scope's word for something that pipelines here call otherwise, where they have no parameter of Scope's name.
ALIASES: Final[Mapping[str, str]] = {"prompts": "prompt", "noise_scale": "strength", "base_seed": "seed"}
LENGTH: Final = "transition_frames"
# These have rules of their own.
SEPARATE: Final = frozenset({"prompts", "transition", "reset_cache", "paused", "input_mode"})

Number = Annotated[float, Field(allow_inf_nan=False)]
Method = Literal["linear", "slerp"]
Path = Annotated[str, Field(max_length=1000)]


def plain(value: object) -> bool:
    """Whether whatever reads `value` recursively can, and whatever writes it as JSON."""
    level = [value]
    for _ in range(DEPTH_MAX):
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            return False
        level = [
            inner
            for outer in level
            if isinstance(outer, Mapping | list)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
        if not level:
            return True
    return False


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class WeightedText(_Strict):
    """One of several prompts and how much of it."""

    text: str = Field(max_length=TEXT_MAX)
    weight: Number = Field(1.0, ge=0)


class Transition(_Strict):
    """The way from the prompts that are shown to others; no steps is at once."""

    target_prompts: list[WeightedText] = Field(min_length=1, max_length=TEXTS_MAX)
    num_steps: int = Field(4, ge=0)
    temporal_interpolation_method: Method | None = None


class LoraScale(_Strict):
    """How much of an adapter."""

    path: Path
    scale: Number = Field(ge=-10, le=10)


class Controls(_Strict):
    """What is held down, and how far the mouse went."""

    button: list[str] = Field([], max_length=PATHS_MAX)
    mouse: list[Number] = Field([0, 0], min_length=2, max_length=2)


class ScopeParameters(BaseModel):
    """Any part of what Scope's clients send; null is as good as absent.

    Other keys are kept: they may be the pipeline's own.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    input_mode: Literal["text", "video"] | None = None
    prompts: list[WeightedText] | None = Field(None, max_length=TEXTS_MAX)
    prompt_interpolation_method: Method | None = None
    transition: Transition | None = None
    noise_scale: Number | None = Field(None, ge=0, le=1)
    noise_controller: bool | None = None
    denoising_step_list: list[Annotated[int, Field(ge=0, le=STEPS_MAX)]] | None = Field(
        None, min_length=1, max_length=PATHS_MAX
    )
    manage_cache: bool | None = None
    reset_cache: bool | None = None
    kv_cache_attention_bias: Number | None = Field(None, ge=0.01, le=1)
    lora_scales: list[LoraScale] | None = Field(None, max_length=PATHS_MAX)
    vace_enabled: bool | None = None
    vace_ref_images: list[Path] | None = Field(None, max_length=PATHS_MAX)
    vace_use_input_video: bool | None = None
    vace_context_scale: Number | None = Field(None, ge=0, le=2)
    first_frame_image: Path | None = None
    last_frame_image: Path | None = None
    images: list[Path] | None = Field(None, max_length=PATHS_MAX)
    pipeline_ids: list[str] | None = Field(None, max_length=PATHS_MAX)
    graph: dict[str, Any] | None = None
    output_sinks: dict[str, Any] | None = None
    input_source: dict[str, Any] | None = None
    recording: bool | None = None
    paused: bool | None = None
    ctrl_input: Controls | None = None
    quantize_mode: Literal["none", "beat", "bar", "2_bar", "4_bar"] | None = None
    lookahead_ms: Number | None = Field(None, ge=0)
    modulations: dict[str, dict[str, Any]] | None = Field(None, max_length=PATHS_MAX)
    node_id: str | None = Field(None, max_length=200)
    source_track_order: list[str] | None = Field(None, max_length=PATHS_MAX)

    @model_validator(mode="before")
    @classmethod
    def _is_plain(cls, fields: Any) -> Any:
        if not plain(fields):
            raise ValueError(f"a number that is none, or more than {DEPTH_MAX} objects in each other")
        return fields

    @field_validator("denoising_step_list")
    @classmethod
    def _descends(cls, steps: list[int] | None) -> list[int] | None:
        if steps and any(step < following for step, following in pairwise(steps)):
            raise ValueError("timesteps descend, from 1000 to 0")
        return steps

    def given(self) -> dict[str, Any]:
        """What was sent and is not null, as plain JSON."""
        return {
            name: value for name, value in self.model_dump(exclude_unset=True).items() if value is not None
        }


@dataclass(frozen=True, slots=True)
class Steering:
    """What is to be done.

    `patch` is of the pipeline's own parameters; `ignored` names what neither it nor the platform has.
    """

    patch: Mapping[str, Any]
    paused: bool | None = None
    ignored: tuple[str, ...] = ()


def read(fields: Mapping[str, Any]) -> ScopeParameters:
    """Check what a client sent. Raises InvalidError that names the first field that is wrong."""
    try:
        return ScopeParameters.model_validate(dict(fields))
    except ValidationError as error:
        raise wrong_field(error) from None


def wrong_field(error: ValidationError) -> InvalidError:
    """The first thing that pydantic found, in our words."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return InvalidError(f"{field}: {message}" if field else message, field=field)


def steering(given: ScopeParameters, properties: Mapping[str, Any]) -> Steering:
    """Say `given` in the words of a pipeline whose JSON Schema has these `properties`.

    What has the name of one of its parameters is that parameter; `prompts` are its `prompt`. In Scope prompts
    change at once, and a transition takes its steps: both need the pipeline's `transition_frames`, without
    which it changes at its own pace.
    """
    fields = given.given()
    patch: dict[str, Any] = {}
    ignored: list[str] = []
    for name, value in fields.items():
        if name in SEPARATE:
            continue
        target = name if name in properties else ALIASES.get(name, name)
        if target in properties:
            patch[target] = value
        else:
            ignored.append(name)
    if given.input_mode == "text":
        ignored.append("input_mode")  # pipelines here make pictures of pictures
    if given.prompts:
        _prompt("prompts", given.prompts, properties, patch, ignored)
    elif given.prompts is not None:
        ignored.append("prompts")
    if given.reset_cache is not None:
        _reset(given.reset_cache, properties, patch, ignored)
    if given.transition is not None:
        _transition(given.transition, properties, patch, ignored)
    elif given.prompts and LENGTH in properties:
        patch.setdefault(LENGTH, 0)
    return Steering(patch, given.paused, tuple(ignored))


def _reset(reset: bool, properties: Mapping[str, Any], patch: dict[str, Any], ignored: list[str]) -> None:
    """Begin anew: for a pipeline without a word for it, at least no change is under way any more."""
    if "reset_cache" in properties:
        patch["reset_cache"] = reset
    elif LENGTH not in properties:
        ignored.append("reset_cache")
    elif reset:
        patch.setdefault(LENGTH, 0)


def _prompt(
    name: str,
    texts: list[WeightedText],
    properties: Mapping[str, Any],
    patch: dict[str, Any],
    ignored: list[str],
) -> None:
    target = "prompts" if "prompts" in properties else ALIASES["prompts"]
    if target not in properties:
        ignored.append(name)
        return
    if len(texts) == 1:
        patch[target] = texts[0].text
        return
    equal = not any(one.weight for one in texts)  # as Scope has it
    patch[target] = [{"text": one.text, "weight": 1.0 if equal else one.weight} for one in texts]


def _transition(
    transition: Transition, properties: Mapping[str, Any], patch: dict[str, Any], ignored: list[str]
) -> None:
    _prompt("transition.target_prompts", transition.target_prompts, properties, patch, ignored)
    if LENGTH in properties:
        patch[LENGTH] = transition.num_steps
    else:
        ignored.append("transition.num_steps")
    method = "temporal_interpolation_method"
    if method in properties:
        patch[method] = transition.temporal_interpolation_method or "linear"
    elif transition.temporal_interpolation_method is not None:
        ignored.append(f"transition.{method}")


def in_scopes_words(params: Mapping[str, Any]) -> dict[str, Any]:
    """A pipeline's parameters with its prompt also as Scope's clients know it."""
    if "prompt" not in params or "prompts" in params:
        return dict(params)
    prompt = params["prompt"]
    texts = [prompt] if isinstance(prompt, str) else prompt
    return {**params, "prompts": [_weighted(text) for text in texts]}


def _weighted(text: Any) -> dict[str, Any]:
    if isinstance(text, str):
        return {"text": text, "weight": 1.0}
    if isinstance(text, Mapping):
        return {"text": text["text"], "weight": text.get("weight", 1.0)}
    return {"text": text[0], "weight": text[1]}
