"""What a stream costs the edge, in by WHIP and out by WHEP, beside an echo that decodes and encodes.

The ingest process is the real one, with MPEG-TS and trickle to a runner that copies; publishers, runners and
viewers are in other processes. 512x512, 30 fps, 1 Mbit/s of H.264 with Opus. What is counted is the processor
time of the ingest process alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import httpx
import psutil

from services.ingest.stream_keys import StreamKeys
from tests.bench import edge_load
from tests.bench.figures import Figure, percentile, show
from tests.bench.relay import child, cpu_s, heard
from tests.bench.webrtc_echo import echoing
from tests.support.stack import ROOT, free_ports, until

STREAMS: Final = 12
MORE_VIEWERS: Final = 12
SETTLE_S: Final = 5.0
MEASURED_S: Final = 15.0
START_S: Final = 60.0  # all clients, one after the other
LATE_MS_P50: Final = 20.0  # publishers that are later than this did not offer the load
LEAST: Final = 0.95  # of the pictures must arrive
SECRET: Final = "a secret of a benchmark"
LISTENERS: Final = (
    "LISTEN",
    "TRICKLE_LISTEN",
    "PUBLIC_TRICKLE_LISTEN",
    "BRIDGE_LISTEN",
    "RTMP_LISTEN",
    "WEBRTC_LISTEN",
    "METRICS_LISTEN",
)


@contextmanager
def edge(nats_url: str, sessions: str, directory: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A real ingest process; yields its URL and the process."""
    ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
    settings = {
        **{name: f"127.0.0.1:{port}" for name, port in ports.items()},
        "NATS_URL": nats_url,
        "SESSION_MANAGER_ADDRESS": sessions,
        "OUTBOX_PATH": str(directory / "outbox.sqlite3"),
        "STREAM_SECRET": SECRET,
        "LOG_LEVEL": "warning",
    }
    url = f"http://127.0.0.1:{ports['LISTEN']}"
    environment = {**os.environ, **{f"SLUICE_INGEST_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "services.ingest"]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            until(lambda: answers(url), 20, "ingest serves")
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def percent_of_a_core(process: psutil.Process) -> float:
    """The processor time of `process` over the measured time."""
    before_s, began_s = cpu_s(process), time.monotonic()
    time.sleep(MEASURED_S)
    return (cpu_s(process) - before_s) / (time.monotonic() - began_s) * 100


def echo_percent() -> float:
    """One stream through the echo."""
    with echoing() as (url, pid), child(partial(edge_load.through_echo, url)) as (_, client):
        heard(client, START_S)
        time.sleep(SETTLE_S)
        return percent_of_a_core(psutil.Process(pid))


@dataclass(frozen=True, slots=True)
class Load:
    """The clients' processes, by their pipes."""

    publishers: Connection
    viewers: Connection

    def measured(self, ingest: psutil.Process, what: str) -> float:
        """The percentage of a core, of an edge that was offered the whole load and passed it on."""
        time.sleep(SETTLE_S)
        self.publishers.send("measure")
        self.viewers.send("how many")
        before, _ = heard(self.viewers)
        percent = percent_of_a_core(ingest)
        self.publishers.send("report")
        self.viewers.send("how many")
        sent: edge_load.Sent = heard(self.publishers)
        after, lost = heard(self.viewers)
        late_ms = percentile(sent.late_ms, 50)
        sys.stderr.write(
            f"{what}: {percent:.1f} % of a core; {sent.pictures} pictures went in, {late_ms:.1f} ms late,"
            f" {after - before} came out, {lost} packets lost so far\n"
        )
        if late_ms > LATE_MS_P50 or after - before < LEAST * sent.pictures:
            raise SystemExit("no figures from a machine so busy")
        return percent


def edge_percent() -> tuple[float, float]:
    """All streams with a viewer each, and what the further viewers add; both for all of them."""
    keys = StreamKeys(SECRET.encode())
    streams = [f"str_{number:08d}" for number in range(STREAMS)]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _, neighbours = stack.enter_context(child(edge_load.neighbours))
        nats_url, sessions = heard(neighbours, START_S)
        url, ingest = stack.enter_context(edge(nats_url, sessions, directory))
        whip = [f"{url}/whip/{keys.publish(stream)}" for stream in streams]
        whep = [f"{url}/whep/{keys.playback(stream)}" for stream in streams]
        _, publishers = stack.enter_context(child(partial(edge_load.publishers, whip)))
        bits = heard(publishers, START_S)
        sys.stderr.write(f"{STREAMS} streams of {bits / 1e6:.2f} Mbit/s\n")
        _, viewers = stack.enter_context(child(partial(edge_load.viewers, whep)))
        heard(viewers, START_S)
        load = Load(publishers, viewers)
        before = load.measured(ingest, "a viewer each")
        others = [whep[number % STREAMS] for number in range(MORE_VIEWERS)]
        with child(partial(edge_load.viewers, others)) as (_, more):
            heard(more, START_S)
            with_more = load.measured(ingest, f"{MORE_VIEWERS} viewers more")
        after = load.measured(ingest, "a viewer each again")  # a machine's neighbours come and go
    return (before + after) / 2, with_more - (before + after) / 2


def main() -> None:
    echo = echo_percent()
    sys.stderr.write(f"one stream through the echo: {echo:.1f} % of a core\n")
    all_streams, more_viewers = edge_percent()
    each = all_streams / STREAMS
    show(
        [
            Figure("edge_cpu", "streams_per_core", 100 / each, "1", 100 / echo),
            Figure("edge_cpu", "percent_per_stream", each, "% of a core", echo),
            Figure("edge_cpu", "ratio_to_echo", echo / each, "1"),
            Figure("edge_cpu", "percent_per_viewer", more_viewers / MORE_VIEWERS, "% of a core"),
        ]
    )


if __name__ == "__main__":
    main()
