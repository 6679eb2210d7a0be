"""What holds for every test."""

from __future__ import annotations

import asyncio


def pytest_configure() -> None:
    # pytest-asyncio 1.5 asks for the main thread's loop, and Python 3.11 makes one then, which nobody closes:
    # a ResourceWarning, and so a failed run, as soon as a test that is not async comes first.
    asyncio.set_event_loop(None)
