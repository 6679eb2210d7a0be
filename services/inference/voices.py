"""What a session says and hears beside its media: what each dialect of it has to do, ours and others'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from aiohttp import ClientSession

from services.inference.steering import Steering


class Events(Protocol):
    """Takes what happens to the session; media never waits for it."""

    @property
    def full(self) -> bool:
        """So much waits that the session should end, with last words."""

    def tell(self, **event: object) -> None: ...

    def status(self, **event: object) -> None: ...

    async def delivered(self, within_s: float) -> None:
        """Wait until all of it is there, or the time is over."""

    async def run(self, session: ClientSession) -> None:
        """A loop for `background`."""


class Remarks(Protocol):
    """Takes what the pipeline says."""

    def put(self, pts: int, text: str) -> None:
        """`text` is a JSON object, said of the frame at `pts`."""

    def refused(self, totals: Mapping[str, int]) -> None:
        """Count what the engine did not let through; `totals` are since its beginning, by reason."""

    async def delivered(self, within_s: float) -> None:
        """Wait until all of it is there, or the time is over."""

    async def run(self, session: ClientSession) -> None:
        """A loop for `background`."""


class Wishes(Protocol):
    """Hears what is asked of the session while it runs."""

    async def run(self, http: ClientSession, steering: Steering) -> None:
        """Do what is asked for: a loop for `background`."""
