"""A tiny decoder: what it learns from, and a folder that draws with it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
from kdc_edge.errors import UsageError
from train import autoencoder, tiny_decoder
from train.data import Pictures
from train.decoder import decoder
from train.folders import assemble, load_pipeline, save_pipeline
from train.loop import fit
from train.recipes import DecoderConfig, LoopConfig, PicturesConfig
from train.trainer import Part, seeded


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
    with pytest.raises(UsageError, match="--blocks is -1; it must be 0 or more"):
        decoder(replace(config, blocks=(1, -1)))
    for change in ({"checkpointing": True}, {"sample_every": 3}):
        with pytest.raises(UsageError, match="of use to a U-Net only"):
            decoder(replace(config, loop=replace(config.loop, **change)))
    with pytest.raises(UsageError, match=r"--features is -1\.0; it must be 0 or more"):
        decoder(replace(config, features=-1.0))
    with pytest.raises(UsageError, match="does not divide into 3 parts"):
        decoder(replace(config, loop=replace(config.loop, accumulate=3)))
    assert not config.pictures.cache_dir.exists()


class Variational(nn.Module):
    """What is decoded from a draw of the posterior, and the posterior's divergence from a unit Gaussian."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(x).latent_dist
        return self.vae.decode(posterior.sample(generator)).sample, posterior.kl().mean()


@pytest.fixture
def trained(tiny_sd_checkpoint: Path, emoji: Pictures, tmp_path: Path) -> Path:
    """`tiny_sd_checkpoint` with an f = 8 `AutoencoderKL` of four levels that has learned emoji."""
    vae = seeded(
        0,
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16, 32, 48, 48),
            norm_num_groups=8,
            latent_channels=4,
            scaling_factor=1.0,
        ),
    )
    pixels = emoji.tensor()
    loop = LoopConfig(600, 16, 2e-3, ema=0.99)

    def loss(network: nn.Module, part: Part) -> dict[str, Tensor]:
        index = torch.randint(len(pixels), (loop.batch_size,), generator=part.generator)
        x = autoencoder.to_float(pixels[index])
        y, divergence = network(x, part.generator)
        return {"l2": F.mse_loss(y, x), "kl": 1e-5 * divergence}

    fit(Variational(vae), loss, loop, tmp_path / "kl" / "vae.safetensors", key={}, label="kl")
    print(f"\nAutoencoderKL: {autoencoder.psnr(vae, pixels[:64]):.2f} dB to the pictures")
    pipeline = load_pipeline(str(tiny_sd_checkpoint))
    parts = (pipeline.unet, vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)
    save_pipeline(tmp_path / "sd", assemble(*parts), CheckpointInfo(1, "test", {}))
    return tmp_path / "sd"


@pytest.mark.slow
def test_a_trained_decoder_is_replaced_by_a_fraction_of_itself(trained: Path, config: DecoderConfig) -> None:
    loop = LoopConfig(500, 16, 2e-3, ema=0.99)
    pictures = replace(config.pictures, data="assets/emoji-64.tar")
    found = decoder(replace(config, model=trained, pictures=pictures, channels=24, blocks=(2, 2, 1, 0), loop=loop))
    share = found["student_decoder_macs"] / found["teacher_decoder_macs"]
    print(f"AutoencoderTiny: {found['psnr_to_teacher']} dB to the decoder it replaces, {share:.2f} of its MACs")
    assert share < 0.3 and found["psnr_to_teacher"] > 24
