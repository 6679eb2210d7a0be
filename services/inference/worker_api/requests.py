"""What callers of the worker's API ask for, checked by PyTrickle's rules and in its words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.common.errors import InvalidError

# Said of the stream and not to a pipeline, unless the pipeline has a parameter of that name.
OF_THE_STREAM: Final = frozenset(
    {"width", "height", "max_framerate", "detect_out_resolution", "show_loading", "load_model", "pipeline"}
)
FASTEST_FPS: Final = 60
TRUE: Final = frozenset({"true", "1", "yes"})
FALSE: Final = frozenset({"false", "0", "no"})


@dataclass(frozen=True, slots=True)
class Urls:
    """Channels at the gateway's trickle server; "" where it wants none."""

    subscribe: str
    publish: str
    control: str
    events: str
    data: str


@dataclass(frozen=True, slots=True)
class Start:
    """A stream to be started; `params` are checked, and still contain what is said of the stream."""

    request_id: str
    urls: Urls
    model_id: str
    params: Mapping[str, Any]


def start(body: object) -> Start:
    """Read a start request. Raises InvalidError that names the field."""
    if not isinstance(body, Mapping):
        raise InvalidError("the body is a JSON object")
    request_id = body.get("gateway_request_id")
    if not isinstance(request_id, str):
        raise InvalidError("gateway_request_id is a string, and required", field="gateway_request_id")
    model_id = body.get("model_id")
    urls = Urls(
        *(_url(body, f"{kind}_url") for kind in ("subscribe", "publish", "control", "events", "data"))
    )
    if not urls.subscribe:
        raise InvalidError("subscribe_url is required: these pipelines need input", field="subscribe_url")
    wanted = body.get("params")
    return Start(
        request_id,
        urls,
        model_id if isinstance(model_id, str) else "",
        parameters({} if wanted is None else wanted),
    )


def _url(body: Mapping[str, Any], field: str) -> str:
    url = body.get(field)
    if url is None or url == "":
        return ""
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise InvalidError(f"{field} is no HTTP URL", field=field)
    return url


def parameters(body: object) -> dict[str, Any]:
    """Check the parameters of a start or an update. Raises InvalidError."""
    if not isinstance(body, Mapping) or not all(isinstance(key, str) for key in body):
        raise InvalidError("params is a JSON object", field="params")
    checked = dict(body)
    if ("width" in checked) != ("height" in checked):
        raise InvalidError("Both 'width' and 'height' must be provided together", field="params.width")
    for side in ("width", "height"):
        if side in checked:
            checked[side] = _side(checked[side], side)
    if checked.get("max_framerate") is not None:
        checked["max_framerate"] = _framerate(checked["max_framerate"])
    if "detect_out_resolution" in checked:
        checked["detect_out_resolution"] = _truth(checked["detect_out_resolution"])
    return checked


def _side(value: object, side: str) -> int:
    try:
        pixels = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        pixels = 0
    if pixels <= 0:
        raise InvalidError(
            "Width and height must be valid integers or integer strings", field=f"params.{side}"
        )
    return int(pixels)


def _framerate(value: object) -> int:
    try:
        fps = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        raise InvalidError("max_framerate must be a valid integer", field="params.max_framerate") from None
    if fps <= 0:
        raise InvalidError("max_framerate must be positive", field="params.max_framerate")
    if fps > FASTEST_FPS:
        raise InvalidError(f"max_framerate cannot exceed {FASTEST_FPS} FPS", field="params.max_framerate")
    return int(fps)


def _truth(value: object) -> bool:
    if isinstance(value, bool | int):
        return bool(value)
    word = value.lower() if isinstance(value, str) else ""
    if word not in TRUE | FALSE:
        raise InvalidError(
            "detect_out_resolution must be a boolean value", field="params.detect_out_resolution"
        )
    return word in TRUE


def for_pipeline(params: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Of checked parameters those that are the pipeline's: what is said of the stream is not its business."""
    known = schema.get("properties", {})
    return {name: value for name, value in params.items() if name in known or name not in OF_THE_STREAM}
