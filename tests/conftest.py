"""What holds for every test."""

from __future__ import annotations

import asyncio
import signal

import structlog
from hypothesis import settings


def pytest_configure() -> None:
    # A shared machine stalls for longer than any example takes; each test has a bound of its own.
    settings.register_profile("shared", settings.default, deadline=None)
    settings.load_profile("shared")
    # pytest-asyncio 1.5 asks for the main thread's loop, and Python 3.11 makes one then, which nobody closes:
    # a ResourceWarning, and so a failed run, as soon as a test that is not async comes first.
    asyncio.set_event_loop(None)
    # Whatever a shell starts behind an `&` ignores Ctrl-C, and so would each process that a test interrupts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # structlog's own default draws a traceback with every local in it: seconds in which the event loop stands
    # still, on a busy machine enough for NATS to drop the connection.
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.dev.ConsoleRenderer(
                colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            ),
        ]
    )
