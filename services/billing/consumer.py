"""From the USAGE stream into the ledger: commit, then confirm to the outboxes, then ack.

A crash anywhere in between redelivers the windows, and the ledger ignores what it has.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import structlog
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Histogram

from protos.events.v1 import events_pb2
from services.billing.ledger import SessionId, TenantId, Window
from services.billing.store import Applied, Arrival, Outcome, Store, StoreThread
from services.common.bus import Bus
from services.common.errors import SluiceError
from services.common.telemetry import report_bug, span
from services.common.topology import USAGE, usage_confirmed

log = structlog.get_logger()

# One commit, and so one fsync, a batch. At 5 s a window a batch is what 1,000 streams report in a second.
BATCH: Final = 200

WINDOWS: Final = Counter("sluice_billing_events_total", "Usage windows received, by outcome.", ["outcome"])
POSTED: Final = Counter("sluice_billing_posted_micro_total", "Usage posted, in micro-units.")
WRITTEN_OFF: Final = Counter(
    "sluice_billing_written_off_micro_total", "The part of the usage posted that no credit covered."
)
RETURNED: Final = Counter(
    "sluice_billing_returned_micro_total",
    "Usage given back: two meters had measured the same time, and the newer one counts.",
)
LAG: Final = Histogram(
    "sluice_billing_lag_seconds",
    "From a window's end, by its meter's clock, to its commit.",
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600, 86_400),
)


class Consumer:
    """Applies batches of windows to the ledger."""

    def __init__(self, bus: Bus, store: StoreThread) -> None:
        self._bus = bus
        self._store = store

    async def run(self) -> None:
        """Consume for ever."""
        await self._bus.consume(USAGE, "billing", self._apply, batch=BATCH)

    async def _apply(self, messages: Sequence[Msg]) -> None:
        arrivals = [arrival(message.subject, message.data) for message in messages]
        applied = await self._post(arrivals)
        _count(arrivals, applied)
        await self._confirm(arrivals)
        _trace(messages, arrivals)

    async def _post(self, arrivals: Sequence[Arrival]) -> Applied:
        """Apply a batch. A window that meets a bug of ours is set aside as poison; the rest post."""
        try:
            return await self._store.call(Store.apply, arrivals)
        except SluiceError:
            raise
        except Exception as error:  # noqa: BLE001 - one window's failure ends at that window
            if len(arrivals) > 1:
                halves = (arrivals[: len(arrivals) // 2], arrivals[len(arrivals) // 2 :])
                return _joined([await self._post(half) for half in halves])
            (failed,) = arrivals
            report_bug("billing", error, subject=failed.subject)
            set_aside = Arrival(failed.subject, failed.raw, None, f"internal error: {error!r}")
            return await self._store.call(Store.apply, [set_aside])

    async def _confirm(self, arrivals: Sequence[Arrival]) -> None:
        """Tell each source what the database has now, new or not, posted or poison: its outbox may let go."""
        by_source: dict[str, list[str]] = {}
        for item in arrivals:
            if item.window is not None and item.window.source and item.window.id:
                by_source.setdefault(item.window.source, []).append(item.window.id)
        for source, ids in by_source.items():
            confirmed = events_pb2.UsageConfirmed(ids=ids)
            await self._bus.publish(usage_confirmed(source), confirmed.SerializeToString())


def arrival(subject: str, raw: bytes) -> Arrival:
    """What `raw` says, if it says anything."""
    try:
        message = events_pb2.UsageWindow.FromString(raw)
    except DecodeError as error:
        return Arrival(subject, raw, None, f"not a UsageWindow: {error}")
    return Arrival(subject, raw, from_proto(message))


def from_proto(message: events_pb2.UsageWindow) -> Window:
    return Window(
        id=message.id,
        session=SessionId(message.session),
        epoch=message.epoch,
        seq=message.seq,
        tenant=TenantId(message.tenant),
        stream=message.stream,
        pipeline=message.pipeline,
        from_ms=message.from_ms,
        to_ms=message.to_ms,
        unit=message.unit,
        quantity=message.quantity,
        final=message.final,
        end_reason=message.end_reason,
        frames_in=message.frames_in,
        frames_out=message.frames_out,
        frames_dropped=message.frames_dropped,
        runner=message.runner,
        source=message.source,
        unix_ms=message.unix_ms,
    )


def _joined(parts: Sequence[Applied]) -> Applied:
    return Applied(
        outcomes=[outcome for part in parts for outcome in part.outcomes],
        posted_micro=sum(part.posted_micro for part in parts),
        written_off_micro=sum(part.written_off_micro for part in parts),
        returned_micro=sum(part.returned_micro for part in parts),
    )


def _count(arrivals: Sequence[Arrival], applied: Applied) -> None:
    now_s = time.time()
    for item, outcome in zip(arrivals, applied.outcomes, strict=True):
        WINDOWS.labels(outcome.value).inc()
        if outcome is Outcome.POISON:
            log.error("poison in the usage stream", subject=item.subject, bytes=len(item.raw))
        if outcome is Outcome.APPLIED and item.window is not None and item.window.unix_ms > 0:
            LAG.observe(max(0.0, now_s - item.window.unix_ms / 1000))
    POSTED.inc(applied.posted_micro)
    WRITTEN_OFF.inc(applied.written_off_micro)
    RETURNED.inc(applied.returned_micro)


def _trace(messages: Sequence[Msg], arrivals: Sequence[Arrival]) -> None:
    """Show in each session's own trace that its last window is in the ledger; more would be noise."""
    for message, item in zip(messages, arrivals, strict=True):
        if item.window is not None and item.window.final:
            with span(
                "usage.posted",
                carrier=message.headers or {},
                kind=SpanKind.CONSUMER,
                session_id=item.window.session,
            ):
                pass
