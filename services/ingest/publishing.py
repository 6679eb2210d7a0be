"""A publisher's way in, the same for every transport: look first, allocate then, feed until one side ends."""

from __future__ import annotations

import asyncio
import secrets
import string
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog
from prometheus_client import Counter

from protos.inference.v1 import runner_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnavailableError,
)
from services.common.media.mpegts import AccessUnit
from services.common.telemetry import carrier, span
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.identity import ORDERLY, Closed, Identity
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.settings import IngestSettings
from services.ingest.source import PublisherVanishedError, Source, TsSource
from services.ingest.stream_keys import PUBLISH_PREFIX, StreamKeys
from services.ingest.transports.rtmp.pushes import Pushes

log = structlog.get_logger()
REJOINS: Final = Counter(
    "sluice_rejoins_total",
    "Sessions that publishers wanted to go on with at this process, by result.",
    ["result"],
)
REPLACED: Final = "replaced"  # how a publisher ends in whose place another one came
PUBLISHERS: Final = Counter("sluice_publishers_total", "Publishers by how they went.", ["outcome"])
ALPHABET: Final = string.ascii_lowercase + string.digits


@dataclass(frozen=True, slots=True)
class Published:
    """How a publisher's session stands when its part is over."""

    session: str
    ended: Closed | None  # None: the input ended in order, the rest is on its way out


def new_id(prefix: str) -> str:
    """A fresh id: 119 random bits in letters and digits."""
    return f"{prefix}_{''.join(secrets.choice(ALPHABET) for _ in range(23))}"


class Publishing:
    """Brings publishers to sessions: `publish` looks first and then allocates, `join` allocates first."""

    def __init__(
        self,
        *,
        hub: Hub,
        plane: ControlPlane,
        keys: StreamKeys,
        bridge_address: str,
        pushes: Pushes,
        settings: IngestSettings,
    ) -> None:
        self._pushes = pushes
        self._hub = hub
        self._plane = plane
        self._keys = keys
        self._bridge_address = bridge_address
        self._settings = settings

    async def admit(self, key: str) -> sessions_pb2.Stream:
        """The stream that `key` may publish now. Allocates nothing.

        Raises NotFoundError, DeniedError (a playback id), ConflictError (somebody publishes already).
        """
        prefix, stream_id = self._keys.stream_of(key)
        if prefix != PUBLISH_PREFIX:
            raise DeniedError("this is a playback id; publish with the stream key", reason="PLAYBACK_ID")
        stream = await self._plane.stream(stream_id)
        live = self._hub.of_stream(stream_id)
        if live is not None and live.busy:
            raise ConflictError("the stream has a publisher already", reason="STREAM_BUSY", stream=stream_id)
        return stream

    async def publish_ts(self, key: str, body: AsyncIterator[bytes]) -> Published:
        """`publish` for bytes of MPEG-TS."""
        stream = await self.admit(key)
        # `complete` delivery paces its publisher; only a live one can be too fast.
        paced = stream.delivery == runner_pb2.DELIVERY_COMPLETE
        fastest_mbps = None if paced else self._settings.max_bitrate_mbps
        source = TsSource(body, first_within_s=self._settings.first_picture_s, fastest_mbps=fastest_mbps)
        return await self.publish(stream, source)

    async def publish(self, stream: sessions_pb2.Stream, source: Source) -> Published:
        """Feed `source` into an admitted stream until one of them ends; allocate at its first picture.

        Raises ConflictError (somebody else was quicker), InvalidError (nothing usable arrived; no runner was
        asked for), PaymentRequiredError, ExhaustedError, PublisherVanishedError.
        """
        try:
            session = await self._take_waiting(stream, source, await source.first_picture())
            return await self._feed(session, source, self._push_all(session, source))
        finally:
            source.close()

    async def _take_waiting(
        self, stream: sessions_pb2.Stream, source: Source, first: list[AccessUnit]
    ) -> BridgeSession:
        """The session, for as long as its publisher waits for it: who goes away leaves the line at once."""
        taking = asyncio.ensure_future(self._take(stream))
        holding = asyncio.ensure_future(source.hold(first))
        try:
            try:
                await asyncio.wait({taking, holding}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    holding.result()
                    await asyncio.wait({taking})
            finally:
                taking.cancel()
                holding.cancel()
                await asyncio.wait({taking, holding})
                if not holding.cancelled():
                    holding.exception()  # the source says it again to who iterates it
        except BaseException:
            if taking.done() and not taking.cancelled() and taking.exception() is None:
                taking.result().leave()  # it was there a moment too late
            raise
        return taking.result()

    async def join(self, key: str) -> BridgeSession:
        """Make or rejoin the session of `key` before there is media. Give it to `feed`, or let it `leave`.

        For transports whose answer must say whether there is credit and a runner; raises as `publish` does.
        """
        return await self._take(await self.admit(key))

    async def feed(self, session: BridgeSession, source: Source) -> Published:
        """Feed a session that was joined until its input ends, the platform ends it, or the publisher goes.

        Raises PublisherVanishedError, and InvalidError when no picture came in time, which ends the session.
        """
        try:
            return await self._feed(session, source, self._look_and_push(session, source))
        finally:
            source.close()

    async def _take(self, stream: sessions_pb2.Stream) -> BridgeSession:
        """The stream's session: as it is here, taken over from another process, or a new one."""
        session = self._hub.of_stream(stream.id)
        if session is not None:
            session.rejoin()
            return session
        if stream.session:
            with suppress(NotFoundError):  # it has ended
                return await self._take_over(stream)
        return await self._start(stream)

    async def _take_over(self, stream: sessions_pb2.Stream) -> BridgeSession:
        """Let the live session of a stream go on here, whose publisher came back by this process.

        Raises NotFoundError when it is not live any more, ConflictError while its publisher is still there.
        """
        record = await self._plane.session(stream.session)
        if record.phase == sessions_pb2.PHASE_ENDED:
            raise NotFoundError("the session has ended", reason="SESSION_NOT_FOUND", session=record.id)
        with span("session.rejoin", carrier={"traceparent": record.traceparent}, session_id=record.id):
            session = self._hub.create(self._identity(stream, record.id, record.traceparent))
            try:
                await self._plane.rejoin(stream.id, self._bridge_address, self._settings.own_url)
            except BaseException as error:
                REJOINS.labels(error.reason if isinstance(error, SluiceError) else "CANCELLED").inc()
                session.close("moved", "its publisher came here, and it stayed where it was")
                await self._hub.until_gone(session)
                raise
        REJOINS.labels("OK").inc()
        log.info("session taken over", session=record.id, stream=stream.id)
        self._push_out(stream, session)
        return session

    def _identity(self, stream: sessions_pb2.Stream, session: str, traceparent: str) -> Identity:
        return Identity(
            session=session,
            stream=stream.id,
            tenant=stream.tenant,
            pipeline=stream.pipeline,
            complete=stream.delivery == runner_pb2.DELIVERY_COMPLETE,
            traceparent=traceparent,
        )

    def _push_out(self, stream: sessions_pb2.Stream, session: BridgeSession) -> None:
        if stream.output_rtmp_url:
            self._pushes.start(session, stream.output_rtmp_url)

    async def _start(self, stream: sessions_pb2.Stream) -> BridgeSession:
        """Make the session here and in the control plane. Its trace is the session's trace."""
        with span(
            "session.open", carrier={}, session_stream=stream.id, session_pipeline=stream.pipeline
        ) as root:
            identity = self._identity(stream, new_id("ses"), carrier().get("traceparent", ""))
            session = self._hub.create(identity)
            root.set_attribute("session.id", session.identity.session)
            try:
                await self._plane.start_session(
                    stream, session.identity.session, self._bridge_address, self._settings.own_url
                )
            except SluiceError as error:
                PUBLISHERS.labels(error.reason).inc()
                session.close("start_failed", error.message)
                raise
            except BaseException:
                session.close("start_failed", "the publisher went away while the session started")
                raise
        self._push_out(stream, session)
        return session

    async def _feed(
        self, session: BridgeSession, source: Source, pushing: Coroutine[object, object, None]
    ) -> Published:
        """Push until the input ends, the session closes, or the publisher vanishes: then its grace begins.

        Who came back by another connection takes the place of one that hangs, which leaves nothing then.
        """
        identity = session.identity
        displaced = session.displaced
        session.keyframe_wanted = source.ask_keyframe
        feeding = asyncio.ensure_future(pushing)
        try:
            waiting: set[asyncio.Future[None] | asyncio.Future[Closed]] = {feeding, session.closed, displaced}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if displaced.done():
                PUBLISHERS.labels(REPLACED).inc()
                return Published(identity.session, Closed(REPLACED, "the publisher connected again"))
            if not feeding.done():
                PUBLISHERS.labels("ended").inc()
                return Published(identity.session, session.closed.result())
            feeding.result()
        except PublisherVanishedError:
            PUBLISHERS.labels("vanished").inc()
            log.info("publisher vanished", session=identity.session)
            session.leave()
            raise
        except SluiceError as error:
            PUBLISHERS.labels(error.reason).inc()
            session.blame(error.message)
            raise
        except BaseException:
            if not displaced.done():
                session.leave()
            raise
        finally:
            if not displaced.done():
                session.keyframe_wanted = None
            feeding.cancel()
            await asyncio.wait({feeding})
        PUBLISHERS.labels("finished").inc()
        session.finish()
        return Published(identity.session, None)

    async def _first(self, session: BridgeSession, source: Source) -> list[AccessUnit]:
        try:
            return await source.first_picture()
        except InvalidError:
            if not session.outputs.in_pts:
                raise
            raise PublisherVanishedError from None  # the session lived before: it is not this one's to end

    async def _look_and_push(self, session: BridgeSession, source: Source) -> None:
        first = await self._first(session, source)
        session.announce(source.streams)
        await self._push(session, source, first)
        await self._push_all(session, source)

    async def _push_all(self, session: BridgeSession, source: Source) -> None:
        session.announce(source.streams)
        async for units in source:
            await self._push(session, source, units)

    async def _push(self, session: BridgeSession, source: Source, units: list[AccessUnit]) -> None:
        for unit in units:  # there may be many seconds in one chunk
            await session.room()
            session.push(unit, source.arrived_s)


def end_error(ended: Closed) -> SluiceError:
    """What a publisher is told when the platform ended its session."""
    if ended.reason == "credit_exhausted":
        return PaymentRequiredError(ended.message or "the credit is used up", reason="CREDIT_EXHAUSTED")
    if ended.reason == "input_unusable":
        return InvalidError(ended.message, reason="INPUT_UNUSABLE", field="body")
    if ended.reason in ORDERLY or ended.reason == REPLACED:
        return ConflictError(
            ended.message or f"the session ended: {ended.reason}", reason=ended.reason.upper()
        )
    return UnavailableError(
        ended.message or f"the session ended: {ended.reason}", reason=ended.reason.upper()
    )
