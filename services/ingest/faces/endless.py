"""A response without an end of its own: sent as it grows, given up for a client that takes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

import structlog
from prometheus_client import Counter
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

log = structlog.get_logger()
VIEWERS: Final = Counter("sluice_viewers_total", "Viewers by how they went.", ["outcome"])


class EndlessResponse(Response):
    """Sends `chunks` until they end, the client leaves, or it takes nothing for `stall_s`; then calls `done`.

    A stalled connection, which cannot be closed in order, is ended by the listener's TCP_USER_TIMEOUT.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        *,
        media_type: str,
        stall_s: float,
        done: Callable[[], None],
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.headers["Cache-Control"] = "no-store"
        self._chunks = chunks
        self._stall_s = stall_s
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                VIEWERS.labels("left").inc()
                return
            sending.result()
            VIEWERS.labels("ended").inc()
        except TimeoutError:
            VIEWERS.labels("stalled").inc()
            log.info("client takes nothing")
        finally:
            self._done()  # first: a cancellation may cut short what follows
            sending.cancel()
            leaving.cancel()
            await asyncio.wait({sending, leaving})

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._chunks):
            async for data in self._chunks:
                async with asyncio.timeout(self._stall_s):
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        async with asyncio.timeout(self._stall_s):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
