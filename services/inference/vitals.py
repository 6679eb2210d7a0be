"""What a session says of how it is: each change of its health, on `events`.

The rule it keeps: a change is told when it happens or half a second later, and what did not change is not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog
from prometheus_client import Gauge

from services.inference.health import Condition, Health, Standing

log = structlog.get_logger()

SESSIONS: Final = Gauge("sluice_runner_health", "Sessions of this runner, by how they are.", ["state"])
EVERY_S: Final = 0.5
AGAIN_S: Final = 10.0  # a load that tells nothing for so long is told of again, for whoever waits for it
DONE: Final = 100  # percent


class Vitals:
    """One session's, between the first moment of it and `ended`."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._health = Health()
        self._told: Standing | None = None  # at `_told_ms`
        self._told_ms = 0
        self._loading: dict[str, object] | None = None  # as it was told last, at `_loading_s`
        self._loading_s = 0.0
        self._now_s = asyncio.get_running_loop().time

    def took(self) -> None:
        self._health.took(self._now_s())

    def gave(self) -> None:
        self._health.gave(self._now_s())

    def loads(self, *, why: str, stage: str, percent: int, beside: bool = False) -> None:
        """Something loads; `beside`: frames go on meanwhile. 100 percent: it is over."""
        over = percent >= DONE
        self._loading = None if over else {"why": why, "stage": stage, "percent": percent}
        self._tell(type="loading", why=why, stage=stage, percent=percent)
        self._loading_s = self._now_s()
        if not beside:
            if over:
                self._health.loaded(self._loading_s)
            else:
                self._health.loading(why)
            self.look()

    def changed(self) -> None:
        self._health.changed(self._now_s())

    def problem(self, kind: str) -> None:
        self._health.problem(kind, self._now_s())
        self.look()

    def failed(self, reason: str) -> None:
        self._health.failed(reason)
        self.look()

    async def watch(self, backlog: Callable[[], bool]) -> None:
        """A loop for `background`. `backlog`: whether pictures wait for the engine."""
        while True:
            self.look(backlog=backlog())
            if self._loading is not None and self._now_s() - self._loading_s >= AGAIN_S:
                self._loading_s = self._now_s()
                self._tell(type="loading", **self._loading)
            await asyncio.sleep(EVERY_S)

    def look(self, *, backlog: bool = False) -> None:
        """Tell how it is, if that is new."""
        standing, was = self._health.standing(self._now_s(), backlog=backlog), self._told
        if standing == was:
            return
        self._told = standing
        _count(None if was is None else was.condition, standing.condition)
        log.info("session health", state=standing.condition.value, cause=standing.cause)
        self._told_ms = round(1000 * time.time())
        self._tell_standing(standing)

    def _tell_standing(self, standing: Standing) -> None:
        self._tell(
            type="health",
            state=standing.condition.value,
            cause=standing.cause,
            since_ms=self._told_ms,
        )

    def tell_again(self) -> None:
        """To whoever listens now and did not hear it before."""
        if self._loading is not None:
            self._tell(type="loading", **self._loading)
        if self._told is not None:
            self._tell_standing(self._told)

    def ended(self) -> None:
        _count(None if self._told is None else self._told.condition, None)
        self._told = None


def _count(was: Condition | None, now: Condition | None) -> None:
    if was is not None:
        SESSIONS.labels(was.value).dec()
    if now is not None:
        SESSIONS.labels(now.value).inc()
