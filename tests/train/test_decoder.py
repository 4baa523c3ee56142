"""A tiny decoder: what it learns from, and a folder that draws with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import UsageError
from train import tiny_decoder
from train.decoder import decoder
from train.folders import load_pipeline
from train.recipes import DecoderConfig, LoopConfig, PicturesConfig


@pytest.fixture
def config(tiny_sd_checkpoint: Path, few: Path, tmp_path: Path) -> DecoderConfig:
    return DecoderConfig(
        model=tiny_sd_checkpoint,
        output_dir=tmp_path / "out",
        run_dir=tmp_path / "run",
        pictures=PicturesConfig(str(few), cache_dir=tmp_path / "cache"),
        channels=16,
        blocks=(1, 1),
        loop=LoopConfig(60, 8, 3e-3, warmup=5, ema=0.9),
        log=tmp_path / "log.md",
    )


def test_a_tiny_decoder_learns_the_teachers_pictures(config: DecoderConfig, tmp_path: Path) -> None:
    found = decoder(config)
    first, last = found["loss"]["first"], found["loss"]["last"]
    assert set(first) == {"l1", "l2", "latent", "features"}
    assert last["l2"] < 0.5 * first["l2"] and last["features"] < first["features"]
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.vae, AutoencoderTiny) and pipeline.vae.config.scaling_factor == 1
    picture = pipeline("red apple", height=16, width=16, num_inference_steps=2, output_type="np").images
    assert picture.shape == (1, 16, 16, 3)
    assert Checkpoint.open(tmp_path / "out").info.metrics["psnr_to_teacher"] == found["psnr_to_teacher"] > 10
    with pytest.raises(UsageError, match="exists"):
        decoder(config)


def test_the_teacher_decodes_as_its_pipeline_does(tiny_sd_checkpoint: Path) -> None:
    pipeline = load_pipeline(str(tiny_sd_checkpoint))
    z = torch.randn(1, 4, 8, 8)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline.image_processor.postprocess(pipeline.vae.decode(z / 0.18215).sample, output_type="pt")
    assert torch.allclose((tiny_decoder.Teacher(pipeline.vae).decode(z) + 1) / 2, expected, atol=1e-6)


def test_what_cannot_be_made_tiny(config: DecoderConfig, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="is an AutoencoderTiny"):
        decoder(replace(config, model=tiny_checkpoint))
    with pytest.raises(UsageError, match="--blocks has 3 numbers, the autoencoder has 2 levels"):
        decoder(replace(config, blocks=(1, 1, 1)))
