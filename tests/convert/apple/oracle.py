"""A small interpreter of Core ML programs for the converter's tests: weights as coremltools restores them, fp32 operators.

`half=True` rounds what every fp16 operator gives to fp16. Only the operators of our networks; anything else is a KeyError.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Values = Mapping[str, Any]
INTEGERS = ("int32", "int16", "uint16", "int8", "uint8")
TYPES = {"fp32": torch.float32, "fp16": torch.float32, "bool": torch.bool, **dict.fromkeys(INTEGERS, torch.int32)}


class Program:
    """The default function of a saved package."""

    def __init__(self, package: Path, half: bool = False, function: str = "main") -> None:
        import coremltools as ct
        from coremltools.converters.mil.frontend.milproto.load import load

        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        self.function = load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir).functions[function]
        self.half = half
        self.weights: dict[str, Tensor] = {}

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        env = {name: torch.from_numpy(np.asarray(array)) for name, array in inputs.items()}
        with torch.inference_mode():
            for op in self.function.operations:
                self._run(op, env)
        return {var.name: env[var.name].numpy() for var in self.function.outputs}

    def _run(self, op: Any, env: dict[str, Any]) -> None:
        if op.op_type == "const":
            return
        if op.op_type.startswith("constexpr_"):
            if all(child.op_type.startswith("constexpr_") for out in op.outputs for child in out.child_ops):
                return  # restored together with what reads it
            if op.name not in self.weights:
                self.weights[op.name] = torch.from_numpy(np.array(op.materialized_val_inference(), np.float32))
            env[op.outputs[0].name] = self.weights[op.name]
            return
        values = {name: _value(var, env) for name, var in op.inputs.items()}
        out = OPERATORS[op.op_type](values)
        for var, result in zip(op.outputs, out if isinstance(out, tuple | list) else (out,), strict=True):
            fp16 = self.half and "fp16" in str(_type(var))
            env[var.name] = result.half().float() if fp16 and result.is_floating_point() else result


def _type(var: Any) -> str:
    from coremltools.converters.mil.mil.types import builtin_to_string

    return builtin_to_string(var.dtype)


def _value(var: Any, env: Mapping[str, Any]) -> Any:
    if isinstance(var, list | tuple):
        return [_value(part, env) for part in var]
    if var.name in env:
        return env[var.name]
    value = var.val
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.astype(np.float32) if value.dtype == np.float16 else np.array(value))
    return value.item() if isinstance(value, np.generic) else value


def _ints(value: Any) -> list[int]:
    return value.tolist() if isinstance(value, Tensor) else list(value)


def _conv(v: Values) -> Tensor:
    pad = _ints(v["pad"]) if v.get("pad_type") == "custom" else [0] * 4
    x = F.pad(v["x"], (pad[2], pad[3], pad[0], pad[1]))
    return F.conv2d(x, v["weight"], v.get("bias"), _ints(v["strides"]), 0, _ints(v["dilations"]), v["groups"])


def _batch_norm(v: Values) -> Tensor:
    return F.batch_norm(v["x"], v["mean"], v["variance"], v["gamma"], v["beta"], False, 0.0, v["epsilon"])


def _matmul(v: Values) -> Tensor:
    x, y = v["x"], v["y"]
    x = x.transpose(-1, -2) if v.get("transpose_x") else x
    return x @ (y.transpose(-1, -2) if v.get("transpose_y") else y)


def _slice(v: Values) -> Tensor:
    x = v["x"]
    parts = []
    begin, end = _ints(v["begin"]), _ints(v["end"])
    for i in range(x.ndim):
        if v.get("squeeze_mask") is not None and _ints(v["squeeze_mask"])[i]:
            parts.append(begin[i])
            continue
        first = None if v.get("begin_mask") is not None and _ints(v["begin_mask"])[i] else begin[i]
        last = None if v.get("end_mask") is not None and _ints(v["end_mask"])[i] else end[i]
        parts.append(slice(first, last))
    return x[tuple(parts)]


def _squeeze(v: Values) -> Tensor:
    x = v["x"]
    for axis in sorted((axis % x.ndim for axis in _ints(v["axes"])), reverse=True):
        x = x.squeeze(axis)
    return x


def _expand(v: Values) -> Tensor:
    x = v["x"]
    x = torch.as_tensor(x)
    for axis in sorted(_ints(v["axes"])):
        x = x.unsqueeze(axis)
    return x


def _split(v: Values) -> list[Tensor]:
    sizes = v.get("split_sizes")
    if sizes is not None:
        return list(torch.split(v["x"], _ints(sizes), v["axis"]))
    return list(torch.chunk(v["x"], v["num_splits"], v["axis"]))


def _gather_nd(v: Values) -> Tensor:
    indices = v["indices"].long()
    return v["x"][tuple(indices[..., i] for i in range(indices.shape[-1]))]


def _gather(v: Values) -> Tensor:
    x, indices = torch.as_tensor(v["x"]), torch.as_tensor(v["indices"]).long()
    return torch.index_select(x, v["axis"], indices.reshape(-1)).unflatten(v["axis"], indices.shape)


def _gelu(v: Values) -> Tensor:
    return F.gelu(v["x"], approximate="tanh" if v.get("mode") == "TANH_APPROXIMATION" else "none")


OPERATORS: dict[str, Callable[[Values], Any]] = {
    "add": lambda v: v["x"] + v["y"],
    "batch_norm": _batch_norm,
    "cast": lambda v: v["x"].to(TYPES[v["dtype"]]),
    "concat": lambda v: torch.cat(v["values"], v["axis"]),
    "conv": _conv,
    "cos": lambda v: v["x"].cos(),
    "einsum": lambda v: torch.einsum(v["equation"], *v["values"]),
    "equal": lambda v: v["x"] == v["y"],
    "expand_dims": _expand,
    "gather": _gather,
    "gather_nd": _gather_nd,
    "gelu": _gelu,
    "greater_equal": lambda v: v["x"] >= v["y"],
    "layer_norm": lambda v: F.layer_norm(v["x"], v["x"].shape[-1:], v["gamma"], v["beta"], v["epsilon"]),
    "linear": lambda v: F.linear(v["x"], v["weight"], v.get("bias")),
    "matmul": _matmul,
    "mul": lambda v: v["x"] * v["y"],
    "real_div": lambda v: v["x"] / v["y"],
    "reduce_argmax": lambda v: v["x"].argmax(v["axis"], v["keep_dims"]).int(),
    "reduce_mean": lambda v: v["x"].mean(_ints(v["axes"]), v["keep_dims"]),
    "relu": lambda v: v["x"].relu(),
    "reshape": lambda v: v["x"].reshape(_ints(v["shape"])),
    "scaled_dot_product_attention": lambda v: F.scaled_dot_product_attention(
        v["query"], v["key"], v["value"], v.get("attn_mask")
    ),
    "select": lambda v: torch.where(v["cond"], v["a"], v["b"]),
    "sigmoid": lambda v: v["x"].sigmoid(),
    "silu": lambda v: F.silu(v["x"]),
    "sin": lambda v: v["x"].sin(),
    "slice_by_index": _slice,
    "softmax": lambda v: v["x"].softmax(v["axis"]),
    "split": _split,
    "sqrt": lambda v: v["x"].sqrt(),
    "square": lambda v: v["x"].square(),
    "squeeze": _squeeze,
    "stack": lambda v: torch.stack(v["values"], v["axis"]),
    "sub": lambda v: v["x"] - v["y"],
    "tanh": lambda v: v["x"].tanh(),
    "transpose": lambda v: v["x"].permute(_ints(v["perm"])),
    "upsample_nearest_neighbor": lambda v: F.interpolate(
        v["x"], scale_factor=(float(v["scale_factor_height"]), float(v["scale_factor_width"])), mode="nearest"
    ),
}
