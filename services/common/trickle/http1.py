"""HTTP/1.1 as bytes: requests in, by llhttp, and heads of answers out.

llhttp refuses most of what two readers of a message may understand differently (a length that is told twice,
a length beside chunks, a folded header, a line that ends in a bare LF); the rest is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

import httptools

from services.common.errors import InvalidError
from services.common.trickle.protocol import STATUS_MISSING

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
HEAD_END: Final = b"\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
FRAMING_BYTES: Final = 16 * 1024  # of chunk extensions and trailers in a row, which nobody sends
VERSIONS: Final = {"1.0": 0, "1.1": 1}
_SINGLE: Final = frozenset({"host", "authorization"})


def _malformed(what: str) -> InvalidError:
    return InvalidError(f"Malformed {what}", reason="MALFORMED")


class Message:
    """One request as llhttp calls back with it. What follows it on its connection is not looked at."""

    def __init__(self) -> None:
        self.target = ""
        self.headers: dict[str, str] = {}
        self.ambiguous = False  # a header that there may be only one of came twice
        self.done = False
        self.overrun = False  # something followed
        self.framing_bytes = 0  # since the last byte of the body
        self.take: Callable[[bytes], None] = _nobody
        self._head = True

    def on_message_begin(self) -> None:
        self.overrun = self.done

    def on_url(self, url: bytes) -> None:
        if not self.overrun:
            self.target = url.decode("latin-1")

    def on_header(self, raw_name: bytes, raw_value: bytes) -> None:
        if not self._head:
            return  # a trailer: nobody knows what it would mean
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(" \t")
        if name in self.headers:
            self.ambiguous |= name in _SINGLE
            value = f"{self.headers[name]}, {value}"
        self.headers[name] = value

    def on_headers_complete(self) -> None:
        self._head = False

    def on_body(self, piece: bytes) -> None:
        if not self.overrun:
            self.framing_bytes = 0
            self.take(piece)

    def on_message_complete(self) -> None:
        self.done = True


def _nobody(_: bytes) -> None:
    raise AssertionError("a body before its head was read")


class Body:
    """A request's body, in chunks or of a length; behind it nothing may come before the answer."""

    def __init__(self, parser: httptools.HttpRequestParser, message: Message) -> None:
        self._parser = parser
        self._message = message

    @property
    def done(self) -> bool:
        return self._message.done

    @property
    def overrun(self) -> bool:
        """True when the client sent more than this request: it is not looked at."""
        return self._message.overrun

    def feed(self, data: bytes, take: Callable[[bytes], None]) -> None:
        """Give `take` what is body in `data`. Raises InvalidError where the framing breaks."""
        message = self._message
        message.take = take
        message.framing_bytes += len(data)
        _feed(self._parser, data, "body")
        if message.framing_bytes > FRAMING_BYTES and not message.done:
            raise _malformed("body")


def _feed(parser: httptools.HttpRequestParser, data: bytes, what: str) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserCallbackError as error:
        raise error.__context__ or error from None
    except httptools.HttpParserUpgrade:
        pass  # we speak nothing else, and may go on as if it had not been offered (RFC 9110 §7.8)
    except httptools.HttpParserError:
        raise _malformed(what) from None


@dataclass(frozen=True, slots=True)
class Head:
    """A request without its body. Header names are in lower case; `minor` is the 1 of HTTP/1.1."""

    method: str
    target: str
    minor: int
    headers: Mapping[str, str]
    body: Body

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


def parse_head(raw: bytes) -> Head:
    """Read a request's lines, without the empty one at their end. Raises InvalidError."""
    message = Message()
    parser = httptools.HttpRequestParser(message)
    _feed(parser, raw + HEAD_END, "request")
    minor = VERSIONS.get(parser.get_http_version())
    if minor is None or message.ambiguous or (minor == 1 and "host" not in message.headers):
        raise _malformed("headers")
    if message.headers.get("transfer-encoding", "chunked").lower() != "chunked" or (
        minor == 0 and "transfer-encoding" in message.headers
    ):
        raise _malformed("transfer encoding")
    method = parser.get_method().decode()
    return Head(method, message.target, minor, message.headers, Body(parser, message))


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
