"""DDIM's arithmetic against diffusers' schedulers, and what few-step distillation builds on it."""

import pytest
import torch
from diffusers import DDIMScheduler

from kdc_edge.errors import UsageError
from train.consistency import STEPS, grid, huber, lcm_scheduler, picture
from train.diffusion import build_scheduler
from train.progressive import between, jumps
from train.solver import Solver

KINDS = ("epsilon", "v_prediction", "sample")


def scheduler(kind: str, **changes: object) -> DDIMScheduler:
    return DDIMScheduler.from_config({**build_scheduler().config, "prediction_type": kind, **changes})


def solver_of(kind: str, *guidance: float, **changes: object) -> Solver:
    return Solver.of(scheduler(kind, **changes), guidance or (3.0, 3.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [3, 4, STEPS])
@pytest.mark.parametrize("to_one", [True, False])
def test_a_jump_is_a_step_of_ddim(kind: str, steps: int, to_one: bool) -> None:
    plain, solver = scheduler(kind, set_alpha_to_one=to_one), solver_of(kind, set_alpha_to_one=to_one)
    torch.manual_seed(0)
    z, prediction = torch.randn(2, 2, 4, 3, 3)
    for here, there in (way := jumps(plain, steps)):
        expected = plain.step(prediction, here, z).prev_sample
        assert torch.allclose(solver.jump(z, prediction, *torch.tensor((here, there))), expected, atol=1e-4)
    assert len(way) == steps and way[-1][1] == -1


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_between_two_places_leads_from_one_to_the_other(kind: str) -> None:
    solver = solver_of(kind)
    torch.manual_seed(0)
    z, prediction = torch.randn(2, 2, 4, 3, 3)
    for jump in ((999, 749), (249, -1)):
        here, there = torch.tensor(jump)
        expected, _ = solver.parts(z, prediction, here)
        arrived = solver.jump(z, prediction, here, there)
        assert torch.allclose(solver.picture_between(z, arrived, here, there), expected, atol=1e-4)


def test_stations_of_the_model_and_steps_that_cannot_be() -> None:
    assert between(999, 749, 2) == [999, 874, 749] and between(249, -1, 1) == [249, -1]
    assert jumps(scheduler("epsilon"), 3) == [(999, 666), (666, 333), (332, -1)]
    with pytest.raises(UsageError, match="--steps-drawn is 0, must be between 1 and 1000"):
        jumps(scheduler("epsilon"), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_what_the_lcm_scheduler_takes_it_for(kind: str) -> None:
    solver, few = solver_of(kind), lcm_scheduler(scheduler(kind))
    few.set_timesteps(4)
    z, prediction = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    for timestep in few.timesteps:
        assert timestep in grid(scheduler(kind))
        few._step_index = None
        expected = few.step(prediction, timestep, z, generator=torch.Generator()).denoised
        assert torch.allclose(picture(solver, z, prediction, timestep[None]), expected, atol=1e-5)


def test_where_no_noise_is_left_the_picture_is_what_is_there() -> None:
    z = torch.randn(3, 4, 2, 2)
    assert torch.equal(picture(solver_of("epsilon"), z, torch.randn_like(z), torch.zeros(3, dtype=torch.int64)), z)


def test_guidance_and_the_grid() -> None:
    ones = torch.ones(2, 1, 1, 1)
    guided = solver_of("epsilon", 3.0, 5.0).guided(2 * ones, ones, torch.tensor([0.0, 0.5]))
    assert guided.flatten().tolist() == [4, 5]
    assert grid(scheduler("epsilon"))[[0, -1]].tolist() == [19, 999]
    assert huber(torch.zeros(3), torch.zeros(3)) == 0
    assert huber(torch.zeros(3), torch.ones(3)) == pytest.approx(0.999, abs=1e-3)
    for impossible in ((0.5, 3.0), (3.0, 2.0)):
        with pytest.raises(UsageError, match="it must rise, from 1"):
            solver_of("epsilon", *impossible)
