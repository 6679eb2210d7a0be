"""The streams of this process that are watched as HLS: packaged from the first request to the last."""

from __future__ import annotations

from collections import Counter
from typing import Final

from prometheus_client import Gauge

from services.common.errors import ExhaustedError, NotFoundError, RateLimitedError
from services.common.lifecycle import Bulkhead
from services.common.telemetry import report_bug
from services.ingest.bridge.hub import Hub
from services.ingest.control_plane import ControlPlane
from services.ingest.settings import IngestSettings
from services.ingest.transports.hls.packager import Packager

STREAMS: Final = Gauge("sluice_hls_streams", "Streams that are packaged as HLS.")
AGAIN_S: Final = 2  # a player that came too early may ask again then


class Packagers:
    """Owns a task per packaged stream; one that fails is reported, and a request makes a new one."""

    def __init__(self, *, hub: Hub, plane: ControlPlane, settings: IngestSettings) -> None:
        self._hub = hub
        self._plane = plane
        self._settings = settings
        self._packagers: dict[str, Packager] = {}
        self._early: Counter[str] = Counter()  # requests for what is not live, by stream
        self._tasks = Bulkhead(self._failed)

    async def __aenter__(self) -> Packagers:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(*exc_info)

    def __len__(self) -> int:
        return len(self._packagers)

    def found(self, stream: str) -> Packager | None:
        """The packager of a stream that is watched already."""
        return self._packagers.get(stream)

    async def of(self, stream: str) -> Packager:
        """The packager of a stream, made when its session is here. Raises NotFoundError if it is not live."""
        found = self.found(stream)
        if found is not None:
            return found
        tenant = (await self._plane.stream(stream)).tenant
        if not await self._live(stream):
            raise NotFoundError("nobody publishes this stream now", reason="NOT_LIVE", retry_after_s=AGAIN_S)
        return self.found(stream) or self._make(stream, tenant)

    async def _live(self, stream: str) -> bool:
        if self._early[stream] >= self._settings.max_viewers:
            raise RateLimitedError(
                "too many wait for this stream", reason="TOO_MANY_WAITING", retry_after_s=AGAIN_S
            )
        self._early[stream] += 1
        try:
            return await self._hub.wait_for(stream, self._settings.hls_wait_s) is not None
        finally:
            self._early[stream] -= 1
            if not self._early[stream]:
                del self._early[stream]

    def _make(self, stream: str, tenant: str) -> Packager:
        if len(self) >= self._settings.max_hls_streams:
            raise ExhaustedError(
                "this ingest process packages as many streams as it may",
                reason="HLS_FULL",
                retry_after_s=self._settings.hls_idle_s,
                limit=self._settings.max_hls_streams,
            )
        packager = Packager(stream, tenant, hub=self._hub, settings=self._settings)
        self._packagers[stream] = packager
        STREAMS.inc()
        self._tasks.start(packager.token, self._live_of(packager))
        return packager

    async def _live_of(self, packager: Packager) -> None:
        try:
            await packager.run()
        finally:
            del self._packagers[packager.stream]
            STREAMS.dec()

    def _failed(self, key: str, error: Exception) -> None:
        report_bug("hls", error, packager=key)
