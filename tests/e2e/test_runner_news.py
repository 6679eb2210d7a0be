"""What a runner says of itself and of parameters reaches a client, through all five services."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.support import publisher
from tests.support.stack import Stack, running, until

WAITS_S = 20.0
DEFAULTS = {"gain": 1, "style": "plain", "model": "small"}


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    pipelines = {"SLUICE_LOCAL_PIPELINES": "tests.support.troubled:Troubled"}
    with running(tmp_path_factory.mktemp("troubled"), **pipelines) as stack:
        yield stack


class Listener:
    """Follows a stream's events in a thread of its own."""

    def __init__(self, stack: Stack, url: str) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self._stack = stack
        self._url = url
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        headers = {"Authorization": f"Bearer {self._stack.key}"}
        with httpx.stream("GET", self._url, headers=headers, timeout=60) as answer:
            name = ""
            for line in answer.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.heard.append((name, json.loads(line.removeprefix("data: "))))
                    if name == "ended":
                        return

    def of(self, name: str, **facts: Any) -> list[dict[str, Any]]:
        return [said for kind, said in list(self.heard) if kind == name and said.items() >= facts.items()]

    def hears(self, name: str, **facts: Any) -> dict[str, Any]:
        try:
            return until(lambda: self.of(name, **facts), WAITS_S, f"{name} {facts}")[0]
        except AssertionError as error:
            heard = [said for said in self.heard if said[0] != "status"]
            raise AssertionError(f"{error}; heard: {heard}") from None


@contextmanager
def live(stack: Stack) -> Iterator[tuple[str, Listener]]:
    """A stream's path whose pictures come back, and what is said of it."""
    stack.until_free(20)
    stream = stack.stream(pipeline="troubled", params={})
    listener = Listener(stack, stream["events_url"])
    process = publisher.start(stream["publish_url"], seconds=120)
    try:
        pictures = lambda: [one for one in listener.of("status") if one.get("frames_out")]  # noqa: E731
        until(pictures, WAITS_S, "pictures come back")
        yield f"/v1/streams/{stream['id']}", listener
    finally:
        process.kill()
        process.communicate()
        stack.request("DELETE", f"/v1/streams/{stream['id']}")


def change(stack: Stack, path: str, expect: int = 200, **params: Any) -> Any:
    return stack.request("PATCH", f"{path}?wait=applied", expect, json={"params": params}, timeout=60)


def params(stack: Stack, path: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.request("GET", path)["params"]
    return found


def test_what_a_runner_refuses_is_refused_to_the_client_and_taken_back(troubled: Stack) -> None:
    with live(troubled) as (path, listener):
        for wrong in ({"style": "bad"}, {"model": "none"}):
            (name,) = wrong
            refused = change(troubled, path, 409, **wrong)
            assert refused["code"] == "STREAMS/PARAM_REFUSED"
            assert refused["details"]["field"] == f"params.{name}"
            assert listener.hears("refused", field=f"params.{name}")["reason"] == "param_refused"
            until(lambda: params(troubled, path) == DEFAULTS, 5, "the stream has the values before")
        pictures, loads = listener.of("status")[-1]["frames_out"], len(listener.of("loading"))
        until(lambda: listener.of("status")[-1]["frames_out"] > pictures + 50, WAITS_S, "the video goes on")
        assert len(listener.of("loading")) == loads, "what is there already is not loaded again"


def test_how_a_change_took_effect_is_said_with_its_picture(troubled: Stack) -> None:
    with live(troubled) as (path, listener):
        for way, wanted in (
            ("live", {"gain": 2}),
            ("warm", {"style": "fine"}),
            ("reload", {"model": "large"}),
        ):
            update = change(troubled, path, **wanted)["update"]
            assert update["applies"] == way
            assert update["pts_ms"] >= 0
            assert listener.hears("applied", revision=update["revision"], applies=way)
        loading = listener.of("loading", why="reload", stage="weights")
        percents = [said["percent"] for said in loading]
        assert percents == sorted(percents)
        assert len(percents) >= 2
        status = troubled.request("GET", f"{path}/status")["data"]["sluice"]
        assert status["loading"] is None


def test_a_parameter_that_breaks_the_pipeline_is_told_and_taken_back(troubled: Stack) -> None:
    with live(troubled) as (path, listener):
        troubled.request("PATCH", path, json={"params": {"gain": 13}})
        problem = listener.hears("problem", error="ZeroDivisionError")
        assert (problem["stage"], problem["message"]) == ("process", "thirteen")
        assert listener.hears("refused")["reason"] == "poisoned_param"
        until(lambda: params(troubled, path)["gain"] == 1, 5, "the stream has the value before")
        assert troubled.request("GET", f"{path}/status")["data"]["sluice"]["problem"]["error"]
        listener.hears("health", state="online")
        assert not listener.of("ended")


def test_a_session_outlives_its_engine_and_the_client_is_told(troubled: Stack) -> None:
    with live(troubled) as (path, listener):
        (session,) = {said["session"] for said in listener.of("status")}
        troubled.kill("engine")
        problem = listener.hears("problem", kind="crash")
        assert problem["action"] == "restarting"
        listener.hears("loading", why="restart", percent=100)
        shown = listener.of("status")[-1]["frames_out"]
        until(lambda: listener.of("status")[-1]["frames_out"] > shown + 25, WAITS_S, "the video goes on")
        status = troubled.request("GET", f"{path}/status")["data"]
        assert status["sluice"]["session"] == session
        assert status["inference_status"]["restart_count"] == 1
        assert not listener.of("ended")
