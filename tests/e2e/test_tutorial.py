"""The tutorial, typed in as it stands in the document."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from tests.support.browser import chromium
from tests.support.stack import ROOT, Stack, running, until

TUTORIAL = ROOT / "docs" / "tutorial.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = "../soft-glow/soft_glow/__init__.py"
LONG_RUNNING = "make run"


@dataclass(frozen=True)
class Block:
    """A fenced part of the document."""

    kind: str
    text: str


def blocks() -> list[Block]:
    return [Block(kind, text) for kind, text in FENCE.findall(TUTORIAL.read_text())]


class Terminal:
    """A directory and an environment that outlive the commands typed in it."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.environment = environment

    def type(self, commands: str) -> str:
        """Run `commands` as they are; they all have to succeed. Returns what they print."""
        keep = self.directory.parent / "environment"
        script = f"set -e\n{commands}\nenv -0 > {shlex.quote(str(keep))}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.directory, env=self.environment, text=True, timeout=120, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{commands}\n{done.stdout}"
        self.environment = dict(entry.split("=", 1) for entry in keep.read_text().split("\0") if "=" in entry)
        return done.stdout


def shape(line: str) -> str:
    """A line without what differs from run to run: its numbers, and the space that they take."""
    return " ".join(re.sub(r"\d+(\.\d+)?", "#", line).split())


def patched(text: str, diff: str) -> str:
    """`text` with a diff of one place applied."""
    lines = diff.rstrip("\n").split("\n")
    before = "\n".join(line[1:] for line in lines if line[0] in " -")
    after = "\n".join(line[1:] for line in lines if line[0] in " +")
    assert text.count(before) == 1, before
    return text.replace(before, after)


@pytest.fixture
def terminal(tmp_path: Path) -> Terminal:
    """A checkout as `make run` leaves it: what the tutorial touches of it, by links."""
    checkout = tmp_path / "sluice"
    checkout.mkdir()
    (checkout / ".venv").symlink_to(sys.prefix)
    (checkout / "tests").mkdir()
    (checkout / "tests" / "data").symlink_to(ROOT / "tests" / "data")
    environment = {**os.environ, "COLUMNS": "80"}
    environment.pop("PYTHONPATH", None)
    return Terminal(checkout, environment)


def brightness(path: Path, from_s: float, to_s: float) -> float:
    with av.open(str(path)) as clip:
        shown = [frame for frame in clip.decode(video=0) if from_s < (frame.time or 0) < to_s]
        return float(np.mean([frame.reformat(160, 90, "rgb24").to_ndarray().mean() for frame in shown]))


def plays_in_the_playground(platform: Stack) -> None:
    """Choose it, press Start, move the slider of the tutorial's own parameter: all in a real browser."""
    platform.until_free(20)
    with chromium() as browser, browser.tab() as tab:
        page = tab.page
        page.goto(platform.url)
        page.locator(".card", has_text="soft-glow").click()
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.locator(".cover")).to_have_count(0, timeout=20_000)
        video = page.get_by_label("Result", exact=True)
        until(lambda: video.evaluate("(video) => video.currentTime") > 0.5, 10, "its pictures are shown")
        page.get_by_label("Dim", exact=True).focus()
        page.keyboard.press("End")
        expect(page.locator(".changed")).to_contain_text("in the picture after", timeout=10_000)
        page.get_by_role("button", name="Stop", exact=True).click()


def test_every_command_of_the_tutorial_does_what_it_says(terminal: Terminal, tmp_path: Path) -> None:
    platform: Stack | None = None
    printed = ""
    with ExitStack() as stack:
        for block in blocks():
            match block.kind:
                case "sh" if LONG_RUNNING in block.text:
                    settings = dict(word.split("=", 1) for word in shlex.split(block.text) if "=" in word)
                    settings["PYTHONPATH"] = terminal.environment["PYTHONPATH"]
                    platform = stack.enter_context(running(tmp_path, **settings))
                    platform.until_free(20)
                    terminal.environment |= {"SLUICE_URL": platform.url, "SLUICE_API_KEY": platform.key}
                case "sh":
                    printed = terminal.type(block.text)
                case "diff":
                    source = terminal.directory / FILE
                    source.write_text(patched(source.read_text(), block.text))
                case "text":
                    shapes = [shape(line) for line in printed.splitlines()]
                    for line in block.text.splitlines():
                        assert shape(line) in shapes, f"{line!r} is not in\n{printed}"
        assert platform is not None
        offered = httpx.get(f"{platform.url}/v1/pipelines", timeout=10).json()
        (ours,) = [offer for offer in offered["data"] if offer["pipeline"] == "soft-glow"]
        assert "dim" in ours["params_schema"]["properties"], "the playground makes its sliders of this"
        plays_in_the_playground(platform)
        live = terminal.directory / "live.mp4"
        assert brightness(live, 2.6, 5) < 0.6 * brightness(live, 0.3, 1.9)
