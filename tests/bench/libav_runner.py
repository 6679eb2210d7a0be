"""The alternative that `latency` compares with: a runner that reads and writes MPEG-TS through libav.

It is what runners on PyAV do: a segment is fetched into a pipe, libav demultiplexes and decodes, the picture
goes to RGB and back, libav encodes and muxes. The encoder's settings are ours; the containers' are libav's
own, save that its muxer flushes after every packet.
"""

from __future__ import annotations

import http.client
import os
import sys
import threading
from fractions import Fraction
from typing import BinaryIO, Final
from urllib.parse import urlsplit

import av
from av.video.frame import PictureType

from services.common.trickle.protocol import CLOSED

FPS: Final = 30
READ_BYTES: Final = 64 * 1024


def fetch(host: str, into: BinaryIO) -> None:
    """The segments of `in`, one after the other."""
    connection = http.client.HTTPConnection(host)
    index = 0
    with into:
        while True:
            connection.request("GET", f"/in/{index}")
            answer = connection.getresponse()
            if answer.status != 200 or answer.getheader(CLOSED):
                return
            while data := answer.read1(READ_BYTES):
                into.write(data)
                into.flush()
            index += 1


class Sink:
    """What libav's muxer writes to: one POST to `out` for each second of pictures."""

    def __init__(self, host: str) -> None:
        self._connection = http.client.HTTPConnection(host)
        self._index = -1
        self._open = False

    def write(self, data: bytes) -> int:
        if not self._open:
            self._index += 1
            self._connection.putrequest("POST", f"/out/{self._index}")
            self._connection.putheader("Transfer-Encoding", "chunked")
            self._connection.endheaders()
            self._open = True
        self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))
        return len(data)

    def cut(self) -> None:
        if self._open:
            self._connection.send(b"0\r\n\r\n")
            self._connection.getresponse().read()
            self._open = False


def main(url: str) -> None:
    host = urlsplit(url).netloc
    read_end, write_end = os.pipe()
    threading.Thread(target=fetch, args=(host, os.fdopen(write_end, "wb", 0)), daemon=True).start()
    sink = Sink(host)
    with (
        av.open(os.fdopen(read_end, "rb", 0), "r", format="mpegts") as source,
        av.open(sink, "w", format="mpegts", options={"flush_packets": "1"}) as out,
    ):
        taken = source.streams.video[0]
        made = out.add_stream("libx264", rate=FPS)
        made.width, made.height, made.pix_fmt = taken.width, taken.height, "yuv420p"
        made.time_base = made.codec_context.time_base = Fraction(1, 90_000)
        made.codec_context.thread_count = 1
        made.max_b_frames, made.gop_size = 0, FPS
        made.options = {"preset": "superfast", "tune": "zerolatency", "forced-idr": "1"}
        for number, frame in enumerate(source.decode(taken)):
            again = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), format="rgb24")
            again.pts, again.time_base = frame.pts, frame.time_base
            if number % FPS == 0:
                again.pict_type = PictureType.I
                sink.cut()
            out.mux(made.encode(again))
        out.mux(made.encode(None))
    sink.cut()


if __name__ == "__main__":
    main(sys.argv[1])
