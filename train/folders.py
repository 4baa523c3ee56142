"""Checkpoints in and out: diffusers pipeline folders in fp16 shards under 16 MiB, with `kdc.json` beside them."""

import copy
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json, replace_dir, write_json

SHARD = "15MB"


def assemble(
    unet: UNet2DConditionModel,
    vae: nn.Module,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: DDIMScheduler,
) -> StableDiffusionPipeline:
    """diffusers' pipeline without a safety checker."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def with_unet(pipeline: StableDiffusionPipeline, unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """The same pipeline with another U-Net."""
    return assemble(unet, pipeline.vae, pipeline.text_encoder, pipeline.tokenizer, pipeline.scheduler)


def save_pipeline(
    folder: Path, pipeline: StableDiffusionPipeline, info: CheckpointInfo, force: bool = False
) -> Checkpoint:
    """Write a checkpoint that `StableDiffusionPipeline.from_pretrained` loads unchanged; atomic, refused if it exists."""
    tokenizer = pipeline.tokenizer
    tokenizer.backend_tokenizer.no_truncation()  # the file would say how it was called last, and the checkpoint's id with it
    tokenizer.backend_tokenizer.no_padding()
    stored = assemble(
        half(pipeline.unet), half(pipeline.vae), half(pipeline.text_encoder), tokenizer, pipeline.scheduler
    )
    with replace_dir(folder, force) as temporary:
        stored.save_pretrained(temporary, safe_serialization=True, max_shard_size=SHARD)
        tokenizer.backend_tokenizer.model.save(str(temporary / "tokenizer"))  # vocab.json, merges.txt
        load_as_float32(temporary / "text_encoder" / "config.json")
        write_json(temporary / "kdc.json", asdict(info))
    return Checkpoint.open(folder)


def load_as_float32(config: Path) -> None:
    """Say so to transformers, which else loads the stored type, while diffusers loads float32: mixed, they fail."""
    write_json(config, read_json(config) | {"dtype": "float32"})


def half(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(torch.float16, memory_format=torch.contiguous_format)


def load_pipeline(source: str, revision: str | None = None) -> StableDiffusionPipeline:
    """A Stable Diffusion folder (checked first) or hub id, in float32, frozen; safetensors only."""
    if not is_hub_id(source, revision):
        Checkpoint.open(Path(source))
    pipeline = StableDiffusionPipeline.from_pretrained(
        source, revision=revision, dtype=torch.float32, use_safetensors=True, safety_checker=None
    )
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.eval().requires_grad_(False)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def is_hub_id(source: str, revision: str | None) -> bool:
    """Whether `source` is no path but a repository on the hub; UsageError if no revision pins it."""
    hub = not Path(source).exists() and source.count("/") == 1
    if hub and revision is None:
        raise UsageError(f"{source} is a hub id: pin it with --revision COMMIT, so that a run can be repeated")
    return hub
