"""The real client of the hub against a hub of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sluice.models.store import Store
from sluice.pipeline import ModelCache

COMMAND = "from sluice.models.command import app; app()"
COMMIT = "c" * 40
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FILES = {"model_index.json": b"{}", "unet/config.json": b"{}", WEIGHTS: bytes(range(256)) * 4096}


@dataclass
class Served:
    """What the hub was asked for, and whether it goes on."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def hub() -> Iterator[Served]:
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.split("?", 1)[0]
            if with_body:
                served.asked.append(path)
            if path.startswith("/api/models/someone/turbo"):
                body = json.dumps(tree() if "/tree/" in path else info()).encode()
                self._send(200, body, with_body=with_body)
            elif f"/resolve/{COMMIT}/" in path:
                name = path.split(f"/resolve/{COMMIT}/", 1)[1]
                self._send_file(name, with_body=with_body)
            else:
                gated, revision = "gated" in path, "/revision/" in path
                code = "GatedRepo" if gated else "RevisionNotFound" if revision else "RepoNotFound"
                self._send(403 if gated else 404, b"{}", {"X-Error-Code": code}, with_body=with_body)

        def _send_file(self, name: str, *, with_body: bool) -> None:
            data = FILES[name]
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-", 1)[0])
            facts = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if begin:
                facts["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(206 if begin else 200, data[begin:], facts, with_body=with_body, slow=name == WEIGHTS)

        def _send(
            self,
            status: int,
            body: bytes,
            facts: dict[str, str] | None = None,
            *,
            with_body: bool,
            slow: bool = False,
        ) -> None:
            self.send_response(status)
            for name, fact in {**(facts or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, fact)
            self.end_headers()
            if with_body and slow:
                half = len(body) // 2
                self.wfile.write(body[:half])
                served.half_sent.set()
                served.may_go_on.wait(20)
                body = body[half:]
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            pass

    class Hub(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Whoever was killed does not read to the end."""

    with Hub(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield served
        served.may_go_on.set()
        server.shutdown()


def info() -> dict[str, object]:
    return {
        "id": "someone/turbo",
        "sha": COMMIT,
        "siblings": [
            {
                "rfilename": path,
                "size": len(data),
                "blobId": "0" * 40,
                **({"lfs": facts(data)} if path == WEIGHTS else {}),
            }
            for path, data in FILES.items()
        ],
    }


def facts(data: bytes) -> dict[str, object]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}


def tree() -> list[dict[str, object]]:
    return [
        {"type": "file", "path": path, "size": len(data), "oid": "0" * 40} for path, data in FILES.items()
    ]


def command(
    root: Path, endpoint: str, *arguments: str, script: str = COMMAND, offline: bool = False
) -> subprocess.Popen[str]:
    """`sluice models`, as its own process: the client reads its environment when it is imported."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(root.parent / "hf"),
            "SLUICE_MODELS": str(root),
        },
        cwd=Path(__file__).parents[3],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, error = process.communicate(timeout=25)
    finally:
        process.kill()
    return process.returncode, out, error


def test_a_fetch_that_is_killed_leaves_nothing_and_goes_on_the_next_time(hub: Served, tmp_path: Path) -> None:
    root = tmp_path / "models"
    killed = command(root, hub.url, "fetch", "someone/turbo")
    half_sent = hub.half_sent.wait(25)
    killed.send_signal(signal.SIGKILL)
    code, _, error = ended(killed)
    assert half_sent, error
    assert code == -signal.SIGKILL
    assert list(root.glob(".partial-*")), "it was under way"
    assert ModelCache(root).names() == []

    hub.may_go_on.set()
    code, out, error = ended(command(root, hub.url, "fetch", "someone/turbo"))
    assert (code, out) == (0, "someone/turbo: 3 files, 0.00 GB\n"), error
    assert Store(root).problems("someone/turbo") == []
    assert (ModelCache(root).path("someone/turbo") / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert [path.name for path in root.iterdir() if not path.name.startswith(".lock-")] == ["someone--turbo"]
    assert not list((root / "someone--turbo").glob(".cache*")), "nothing of the client's is kept"


def test_what_the_hub_refuses_is_said_in_words(hub: Served, tmp_path: Path) -> None:
    several = """
from sluice.models.hub import HubError, HuggingFaceHub
for name, revision in (("someone/nothing", None), ("someone/gated", None), ("someone/else", "v9")):
    try:
        HuggingFaceHub().listing(name, revision)
    except HubError as error:
        print(error)
"""
    code, out, error = ended(command(tmp_path / "models", hub.url, script=several))
    assert code == 0, error
    assert out.splitlines() == [
        "the hub has no model someone/nothing, or it is private: then set HF_TOKEN",
        "someone/gated is given only to those who accept its terms: do so on its page, and set HF_TOKEN",
        "someone/else has no revision v9",
    ]


def test_without_a_hub_it_says_so(tmp_path: Path) -> None:
    root = tmp_path / "models"
    code, _, error = ended(command(root, "http://127.0.0.1:1", "fetch", "someone/turbo"))
    assert (code, "the hub cannot be reached" in error) == (1, True), error
    code, _, error = ended(command(root, "http://127.0.0.1:1", "fetch", "someone/turbo", offline=True))
    assert (code, "HF_HUB_OFFLINE is set" in error) == (1, True), error
