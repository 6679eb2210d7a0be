"""What is asked of a session's engine while it runs, for the one that it has now and for the next.

The rule it keeps: who asks need not know that there was another engine, or none yet. A bit rate holds until
another is asked for, and so does the time of a key frame; one at once is the first picture of each anyway.
"""

from __future__ import annotations

from contextlib import suppress

from services.inference.line import EngineDiedError, Line

BITRATE = "bitrate"
KEYFRAME = "keyframe"


class Steering:
    """One session's. `say` is for those who ask, `follow` for the session when it has a new line."""

    def __init__(self) -> None:
        self._line: Line | None = None
        self._held: dict[str, dict[str, object]] = {}  # the newest of each kind

    async def say(self, kind: str, **fields: object) -> None:
        if kind == BITRATE or fields.get("at_pts") is not None:
            self._held[kind] = fields
        if self._line is not None:
            with suppress(EngineDiedError):
                await self._line.say(kind, **fields)

    async def follow(self, line: Line) -> None:
        """Raises EngineDiedError."""
        self._line = line
        for kind, fields in self._held.items():
            await line.say(kind, **fields)
