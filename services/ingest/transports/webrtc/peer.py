"""One WebRTC connection: what of it is secret, what it sends and what it is sent, from its offer to its end.

Datagrams are handled as they come, in the call of the port: there is no queue and no task on the media path.
Its one task waits for the end and for what has to be waited for: the session it feeds, its data channels.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

import pylibsrtp
import structlog

from services.common.errors import InvalidError, SluiceError
from services.common.telemetry import report_bug
from services.ingest.bridge.session import BridgeSession
from services.ingest.publishing import Published
from services.ingest.source import PublisherVanishedError, PushedSource, Source
from services.ingest.transports.webrtc import answer, rtcp, rtp, sdp, stun
from services.ingest.transports.webrtc.audience import Audience
from services.ingest.transports.webrtc.channels import Channel, Channels
from services.ingest.transports.webrtc.dtls import Certificate, Dtls
from services.ingest.transports.webrtc.ice import IceAgent
from services.ingest.transports.webrtc.incoming import IncomingTrack
from services.ingest.transports.webrtc.outgoing import OutgoingTrack
from services.ingest.transports.webrtc.port import DROPPED, Address, Port
from services.ingest.transports.webrtc.publication import Publication
from services.ingest.transports.webrtc.stats import Ended, PeerStats, conversions, measure
from services.ingest.transports.webrtc.viewer import Viewer

log = structlog.get_logger()
CONNECT_S: Final = 10.0
SILENCE_S: Final = 13.0  # clients check the way every 2.5 s, or 4 to 6 s (RFC 7675); one of these may be lost
KEYFRAME_EVERY_S: Final = 2.0  # so that segments can be cut; browsers send none by themselves
FIRST_KEYFRAME_S: Final = 0.5
REPORT_S: Final = 1.0
NOMINATION_S: Final = 1.0  # a client that never nominates is taken at its word
FAREWELL_S: Final = 0.25  # for the last messages on data channels
LET_GO_S: Final = 5.0  # for the session to take in that its publisher has gone

Feed = Callable[[BridgeSession, Source], Awaitable[Published]]


@dataclass(frozen=True, slots=True)
class Publishing:
    """What a peer feeds, how, and within which limits."""

    session: BridgeSession
    feed: Feed
    first_within_s: float
    fastest_mbps: float


class Peer:
    """One connection; made, registered and run by `Peers`."""

    def __init__(
        self,
        plan: answer.Plan,
        *,
        tenant: str,
        port: Port,
        certificate: Certificate,
        executor: Executor,
        publishing: Publishing | None,
        audience: Audience | None,
        on_channel: Callable[[Channel], None] | None,
        largest_message: int,
    ) -> None:
        self.id = secrets.token_urlsafe(18)
        self.etag = secrets.token_hex(8)
        self.tenant = tenant
        self.plan = plan
        self.closed: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self.connected = asyncio.Event()
        self._port = port
        self._ice = IceAgent(plan.offer.ufrag)
        self._dtls = Dtls(
            certificate,
            plan.offer.fingerprints,
            client=plan.dtls_client,
            send=self._send_datagram,
            opened=self._opened,
            data=self._take_record,
            closed=self._dtls_closed,
        )
        self._ending: Ended | None = None
        self._orderly = False
        self._ended = asyncio.Event()
        self._began_s = self._heard_s = time.monotonic()
        self._reported_s = self._asked_s = 0.0
        self._group: asyncio.TaskGroup | None = None
        self._others: list[asyncio.Task[None]] = []
        self._channels: Channels | None = None
        self._on_channel = on_channel
        self._send_time_id = next(
            (line.abs_send_time for line in plan.lines if line.receives and line.abs_send_time), None
        )
        self._sources = answer.Sources(*(secrets.randbits(32) for _ in range(3)))
        self._cname = secrets.token_hex(8)
        self._local = answer.Local(
            secrets.randbits(62),
            self._ice.credentials.ufrag,
            self._ice.credentials.password,
            certificate.fingerprint,
            port.candidates,
            self._cname,
            self._sources,
            largest_message,
        )
        self.sdp = answer.write(plan, self._local)
        # what it publishes
        self.publishing = publishing
        self._publication: Publication | None = None
        self._tracks: dict[int, IncomingTrack] = {}
        self._over: set[int | None] = set()  # sources that said good-bye
        if publishing is not None:
            self._publication = self._receive(publishing, executor)
        # what it watches
        self.audience = audience
        self._outgoing: dict[int, OutgoingTrack] = {}
        self.viewer: Viewer | None = None
        if audience is not None:
            video, audio = self._outgoing_track("video"), self._outgoing_track("audio")
            self.viewer = Viewer(video, audio, over=self.end, now_s=self._began_s)
            audience.add(self.viewer)
        self._names = deque((self._ice.credentials.ufrag,))
        port.add(self._ice.credentials.ufrag, self)

    def _receive(self, publishing: Publishing, executor: Executor) -> Publication:
        video, audio = self.plan.receiving("video"), self.plan.receiving("audio")
        assert video is not None
        source = PushedSource(
            first_within_s=publishing.first_within_s,
            fastest_mbps=publishing.fastest_mbps,
            ask_keyframe=self.ask_keyframe,
        )
        publication = Publication(source, video, audio, executor)
        for line, on_frame in ((video, publication.video), (audio, publication.audio)):
            if line is not None:
                track = IncomingTrack(
                    line, rtcp_ssrc=self._sources.video, send_rtcp=self._send_rtcp, on_frame=on_frame
                )
                self._tracks |= dict.fromkeys(track.payload_types, track)
        return publication

    def _outgoing_track(self, kind: str) -> OutgoingTrack | None:
        line = self.plan.sending(kind)
        if line is None:
            return None
        sources = self._sources
        track = OutgoingTrack(
            line,
            ssrc=sources.video if kind == "video" else sources.audio,
            rtx_ssrc=sources.video_rtx,
            cname=self._cname,
            send=self._send_rtp,
        )
        self._outgoing[track.ssrc] = track
        return track

    @property
    def session(self) -> BridgeSession | None:
        """The session that it publishes into."""
        return None if self.publishing is None else self.publishing.session

    @property
    def watching(self) -> str | None:
        """The stream that it watches."""
        return None if self.audience is None else self.audience.stream

    @property
    def remote_ufrag(self) -> str:
        """The client's ICE name now."""
        return self._ice.credentials.remote

    @property
    def silent_s(self) -> float:
        """How long nothing genuine came from it."""
        return time.monotonic() - self._heard_s

    # --- signalling

    async def add_candidates(self, candidates: Iterable[str]) -> None:
        """Take the client's candidates, `candidate:...` each, "" for their end. Raises InvalidError.

        A lite agent does nothing with them: the client's checks come from where they come.
        """
        for candidate in candidates:
            sdp.check_candidate(candidate)

    async def restart(self, ufrag: str, password: str) -> str:
        """Restart ICE with the client's new credentials; returns ours as a fragment. The `etag` is new."""
        sdp.check_credentials(ufrag, password)
        self._ice.restart(ufrag)
        credentials = self._ice.credentials
        self._port.add(credentials.ufrag, self)
        self._names.append(credentials.ufrag)
        while len(self._names) > 2:  # the old one is good until the new one is used
            self._port.forget_name(self._names.popleft())
        self.etag = secrets.token_hex(8)
        self._local = replace(self._local, ufrag=credentials.ufrag, password=credentials.password)
        return answer.fragment(self.plan, self._local)

    # --- datagrams

    def check(self, request: stun.Request, address: Address) -> bytes | None:
        now_s = time.monotonic()
        answered = self._ice.check(request, address, now_s)
        if answered is not None:
            self._heard_s = now_s
            if self._dtls.client and not self._dtls.begun and self._ice.nominated:
                # After the answer: the client must know this way before something comes by it.
                asyncio.get_running_loop().call_soon(self._begin_dtls)
        return answered

    def _begin_dtls(self) -> None:
        if not self._dtls.begun and self._ending is None:
            self._dtls.begin()

    def receive(self, data: bytes, address: Address, now_s: float) -> None:
        """Take a datagram from one of our addresses. What breaks on it ends this peer and no other."""
        try:
            first = data[0]
            if 127 < first < 192:
                self._take_media(data, address, now_s)
            elif 19 < first < 64:
                self._dtls.receive(data)
            else:
                DROPPED.labels("unknown_kind").inc()
        except Exception as error:  # noqa: BLE001 - this is the edge of one peer
            report_bug("webrtc", error)
            self.end("internal_error", "the connection failed inside; it was reported")

    def _take_media(self, data: bytes, address: Address, now_s: float) -> None:
        srtp = self._dtls.incoming
        if srtp is None or self._ending is not None:
            DROPPED.labels("no_keys").inc()
            return
        control = rtcp.is_rtcp(data)
        try:
            plain = srtp.unprotect_rtcp(data) if control else srtp.unprotect(data)
        except (pylibsrtp.Error, ValueError):  # ValueError: too long for it
            DROPPED.labels("srtp").inc()
            return
        self._heard_s = now_s
        self._ice.heard(address, now_s)
        if control:
            self._take_rtcp(plain, now_s)
        else:
            self._take_rtp(plain, now_s)

    def _take_rtp(self, data: bytes, now_s: float) -> None:
        packet = rtp.parse(data, self._send_time_id)
        track = None if packet is None else self._tracks.get(packet.payload_type)
        if packet is None or track is None:
            DROPPED.labels("unknown_payload").inc()
            return
        track.receive(packet, now_s)

    def _take_rtcp(self, data: bytes, now_s: float) -> None:
        for report in rtcp.parse(data):
            match report:
                case rtcp.SenderReport():
                    self._take_sender_report(report, now_s)
                case rtcp.ReceptionReport():
                    self._take_reception(report, now_s)
                case rtcp.Lost():
                    if (lossy := self._outgoing.get(report.ssrc)) is not None:
                        lossy.repeat(report.sequences, now_s, time.time())
                case rtcp.KeyframeWanted():
                    if self.viewer is not None and self.audience is not None:
                        self.audience.ask_keyframe(self.viewer)
                case rtcp.ReceiverEstimate():
                    if self.viewer is not None and self.audience is not None:
                        self.viewer.congestion.estimated(report.bits_per_second)
                        self.audience.reported(self.viewer)
                case rtcp.Bye():
                    self._over |= {*report.ssrcs}
                    if self._tracks and all(track.ssrc in self._over for track in self._tracks.values()):
                        self.end("left", "the client said good-bye")

    def _take_sender_report(self, report: rtcp.SenderReport, now_s: float) -> None:
        for track in set(self._tracks.values()):
            if track.ssrc == report.ssrc and self._publication is not None:
                track.take_report(report, now_s)
                self._publication.alignment.report(track.kind, report)

    def _take_reception(self, report: rtcp.ReceptionReport, now_s: float) -> None:
        track = self._outgoing.get(report.ssrc)
        if track is None:
            return
        track.take_report(report, now_s)
        if track.kind == "video" and self.viewer is not None and self.audience is not None:
            self.viewer.congestion.lost(report.lost)
            self.audience.reported(self.viewer)

    def _send_datagram(self, data: bytes) -> None:
        if self._ice.selected is not None:
            self._port.send(data, self._ice.selected)

    def _send_rtp(self, packet: bytes) -> bool:
        """Send a packet; False when it could not leave."""
        address, srtp = self._ice.selected, self._dtls.outgoing
        if address is None or srtp is None or self._ending is not None:
            return False
        return self._port.send(srtp.protect(packet), address)

    def _send_rtcp(self, packet: bytes) -> None:
        address, srtp = self._ice.selected, self._dtls.outgoing
        if address is not None and srtp is not None:
            self._port.send(srtp.protect_rtcp(packet), address)

    # --- what DTLS says

    def _opened(self) -> None:
        self.connected.set()
        if self.viewer is not None and self.audience is not None:
            self.audience.connected(self.viewer)
        media = self.plan.data
        if media is not None and media.sctp_port is not None and self._group is not None:
            self._channels = Channels(
                self._dtls,
                port=media.sctp_port,
                largest_message=media.largest_message,
                opened=self._take_channel,
            )
            self._others.append(self._group.create_task(self._run_channels(self._channels)))

    async def _run_channels(self, channels: Channels) -> None:
        try:
            await channels.run()
        except InvalidError as error:
            self.end("protocol_error", error.message)

    def _take_channel(self, channel: Channel) -> None:
        if self._on_channel is None:
            channel.close()
        else:
            self._on_channel(channel)

    def _take_record(self, record: bytes) -> None:
        self._heard_s = time.monotonic()
        if self._channels is not None:
            self._channels.take(record)

    def _dtls_closed(self, reason: str) -> None:
        self.end("left" if reason == "dtls_closed" else reason, "the client closed the connection")

    # --- life

    async def run(self) -> None:
        """What of this peer waits; ends with it."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                feeding = None
                if self.publishing is not None and self._publication is not None:
                    feeding = group.create_task(self._feed(self.publishing, self._publication.source))
                    if self._publication.conversion is not None:
                        self._others.append(group.create_task(self._publication.conversion.run()))
                await self._ended.wait()
                await self._let_go(feeding)
                for task in self._others:
                    task.cancel()
        finally:
            self._leave()

    async def _feed(self, publishing: Publishing, source: PushedSource) -> None:
        try:
            published = await publishing.feed(publishing.session, source)
        except PublisherVanishedError:
            self.end("left", "the session took the publisher for gone")
        except SluiceError as error:
            self.end(error.reason.lower(), error.message)
        else:
            if published.ended is not None:
                self.end(published.ended.reason, published.ended.message)

    async def _let_go(self, feeding: asyncio.Task[None] | None) -> None:
        """Say good-bye to the session, and to the client on its data channels."""
        if self._publication is not None and feeding is not None:
            if self._orderly:
                self._publication.source.end()
            else:
                self._publication.source.vanish()
            await asyncio.wait({feeding}, timeout=LET_GO_S)
            feeding.cancel()
        if self._channels is not None:
            if self._dtls.open:
                await asyncio.sleep(FAREWELL_S)
            await self._channels.close()

    def _leave(self) -> None:
        self.end("internal_error", "the connection failed inside; it was reported")
        assert self._ending is not None
        for track in set(self._tracks.values()):
            track.close()
        if self._outgoing:
            self._send_rtcp(rtcp.bye(list(self._outgoing)))
        self._dtls.close()
        self._port.remove(self)
        if self.audience is not None and self.viewer is not None:
            self.audience.remove(self.viewer)
        if not self.closed.done():
            self.closed.set_result(self._ending)

    def end(self, reason: str, message: str, *, orderly: bool = False) -> None:
        """Begin to end; the first reason stays. `orderly`: what it publishes is done, and not interrupted."""
        if self._ending is None:
            self._ending = Ended(reason, message)
            self._orderly = orderly
            self._ended.set()

    async def close(self, reason: str, message: str = "", *, orderly: bool = False) -> None:
        """End, and wait until everything is let go."""
        self.end(reason, message, orderly=orderly)
        await asyncio.shield(self.closed)

    def tick(self, now_s: float) -> None:
        """Ten times a second: reports, key frames, and whether anybody is still there."""
        if self._ending is not None:
            return
        try:
            self._tick(now_s)
        except Exception as error:  # noqa: BLE001 - this is the edge of one peer
            report_bug("webrtc", error)
            self.end("internal_error", "the connection failed inside; it was reported")

    def _tick(self, now_s: float) -> None:
        if not self._dtls.open:
            if now_s - self._began_s > CONNECT_S:
                self.end("never_connected", f"no connection within {CONNECT_S:g} s")
            elif (
                now_s - self._began_s > NOMINATION_S and self._dtls.client and self._ice.selected is not None
            ):
                self._begin_dtls()
            return
        if now_s - self._heard_s > SILENCE_S:
            self.end("silent", f"nothing came for {SILENCE_S:g} s")
            return
        video = self._publication
        if video is not None:
            every_s = KEYFRAME_EVERY_S if video.begun else FIRST_KEYFRAME_S
            if now_s - self._asked_s >= every_s:
                self.ask_keyframe()
        if now_s - self._reported_s >= REPORT_S:
            self._reported_s = now_s
            self._report(now_s)

    def ask_keyframe(self) -> None:
        """Ask for a key frame of what it publishes."""
        self._asked_s = time.monotonic()
        if self._publication is not None and not self._publication.keyframe_wanted():
            for track in set(self._tracks.values()):
                track.ask_keyframe()

    def _report(self, now_s: float) -> None:
        if self.audience is not None:
            ticks, unix_s = self.audience.ticks(now_s), time.time()
            for outgoing in self._outgoing.values():
                if outgoing.packets:
                    self._send_rtcp(outgoing.report(ticks, now_s, unix_s))
        reports = [
            report for track in set(self._tracks.values()) if (report := track.report(now_s)) is not None
        ]
        if reports:
            self._send_rtcp(rtcp.receiver_report(self._sources.video, reports))

    # --- what is to be known of it

    @property
    def converts(self) -> dict[str, str]:
        """What does not pass through as it is: {"video_in": "vp8->h264"}, ..."""
        return conversions(self.plan, self.viewer, self.audience)

    def stats(self) -> PeerStats:
        state = "connected" if self._dtls.open else "new"
        return measure(
            self.plan,
            state="closed" if self._ending is not None else state,
            converts=self.converts,
            incoming=set(self._tracks.values()),
            outgoing=self._outgoing.values(),
            viewer=self.viewer,
        )
