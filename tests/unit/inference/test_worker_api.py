"""What gateways ask a worker for, and the words in which it answers them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.common.media.mpegts import Codec
from services.inference.announcer import CAPACITY
from services.inference.bypass import Bypass
from services.inference.intake import SOUNDS
from services.inference.packets import Sound
from services.inference.worker_api import requests
from services.inference.worker_api.dialect import Rate, StreamState, wrapped
from services.inference.worker_api.hardware import Devices
from services.inference.worker_api.voices import GatewayEvents

GOOD: dict[str, Any] = {
    "gateway_request_id": "a",
    "subscribe_url": "http://h/in",
    "publish_url": "https://h/out",
}


def test_a_start_says_where_its_channels_are() -> None:
    start = requests.start({**GOOD, "data_url": None, "anything": 1, "params": None, "model_id": 5})
    assert (start.urls.subscribe, start.urls.publish, start.urls.data) == ("http://h/in", "https://h/out", "")
    assert (start.request_id, start.model_id, start.params) == ("a", "", {})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"gateway_request_id": None}, "gateway_request_id"),
        ({"subscribe_url": ""}, "subscribe_url"),
        ({"events_url": "ftp://h"}, "events_url"),
        ({"control_url": 7}, "control_url"),
        ({"params": "x"}, "params"),
    ],
)
def test_a_start_that_cannot_be_is_refused_by_name(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as refused:
        requests.start({**GOOD, **change})
    assert refused.value.details["field"] == field


@pytest.mark.parametrize(
    ("sent", "becomes"),
    [
        ({"width": "640", "height": 480.9}, {"width": 640, "height": 480}),
        ({"max_framerate": "30"}, {"max_framerate": 30}),
        ({"max_framerate": None}, {"max_framerate": None}),
        ({"detect_out_resolution": "YES"}, {"detect_out_resolution": True}),
        ({"detect_out_resolution": 0}, {"detect_out_resolution": False}),
        ({"prompt": ["x"], "other": None}, {"prompt": ["x"], "other": None}),
    ],
)
def test_parameters_are_read_as_pytrickle_reads_them(sent: dict[str, Any], becomes: dict[str, Any]) -> None:
    assert requests.parameters(sent) == becomes


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"width": 640}, "Both 'width' and 'height' must be provided together"),
        ({"width": 0, "height": 4}, "Width and height must be valid integers"),
        ({"width": "a", "height": 4}, "Width and height must be valid integers"),
        ({"max_framerate": "x"}, "valid integer"),
        ({"max_framerate": 0}, "positive"),
        ({"max_framerate": 61}, "cannot exceed 60 FPS"),
        ({"detect_out_resolution": "maybe"}, "must be a boolean value"),
        ([1], "JSON object"),
    ],
)
def test_wrong_parameters_are_refused_in_pytrickle_s_words(sent: object, words: str) -> None:
    with pytest.raises(InvalidError, match=words):
        requests.parameters(sent)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON)
def test_whatever_comes_is_read_or_refused(body: object) -> None:
    for read in (requests.start, requests.parameters):
        try:
            read(body)
        except InvalidError:
            continue


def test_what_is_said_of_the_stream_is_kept_from_a_pipeline_that_does_not_know_it() -> None:
    params = {"width": 5, "height": 5, "max_framerate": 30, "pipeline": "x", "prompt": "y"}
    assert requests.for_pipeline(params, {}) == {"prompt": "y"}
    schema: dict[str, Any] = {"properties": {"width": {}, "height": {}}}
    assert requests.for_pipeline(params, schema) == {"width": 5, "height": 5, "prompt": "y"}


def test_a_status_has_what_gateways_read() -> None:
    state = StreamState("effects", 1_000, {"b": 1, "a": 2})
    assert state.enter("ONLINE", 2_000)
    assert not state.enter("ONLINE", 3_000)
    state.failed("out of paint", 4_000)
    status: dict[str, Any] = state.status(5_000)
    assert (status["type"], status["state"], status["last_state_update_time"]) == ("status", "ONLINE", 2_000)
    inference = status["inference_status"]
    assert (inference["last_error"], inference["last_error_time"]) == ("out of paint", 4_000)
    assert inference["last_params"] == {"b": 1, "a": 2}
    twin: dict[str, Any] = StreamState("effects", 1_000, {"a": 2, "b": 1}).status(0)
    assert twin["inference_status"]["last_params_hash"] == inference["last_params_hash"]
    assert json.loads(json.dumps(wrapped(status)))["queue_event_type"] == "ai_stream_events"


async def test_a_gateway_that_takes_no_events_loses_events_and_not_its_stream() -> None:
    urls = requests.Urls("http://h/in", "", "", "http://127.0.0.1:9/events", "")
    events = GatewayEvents(urls, StreamState("effects", 0))
    for _ in range(2 * CAPACITY):
        events.emit("custom")
    assert not events.full


def test_a_rate_is_of_the_time_between_two_looks() -> None:
    rate = Rate()
    rate.count(0, 10.0)
    assert rate.fps == 0.0
    rate.count(60, 12.0)
    assert rate.fps == 30.0
    rate.count(60, 13.0)
    assert rate.fps == 0.0


def test_without_the_driver_there_are_no_devices() -> None:
    devices = Devices("libnothing-of-that-name.so")
    assert devices.info() == devices.stats() == {}


def test_sound_goes_round_with_the_first_picture_that_is_not_earlier() -> None:
    bypass = Bypass()
    sounds = [Sound(0, Codec.OPUS, pts, b"s") for pts in (10, 20, 30, 40)]
    for sound in sounds:
        bypass.put(sound)
    assert list(bypass.until(5)) == []
    assert list(bypass.until(30)) == sounds[:3]
    assert list(bypass.rest()) == sounds[3:]


def test_sound_that_no_picture_takes_along_is_dropped_and_counted() -> None:
    bypass = Bypass()
    for pts in range(SOUNDS + 3):
        bypass.put(Sound(0, Codec.OPUS, pts, b"s"))
    assert bypass.dropped == 3
    assert next(bypass.rest()).pts == 3
