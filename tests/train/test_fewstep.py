"""Distillation to few steps: whole runs of both methods, and what each is taught."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)

from kdc_edge.checkpoint import Checkpoint, Sampling
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json, write_json
from kdc_edge.spec import pipeline_spec
from train import autoencoder
from train.cache import cached
from train.diffusion import noise_schedule
from train.distill import distill
from train.fewstep import fewstep
from train.folders import load_pipeline
from train.progressive import jumps, progressive_loss
from train.recipes import DistillConfig, FewStepConfig, LoopConfig, PicturesConfig
from train.solver import Solver
from train.trainer import Part, generator_at


def settings(model: Path, pictures: Path, folder: Path, **changes: Any) -> FewStepConfig:
    """Of a run whose every file is in `folder`."""
    return FewStepConfig(
        model=model,
        output_dir=folder / "out",
        run_dir=folder / "run",
        pictures=PicturesConfig(str(pictures), cache_dir=folder / "cache"),
        log=folder / "log.md",
        **changes,
    )


@pytest.mark.parametrize("method", ["progressive", "consistency"])
@pytest.mark.parametrize("shape", ["tiny_checkpoint", "tiny_sd_checkpoint"])
def test_a_run_makes_a_folder_that_draws_in_three_steps(
    shape: str, method: str, few: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(shape)
    config = settings(
        model,
        few,
        tmp_path,
        method=method,
        steps_drawn=3,
        loop=LoopConfig(4, 4, 1e-3, warmup=1, ema=0.95, sample_every=4),
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


def sampled_by(model: Path, folder: Path, scheduler: type, **changes: object) -> Path:
    """The same checkpoint with the noise it knows and another sampler."""
    shutil.copytree(model, folder)
    known = read_json(folder / "scheduler" / "scheduler_config.json")
    shutil.rmtree(folder / "scheduler")
    names = ("beta_start", "beta_end", "beta_schedule", "prediction_type")
    scheduler(**{name: known[name] for name in names}, steps_offset=1, **changes).save_pretrained(folder / "scheduler")
    index = read_json(folder / "model_index.json") | {"scheduler": ["diffusers", scheduler.__name__]}
    write_json(folder / "model_index.json", index)
    return folder


@pytest.mark.parametrize(
    ("scheduler", "changes", "method"),
    [
        (PNDMScheduler, {"skip_prk_steps": True}, "progressive"),
        (EulerDiscreteScheduler, {}, "progressive"),
        (DPMSolverMultistepScheduler, {}, "consistency"),
    ],
)
def test_a_folder_of_any_sampler_is_trained_as_ddim(
    scheduler: type, changes: dict, method: str, tiny_checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    """The noise is the plain folder's, v-prediction included; what progressive makes says ddim, in as many calls as asked."""
    model = sampled_by(tiny_checkpoint, tmp_path / "model", scheduler, **changes)
    plain, other = (load_pipeline(str(path)).scheduler for path in (tiny_checkpoint, model))
    ours = noise_schedule(other)
    assert noise_schedule(plain) is plain and isinstance(ours, DDIMScheduler)
    clean, noise, timesteps = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8), torch.tensor([20, 900])
    for name in ("add_noise", "get_velocity"):
        assert torch.allclose(
            getattr(ours, name)(clean, noise, timesteps), getattr(plain, name)(clean, noise, timesteps)
        )
    assert [here for here, _ in jumps(ours, 4)] == [999, 749, 499, 249]
    fewstep(settings(model, few, tmp_path, method=method, loop=LoopConfig(2, 4, 1e-3, warmup=1)))
    spec = pipeline_spec(Checkpoint.open(tmp_path / "out"))
    assert spec.sampler == ("ddim" if method == "progressive" else "lcm")


def test_a_distilled_folder_keeps_its_own_sampler(tiny_checkpoint: Path, few: Path, tmp_path: Path) -> None:
    model = sampled_by(tiny_checkpoint, tmp_path / "model", EulerDiscreteScheduler)
    config = DistillConfig(
        str(model),
        init=model,
        output_dir=tmp_path / "out",
        run_dir=tmp_path / "run",
        pictures=PicturesConfig(str(few), cache_dir=tmp_path / "cache"),
        loop=LoopConfig(2, 4, 1e-3, warmup=1),
        log=tmp_path / "log.md",
    )
    distill(config)
    assert isinstance(load_pipeline(str(tmp_path / "out")).scheduler, EulerDiscreteScheduler)


def test_a_scheduler_without_betas() -> None:
    with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler has no beta_schedule"):
        noise_schedule(FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"steps_drawn": 0}, "--steps-drawn is 0"),
        ({"steps_drawn": 51, "method": "consistency"}, "--steps-drawn is 51, must be between 1 and 50"),
        ({"steps_drawn": 1001}, "--steps-drawn is 1001, must be between 1 and 1000"),
        ({"parts": 0}, "--parts is 0"),
        ({"toned_share": 1.5}, "--toned-share is 1.5; it must be between 0 and 1"),
        ({"guidance": (2.0, math.inf)}, "--guidance is inf; it must be finite"),
        ({"loop": LoopConfig(2, 4, 0.0)}, "--learning-rate is 0.0"),
        ({"loop": LoopConfig(2, 4, 1e-3, accumulate=3)}, "does not divide into 3 parts"),
        ({"loop": LoopConfig(2, 4, 1e-3, precision="fp16")}, "--precision fp16: not on a cpu"),
    ],
)
def test_settings_are_refused_before_anything_is_computed(
    changes: dict, complaint: str, tiny_checkpoint: Path, few: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=complaint):
        fewstep(settings(tiny_checkpoint, few, tmp_path, **changes))
    assert not (tmp_path / "cache").exists()


def test_progressive_encodes_no_picture(
    tiny_checkpoint: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, config = load_pipeline(str(tiny_checkpoint)), PicturesConfig(str(few), cache_dir=tmp_path)
    one, other = (Part(0, 0, 1, generator_at(0, 0), torch.device("cpu")) for _ in range(2))
    full, table = cached(config, pipeline, 0.2)
    monkeypatch.setattr(autoencoder, "posterior", None)
    source, same = cached(config, pipeline, 0.2, encode=False)
    assert table == same
    assert all(torch.equal(a, b) for a, b in zip(full.start(4, one), source.start(4, other), strict=True))


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
