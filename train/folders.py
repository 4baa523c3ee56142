"""Checkpoints in and out: diffusers pipeline folders in fp16 shards under 16 MiB, with `kdc.json` beside them."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from kdc_edge.checkpoint import Checkpoint, CheckpointInfo
from kdc_edge.errors import UsageError
from kdc_edge.files import read_json, replace_dir, write_json
from train.data import is_commit

SHARD = "15MB"
MUST_AGREE = (
    ("unet", "sample_size"),
    ("unet", "in_channels"),
    ("unet", "cross_attention_dim"),
    ("scheduler", "prediction_type"),
)
Configs = Mapping[str, Mapping[str, Any]]


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


@torch.no_grad()
def as_stored(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """In place: autoencoder and text encoder are rounded to fp16, so that they are what a checkpoint saved from it has."""
    for module in (pipeline.vae, pipeline.text_encoder):
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.copy_(value.half())
    return pipeline


def load_pipeline(source: str, revision: str | None = None) -> StableDiffusionPipeline:
    """A Stable Diffusion folder (checked first) or hub id, in float32, frozen; safetensors only."""
    if not is_hub_id(source, revision):
        Checkpoint.open(Path(source))
    with from_hub(source, revision):
        pipeline = StableDiffusionPipeline.from_pretrained(
            source, revision=revision, dtype=torch.float32, use_safetensors=True, safety_checker=None
        )
    check_unet(pipeline.unet.config, source)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.eval().requires_grad_(False)
    return pipeline


def is_hub_id(source: str, revision: str | None) -> bool:
    """Whether `source` is no path but a repository on the hub; UsageError if no commit pins it, or one does a path."""
    hub = not Path(source).exists() and source.count("/") == 1
    if hub and not is_commit(revision):
        raise UsageError(
            f"{source} is a hub id: pin it with --revision COMMIT (40 hexadecimal digits), so that a run can be repeated"
        )
    if revision is not None and not hub:
        raise UsageError(f"{source} is no hub id, which --revision pins; drop it")
    return hub


@contextlib.contextmanager
def from_hub(source: str, revision: str | None) -> Iterator[None]:
    """What fails to come from the hub is UsageError; of a folder the error is as it was."""
    try:
        yield
    except OSError as error:
        if revision is None or Path(source).exists():
            raise
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"{source} at {revision}: not to be had from the hub ({reason}); check the id, the revision and the network, "
            "or give a folder"
        ) from error


def check_unet(config: Mapping[str, Any], source: str) -> None:
    """UsageError for a U-Net that asks for more than a timestep and text, or whose pictures are not square."""
    if config.get("addition_embed_type") or config.get("class_embed_type") or config.get("encoder_hid_dim_type"):
        raise UsageError(
            f"{source}: its U-Net reads more than text (SDXL's does); Stable Diffusion 1.x or 2.x is wanted"
        )
    if not isinstance(config["sample_size"], int):
        raise UsageError(
            f"{source}: its sample_size is {config['sample_size']}; one number is wanted, for square pictures"
        )


def configs_of(pipeline: StableDiffusionPipeline) -> Configs:
    return {"unet": pipeline.unet.config, "scheduler": pipeline.scheduler.config}


def same_kind(path: Path, start: Configs, model: Configs) -> None:
    """UsageError for an --init at `path` that reads or answers something else than the model does."""
    for component, setting in MUST_AGREE:
        if component in start and component in model:
            theirs, ours = (each[component].get(setting) for each in (start, model))
            if theirs != ours:
                raise UsageError(
                    f"{path}: its {setting} is {theirs}, the model's is {ours}; --init wants one of the same kind"
                )
