"""Who runs the sessions of a runner, an engine of ours or somebody else's container: what both have to be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.latest import Latest
from services.inference.assignment import Assignment, Channels, Report, State
from services.inference.params import Fold, Patch


@dataclass(frozen=True, slots=True)
class Offer:
    """A pipeline that a host has loaded, as it describes itself."""

    name: str
    version: str
    description: str
    params_schema: Mapping[str, Any]
    processes_audio: bool
    slots_per_engine: int


class HostedSession(Protocol):
    """A session on a host. `report` ends in a terminal state, set when the host has let go of it."""

    assignment: Assignment
    report: Latest[Report]
    fold: Fold
    stopped: tuple[State, str]  # what a cancellation of `run` means

    async def run(self) -> None:
        """Live until the input has ended, something failed, or the task is cancelled."""

    async def update(self, patch: Patch, fold: Fold) -> None:
        """Take a revision in; `fold` is the session's with it. Raises NotFoundError when it just ended."""

    @property
    def newest(self) -> Report:
        """The report with what changes too often to be set in it."""

    def rebind(self, channels: Channels, session_epoch: int) -> None:
        """Go on at another bridge. Raises ConflictError REBIND_UNSUPPORTED."""

    def reports(self, every_s: float) -> AsyncIterator[Report]:
        """The report now, whenever it changes, and at least every `every_s`; ends with a terminal one."""

    def ended(self) -> None:
        """The task is over; if it was cancelled before its first step, `run` could not say so."""


class Host(Protocol):
    """What runs sessions. `offers` is empty while it cannot."""

    @property
    def offers(self) -> Latest[tuple[Offer, ...]]: ...

    @property
    def ready(self) -> bool: ...

    def session(self, of: Assignment) -> HostedSession:
        """A session that has not begun."""
