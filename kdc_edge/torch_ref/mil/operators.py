"""What each operator does, by its name in Apple's MIL: fp32 tensors, or int32 and bool, in and out.

A function takes the operator's arguments by their MIL names; numbers come as Python's, arrays as tensors. The caller rounds
what an fp16 operator gives; those in MOVES give numbers that they were given, which stay as they are.

Source: coremltools.converters.mil.mil.ops.defs, iOS15 to iOS18.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Values = Mapping[str, Any]
Operator = Callable[[Values], Any]
INTEGERS = ("int64", "int32", "uint32", "int16", "uint16", "int8", "uint8")
TYPES = {"fp32": torch.float32, "fp16": torch.float32, "bool": torch.bool, **dict.fromkeys(INTEGERS, torch.int32)}


def ints(value: Any) -> list[int]:
    """Of a shape, axes or steps."""
    return [int(n) for n in (value.flatten().tolist() if isinstance(value, Tensor) else value)]


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda v: function(torch.as_tensor(v["x"]))


def _binary(function: Callable[[Any, Any], Any]) -> Operator:
    return lambda v: function(torch.as_tensor(v["x"]), torch.as_tensor(v["y"]))


def _divide(x: Tensor, y: Tensor) -> Tensor:
    """Of integers, rounded towards zero."""
    return x / y if x.is_floating_point() or y.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _reduce(function: Callable[..., Tensor]) -> Operator:
    """Over `axes`, all if not given."""

    def reduce(v: Values) -> Tensor:
        axes = range(v["x"].ndim) if v.get("axes") is None else ints(v["axes"])
        return function(v["x"], tuple(axes), keepdim=bool(v.get("keep_dims")))

    return reduce


def _cast(v: Values) -> Tensor:
    return torch.as_tensor(v["x"]).to(TYPES[v["dtype"]])


def _conv(v: Values) -> Tensor:
    """x (B, C, *spatial); `pad` holds before and after of each spatial axis."""
    x, weight = v["x"], v["weight"]
    rank = x.ndim - 2
    strides, dilations = (ints(v.get(name, [1] * rank)) for name in ("strides", "dilations"))
    pad = _padding(v, ints(x.shape[2:]), ints(weight.shape[2:]), strides, dilations)
    even = pad[::2] == pad[1::2]
    if not even:
        x = F.pad(x, [pad[2 * axis + side] for axis in reversed(range(rank)) for side in (0, 1)])
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(x, weight, v.get("bias"), strides, pad[::2] if even else 0, dilations, int(v.get("groups", 1)))


def _padding(v: Values, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    kind = v.get("pad_type", "valid")
    if kind == "custom":
        return ints(v["pad"])
    if kind == "valid":
        return [0, 0] * len(sizes)
    pad = []
    for n, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-n // stride) - 1) * stride + (k - 1) * dilation + 1 - n, 0)
        small = total // 2
        pad += [total - small, small] if kind == "same_lower" else [small, total - small]
    return pad


def _batch_norm(v: Values) -> Tensor:
    return F.batch_norm(v["x"], v["mean"], v["variance"], v.get("gamma"), v.get("beta"), False, 0.0, v["epsilon"])


def _layer_norm(v: Values) -> Tensor:
    """Over `axes`, the last ones."""
    shape = v["x"].shape[min(axis % v["x"].ndim for axis in ints(v["axes"])) :]
    return F.layer_norm(v["x"], shape, v.get("gamma"), v.get("beta"), v["epsilon"])


def _matmul(v: Values) -> Tensor:
    x, y = v["x"], v["y"]
    x = x.transpose(-1, -2) if v.get("transpose_x") else x
    return x @ (y.transpose(-1, -2) if v.get("transpose_y") else y)


def _slice(v: Values) -> Tensor:
    """Where an axis is masked, its end does not bind; where it is squeezed, it is gone."""
    begin, end = ints(v["begin"]), ints(v["end"])
    stride = [1] * len(begin) if v.get("stride") is None else ints(v["stride"])
    masks = {
        name: [0] * len(begin) if v.get(name) is None else ints(v[name])
        for name in ("begin_mask", "end_mask", "squeeze_mask")
    }
    x, squeezed = v["x"], 0
    for i, size in enumerate(v["x"].shape):
        axis = i - squeezed
        if masks["squeeze_mask"][i]:
            x, squeezed = x.select(axis, begin[i]), squeezed + 1
            continue
        chosen = slice(
            None if masks["begin_mask"][i] else begin[i], None if masks["end_mask"][i] else end[i], stride[i]
        )
        if stride[i] < 0:
            x = x.index_select(axis, torch.arange(size)[range(size)[chosen]])
        else:
            x = x[(slice(None),) * axis + (chosen,)]
    return x


def _squeeze(v: Values) -> Tensor:
    x = v["x"]
    axes = [i for i, n in enumerate(x.shape) if n == 1] if v.get("axes") is None else ints(v["axes"])
    return x.squeeze(tuple(axes))


def _expand(v: Values) -> Tensor:
    x, axes = torch.as_tensor(v["x"]), ints(v["axes"])
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _reshape(v: Values) -> Tensor:
    """0 is the size that the axis has."""
    x = v["x"]
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(ints(v["shape"]))])


def _split(v: Values) -> tuple[Tensor, ...]:
    x, axis = v["x"], v["axis"]
    if v.get("split_sizes") is not None:
        return torch.split(x, ints(v["split_sizes"]), axis)
    return torch.split(x, x.shape[axis] // v["num_splits"], axis)


def _gather(v: Values) -> Tensor:
    """Rows of one axis; a negative index counts from its end."""
    x, indices, axis = torch.as_tensor(v["x"]), torch.as_tensor(v["indices"]).long(), int(v.get("axis", 0))
    if v.get("batch_dims"):
        raise NotImplementedError(f"batch_dims {v['batch_dims']}")
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    axis %= x.ndim
    return x.index_select(axis, indices.reshape(-1)).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _gather_nd(v: Values) -> Tensor:
    if v.get("batch_dims"):
        raise NotImplementedError(f"batch_dims {v['batch_dims']}")
    return v["x"][tuple(v["indices"].long().unbind(-1))]


def _pad(v: Values) -> Tensor:
    """`pad` holds before and after of the last axes, the first of them first."""
    pad = ints(v["pad"])
    turned = [n for axis in reversed(range(len(pad) // 2)) for n in pad[2 * axis : 2 * axis + 2]]
    mode = v.get("mode", "constant")
    if mode == "constant":
        return F.pad(v["x"], turned, "constant", v.get("constant_val", 0))
    return F.pad(v["x"], turned, {"reflect": "reflect", "replicate": "replicate"}[mode])


def _upsample(v: Values) -> Tensor:
    scale = float(v["scale_factor_height"]), float(v["scale_factor_width"])
    return F.interpolate(v["x"], scale_factor=scale, mode="nearest")


def _gelu(v: Values) -> Tensor:
    mode = v.get("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return v["x"] * torch.sigmoid(1.702 * v["x"])
    return F.gelu(v["x"], approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _attention(v: Values) -> Tensor:
    return F.scaled_dot_product_attention(v["query"], v["key"], v["value"], v.get("attn_mask"))


def _concat(v: Values) -> Tensor:
    if v.get("interleave"):
        raise NotImplementedError("interleave")
    return torch.cat([torch.as_tensor(part) for part in v["values"]], v["axis"])


def _argmax(v: Values) -> Tensor:
    return v["x"].argmax(int(v.get("axis", -1)), bool(v.get("keep_dims", True))).int()


def _clip(v: Values) -> Tensor:
    return v["x"].clamp(v["alpha"], v["beta"])


def _tile(v: Values) -> Tensor:
    return v["x"].repeat(ints(v["reps"]))


OPERATORS: dict[str, Operator] = {
    "abs": _unary(torch.abs),
    "add": _binary(torch.add),
    "batch_norm": _batch_norm,
    "cast": _cast,
    "clip": _clip,
    "concat": _concat,
    "conv": _conv,
    "cos": _unary(torch.cos),
    "einsum": lambda v: torch.einsum(v["equation"], *v["values"]),
    "equal": _binary(torch.eq),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "expand_dims": _expand,
    "fill": lambda v: torch.full(ints(v["shape"]), v["value"]),
    "gather": _gather,
    "gather_nd": _gather_nd,
    "gelu": _gelu,
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "identity": lambda v: v["x"],
    "layer_norm": _layer_norm,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "linear": lambda v: F.linear(v["x"], v["weight"], v.get("bias")),
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "matmul": _matmul,
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pad": _pad,
    "pow": _binary(torch.pow),
    "real_div": _binary(_divide),
    "reduce_argmax": _argmax,
    "reduce_max": _reduce(torch.amax),
    "reduce_mean": _reduce(torch.mean),
    "reduce_min": _reduce(torch.amin),
    "reduce_sum": _reduce(torch.sum),
    "relu": _unary(torch.relu),
    "reshape": _reshape,
    "rsqrt": lambda v: torch.rsqrt(v["x"] + v.get("epsilon", 1e-12)),
    "scaled_dot_product_attention": _attention,
    "select": lambda v: torch.where(v["cond"], torch.as_tensor(v["a"]), torch.as_tensor(v["b"])),
    "shape": lambda v: torch.tensor(v["x"].shape, dtype=torch.int32),
    "sigmoid": _unary(torch.sigmoid),
    "silu": _unary(F.silu),
    "sin": _unary(torch.sin),
    "slice_by_index": _slice,
    "softmax": lambda v: torch.softmax(v["x"], int(v.get("axis", -1)), out=v.get("into")),
    "split": _split,
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "squeeze": _squeeze,
    "stack": lambda v: torch.stack([torch.as_tensor(part) for part in v["values"]], int(v.get("axis", 0))),
    "sub": _binary(torch.sub),
    "tanh": _unary(torch.tanh),
    "tile": _tile,
    "transpose": lambda v: v["x"].permute(ints(v["perm"])),
    "upsample_nearest_neighbor": _upsample,
}

MOVES = frozenset(
    ("concat", "expand_dims", "gather", "gather_nd", "identity", "relu", "reshape", "select", "slice_by_index", "split",
     "squeeze", "stack", "tile", "transpose", "upsample_nearest_neighbor")
)  # fmt: skip
