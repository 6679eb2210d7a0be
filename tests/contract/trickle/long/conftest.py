from __future__ import annotations

import asyncio
from collections.abc import Callable


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Time can be bent on asyncio's own loop only."""
    return {"asyncio": asyncio.new_event_loop}
