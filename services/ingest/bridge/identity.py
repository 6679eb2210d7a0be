"""Whose a session is, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Ends that are nobody's fault; of any other, clients are told as of an error.
ORDERLY: Final = frozenset(
    {"stopped", "stream_deleted", "input_ended", "publisher_gone", "max_duration", "moved"}
)
# Ends of a session's part at this bridge: it goes on at another one, or may.
GOES_ON: Final = frozenset({"moved", "bridge_lost"})


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose session this is."""

    session: str
    stream: str
    tenant: str
    pipeline: str
    complete: bool
    traceparent: str

    @property
    def exemplar(self) -> dict[str, str]:
        """What leads from a metric to this session's trace."""
        return {"trace_id": self.traceparent.split("-")[1]} if self.traceparent else {}


@dataclass(frozen=True, slots=True)
class Closed:
    """Why there is no more."""

    reason: str
    message: str
