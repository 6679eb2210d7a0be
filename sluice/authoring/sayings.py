"""What a pipeline said while it was rehearsed, and what of it the platform would not have passed on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

LONGEST_BYTES: Final = 16 * 1024  # as the platform has it
KEPT: Final = 10_000


@dataclass(frozen=True, slots=True)
class Saying:
    """Something said, and at which time of the clip, from its first picture."""

    at_s: float
    data: Mapping[str, Any]


class Sayings:
    """`take` is for `Pipeline.hear`. Of more than `KEPT` the first are kept, and all are counted."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.kept: list[Saying] = []
        self.count = 0
        self.dropped: Counter[str] = Counter()

    def take(self, data: object) -> None:
        try:
            text = json.dumps(data, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            self.dropped[f"no JSON: {error}"] += 1
            return
        if not isinstance(data, Mapping):
            self.dropped[f"no JSON object: {type(data).__name__}"] += 1
        elif len(text) > LONGEST_BYTES:
            self.dropped[f"longer than {LONGEST_BYTES} bytes"] += 1
        else:
            self.count += 1
            if len(self.kept) < KEPT:
                self.kept.append(Saying(round(self.at_s, 3), json.loads(text)))
