"""Playlists as text, and what a request for one may ask (RFC 8216, draft-pantos-hls-rfc8216bis). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil
from typing import Final

from services.common.errors import InvalidError
from services.common.media.mpegts import CLOCK_HZ
from services.ingest.transports.hls.shelf import Segment, Shelf

# Whole frames of every usual rate from 10 to 60 fps last from 85 % of it to all of it, as §4.4.4.9 wants.
PART_TARGET: Final = CLOCK_HZ * 22 // 100
PART_HOLD_BACK: Final = 3 * PART_TARGET  # §4.4.3.8: twice is a must, three times is wiser
HOLD_BACK_TARGETS: Final = 3  # a must
PARTS_OF_TARGETS: Final = 3  # parts are listed for so many target durations at the end (§6.2.2)
AHEAD_SEGMENTS: Final = 2  # a request for what is further ahead is a mistake (§6.2.5.2)
AHEAD_PARTS: Final = ceil(Fraction(3 * CLOCK_HZ, PART_TARGET))  # the Advance Part Limit, same place
VERSION: Final = 6
MEDIA_NAME: Final = re.compile(r"([0-9a-z]{1,16})-(\d{1,16})(?:\.(\d{1,6}))?\.ts")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a playlist must have before it is worth sending; anything will do if `number` is None."""

    number: int | None = None
    part: int | None = None

    def checked(self, shelf: Shelf) -> Wanted:
        """Raises InvalidError for what no client asks that has read the playlist."""
        if self.number is None:
            if self.part is not None:
                raise InvalidError("_HLS_part comes with _HLS_msn", field="_HLS_part")
            return self
        if self.number > shelf.next_number - 1 + AHEAD_SEGMENTS:
            raise InvalidError("_HLS_msn is further ahead than two segments", field="_HLS_msn")
        if self.part is not None and self.part > _newest_part(shelf, self.number) + AHEAD_PARTS:
            raise InvalidError("_HLS_part is too far ahead", field="_HLS_part")
        return self

    def met(self, shelf: Shelf) -> bool:
        return self.number is None or shelf.ended or shelf.has(self.number, self.part)


def _newest_part(shelf: Shelf, number: int) -> int:
    segment = shelf.segment(number)
    return segment.listed_parts if segment is not None else 0


@dataclass(frozen=True, slots=True)
class MediaName:
    """A file: a segment, or one of its parts. `token` tells the files of one packager from another's."""

    token: str
    number: int
    part: int | None = None

    def __str__(self) -> str:
        part = "" if self.part is None else f".{self.part}"
        return f"{self.token}-{self.number}{part}.ts"

    @classmethod
    def parse(cls, text: str) -> MediaName | None:
        found = MEDIA_NAME.fullmatch(text)
        if found is None:
            return None
        return cls(found[1], int(found[2]), None if found[3] is None else int(found[3]))


def media(shelf: Shelf, token: str) -> str:
    """The media playlist. A player that knows nothing of parts finds all that it needs."""
    return "\n".join([*_head(shelf), *_segments(shelf, token), *_tail(shelf, token), ""])


def _head(shelf: Shelf) -> Iterator[str]:
    yield "#EXTM3U"
    yield f"#EXT-X-VERSION:{VERSION}"
    yield f"#EXT-X-TARGETDURATION:{shelf.target_s}"
    yield (
        "#EXT-X-SERVER-CONTROL:CAN-BLOCK-RELOAD=YES,"
        f"PART-HOLD-BACK={seconds(PART_HOLD_BACK)},HOLD-BACK={HOLD_BACK_TARGETS * shelf.target_s:.1f}"
    )
    yield f"#EXT-X-PART-INF:PART-TARGET={seconds(PART_TARGET)}"
    yield f"#EXT-X-MEDIA-SEQUENCE:{shelf.first_number}"
    yield f"#EXT-X-DISCONTINUITY-SEQUENCE:{shelf.discontinuities}"


def _segments(shelf: Shelf, token: str) -> Iterator[str]:
    left = sum(segment.ticks or 0 for segment in shelf.listed)
    for segment in shelf.listed:
        assert segment.ticks is not None
        yield from _begin(segment)
        left -= segment.ticks
        if not shelf.ended and left < PARTS_OF_TARGETS * shelf.target_s * CLOCK_HZ:
            yield from _parts(segment, token)
        yield f"#EXTINF:{seconds(segment.ticks)},"
        yield str(MediaName(token, segment.number))


def _tail(shelf: Shelf, token: str) -> Iterator[str]:
    if shelf.ended:
        yield "#EXT-X-ENDLIST"
        return
    if shelf.open is not None and shelf.next_part:
        yield from _begin(shelf.open)
        yield from _parts(shelf.open, token)
    hinted = MediaName(token, shelf.next_number, shelf.next_part)
    yield f'#EXT-X-PRELOAD-HINT:TYPE=PART,URI="{hinted}"'


def _begin(segment: Segment) -> Iterator[str]:
    if segment.discontinuity:
        yield "#EXT-X-DISCONTINUITY"
    begun = datetime.fromtimestamp(segment.unix_s, UTC).isoformat(timespec="milliseconds")
    yield f"#EXT-X-PROGRAM-DATE-TIME:{begun.replace('+00:00', 'Z')}"


def _parts(segment: Segment, token: str) -> Iterator[str]:
    for index, part in enumerate(segment.parts):
        if part.ticks is not None:
            independent = ",INDEPENDENT=YES" if part.independent else ""
            name = MediaName(token, segment.number, index)
            yield f'#EXT-X-PART:DURATION={seconds(part.ticks)},URI="{name}"{independent}'


def seconds(ticks: int) -> str:
    return f"{ticks / CLOCK_HZ:.5f}"


@dataclass(frozen=True, slots=True)
class Rendition:
    """What a player wants to know before it begins: RFC 6381's names of the codecs, and the size."""

    codecs: tuple[str, ...]
    size: tuple[int, int] | None
    bits_per_second: int  # at most


def multivariant(rendition: Rendition, uri: str) -> str:
    """A playlist of the only rendition that there is, whose playlist is at `uri`."""
    facts = [f"BANDWIDTH={rendition.bits_per_second}", f'CODECS="{",".join(rendition.codecs)}"']
    if rendition.size is not None:
        facts.append("RESOLUTION={}x{}".format(*rendition.size))
    return f"#EXTM3U\n#EXT-X-VERSION:{VERSION}\n#EXT-X-STREAM-INF:{','.join(facts)}\n{uri}\n"
