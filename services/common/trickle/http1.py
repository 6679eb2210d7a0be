"""HTTP/1.1 as bytes: heads and bodies of requests in, heads of answers out. Pure, and strict in reading.

What two readers of a message may understand differently is an attack, so it is refused: a length that is told
twice, a length beside chunks, a folded header, a line that ends in a bare LF.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

from services.common.errors import InvalidError
from services.common.trickle.protocol import STATUS_MISSING

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_END: Final = b"\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
LINE_BYTES: Final = 256  # of a chunk's size with its extensions, which nobody sends
TRAILER_BYTES: Final = 8192

_REQUEST_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~]+) HTTP/1\.([01])")
_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[\t -~]*)?\r\n")
_CHUNK_SIZE_BEGUN: Final = re.compile(rb"[0-9A-Fa-f]{0,8}|[0-9A-Fa-f]{1,8}[ \t]*(?:;[\t -~]*)?\r?")
_SINGLE: Final = frozenset({"host", "content-length", "transfer-encoding", "authorization"})


def _malformed(what: str) -> InvalidError:
    return InvalidError(f"Malformed {what}", reason="MALFORMED")


class SizedBody:
    """A body of so many bytes; 0 when there is none."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.rest = b""  # what came after its end

    @property
    def done(self) -> bool:
        return self._left == 0

    def feed(self, data: bytes, take: Callable[[bytes], None]) -> None:
        """Give `take` what of `data` belongs to the body."""
        piece, self.rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        if piece:
            take(piece)


class ChunkedBody:
    """A body in chunks; their sizes are the sender's affair and mean nothing here."""

    def __init__(self) -> None:
        self._left = 0  # of this chunk
        self._held = b""  # a line that has not come whole
        self._closing = False  # the line break after a chunk is to come
        self._trailing = False  # the last chunk was there
        self.done = False
        self.rest = b""  # what came after its end

    def feed(self, data: bytes, take: Callable[[bytes], None]) -> None:
        """Give `take` what is body in `data`. Raises InvalidError where the framing breaks."""
        if self._held:
            data, self._held = self._held + data, b""
        position, end = 0, len(data)
        while position < end:
            if self._left:
                piece = data[position : position + self._left]
                position += len(piece)
                self._left -= len(piece)
                self._closing = not self._left
                take(piece)
            elif self._trailing:
                self._take_trailers(data[position:])
                return
            elif self._closing:
                if not b"\r\n".startswith(data[position : position + 2]):
                    raise _malformed("chunk")
                if end - position < 2:
                    self._held = data[position:]
                    return
                position += 2
                self._closing = False
            else:
                size = _CHUNK_SIZE.match(data, position, position + LINE_BYTES)
                if size is None:
                    if end - position >= LINE_BYTES or not _CHUNK_SIZE_BEGUN.fullmatch(data, position):
                        raise _malformed("chunk size")
                    self._held = data[position:]
                    return
                position = size.end()
                self._left = int(size[1], 16)
                self._trailing = not self._left

    def _take_trailers(self, data: bytes) -> None:
        """Skip them: nobody knows what they would mean."""
        if data.startswith(b"\r\n"):
            self.done, self.rest = True, data[2:]
        elif (end := data.find(HEAD_END)) >= 0:
            self.done, self.rest = True, data[end + len(HEAD_END) :]
        elif len(data) > TRAILER_BYTES:
            raise _malformed("trailer")
        else:
            self._held = data


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. Header names are in lower case; `minor` is the 1 of HTTP/1.1."""

    method: str
    target: str
    minor: int
    headers: Mapping[str, str]
    size: int | None  # of the body; None: it comes in chunks

    @property
    def path(self) -> str:
        """The path as it was sent, still quoted."""
        return (urlsplit(self.target).path or "/") if "://" in self.target else self.target.partition("?")[0]

    @property
    def keeps_alive(self) -> bool:
        """Whether the client may go on with this connection."""
        return self.minor == 1 and "close" not in self.headers.get("connection", "").lower()

    @property
    def expects_continue(self) -> bool:
        return self.minor == 1 and self.headers.get("expect", "").lower() == "100-continue"

    def body(self) -> SizedBody | ChunkedBody:
        """A decoder for the body."""
        return ChunkedBody() if self.size is None else SizedBody(self.size)


def parse_head(raw: bytes) -> Head:
    """Read a request's lines, without the empty one at their end. Raises InvalidError."""
    first, *lines = raw.split(b"\r\n")
    request = _REQUEST_LINE.fullmatch(first)
    if request is None:
        raise _malformed("request line")
    headers: dict[str, str] = {}
    for line in lines:
        raw_name, colon, raw_value = line.partition(b":")
        if not colon or not _HEADER_NAME.fullmatch(raw_name) or not _HEADER_VALUE.fullmatch(raw_value):
            raise _malformed("header")
        name, value = raw_name.decode().lower(), raw_value.decode("latin-1").strip(" \t")
        if name in headers:
            if name in _SINGLE:
                raise _malformed("headers")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    minor = int(request[3])
    if minor == 1 and "host" not in headers:
        raise _malformed("headers")
    return Head(request[1].decode(), request[2].decode(), minor, headers, _body_size(headers, minor))


def _body_size(headers: Mapping[str, str], minor: int) -> int | None:
    length = headers.get("content-length")
    encoding = headers.get("transfer-encoding")
    if encoding is not None:
        if encoding.lower() != "chunked" or length is not None or minor == 0:
            raise _malformed("transfer encoding")
        return None
    if length is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,15}", length):
        raise _malformed("length")
    return int(length)


def path_segments(path: str, base: str) -> list[str]:
    """What follows `base` in a path, each segment decoded; empty when it does not begin so.

    Raises InvalidError.
    """
    if not path.startswith(base):
        return []
    try:
        return [unquote(segment, errors="strict") for segment in path[len(base) :].split("/")]
    except UnicodeDecodeError:
        raise _malformed("path") from None


def render_head(status: int, headers: Mapping[str, str]) -> bytes:
    """An answer's lines with the empty one. Values are ours, or came through `parse_head`."""
    reason = "Entry not found" if status == STATUS_MISSING else HTTPStatus(status).phrase
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
