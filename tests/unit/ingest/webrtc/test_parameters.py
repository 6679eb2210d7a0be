"""Scope's parameters in the words of the pipelines here; nothing is lost without being named."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidError
from services.common.param_schema import validate, with_defaults
from services.inference.engine.pipelines.effects import Effects
from services.ingest.transports.webrtc.parameters import Steering, in_scopes_words, read, steering
from sluice.pipeline import schema

EFFECTS = schema(Effects)
SCOPES_OWN: dict[str, Any] = {
    "prompts": {},
    "denoising_step_list": {},
    "noise_scale": {},
    "reset_cache": {},
}

NEON = {"text": "neon", "weight": 1.0}
SKETCH = {"text": "sketch", "weight": 0.5}


@pytest.mark.parametrize(
    ("given", "patch", "ignored"),
    [
        # the sample's own messages
        (
            {"input_mode": "video", "prompts": [NEON], "denoising_step_list": [700, 500]},
            {"prompt": "neon", "transition_frames": 0},
            ("denoising_step_list",),
        ),
        ({"prompts": [NEON]}, {"prompt": "neon", "transition_frames": 0}, ()),
        (
            {"transition": {"target_prompts": [NEON], "num_steps": 8}},
            {"prompt": "neon", "transition_frames": 8, "temporal_interpolation_method": "linear"},
            (),
        ),
        (
            {"transition": {"target_prompts": [SKETCH]}},
            {"prompt": "sketch", "transition_frames": 4, "temporal_interpolation_method": "linear"},
            (),
        ),
        (
            {
                "transition": {
                    "target_prompts": [NEON],
                    "num_steps": 0,
                    "temporal_interpolation_method": "slerp",
                }
            },
            {"prompt": "neon", "transition_frames": 0, "temporal_interpolation_method": "slerp"},
            (),
        ),
        # a transition's target is newer than the prompts beside it
        (
            {"prompts": [SKETCH], "transition": {"target_prompts": [NEON], "num_steps": 2}},
            {"prompt": "neon", "transition_frames": 2, "temporal_interpolation_method": "linear"},
            (),
        ),
        (
            {"prompts": [NEON, SKETCH], "prompt_interpolation_method": "slerp"},
            {"prompt": [NEON, SKETCH], "prompt_interpolation_method": "slerp", "transition_frames": 0},
            (),
        ),
        ({"prompts": [{"text": "neon"}]}, {"prompt": "neon", "transition_frames": 0}, ()),
        # as in Scope, no weight at all is equal weight
        (
            {"prompts": [{"text": "a", "weight": 0}, {"text": "b", "weight": 0}]},
            {"prompt": [{"text": "a", "weight": 1.0}, {"text": "b", "weight": 1.0}], "transition_frames": 0},
            (),
        ),
        ({"prompts": []}, {}, ("prompts",)),
        ({"prompts": None, "transition": None}, {}, ()),
        ({"noise_scale": 0.7}, {"strength": 0.7}, ()),
        ({"base_seed": 42}, {"seed": 42}, ()),
        ({"reset_cache": True}, {"transition_frames": 0}, ()),
        ({"reset_cache": False}, {}, ()),
        ({"strength": 0.2, "transition_s": 1.5}, {"strength": 0.2, "transition_s": 1.5}, ()),
        ({"input_mode": "text"}, {}, ("input_mode",)),
        (
            {"manage_cache": True, "vace_context_scale": 1, "lora_scales": [{"path": "a", "scale": 1}]},
            {},
            ("manage_cache", "lora_scales", "vace_context_scale"),
        ),
        ({"node_id": "effects", "my_own": {"deep": [1]}}, {}, ("node_id", "my_own")),
    ],
)
def test_what_scope_says_is_said_in_the_words_of_effects(
    given: dict[str, Any], patch: dict[str, Any], ignored: tuple[str, ...]
) -> None:
    found = steering(read(given), EFFECTS["properties"])
    assert (dict(found.patch), found.ignored) == (patch, ignored)
    validate(with_defaults(found.patch, EFFECTS), EFFECTS)


def test_a_pipeline_that_has_scopes_own_parameters_gets_them_as_they_are() -> None:
    given = read(
        {
            "prompts": [NEON, SKETCH],
            "denoising_step_list": [1000, 750],
            "noise_scale": 0.5,
            "reset_cache": True,
        }
    )
    assert steering(given, SCOPES_OWN) == Steering(
        {
            "prompts": [NEON, SKETCH],
            "denoising_step_list": [1000, 750],
            "noise_scale": 0.5,
            "reset_cache": True,
        }
    )


def test_a_pipeline_without_prompts_is_told_by_name_what_it_cannot_do() -> None:
    given = read({"prompts": [NEON], "transition": {"target_prompts": [NEON]}, "reset_cache": True})
    found = steering(given, {})
    assert found.patch == {}
    assert found.ignored == ("prompts", "reset_cache", "transition.target_prompts", "transition.num_steps")


@pytest.mark.parametrize("paused", [True, False, None])
def test_a_pause_is_the_sessions_and_no_parameter(paused: bool | None) -> None:
    assert steering(read({"paused": paused}), {}) == Steering({}, paused)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"prompts": "neon"}, "prompts"),
        ({"prompts": [{"weight": 1}]}, "prompts.0.text"),
        ({"prompts": [{"text": 7}]}, "prompts.0.text"),
        ({"prompts": [{"text": "a", "weight": -1}]}, "prompts.0.weight"),
        ({"prompts": [{"text": "a", "weight": "1"}]}, "prompts.0.weight"),
        ({"prompts": [{"text": "a", "weight": True}]}, "prompts.0.weight"),
        ({"prompts": [{"text": "a", "weight": 10**400}]}, "prompts.0.weight"),
        ({"prompts": [NEON] * 33}, "prompts"),
        ({"transition": {"target_prompts": []}}, "transition.target_prompts"),
        ({"transition": {"target_prompts": [NEON], "num_steps": -1}}, "transition.num_steps"),
        ({"transition": {"num_steps": 4}}, "transition.target_prompts"),
        (
            {"transition": {"target_prompts": [NEON], "temporal_interpolation_method": "cubic"}},
            "transition.temporal_interpolation_method",
        ),
        ({"prompt_interpolation_method": "cubic"}, "prompt_interpolation_method"),
        ({"noise_scale": 99}, "noise_scale"),
        ({"denoising_step_list": [500, 700]}, "denoising_step_list"),
        ({"denoising_step_list": [1001]}, "denoising_step_list.0"),
        ({"denoising_step_list": []}, "denoising_step_list"),
        ({"denoising_step_list": [700.5]}, "denoising_step_list.0"),
        ({"kv_cache_attention_bias": 0}, "kv_cache_attention_bias"),
        ({"vace_context_scale": 2.5}, "vace_context_scale"),
        ({"lora_scales": [{"path": "a", "scale": 11}]}, "lora_scales.0.scale"),
        ({"ctrl_input": {"mouse": [1]}}, "ctrl_input.mouse"),
        ({"input_mode": "audio"}, "input_mode"),
        ({"paused": 1}, "paused"),
        ({"quantize_mode": "sometimes"}, "quantize_mode"),
    ],
)
def test_scopes_ranges_hold_whatever_the_pipeline(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as refusal:
        read(given)
    assert refusal.value.details["field"] == field


@pytest.mark.parametrize(
    ("params", "prompts"),
    [
        ({"prompt": "neon"}, [NEON]),
        ({"prompt": [["neon", 1.0], {"text": "sketch", "weight": 0.5}]}, [NEON, SKETCH]),
        ({"prompt": [{"text": "neon"}]}, [NEON]),
    ],
)
def test_a_prompt_is_shown_to_scopes_clients_as_prompts(params: dict[str, Any], prompts: list[Any]) -> None:
    assert in_scopes_words(params) == {**params, "prompts": prompts}
    assert in_scopes_words({"strength": 1}) == {"strength": 1}
