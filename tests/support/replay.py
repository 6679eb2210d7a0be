"""Publishes a file as it is, at its own pace: libav's muxer and HTTP client, in a process of its own."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import av

ROOT: Final = Path(__file__).resolve().parents[2]


def start(url: str, path: Path) -> subprocess.Popen[bytes]:
    """Publish `path`, as `ffmpeg -re -i ... -c copy` does."""
    command = [sys.executable, "-m", "tests.support.replay", "--url", url, "--path", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--path", required=True)
    asked = parser.parse_args()
    options = {"method": "POST", "flush_packets": "1"}
    with av.open(asked.path) as source, av.open(asked.url, "w", format="mpegts", options=options) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        started_s = time.monotonic()
        first_s: float | None = None
        for packet in source.demux():
            if packet.dts is None or packet.time_base is None:
                continue  # the end
            at_s = float(packet.dts * packet.time_base)
            first_s = at_s if first_s is None else first_s
            time.sleep(max(0.0, started_s + at_s - first_s - time.monotonic()))
            packet.stream = streams[packet.stream_index]
            out.mux_one(packet)


if __name__ == "__main__":
    main()
