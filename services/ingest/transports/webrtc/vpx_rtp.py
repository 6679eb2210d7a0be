"""VP8 (RFC 7741) and VP9 (RFC 9628) in RTP: frames for a decoder, and VP8 for who takes only that. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from services.ingest.transports.webrtc.rtp import PAYLOAD_BYTES

EXTENDED: Final = 0x80
START: Final = 0x10


def vp8_frame(parts: Iterable[bytes]) -> bytes | None:
    """The frame of its payloads; None when they make none."""
    frame = bytearray()
    for payload in parts:
        if payload:
            size = _vp8_descriptor(payload)
            if size is None:
                return None
            frame += payload[size:]
    return bytes(frame) or None


def vp8_begins_keyframe(payload: bytes) -> bool:
    size = _vp8_descriptor(payload)
    # RFC 6386 §9.1: the lowest bit of a key frame's first byte is 0.
    return size is not None and payload[0] & 0x1F == START and vp8_is_keyframe(payload[size:])


def vp8_is_keyframe(frame: bytes) -> bool:
    return bool(frame) and not frame[0] & 1


def _vp8_descriptor(payload: bytes) -> int | None:
    """How long the descriptor is; None where nothing is behind it."""
    if not payload:
        return None
    size = 1
    if payload[0] & EXTENDED:
        if len(payload) < 2:
            return None
        flags = payload[1]
        size = 2
        if flags & 0x80:  # picture ID, of one byte or two
            if len(payload) <= size:
                return None
            size += 2 if payload[size] & 0x80 else 1
        size += bool(flags & 0x40) + bool(flags & 0x30)
    return size if size < len(payload) else None


def vp8_payloads(frame: bytes) -> list[bytes]:
    """The payloads of a frame, each with the shortest descriptor."""
    count = -(-len(frame) // (PAYLOAD_BYTES - 1))
    size = -(-len(frame) // count)
    return [
        bytes((START if place == 0 else 0,)) + frame[place : place + size]
        for place in range(0, len(frame), size)
    ]


def vp9_frame(parts: Iterable[bytes]) -> bytes | None:
    """The frame of its payloads (of one spatial layer); None when they make none."""
    frame = bytearray()
    for payload in parts:
        if payload:
            size = _vp9_descriptor(payload)
            if size is None:
                return None
            frame += payload[size:]
    return bytes(frame) or None


def vp9_begins_keyframe(payload: bytes) -> bool:
    """Not predicted from another picture (P), and the first of its frame (B)."""
    return _vp9_descriptor(payload) is not None and payload[0] & 0x48 == 0x08


def vp9_is_keyframe(frame: bytes) -> bool:
    """VP9 bitstream §6.2: frame marker, profile, show_existing_frame, frame_type."""
    if not frame:
        return False
    # frame_marker 10, two profile bits (profile 3 has one more), show_existing_frame, frame_type
    shift = 1 if frame[0] & 0x30 == 0x30 else 2
    return frame[0] >> shift & 0b11 == 0


def _vp9_descriptor(payload: bytes) -> int | None:
    if not payload:
        return None
    flags, size = payload[0], 1
    flexible = bool(flags & 0x10)
    if flags & 0x80:
        if len(payload) <= size:
            return None
        size += 2 if payload[size] & 0x80 else 1
    if flags & 0x20:
        size += 1 if flexible else 2
    if flexible and flags & 0x40:
        for _ in range(3):
            if len(payload) <= size:
                return None
            size += 1
            if not payload[size - 1] & 1:
                break
    if flags & 0x02:
        if len(payload) <= size:
            return None
        size = _vp9_structure(payload, size)
    return size if size < len(payload) else None


def _vp9_structure(payload: bytes, place: int) -> int:
    """The place behind the scalability structure; beyond the end where it is cut."""
    head = payload[place]
    place += 1
    if head & 0x10:
        place += 4 * ((head >> 5) + 1)
    if head & 0x08:
        if len(payload) <= place:
            return len(payload)
        pictures = payload[place]
        place += 1
        for _ in range(pictures):
            if len(payload) <= place:
                return len(payload)
            place += 1 + (payload[place] >> 2 & 3)
    return place
