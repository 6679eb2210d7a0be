"""RTMP out: a session's output goes to its stream's `output_rtmp_url` for as long as the session lives.

The rule it keeps: a target that is dead, hangs or says no costs nobody anything, and is tried again for ever.
libav's own client is not used, for it resolves the name again after it was checked, and PyAV holds the
interpreter's lock while it waits for a server.
"""

from __future__ import annotations

import asyncio
import enum
import os
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.common.errors import InvalidError, SluiceError, UnavailableError
from services.common.media.mpegts import AccessUnit, Codec
from services.common.media.sound import AudioDecoder, AudioEncoder
from services.ingest.bridge.identity import Closed
from services.ingest.bridge.session import BridgeSession
from services.ingest.bridge.taps import Tap
from services.ingest.source import Speed
from services.ingest.transports.rtmp.calling import Calling, Step
from services.ingest.transports.rtmp.target import Resolver, Target, parse_target
from services.ingest.transports.rtmp.units import TagWriter

log = structlog.get_logger()
LIVE: Final = Gauge("sluice_rtmp_pushes_live", "Sessions whose output an RTMP server takes now.")
ATTEMPTS: Final = Counter(
    "sluice_rtmp_push_attempts_total", "Attempts to push, by how they ended.", ["outcome"]
)

CONNECT_S: Final = 10.0  # for TCP and TLS, to one address
CALL_S: Final = 10.0  # from a connection to a stream that may be published
STALL_S: Final = 10.0  # a target that takes nothing for so long is given up
FAREWELL_S: Final = 3.0  # for the last pictures and words when the session is over
LEAVE_S: Final = 1.0  # of it, for the server to hang up
FIRST_RETRY_S: Final = 1.0
LONGEST_RETRY_S: Final = 30.0
STEADY_S: Final = 30.0  # who was live for so long begins anew with the waiting
UNSENT_BYTES: Final = 256 * 1024  # what waits for a slow target; then the tap drops to a key frame
CHATTER_MBPS: Final = 0.2  # of a server, over 5 s: it has little to say, and each message costs us time
MOST_ADDRESSES: Final = 4  # of a name that are tried


class Phase(enum.StrEnum):
    """How a push stands."""

    CONNECTING = "connecting"
    LIVE = "live"
    RETRYING = "retrying"
    INVALID = "invalid"  # the address can never work, or not with these settings
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class PushState:
    """What may be shown of a push; neither the path of its target nor the key in it."""

    phase: Phase
    host: str
    attempts: int = 0
    error: str = ""  # of the last attempt that failed; empty while live


class RtmpPush:
    """One session's push; `run` is its task, and `state` how it stands."""

    def __init__(self, session: BridgeSession, url: str, *, private: bool) -> None:
        self._session = session
        self._private = private
        self._resolver = Resolver()
        self._target: Target | None = None
        self.state = PushState(Phase.CONNECTING, "")
        try:
            self._target = parse_target(url, private=private)
            self.state = replace(self.state, host=self._target.host)
        except InvalidError as error:
            self.state = PushState(Phase.INVALID, "", error=error.message)

    async def run(self) -> None:
        """Push until the session is over, however often the target fails."""
        if self._target is None:
            log.warning(
                "rtmp push impossible", session=self._session.identity.session, error=self.state.error
            )
            return
        loop = asyncio.get_running_loop()
        longest_s = 0.0
        while not self._session.closed.done():
            self.state = replace(self.state, phase=Phase.CONNECTING, attempts=self.state.attempts + 1)
            began_s = loop.time()
            try:
                await self._attempt(self._target)
            except (SluiceError, OSError) as error:  # a TimeoutError too
                if loop.time() - began_s > STEADY_S:
                    longest_s = 0.0
                longest_s = min(LONGEST_RETRY_S, max(FIRST_RETRY_S, 2 * longest_s))
                self._failed(error)
                pause_s = longest_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
                await asyncio.wait({self._session.closed}, timeout=pause_s)
        self.state = replace(self.state, phase=Phase.ENDED)

    def _failed(self, error: SluiceError | OSError) -> None:
        assert self._target is not None
        words, outcome = _told(error)
        words = self._target.redact(words)
        ATTEMPTS.labels(outcome).inc()
        if words != self.state.error:
            log.info(
                "rtmp push failed", session=self._session.identity.session, host=self.state.host, error=words
            )
        self.state = replace(self.state, phase=Phase.RETRYING, error=words)

    async def _attempt(self, target: Target) -> None:
        """One connection, from its beginning to the end of the session. Raises when it fails before."""
        pushing = asyncio.ensure_future(self._push(target))
        try:
            either: set[asyncio.Future[None] | asyncio.Future[Closed]] = {pushing, self._session.closed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not pushing.done():
                await asyncio.wait({pushing}, timeout=FAREWELL_S)
            if pushing.done():
                pushing.result()
                ATTEMPTS.labels("ended").inc()
        finally:
            pushing.cancel()
            await asyncio.wait({pushing})

    async def _push(self, target: Target) -> None:
        addresses = await self._resolver.resolve(target, private=self._private)
        async with _connection(target, addresses[:MOST_ADDRESSES]) as (reader, writer):
            calling, chatter = Calling(target), Speed(CHATTER_MBPS)
            async with asyncio.timeout(CALL_S):
                while calling.step is not Step.LIVE:
                    writer.write(calling.take())
                    await _hear(calling, reader, chatter)
            tap = self._session.tap()
            self._session.ask_keyframe()
            listening = asyncio.ensure_future(_listen(calling, reader, writer, chatter))
            feeding = asyncio.ensure_future(_feed(calling, writer, tap))
            self.state = replace(self.state, phase=Phase.LIVE, error="")
            log.info("rtmp push live", session=self._session.identity.session, host=target.host)
            LIVE.inc()
            try:
                await asyncio.wait({listening, feeding}, return_when=asyncio.FIRST_COMPLETED)
                if feeding.done():
                    feeding.result()
                    # Closed at once, with something of the server's unread, the end might be lost there.
                    await asyncio.wait({listening}, timeout=LEAVE_S)
                else:
                    listening.result()
            finally:
                LIVE.dec()
                tap.close()
                for task in (listening, feeding):
                    task.cancel()
                await asyncio.gather(listening, feeding, return_exceptions=True)


def _told(error: SluiceError | OSError) -> tuple[str, str]:
    """What to say of a failure, and what to count it as."""
    if isinstance(error, SluiceError):
        return error.message, error.reason
    if isinstance(error, TimeoutError):
        return "the server does not answer", "RTMP_PUSH_TIMEOUT"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}", "RTMP_PUSH_TLS"
    # asyncio's own words have the address in them.
    return os.strerror(error.errno) if error.errno else str(error), "RTMP_PUSH_UNREACHABLE"


@asynccontextmanager
async def _connection(
    target: Target, addresses: list[str]
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the first address that takes one; closed at the end, whatever is still unsent."""
    tls = ssl.create_default_context() if target.tls else None
    last: OSError = OSError("no address")
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    address, target.port, ssl=tls, server_hostname=target.host if tls else None
                )
        except OSError as error:  # a TimeoutError too
            last = error
            continue
        writer.transport.set_write_buffer_limits(high=UNSENT_BYTES)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
        return
    raise last


async def _hear(calling: Calling, reader: asyncio.StreamReader, chatter: Speed) -> None:
    data = await reader.read(65_536)
    if not data:
        raise UnavailableError("the server closed the connection", reason="RTMP_PUSH_CLOSED")
    chatter.count(len(data))
    calling.feed(data)


async def _listen(
    calling: Calling, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chatter: Speed
) -> None:
    """Answer what the server asks, until it says no."""
    while True:
        await _hear(calling, reader, chatter)
        writer.write(calling.take())


async def _feed(calling: Calling, writer: asyncio.StreamWriter, tap: Tap) -> None:
    """Send the output until it ends, and say so."""
    tags = TagWriter(calling.stream)
    to_aac = _ToAac()
    async for unit in tap:
        units = [unit]
        if unit.codec is Codec.OPUS:
            units = await asyncio.to_thread(to_aac.convert, unit)
        for one in units:
            calling.write(tags.write(one))
        await _send(calling, writer)
    calling.finish()
    await _send(calling, writer)
    if writer.can_write_eof():
        writer.write_eof()


async def _send(calling: Calling, writer: asyncio.StreamWriter) -> None:
    writer.write(calling.take())
    async with asyncio.timeout(STALL_S):
        await writer.drain()


class _ToAac:
    """Opus to AAC, for FLV has no Opus that servers know. It takes 0.7 ms a packet: for a thread."""

    def __init__(self) -> None:
        self._decoder = AudioDecoder(Codec.OPUS)
        self._encoder = AudioEncoder(Codec.AAC)

    def convert(self, unit: AccessUnit) -> list[AccessUnit]:
        sounds = self._decoder.decode(unit.data, unit.pts)
        return [one for sound in sounds for one in self._encoder.encode(sound.samples, sound.pts)]
