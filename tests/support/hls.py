"""A playlist as a player reads it, with the rules that it must keep."""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass
class Listed:
    """A segment, or the parts of one that is not whole yet."""

    number: int
    uri: str = ""  # empty: not whole yet
    duration_s: float = 0.0
    discontinuity: bool = False
    date: str = ""
    parts: list[tuple[str, float, bool]] = field(default_factory=list)  # uri, seconds, independent


@dataclass
class Playlist:
    target_s: int = 0
    part_target_s: float = 0.0
    control: str = ""
    sequence: int = -1
    discontinuity_sequence: int = 0
    segments: list[Listed] = field(default_factory=list)
    begun: Listed | None = None
    hint: str = ""
    ended: bool = False

    @property
    def newest(self) -> tuple[int, int]:
        """What a player asks for next: segment and part."""
        if self.begun is not None:
            return self.begun.number, len(self.begun.parts)
        return self.sequence + len(self.segments), 0

    @property
    def parts(self) -> list[tuple[str, float, bool]]:
        whole = [part for segment in self.segments for part in segment.parts]
        return whole + (self.begun.parts if self.begun else [])


def read(text: str) -> Playlist:
    """Parse `text`, every line of which must be known."""
    found = Playlist()
    lines = text.splitlines()
    assert lines[0] == "#EXTM3U"
    current: Listed | None = None
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if _of_playlist(found, name, value):
            continue
        current = current or Listed(found.sequence + len(found.segments))
        if line.startswith("#"):
            _of_segment(current, name, value)
        else:
            current.uri = line
            found.segments.append(current)
            current = None
    found.begun = current
    return found


def _of_playlist(found: Playlist, name: str, value: str) -> bool:
    match name:
        case "#EXT-X-TARGETDURATION":
            found.target_s = int(value)
        case "#EXT-X-PART-INF":
            found.part_target_s = float(value.removeprefix("PART-TARGET="))
        case "#EXT-X-SERVER-CONTROL":
            found.control = value
        case "#EXT-X-MEDIA-SEQUENCE":
            found.sequence = int(value)
        case "#EXT-X-DISCONTINUITY-SEQUENCE":
            found.discontinuity_sequence = int(value)
        case "#EXT-X-PRELOAD-HINT":
            hint = re.fullmatch(r'TYPE=PART,URI="([^"]+)"', value)
            assert hint, value
            found.hint = hint[1]
        case "#EXT-X-ENDLIST":
            found.ended = True
        case _:
            return name == "#EXT-X-VERSION"
    return True


def _of_segment(segment: Listed, name: str, value: str) -> None:
    match name:
        case "#EXT-X-DISCONTINUITY":
            segment.discontinuity = True
        case "#EXT-X-PROGRAM-DATE-TIME":
            segment.date = value
        case "#EXT-X-PART":
            part = re.fullmatch(r'DURATION=([\d.]+),URI="([^"]+)"(,INDEPENDENT=YES)?', value)
            assert part, value
            segment.parts.append((part[2], float(part[1]), bool(part[3])))
        case _:
            assert name == "#EXTINF", name
            segment.duration_s = float(value.removesuffix(","))


def check(playlist: Playlist) -> None:
    """What RFC 8216 and its successor's draft want of every playlist, whatever the pictures did."""
    assert playlist.ended is not bool(playlist.hint)
    for segment in playlist.segments:
        assert round(segment.duration_s) <= playlist.target_s
        assert sum(duration for _, duration, _ in segment.parts) <= segment.duration_s + 0.001
    assert all(0 < duration <= playlist.part_target_s for _, duration, _ in playlist.parts)
    hold_back = re.search(r"PART-HOLD-BACK=([\d.]+),HOLD-BACK=([\d.]+)", playlist.control)
    assert hold_back
    assert float(hold_back[1]) >= 2 * playlist.part_target_s
    assert float(hold_back[2]) >= 3 * playlist.target_s
