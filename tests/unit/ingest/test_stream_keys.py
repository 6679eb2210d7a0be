"""Keys that any pod verifies: only what the installation's secret made opens anything."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import NotFoundError
from services.ingest.stream_keys import PLAYBACK_PREFIX, PUBLISH_PREFIX, StreamKeys

KEYS = StreamKeys(b"a secret of this installation")
STREAM = "str_4xk29dm3"
IDS = st.text(string.ascii_letters + string.digits, min_size=8, max_size=40).map(lambda name: f"str_{name}")


def refused(key: str, keys: StreamKeys = KEYS) -> None:
    with pytest.raises(NotFoundError) as refusal:
        keys.stream_of(key)
    assert refusal.value.reason == "KEY_NOT_FOUND"
    if len(key) > 8:
        assert key not in refusal.value.message


@given(IDS)
def test_a_key_tells_its_stream_and_what_it_allows(stream: str) -> None:
    assert KEYS.stream_of(KEYS.publish(stream)) == (PUBLISH_PREFIX, stream)
    assert KEYS.stream_of(KEYS.playback(stream)) == (PLAYBACK_PREFIX, stream)


@given(IDS, IDS)
def test_streams_do_not_share_keys(one: str, other: str) -> None:
    assert (KEYS.publish(one) == KEYS.publish(other)) == (one == other)


def test_the_playback_id_does_not_give_the_stream_key_away() -> None:
    publish, playback = KEYS.publish(STREAM), KEYS.playback(STREAM)
    assert publish.rpartition("-")[2] != playback.rpartition("-")[2]
    refused(playback.replace(PLAYBACK_PREFIX, PUBLISH_PREFIX))
    refused(publish.replace(PUBLISH_PREFIX, PLAYBACK_PREFIX))


@given(st.data())
def test_a_key_with_one_other_character_opens_nothing(data: st.DataObject) -> None:
    genuine = KEYS.publish(STREAM)
    place = data.draw(st.integers(0, len(genuine) - 1))
    letter = data.draw(st.sampled_from(string.ascii_letters + string.digits + "-_"))
    forged = genuine[:place] + letter + genuine[place + 1 :]
    if forged != genuine:
        refused(forged)


def test_a_key_of_another_installation_opens_nothing() -> None:
    refused(StreamKeys(b"another secret of somebody").publish(STREAM))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "-",
        "stk_",
        "stk_-",
        "stk_4xk29dm3",
        "stk_4xk29dm3-",
        STREAM,
        "pbk_stk_4xk29dm3-x",
        "stk_ü-ü",
        "stk_\x00-\x00",
        "x" * 10_000,
        KEYS.publish(STREAM).upper(),
        KEYS.publish(STREAM)[:-1],
        KEYS.publish(STREAM) + "a",
        f" {KEYS.publish(STREAM)}",
    ],
)
def test_any_other_text_opens_nothing(key: str) -> None:
    refused(key)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_is_more_than_not_found(text: str) -> None:
    refused(text)
