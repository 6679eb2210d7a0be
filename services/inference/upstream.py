"""Keeps a channel of a session at its bridge written, whatever becomes of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import ClientSession

from services.common.errors import SluiceError
from services.common.trickle.protocol import NEXT, ChannelClosedError
from services.common.trickle.publisher import Publisher

log = structlog.get_logger()
RETRY_S: Final = 0.5


async def keep_publishing(
    session: ClientSession,
    url: str,
    content_type: str,
    publish: Callable[[Publisher], Awaitable[None]],
    closed: Callable[[], None],
) -> None:
    """Call `publish` over and over, for ever; a bridge that cannot be reached is tried again.

    A channel that was closed is not: `closed` is called, and nothing more is published.
    """
    while True:
        try:
            async with Publisher(session, url, start=NEXT, content_type=content_type) as publisher:
                while True:
                    await publish(publisher)
        except ChannelClosedError:
            closed()
            await asyncio.Event().wait()
        except SluiceError as error:
            log.warning("the bridge is out of reach", writing=content_type, error=error.message)
            await asyncio.sleep(RETRY_S)
