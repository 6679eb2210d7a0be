from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from services.inference.engine.pipelines.streamdiffusion.accelerate import (
    BATCHES,
    Acceleration,
    padded,
    padding,
)
from services.inference.engine.pipelines.streamdiffusion.checkpoint import Checkpoint
from services.inference.engine.pipelines.streamdiffusion.denoiser import Control, Rows
from services.inference.engine.pipelines.streamdiffusion.weights import Brain, load_brain, load_controller
from sluice.pipeline import ModelCache

CPU = Acceleration.of("auto", "cpu")


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(seed: int, timesteps: list[int], *, side: int = 8, xl: bool = False) -> Rows:
    count = len(timesteps)
    return Rows(
        drawn(seed, count, 4, side, side),
        torch.tensor(timesteps),
        drawn(seed + 1, count, 77, 64 if xl else 32),
        drawn(seed + 2, count, 32) if xl else None,
        torch.tensor([[64.0, 64, 0, 0, 64, 64]] * count) if xl else None,
    )


def brain_of(models: ModelCache, name: str, *, streams: int = 4) -> Brain:
    checkpoint = Checkpoint.read(name, models.path(name))
    return load_brain(checkpoint, [], models, CPU, lambda stage, done: None, streams=streams)


def together(brain: Brain, asked: list[Rows]) -> list[torch.Tensor]:
    """Ask on behalf of so many streams at once."""
    denoiser = brain.denoiser
    for _ in asked:
        denoiser.batcher.join()
    ready = threading.Barrier(len(asked))

    def ask(one: Rows) -> torch.Tensor:
        with torch.inference_mode():
            ready.wait(10)
            return denoiser(one)

    try:
        with ThreadPoolExecutor(len(asked)) as threads:
            return list(threads.map(ask, asked))
    finally:
        for _ in asked:
            denoiser.batcher.leave()


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-turbo"])
def test_rows_of_several_streams_come_out_as_they_would_alone(models: ModelCache, name: str) -> None:
    brain = brain_of(models, name)
    brain.denoiser.batcher._wait_s = 10.0  # so that the one call below is no matter of luck
    try:
        xl = name == "sdxl-turbo"
        asked = [
            rows(1, [759, 599, 359], xl=xl),
            rows(11, [359], xl=xl),
            rows(21, [899, 759, 699, 599], xl=xl),
        ]
        alone = []
        for one in asked:
            brain.denoiser.batcher.join()
            alone.append(brain.denoiser(one))
            brain.denoiser.batcher.leave()
        assert (brain.denoiser.calls, brain.denoiser.rows) == (3, 8)
        got = together(brain, asked)
        assert (brain.denoiser.calls, brain.denoiser.rows) == (4, 16)
        for made, expected in zip(got, alone, strict=True):
            torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    finally:
        brain.close()


def test_streams_of_different_sizes_share_a_model_and_not_a_call(models: ModelCache) -> None:
    brain = brain_of(models, "sd-turbo")
    brain.denoiser.batcher._wait_s = 10.0
    try:
        got = together(brain, [rows(1, [359], side=8), rows(2, [359, 99], side=16)])
        assert [tuple(one.shape) for one in got] == [(1, 4, 8, 8), (2, 4, 16, 16)]
        assert brain.denoiser.calls == 2
    finally:
        brain.close()


def test_a_control_leads_the_rows_it_is_of_and_no_others(models: ModelCache) -> None:
    brain = brain_of(models, "sd-turbo")
    brain.denoiser.batcher._wait_s = 10.0
    net = load_controller("controlnet", brain.checkpoint, models, CPU, lambda stage, done: None)
    try:
        plain, other = rows(1, [759, 359]), rows(5, [599])
        control = Control(net, drawn(9, 2, 3, 64, 64), (0.0, 0.8))
        led = Rows(plain.latents, plain.timesteps, plain.texts, controls=(control,))
        with torch.inference_mode():
            expected = [brain.denoiser._predict([plain])[0], brain.denoiser._predict([other])[0]]
            alone = brain.denoiser._predict([led])[0]
        got = together(brain, [led, other])
        torch.testing.assert_close(got[0][0], expected[0][0], atol=1e-5, rtol=1e-4)
        assert float((got[0][1] - expected[0][1]).abs().max()) > 0.01
        torch.testing.assert_close(got[0], alone, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(got[1], expected[1], atol=1e-5, rtol=1e-4)
    finally:
        brain.close()


def test_controls_of_scale_zero_are_not_computed(models: ModelCache) -> None:
    brain = brain_of(models, "sd-turbo")
    net = load_controller("controlnet", brain.checkpoint, models, CPU, lambda stage, done: None)
    try:
        plain = rows(1, [759, 359])
        control = Control(net, drawn(9, 2, 3, 64, 64), (0.0, 0.0))
        got = brain.denoiser(Rows(plain.latents, plain.timesteps, plain.texts, controls=(control,)))
        assert net.calls == 0
        assert torch.equal(got, brain.denoiser(plain))
    finally:
        brain.close()


def test_residuals_of_several_controls_are_added_up(models: ModelCache) -> None:
    brain = brain_of(models, "sd-turbo")
    net = load_controller("controlnet", brain.checkpoint, models, CPU, lambda stage, done: None)
    try:
        plain = rows(1, [759, 359])
        picture = drawn(9, 2, 3, 64, 64)

        def led(*scales: float) -> torch.Tensor:
            controls = tuple(Control(net, picture, (scale, scale)) for scale in scales)
            return brain.denoiser(Rows(plain.latents, plain.timesteps, plain.texts, controls=controls))

        torch.testing.assert_close(led(0.3, 0.4), led(0.7), atol=1e-5, rtol=1e-4)
    finally:
        brain.close()


def test_a_failing_call_is_each_callers_and_ends_nothing(models: ModelCache) -> None:
    brain = brain_of(models, "sd-turbo")
    try:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            brain.denoiser(rows(1, [359], xl=True))
        assert brain.denoiser(rows(1, [359])).shape == (1, 4, 8, 8)
    finally:
        brain.close()


def test_batches_are_padded_up_to_few_sizes_with_what_is_there() -> None:
    assert [padded(rows) for rows in (1, 3, 5, 7, 9, 32, 40)] == [1, 3, 6, 8, 12, 32, 40]
    assert all(padded(size) == size for size in BATCHES)
    tensor = torch.tensor([[1.0], [2.0]])
    assert padding(tensor, 4).flatten().tolist() == [1, 2, 2, 2]
    assert padding(tensor, 2) is tensor


def test_a_padded_batch_comes_out_as_one_that_is_not(models: ModelCache) -> None:
    brain = brain_of(models, "sd-turbo")
    try:
        plain = rows(1, [759, 599, 359, 99, 19])
        expected = brain.denoiser(plain)
        brain.denoiser._acceleration = Acceleration(torch.device("cpu"), half=False, compiled=True)
        seen: list[int] = []
        unet = brain.denoiser._unet

        def counting(latents: torch.Tensor, *rest: object, **named: object) -> object:
            seen.append(len(latents))
            return unet(latents, *rest, **named)

        brain.denoiser._unet = counting
        torch.testing.assert_close(brain.denoiser(plain), expected, atol=1e-5, rtol=1e-4)
        assert seen == [6]
    finally:
        brain.close()


def test_a_cpu_computes_in_float32_and_compiles_nothing() -> None:
    assert Acceleration(torch.device("cpu"), half=False, compiled=False) == CPU
    assert CPU.dtype == torch.float32 == CPU.wide_dtype
    assert CPU.free_bytes() > 1 << 20
    with pytest.raises(ValueError, match="compile is for CUDA"):
        Acceleration.of("compile", "cpu")


def test_on_cuda_it_is_float16_and_compiled_unless_somebody_wants_none() -> None:
    auto, none = Acceleration.of("auto", "cuda:0"), Acceleration.of("none", "cuda:0")
    assert (auto.dtype, auto.compiled) == (torch.float16, True)
    assert (none.dtype, none.compiled) == (torch.float16, False)
