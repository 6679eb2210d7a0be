"""What a pipeline says to its clients, on its way out of the engine: JSON objects, of a size, at a pace.

The rule it keeps: nothing that an author says ends a stream. What cannot go out is counted, and the log is
told once of each kind.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from services.inference.packets import Message, Packet

log = structlog.get_logger()

LONGEST_BYTES: Final = 16 * 1024
PER_SECOND: Final = 50.0
BURST: Final = 50.0
NOT_JSON, TOO_LARGE, TOO_OFTEN = "not_json", "too_large", "too_often"


class Remarks:
    """One stream's. `pts` is of the frame that the pipeline has in hand."""

    def __init__(
        self, slot: int, send: Callable[[Packet], None], now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.pts = 0
        self.refused: Counter[str] = Counter()
        self._slot = slot
        self._send = send
        self._now_s = now_s
        self._left = BURST
        self._at_s = now_s()
        self._lock = threading.Lock()  # an author may have threads of his own

    def take(self, data: object) -> None:
        """Send `data`, or count why not."""
        try:
            text = json.dumps(data, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            self._refuse(NOT_JSON, f"{type(error).__name__}: {error}")
            return
        if not isinstance(data, Mapping):
            self._refuse(NOT_JSON, f"{type(data).__name__} is no JSON object")
        elif len(text) > LONGEST_BYTES:
            self._refuse(TOO_LARGE, f"{len(text)} bytes, of at most {LONGEST_BYTES}")
        elif not self._may_now():
            self._refuse(TOO_OFTEN, f"at most {PER_SECOND:.0f} a second")
        else:
            self._send(Message("said", self._slot, {"pts": self.pts, "text": text}))

    def _may_now(self) -> bool:
        with self._lock:
            now_s = self._now_s()
            self._left = min(BURST, self._left + PER_SECOND * (now_s - self._at_s))
            self._at_s = now_s
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def _refuse(self, kind: str, why: str) -> None:
        with self._lock:
            self.refused[kind] += 1
            first = self.refused[kind] == 1
        if first:
            log.warning("what the pipeline says cannot go out", slot=self._slot, kind=kind, why=why)
