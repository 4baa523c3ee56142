"""The operators of a diffusion network in 30,000 parameters, converted in a second; and packages from programs by hand."""

import functools
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
    waiting = list(op.outputs)
    if op.op_type in ("sin", "cos"):
        return True
    for _ in range(3):
        readers = [child for out in waiting for child in out.child_ops]
        if any(child.op_type in ("sin", "cos") for child in readers):
            return True
        waiting = [out for child in readers for out in child.outputs]
    return False


@functools.cache
def weighty(target: str) -> Any:
    """Three fp16 weights of every rank that is compressed, and little else; what compresses it makes another model."""
    import coremltools as ct

    rng = np.random.RandomState(11)
    table, kernel, matrix = (
        rng.standard_normal(shape).astype(np.float16) for shape in ((64, 32), (32, 32, 3, 3), (24, 32))
    )

    def body(mb: Any, x: Any) -> Any:
        ids = mb.cast(x=mb.slice_by_index(x=x, begin=[0, 0], end=[16, 1], squeeze_mask=[False, True]), dtype="int32")
        looked = mb.gather(x=table, indices=ids, axis=0, name="look")
        half = mb.add(x=mb.cast(x=x, dtype="fp16"), y=looked)
        picture = mb.reshape(x=mb.transpose(x=half, perm=[1, 0]), shape=[1, 32, 4, 4])
        rows = mb.transpose(
            x=mb.reshape(x=mb.conv(x=picture, weight=kernel, pad_type="same"), shape=[32, 16]), perm=[1, 0]
        )
        return mb.cast(x=mb.linear(x=rows, weight=matrix), dtype="fp32", name="out")

    return assembled(WEIGHTY, body, getattr(ct.target, target))


WEIGHTY = {"x": (16, 32)}


def by_hand(path: Path, inputs: Mapping[str, tuple[int, ...]], body: Callable[..., Any]) -> Path:
    """A package of `body(mb, *inputs)` for iOS 17."""
    import coremltools as ct

    model = assembled(inputs, body, ct.target.iOS17)
    with silent():
        model.save(str(path))
    return path


def assembled(inputs: Mapping[str, tuple[int, ...]], body: Callable[..., Any], target: Any) -> Any:
    """In memory, without any pass that would change it."""
    import coremltools as ct
    from coremltools.converters.mil.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Placeholder, Program

    with silent():
        ports = {name: Placeholder(shape) for name, shape in inputs.items()}
        with Function(ports, opset_version=target) as function:
            found = body(mb, *(function.inputs[name] for name in inputs))
            function.set_outputs(list(found) if isinstance(found, tuple) else [found])
        program = Program()
        program.add_function("main", function)
        return ct.convert(
            program,
            convert_to="mlprogram",
            skip_model_load=True,
            minimum_deployment_target=target,
            pass_pipeline=ct.PassPipeline.EMPTY,
        )
