"""H.264 to pictures and back, one in and one out: no frame threads, no look-ahead, no hidden frame of delay.

The rule it keeps: a bad picture costs that picture, never the stream. Times are 90 kHz ticks on both sides; colours
are BT.709 from 720 lines on and BT.601 below, limited range, unless a stream says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags, ThreadType
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter

from services.common.errors import InvalidError
from services.common.media.mpegts import CLOCK_HZ, AccessUnit, Codec

TICK: Final = Fraction(1, CLOCK_HZ)
