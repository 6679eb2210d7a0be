"""AMF0, the encoding of RTMP's commands. Pure: what is not AMF0 is an InvalidError, and nothing costs much.

A command's values are numbers (float), booleans, strings, None, dicts and lists.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from services.common.errors import InvalidError

Value: TypeAlias = "float | bool | str | dict[str, Value] | list[Value] | None"

DEEPEST: Final = 8  # objects within objects; real commands have one, metadata two
LONGEST: Final = 4096  # bytes of a string: a URL with a token in it
MOST_VALUES: Final = 1024  # of one message, with all that is in its objects

NUMBER, BOOLEAN, STRING, OBJECT, NULL, UNDEFINED = 0, 1, 2, 3, 5, 6
ECMA_ARRAY, OBJECT_END, STRICT_ARRAY, DATE, LONG_STRING = 8, 9, 10, 11, 12
UNSUPPORTED, XML_DOCUMENT, TYPED_OBJECT = 13, 15, 16
END: Final = b"\x00\x00\x09"


def decode(data: bytes) -> list[Value]:
    """All values of a message. Raises InvalidError."""
    reader = _Reader(data)
    values: list[Value] = []
    while not reader.at_end:
        values.append(reader.value(DEEPEST))
    return values


def encode(*values: Value) -> bytes:
    return b"".join(map(_encoded, values))


def _encoded(value: Value) -> bytes:
    if value is None:
        return bytes((NULL,))
    if isinstance(value, bool):
        return bytes((BOOLEAN, value))
    if isinstance(value, int | float):
        return struct.pack(">Bd", NUMBER, value)
    if isinstance(value, str):
        raw = value.encode()
        if len(raw) > 0xFFFF:
            return struct.pack(">BI", LONG_STRING, len(raw)) + raw
        return bytes((STRING,)) + _short(raw)
    if isinstance(value, list):
        return struct.pack(">BI", STRICT_ARRAY, len(value)) + encode(*value)
    pairs = [_short(name.encode()) + _encoded(one) for name, one in value.items()]
    return bytes((OBJECT,)) + b"".join(pairs) + END


def _short(raw: bytes) -> bytes:
    return struct.pack(">H", len(raw)) + raw


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._values = 0
        self._kinds: dict[int, Callable[[int], Value]] = {
            NUMBER: lambda _: self._number(),
            BOOLEAN: lambda _: self._take(1) != b"\x00",
            STRING: lambda _: self._text(2),
            OBJECT: self._pairs,
            NULL: lambda _: None,
            UNDEFINED: lambda _: None,
            ECMA_ARRAY: self._ecma_array,
            STRICT_ARRAY: self._strict_array,
            DATE: lambda _: self._date(),
            LONG_STRING: lambda _: self._text(4),
            UNSUPPORTED: lambda _: None,
            XML_DOCUMENT: lambda _: self._text(4),
            TYPED_OBJECT: self._typed_object,
        }

    @property
    def at_end(self) -> bool:
        return self._at >= len(self._data)

    def value(self, depth: int) -> Value:
        self._values += 1
        if self._values > MOST_VALUES:
            raise InvalidError(f"a message of more than {MOST_VALUES} values")
        kind = self._take(1)[0]
        if kind not in self._kinds:
            raise InvalidError("a value of an unknown kind", kind=kind)
        if depth <= 0:
            raise InvalidError(f"objects within objects, deeper than {DEEPEST}")
        return self._kinds[kind](depth - 1)

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) < count:
            raise InvalidError("a message that ends within a value")
        self._at += count
        return taken

    def _number(self) -> float:
        number: float = struct.unpack(">d", self._take(8))[0]
        return number

    def _date(self) -> float:
        moment = self._number()
        self._take(2)  # a time zone, which is always 0
        return moment

    def _text(self, length_bytes: int) -> str:
        length = int.from_bytes(self._take(length_bytes), "big")
        if length > LONGEST:
            raise InvalidError(f"a text of more than {LONGEST} bytes", bytes=length)
        return self._take(length).decode("utf-8", "replace")

    def _pairs(self, depth: int) -> dict[str, Value]:
        pairs: dict[str, Value] = {}
        while True:
            name = self._text(2)
            if not name and self._data[self._at : self._at + 1] == END[2:]:
                self._at += 1
                return pairs
            pairs[name] = self.value(depth)

    def _ecma_array(self, depth: int) -> dict[str, Value]:
        self._take(4)  # how many there are, which writers often say wrong
        return self._pairs(depth)

    def _typed_object(self, depth: int) -> dict[str, Value]:
        self._text(2)
        return self._pairs(depth)

    def _strict_array(self, depth: int) -> list[Value]:
        count = int.from_bytes(self._take(4), "big")
        if count > MOST_VALUES:
            raise InvalidError(f"a list of more than {MOST_VALUES} values", values=count)
        return [self.value(depth) for _ in range(count)]
