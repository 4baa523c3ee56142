"""The operators of a diffusion network in 30,000 parameters, converted in a second; and packages from programs by hand."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdc_edge.torch_ref.quiet import silent

INPUTS = {"sample": (1, 8, 8, 8), "timestep": (1,), "text": (1, 24, 1, 7)}
Inputs = Mapping[str, np.ndarray]


class Miniature(nn.Module):
    """Timestep embedding, convolutions, norms, attention, GELU, down and up, a lookup: (1, 8, 8, 8) → the same."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.time = nn.Linear(16, 32)
        self.conv_in = nn.Conv2d(8, 32, 3, padding=1)
        self.norm = nn.GroupNorm(4, 32)
        self.down = nn.Conv2d(32, 32, 3, stride=2)
        self.look = nn.Embedding(64, 24)
        self.to_q, self.to_k, self.to_v = nn.Linear(32, 32), nn.Linear(24, 32), nn.Linear(24, 32)
        self.layer_norm = nn.LayerNorm(32)
        self.gate = nn.Linear(32, 128)
        self.out = nn.Linear(64, 32)
        self.conv_out = nn.Conv2d(64, 8, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(8) / 8)
        angle = timestep[:, None] * frequencies
        time = self.time(torch.cat([angle.cos(), angle.sin()], -1))
        x = self.conv_in(sample.clamp(-3, 3).tanh()) + F.silu(time)[:, :, None, None]
        h = self.down(F.pad(F.silu(self.norm(x)), (0, 1, 0, 1)))
        words = text.squeeze(2).transpose(1, 2)
        words = words + self.look((words[..., :1].abs() * 20).to(torch.int32).clamp(0, 63).squeeze(-1))
        h = self.attend(h.flatten(2).transpose(1, 2), words).transpose(1, 2).unflatten(2, (4, 4))
        up = F.interpolate(h.relu(), scale_factor=2.0, mode="nearest")
        return self.conv_out(torch.cat([up, x], 1))

    def attend(self, h: Tensor, words: Tensor) -> Tensor:
        """(1, 16, 32), (1, 7, 24) → (1, 16, 32)."""
        q, k, v = (f(t).unflatten(-1, (2, 16)).transpose(1, 2) for f, t in
                   ((self.to_q, self.layer_norm(h)), (self.to_k, words), (self.to_v, words)))  # fmt: skip
        h = h + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        left, right = self.gate(h).chunk(2, -1)
        return h + self.out(left * F.gelu(right))


def feed(timestep: float = 981.0) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(3)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in INPUTS.items()}
    return arrays | {"timestep": np.full(1, timestep, np.float32)}


def converted(network: nn.Module, target: str, half: bool) -> Any:
    """In memory; in fp16 the timestep's sine and cosine stay fp32."""
    import coremltools as ct

    names = list(INPUTS)
    with silent(), torch.no_grad():
        traced = torch.jit.trace(network, tuple(torch.from_numpy(feed()[name]) for name in names), check_trace=False)
        precision: Any = ct.precision.FLOAT32
        if half:
            precision = ct.transform.FP16ComputePrecision(lambda op: not _of_the_angle(op))
        return ct.convert(
            traced,
            convert_to="mlprogram",
            skip_model_load=True,
            inputs=[ct.TensorType(name, INPUTS[name], np.float32) for name in names],
            outputs=[ct.TensorType("out", dtype=np.float32)],
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=precision,
        )


def _of_the_angle(op: Any) -> bool:
    """Sine, cosine, and what they are computed from."""
    readers = [child.op_type for out in op.outputs for child in out.child_ops]
    if op.op_type in ("sin", "cos") or {"sin", "cos"} & set(readers):
        return True
    if readers != ["mul"] or op.op_type not in ("expand_dims", "cast"):
        return False
    return op.outputs[0].child_ops[0].outputs[0].child_ops[0].op_type in ("sin", "cos")


def by_hand(path: Path, inputs: Mapping[str, tuple[int, ...]], body: Callable[..., Any], target: str = "iOS17") -> Path:
    """A package of `body(mb, *inputs)`, without any pass that would change it."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb

    specs = [mb.TensorSpec(shape=shape) for shape in inputs.values()]
    source = f"lambda body, mb: lambda {', '.join(inputs)}: body(mb, {', '.join(inputs)})"
    with silent():
        program = mb.program(input_specs=specs, opset_version=getattr(ct.target, target))(eval(source)(body, mb))
        model = ct.convert(
            program,
            convert_to="mlprogram",
            skip_model_load=True,
            minimum_deployment_target=getattr(ct.target, target),
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
        model.save(str(path))
    return path
