"""One clip through the platform, from the stream's creation to its bill.

The rule it keeps: whatever happens, the stream is deleted.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import av

from sluice.client import ApiError, SluiceClient, UnreachableError
from sluice.transform.display import Display
from sluice.transform.exchange import Exchange, Job, RunFailedError, Worker, early_end
from sluice.transform.result import Result
from sluice.transform.sound import Sound
from sluice.transform.source import Source

SETTLE_S: Final = 3.0  # how long a bill is waited for
SETTLE_POLL_S: Final = 0.25
CLEAN_UP_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How it went. A cost that is not settled is the platform's estimate."""

    session: str
    stream: str
    frames_sent: int
    frames_returned: int
    fps: float
    latency_ms_p50: float | None
    latency_ms_p95: float | None
    cost_micro: int | None
    cost_settled: bool
    currency: str | None
    damaged_packets: int


async def run(job: Job, *, source: Source, client: SluiceClient, display: Display) -> Report:
    """Raises InvalidError, ApiError, UnreachableError, RunFailedError."""
    stream = await client.create_stream(
        pipeline=job.pipeline, params=job.params, delivery=job.delivery, name=job.clip.name[:200]
    )
    try:
        exchange = Exchange(job, source=source, client=client, stream=stream, display=display)
        with ExitStack() as stack:
            sound = stack.enter_context(Sound(job.clip))
            result = stack.enter_context(
                Result(job.output, job.container, start_s=source.start_s, sound=sound)
            )
            writing = stack.enter_context(Worker())  # last in, first out: nobody writes while they close
            await exchange.run(result, writing)
            await _check(exchange, client, complete=not job.realtime)
            try:
                await writing(result.finish, source.end_ticks)
            except (av.FFmpegError, OSError) as error:
                raise RunFailedError(f"the output cannot be written: {error}") from error
        settled = await _settle(exchange, client)
    finally:
        with suppress(ApiError, UnreachableError, TimeoutError):
            async with asyncio.timeout(CLEAN_UP_S):
                await client.delete_stream(stream.id)
    tally = exchange.tally
    return Report(
        session=exchange.session,
        stream=stream.id,
        frames_sent=tally.sent,
        frames_returned=tally.returned,
        fps=round(tally.fps, 2),
        latency_ms_p50=tally.latency_percentile_ms(50),
        latency_ms_p95=tally.latency_percentile_ms(95),
        cost_micro=exchange.cost_micro,
        cost_settled=settled,
        currency=exchange.currency,
        damaged_packets=source.damaged,
    )


async def _check(exchange: Exchange, client: SluiceClient, *, complete: bool) -> None:
    """Raise RunFailedError if the session did not end as it should, or did not return what it should."""
    with suppress(ApiError, UnreachableError):
        failure = early_end(await client.session(exchange.session))
        if failure is not None:
            raise failure
    tally = exchange.tally
    if not tally.received:
        raise RunFailedError(f"none of {tally.sent} frames came back")
    if complete and tally.returned < tally.sent:
        raise RunFailedError(f"{tally.sent - tally.returned} of {tally.sent} frames did not come back")


async def _settle(exchange: Exchange, client: SluiceClient) -> bool:
    """Wait a little for the ledger's last word on the cost; whether there is one."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            while True:
                with suppress(ApiError, UnreachableError):
                    if exchange.currency is None:
                        exchange.currency = str((await client.prices())["currency"])
                    for line in (await client.usage(exchange.session))["data"]:
                        if line["final"]:
                            exchange.cost_micro = line["cost_micro"]
                            return True
                        exchange.cost_micro = max(exchange.cost_micro or 0, line["cost_micro"])
                await asyncio.sleep(SETTLE_POLL_S)
    return False
