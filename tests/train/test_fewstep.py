"""Consistency distillation: its arithmetic against diffusers' schedulers, and a whole run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import UsageError
from train.consistency import STEPS, Solver, huber, lcm_scheduler
from train.diffusion import build_scheduler
from train.fewstep import fewstep
from train.recipes import FewStepConfig, LoopConfig, PicturesConfig

KINDS = ("epsilon", "v_prediction", "sample")


def scheduler(kind: str) -> DDIMScheduler:
    return DDIMScheduler.from_config({**build_scheduler().config, "prediction_type": kind, "set_alpha_to_one": False})


@pytest.mark.parametrize("kind", KINDS)
def test_a_jump_is_a_step_of_ddim(kind: str) -> None:
    plain, solver = scheduler(kind), Solver.of(scheduler(kind), (3.0, 3.0))
    plain.set_timesteps(STEPS)
    torch.manual_seed(0)
    z, prediction = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    for timestep in (999, 519, 39):
        here = torch.tensor([timestep, timestep])
        expected = plain.step(prediction, timestep, z).prev_sample
        assert torch.allclose(solver.jump(z, prediction, here, solver.before(here)), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_picture_is_what_the_lcm_scheduler_takes_it_for(kind: str) -> None:
    solver, few = Solver.of(scheduler(kind), (3.0, 3.0)), lcm_scheduler(scheduler(kind))
    few.set_timesteps(4)
    z, prediction = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3)
    for timestep in few.timesteps:
        assert timestep in solver.timesteps
        few._step_index = None
        expected = few.step(prediction, timestep, z, generator=torch.Generator()).denoised
        assert torch.allclose(solver.picture(z, prediction, timestep[None]), expected, atol=1e-5)


def test_where_no_noise_is_left_the_picture_is_what_is_there() -> None:
    solver = Solver.of(scheduler("epsilon"), (1.0, 1.0))
    z = torch.randn(3, 4, 2, 2)
    assert torch.equal(solver.picture(z, torch.randn_like(z), torch.zeros(3, dtype=torch.int64)), z)


def test_guidance_and_the_grid() -> None:
    solver = Solver.of(scheduler("epsilon"), (3.0, 5.0))
    ones = torch.ones(2, 1, 1, 1)
    assert solver.guided(2 * ones, ones, torch.tensor([0.0, 0.5])).flatten().tolist() == [4, 5]
    assert solver.timesteps[[0, -1]].tolist() == [19, 999]
    assert solver.before(torch.tensor([19, 999])).tolist() == [0, 979]
    assert huber(torch.zeros(3), torch.zeros(3)) == 0
    assert huber(torch.zeros(3), torch.ones(3)) == pytest.approx(0.999, abs=1e-3)
    for impossible in ((0.5, 3.0), (3.0, 2.0)):
        with pytest.raises(UsageError, match="it must rise, from 1"):
            Solver.of(scheduler("epsilon"), impossible)


@pytest.mark.parametrize("shape", ["tiny_checkpoint", "tiny_sd_checkpoint"])
def test_a_run_makes_a_folder_that_draws_in_four_steps(
    shape: str, few: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(shape)
    config = FewStepConfig(
        model=model,
        output_dir=tmp_path / "out",
        run_dir=tmp_path / "run",
        pictures=PicturesConfig(str(few), cache_dir=tmp_path / "cache"),
        loop=LoopConfig(4, 4, 1e-3, warmup=1, ema=0.95, sample_every=4),
        log=tmp_path / "log.md",
    )
    found = fewstep(config)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.id == found["checkpoint"] and checkpoint.info.teacher == Checkpoint.open(model).id
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    pictures = pipeline("red apple", num_inference_steps=4, guidance_scale=1.0, output_type="np").images
    assert torch.isfinite(torch.from_numpy(pictures)).all()
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["0000004.png"]
    with pytest.raises(UsageError, match="exists"):
        fewstep(replace(config, force=False))
