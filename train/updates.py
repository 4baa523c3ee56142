"""What of a U-Net an update trains: everything, the attention to the caption, or low-rank changes, merged at the end."""

import torch
from diffusers import UNet2DConditionModel

from kdc_edge.errors import MissingBackend, UsageError
from train.sequences import Update
from train.trainer import seeded

CROSS = ".attn2."  # diffusers' name for the attention to the caption
PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
ADAPTER = "task"


def restrict(unet: UNet2DConditionModel, update: Update, rank: int, seed: int) -> None:
    """Leave gradients to what `update` trains. Raises MissingBackend without peft, UsageError where nothing is left."""
    if update == "cross-attention":
        for name, param in unet.named_parameters():
            param.requires_grad_(CROSS in name)
    elif update == "lora":
        _add_lora(unet, rank, seed)
    if not any(param.requires_grad for param in unet.parameters()):
        raise UsageError(f"--update {update}: this U-Net has no attention to train; take --update full")


def merge(unet: UNet2DConditionModel, update: Update) -> None:
    """Add low-rank changes to the weights they belong to; the modules are the plain ones again."""
    if update == "lora":
        unet.fuse_lora(adapter_names=[ADAPTER])
        unet.unload_lora()


def changed(before: UNet2DConditionModel, after: UNet2DConditionModel) -> list[str]:
    """Names of the tensors that differ as stored, in fp16."""
    was = before.state_dict()
    return [n for n, value in after.state_dict().items() if not torch.equal(value.half(), was[n].half())]


def _add_lora(unet: UNet2DConditionModel, rank: int, seed: int) -> None:
    """LoRA (arXiv 2106.09685) of every attention projection."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingBackend(f"--update lora needs peft ({error}); pip install 'kdc-edge[train]'") from None
    if rank < 1:
        raise UsageError(f"--rank is {rank}, must be at least 1")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=PROJECTIONS)
    try:
        seeded(seed, lambda: unet.add_adapter(config, adapter_name=ADAPTER))
    except ValueError as error:
        raise UsageError(f"--update lora: {error}; take --update full") from None
