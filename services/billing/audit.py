"""Sums the whole ledger over and over: it must be zero."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog
from prometheus_client import Gauge

from services.billing.store import Store, StoreThread
from services.common.errors import UnavailableError

log = structlog.get_logger()

IMBALANCE: Final = Gauge(
    "sluice_ledger_imbalance_micro", "The sum of all entries; anything but 0 is an alarm."
)
EVERY_S: Final = 30.0


async def audit(store: StoreThread) -> None:
    """Check for ever."""
    while True:
        try:
            imbalance_micro = await store.call(Store.imbalance_micro)
        except UnavailableError as error:
            log.warning("the ledger could not be checked", error=error.message)
        else:
            IMBALANCE.set(imbalance_micro)
            if imbalance_micro:
                log.error("the ledger does not balance", micro=imbalance_micro)
        await asyncio.sleep(EVERY_S)
