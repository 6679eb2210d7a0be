"""One HTTP request and its answer, as a handler sees them: a body that comes, and an answer that is pushed.

A body's bytes are given on from within the call in which they came from the socket, and are never kept twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from services.common.errors import SluiceError
from services.common.trickle.http1 import CONTINUE, LAST_CHUNK, Head, render_head

if TYPE_CHECKING:
    from services.common.trickle.listener import Connection

EARLY_BYTES: Final = 256 * 1024  # of a body that came before its handler wanted it; then the socket waits


class Exchange:
    """One request, and its answer: whole by `respond`, or `begin`, any number of `push`, and `finish`."""

    def __init__(self, connection: Connection, head: Head) -> None:
        self.head: Final = head
        self.answered = False
        self.pushed = 0  # bytes of the answer's body
        self.closing = not head.keeps_alive  # the connection ends with this exchange
        self._connection = connection
        self._body = head.body
        self.received = self._body.done  # nothing more of this request is to come
        self._sink: Callable[[bytes], None] | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._interrupted = False
        self._fault: SluiceError | None = None
        self._over: asyncio.Future[bool | SluiceError] | None = None
        self._unsent = b""  # the head of a streamed answer, to go with its first bytes
        self._framed = False

    # --- the request's body

    def proceed(self) -> None:
        """Tell the client to go on; as often as it needs to be told."""
        if self.head.minor == 1 and not self.answered:
            self._connection.write(CONTINUE)

    def feed(self, data: bytes) -> None:
        """Take what came. What follows the body is not looked at: its client is to send it again."""
        if self._fault is not None:
            return
        try:
            self._body.feed(data, self._sink or self._keep)
        except SluiceError as error:
            self._fault = error
            self.closing = True
            self._end(error)
            return
        if self._body.done:
            self.received = True
            self.closing |= self._body.overrun
            self._end(True)

    async def receive(self, sink: Callable[[bytes], None]) -> bool:
        """Give the body to `sink` as it comes, until it is whole; False when `interrupt` was called before.

        Raises what `sink` raised, InvalidError when the body's framing breaks; it is cancelled when the
        connection does.
        """
        if self.head.expects_continue:
            self.proceed()
        self._sink = sink
        early, self._early = self._early, []
        for piece in early:
            self._sink(piece)
        if self._interrupted:
            return False
        if self._fault is not None:
            raise self._fault
        if self.received:
            return True
        self._over = asyncio.get_running_loop().create_future()
        self._connection.resume()
        result = await self._over
        if isinstance(result, SluiceError):
            raise result
        return result

    def interrupt(self) -> None:
        """Want no more of the body."""
        self._interrupted = True
        self._sink = _discard
        self._end(False)

    def _keep(self, piece: bytes) -> None:
        self._early.append(piece)
        self._early_bytes += len(piece)
        if self._early_bytes >= EARLY_BYTES:
            self._connection.pause()

    def _end(self, result: bool | SluiceError) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(result)

    # --- the answer

    def respond(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        """Answer at once and in whole."""
        self._answer(status, {**headers, "Content-Length": str(len(body))})
        self._connection.write(self._unsent + (body if self.head.method != "HEAD" else b""))
        self._unsent = b""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Begin an answer that is pushed as it comes to be."""
        self._framed = self.head.minor == 1
        self.closing |= not self._framed
        self._answer(status, {**headers, "Transfer-Encoding": "chunked"} if self._framed else headers)

    def push(self, data: bytes) -> bool:
        """Send some bytes; False when the client has yet to take them: then `drained` should be awaited."""
        self.pushed += len(data)
        frame = b"%b%x\r\n%b\r\n" % (self._unsent, len(data), data) if self._framed else self._unsent + data
        self._unsent = b""
        return self._connection.write(frame)

    async def drained(self, within_s: float) -> None:
        """Wait until the client took most of what was sent. Raises TimeoutError, ConnectionResetError."""
        if self._connection.slow:
            async with asyncio.timeout(within_s):
                await self._connection.drained()

    def finish(self) -> None:
        """End the answer that began."""
        framed = self._framed and self.head.method != "HEAD"
        self._connection.write(self._unsent + (LAST_CHUNK if framed else b""))
        self._unsent = b""

    def _answer(self, status: int, headers: Mapping[str, str]) -> None:
        assert not self.answered, (self.head.method, status)
        self.answered = True
        self.closing |= not self.received
        dated = {**headers, "Date": self._connection.listener.date()}
        self._unsent = render_head(status, {**dated, "Connection": "close"} if self.closing else dated)


def _discard(_: bytes) -> None:
    """Take a piece of a body that nobody wants."""
