"""`sluice publish` and `sluice play` as a user types them, against the whole platform."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from tests.support.clips import clip
from tests.support.hls import check, read
from tests.support.stack import Stack, until

SLUICE = str(Path(sys.executable).with_name("sluice"))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Four seconds of 320x240 with a tone."""
    times = [number * 3600 for number in range(100)]
    return clip(tmp_path / "film.mp4", times, audio="aac", audio_s=4.0)


@contextmanager
def command(stack: Stack, *words: str, url: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """`sluice` in the background; it is interrupted at the end of the block, if it still runs."""
    environment = {**stack.environment, "SLUICE_URL": url or stack.url, "SLUICE_API_KEY": stack.key}
    process = subprocess.Popen(
        [SLUICE, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise


def interrupted(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Ctrl-C: status, output, errors."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    return process.returncode, out.decode(), err.decode()


def announced(process: subprocess.Popen[bytes], within_s: float = 20.0) -> str:
    """What a publisher says before it sends."""
    assert process.stdout is not None
    said = ""
    while "(MPEG-TS)" not in said:
        ready, _, _ = select.select([process.stdout], [], [], within_s)
        assert ready, said
        said += os.read(process.stdout.fileno(), 4096).decode()
    return said


class Cut:
    """A way to the platform that can be cut: a TCP proxy in a thread."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._pairs += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Every connection of now breaks."""
        for each in self._pairs:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._pairs.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()


def test_a_film_goes_round_and_round_until_ctrl_c_and_is_played_into_files_and_pipes(
    stack: Stack, film: Path, tmp_path: Path
) -> None:
    mp4, raw = tmp_path / "out.mp4", tmp_path / "out.ts"
    with command(stack, "publish", str(film), "--loop", "--pipeline", "passthrough") as publishing:
        said = announced(publishing)
        stream = said.split()[1]
        for way in ("WHEP", "HLS", "MPEG-TS"):
            assert f"({way})" in said
        playback = next(word for word in said.split() if "/ts/pbk_" in word).rpartition("/")[2]
        session = stack.live_session(stream)
        environment = {**stack.environment, "SLUICE_URL": stack.url, "SLUICE_API_KEY": ""}
        with command(stack, "play", stream, "-o", str(mp4)) as to_mp4:
            with command(stack, "play", stream, "-o", str(raw), "--json") as to_ts:
                piped = subprocess.Popen(
                    [SLUICE, "play", playback, "-o", "-"], env=environment, stdout=subprocess.PIPE
                )
                assert piped.stdout is not None
                head = piped.stdout.read(100_000)
                piped.stdout.close()  # as `| head -c` does
                assert piped.wait(20) == 0
                status, out, _ = interrupted(to_ts)
                assert status == 0
                told = json.loads(out)
                assert told["stopped"]
            status, out, err = interrupted(publishing)
            assert status == 0, err
            assert "ended: input_ended" in out
            played, _ = to_mp4.communicate(timeout=20)
            assert to_mp4.returncode == 0
            assert "ended: input_ended" in played.decode()
    with av.open(io.BytesIO(head), "r", format="mpegts") as container:
        assert next(container.decode(video=0), None) is not None
    with av.open(str(raw), "r") as container:
        assert len(list(container.decode(video=0))) == told["frames"] > 0
    with av.open(str(mp4), "r") as container:
        frames = list(container.decode(video=0))
        assert f"{len(frames)} frames" in played.decode()
        assert frames[0].time is not None
        assert frames[0].time < 0.2, "it begins at the beginning"
    with av.open(str(mp4), "r") as container:
        assert list(container.decode(audio=0))
    ended = stack.ended(session)
    assert ended["end_reason"] == "input_ended"
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".mp4") == ["out.ts"]


def test_a_published_stream_can_be_watched_as_hls(stack: Stack, film: Path) -> None:
    with command(stack, "publish", str(film), "--loop", "--pipeline", "passthrough") as publishing:
        words = announced(publishing).split()
        index = next(word for word in words if word.endswith(".m3u8"))
        stack.live_session(words[1])
        with httpx.Client(timeout=20) as player:
            master = player.get(index)
            assert master.status_code == 200, master.text
            assert "RESOLUTION=320x240" in master.text
            base = index.rpartition("/")[0]
            media = f"{base}/{master.text.splitlines()[-1]}"
            data = b""
            numbers: list[int] = []
            listed = read(player.get(media).text)
            while len(numbers) < 3:
                check(listed)
                for segment in listed.segments:
                    if segment.number not in numbers:
                        numbers.append(segment.number)
                        data += player.get(f"{base}/{segment.uri}").content
                number, part = listed.newest
                answer = player.get(media, params={"_HLS_msn": number, "_HLS_part": part})
                assert answer.status_code == 200, answer.text
                listed = read(answer.text)
        with av.open(io.BytesIO(data), "r", format="mpegts") as container:
            assert len(list(container.decode(video=0))) > 40
        with av.open(io.BytesIO(data), "r", format="mpegts") as container:
            assert list(container.decode(audio=0))


def test_a_connection_that_breaks_is_made_again_and_the_session_goes_on(stack: Stack, film: Path) -> None:
    way = Cut(stack.ports["HTTP"])
    try:
        words = ("publish", str(film), "--loop", "--pipeline", "passthrough", "--json")
        stream = stack.stream()["id"]
        with command(stack, *words[:3], "--stream", stream, "--json", url=way.url) as publishing:
            session = stack.live_session(stream)
            way.cut()

            def connected_again() -> bool:
                shown = stack.session(session)
                return bool(shown["phase"] == "live" and shown.get("fps_out", 0) > 5 and again())

            frames: list[int] = []

            def again() -> bool:
                frames.append(stack.session(session)["frames_out"])
                return len(frames) > 10 and frames[-1] > frames[-5]

            until(connected_again, 20, "pictures come again")
            status, out, err = interrupted(publishing)
        assert status == 0, err
        assert "trying again" in err
        told = json.loads(out)
        assert told["session"] == session, "the same session"
        assert told["connections"] == 2
        assert told["end_reason"] == "input_ended"
    finally:
        way.close()


def test_a_session_that_somebody_stops_is_no_failure(stack: Stack, film: Path) -> None:
    stream = stack.stream()["id"]
    with command(stack, "publish", str(film), "--loop", "--stream", stream, "--json") as publishing:
        session = stack.live_session(stream)
        assert stack.command("stop", session).returncode == 0
        out, err = publishing.communicate(timeout=20)
        assert publishing.returncode == 0, err
        assert json.loads(out)["end_reason"] == "stopped"


def test_a_url_is_published_like_a_file(stack: Stack, film: Path) -> None:
    film = clip(film.with_suffix(".ts"), [number * 3600 for number in range(100)])
    handler = functools.partial(_Quiet, directory=str(film.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/{film.name}"
        done = stack.command("publish", url, "--pipeline", "passthrough", "--json")
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["frames_sent"] == 100
    assert 3.5 < told["seconds"] < 15, "at its own pace"
    assert told["end_reason"] == "input_ended"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


def test_what_cannot_be_published_or_played_is_refused_with_a_sentence(stack: Stack, tmp_path: Path) -> None:
    none = str(tmp_path / "none.mp4")
    for words, why in (
        (("publish",), "name a file"),
        (("publish", none, "--camera"), "name a file"),
        (("publish", none), "does not exist"),
        (("publish", "--camera", "/dev/video97"), "there is no camera"),
        (("publish", "rtmp://127.0.0.1:9/live/x"), "cannot be read"),
        (("publish", "rtmp://127.0.0.1:9/live/x", "--loop"), "for files"),
        (("play", "nonsense", "-o", "x.ts"), "no stream's id"),
        (("play", "str_nobodyknows", "-o", str(tmp_path / "x.ts")), "no stream str_nobodyknows"),
        (("play", "str_a", "-o", str(tmp_path / "x.avi")), ".mp4"),
        (("play", "str_a"), "-o out.ts"),
    ):
        done = stack.command(*words)
        assert done.returncode == 2, (words, done.stderr)
        assert why in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_stream_that_is_busy_is_not_published_twice(stack: Stack, film: Path) -> None:
    stream = stack.stream()["id"]
    with command(stack, "publish", str(film), "--loop", "--stream", stream):
        stack.live_session(stream)
        done = stack.command("publish", str(film), "--stream", stream)
        assert done.returncode == 2
        assert "publisher already" in done.stderr
