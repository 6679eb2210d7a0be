"""Emptying a runner: it takes no new session, and those it has are wished elsewhere. Again is harmless."""

from __future__ import annotations

from typing import Final

import structlog

from services.common.errors import NotFoundError
from services.session_manager.machine import Phase, Session
from services.session_manager.neighbours import Neighbours
from services.session_manager.store import Store

log = structlog.get_logger()

DRAIN: Final = "drain"


async def drain(runner: str, *, cancel: bool, store: Store, neighbours: Neighbours) -> int:
    """Have `runner` drained, or not any more; how many sessions are still there.

    Raises NotFoundError when nobody knows such a runner.
    """
    here = [one for one in store.list_sessions() if one.phase is not Phase.ENDED and _is_on(one, runner)]
    there = [one.runner_address for one in here if one.runner == runner and one.runner_address]
    await neighbours.drain(there[0] if there else await _address(runner, neighbours), cancel=cancel)
    for session in here:
        if cancel is not (session.move_wanted == DRAIN):
            continue
        try:
            await store.change_session(session.id, lambda was: _wished(was, runner, cancel=cancel))
        except NotFoundError:  # it ended long ago
            log.info("not wished elsewhere", session=session.id)
    return len(here)


def _is_on(session: Session, runner: str) -> bool:
    return session.runner == runner or (session.next is not None and session.next.runner == runner)


async def _address(runner: str, neighbours: Neighbours) -> str:
    for view in await neighbours.runners():
        if view.advert.runner == runner:
            return view.advert.address
    raise NotFoundError(f"there is no runner {runner}", reason="RUNNER_NOT_FOUND", runner=runner)


def _wished(session: Session, runner: str, *, cancel: bool) -> Session:
    if session.phase is Phase.ENDED or session.runner != runner:
        return session
    if cancel:
        return session.with_(move_wanted="") if session.move_wanted == DRAIN else session
    return session if session.move_wanted else session.with_(move_wanted=DRAIN)
