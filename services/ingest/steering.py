"""Changes of parameters, whoever asks: a REST client, a data channel, a Scope client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from protos.sessions.v1 import sessions_pb2
from services.common.errors import ConflictError, DeadlineExceededError
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import CLOCK_HZ
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane

WAIT_APPLIED_S: Final = 10.0
AT_START: Final = "at_start"  # there is no session: it will begin with the change


@dataclass(frozen=True, slots=True)
class Change:
    """A change that was accepted. `applies`: live, warm, reload or at_start."""

    revision: int
    applies: str
    stream: sessions_pb2.Stream


class Steering:
    """Every face's way to a stream's parameters."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    async def change(
        self,
        stream: str,
        tenant: str,
        patch: Mapping[str, Any],
        *,
        pipeline: str = "",
        apply_at_pts: int = 0,
    ) -> Change:
        """Merge `patch` (RFC 7396) into the parameters: all of it or, if something is wrong, nothing.

        Raises InvalidError that names the field, NotFoundError, ConflictError.
        """
        answer = await self._plane.update(
            sessions_pb2.UpdateRequest(
                stream=stream,
                tenant=tenant,
                patch=json.dumps(patch),
                pipeline=pipeline,
                apply_at_pts=apply_at_pts,
            )
        )
        return Change(answer.revision, answer.applies, answer.stream)

    async def applied(self, session: BridgeSession, revision: int) -> int:
        """Wait until `revision` is in a picture; return that picture's PTS, or a later one's.

        Raises ConflictError when the session ended before, DeadlineExceededError after ten seconds.
        """
        try:
            async with asyncio.timeout(WAIT_APPLIED_S):
                while session.applied_revision < revision and not session.closed.done():
                    await session.changed.newer_than(session.changed.version)
        except TimeoutError:
            raise DeadlineExceededError(
                f"revision {revision} is accepted, but no picture had it within {WAIT_APPLIED_S:g} s",
                reason="NOT_APPLIED_YET",
                revision=revision,
            ) from None
        if session.applied_revision < revision:
            raise ConflictError(
                f"revision {revision} is accepted, but the session ended before a picture had it",
                reason="SESSION_ENDED",
                revision=revision,
            )
        return session.applied_pts


def media_ms(pts: int) -> int:
    """Media time of a PTS on a session's clock: 0 is its first picture."""
    return (pts - ORIGIN_TICKS) * 1000 // CLOCK_HZ


def media_pts(at_ms: int) -> int:
    """The PTS on a session's clock of a media time."""
    return ORIGIN_TICKS + at_ms * CLOCK_HZ // 1000
