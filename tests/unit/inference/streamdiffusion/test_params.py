from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator

from services.common.errors import InvalidError
from services.common.param_schema import applies, validate, with_defaults
from services.inference.engine.pipelines.streamdiffusion.controls import Step
from services.inference.engine.pipelines.streamdiffusion.params import PARAMS, RULES
from services.inference.engine.pipelines.streamdiffusion.wanted import ControlNet, Wanted
from sluice.pipeline import ParamError, Pipeline, VideoFrame, schema

DOCUMENT = Path(__file__).parents[4] / "docs" / "streamdiffusion-parameters.md"


class Painter(Pipeline):
    name, version, description = "painter", "1.0", "Has these parameters."
    params = PARAMS
    rules = RULES

    def prepare(self, params: Mapping[str, Any]) -> object:
        return params

    def adopt(self, prepared: object) -> None:
        pass

    def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
        return frame


SCHEMA = schema(Painter)


def wanted(**sent: Any) -> Wanted:
    """What a stream that sends this gets."""
    params = with_defaults(sent, SCHEMA)
    validate(params, SCHEMA)
    return Wanted.of(params)


def net(**values: Any) -> list[dict[str, Any]]:
    return [{"model_id": "lllyasviel/control_v11p_sd15_canny", **values}]


def one(kind: str, **values: Any) -> dict[str, Any]:
    return {"enabled": True, "processors": [{"type": kind, "enabled": True, "params": values}]}


def test_the_schema_is_one_and_accepts_its_own_defaults() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert wanted() == Wanted.of(with_defaults({}, SCHEMA))
    for name, fact in SCHEMA["properties"].items():
        assert fact["description"], name
        assert fact["x-apply"] in {"live", "warm", "reload"}, name


def test_the_schema_is_small_enough_for_an_advert() -> None:
    assert len(json.dumps(SCHEMA)) < 64_000


# What a client may send, field by field, and what of it is refused: where, and with which words.
GOOD: list[dict[str, Any]] = [
    {"width": 384, "height": 1024},
    {"width": 704},
    {"show_reloading_frame": False},
    {"model_id": "stabilityai/sdxl-turbo"},
    {"model_id": "Lykon/dreamshaper-8"},
    {"model_id": "tiny"},
    {"prompt": "a cat"},
    {"prompt": [["a", 1], ["b", 0.5]], "prompt_interpolation_method": "slerp"},
    {"prompt": [{"text": "a", "weight": 2}, {"text": "b"}]},
    {"prompt_interpolation_method": "linear", "normalize_prompt_weights": False},
    {"negative_prompt": ""},
    {"guidance_scale": 7.5, "delta": 1, "cfg_type": "full"},
    {"num_inference_steps": 1, "t_index_list": [0]},
    {"num_inference_steps": 36, "t_index_list": [5, 5, 15, 35]},
    {"t_index_list": [49]},
    {"lora_dict": None},
    {"lora_dict": {"someone/a-style": 0.8, "mine": -1}},
    {"use_lcm_lora": False, "lcm_lora_id": "latent-consistency/lcm-lora-sdxl"},
    {"acceleration": "none"},
    {"acceleration": "compile"},
    {"use_safety_checker": False, "safety_checker_threshold": 0.2},
    {"use_denoising_batch": False, "do_add_noise": False, "skip_diffusion": True},
    {"seed": 0},
    {"seed": [[42, 1]], "seed_interpolation_method": "linear"},
    {"seed": [[1, 0.5], [2**32 - 1, 0.5]], "seed_interpolation_method": "slerp"},
    {"normalize_seed_weights": False},
    {"enable_similar_image_filter": True, "similar_image_filter_threshold": 1},
    {"similar_image_filter_max_skip_frame": 0},
    {"controlnets": []},
    {"controlnets": net(preprocessor="canny", preprocessor_params={"low_threshold": 100})},
    {"controlnets": net(preprocessor=None, preprocessor_params=None, conditioning_channels=3)},
    {"controlnets": net(conditioning_scale=0, control_guidance_start=0.5, control_guidance_end=0.5)},
    {"controlnets": net(enabled=False, preprocessor="depth_tensorrt", conditioning_channels=6)},
    {"ip_adapter": None, "cached_attention": None},
    {"ip_adapter": {"type": "faceid", "enabled": False, "scale": 0.5, "weight_type": "ease in"}},
    {"ip_adapter_style_image_url": "https://example.com/vortex.png"},
    {"ip_adapter_style_image_url": None},
    {"cached_attention": {"enabled": False, "max_frames": 4, "interval": 240}},
    {"image_preprocessing": None, "latent_postprocessing": None},
    {"image_preprocessing": one("blur", blur_intensity=3), "image_postprocessing": one("upscale")},
    {"image_preprocessing": {"enabled": False, "processors": [{"type": "openpose"}]}},
    {"image_postprocessing": {"processors": [{"type": "realesrgan_trt", "enabled": False}]}},
    {"latent_preprocessing": one("latent_feedback", feedback_strength=0.4)},
    {"mode": "txt2img", "transition_s": 2, "motion_noise": 0.5, "use_tiny_vae": False},
]
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"width": 500}, "params.width", "not a multiple of 64"),
    ({"height": 1088}, "params.height", "maximum of 1024"),
    ({"width": 0}, "params.width", "minimum of 64"),
    ({"show_reloading_frame": "yes"}, "params.show_reloading_frame", "not of type 'boolean'"),
    ({"model_id": "/etc/passwd"}, "params.model_id", "model cache"),
    ({"model_id": "../../secrets"}, "params.model_id", "not a path"),
    ({"model_id": None}, "params.model_id", "not of type 'string'"),
    ({"prompt": 5}, "params.prompt", "[[text, weight], ...]"),
    ({"prompt": [["a", -1]]}, "params.prompt", "[[text, weight], ...]"),
    ({"prompt": "x" * 2001}, "params.prompt", "a text"),
    ({"prompt_interpolation_method": "cubic"}, "params.prompt_interpolation_method", "'linear', 'slerp'"),
    ({"normalize_prompt_weights": 1}, "params.normalize_prompt_weights", "boolean"),
    ({"negative_prompt": None}, "params.negative_prompt", "not of type 'string'"),
    ({"guidance_scale": 21}, "params.guidance_scale", "maximum of 20"),
    ({"delta": -0.1}, "params.delta", "minimum of 0"),
    ({"num_inference_steps": 51}, "params.num_inference_steps", "1 to 50"),
    ({"num_inference_steps": 0}, "params.num_inference_steps", "1 to 50"),
    ({"t_index_list": []}, "params.t_index_list", "1 to 4"),
    ({"t_index_list": [1, 2, 3, 4, 5]}, "params.t_index_list", "1 to 4"),
    ({"t_index_list": [50]}, "params.t_index_list.0", "maximum of 49"),
    ({"t_index_list": [1.5]}, "params.t_index_list.0", "not of type 'integer'"),
    ({"num_inference_steps": 30}, "params.t_index_list.2", "num_inference_steps is 30"),
    ({"num_inference_steps": 8, "t_index_list": [8]}, "params.t_index_list.0", "maximum of 7"),
    ({"lora_dict": {"/models/style.safetensors": 1}}, "params.lora_dict", "model cache"),
    ({"lora_dict": {"mine": 5}}, "params.lora_dict.mine", "maximum of 4"),
    ({"lora_dict": ["mine"]}, "params.lora_dict", "or null"),
    ({"use_lcm_lora": None}, "params.use_lcm_lora", "boolean"),
    ({"lcm_lora_id": "./here"}, "params.lcm_lora_id", "model cache"),
    ({"acceleration": "tensorrt"}, "params.acceleration", "tensorrt and xformers are not built in: use auto"),
    ({"acceleration": "xformers"}, "params.acceleration", "not built in"),
    ({"use_safety_checker": True}, "params.use_safety_checker", "only false is accepted"),
    ({"safety_checker_threshold": 2}, "params.safety_checker_threshold", "maximum of 1"),
    ({"use_denoising_batch": 0}, "params.use_denoising_batch", "boolean"),
    ({"do_add_noise": 0}, "params.do_add_noise", "boolean"),
    ({"skip_diffusion": "no"}, "params.skip_diffusion", "boolean"),
    ({"seed": -1}, "params.seed", "0 to 4294967295"),
    ({"seed": []}, "params.seed", "[[seed, weight], ...]"),
    ({"seed": [[1, 0.5, 2]]}, "params.seed", "[[seed, weight], ...]"),
    ({"seed_interpolation_method": "none"}, "params.seed_interpolation_method", "'linear', 'slerp'"),
    ({"normalize_seed_weights": None}, "params.normalize_seed_weights", "boolean"),
    ({"enable_similar_image_filter": 1}, "params.enable_similar_image_filter", "boolean"),
    ({"similar_image_filter_threshold": 1.1}, "params.similar_image_filter_threshold", "maximum of 1"),
    ({"similar_image_filter_max_skip_frame": -1}, "params.similar_image_filter_max_skip_frame", "minimum"),
    ({"controlnets": {}}, "params.controlnets", "not of type 'array'"),
    ({"controlnets": [{}]}, "params.controlnets.0", "'model_id' is a required property"),
    ({"controlnets": net(model_id="a/b/c")}, "params.controlnets.0.model_id", "model cache"),
    ({"controlnets": net(conditioning_scale=3)}, "params.controlnets.0.conditioning_scale", "maximum of 2"),
    (
        {"controlnets": net(preprocessor="depth_tensorrt")},
        "params.controlnets.0.preprocessor",
        "not built in",
    ),
    ({"controlnets": net(preprocessor="magic")}, "params.controlnets.0.preprocessor", "not one of"),
    (
        {"controlnets": net(preprocessor="canny", preprocessor_params={"low": 1})},
        "params.controlnets.0.preprocessor_params.low",
        "has: high_threshold, low_threshold",
    ),
    (
        {"controlnets": net(preprocessor="canny", preprocessor_params={"low_threshold": -1})},
        "params.controlnets.0.preprocessor_params.low_threshold",
        "minimum of 0",
    ),
    (
        {"controlnets": net(conditioning_channels=6)},
        "params.controlnets.0.conditioning_channels",
        "TemporalNet",
    ),
    ({"controlnets": net(strength=1)}, "params.controlnets.0.strength", "conditioning_scale"),
    (
        {"controlnets": net(control_guidance_end=2)},
        "params.controlnets.0.control_guidance_end",
        "maximum of 1",
    ),
    ({"ip_adapter": {"enabled": True}}, "params.ip_adapter.enabled", "IP-Adapter is not built in"),
    ({"ip_adapter": {"scale": 1}}, "params.ip_adapter", "enabled: false"),
    ({"ip_adapter_style_image_url": 5}, "params.ip_adapter_style_image_url", "never fetched"),
    (
        {"ip_adapter_style_image_url": "data:image/png;base64," + "A" * 4096},
        "params.ip_adapter_style_image_url",
        "too long",
    ),
    (
        {"cached_attention": {"enabled": True, "max_frames": 1, "interval": 1}},
        "params.cached_attention.enabled",
        "not built in",
    ),
    (
        {"image_preprocessing": one("hed")},
        "params.image_preprocessing.processors.0.type",
        "need models of their own",
    ),
    (
        {"image_postprocessing": one("realesrgan_trt")},
        "params.image_postprocessing.processors.0.type",
        "need models of their own",
    ),
    ({"image_preprocessing": one("swirl")}, "params.image_preprocessing.processors.0.type", "not one of"),
    (
        {"image_preprocessing": one("blur", kernel_size=99)},
        "params.image_preprocessing.processors.0.params.kernel_size",
        "maximum of 51",
    ),
    ({"image_preprocessing": []}, "params.image_preprocessing", "or null"),
    (
        {"latent_preprocessing": one("blur")},
        "params.latent_preprocessing.processors.0.type",
        "'latent_feedback'",
    ),
    (
        {"latent_postprocessing": one("latent_feedback", feedback_strength=2)},
        "params.latent_postprocessing.processors.0.params.feedback_strength",
        "maximum of 1",
    ),
    ({"mode": "video"}, "params.mode", "'img2img', 'txt2img'"),
    ({"cfg_type": "rcfg"}, "params.cfg_type", "'none', 'full', 'self', 'initialize'"),
    ({"transition_s": 61}, "params.transition_s", "maximum of 60"),
    ({"motion_noise": 2}, "params.motion_noise", "maximum of 1"),
    ({"use_tiny_vae": None}, "params.use_tiny_vae", "boolean"),
    ({"stength": 1}, "params.stength", "guidance_scale"),
]


@pytest.mark.parametrize("sent", GOOD, ids=lambda sent: json.dumps(sent)[:60])
def test_what_clients_send_is_accepted(sent: dict[str, Any]) -> None:
    wanted(**sent)


@pytest.mark.parametrize(("sent", "field", "words"), BAD, ids=lambda value: json.dumps(value)[:60])
def test_what_cannot_be_is_refused_by_its_name_and_with_what_would_be_right(
    sent: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidError, match=re.escape(words)) as refused:
        wanted(**sent)
    assert refused.value.details["field"] == field


def test_each_parameter_has_a_good_and_a_bad_example() -> None:
    assert {name for sent in GOOD for name in sent} == set(PARAMS)
    bad = {name for sent, _, _ in BAD for name in sent} - {"stength"}
    assert bad == set(PARAMS)


def test_daydreams_example_says_which_preprocessor_it_would_need() -> None:
    example = {
        "model_id": "stabilityai/sd-turbo",
        "prompt": [["a", 1], ["b", 0.5]],
        "prompt_interpolation_method": "slerp",
        "num_inference_steps": 50,
        "t_index_list": [12, 20, 32],
        "seed": [[42, 1]],
        "seed_interpolation_method": "linear",
        "controlnets": [
            {
                "enabled": True,
                "model_id": "thibaud/controlnet-sd21-depth-diffusers",
                "preprocessor": "depth_tensorrt",
                "preprocessor_params": {},
                "conditioning_scale": 0.2,
            }
        ],
    }
    with pytest.raises(InvalidError, match="depth_tensorrt") as refused:
        wanted(**example)
    assert refused.value.details["field"] == "params.controlnets.0.preprocessor"
    (net_wanted,) = cast("list[dict[str, Any]]", example["controlnets"])
    as_edges = {**net_wanted, "preprocessor": "soft_edge"}
    assert wanted(**{**example, "controlnets": [as_edges]}).seed == ((42, 1.0),)


def test_only_what_is_switched_on_is_wanted() -> None:
    want = wanted(
        controlnets=[
            *net(preprocessor="canny", conditioning_scale=0),
            {"model_id": "other", "enabled": False},
        ],
        image_preprocessing={
            "processors": [{"type": "blur", "enabled": False}, {"type": "canny", "params": None}]
        },
        image_postprocessing={"enabled": False, "processors": [{"type": "sharpen"}]},
        latent_preprocessing={"processors": [{"type": "latent_feedback"}]},
    )
    assert want.controlnets == (
        ControlNet("lllyasviel/control_v11p_sd15_canny", 0.0, Step.of("canny", {}), 0.0, 1.0),
    )
    assert want.image_preprocessing == (Step.of("canny", {"low_threshold": 100, "high_threshold": 200}),)
    assert want.image_postprocessing == ()
    assert want.latent_preprocessing == (0.15,)


def test_values_have_the_types_that_they_are_declared_with() -> None:
    want = wanted(
        prompt=[{"text": "a"}, ["b", 2], ["c", 0]],
        seed=[[7.0, 1], [9, 3]],
        lora_dict={"b": 1, "a": 0.5},
        t_index_list=[1.0, 2],
        guidance_scale=2,
    )
    assert want.prompt == (("a", 1.0), ("b", 2.0))
    assert want.seed == ((7, 1.0), (9, 3.0))
    assert [type(seed) for seed, _ in want.seed] == [int, int]
    assert want.lora_dict == (("a", 0.5), ("b", 1.0))
    assert [type(index) for index in want.t_index_list] == [int, int]
    assert type(want.guidance_scale) is float
    assert hash(want) == hash(want)


@pytest.mark.parametrize(
    ("sent", "field", "words"),
    [
        ({"t_index_list": [20, 12]}, "t_index_list", "at least the one before"),
        ({"prompt": []}, "prompt", "above 0"),
        ({"prompt": [["a", 0]]}, "prompt", "above 0"),
        ({"seed": [[1, 0]]}, "seed", "above 0"),
        ({"controlnets": net() + net()}, "controlnets.1.model_id", "there twice"),
        (
            {"controlnets": net(control_guidance_start=0.6, control_guidance_end=0.5)},
            "controlnets.0.control_guidance_start",
            "above control_guidance_end",
        ),
    ],
)
def test_what_json_schema_cannot_say_is_said_where_it_is_parsed(
    sent: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ParamError, match=re.escape(words)) as refused:
        wanted(**sent)
    assert refused.value.field == field


def test_a_grade_that_the_schedule_does_not_have_is_refused_without_the_rules_too() -> None:
    params = {**with_defaults({}, SCHEMA), "num_inference_steps": 32}
    with pytest.raises(ParamError, match="32 is not below num_inference_steps"):
        Wanted.of(params)


def test_a_network_acts_between_its_start_and_its_end() -> None:
    (one_net,) = wanted(controlnets=net(control_guidance_start=0.25, control_guidance_end=0.5)).controlnets
    assert [one_net.acts_at(share) for share in (0.0, 0.25, 0.5, 0.75)] == [False, True, True, False]
    (silent,) = wanted(controlnets=net(conditioning_scale=0)).controlnets
    assert not silent.acts_at(0.5)


@pytest.mark.parametrize(
    ("patch", "way"),
    [
        ({"seed": 1}, "live"),
        ({"seed": 1, "prompt": "a"}, "warm"),
        ({"prompt": "a", "model_id": "tiny"}, "reload"),
    ],
)
def test_a_patch_applies_as_its_slowest_parameter_does(patch: dict[str, Any], way: str) -> None:
    assert applies(patch, SCHEMA) == way


def test_the_document_has_each_parameter_as_the_code_declares_it() -> None:
    rows = {
        match["name"]: match
        for match in re.finditer(
            r"^\| `(?P<name>\w+)` \|(?P<accepts>[^|]*)\| `(?P<default>[^|]*)` \| (?P<apply>\w+) \|",
            DOCUMENT.read_text(),
            re.MULTILINE,
        )
    }
    assert list(rows) == list(PARAMS)
    for name, param in PARAMS.items():
        assert json.loads(rows[name]["default"]) == param.default, name
        assert rows[name]["apply"] == param.apply, name
        for limit in (param.minimum, param.maximum):
            assert limit is None or f"{limit:g}" in rows[name]["accepts"], name
        for choice in param.choices:
            assert str(choice) in rows[name]["accepts"], name
