"""Sends a container the parameters that are due, and says of each revision what became of it.

A container acknowledges nothing but that it was told. So a revision counts as applied at the first picture
that goes in after it took the parameters: from that picture on, everything is made with them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import structlog

from services.common.errors import NotFoundError, SluiceError
from services.common.param_schema import applies
from services.inference.container.channels import ContainerChannels
from services.inference.container.client import ContainerClient
from services.inference.container.watching import InputClock
from services.inference.params import Fold, Patch
from services.inference.voices import Events

log = structlog.get_logger()

LOOK_S: Final = 0.02  # how late a change may be that waits for its picture
NEXT_PICTURE_S: Final = 1.0  # without one in that time, what was sent is told as of the newest
REFUSED: Final = "param_refused"


class Steering:
    """Of one session; `fold` is what it was told so far."""

    def __init__(self, fold: Fold, schema: Mapping[str, Any], clock: InputClock, events: Events) -> None:
        self.fold = fold
        self.at_start: tuple[int, ...] = ()  # the revisions that its stream started with
        self._schema = schema
        self._clock = clock
        self._events = events
        self._told = asyncio.Event()

    def first(self) -> Mapping[str, Any]:
        """The parameters that its stream starts with; what is in them is due no more."""
        due = [patch.revision for patch in self.fold.due(0)]
        self.at_start = (self.fold.revision, *due)
        self.fold = self.fold.show(due, 0).settle()
        return self.fold.effective(0)[0]

    def take(self, fold: Fold) -> None:
        self.fold = fold
        self._told.set()

    async def run(self, client: ContainerClient, channels: ContainerChannels) -> None:
        """Send what is due, as it comes to be: a loop for `background`."""
        while True:
            self._told.clear()
            pts = self._clock.newest.value or 0
            if due := self.fold.due(pts):
                await self._send(client, channels, due, pts)
                continue
            waits_for_its_time = self.fold.due(sys.maxsize)
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S if waits_for_its_time else None):
                    await self._told.wait()

    async def _send(
        self, client: ContainerClient, channels: ContainerChannels, due: Iterable[Patch], pts: int
    ) -> None:
        revisions = [patch.revision for patch in due]
        names = {name for patch in due for name in patch.patch}
        self.fold = self.fold.show(revisions, pts)
        params = self.fold.effective(pts)[0]
        changed = {name: params.get(name) for name in sorted(names)}
        try:
            await _deliver(client, channels, changed)
        except SluiceError as error:
            log.info("the container refused parameters", revisions=revisions, why=error.message)
            for patch in due:
                self.fold = self.fold.refuse(patch.revision)
                self._events.tell(
                    type="refused", revision=patch.revision, field="", reason=REFUSED, message=error.message
                )
            return
        self.fold = self.fold.settle()
        shown = await self._next_picture()
        for patch in due:
            how = applies(patch.patch, self._schema)
            self._events.tell(type="applied", revision=patch.revision, pts=shown, applies=how)

    async def _next_picture(self) -> int:
        newest = self._clock.newest
        try:
            async with asyncio.timeout(NEXT_PICTURE_S):
                _, pts = await newest.newer_than(newest.version)
        except TimeoutError:
            pts = newest.value
        return pts or 0


async def _deliver(client: ContainerClient, channels: ContainerChannels, params: Mapping[str, Any]) -> None:
    """Raises InvalidError when it refuses, UnavailableError when it does not answer."""
    try:
        await client.update(params)
    except NotFoundError:  # a worker that is steered by its control channel alone, and answers nothing
        channels.say(json.dumps(params).encode())
