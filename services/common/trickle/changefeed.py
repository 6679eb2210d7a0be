"""The channel that says which channels come and go: one JSON object a segment, and only announced names."""

from __future__ import annotations

import json
from typing import Final

from services.common.trickle.channel import Channel
from services.common.trickle.protocol import CHANGES, ChannelLimits

# A follower that is 256 changes behind learns by its 470 that it must look for itself.
LIMITS: Final = ChannelLimits(depth=256, segments=256, segment_bytes=4096, channel_bytes=2**20, idle_s=None)


class Changefeed:
    """Writes the feed; its first message announces the feed itself, as the reference's does."""

    def __init__(self) -> None:
        self.channel: Final = Channel(LIMITS, "application/json")
        self.added(CHANGES)

    def added(self, name: str) -> None:
        self._tell("added", name)

    def removed(self, name: str) -> None:
        self._tell("removed", name)

    def _tell(self, what: str, name: str) -> None:
        if not self.channel.closed:
            with self.channel.begin_segment() as writer:
                writer.write(json.dumps({what: [name]}).encode())
