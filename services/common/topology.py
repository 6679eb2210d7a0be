"""Every name on NATS, in one place: subjects, key-value buckets and JetStream streams. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """A key-value bucket. With `markers_s`, keys may carry a TTL and their expiry is visible to watchers.

    `lasting` keys are put back, as they were last seen, into a bucket that NATS had lost; the others are
    renewed by whom they are about.
    """

    name: str
    markers_s: int = 0
    lasting: bool = True


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
REPLICAS: Final = BucketSpec("replicas", markers_s=60, lasting=False)
WAITERS: Final = BucketSpec("waiters", markers_s=60, lasting=False)

USAGE: Final = StreamSpec("USAGE", ("usage.>",), max_age_s=35 * 86_400, max_bytes=4 << 30)
EVENTS: Final = StreamSpec("EVENTS", ("events.>",), max_age_s=7 * 86_400, max_bytes=1 << 30)

# Written and never read: only a real publish tells that NATS stores.
PROBE: Final = StreamSpec("PROBE", ("probe.>",), max_age_s=60, max_bytes=1 << 18, duplicate_window_s=10)
PROBE_SUBJECT: Final = "probe.store"

HEARTBEATS: Final = "sluice.heartbeat.*"
RUNNER_FAULTS: Final = "sluice.runner_fault.*"
KEYS_REVOKED: Final = "sluice.key_revoked"


def heartbeat(runner: str) -> str:
    return f"sluice.heartbeat.{runner}"


def runner_fault(runner: str) -> str:
    return f"sluice.runner_fault.{runner}"


def usage(tenant: str, session: str) -> str:
    return f"usage.{tenant}.{session}"


def usage_confirmed(source: str) -> str:
    return f"sluice.usage_confirmed.{source}"


def session_event(tenant: str, session: str) -> str:
    return f"events.session.{tenant}.{session}"


def slot_key(runner: str, slot: int) -> str:
    return f"{runner}.{slot}"
