"""What somebody else's container says, and what it may say of itself."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.common.errors import InvalidError
from services.inference.container import dialect
from services.inference.container.registration import capability
from services.inference.settings import InferenceSettings
from services.ingest.bridge.events import parse

CONTAINER: dict[str, Any] = {"container_url": "http://127.0.0.1:8000", "container_capability": "paint"}


@pytest.mark.parametrize("state", dialect.HEALTH)
def test_a_status_is_a_health_that_the_bridge_knows(state: str) -> None:
    event = dialect.event(json.dumps({"event": {"type": "status", "state": state}}).encode())
    assert event is not None
    assert parse(json.dumps(event).encode()) is not None


@pytest.mark.parametrize(
    "said",
    [{"type": "error", "message": "x" * 1000}, {"type": "error", "message": None}, {"type": "restart"}],
)
def test_an_error_is_a_problem_that_the_bridge_knows(said: dict[str, Any]) -> None:
    event = dialect.event(json.dumps(said).encode())
    assert event is not None
    assert event["type"] == "problem"
    assert len(event["message"]) <= 500
    assert parse(json.dumps(event).encode()) is not None


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b'{"event": 5}', b'{"type": "heartbeat"}', b"[" * 9999]
)
def test_what_we_have_no_word_for_is_nothing(text: bytes) -> None:
    assert dialect.event(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'["{\\"a\\": 1}", "words"]\n', [{"a": 1}, {"text": "words"}]),
        (b"[]\n", []),
        (b'{"a": 1}\n{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        (b"3\n", [{"value": 3}]),
        (b"no JSON\n", []),
        (json.dumps(["x" * 20_000, "y"]).encode(), [{"text": "y"}]),
    ],
)
def test_data_becomes_objects(text: bytes, said: list[Any]) -> None:
    assert [json.loads(remark) for remark in dialect.remarks(text)] == said


@given(st.binary())
def test_no_bytes_can_break_what_reads_them(text: bytes) -> None:
    dialect.event(text)
    assert all(isinstance(json.loads(remark), dict) for remark in dialect.remarks(text))
    with suppress(InvalidError):
        capability(text)


def test_a_registration_names_a_capability_and_a_url() -> None:
    text = {
        "name": "paint",
        "url": "http://c:8000",
        "description": "d" * 999,
        "capacity": 1,
        "price_per_unit": 3,
    }
    found = capability(json.dumps(text).encode())
    assert (found.name, found.url, len(found.description)) == ("paint", "http://c:8000", 500)


@pytest.mark.parametrize(
    "wrong",
    [
        {"container_url": "http://c"},
        {"container_url": "c:8000", "container_capability": "x"},
        {**CONTAINER, "slots": 2},
        {**CONTAINER, "worker_listen": "127.0.0.1:7005"},
        {**CONTAINER, "container_capability": "no name"},
        {"container_register_listen": "127.0.0.1:1"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InferenceSettings(**wrong)
    assert InferenceSettings(**CONTAINER).has_container
