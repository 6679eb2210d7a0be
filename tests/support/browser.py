"""A real Chromium for tests and benchmarks: found or failed for, every wait bounded, closed whatever happens.

It is synchronous, as the end-to-end tests are. Playwright's event loop counts as running in the thread of the
block: what needs one of its own there (`asyncio.run`, an `async` test) belongs into another thread or module.
"""

from __future__ import annotations

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, sync_playwright

SCRIPT: Final = Path(__file__).with_name("browser") / "media.js"
NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
LAUNCH_S: Final = 30.0
PAGE_S: Final = 15.0  # for one step of a page: a navigation, a locator, a function of `media.js`
MESSAGES: Final = 200  # that are kept of a page
FLAGS: Final = (
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    # A headless page is never in front; it is to draw and paint as if it were.
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
)
# Call a function of the script; what it returns is awaited, and not for ever.
CALL: Final = """async ([name, words, ms]) =>
    await sluice.within(Promise.resolve(sluice[name](...words)), ms, `sluice.${name}`)"""


def executable() -> str:
    """The browser of this machine: `$SLUICE_CHROMIUM`, or what Debian, Ubuntu and Google call it."""
    named = os.environ.get("SLUICE_CHROMIUM")
    found = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    assert found, "install chromium (Debian: apt-get install chromium)"
    return found


@dataclass
class Tab:
    """One page and what went wrong in it. `page` is Playwright's, with `media.js` in every document."""

    page: Page
    errors: list[str] = field(default_factory=list)  # the console's errors and what nobody caught
    failed: list[str] = field(default_factory=list)  # requests that came to nothing, or to a status above 399

    def call(self, name: str, *words: Any, within_s: float = PAGE_S) -> Any:
        """Call `sluice.<name>` in the page and wait for what it returns."""
        return self.page.evaluate(CALL, [name, words, within_s * 1000])

    def publish(self, whip_url: str, **options: Any) -> dict[str, Any]:
        """Publish the page's source, started if need be; returns the peer and what its answer said."""
        if not self.page.evaluate("sluice.drawing()"):
            self.call("startSource")
        return dict(self.call("publish", whip_url, options))

    def watch(self, whep_url: str, **options: Any) -> dict[str, Any]:
        """Watch in a `<video>` of the page; returns the peer."""
        return dict(self.call("watch", whep_url, options))

    def assert_quiet(self) -> None:
        """Nothing went wrong that a user could see in the console."""
        assert not self.errors, self.errors
        assert not self.failed, self.failed

    def _listen(self) -> None:
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: _note(self.errors, str(error)))
        self.page.on("requestfailed", self._broke)
        self.page.on("response", self._answered)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            _note(self.errors, message.text)

    def _broke(self, request: Request) -> None:
        _note(self.failed, f"{request.method} {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status > 399:
            _note(self.failed, f"{response.request.method} {response.url}: {response.status}")


def _note(to: list[str], line: str) -> None:
    if len(to) < MESSAGES:
        to.append(line)


class Chromium:
    """A running browser; `tab` opens a page with a profile of its own."""

    def __init__(self, browser: Browser, blank: str) -> None:
        self._browser = browser
        self._blank = blank

    @property
    def version(self) -> str:
        return self._browser.version

    @contextmanager
    def tab(self, url: str | None = None) -> Iterator[Tab]:
        """Open `url`, or an empty page of another origin than everything under test."""
        address = url or self._blank
        context = self._browser.new_context(viewport={"width": 1100, "height": 700})
        try:
            parts = urlsplit(address)
            context.grant_permissions(["camera", "microphone"], origin=f"{parts.scheme}://{parts.netloc}")
            context.set_default_timeout(PAGE_S * 1000)
            context.add_init_script(path=SCRIPT)
            tab = Tab(context.new_page())
            tab._listen()
            tab.page.goto(address)
            yield tab
            tab.call("stopAll")
        finally:
            context.close()


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Run a browser without a screen. Its camera and microphone are played, and nobody is asked for them."""
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with _blank_page() as blank, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable(), args=flags, timeout=LAUNCH_S * 1000
        )
        try:
            yield Chromium(browser, blank)
        finally:
            browser.close()


class _Blank(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/"
        self.send_response(200 if found else 204)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        if found:
            self.wfile.write(b"<!doctype html><title>test</title><body></body>")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def _blank_page() -> Iterator[str]:
    """An empty page on this machine: about:blank has no origin, and so neither a camera nor `fetch`."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Blank) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()
