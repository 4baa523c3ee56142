"""What a distillation will take, before anything heavy is loaded: MACs, hours, memory.

Sizes are counted on networks without memory: MACs on torch's meta device, what is kept for the backward pass on fake tensors,
which have the kernels and types of the run. Hours rest on a matrix product timed here and now and on `EFFICIENCY`; they are
an estimate and say so.
"""

import contextlib
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from train.diffusion import attending
from train.loop import check, launch, precision_of
from train.recipes import LoopConfig
from train.student import TOKENS, cost, from_config

EFFICIENCY = 0.5  # share of the matrix product's speed that a training step reaches: the emoji pair's on 2 cores
BACKWARD = 2  # times the forward pass
FLOAT = 4  # bytes
STATES = {"adamw": 2, "muon": 1}  # moments for every parameter
PROBE_S = 0.3
HALVES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Hardware:
    """What trains, and in which arithmetic."""

    processes: int
    device: torch.device
    precision: str
    macs_per_s: float
    """Of a process, in float32."""
    shards: int = 1
    """Processes that FSDP divides the student's states among."""


@dataclass(frozen=True)
class Estimate:
    """Of one process. Bytes are of what a step holds at most; the framework and the data come on top."""

    steps: int
    images: int
    macs_per_step: int
    hours: float
    weights_bytes: int
    """The teacher; of the student the process's share, with gradients, averages and moments."""
    activations_bytes: int
    """What one call keeps for its backward pass."""


def estimate(teacher: UNet2DConditionModel, student: UNet2DConditionModel, loop: LoopConfig, on: Hardware) -> Estimate:
    """Of networks on the meta device."""
    calls = 1 + BACKWARD + loop.checkpointing
    macs = loop.batch_size * (cost(teacher).macs + calls * cost(student).macs)
    share = loop.batch_size // (on.processes * loop.accumulate)
    copies = 2 + bool(loop.ema) + STATES[loop.optimizer]  # weights and gradients, averages, moments
    return Estimate(
        steps=loop.steps,
        images=loop.steps * loop.batch_size,
        macs_per_step=macs,
        hours=loop.steps * macs / (on.macs_per_s * EFFICIENCY * on.processes) / 3600,
        weights_bytes=FLOAT * (parameters(teacher) + copies * parameters(student) // on.shards),
        activations_bytes=foreseen_bytes(student, share, loop.checkpointing, on.device, on.precision),
    )


def hardware(loop: LoopConfig) -> Hardware:
    """This machine. Raises UsageError for settings that do not go with it."""
    on = launch(replace(loop, precision="no", tensorboard=False), Path())  # what wants a GPU may be planned without one
    check(loop, on.num_processes)
    shards = on.num_processes if on.is_fsdp2 else 1
    return Hardware(on.num_processes, on.device, precision_of(loop), macs_per_second(on.device), shards)


def foreseen_bytes(
    network: UNet2DConditionModel, batch_size: int, checkpointing: bool, device: torch.device, precision: str
) -> int:
    """`saved_bytes` of its like on `device`, by tensors that have a device's kernels and no memory."""
    with FakeTensorMode(), device:
        like = attending(from_config(network.config), device)
        return saved_bytes(like, batch_size, checkpointing, precision)


def saved_bytes(
    network: UNet2DConditionModel, batch_size: int, checkpointing: bool = False, precision: str = "no"
) -> int:
    """Bytes that a call keeps for its backward pass, the 16-bit copies that autocast makes of weights among them."""
    if checkpointing:
        network.enable_gradient_checkpointing()
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept.setdefault(storage, tensor)  # alive, so that no other tensor takes its place
        return tensor

    size, channels, width = (network.config[k] for k in ("sample_size", "in_channels", "cross_attention_dim"))
    device = network.device
    sample = torch.zeros(batch_size, channels, size, size, device=device)
    text = torch.zeros(batch_size, TOKENS, width, device=device)
    half = HALVES[precision]
    with (
        torch.autocast(device.type, half) if half else contextlib.nullcontext(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        answer = network.train().requires_grad_(True)(sample, torch.zeros(batch_size, device=device), text).sample
    assert answer.requires_grad
    copies = half.itemsize * parameters(network) if half and checkpointing else 0  # autocast's own, or among those kept
    return copies + sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs_per_second(device: torch.device, size: int = 1024) -> float:
    """Of a float32 matrix product, the best of some tenths of a second."""
    a = torch.randn(size, size, device=device)
    best, end = float("inf"), time.perf_counter() + PROBE_S
    while time.perf_counter() < end:
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return size**3 / best


def report(found: Estimate) -> dict[str, Any]:
    """The figures as JSON; in words on stderr."""
    print(
        f"estimated: {found.steps:,} steps, {found.images:,} images, {found.macs_per_step / 1e9:,.1f} GMACs a step, "
        f"{found.hours:,.2f} hours; {found.weights_bytes / 1e6:,.0f} MB of weights and moments, "
        f"{found.activations_bytes / 1e6:,.0f} MB of activations",
        file=sys.stderr,
    )
    return {"estimated": asdict(found)}
