"""MPEG-TS in and out without a frame of delay: a unit written is a unit read at its last byte. Pure.

Written by hand because libav's muxer and demuxer hold back one to six frames between them; its tests check
it against them. The rule it keeps: bytes from the world never raise; what is damaged is dropped and counted.
"""

from services.common.media.mpegts.damage import DemuxStats
from services.common.media.mpegts.demuxer import Demuxer
from services.common.media.mpegts.muxer import AUDIO_PIDS, PCR_LEAD, PMT_PID, PROGRAM, VIDEO_PID, Muxer
from services.common.media.mpegts.packets import PACKET, PAYLOAD
from services.common.media.mpegts.pes import LARGEST_BOUNDED, LARGEST_UNIT
from services.common.media.mpegts.splitters import opus_ticks
from services.common.media.mpegts.tables import crc32
from services.common.media.mpegts.units import CLOCK_HZ, WRAP, AccessUnit, Codec, unwrap

__all__ = [
    "AUDIO_PIDS",
    "CLOCK_HZ",
    "LARGEST_BOUNDED",
    "LARGEST_UNIT",
    "PACKET",
    "PAYLOAD",
    "PCR_LEAD",
    "PMT_PID",
    "PROGRAM",
    "VIDEO_PID",
    "WRAP",
    "AccessUnit",
    "Codec",
    "DemuxStats",
    "Demuxer",
    "Muxer",
    "crc32",
    "opus_ticks",
    "unwrap",
]
