"""The trickle channels of one session: opened by kind, ended by the session and by nobody else."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from services.common.errors import SluiceError
from services.common.frame_drops import FRAME_DROPS
from services.common.trickle.channel import Channel
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.registry import OpenChannel, Registry

VIDEO: Final = "video/MP2T"
LINES: Final = "application/jsonl"
JSON: Final = "application/json"
BYTES: Final = "application/octet-stream"
LIVE: Final = ChannelLimits(idle_s=None)  # a client's pause may be long: the session ends its channels
# Every picture must reach a viewer that reads at all: a minute of history instead of the newest few segments.
COMPLETE: Final = replace(LIVE, depth=64, channel_bytes=64 * 2**20, history_s=60.0)
MESSAGES: Final = ChannelLimits(depth=64, segment_bytes=1 * 2**20, channel_bytes=4 * 2**20, idle_s=None)
SNAPSHOT_BYTES: Final = 2**20 + 2**16  # of the pipeline a megabyte, and what the runner seals it with
SNAPSHOTS: Final = replace(MESSAGES, depth=1, segment_bytes=SNAPSHOT_BYTES, channel_bytes=2 * SNAPSHOT_BYTES)


class SessionChannels:
    """Named `<session>/<kind>` in the registry, each with its aliases."""

    def __init__(self, registry: Registry, session: str, *, complete: bool) -> None:
        self.opened: dict[str, OpenChannel] = {}
        self._registry = registry
        self._session = session
        self._media = COMPLETE if complete else LIVE

    def media(self, kind: str) -> Channel:
        return self._open(kind, self._media, VIDEO)

    def messages(self, kind: str, content_type: str) -> Channel:
        return self._open(kind, MESSAGES, content_type)

    def snapshots(self, kind: str) -> Channel:
        return self._open(kind, SNAPSHOTS, BYTES)

    def _open(self, kind: str, limits: ChannelLimits, content_type: str) -> Channel:
        name = f"{self._session}/{kind}"
        self.opened[kind] = self._registry.open(name, content_type=content_type, limits=limits)
        return self.opened[kind].channel

    def relay(self, said: bytes) -> None:
        """Pass on, to whoever reads `data`, what the pipeline says."""
        try:
            with self.opened["data"].channel.begin_segment() as segment:
                segment.write(said)
        except SluiceError:
            FRAME_DROPS.labels("data").inc()  # the session ends

    def __getitem__(self, kind: str) -> OpenChannel:
        return self.opened[kind]

    def close(self, *kinds: str) -> None:
        """End them, those that are open; again is harmless."""
        for kind in kinds:
            self._registry.close(f"{self._session}/{kind}")

    def forget(self, *kinds: str) -> None:
        """End them for good: a session may have had any number of runners."""
        self.close(*kinds)
        for kind in kinds:
            self.opened.pop(kind, None)
