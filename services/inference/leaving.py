"""How a runner leaves: it takes nothing new, and the sessions that it has are moved to others.

The rule it keeps: it stays for as long as there are any, within a bound, whoever else is to be reached.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import grpc.aio
import structlog

from protos.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from services.common.errors import SluiceError
from services.common.grpc_client import call, channel
from services.common.lifecycle import background
from services.inference.slots import Slots

log = structlog.get_logger()

ASK_EVERY_S: Final = 1.0
ANSWER_WITHIN_S: Final = 2.0


async def let_sessions_go(slots: Slots, runner: str, *, session_manager: str, within_s: float) -> None:
    """Return when no session is left, or the time is over. `session_manager`: its address, or empty."""
    slots.leave()
    if not slots.living or not within_s:
        return
    log.info("the runner leaves when its sessions have", sessions=len(slots.living), within_s=within_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            if session_manager:
                async with channel(session_manager) as to_sessions, background(ask=_ask(to_sessions, runner)):
                    await slots.emptied()
            else:
                await slots.emptied()
    if slots.living:
        log.warning("the runner leaves with sessions", sessions=len(slots.living))


async def _ask(to_sessions: grpc.aio.Channel, runner: str) -> None:
    """Ask for ever that its sessions be moved; whoever owns one may need to be told again."""
    stub = sessions_pb2_grpc.SessionsStub(to_sessions)
    request = sessions_pb2.DrainRunnerRequest(runner=runner)
    while True:
        try:
            await call(stub.DrainRunner, request, sessions_pb2.DrainRunnerResponse, timeout_s=ANSWER_WITHIN_S)
        except SluiceError as error:
            log.warning("nobody moves the sessions", error=error.message)
        await asyncio.sleep(ASK_EVERY_S)
