"""AMF0: what is written is read, what others write is read, and garbage is refused at little cost."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError
from services.ingest.transports.rtmp import amf

names = st.text(min_size=1, max_size=20).filter(lambda name: len(name.encode()) <= 64)
values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=20,
)


def depth(value: amf.Value) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0)


@given(st.lists(values.filter(lambda value: depth(value) <= amf.DEEPEST), max_size=5))
def test_what_is_written_is_read(written: list[amf.Value]) -> None:
    assert amf.decode(amf.encode(*written)) == written


@given(st.binary(max_size=300))
def test_garbage_is_refused_and_nothing_worse(data: bytes) -> None:
    with contextlib.suppress(InvalidError):
        amf.decode(data)


@given(st.lists(values, min_size=1, max_size=3), st.data())
def test_what_is_cut_off_within_a_value_is_refused(written: list[amf.Value], data: st.DataObject) -> None:
    whole = amf.encode(*written)
    last = len(amf.encode(written[-1]))
    cut = data.draw(st.integers(len(whole) - last + 1, len(whole) - 1)) if last > 1 else None
    if cut is not None:
        with pytest.raises(InvalidError):
            amf.decode(whole[:cut])


def test_a_number_that_is_whole_is_written_as_the_number_that_it_is() -> None:
    assert amf.encode(1) == b"\x00" + struct.pack(">d", 1.0)
    assert amf.decode(amf.encode(1)) == [1.0]


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"\x08\x00\x00\x00\x63\x00\x01a\x05\x00\x00\x09", {"a": None}),  # a count that is wrong
        (b"\x10\x00\x04Type\x00\x01a\x01\x01\x00\x00\x09", {"a": True}),
        (b"\x0c\x00\x00\x00\x02hi", "hi"),
        (b"\x0f\x00\x00\x00\x03<a>", "<a>"),
        (b"\x0b" + struct.pack(">dh", 1000.0, 0), 1000.0),
        (b"\x06", None),
        (b"\x0d", None),
        (b"\x02\x00\x02\xff\xfe", "\ufffd\ufffd"),
    ],
    ids=["ecma array", "typed object", "long string", "xml", "date", "undefined", "unsupported", "not utf-8"],
)
def test_what_other_writers_write_is_read(raw: bytes, value: amf.Value) -> None:
    assert amf.decode(raw) == [value]


def test_a_long_text_is_written_in_the_long_form() -> None:
    assert amf.encode("x" * 70_000)[:5] == b"\x0c" + (70_000).to_bytes(4, "big")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x03\x00\x01a" * 9 + b"\x05",
        b"\x0a\x00\x00\x00\x01" * 9 + b"\x05",
        b"\x0a\xff\xff\xff\xff",
        b"\x0c\x00\x00\x20\x00" + b"x" * 8192,
        b"\x05" * 2000,
        b"\x07\x00\x00",
    ],
    ids=["objects", "lists", "a long list", "a long text", "many values", "a reference"],
)
def test_what_would_cost_too_much_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidError):
        amf.decode(raw)
