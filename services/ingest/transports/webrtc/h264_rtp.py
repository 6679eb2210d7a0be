"""H.264 in RTP (RFC 6184): pictures as payloads and payloads as pictures. Pure.

Both ways a picture is Annex B without delimiter. Payloads are made the same for every viewer, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.common.media.h264 import IDR, SPS, START_CODE, nal_units
from services.ingest.transports.webrtc.rtp import PAYLOAD_BYTES

STAP_A: Final = 24
FU_A: Final = 28
DELIMITER: Final = 9
KEYFRAME_BEGINS: Final = frozenset({SPS, IDR, DELIMITER})


def payloads(picture: bytes) -> list[bytes]:
    """The payloads of a picture: small units together (STAP-A), large ones in parts of one size (FU-A)."""
    made: list[bytes] = []
    small: list[bytes] = []
    gathered = 1
    for nal in nal_units(picture):
        if nal[0] & 0x1F == DELIMITER:
            continue
        if len(nal) > PAYLOAD_BYTES or gathered + 2 + len(nal) > PAYLOAD_BYTES:
            _flush(small, made)
            small, gathered = [], 1
        if len(nal) > PAYLOAD_BYTES:
            made += _fragments(nal)
        else:
            small.append(nal)
            gathered += 2 + len(nal)
    _flush(small, made)
    return made


def _flush(small: list[bytes], made: list[bytes]) -> None:
    if len(small) == 1:
        made += small
    elif small:
        importance = max(nal[0] & 0x60 for nal in small)
        parts = b"".join(len(nal).to_bytes(2, "big") + nal for nal in small)
        made.append(bytes((importance | STAP_A,)) + parts)


def _fragments(nal: bytes) -> list[bytes]:
    indicator, kind = nal[0] & 0xE0 | FU_A, nal[0] & 0x1F
    count = -(-(len(nal) - 1) // (PAYLOAD_BYTES - 2))
    size = -(-(len(nal) - 1) // count)
    parts = [nal[place : place + size] for place in range(1, len(nal), size)]
    last = len(parts) - 1
    return [
        bytes((indicator, (0x80 if index == 0 else 0) | (0x40 if index == last else 0) | kind)) + part
        for index, part in enumerate(parts)
    ]


def begins_keyframe(payload: bytes) -> bool:
    """Whether a picture that can be decoded by itself may begin with this payload."""
    if not payload:
        return False
    kind = payload[0] & 0x1F
    if kind == STAP_A and len(payload) > 3:
        return any(each[0] & 0x1F in KEYFRAME_BEGINS for each in _aggregated(payload) or ())
    if kind == FU_A and len(payload) > 1:
        return bool(payload[1] & 0x80) and payload[1] & 0x1F in KEYFRAME_BEGINS
    return kind in KEYFRAME_BEGINS


def picture(parts: Iterable[bytes]) -> bytes | None:
    """The picture of the payloads of one timestamp, in order and complete; None when they make none."""
    nals: list[bytes] = []
    fragments: list[bytes] = []  # of a unit that is not complete
    for payload in filter(None, parts):  # an empty one is padding
        kind = payload[0] & 0x1F
        if kind == FU_A:
            if not _fragment(payload, fragments, nals):
                return None
        elif fragments:
            return None
        elif kind == STAP_A:
            found = _aggregated(payload)
            if found is None:
                return None
            nals += found
        elif 1 <= kind < STAP_A:
            nals.append(payload)
        else:
            return None
    if fragments:
        return None
    return b"".join(START_CODE + nal for nal in nals if nal[0] & 0x1F != DELIMITER) or None


def _fragment(payload: bytes, fragments: list[bytes], nals: list[bytes]) -> bool:
    """Take in a part of a unit; False when it does not belong there."""
    if len(payload) < 2 or bool(payload[1] & 0x80) == bool(fragments):
        return False
    if not fragments:
        fragments.append(bytes((payload[0] & 0xE0 | payload[1] & 0x1F,)))
    fragments.append(payload[2:])
    if payload[1] & 0x40:
        nals.append(b"".join(fragments))
        fragments.clear()
    return True


def _aggregated(payload: bytes) -> list[bytes] | None:
    found = []
    place = 1
    while place < len(payload):
        size = int.from_bytes(payload[place : place + 2], "big")
        nal = payload[place + 2 : place + 2 + size]
        if not nal or len(nal) < size:
            return None
        found.append(nal)
        place += 2 + size
    return found
