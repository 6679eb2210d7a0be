"""The receiver of `make run` in a thread of the test, which has everything that was ever exported to it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from deploy.local.trace_store import Refused, TraceStore
from deploy.local.traces import serving


class Receiver(TraceStore):
    """`endpoint` takes OTLP, `url` answers as Jaeger; `exported` is never bounded."""

    def __init__(self) -> None:
        super().__init__()
        self.exported: list[ResourceSpans] = []
        self.endpoint = ""
        self.url = ""

    def add(self, exported: Iterable[ResourceSpans]) -> Refused:
        self.exported += exported
        return super().add(exported)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    ready = threading.Event()
    over = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with serving(receiver, otlp="127.0.0.1:0", http="127.0.0.1:0") as ports:
            receiver.endpoint = f"http://127.0.0.1:{ports.otlp}"
            receiver.url = f"http://127.0.0.1:{ports.http}"
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield receiver
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()
