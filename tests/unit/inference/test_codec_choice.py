"""The codecs that an engine found are told to whom it concerns, and so is when one fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import REGISTRY

from services.common.media.codec import NVENC, X264, Rgb
from services.common.media.hardware import LIBAV, Codecs, Equipment, SteadyEncoder
from services.common.media.mpegts import CLOCK_HZ, AccessUnit
from services.inference.__main__ import _labels
from services.inference.engine.pictures import KEYFRAME_EVERY, BitRates, PictureEncoder
from services.inference.engine_host import EngineHost
from services.inference.packets import Message
from services.inference.presence import Presence
from services.inference.settings import InferenceSettings
from services.inference.supervisor import Supervisor
from tests.support.engine import engine, video

FRAME = CLOCK_HZ // 30
without_device = pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has such a device")


def failures(codec: str) -> float:
    return REGISTRY.get_sample_value("sluice_codec_failures_total", {"codec": codec}) or 0.0


def test_an_engine_says_which_codecs_it_found_and_why() -> None:
    with engine("passthrough") as child:
        (ready,) = child.messages("ready")
        assert set(ready.fields["codecs"]) == {"encoder", "decoder", "reason"}
        assert ready.fields["codecs"]["encoder"] in {X264, NVENC}
        child.open("passthrough")
        child.send(*video(5))
        child.say("end_of_input")
        child.until_said("finished")
        assert len(child.media()) == 5


@pytest.fixture
def supervisor() -> Supervisor:
    supervisor = Supervisor(InferenceSettings())
    codecs = {"encoder": NVENC, "decoder": LIBAV, "reason": "works"}
    supervisor._dispatch(Message("ready", -1, {"pipelines": [], "codecs": codecs}))
    return supervisor


def test_a_codec_that_failed_is_counted_by_its_name(supervisor: Supervisor) -> None:
    before = failures(NVENC)
    supervisor._dispatch(Message("codec_failed", -1, {"codec": NVENC, "problem": "fails"}))
    assert failures(NVENC) == before + 1


def test_the_advert_has_the_codecs_as_labels_and_an_operators_word_goes_first(supervisor: Supervisor) -> None:
    settings = InferenceSettings(labels={"decoder": "ours", "rack": "7"})
    host = EngineHost(settings, supervisor)
    presence = Presence(settings, host, cast("Any", SimpleNamespace()), "r1", lambda: _labels(host))
    assert dict(presence.advert().labels) == {"encoder": NVENC, "decoder": "ours", "rack": "7"}


class Restless(SteadyEncoder):
    """A device's encoder, which makes a key frame of its 21st picture though nobody asked."""

    encoded = 0

    def encode(self, rgb: Rgb, pts: int, *, keyframe: bool) -> list[AccessUnit]:
        self.encoded += 1
        return super().encode(rgb, pts, keyframe=keyframe or self.encoded == 21)


class RestlessEquipment(Equipment):
    def encoder(self, width: int, height: int, bit_rate: int, *, fps: float) -> SteadyEncoder:
        return Restless(width, height, bit_rate, fps=fps, codecs=Codecs())


def test_after_a_key_frame_that_nobody_asked_for_the_next_has_its_full_time() -> None:
    encoder = PictureEncoder(BitRates(100_000, 8_000_000), RestlessEquipment())
    picture = np.zeros((96, 128, 3), np.uint8)
    units = [unit for index in range(150) for unit in encoder.encode(picture, index * FRAME)]
    times = [unit.pts for unit in units if unit.keyframe]
    assert times[:2] == [0, 20 * FRAME]
    assert times[2] - times[1] == pytest.approx(KEYFRAME_EVERY, abs=2 * FRAME)


@without_device
def test_a_device_that_fails_is_told_once_a_stream_however_often_its_size_changes() -> None:
    told: list[str] = []
    equipment = Equipment(Codecs(NVENC, LIBAV, "works"), lambda codec, _: told.append(codec))
    encoder = PictureEncoder(BitRates(100_000, 8_000_000), equipment)
    for index, side in enumerate((128, 128, 96, 160)):
        (unit,) = encoder.encode(np.zeros((side, side, 3), np.uint8), index * FRAME)
        assert unit.keyframe == (index != 1)
    assert told == [NVENC]
