"""How a session's report is followed by whoever wants to know what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from services.common.latest import Latest
from services.inference.assignment import Report


async def follow(report: Latest[Report], every_s: float) -> AsyncIterator[Report]:
    """The report now, whenever it changes, and at least every `every_s`; ends with a terminal one."""
    while True:
        version, newest = report.version, report.value
        yield newest
        if newest.state.terminal:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await report.newer_than(version)
