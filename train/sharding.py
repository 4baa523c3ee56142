"""FSDP 2, where every process holds a share of each tensor: what is asked of a launch, and tensors and modules made whole.

    accelerate launch --num_processes 8 --use_fsdp --fsdp_version 2 -m train.distill …

What a run learns and what it writes are those of whole networks.
"""

import copy
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from kdc_edge.errors import UsageError
from train.recipes import LoopConfig

DIVIDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def settle(accelerator: Accelerator, config: LoopConfig) -> None:
    """Have weights divided in the one way that training can follow. Raises UsageError for a launch that asks for another."""
    kind = accelerator.distributed_type
    if kind not in DIVIDING:
        return
    if not accelerator.is_fsdp2:
        raise UsageError(f"{kind.value}: launch with --use_fsdp --fsdp_version 2, or plain processes (DDP)")
    if config.optimizer == "muon":
        raise UsageError("--optimizer muon wants whole matrices, which FSDP divides; take --optimizer adamw")
    if accelerator.mixed_precision == "fp16":
        raise UsageError("--precision fp16: not with FSDP; bf16 or no")
    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = None  # weights travel in float32, and autocast does what it does elsewhere
    if plugin.activation_checkpointing:
        raise UsageError("--fsdp_activation_checkpointing: take the training's own --checkpointing")


def outline(module: nn.Module) -> nn.Module:
    """A copy whose weights are on the meta device; the buffers are the module's own."""
    bare = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    return copy.deepcopy(module, bare | {id(buffer): buffer for buffer in module.buffers()})


def with_weights(plain: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The outline filled in."""
    found = outline(plain)
    found.load_state_dict(weights, strict=False, assign=True)
    return found


def reunite(module: nn.Module, plain: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make a module that was divided, and every module in it, what its outline is, with these weights."""
    for name, part in module.named_modules():
        like = plain.get_submodule(name)
        part.__class__ = type(like)
        kept = {name: vars(part)[name] for name in ("_modules", "_buffers")}
        vars(part).clear()
        vars(part).update(vars(like) | kept)
    module.load_state_dict(weights, strict=False, assign=True)


def whole(tensor: Tensor) -> Tensor:
    """All of it; every process asks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Each whole, one after the other, for a process that keeps them; every process asks."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if keep:
            found[name] = value if value is tensor else value.cpu()
    return found


def laid_out_as(param: Tensor, value: Tensor) -> Tensor:
    """As the parameter: its device, its division, its memory format, in whose order the fused AdamW walks through both."""
    value = value.to(param.device)
    if value.shape != param.shape:
        return value
    if isinstance(param, DTensor):
        return distribute_tensor(value, param.device_mesh, param.placements, src_data_rank=None)
    return torch.empty_like(param).copy_(value)
