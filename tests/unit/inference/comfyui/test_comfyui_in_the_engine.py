from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.inference.packets import Message, Packet
from tests.support.comfyui import ComfyUIStandIn
from tests.support.engine import FRAME, START, EngineChild, decoded, engine, video

NIGHT = json.loads(Path("tests/data/workflows/night.json").read_text())
BRIGHTER = {
    "1": {"class_type": "LoadTensor", "inputs": {}},
    "9": {"class_type": "LoadModel", "inputs": {"name": "a.safetensors"}},
    "2": {"class_type": "Brighten", "inputs": {"image": ["1", 0], "amount": 100, "model": ["9", 0]}},
    "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
}


@pytest.fixture
def server() -> Iterator[ComfyUIStandIn]:
    with ComfyUIStandIn() as standing_in:
        yield standing_in


@pytest.fixture
def child(server: ComfyUIStandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineChild]:
    monkeypatch.setenv("SLUICE_COMFYUI_URL", server.url)
    with engine("comfyui") as started:
        yield started


def brightness(child: EngineChild) -> list[float]:
    return [float(frame.rgb().mean()) for frame in decoded(child.media())]


def is_refused(packet: Packet) -> bool:
    return isinstance(packet, Message) and packet.type == "refused"


def test_a_stream_is_exchanged_steered_and_refused_while_it_runs(child: EngineChild) -> None:
    pictures = video(90)
    child.open("comfyui", params={"workflow": NIGHT})
    child.send(*pictures[:10])
    child.say("update", revision=2, patch={"workflow": [BRIGHTER]}, apply_at_pts=START + 20 * FRAME)
    child.say("update", revision=3, patch={"inputs": {"2": {"amount": 0}}}, apply_at_pts=START + 40 * FRAME)
    child.say(
        "update",
        revision=4,
        patch={"workflow": [{**BRIGHTER, "7": {"class_type": "Foo"}}]},
        apply_at_pts=START + 60 * FRAME,
    )
    child.send(*pictures[10:])
    child.say("end_of_input")
    child.until_said("finished")
    applied = {one.fields["revision"]: one.fields["applies"] for one in child.messages("applied")}
    assert applied[2] == "warm"
    assert applied[3] == "live"
    assert 4 not in applied
    (refused,) = child.messages("refused")
    assert refused.fields["revision"] == 4
    assert "node Foo does not exist" in refused.fields["message"]
    levels = brightness(child)
    assert len(levels) == 90
    assert levels[10] < levels[50] - 20 < levels[30] - 60
    assert abs(levels[80] - levels[50]) < 5


def test_a_stream_outlives_a_comfyui_that_dies_and_returns(
    child: EngineChild, server: ComfyUIStandIn
) -> None:
    pictures = video(120)
    child.open("comfyui", params={"workflow": BRIGHTER})
    child.send(*pictures[:30])
    child.until(lambda _: len(child.media()) >= 20)
    server.die()
    child.send(*pictures[30:60])
    reloading = child.until(
        lambda one: isinstance(one, Message) and one.type == "problem" and one.fields["action"] == "reloading"
    )
    assert isinstance(reloading, Message)
    assert "ComfyUI cannot be reached" in reloading.fields["message"]
    server.live()
    child.send(*pictures[60:])
    child.say("end_of_input")
    child.until_said("finished")
    assert child.media()[-1].pts == pictures[-1].pts
    assert not child.messages("failed")
    levels = brightness(child)
    assert min(levels) > levels[0] - 10  # what was shown was never the input
