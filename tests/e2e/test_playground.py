"""The playground as a user meets it: in a real Chromium, through all five services."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.support import publisher
from tests.support.browser import Chromium, Tab, chromium
from tests.support.stack import Stack, running, until

PLAYS_S = 20.0
MOVES_MS = 4000
# The mean brightness of what a video shows, in a tenth of its size.
BRIGHTNESS = """(video) => {
    const canvas = document.createElement("canvas")
    canvas.width = canvas.height = 32
    const pen = canvas.getContext("2d")
    pen.drawImage(video, 0, 0, 32, 32)
    const { data } = pen.getImageData(0, 0, 32, 32)
    let sum = 0
    for (let at = 0; at < data.length; at += 4) sum += (data[at] + data[at + 1] + data[at + 2]) / 3
    return sum / 1024
}"""
BROKEN_OFF = re.compile(r"(/events|GET blob:\S+): net::ERR_ABORTED")
REFUSE_CAMERA = """() => {
    navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotAllowedError") }
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as found:
        yield found


@contextmanager
def opened(browser: Chromium, url: str) -> Iterator[tuple[Tab, list[str]]]:
    """The page at `url`, and every request that it makes."""
    with browser.tab() as tab:
        asked: list[str] = []
        tab.page.on("request", lambda request: asked.append(request.url))
        tab.page.set_viewport_size({"width": 1440, "height": 900})
        tab.page.goto(url)
        yield tab, asked


@pytest.fixture
def tab(browser: Chromium, stack: Stack) -> Iterator[Tab]:
    with opened(browser, stack.url) as (found, _):
        expect(found.page.get_by_role("button", name="Start")).to_be_enabled()
        yield found


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def quiet(tab: Tab) -> None:
    """Nothing went wrong; only following a stream, and reading on in a file, are broken off by the page."""
    tab.failed[:] = [line for line in tab.failed if not BROKEN_OFF.search(line)]
    tab.assert_quiet()


def result(page: Page) -> Locator:
    return page.get_by_label("Result", exact=True)


def said(page: Page) -> Locator:
    return page.get_by_role("status")


def plays(page: Page) -> None:
    """Pictures of the pipeline are on the screen, and they move."""
    expect(page.locator(".cover")).to_have_count(0, timeout=PLAYS_S * 1000)
    expect(said(page)).to_have_text("Live.")
    video = result(page)
    first = float(video.evaluate("(video) => video.currentTime"))
    until(lambda: video.evaluate("(video) => video.currentTime") > first + 0.5, 10, "the video goes on")
    assert video.evaluate("(video) => video.videoWidth") > 0


def reading(page: Page, name: str) -> Locator:
    return page.locator(f'[data-reading="{name}"] .figure')


def stream_of(page: Page) -> str:
    """The id of the page's stream, from the line that changes it."""
    line = page.locator(".line", has_text="curl, change").locator("code")
    return line.inner_text().split("/v1/streams/")[1].split()[0]


def params(stack: Stack, stream: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.request("GET", f"/v1/streams/{stream}")["params"]
    return found


def test_the_camera_comes_back_transformed_and_nothing_leaves_the_origin(
    browser: Chromium, stack: Stack
) -> None:
    with opened(browser, stack.url) as (tab, asked):
        page = tab.page
        press(page, "Camera")
        press(page, "neon")
        press(page, "Start")
        plays(page)
        source = page.get_by_label("Source", exact=True)
        seen = until(lambda: result(page).evaluate(BRIGHTNESS), 10, "a picture that is not black")
        assert seen < 0.75 * source.evaluate(BRIGHTNESS), "neon is dark, and the fake camera is not"
        expect(reading(page, "Latency")).to_contain_text("ms")
        expect(reading(page, "Cost")).to_contain_text("$0.0")
        press(page, "Stop")
        expect(said(page)).to_have_text("Ready.")
        quiet(tab)
    foreign = [url for url in asked if urlsplit(url).netloc not in {urlsplit(stack.url).netloc, ""}]
    assert not foreign, foreign


def test_the_test_pattern_tells_how_old_its_pictures_are(tab: Tab) -> None:
    press(tab.page, "Start")
    plays(tab.page)
    expect(tab.page.locator('[data-reading="Latency"] .note')).to_have_text(
        "read in the picture", timeout=10_000
    )
    expect(reading(tab.page, "Picture")).to_have_text("640 \N{MULTIPLICATION SIGN} 360")
    press(tab.page, "Stop")
    quiet(tab)


def test_what_is_steered_is_in_the_picture_and_the_page_says_after_how_long(tab: Tab, stack: Stack) -> None:
    page = tab.page
    press(page, "Start")
    plays(page)
    page.get_by_label("Strength", exact=True).focus()
    page.keyboard.press("Home")
    expect(page.locator(".changed")).to_contain_text("in the picture after", timeout=MOVES_MS)
    assert params(stack, stream_of(page))["strength"] == 0
    press(page, "Stop")
    quiet(tab)


def test_two_prompts_are_blended_by_one_slider(tab: Tab, stack: Stack) -> None:
    page = tab.page
    press(page, "Start")
    plays(page)
    press(page, "Blend with a second prompt")
    page.get_by_label("Second prompt", exact=True).fill("neon")
    page.get_by_label("Share of the second prompt").focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    stream = stream_of(page)
    wanted = [["watercolor", 0.6], ["neon", 0.4]]
    until(lambda: params(stack, stream)["prompt"] == wanted, 10, "the blend has arrived")
    expect(page.locator(".changed")).to_contain_text("in the picture after", timeout=MOVES_MS)
    # What the pipeline says of it is on the page too.
    expect(page.locator(".messages")).to_contain_text("neon", timeout=10_000)
    press(page, "Stop")
    quiet(tab)


def test_a_refused_value_is_said_beside_its_control(tab: Tab) -> None:
    page = tab.page
    press(page, "Show them now")
    expect(page.locator(".line").first).to_be_visible()
    page.route(
        "**/v1/streams/*",
        lambda route: route.fulfill(status=400, body=refusal_of("params.strength", "too much")),
    )
    page.get_by_label("Strength", exact=True).focus()
    page.keyboard.press("Home")
    expect(page.locator(".field", has_text="Strength").locator(".problem")).to_have_text("too much")


def says(page: Page, *events: tuple[str, dict[str, Any]]) -> None:
    """The platform says `events` of every stream, again each second, and nothing else."""
    lines = "".join(f"event: {name}\ndata: {json.dumps(fields)}\n\n" for name, fields in events)
    answer = {"content_type": "text/event-stream", "body": lines}
    page.route("**/v1/streams/*/events", lambda route: route.fulfill(**answer))


def test_what_a_runner_loads_and_what_failed_is_on_the_screen(tab: Tab) -> None:
    page = tab.page
    loading = {"why": "start", "stage": "weights", "percent": 40}
    problem = {
        "stage": "process",
        "kind": "pipeline_error",
        "error": "ZeroDivisionError",
        "message": "division by <b>zero</b>",
        "action": "held",
        "pts_ms": 40,
        "frame": 412,
    }
    says(page, ("loading", loading), ("problem", problem))
    press(page, "Start")
    expect(page.locator(".loading")).to_have_text("Loading weights, 40 %", timeout=15_000)
    assert page.get_by_role("progressbar").get_attribute("value") == "40"
    trouble = page.locator(".trouble")
    expect(trouble.locator("strong")).to_have_text("The pipeline fails in picture 412")
    expect(trouble.locator("code")).to_have_text("ZeroDivisionError: division by <b>zero</b>")
    expect(trouble).to_contain_text("Showing the last good picture.")
    page.unroute("**/v1/streams/*/events")
    # What the platform really says is that nothing loads.
    expect(page.locator(".loading")).to_have_count(0, timeout=10_000)
    page.get_by_role("button", name="Dismiss").click()
    expect(trouble).to_have_count(0)
    press(page, "Stop")


def test_a_change_that_the_runner_refuses_goes_back_on_the_page(tab: Tab) -> None:
    page = tab.page
    refused = {"revision": 2, "field": "params.strength", "reason": "param_refused", "message": "not today"}
    says(page, ("refused", refused))
    press(page, "Start")
    plays(page)
    strength = page.get_by_label("Strength", exact=True)
    strength.focus()
    page.keyboard.press("Home")
    field = page.locator(".field", has_text="Strength")
    expect(field.locator(".problem")).to_contain_text("not today", timeout=MOVES_MS)
    expect(strength).to_have_value("1")
    press(page, "Stop")


# As a diffusion pipeline declares them, beside those of `effects`.
MANY: dict[str, Any] = {
    "model_id": {"type": "string", "default": "sd-turbo", "x-apply": "reload"},
    "lora_dict": {"type": ["object", "null"], "default": None, "x-apply": "warm"},
    "t_index_list": {"type": "array", "items": {"type": "integer"}, "default": [12, 20, 32]},
    "controlnets": {"type": "array", "default": []},
    "guidance_scale": {"type": "number", "default": 1.0, "minimum": 0, "maximum": 20},
    "delta": {"type": "number", "default": 0.7},
    "num_inference_steps": {"type": "integer", "default": 50, "minimum": 1, "maximum": 50},
    "use_safety_checker": {"type": "boolean", "const": False, "default": False},
}


@pytest.fixture
def many(tab: Tab, stack: Stack) -> tuple[Page, list[Any]]:
    """The page of a pipeline with many parameters, and the changes that it sends."""
    page = tab.page
    offers = stack.request("GET", "/v1/pipelines")
    for offer in offers["data"]:
        if offer["pipeline"] == "effects":
            offer["params_schema"]["properties"] |= MANY
    page.route("**/v1/pipelines", lambda route: route.fulfill(json=offers))
    page.reload()
    page.locator(".card", has_text="effects").click()
    press(page, "Show them now")
    expect(page.locator(".line").first).to_be_visible()
    sent: list[Any] = []

    def take(route: Any) -> None:
        sent.append(json.loads(route.request.post_data)["params"])
        route.fulfill(json={"update": {"revision": 1 + len(sent), "applies": "at_start"}})

    page.route("**/v1/streams/*", take)
    return page, sent


def comes(page: Page, look: Callable[[], bool], what: str) -> None:
    """Wait for what the page does; its requests are taken only while the browser is listened to."""

    def seen() -> bool:
        page.wait_for_timeout(50)
        return look()

    until(seen, 5, what)


def test_of_many_parameters_the_main_ones_are_there_and_the_others_are_found(
    many: tuple[Page, list[Any]],
) -> None:
    page, _ = many
    for label in ("Prompt", "Strength", "Seed", "T index list"):
        expect(page.get_by_label(label, exact=True)).to_be_visible()
    expect(page.get_by_label("Model ID", exact=True)).to_have_count(0)
    page.locator("summary", has_text="Model").click()
    expect(page.get_by_label("Model ID", exact=True)).to_have_value("sd-turbo")
    page.get_by_label("Find a parameter").fill("inference")
    expect(page.locator(".more-parameters .field")).to_have_count(1)
    expect(page.get_by_label("Num inference steps", exact=True)).to_be_visible()
    expect(page.get_by_text("safety checker")).to_have_count(0)


def test_a_list_is_typed_as_json_and_sent_when_it_is_one(many: tuple[Page, list[Any]]) -> None:
    page, sent = many
    steps = page.get_by_label("T index list", exact=True)
    expect(steps).to_have_value("[12, 20, 32]")
    field = page.locator(".field", has_text="T index list")
    for typed, problem in (("[12, ", "Not JSON yet"), ('{"a": 1}', "A list")):
        steps.fill(typed)
        expect(field.locator(".problem")).to_contain_text(problem)
    steps.fill("[5, 15]")
    expect(field.locator(".problem")).to_be_hidden()
    comes(page, lambda: sent == [{"t_index_list": [5, 15]}], "only what is right is sent")
    page.get_by_label("Find a parameter").fill("delta")
    page.get_by_label("Delta", exact=True).fill("0.25")
    comes(page, lambda: {"delta": 0.25} in sent, "a number without bounds is typed")


DROP = """(field, text) => {
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([text], "workflow.json", { type: "application/json" }))
    for (const kind of ["dragover", "drop"])
        field.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }))
}"""


def test_a_file_is_chosen_or_dropped_into_a_parameter(many: tuple[Page, list[Any]], tmp_path: Path) -> None:
    page, sent = many
    page.get_by_label("Find a parameter").fill("lora")
    chosen = tmp_path / "loras.json"
    chosen.write_text(json.dumps({"style": 0.8}))
    with page.expect_file_chooser() as chooser:
        press(page, "LoRA dict from a file")
    chooser.value.set_files(chosen)
    comes(page, lambda: sent == [{"lora_dict": {"style": 0.8}}], "the file is sent")
    field = page.get_by_label("LoRA dict", exact=True)
    field.evaluate(DROP, '{"other": 1}')
    comes(page, lambda: sent[1:] == [{"lora_dict": {"other": 1}}], "the dropped file is sent")
    expect(field).to_have_value('{"other": 1}')


def refusal_of(field: str, text: str) -> str:
    return json.dumps({"error": f"{field}: {text}", "code": "STREAMS/INVALID", "details": {"field": field}})


def test_stopping_ends_the_session_in_order_and_starting_again_works(tab: Tab, stack: Stack) -> None:
    page = tab.page
    press(page, "Start")
    plays(page)
    session = stack.live_session(stream_of(page))
    press(page, "Stop")
    assert stack.ended(session)["end_reason"] == "input_ended"
    press(page, "Start")
    plays(page)
    press(page, "Stop")


def test_leaving_the_page_takes_its_stream_along(browser: Chromium, stack: Stack) -> None:
    with opened(browser, stack.url) as (tab, _):
        press(tab.page, "Start")
        plays(tab.page)
        stream = stream_of(tab.page)
        tab.page.goto("about:blank")
        gone = lambda: stack.http.get(f"/v1/streams/{stream}").status_code == 404  # noqa: E731
        until(gone, 10, "the stream is deleted")


def test_the_end_of_a_session_is_told_with_its_reason(tab: Tab, stack: Stack) -> None:
    page = tab.page
    press(page, "Start")
    plays(page)
    session = stack.live_session(stream_of(page))
    stack.request("DELETE", f"/v1/sessions/{session}")
    expect(page.locator(".notice strong")).to_have_text("Stopped", timeout=10_000)
    expect(page.get_by_role("button", name="Start again")).to_be_visible()


def test_a_connection_that_breaks_is_said_and_comes_back_in_the_same_session(tab: Tab, stack: Stack) -> None:
    page = tab.page
    press(page, "Start")
    plays(page)
    stream = stream_of(page)
    session = stack.live_session(stream)
    ingest = stack.processes()["ingest"]
    ingest.suspend()
    try:
        expect(said(page)).to_have_text("Connection lost, trying to get it back.", timeout=25_000)
    finally:
        ingest.resume()
    expect(said(page)).to_have_text("Live.", timeout=25_000)
    plays(page)
    assert stack.live_session(stream) == session
    press(page, "Stop")


def test_without_capacity_the_page_offers_to_keep_trying_and_starts_by_itself(tab: Tab, stack: Stack) -> None:
    page = tab.page
    other = stack.stream("sketch")
    with publisher.start(other["publish_url"], seconds=60) as process:
        stack.live_session(other["id"])
        press(page, "Start")
        expect(page.locator(".notice strong")).to_have_text("All runners are busy", timeout=15_000)
        press(page, "Keep trying")
        for _ in range(2):
            page.wait_for_event("response", lambda answer: answer.status == 503, timeout=20_000)
        expect(said(page)).to_have_text("Waiting to try again.")
        process.kill()
    stack.request("DELETE", f"/v1/streams/{other['id']}")
    plays(page)
    press(page, "Stop")


def test_a_server_that_is_away_is_said_and_found_again(tab: Tab) -> None:
    page = tab.page
    page.route("**/v1/**", lambda route: route.abort())
    press(page, "Start")
    expect(page.locator(".notice strong")).to_have_text("The server does not answer")
    page.unroute("**/v1/**")
    press(page, "Keep trying")
    plays(page)
    press(page, "Stop")


def test_without_permission_for_the_camera_the_page_says_what_to_do(tab: Tab) -> None:
    page = tab.page
    page.evaluate(REFUSE_CAMERA)
    press(page, "Camera")
    expect(page.locator(".notice strong")).to_have_text("No permission")
    expect(page.get_by_role("button", name="Start")).to_be_disabled()
    press(page, "Pattern")
    expect(page.get_by_role("button", name="Start")).to_be_enabled()
    quiet(tab)


def test_a_file_is_sent_as_live_video(tab: Tab, sample: Path) -> None:
    page = tab.page
    with page.expect_file_chooser() as chooser:
        press(page, "File")
    chooser.value.set_files(sample)
    press(page, "Start")
    plays(page)
    press(page, "Stop")
    quiet(tab)


def test_another_program_sends_and_the_page_shows_and_steers_it(tab: Tab, stack: Stack) -> None:
    page = tab.page
    press(page, "Elsewhere")
    press(page, "Start")
    expect(page.locator(".notice strong").last).to_have_text("Waiting for video", timeout=10_000)
    stream = stack.request("GET", f"/v1/streams/{stream_of(page)}")
    with publisher.start(stream["publish_url"], seconds=8) as process:
        plays(page)
        press(page, "neon")
        expect(page.locator(".changed")).to_contain_text("in the picture after", timeout=MOVES_MS)
        assert process.wait(30) == 0
    expect(page.locator(".cover strong")).to_have_text("Finished", timeout=15_000)
    quiet(tab)


def test_a_source_is_exchanged_while_it_runs(tab: Tab) -> None:
    page = tab.page
    press(page, "Start")
    plays(page)
    press(page, "Camera")
    page.evaluate(REFUSE_CAMERA)
    plays(page)
    press(page, "Pattern")
    press(page, "Camera")
    expect(page.locator(".notice strong")).to_have_text("No permission")
    press(page, "Stay with the source before")
    plays(page)
    press(page, "Stop")
    quiet(tab)


def test_everything_is_done_by_keyboard_alone(tab: Tab) -> None:
    page = tab.page
    tab_to(page, "Start")
    page.keyboard.press("Enter")
    plays(page)
    tab_to(page, "neon")
    page.keyboard.press("Enter")
    expect(page.locator(".changed")).to_contain_text("in the picture after", timeout=MOVES_MS)
    tab_to(page, "Stop", back=True)
    page.keyboard.press("Space")
    expect(said(page)).to_have_text("Ready.")
    quiet(tab)


def tab_to(page: Page, name: str, *, back: bool = False) -> None:
    button = page.get_by_role("button", name=name, exact=True)
    for _ in range(60):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if button.evaluate("(button) => button === document.activeElement"):
            assert button.evaluate("(button) => button.matches(':focus-visible')")
            return
    raise AssertionError(f"60 steps did not lead to {name}")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(tab: Tab) -> None:
    page = tab.page
    page.set_viewport_size({"width": 390, "height": 844})
    expect(page.get_by_role("button", name="Start")).to_be_in_viewport()
    press(page, "Start")
    plays(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    expect(result(page)).to_be_in_viewport()
    expect(reading(page, "Latency")).to_be_in_viewport()
    press(page, "Stop")
    quiet(tab)


def test_the_page_is_dark_where_the_system_is_and_stands_still_where_that_is_wished(tab: Tab) -> None:
    page = tab.page
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    assert page.evaluate(ground) != light
    press(page, "Start")
    plays(page)
    assert (
        page.locator("[data-live=true] .dot").evaluate("(dot) => getComputedStyle(dot).animationName")
        == "none"
    )
    press(page, "Stop")


def test_viewers_watch_by_a_link_without_a_key(browser: Chromium, tab: Tab, stack: Stack) -> None:
    press(tab.page, "Start")
    plays(tab.page)
    playback = stack.request("GET", f"/v1/streams/{stream_of(tab.page)}")["output_playback_id"]
    with opened(browser, f"{stack.url}/watch/{playback}") as (viewer, asked):
        video = viewer.page.get_by_label("Live", exact=True)
        until(lambda: video.evaluate("(video) => video.currentTime") > 1, PLAYS_S, "the viewer's video plays")
        assert not [url for url in asked if "/v1/" in url]
        quiet(viewer)
    press(tab.page, "Stop")


def test_a_link_to_nothing_says_so(browser: Chromium, stack: Stack) -> None:
    with opened(browser, f"{stack.url}/watch/pbk_nothing") as (viewer, _):
        expect(viewer.page.locator(".notice strong")).to_have_text("Nothing to watch here")


@pytest.fixture(scope="module")
def poor_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A platform that wants a key from everybody, and whose tenant has no money."""
    settings = {"SLUICE_LOCAL_OPEN_TO_LOOPBACK": "false", "SLUICE_LOCAL_CREDIT_MICRO": "0"}
    with running(tmp_path_factory.mktemp("poor"), **settings) as stack:
        yield stack


def test_a_key_is_asked_for_and_kept_in_this_browser_and_no_credit_is_said(
    browser: Chromium, poor_stack: Stack
) -> None:
    with opened(browser, poor_stack.url) as (tab, asked):
        page = tab.page
        expect(page.locator(".notice strong")).to_have_text("A key is needed")
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        give_key(page, "sk_nobody_issued_this")
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        give_key(page, poor_stack.key)
        expect(page.locator(".balance")).to_have_text("$0.00 left")
        page.reload()
        expect(page.locator(".balance")).to_have_text("$0.00 left")
        press(page, "Start")
        expect(page.locator(".notice strong")).to_have_text("No credit left", timeout=15_000)
        assert not [url for url in asked if poor_stack.key in url]


def give_key(page: Page, key: str) -> None:
    page.locator(".screen").get_by_role("button", name="Enter a key").click()
    page.get_by_role("textbox", name="Key").fill(key)
    press(page, "Use it")
