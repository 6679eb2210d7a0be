"""What is asked of a session's engine while it runs, for the one that it has now and for the next.

The rule it keeps: who asks need not know that there was another engine. A bit rate holds until another is
asked for; a key frame is the first picture of each engine anyway.
"""

from __future__ import annotations

from contextlib import suppress

from services.inference.line import EngineDiedError, Line

BITRATE = "bitrate"


class Steering:
    """One session's. `say` is for those who ask, `follow` for the session when it has a new line."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._bit_rate: dict[str, object] | None = None

    async def say(self, kind: str, **fields: object) -> None:
        if kind == BITRATE:
            self._bit_rate = fields
        if self._line is not None:
            with suppress(EngineDiedError):
                await self._line.say(kind, **fields)

    async def follow(self, line: Line) -> None:
        """Raises EngineDiedError."""
        self._line = line
        if self._bit_rate is not None:
            await line.say(BITRATE, **self._bit_rate)
