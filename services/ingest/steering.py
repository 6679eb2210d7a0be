"""Changes of parameters, whoever asks: a REST client, a data channel, a Scope client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from protos.sessions.v1 import sessions_pb2
from services.common.errors import ConflictError, DeadlineExceededError
from services.ingest.bridge.events import Applied
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.runner_news import refusal

# How long who asked for it waits for a picture; below what proxies wait for an answer, often a minute.
WAIT_APPLIED_S: Final[Mapping[str, float]] = {"live": 10.0, "warm": 30.0, "reload": 50.0}
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
        """Put each value of `patch` in the place of that parameter's: all of it or, if one is wrong, nothing.

        null is the default. Raises InvalidError that names the field, NotFoundError, ConflictError.
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

    async def applied(self, session: BridgeSession, change: Change) -> Applied:
        """Wait until `change` is in a picture; return in which.

        Raises ConflictError when the runner refused it or the session ended before, DeadlineExceededError
        when it takes too long to wait for.
        """
        revision = change.revision
        within_s = WAIT_APPLIED_S.get(change.applies, WAIT_APPLIED_S["live"])
        try:
            async with asyncio.timeout(within_s):
                while True:
                    version = session.changed.version
                    refused = session.heard.refusal(revision)
                    if refused is not None:
                        raise refusal(refused)
                    applied = session.heard.shown(revision, change.applies)
                    if applied is not None:
                        return applied
                    if session.closed.done():
                        break
                    await session.changed.newer_than(version)
        except TimeoutError:
            raise DeadlineExceededError(
                f"revision {revision} is accepted, but no picture had it within {within_s:g} s",
                reason="NOT_APPLIED_YET",
                revision=revision,
                applies=change.applies,
            ) from None
        raise ConflictError(
            f"revision {revision} is accepted, but the session ended before a picture had it",
            reason="SESSION_ENDED",
            revision=revision,
        )
