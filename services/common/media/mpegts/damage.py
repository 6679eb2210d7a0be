"""What a demuxer had to throw away: every loss has a count, so that no stream looks better than it was."""

from __future__ import annotations

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class DemuxStats:
    """What a demuxer had to throw away, since it was made.

    `continuity_errors` are gaps in a followed stream's counter, `damaged_units` what was not whole, therefore
    or otherwise. `unreadable_packets` say of themselves that they are broken, or are scrambled.
    `late_payload` counts packets that belong to a unit which had been taken for whole.
    """

    resyncs: int = 0
    continuity_errors: int = 0
    damaged_units: int = 0
    bytes_skipped: int = 0
    oversized_units: int = 0
    unreadable_packets: int = 0
    damaged_sections: int = 0
    late_payload: int = 0


@dataclass(slots=True)
class Tally:
    """`DemuxStats` in the making, shared by the parts of one demuxer."""

    resyncs: int = 0
    continuity_errors: int = 0
    damaged_units: int = 0
    bytes_skipped: int = 0
    oversized_units: int = 0
    unreadable_packets: int = 0
    damaged_sections: int = 0
    late_payload: int = 0

    def stats(self) -> DemuxStats:
        return DemuxStats(*astuple(self))
