"""An RTMP server that a stream is pushed to, byte by byte: it takes what comes, and can be rude."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from services.common.media.mpegts import AccessUnit
from services.ingest.transports.rtmp.conversation import Conversation, Finished, PublishAsked
from services.ingest.transports.rtmp.units import TagReader


class Target(asyncio.Protocol):
    """One connection. `finished` is called when the publisher says that it is done."""

    def __init__(self, take: Callable[[AccessUnit], None], finished: Callable[[], None]) -> None:
        self._take = take
        self._finished = finished
        self._conversation = Conversation()
        self._tags = TagReader()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        for event in self._conversation.feed(data):
            if isinstance(event, PublishAsked):
                self._conversation.accept()
            elif isinstance(event, Finished):
                self._conversation.confirm()
                self._finished()
            elif (unit := self._tags.read(event)) is not None:
                self._take(unit)
        self.transport.write(self._conversation.take())
