"""All WebRTC connections of this process: they share its UDP port, and a stream's viewers one reading of it.

peers.check(offer, publish=True, watch=False)     # before anything is allocated: is it an offer of use?
session = await publishing.join(key)
peer = await peers.connect(offer, tenant=..., publish=session, watch=None)
answer = peer.sdp                                 # complete
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.common.errors import ExhaustedError, NotFoundError
from services.common.lifecycle import Bulkhead, background
from services.common.telemetry import report_bug
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.seats import Seats
from services.ingest.settings import IngestSettings
from services.ingest.transports.webrtc import answer
from services.ingest.transports.webrtc.audience import Audience
from services.ingest.transports.webrtc.channels import Channel
from services.ingest.transports.webrtc.dtls import Certificate
from services.ingest.transports.webrtc.peer import Feed, Peer, Publishing
from services.ingest.transports.webrtc.port import Port, open_port
from services.ingest.transports.webrtc.sdp import parse_offer
from services.ingest.transports.webrtc.stats import Ended
from services.ingest.transports.webrtc.turn import IceServer, ice_servers

__all__ = ["Channel", "Ended", "Peer", "Peers"]

log = structlog.get_logger()
PEERS: Final = Gauge("sluice_webrtc_peers", "WebRTC connections by what they do.", ["role"])
GONE: Final = Counter("sluice_webrtc_peers_ended_total", "WebRTC connections by why they ended.", ["reason"])
TICK_S: Final = 0.1
CLOSE_S: Final = 6.0  # longer than one peer's own end takes
INTERRUPTED: Final = 500  # publishers without a connection that are remembered
CONVERTERS: Final = 2  # threads; a conversion of 512 x 512 takes a tenth of one
# Everything else that can end a connection is a session's reason, or an error's.
REASONS: Final = frozenset(
    {
        "deleted", "left", "silent", "never_connected", "idle", "moved", "stream_deleted", "replaced",
        "protocol_error", "internal_error", "shutdown", "dtls_failed", "dtls_fingerprint", "dtls_no_srtp",
        "dtls_timeout", "stopped", "max_duration", "credit_exhausted", "no_picture", "input_ended",
    }
)  # fmt: skip


class Peers:
    """Owns the port, every connection and every audience. To be entered."""

    def __init__(
        self, *, hub: Hub, plane: ControlPlane, feed: Feed, viewing: Seats, settings: IngestSettings
    ) -> None:
        self._hub = hub
        self._plane = plane
        self._feed = feed
        self._viewing = viewing
        self._settings = settings
        self._certificate = Certificate()
        self._peers: dict[str, Peer] = {}
        self._audiences: dict[str, Audience] = {}
        self._readings: dict[Audience, str] = {}  # the names of their tasks
        self._interrupted: OrderedDict[str, BridgeSession] = OrderedDict()  # by the peer that published
        self._numbers = itertools.count()
        self._stack = AsyncExitStack()
        self._tasks = Bulkhead(self._failed)
        self._port: Port | None = None
        self._executor = ThreadPoolExecutor(CONVERTERS, thread_name_prefix="webrtc")

    async def __aenter__(self) -> Peers:
        await self._stack.__aenter__()
        self._stack.callback(self._executor.shutdown, wait=False, cancel_futures=True)
        opening = open_port(self._settings.webrtc_listen, self._settings.webrtc_address)
        self._port = await self._stack.enter_async_context(opening)
        await self._stack.enter_async_context(self._tasks)
        await self._stack.enter_async_context(background(webrtc_tick=self._tick()))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for peer in self._peers.values():
            peer.end("shutdown", "the ingest process ends")
        if self._peers:
            await asyncio.wait({peer.closed for peer in self._peers.values()}, timeout=CLOSE_S)
        await self._stack.__aexit__(None, None, None)

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def port(self) -> Port:
        assert self._port is not None
        return self._port

    def check(self, offer_sdp: str, *, publish: bool, watch: bool) -> None:
        """Raise what `connect` would, before anything is allocated.

        InvalidError (BAD_SDP, NO_CODEC, NO_VIDEO), ExhaustedError (this process has all the peers it takes).
        """
        answer.plan(parse_offer(offer_sdp), publish=publish, watch=watch)
        self._make_room()

    def _make_room(self) -> None:
        limit = self._settings.max_peers
        if len(self._peers) >= limit:
            raise ExhaustedError(
                "this ingest process has all the WebRTC connections it takes",
                reason="TOO_MANY_PEERS",
                retry_after_s=5,
                limit=limit,
            )

    async def connect(
        self,
        offer_sdp: str,
        *,
        tenant: str,
        publish: BridgeSession | None = None,
        watch: str | None = None,
        on_channel: Callable[[Channel], None] | None = None,
    ) -> Peer:
        """Answer an offer; from here on the connection is looked after until it ends.

        `publish`: the session of `publishing.join`, which is fed until either ends. `watch`: a stream, live
        or not. Raises as `check`, and RateLimitedError (too many viewers); then a session that was joined is
        the caller's to leave.
        """
        plan = answer.plan(parse_offer(offer_sdp), publish=publish is not None, watch=watch is not None)
        self._make_room()
        seat = None if watch is None else self._viewing.take(watch, tenant)
        audience = None if watch is None else self._audience(watch)
        try:
            peer = Peer(
                plan,
                tenant=tenant,
                port=self.port,
                certificate=self._certificate,
                executor=self._executor,
                publishing=None if publish is None else self._publishing(publish),
                audience=audience,
                on_channel=on_channel,
                largest_message=self._settings.data_channel_message_bytes,
            )
        except BaseException:
            if seat is not None:
                seat.release()
            self._dismiss(audience)
            raise
        self._peers[peer.id] = peer
        role = _role(peer)
        PEERS.labels(role).inc()
        task = self._tasks.start(peer.id, peer.run())

        def gone(_: object) -> None:
            del self._peers[peer.id]
            if seat is not None:
                seat.release()
            PEERS.labels(role).dec()
            self._dismiss(audience)
            ended = peer.closed.result() if peer.closed.done() else Ended("internal_error", "")
            if peer.session is not None and ended.reason != "deleted":
                self._interrupted[peer.id] = peer.session
                if len(self._interrupted) > INTERRUPTED:
                    self._interrupted.popitem(last=False)
            GONE.labels(ended.reason if ended.reason in REASONS else "other").inc()
            log.info("peer gone", role=role, reason=ended.reason, tenant=tenant)

        task.add_done_callback(gone)
        return peer

    def _publishing(self, session: BridgeSession) -> Publishing:
        settings = self._settings
        return Publishing(session, self._feed, settings.first_picture_s, settings.max_bitrate_mbps)

    def _audience(self, stream: str) -> Audience:
        """Everybody here who watches `stream`, read for as long as there is anybody."""
        audience = self._audiences.get(stream)
        if audience is None:
            audience = Audience(
                stream,
                hub=self._hub,
                plane=self._plane,
                executor=self._executor,
                idle_s=self._settings.viewer_idle_s,
            )
            self._audiences[stream] = audience
            self._readings[audience] = f"audience/{next(self._numbers)}"
            self._tasks.start(self._readings[audience], audience.run())
        return audience

    def _dismiss(self, audience: Audience | None) -> None:
        if audience is not None and not len(audience) and self._audiences.get(audience.stream) is audience:
            del self._audiences[audience.stream]
            self._tasks.cancel(self._readings.pop(audience))

    def peer(self, name: str) -> Peer:
        """The connection of that id. Raises NotFoundError."""
        found = self._peers.get(name)
        if found is None:
            raise NotFoundError("there is no such WebRTC connection", reason="PEER_NOT_FOUND")
        return found

    def finish_interrupted(self, name: str, stream: str) -> bool:
        """A publisher whose connection went first says afterwards that it is done; whether that is so.

        Pages close their connection and then delete its resource: nobody is to wait out the grace for them.
        """
        session = self._interrupted.get(name)
        if session is None or session.identity.stream != stream:
            return False
        del self._interrupted[name]
        if session.connected or session.closed.done():
            return False
        session.finish()
        return True

    def publisher_of(self, stream: str) -> Peer | None:
        """The connection that publishes a stream here."""
        return next(
            (
                peer
                for peer in self._peers.values()
                if peer.session is not None and peer.session.identity.stream == stream
            ),
            None,
        )

    def ice_servers(self, who: str) -> list[IceServer]:
        """What a client may use to find its way here; `who` is in the name of its TURN credentials."""
        return ice_servers(self._settings, who, time.time())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            for peer in list(self._peers.values()):
                peer.tick(now_s)
            for audience in list(self._audiences.values()):
                try:
                    audience.tick(now_s)
                except Exception as error:  # noqa: BLE001 - this is the edge of one stream's viewers
                    self._failed(self._readings[audience], error)

    def _failed(self, key: str, error: Exception) -> None:
        """A bug: of a peer, which has ended by it; of an audience, whose viewers have to connect again."""
        report_bug("webrtc", error)
        for audience in [each for each, name in self._readings.items() if name == key]:
            del self._audiences[audience.stream]
            self._tasks.cancel(self._readings.pop(audience))
            for peer in [each for each in self._peers.values() if each.audience is audience]:
                peer.end("internal_error", "the stream's reading failed inside; it was reported")


def _role(peer: Peer) -> str:
    if peer.session is None:
        return "viewer"
    return "publisher" if peer.watching is None else "both"
