from __future__ import annotations

from typing import Any

import diffusers
import pytest

from services.inference.engine.pipelines.streamdiffusion.schedule import Schedule

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = Schedule.of(NOISE)


@pytest.mark.parametrize(
    ("index", "timestep", "a", "b"),
    [
        (0, 999, 0.068265, 0.997667),
        (5, 899, 0.119577, 0.992825),
        (12, 759, 0.228501, 0.973544),
        (15, 699, 0.288320, 0.957534),
        (16, 679, 0.309813, 0.950798),
        (20, 599, 0.402185, 0.915559),
        (32, 359, 0.701071, 0.713092),
        (36, 279, 0.791030, 0.611777),
        (45, 99, 0.946289, 0.323323),
        (49, 19, 0.991082, 0.133252),
    ],
)
def test_a_step_has_the_coefficients_that_the_reference_was_measured_to_have(
    index: int, timestep: int, a: float, b: float
) -> None:
    (step,) = SCHEDULE.steps(50, [index])
    assert step.timestep == timestep
    assert step.a == pytest.approx(a, abs=2e-6)
    assert step.b == pytest.approx(b, abs=2e-6)


@pytest.mark.parametrize(
    ("count", "timesteps"),
    [
        (1, (999,)),
        (2, (999, 499)),
        (4, (999, 759, 499, 259)),
        (8, (999, 879, 759, 639, 499, 379, 259, 139)),
    ],
)
def test_few_steps_are_spread_over_the_schedule(count: int, timesteps: tuple[int, ...]) -> None:
    assert SCHEDULE.timesteps(count) == timesteps


def test_timesteps_and_scalings_are_those_of_diffusers() -> None:
    library: Any = diffusers
    reference = library.LCMScheduler(**NOISE)
    for count in range(1, 51):
        reference.set_timesteps(count)
        assert SCHEDULE.timesteps(count) == tuple(reference.timesteps.tolist())
    for step in SCHEDULE.steps(50, range(50)):
        assert step.a**2 == pytest.approx(float(reference.alphas_cumprod[step.timestep]), abs=1e-6)
        c_skip, c_out = reference.get_scalings_for_boundary_condition_discrete(step.timestep)
        assert step.c_skip == pytest.approx(float(c_skip))
        assert step.c_out == pytest.approx(float(c_out))


@pytest.mark.parametrize(("count", "indices"), [(51, [0]), (0, [0]), (4, [4]), (4, []), (4, [-1])])
def test_steps_that_no_schedule_has_are_refused(count: int, indices: list[int]) -> None:
    with pytest.raises(ValueError, match=r"steps"):
        SCHEDULE.steps(count, indices)


def test_a_schedule_of_another_kind_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="squaredcos_cap_v2"):
        Schedule.of({"beta_schedule": "squaredcos_cap_v2"})
    with pytest.raises(ValueError, match="betas of its own"):
        Schedule.of({"trained_betas": [0.1, 0.2]})
    with pytest.raises(ValueError, match="rescaled"):
        Schedule.of({"rescale_betas_zero_snr": True})


def test_a_linear_schedule_is_that_of_diffusers() -> None:
    library: Any = diffusers
    config = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
    reference = library.LCMScheduler(**config)
    assert Schedule.of(config).kept == pytest.approx(reference.alphas_cumprod.tolist(), abs=1e-6)
