"""A viewer that records, and the end of the publisher it watches."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import httpx


def record(url: str, path: Path) -> threading.Thread:
    """Watch `url` into `path` until it ends, as `curl -o` does."""

    def work() -> None:
        with httpx.stream("GET", url, timeout=60) as answer, path.open("wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                out.write(chunk)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def finish(process: subprocess.Popen[bytes], within_s: float = 60) -> int:
    process.communicate(timeout=within_s)
    return process.returncode
