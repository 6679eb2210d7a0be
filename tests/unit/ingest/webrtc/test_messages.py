"""Messages on a data channel: what is wrong is an error with a reason, whatever bytes came."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError, SluiceError, TooLargeError
from services.ingest.allowance import Allowance
from services.ingest.transports.webrtc import messages
from services.ingest.transports.webrtc.messages import Subscribe, Update
from services.ingest.transports.webrtc.parameters import ScopeParameters, steering

MOST = 4096
TEXT = st.text(st.characters())  # halves of surrogate pairs too, which JSON can say and UTF-8 cannot
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)
)
KNOWN = ["id", "type", "params", "apply_at_ms", "status", "data", *ScopeParameters.model_fields]


def understood(data: str | bytes) -> messages.Message:
    fields = messages.message_object(data, MOST)
    messages.message_id(fields)
    return messages.read(fields)


@given(TEXT | st.binary())
def test_garbage_is_refused_by_name(data: str | bytes) -> None:
    with pytest.raises(SluiceError):
        understood(data)


@given(st.dictionaries(st.sampled_from(KNOWN) | TEXT, JSON, max_size=6))
def test_any_object_is_understood_or_refused_and_can_be_answered(fields: dict[str, Any]) -> None:
    refusals: list[SluiceError] = []
    message = None
    try:
        message = understood(json.dumps(fields))
    except SluiceError as error:
        refusals.append(error)
    assert [json.loads(messages.refused(error))["error"] for error in refusals] or message is not None
    if isinstance(message, ScopeParameters):
        found = steering(message, {"prompt": {}, "transition_frames": {}})
        sent = {name for name, value in fields.items() if value is not None and name not in {"id", "type"}}
        known = {"prompts", "transition", "reset_cache", "paused", "input_mode"}
        assert sent <= {*found.ignored, *found.patch, *known}, "nothing is lost without being named"
        json.dumps(found.patch)
    elif isinstance(message, Update):
        json.dumps(message.params)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "   ",
        "[]",
        "7",
        "null",
        '"text"',
        "{",
        '{"a": NaN}',
        '{"noise_scale": 1e999}',
        b"\xff\xfe",
        "[" * 4000,
        '{"a":' * 40 + "1" + "}" * 40,
        '{"type": "unheard"}',
        '{"type": 7}',
        '{"type": "update"}',
        '{"type": "update", "params": []}',
        '{"type": "update", "params": {}, "apply_at_ms": -1}',
        '{"type": "update", "params": {}, "apply_at_ms": 1.5}',
        '{"type": "subscribe", "status": "yes"}',
        '{"id": {}, "prompts": []}',
        '{"id": true}',
        '{"id": "' + "x" * 201 + '"}',
    ],
)
def test_what_cannot_be_meant_is_refused(data: str | bytes) -> None:
    with pytest.raises(InvalidError):
        understood(data)


def test_a_message_has_a_largest_size() -> None:
    with pytest.raises(TooLargeError):
        understood(json.dumps({"x": "y" * MOST}))
    assert isinstance(understood(json.dumps({"x": "y" * (MOST - 20)})), ScopeParameters)


def test_ours_are_told_from_scopes_by_their_type() -> None:
    assert understood('{"type": "update", "params": {"a": null}}') == Update(params={"a": None})
    assert understood(b'{"type": "subscribe", "status": true, "id": 5}') == Subscribe(status=True)
    assert isinstance(understood('{"paused": true}'), ScopeParameters)


def test_strange_keys_of_ours_are_named() -> None:
    message = understood('{"type": "update", "params": {}, "at": 5}')
    assert isinstance(message, Update)
    assert messages.strange(message) == ("at",)


@given(st.integers(1, 100), st.lists(st.floats(0, 2), max_size=300))
def test_an_allowance_is_never_exceeded(per_second: int, gaps: list[float]) -> None:
    allowance = Allowance(per_second, 0.0)
    now = 0.0
    taken: list[float] = []
    for gap in gaps:
        now += gap
        if allowance.take(now):
            taken.append(now)
    for start in taken:
        assert sum(start <= at < start + 1 for at in taken) <= 2 * per_second + 1


def test_a_burst_is_taken_up_to_the_limit_and_a_second_brings_as_many_again() -> None:
    allowance = Allowance(3, 10.0)
    assert [allowance.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [allowance.take(11.0) for _ in range(4)] == [True, True, True, False]


def test_an_error_says_its_reason_and_field_and_whose_it_is() -> None:
    said = json.loads(messages.refused(InvalidError("no", field="params.a"), "seven"))
    assert said == {"type": "error", "id": "seven", "error": "no", "code": "INVALID", "field": "params.a"}
