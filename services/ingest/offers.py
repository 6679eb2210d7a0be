"""The WebRTC sessions of Scope's clients with this process: each has its own stream, which ends with it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Final

from protos.sessions.v1 import sessions_pb2
from services.common.errors import NotFoundError, SluiceError
from services.common.lifecycle import Bulkhead
from services.common.telemetry import report_bug
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.publishing import Publishing
from services.ingest.stream_keys import StreamKeys
from services.ingest.transports.webrtc.conversation import Conversations
from services.ingest.transports.webrtc.peers import Peer, Peers

FORGET_S: Final = 5.0  # the session-manager's time to forget a stream
FORGET_AGAIN_S: Final = 1.0
FORGET_TRIES: Final = 3  # what is left then is tidied away later


class Offers:
    """One life for each answered offer."""

    def __init__(
        self,
        *,
        plane: ControlPlane,
        publishing: Publishing,
        keys: StreamKeys,
        peers: Peers,
        conversations: Conversations,
    ) -> None:
        self._plane = plane
        self._publishing = publishing
        self._keys = keys
        self._peers = peers
        self._conversations = conversations
        self._tasks = Bulkhead(_failed)
        self._by_stream: dict[str, Peer] = {}

    async def __aenter__(self) -> Offers:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(*exc_info)

    def peer(self, stream: str) -> Peer:
        """The client's connection. Raises NotFoundError: it is not, or no longer, here."""
        if stream not in self._by_stream:
            raise NotFoundError(f"Session {stream} not found", reason="SESSION_NOT_FOUND")
        return self._by_stream[stream]

    async def answer(self, stream: sessions_pb2.Stream, sdp: str) -> tuple[Peer, BridgeSession]:
        """Allocate, connect, and own the stream from here on. Raises as `publishing.join` and `connect`."""
        try:
            session = await self._publishing.join(self._keys.publish(stream.id))
            begin = partial(self._conversations.begin, stream=stream.id, tenant=stream.tenant, may_steer=True)
            peer = await self._peers.connect(
                sdp, tenant=stream.tenant, publish=session, watch=stream.id, on_channel=begin
            )
        except BaseException:
            await self._forget(stream)
            raise
        self._by_stream[stream.id] = peer
        self._tasks.start(stream.id, self._life(stream, peer))
        return peer, session

    async def _life(self, stream: sessions_pb2.Stream, peer: Peer) -> None:
        """Until the connection ends, which it does with its session. There is no coming back to it."""
        try:
            await peer.closed
        finally:
            del self._by_stream[stream.id]
            await self._forget(stream)

    async def _forget(self, stream: sessions_pb2.Stream) -> None:
        """End the stream's session, if it lives, and forget the stream."""
        for again in range(FORGET_TRIES):
            await asyncio.sleep(again * FORGET_AGAIN_S)
            with suppress(SluiceError, TimeoutError):
                async with asyncio.timeout(FORGET_S):
                    await self._plane.delete_stream(stream.id, stream.tenant)
                return


def _failed(key: str, error: Exception) -> None:
    report_bug("scope_offer", error, stream=key)
