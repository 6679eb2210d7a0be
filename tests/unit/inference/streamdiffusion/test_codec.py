from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.inference.engine.pipelines.streamdiffusion.accelerate import Acceleration
from services.inference.engine.pipelines.streamdiffusion.checkpoint import Checkpoint
from services.inference.engine.pipelines.streamdiffusion.codec import Codec, picture, signal
from services.inference.engine.pipelines.streamdiffusion.weights import load_codec
from sluice.pipeline import ModelCache

CPU = Acceleration.of("auto", "cpu")
BARS = [[255 * (code >> bit & 1) for bit in (2, 1, 0)] for code in range(7, -1, -1)]


def chart() -> NDArray[np.uint8]:
    """Eight bars, of full colours and of half."""
    full = np.repeat(np.array(BARS, np.uint8)[None], 32, axis=0).repeat(8, axis=1)
    return np.concatenate([full, full // 2])


class Means(torch.nn.Module):
    """An autoencoder whose latent is the mean colour of 8 x 8 points, and that remembers what it was fed."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(scaling_factor=0.5)
        self.fed: list[torch.Tensor] = []

    def encode(self, x: torch.Tensor) -> Any:
        self.fed.append(x)
        latent = torch.nn.functional.avg_pool2d(x, 8)
        return SimpleNamespace(latents=torch.cat([latent, torch.zeros_like(latent[:, :1])], 1))

    def decode(self, z: torch.Tensor) -> Any:
        return SimpleNamespace(sample=torch.nn.functional.interpolate(z[:, :3], scale_factor=8))


def test_every_level_of_a_picture_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    assert np.array_equal(picture(signal(levels, CPU.device)), levels)


def test_numbers_are_rounded_to_the_nearest_level_and_cut_at_the_ends() -> None:
    values = torch.tensor([-1.4, -1.0, 0.0031, 0.0051, 1.0, 3.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    # 127.5 * 1.0031 = 127.9, 127.5 * 1.0051 = 128.15
    assert picture(values)[0, :, 0].tolist() == [0, 0, 128, 128, 255, 255]


def test_an_autoencoder_is_fed_from_minus_one_to_one() -> None:
    means = Means()
    codec = Codec(means, CPU, tiny=True)
    latents = codec.encode(signal(chart(), CPU.device))
    (fed,) = means.fed
    assert (float(fed.min()), float(fed.max())) == (-1, 1)
    assert fed[0, :, 0, 0].tolist() == [1, 1, 1]
    assert fed[0, :, 0, -1].tolist() == [-1, -1, -1]
    assert tuple(latents.shape) == (1, 4, 8, 8)
    assert float(latents[0, 0, 0, 0]) == 0.5  # scaled as the U-Net's
    assert np.array_equal(picture(codec.decode(latents)), chart())


@pytest.mark.parametrize("tiny", [None, "madebyollin/taesd"])
def test_pictures_can_be_encoded_one_by_one_or_together(models: ModelCache, tiny: str | None) -> None:
    checkpoint = Checkpoint.read("sdxl-turbo", models.path("sdxl-turbo"))
    codec = load_codec(checkpoint, tiny, models, CPU, lambda stage, done: None)
    random = np.random.default_rng(3)
    two = [signal(random.integers(0, 256, (64, 64, 3), np.uint8), CPU.device) for _ in range(2)]
    latents = codec.encode(torch.cat(two))
    assert tuple(latents.shape) == (2, 4, 8, 8)
    torch.testing.assert_close(latents[1:], codec.encode(two[1]), atol=1e-5, rtol=1e-4)
    assert tuple(codec.decode(latents).shape) == (2, 3, 64, 64)
