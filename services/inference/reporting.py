"""How a session at a runner begins, ends and says so, whoever hosts it.

The rule it keeps: every end has a reason, told to the bridge first, and reported when everything is let go.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

import structlog
from aiohttp import ClientSession

from services.common.latest import Latest
from services.common.lifecycle import background
from services.common.trickle.connection import trickle_session
from services.inference.assignment import Assignment, Report, State
from services.inference.line import SessionFailedError
from services.inference.voices import Events, Remarks

log = structlog.get_logger()

E = TypeVar("E", bound=Exception)
EVENTS_WITHIN_S: Final = 1.0  # after the end, for the last words


class ReportedSession(ABC):
    """`report` ends in a terminal state, set when the host has let go of the session."""

    def __init__(self, assignment: Assignment, events: Events, remarks: Remarks) -> None:
        self.assignment = assignment
        self.report = Latest(Report())
        self.stopped = (State.FAILED, "runner_stopped")  # what a cancellation means
        self._events = events
        self._remarks = remarks

    @abstractmethod
    async def _stream(self, http: ClientSession) -> None:
        """Serve until the input has ended. Raises SessionFailedError, perhaps in a group."""

    @abstractmethod
    async def _let_go(self) -> None:
        """Have the host free what it holds, within the bound that a detach has."""

    @abstractmethod
    def _failing(self, reason: str) -> None:
        """The session fails, and its last words are not out yet."""

    @abstractmethod
    def _over(self) -> None:
        """Nothing of the session runs any more, if anything did."""

    @property
    def newest(self) -> Report:
        """The report with what changes too often to be set in it."""
        return self.report.value

    async def run(self) -> None:
        """Live until the input has ended, something failed, or the task is cancelled."""
        state, reason, message = State.FAILED, "internal_error", ""
        try:
            state, reason, message = await self._live()
        except asyncio.CancelledError:
            state, reason = self.stopped
            raise
        finally:
            try:
                await self._let_go()
            finally:
                self._end(state, reason, message)

    async def reports(self, every_s: float) -> AsyncIterator[Report]:
        """The report now, whenever it changes, and at least every `every_s`; ends with a terminal one."""
        while True:
            version, newest = self.report.version, self.newest
            yield newest
            if newest.state.terminal:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await self.report.newer_than(version)

    def ended(self) -> None:
        """The task is over; if it was cancelled before its first step, `run` could not say so."""
        if not self.report.value.state.terminal:
            self._end(*self.stopped, "")

    def _end(self, state: State, reason: str, message: str) -> None:
        self._over()
        last = replace(self.newest, state=state, reason=reason, message=message, interrupted=False)
        self.report.set(last)
        log.info("session ended", state=state.name, reason=reason, message=message)

    async def _live(self) -> tuple[State, str, str]:
        state, reason, message = State.FINISHED, "", ""
        async with trickle_session() as http:
            http.headers.update(self.assignment.headers)
            async with background(events=self._events.run(http), remarks=self._remarks.run(http)):
                try:
                    await self._stream(http)
                except* SessionFailedError as failures:
                    first = first_of(failures)
                    state, reason, message = State.FAILED, first.reason, first.message
                if state is State.FINISHED:
                    self._events.tell(type="finished")
                else:
                    self._failing(reason)
                    self._events.tell(type="error", reason=reason, message=message)
                await asyncio.gather(
                    self._events.delivered(EVENTS_WITHIN_S), self._remarks.delivered(EVENTS_WITHIN_S)
                )
        return state, reason, message


def first_of(failures: BaseExceptionGroup[E]) -> E:
    """One of the failures in a group, however deep it is."""
    failure = failures.exceptions[0]
    return first_of(failure) if isinstance(failure, BaseExceptionGroup) else failure
