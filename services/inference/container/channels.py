"""Channels between us and a container: its control, which we write, its events and data, which we read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Final

from services.common.trickle.channel import Channel
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.registry import Registry

MESSAGES: Final = ChannelLimits(depth=64, segment_bytes=1 << 20, channel_bytes=4 << 20, idle_s=None)
KINDS: Final = {"control": "application/json", "events": "application/json", "data": "application/jsonl"}
KEEP_ALIVE: Final = b'{"keep":"alive"}'


@dataclass(frozen=True, slots=True)
class ContainerChannels:
    """One session's, with the URLs at which the container finds them."""

    registry: Registry
    session: str
    opened: dict[str, Channel]
    urls: dict[str, str]

    @classmethod
    def open(cls, registry: Registry, session: str, base_url: str) -> ContainerChannels:
        """Raises ConflictError when the session has them already, ExhaustedError."""
        made = cls(registry, session, {}, {})
        for kind, content_type in KINDS.items():
            channel = registry.open(f"{session}/{kind}", content_type=content_type, limits=replace(MESSAGES))
            made.opened[kind] = channel.channel
            path = channel.read_path if kind == "control" else channel.write_path
            made.urls[f"{kind}_url"] = base_url.rstrip("/") + path
        return made

    def close(self) -> None:
        for kind in KINDS:
            self.registry.close(f"{self.session}/{kind}")

    def say(self, message: bytes = KEEP_ALIVE) -> None:
        """Write to `control`; a session whose channels are closed says nothing more."""
        if not self.opened["control"].closed:
            with self.opened["control"].begin_segment() as segment:
                segment.write(message)

    async def heard(self, kind: str) -> AsyncIterator[bytes]:
        """Each segment of `kind` that is whole, until the channel is closed."""
        async for segment in self.opened[kind].read(0):
            yield b"".join([data async for data in segment])
