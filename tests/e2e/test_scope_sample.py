"""A browser that follows Scope's documentation step by step, with the whole platform behind it."""

from __future__ import annotations

from pathlib import Path

from tests.support.browser import chromium
from tests.support.stack import Stack, until

SCRIPT = Path(__file__).parents[1] / "support" / "browser" / "scope.js"
NEON = {
    "input_mode": "video",
    "prompts": [{"text": "neon", "weight": 1.0}],
    "denoising_step_list": [700, 500],
}


def test_a_page_that_knows_only_scopes_documentation_steers_its_picture(stack: Stack) -> None:
    with chromium() as browser, browser.tab() as tab:
        tab.page.add_script_tag(path=SCRIPT)
        began = tab.page.evaluate(
            """async ([base, initial]) => {
                const video = { width: 512, height: 512 };
                return scope.start(base, await navigator.mediaDevices.getUserMedia({ video }), initial);
            }""",
            [stack.url, NEON],
        )
        assert (began["width"], began["height"]) == (512, 512)
        assert tab.page.evaluate("scope.hears('data', 1, 5000)")["data"] == {"looks": {"neon": 1.0}}
        dark = tab.page.evaluate("scope.brightness()")

        tab.page.evaluate("scope.say({ prompts: [{ text: 'sketch', weight: 1.0 }] })")
        applied = tab.page.evaluate("scope.hears('parameters_applied', 1, 10000)")
        assert applied["applies"] == "live"
        assert applied["pts_ms"] > 0
        until(lambda: tab.page.evaluate("scope.brightness()") > dark + 60, 5, "white paper instead of night")

        steps = "{ target_prompts: [{ text: 'neon', weight: 1.0 }], num_steps: 8 }"
        tab.page.evaluate(f"scope.say({{ transition: {steps} }})")
        tab.page.evaluate("scope.hears('parameters_applied', 2, 10000)")
        until(lambda: tab.page.evaluate("scope.brightness()") < dark + 30, 5, "night again")

        states = tab.page.evaluate("scope.states")
        assert "connected" in states
        assert "candidate 204" in states
        assert all(state in {"connecting", "connected", "candidate 204"} for state in states)
        session = began["session"]
        tab.page.evaluate("scope.stop()")
        until(lambda: session not in stack.http.get("/v1/streams").text, 15, "the stream is forgotten")
        tab.assert_quiet()
