from __future__ import annotations

import pytest
import torch

from services.inference.engine.pipelines.streamdiffusion.guidance import Guidance, Guide, Row
from services.inference.engine.pipelines.streamdiffusion.schedule import Schedule
from services.inference.engine.pipelines.streamdiffusion.stream_batch import Asked, Sequential, StreamBatch

SCHEDULE = Schedule.of({})
INDICES = {1: [32], 2: [12, 32], 3: [12, 20, 32], 4: [5, 12, 20, 32]}
SHAPE = (4, 8, 8)
PLAIN = Guide.of("none", 1.0, 1.0)


class Network:
    """Stands for a U-Net: what it predicts depends on latent, timestep and prompt; counts rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.asked: list[Asked] = []
        generator = torch.Generator().manual_seed(5)
        self._mixing = torch.randn(4, 4, generator=generator) / 2

    def __call__(self, asked: Asked) -> torch.Tensor:
        self.rows.append(len(asked.latents))
        self.asked.append(asked)
        mixed = torch.einsum("rchw,cd->rdhw", asked.latents, self._mixing)
        times = torch.tensor(asked.timesteps).view(-1, 1, 1, 1) / 1000
        signs = torch.tensor([-0.5 if negative else 1.0 for negative in asked.negative]).view(-1, 1, 1, 1)
        return torch.tanh(mixed * times) * signs


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("add_noise", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "guide",
    [
        PLAIN,
        Guide.of("full", 1.8, 1.0),
        Guide.of("self", 1.8, 0.7),
        Guide.of("initialize", 1.8, 1.2),
    ],
    ids=lambda guide: guide.kind,
)
def test_a_stream_batch_makes_of_each_frame_what_its_steps_make_one_after_the_other(
    steps: int, guide: Guide, add_noise: bool
) -> None:
    taken = SCHEDULE.steps(50, INDICES[steps])
    noise = drawn(1, steps, *SHAPE)
    batch = StreamBatch(taken, noise, add_noise=add_noise)
    alone = Sequential(taken, noise[:1], lambda step: noise[step : step + 1], add_noise=add_noise)
    frames = [drawn(100 + index, 1, *SHAPE) for index in range(9)]
    expected = [alone.denoise(frame, guide, Network()) for frame in frames]
    got = [batch.denoise(frame, guide, Network()) for frame in frames]
    assert batch.delay == steps - 1
    for index in range(batch.delay, len(frames)):
        scale = float(expected[index - batch.delay].abs().max())
        assert float((got[index] - expected[index - batch.delay]).abs().max()) < 1e-5 * max(scale, 1)


def test_a_frame_may_start_at_another_step_than_the_others() -> None:
    taken = SCHEDULE.steps(50, INDICES[3])
    noise = drawn(1, 3, *SHAPE)
    batch = StreamBatch(taken, noise)
    alone = Sequential(taken, noise[:1], lambda step: noise[step : step + 1])
    starts = [SCHEDULE.step(759 - 20 * index) for index in range(6)]
    frames = [drawn(100 + index, 1, *SHAPE) for index in range(6)]
    pairs = list(zip(frames, starts, strict=True))
    guide = Guide.of("self", 1.5, 0.9)
    expected = [alone.denoise(frame, guide, Network(), start) for frame, start in pairs]
    got = [batch.denoise(frame, guide, Network(), start) for frame, start in pairs]
    for index in range(2, 6):
        torch.testing.assert_close(got[index], expected[index - 2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "scale", "rows"),
    [
        ("none", 2.0, 3),
        ("full", 2.0, 6),
        ("self", 2.0, 3),
        ("initialize", 2.0, 4),
        ("full", 1.0, 3),
        ("initialize", 0.5, 3),
    ],
)
def test_a_frame_costs_one_call_of_as_many_rows_as_its_guidance_needs(
    kind: str, scale: float, rows: int
) -> None:
    network = Network()
    batch = StreamBatch(SCHEDULE.steps(50, INDICES[3]), drawn(1, 3, *SHAPE))
    for index in range(4):
        batch.denoise(drawn(index, 1, *SHAPE), Guide.of(kind, scale, 1.0), network)
    assert network.rows == [rows] * 4


def test_steps_one_after_the_other_cost_a_call_each() -> None:
    network = Network()
    noise = drawn(1, 3, *SHAPE)
    alone = Sequential(SCHEDULE.steps(50, INDICES[3]), noise, lambda step: noise[step : step + 1])
    alone.denoise(drawn(2, 1, *SHAPE), Guide.of("initialize", 2.0, 1.0), network)
    assert network.rows == [2, 1, 1]
    assert [asked.steps[0] for asked in network.asked] == [0, 1, 2]


def test_each_row_says_which_frame_and_which_step_it_is() -> None:
    network = Network()
    batch = StreamBatch(SCHEDULE.steps(50, INDICES[3]), drawn(1, 3, *SHAPE))
    batch.denoise(drawn(2, 1, *SHAPE), Guide.of("initialize", 2.0, 1.0), network)
    (asked,) = network.asked
    assert asked.negative == (True, False, False, False)
    assert asked.ages == asked.steps == (0, 0, 1, 2)
    assert asked.timesteps == (759, 759, 599, 359)


def test_the_noise_that_is_predicted_exactly_leaves_exactly_the_frame() -> None:
    steps = SCHEDULE.steps(50, INDICES[3])
    noise = drawn(1, 3, *SHAPE)
    batch = StreamBatch(steps, noise)
    frames = [drawn(10 + index, 1, *SHAPE) for index in range(5)]
    got = [batch.denoise(frame, PLAIN, lambda asked: noise[list(asked.steps)]) for frame in frames]
    for index in range(2, 5):
        torch.testing.assert_close(got[index], frames[index - 2], atol=1e-4, rtol=1e-4)


def test_other_noise_voids_what_was_taken_for_the_old() -> None:
    batch = StreamBatch(SCHEDULE.steps(50, INDICES[2]), drawn(1, 2, *SHAPE))
    batch.denoise(drawn(2, 1, *SHAPE), Guide.of("self", 2.0, 1.0), Network())
    assert float(batch.stock.abs().max()) > 0
    batch.renoise(drawn(3, 2, *SHAPE))
    assert float(batch.stock.abs().max()) == 0
    torch.testing.assert_close(batch.noise, drawn(3, 2, *SHAPE))


def test_a_scale_of_one_or_less_is_no_guidance() -> None:
    for kind in Guidance:
        assert Guide.of(kind, 1.0, 0.7).kind is Guidance.NONE
    assert Guide.of("self", 1.01, 0.7).kind is Guidance.SELF


def test_full_guidance_goes_from_the_negative_prompts_prediction_past_the_prompts() -> None:
    predicted = torch.cat([torch.full((2, 1, 1, 1), 1.0), torch.full((2, 1, 1, 1), 3.0)])
    guided, _ = Guide.of("full", 2.5, 0.7).guided(predicted, torch.zeros(2, 1, 1, 1))
    assert guided.flatten().tolist() == [6.0, 6.0]  # 1 + 2.5 * (3 - 1)


def test_self_guidance_goes_from_a_part_of_the_noise_that_went_in() -> None:
    stock = torch.full((2, 1, 1, 1), 2.0)
    guided, kept = Guide.of("self", 1.5, 0.5).guided(torch.full((2, 1, 1, 1), 3.0), stock)
    assert guided.flatten().tolist() == [4.0, 4.0]  # 0.5 * 2 + 1.5 * (3 - 1)
    assert kept is stock


def test_initializing_guidance_takes_the_negative_prompts_prediction_for_the_first_steps_noise() -> None:
    predicted = torch.tensor([7.0, 3.0, 3.0]).view(3, 1, 1, 1)
    guide = Guide.of("initialize", 2.0, 1.0)
    guided, kept = guide.guided(predicted, torch.full((2, 1, 1, 1), 2.0))
    assert kept.flatten().tolist() == [7.0, 2.0]
    assert guided.flatten().tolist() == [-1.0, 4.0]
    assert guide.rows(2) == (Row(0, negative=True), Row(0), Row(1))


def test_a_first_step_of_self_guidance_at_delta_one_cancels_the_noise_that_was_injected() -> None:
    """With one step, what remains of the noise is scale - (scale - 1) * delta: 1, as without guidance."""
    steps = SCHEDULE.steps(50, [32])
    noise = drawn(1, 1, *SHAPE)
    frame = drawn(2, 1, *SHAPE)
    for delta, remains in ((1.0, 1.0), (0.7, 1.3), (2.0, 0.0)):
        batch = StreamBatch(steps, noise)
        made = batch.denoise(frame, Guide.of("self", 2.0, delta), lambda asked: noise)
        expected = frame + steps[0].b / steps[0].a * (1 - remains) * noise
        torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)
