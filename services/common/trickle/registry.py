"""Which channels clients of this process can reach, and under which alias they read or write them."""

from __future__ import annotations

import asyncio
import secrets
from copy import copy
from dataclasses import dataclass
from itertools import takewhile
from typing import Final
from urllib.parse import quote

from services.common.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    SluiceError,
)
from services.common.trickle.changefeed import Changefeed
from services.common.trickle.channel import Channel
from services.common.trickle.metrics import CHANNELS
from services.common.trickle.protocol import (
    CHANGES,
    DEFAULT_CONTENT_TYPE,
    DEFAULT_LIMITS,
    RESERVED,
    ChannelLimits,
    parse_name,
)

ALIAS_BYTES: Final = 24  # 192 bits: the alias is the only credential
SWEEP_INTERVAL_S: Final = 10.0  # far below the shortest idle time in use


@dataclass(frozen=True, slots=True)
class OpenChannel:
    """A channel and its addresses: URL paths below the listener's base path, each a credential."""

    name: str
    channel: Channel
    read_path: str
    write_path: str


@dataclass(frozen=True, slots=True)
class _Entry:
    channel: Channel
    read_alias: str
    write_alias: str
    announced: bool


class Registry:
    """Holds the channels of a process. Create it inside the running loop.

    `max_channels`: each may hold `ChannelLimits.channel_bytes`. `linger_s`: how long a closed channel can be
    read on, so that a subscriber one segment behind gets the last one and is told of the end, and how long
    its writer is told why it was closed; then 404. `changefeed`: tell announced channels on `_changes`.
    """

    def __init__(self, *, max_channels: int = 1024, linger_s: float = 5.0, changefeed: bool = False) -> None:
        self._max_channels = max_channels
        self._linger_s = linger_s
        self._now = asyncio.get_running_loop().time
        self._open: dict[str, _Entry] = {}  # by name
        self._writable: dict[str, str] = {}  # write alias to name
        self._readable: dict[str, Channel] = {}  # by read alias, lingering ones too
        self._lingering: dict[str, float] = {}  # read alias to when it goes, in order of closing
        self._refused: dict[str, tuple[SluiceError, float]] = {}  # write alias: why, until when; in order
        self._changes = Changefeed() if changefeed else None
        if self._changes is not None:
            self._readable[CHANGES] = self._changes.channel

    def __len__(self) -> int:
        return len(self._open)

    def open(
        self,
        name: str,
        *,
        content_type: str = DEFAULT_CONTENT_TYPE,
        limits: ChannelLimits = DEFAULT_LIMITS,
        read_alias: str | None = None,
        write_alias: str | None = None,
        announce: bool = False,
    ) -> OpenChannel:
        """Create a channel; an alias that is not given is unguessable.

        `announce`: tell the read alias, which must be given, to all who follow the changefeed. Raises
        ConflictError when name or alias is taken, ExhaustedError when there are too many channels,
        InvalidError when a client could write a reserved name.
        """
        assert read_alias is not None or not announce, "an unguessable alias is nobody's business"
        if write_alias is not None and write_alias.startswith(RESERVED):
            raise InvalidError("The name is reserved", reason="RESERVED_NAME", field="name")
        self._forget_lingering(self._now())
        read_alias = secrets.token_urlsafe(ALIAS_BYTES) if read_alias is None else parse_name(read_alias)
        write_alias = secrets.token_urlsafe(ALIAS_BYTES) if write_alias is None else parse_name(write_alias)
        reading = read_alias in self._readable and read_alias not in self._lingering
        if name in self._open or write_alias in self._writable or reading:
            raise ConflictError("The channel exists", reason="CHANNEL_EXISTS")
        if len(self._open) >= self._max_channels:
            raise ExhaustedError("Too many channels", reason="TOO_MANY_CHANNELS", retry_after_s=1)
        channel = Channel(limits, content_type)
        self._open[name] = _Entry(channel, read_alias, write_alias, announce)
        self._writable[write_alias] = name
        self._readable[read_alias] = channel
        self._lingering.pop(read_alias, None)
        self._refused.pop(write_alias, None)
        CHANNELS.inc()
        if announce and self._changes is not None:
            self._changes.added(read_alias)
        return OpenChannel(name, channel, f"/{quote(read_alias, safe='')}", f"/{quote(write_alias, safe='')}")

    def readable(self, alias: str) -> Channel:
        """The channel that is read as `alias`. Raises NotFoundError."""
        self._forget_lingering(self._now())
        if alias not in self._readable:
            raise NotFoundError("Stream not found", reason="CHANNEL_NOT_FOUND")
        return self._readable[alias]

    def writable(self, alias: str) -> Channel:
        """The channel that is written as `alias`. Raises NotFoundError, or the error it was closed with."""
        return self._open[self.name_of(alias)].channel

    def name_of(self, write_alias: str) -> str:
        """The name behind a write alias. Raises NotFoundError, or the error that it was closed with."""
        if write_alias in self._writable:
            return self._writable[write_alias]
        self._forget_lingering(self._now())
        if write_alias in self._refused:
            raise copy(self._refused[write_alias][0])  # a raised one keeps its frames
        raise NotFoundError("Stream not found", reason="CHANNEL_NOT_FOUND")

    def close(self, name: str, error: SluiceError | None = None) -> None:
        """Close a channel: nobody writes it any more, whoever reads it comes to an end. Again is harmless.

        `error`: what its writer's requests are answered with, those parked and, for a while, later ones.
        """
        entry = self._open.pop(name, None)
        if entry is None:
            return
        entry.channel.close(error)
        del self._writable[entry.write_alias]
        until = self._now() + self._linger_s
        self._lingering[entry.read_alias] = until
        if entry.channel.error is not None:
            self._refused[entry.write_alias] = entry.channel.error, until
        CHANNELS.dec()
        if entry.announced and self._changes is not None:
            self._changes.removed(entry.read_alias)

    def close_all(self) -> None:
        """Close every channel, without notices: the server stops."""
        if self._changes is not None:
            self._changes.channel.close()
        for name in list(self._open):
            self.close(name)

    async def sweep(self, interval_s: float = SWEEP_INTERVAL_S) -> None:
        """Close idle channels and forget closed ones, for ever: the owner runs this beside its listener."""
        while True:
            await asyncio.sleep(interval_s)
            self.sweep_once()

    def sweep_once(self) -> None:
        now = self._now()
        for name, entry in list(self._open.items()):
            idle_s = entry.channel.limits.idle_s
            idle = idle_s is not None and now - entry.channel.active_at > idle_s
            if idle or entry.channel.closed:
                self.close(name)
        self._forget_lingering(now)

    def _forget_lingering(self, now: float) -> None:
        for alias in list(takewhile(lambda alias: self._lingering[alias] <= now, self._lingering)):
            del self._lingering[alias]
            del self._readable[alias]
        for alias in list(takewhile(lambda alias: self._refused[alias][1] <= now, self._refused)):
            del self._refused[alias]
