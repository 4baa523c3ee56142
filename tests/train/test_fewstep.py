"""Distillation to few steps: whole runs of both methods, and what each is taught."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler, StableDiffusionPipeline

from kdc_edge.checkpoint import Checkpoint, Sampling
from kdc_edge.errors import UsageError
from kdc_edge.spec import pipeline_spec
from train.cache import cached
from train.fewstep import fewstep
from train.folders import load_pipeline
from train.progressive import progressive_loss
from train.recipes import FewStepConfig, LoopConfig, PicturesConfig
from train.solver import Solver
from train.trainer import Part, generator_at


@pytest.mark.parametrize("method", ["progressive", "consistency"])
@pytest.mark.parametrize("shape", ["tiny_checkpoint", "tiny_sd_checkpoint"])
def test_a_run_makes_a_folder_that_draws_in_three_steps(
    shape: str, method: str, few: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(shape)
    config = FewStepConfig(
        model=model,
        output_dir=tmp_path / "out",
        run_dir=tmp_path / "run",
        method=method,
        pictures=PicturesConfig(str(few), cache_dir=tmp_path / "cache"),
        steps_drawn=3,
        loop=LoopConfig(4, 4, 1e-3, warmup=1, ema=0.95, sample_every=4),
        log=tmp_path / "log.md",
    )
    found = fewstep(config)
    checkpoint = Checkpoint.open(tmp_path / "out")
    assert checkpoint.id == found["checkpoint"] and checkpoint.info.teacher == Checkpoint.open(model).id
    assert checkpoint.info.sampling == Sampling(3, 1.0)
    assert checkpoint.info.config["guidance"] == [pipeline_spec(Checkpoint.open(model)).guidance] * 2
    spec = pipeline_spec(checkpoint)
    assert (spec.steps, spec.guidance) == (3, 1.0)
    assert pipeline_spec(checkpoint, steps=8).steps == 8
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, LCMScheduler if method == "consistency" else DDIMScheduler)
    pictures = pipeline("red apple", num_inference_steps=3, guidance_scale=1.0, output_type="np").images
    assert torch.isfinite(torch.from_numpy(pictures)).all()
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["0000004.png"]
    with pytest.raises(UsageError, match="exists"):
        fewstep(config)
    if method == "progressive":
        again = fewstep(replace(config, init=tmp_path / "out", run_dir=tmp_path / "again", force=True))
        assert again["checkpoint"] != found["checkpoint"]


def test_a_start_of_another_kind(tiny_checkpoint: Path, tiny_sd_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its in_channels is 4, the model's is 16; --init wants one of the same kind"):
        fewstep(FewStepConfig(model=tiny_checkpoint, init=tiny_sd_checkpoint, output_dir=tmp_path / "out"))


def test_a_model_without_guidance_is_already_its_own_progressive_student(
    tiny_checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    """One part of a step is the step itself; two are not; and guided it goes elsewhere."""
    pipeline = load_pipeline(str(tiny_checkpoint))
    source, _ = cached(PicturesConfig(str(few), cache_dir=tmp_path), pipeline, 0.0)
    part = {"step": 0, "index": 0, "count": 1, "device": torch.device("cpu")}

    def error(guidance: float, parts: int) -> float:
        solver = Solver.of(pipeline.scheduler, (guidance, guidance))
        loss = progressive_loss(pipeline.unet, source, solver, 4, steps=4, parts=parts)
        return loss(pipeline.unet, Part(**part, generator=generator_at(0, 0)))["progressive"].item()

    assert error(1.0, 1) < 1e-9
    assert error(1.0, 2) > 1e-6 and error(3.0, 1) > 1e-6
    with pytest.raises(UsageError, match="--parts is 0"):
        error(1.0, 0)
