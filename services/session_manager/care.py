"""The care for one session: it is watched, paid for and moved, until it must end or is another replica's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from services.common.lifecycle import Bulkhead
from services.session_manager.credit import Credit
from services.session_manager.machine import Session
from services.session_manager.mover import Mover
from services.session_manager.neighbours import Neighbours
from services.session_manager.record import Record
from services.session_manager.settings import SessionManagerSettings
from services.session_manager.store import Store
from services.session_manager.telling import Telling
from services.session_manager.waiting import Aside
from services.session_manager.watch import End, Watch


async def until_over(
    session: Session,
    *,
    replica: str,
    store: Store,
    neighbours: Neighbours,
    settings: SessionManagerSettings,
    telling: Telling,
    aside: Aside,
) -> End | None:
    """Return the first reason for which the session must end; None when its duties are not ours now."""
    record = Record(session, store)
    watch = Watch(
        record, replica=replica, store=store, neighbours=neighbours, settings=settings, telling=telling
    )
    credit = Credit(record, lambda: watch.session_ms, neighbours=neighbours, settings=settings)
    mover = Mover(
        record, watch, store=store, neighbours=neighbours, settings=settings, telling=telling, aside=aside
    )
    first: asyncio.Future[End | None] = asyncio.get_running_loop().create_future()

    async def report(duty: Awaitable[End | None]) -> None:
        end = await duty
        if not first.done():
            first.set_result(end)

    def failed(_: str, error: Exception) -> None:
        if not first.done():
            first.set_exception(error)

    async with Bulkhead(failed) as duties:  # a TaskGroup cancels once, and nats-py may swallow that
        duties.start("bridge", report(watch.bridge()))
        duties.start("runner", report(watch.runner()))
        duties.start("record", report(watch.record()))
        duties.start("judging", report(watch.judging()))
        duties.start("credit", credit.renew())
        duties.start("mover", report(mover.run()))
        return await first
