"""A publisher's way in, the same for every transport: look first, allocate then, feed until one side ends."""

from __future__ import annotations

import asyncio
import secrets
import string
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Final

import structlog
from prometheus_client import Counter

from protos.inference.v1 import runner_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import (
    ConflictError,
    DeniedError,
    InvalidError,
    PaymentRequiredError,
    SluiceError,
    TooLargeError,
    UnavailableError,
)
from services.common.media.mpegts import AccessUnit, Codec, Demuxer
from services.common.telemetry import carrier, span
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.identity import Closed, Identity
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.settings import IngestSettings
from services.ingest.stream_keys import PUBLISH_PREFIX, StreamKeys

log = structlog.get_logger()
PUBLISHERS: Final = Counter("sluice_publishers_total", "Publishers by how they went.", ["outcome"])
DAMAGE: Final = Counter("sluice_input_damage_total", "What publishers sent damaged, by kind.", ["kind"])
ALPHABET: Final = string.ascii_lowercase + string.digits
PREFACE_BYTES: Final = 8 * 2**20  # the most that is read before there must have been a picture
RATE_WINDOW_S: Final = 5.0


class PublisherVanishedError(Exception):
    """The connection broke; raised by a transport's iterator, as opposed to its orderly end."""


@dataclass(frozen=True, slots=True)
class Published:
    """How a publisher's session stands when its part is over."""

    session: str
    ended: Closed | None  # None: the input ended in order, the rest is on its way out


def new_id(prefix: str) -> str:
    """A fresh id: 119 random bits in letters and digits."""
    return f"{prefix}_{''.join(secrets.choice(ALPHABET) for _ in range(23))}"


class Publishing:
    """`publish_ts` for bytes of MPEG-TS."""

    def __init__(
        self,
        *,
        hub: Hub,
        plane: ControlPlane,
        keys: StreamKeys,
        bridge_address: str,
        settings: IngestSettings,
    ) -> None:
        self._hub = hub
        self._plane = plane
        self._keys = keys
        self._bridge_address = bridge_address
        self._settings = settings

    async def publish_ts(self, key: str, body: AsyncIterator[bytes]) -> Published:
        """Feed `body` into the stream of `key` until one of them ends.

        Raises NotFoundError, DeniedError (a playback id), ConflictError (somebody publishes already),
        InvalidError (nothing usable arrived; no runner was asked for), PaymentRequiredError, ExhaustedError.
        """
        prefix, stream_id = self._keys.stream_of(key)
        if prefix != PUBLISH_PREFIX:
            raise DeniedError("this is a playback id; publish with the stream key", reason="PLAYBACK_ID")
        stream = await self._plane.stream(stream_id)
        live = self._hub.of_stream(stream_id)
        if live is not None and live.connected:
            raise ConflictError("the stream has a publisher already", reason="STREAM_BUSY", stream=stream_id)
        # `complete` delivery paces its publisher; only a live one can be too fast.
        paced = stream.delivery == runner_pb2.DELIVERY_COMPLETE
        fastest_mbps = None if paced else self._settings.max_bitrate_mbps
        source = Source(body, first_within_s=self._settings.first_picture_s, fastest_mbps=fastest_mbps)
        first = await source.first_picture()
        session = self._hub.of_stream(stream_id)
        if session is not None:
            session.rejoin()
        else:
            session = await self._start(stream, first)
        return await self._feed(session, source, first)

    async def _start(self, stream: sessions_pb2.Stream, first: list[AccessUnit]) -> BridgeSession:
        """Make the session here and in the control plane. Its trace is the session's trace."""
        with span(
            "session.open", carrier={}, session_stream=stream.id, session_pipeline=stream.pipeline
        ) as root:
            session = self._hub.create(
                Identity(
                    session=new_id("ses"),
                    stream=stream.id,
                    tenant=stream.tenant,
                    pipeline=stream.pipeline,
                    complete=stream.delivery == runner_pb2.DELIVERY_COMPLETE,
                    traceparent=carrier().get("traceparent", ""),
                )
            )
            root.set_attribute("session.id", session.identity.session)
            try:
                await self._plane.start_session(stream.id, session.identity.session, self._bridge_address)
            except SluiceError as error:
                PUBLISHERS.labels(error.reason).inc()
                session.close("start_failed", error.message)
                raise
            except BaseException:
                session.close("start_failed", "the publisher went away while the session started")
                raise
        return session

    async def _feed(self, session: BridgeSession, source: Source, first: list[AccessUnit]) -> Published:
        """Push until the input ends, the session closes, or the publisher vanishes: then its grace begins."""
        identity = session.identity
        feeding = asyncio.ensure_future(self._push_all(session, source, first))
        try:
            waiting: set[asyncio.Future[None] | asyncio.Future[Closed]] = {feeding, session.closed}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
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
            session.leave()
            raise
        finally:
            feeding.cancel()
            await asyncio.wait({feeding})
            source.count_damage()
        PUBLISHERS.labels("finished").inc()
        session.finish()
        return Published(identity.session, None)

    async def _push_all(self, session: BridgeSession, source: Source, first: list[AccessUnit]) -> None:
        session.announce(source.streams)
        for unit in first:
            session.push(unit, source.arrived_s)
        async for units in source:
            for unit in units:  # there may be many seconds in one chunk
                await session.room()
                session.push(unit, source.arrived_s)


class Source:
    """A publisher's bytes as access units, with the checks that a stranger's bytes need."""

    def __init__(
        self, body: AsyncIterator[bytes], *, first_within_s: float, fastest_mbps: float | None
    ) -> None:
        self._body = body
        self._first_within_s = first_within_s
        self._fastest_mbps = fastest_mbps
        self._demuxer = Demuxer()
        self._window_bytes = 0
        self._window_from_s = asyncio.get_running_loop().time()
        self.arrived_s = time.monotonic()  # when the newest bytes were read

    @property
    def streams(self) -> tuple[Codec, ...]:
        """What the publisher's tables list so far."""
        return self._demuxer.streams

    def count_damage(self) -> None:
        """Add what the demuxer had to throw away to the process's counters: once, when the source is over."""
        for kind, count in asdict(self._demuxer.lost).items():
            DAMAGE.labels(kind).inc(count)

    async def first_picture(self) -> list[AccessUnit]:
        """Read up to the first whole key frame. Raises InvalidError that says what was missing."""
        units: list[AccessUnit] = []
        read = 0
        try:
            async with asyncio.timeout(self._first_within_s):
                async for chunk in self._body:
                    read += len(chunk)
                    units += self._demuxer.feed(chunk)
                    demand_h264(self._demuxer.streams)
                    if _has_picture(units):
                        return units
                    if read > PREFACE_BYTES:
                        break
        except TimeoutError:
            raise InvalidError(
                f"no picture arrived within {self._first_within_s:g} s ({read} bytes did)",
                reason="NO_PICTURE",
                field="body",
            ) from None
        units += self._demuxer.end_segment()
        if _has_picture(units):
            return units
        raise InvalidError(
            f"no H.264 key frame in the {read} bytes that came: send MPEG-TS"
            " (ffmpeg: -c:v libx264 -bf 0 -f mpegts)",
            reason="NO_PICTURE",
            field="body",
        )

    async def __aiter__(self) -> AsyncIterator[list[AccessUnit]]:
        async for chunk in self._body:
            self.arrived_s = time.monotonic()
            self._limit_rate(len(chunk))
            units = self._demuxer.feed(chunk)
            if units:
                yield units
        yield self._demuxer.end_segment()

    def _limit_rate(self, size: int) -> None:
        if self._fastest_mbps is None:
            return
        now_s = asyncio.get_running_loop().time()
        if now_s - self._window_from_s > RATE_WINDOW_S:
            self._window_from_s, self._window_bytes = now_s, 0
        self._window_bytes += size
        if self._window_bytes * 8 / 1e6 > self._fastest_mbps * RATE_WINDOW_S:
            raise TooLargeError(
                f"more than {self._fastest_mbps:g} Mbit/s",
                reason="BITRATE_TOO_HIGH",
                field="body",
            )


def demand_h264(streams: tuple[Codec, ...]) -> None:
    """Raise InvalidError that says what is wrong with what a publisher announced."""
    video = [codec for codec in streams if codec in {Codec.H264, Codec.HEVC, Codec.MPEG2}]
    if streams and Codec.H264 not in video:
        found = ", ".join(sorted({codec.value for codec in streams}))
        raise InvalidError(
            f"the stream carries {found}; send H.264 video (ffmpeg: -c:v libx264 -bf 0 -g 60)",
            reason="UNSUPPORTED_CODEC",
            field="body",
        )


def _has_picture(units: list[AccessUnit]) -> bool:
    return any(unit.codec is Codec.H264 and unit.keyframe for unit in units)


def end_error(ended: Closed) -> SluiceError:
    """What a publisher is told when the platform ended its session."""
    if ended.reason == "credit_exhausted":
        return PaymentRequiredError(ended.message or "the credit is used up", reason="CREDIT_EXHAUSTED")
    if ended.reason == "input_unusable":
        return InvalidError(ended.message, reason="INPUT_UNUSABLE", field="body")
    if ended.reason in {"stopped", "stream_deleted", "max_duration", "input_ended", "publisher_gone"}:
        return ConflictError(
            ended.message or f"the session ended: {ended.reason}", reason=ended.reason.upper()
        )
    return UnavailableError(
        ended.message or f"the session ended: {ended.reason}", reason=ended.reason.upper()
    )
