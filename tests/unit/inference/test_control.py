"""What of a control message is understood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.inference.control import parse
from services.inference.settings import InferenceSettings


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (b'{"type": "keyframe"}', ("keyframe", None)),
        (b'{"type": "keyframe", "why": "a viewer joined"}', ("keyframe", None)),
        (b'{"type": "keyframe", "at_pts": 90000}', ("keyframe", 90_000)),
        (b'{"type": "keyframe", "at_pts": "soon"}', ("keyframe", None)),
        (b'{"type": "keyframe", "at_pts": true}', ("keyframe", None)),
        (b'{"type": "bitrate", "bits_per_second": 800000}', ("bitrate", 800_000)),
        (b'{"type": "bitrate", "bits_per_second": 8.5e5}', ("bitrate", 850_000)),
        (b'{"type": "bitrate", "bits_per_second": -1}', ("bitrate", -1)),
        (b'{"type": "bitrate", "bits_per_second": 1%s}' % (b"0" * 400), ("bitrate", 10**400)),
        (b'{"type": "bitrate", "bits_per_second": null}', ("bitrate", None)),
    ],
)
def test_what_is_asked_for_is_understood(text: bytes, meaning: tuple[str, int | None]) -> None:
    assert parse(text) == meaning


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"7",
        b'{"type": "volume"}',
        b'{"type": ["keyframe"]}',
        b'{"type": "bitrate"}',
        b'{"type": "bitrate", "bits_per_second": "800000"}',
        b'{"type": "bitrate", "bits_per_second": true}',
        b'{"type": "bitrate", "bits_per_second": NaN}',
        b'{"type": "bitrate", "bits_per_second": Infinity}',
        b'{"type": "bitrate", "bits_per_second": 1e999}',
        b'{"type": "bitrate", "bits_per_second": 1%s}' % (b"0" * 5000),
    ],
    ids=lambda text: str(text[:60]),
)
def test_what_means_nothing_is_invalid(text: bytes) -> None:
    with pytest.raises(InvalidError):
        parse(text)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_invalid_or_understood(text: bytes) -> None:
    try:
        kind, _ = parse(text)
    except InvalidError:
        return
    assert kind in {"keyframe", "bitrate"}


def test_bounds_the_wrong_way_round_are_no_settings() -> None:
    with pytest.raises(ValueError, match="min_video_kbps is above max_video_kbps"):
        InferenceSettings(min_video_kbps=900, max_video_kbps=800)
