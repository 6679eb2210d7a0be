"""Bugs that such systems have, planted into the running code to see whether the world finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from protos.events.v1 import events_pb2
from services.common.bus import Bucket, Bus
from services.router.fleet import Fleet
from services.router.slots import Slots


@contextmanager
def silence_trusted() -> Iterator[None]:
    """A router whose own link was down takes the silence of all others for their death, and forgets them."""

    def always(self: Fleet, now_s: float) -> float:
        return float("inf")

    with (
        patch.object(Fleet, "_link_for_s", always),
        patch("services.router.fleet.FORGET_AFTER_S", 4.0),
        patch("services.router.slots.FORGET_EVERY_S", 1.0),
    ):
        yield


@contextmanager
def retried_with_a_new_id() -> Iterator[None]:
    """A usage window whose publish timed out is sent again under another name."""
    store = Bus.store
    again: dict[str, int] = {}

    async def renamed(self: Bus, subject: str, payload: bytes, *, message_id: str) -> None:
        if subject.startswith("usage."):
            window = events_pb2.UsageWindow.FromString(payload)
            tries = again[window.id] = again.get(window.id, -1) + 1
            window.seq += 1000 * tries
            window.id = f"{window.session}:{window.epoch}:{window.seq}"
            payload, message_id = window.SerializeToString(), f"{message_id}+{tries}"
        await store(self, subject, payload, message_id=message_id)

    with patch.object(Bus, "store", renamed):
        yield


@contextmanager
def stale_watch_trusted() -> Iterator[None]:
    """A slot that the view shows as free is written without comparing: the view may be old."""

    async def blind(self: Slots, key: str, slot: events_pb2.Slot, *, after: int) -> int | None:
        bucket: Bucket = self._slots
        value = slot.SerializeToString()
        newest = await bucket.get(key)
        if newest is None:
            return await bucket.create(key, value)
        return await bucket.update(key, value, newest.revision)

    with patch.object(Slots, "_write", blind):
        yield


PLANTED: Final[dict[str, Callable[[], Any]]] = {
    "silence": silence_trusted,
    "new_id": retried_with_a_new_id,
    "stale_watch": stale_watch_trusted,
}

# By which evils, and within how many seeds, each is found at the latest.
FOUND_BY: Final = {
    "silence": ("cut_nats,rush", 8),
    "new_id": ("nats_forgets_answers", 4),
    "stale_watch": ("watches_lag,rush", 12),
}
