"""The browser that other tests use: it paints what it publishes, and what goes wrong in a page is known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Error

from tests.support.browser import Chromium, chromium, executable


@pytest.fixture(scope="module")
def running() -> Iterator[Chromium]:
    with chromium() as found:
        yield found


def test_what_one_peer_draws_the_other_paints_with_its_time(running: Chromium) -> None:
    with running.tab() as tab:
        tab.call("startSource")
        peer = tab.call("direct")
        tab.call("firstPicture", peer["id"], {"since": peer["postedAt"]})
        seen = tab.call("ages", peer["id"], {"ms": 1500})
        assert len(seen["ages"]) > 10
        assert seen["backwards"] == 0
        assert seen["unread"] <= 2
        assert seen["sizes"] == ["512x512"]
        assert min(seen["ages"]) > 0
        assert tab.call("stats", peer["id"])["inbound_video"]["codec"] == "video/H264"
        tab.assert_quiet()


def test_a_picture_without_a_time_code_is_not_taken_for_one(running: Chromium) -> None:
    with running.tab() as tab:
        tab.page.evaluate(
            """() => {
                const canvas = document.createElement("canvas");
                const context = canvas.getContext("2d");
                const read = (style) => {
                    context.fillStyle = style;
                    context.fillRect(0, 0, canvas.width, canvas.height);
                    const picture = new VideoFrame(canvas, {timestamp: 0});
                    Object.defineProperty(picture, "videoWidth", {value: canvas.width});
                    Object.defineProperty(picture, "videoHeight", {value: canvas.height});
                    return sluice.drawnAt(picture, performance.now());
                };
                globalThis.found = ["#000", "#fff", "#888"].map(read);
            }"""
        )
        assert tab.page.evaluate("found") == [None, None, None]


def test_what_goes_wrong_in_a_page_is_collected(running: Chromium) -> None:
    with running.tab() as tab:
        tab.page.evaluate("console.error('a bad day'); setTimeout(() => { throw new Error('worse') })")
        tab.page.evaluate("fetch('http://127.0.0.1:1/').catch(() => {})")
        tab.page.wait_for_timeout(300)
        said = " ".join(tab.errors)
        assert "a bad day" in said
        assert "worse" in said
        assert any(line.startswith("GET http://127.0.0.1:1/") for line in tab.failed)
        with pytest.raises(AssertionError):
            tab.assert_quiet()


def test_a_function_that_does_not_return_in_time_is_an_error(running: Chromium) -> None:
    with running.tab() as tab:
        tab.page.evaluate("() => { sluice.never = () => new Promise(() => {}) }")
        with pytest.raises(Error, match=r"not within 200 ms: sluice\.never"):
            tab.call("never", within_s=0.2)


def test_a_machine_without_a_browser_is_told_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLUICE_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AssertionError, match="install chromium"):
        executable()
