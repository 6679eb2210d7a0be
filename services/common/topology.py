"""Every name on NATS, in one place: subjects, key-value buckets and JetStream streams. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """A key-value bucket. With `markers_s`, keys may carry a TTL and their expiry is visible to watchers."""

    name: str
    markers_s: int = 0


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A JetStream stream; `duplicate_window_s` bounds transport de-duplication, the ledger's is for ever."""

    name: str
    subjects: tuple[str, ...]
    max_age_s: int
    max_bytes: int
    duplicate_window_s: int = 120


RUNNERS: Final = BucketSpec("runners")
SLOTS: Final = BucketSpec("slots")
STREAMS: Final = BucketSpec("streams")
SESSIONS: Final = BucketSpec("sessions", markers_s=60)
REPLICAS: Final = BucketSpec("replicas", markers_s=60)

USAGE: Final = StreamSpec("USAGE", ("usage.>",), max_age_s=35 * 86_400, max_bytes=4 << 30)
EVENTS: Final = StreamSpec("EVENTS", ("events.>",), max_age_s=7 * 86_400, max_bytes=1 << 30)

HEARTBEATS: Final = "sluice.heartbeat.*"
KEYS_REVOKED: Final = "sluice.key_revoked"


def heartbeat(runner: str) -> str:
    return f"sluice.heartbeat.{runner}"


def usage(tenant: str, session: str) -> str:
    return f"usage.{tenant}.{session}"


def usage_confirmed(source: str) -> str:
    return f"sluice.usage_confirmed.{source}"


def session_event(tenant: str, session: str) -> str:
    return f"events.session.{tenant}.{session}"


def slot_key(runner: str, slot: int) -> str:
    return f"{runner}.{slot}"
