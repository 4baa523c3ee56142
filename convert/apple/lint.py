"""What is known to keep an operator off the Neural Engine, or slow on it, read from a program: advice, not a verdict.

Nobody outside Apple knows the rules; each here has its source. On a Mac `kdc_edge.runtimes.coreml.placement` asks Core ML.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNSUPPORTED = "github.com/hollance/neural-engine, docs/unsupported-layers.md"
TYPES = "apple.github.io/coremltools/docs-guides/source/typed-execution.html"
TRANSFORMERS = "machinelearning.apple.com/research/neural-engine-transformers"
CHUNKS = "github.com/apple/ml-stable-diffusion, README: --chunk-unet"
ALIGNED, LARGE = 32, 1 << 14  # fp16 numbers in 64 bytes; elements that make it worth a word
CHUNK_BYTES = 1 << 30
PLUMBING = ("const", "cast")


@dataclass(frozen=True)
class Operator:
    """Of a program: its kind, the name, type and shape of its first output, and its inputs that are constants."""

    kind: str
    name: str
    type: str
    shape: tuple[int, ...]
    settings: dict[str, list[float]]


@dataclass(frozen=True)
class Rule:
    """What it says, on whose word, and which operators it is about."""

    says: str
    source: str
    fits: Callable[[Operator], bool]


@dataclass(frozen=True)
class Advice:
    """A rule that met `count` operators, the first of them `first`."""

    says: str
    source: str
    count: int
    first: str


RULES = (
    Rule("computes in fp32, the Neural Engine in fp16 alone", TYPES, lambda op: op.type == "float32"),
    Rule("looks up by index, which runs elsewhere", UNSUPPORTED, lambda op: op.kind in ("gather", "gather_nd")),
    Rule("a dilated convolution", UNSUPPORTED, lambda op: op.kind == "conv" and _most(op, "dilations") > 1),
    Rule(
        "enlarges by more than 2",
        UNSUPPORTED,
        lambda op: (
            op.kind.startswith("upsample")
            and max(_most(op, "scale_factor_height"), _most(op, "scale_factor_width")) > 2
        ),
    ),
    Rule(
        "a pool of more than 13 or in strides of more than 2",
        UNSUPPORTED,
        lambda op: op.kind.endswith("_pool") and (_most(op, "kernel_sizes") > 13 or _most(op, "strides") > 2),
    ),
    Rule(
        "a last axis that is short of 64 bytes is padded to them",
        TRANSFORMERS,
        lambda op: bool(op.shape) and op.shape[-1] < ALIGNED and _size(op) >= LARGE,
    ),
    Rule(
        "attention over all heads at once; --attention split-einsum goes head by head",
        TRANSFORMERS,
        lambda op: (
            op.kind in ("scaled_dot_product_attention", "softmax") and len(op.shape) == 4 and min(op.shape[1:3]) > 1
        ),
    ),
)


def advice(package: Path, chunks: bool) -> list[Advice]:
    """For one package, rule by rule."""
    import coremltools as ct

    spec = ct.models.utils.load_spec(str(package))
    found = []
    ops = [op for op in operators(spec) if op.kind not in PLUMBING]
    for rule in RULES:
        met = [op for op in ops if rule.fits(op)]
        if met:
            found.append(Advice(rule.says, rule.source, len(met), f"{met[0].kind} {met[0].name}"))
    weights = sum(path.stat().st_size for path in package.rglob("weight.bin"))
    if chunks and weights > CHUNK_BYTES:
        says = f"{weights / 2**30:.1f} GiB in one package; phones need --chunk"
        found.append(Advice(says, CHUNKS, 1, package.stem))
    return found


def operators(spec: Any) -> Iterator[Operator]:
    """Of the default function, restored weights left out."""
    program = spec.mlProgram
    function = program.functions[spec.description.defaultFunctionName or "main"]
    block = function.block_specializations[function.opset]
    constants = {op.outputs[0].name: _constant(op.attributes["val"]) for op in block.operations if op.type == "const"}
    for op in block.operations:
        if op.type.startswith("constexpr_") or not op.outputs:
            continue
        tensor = op.outputs[0].type.tensorType
        settings = {
            name: constants.get(argument.arguments[0].name, [])
            for name, argument in op.inputs.items()
            if argument.arguments
        }
        shape = tuple(int(dimension.constant.size) for dimension in tensor.dimensions)
        yield Operator(op.type, op.outputs[0].name, _TYPES.get(tensor.dataType, "other"), shape, settings)


_TYPES = {10: "float16", 11: "float32"}  # MIL.proto's DataType


def _constant(value: Any) -> list[float]:
    """Small constants that lie in the program; weights lie beside it."""
    tensor = value.immediateValue.tensor
    return [float(number) for kind in (tensor.ints, tensor.floats) for number in kind.values]


def _most(op: Operator, setting: str) -> float:
    return max(op.settings.get(setting) or [0])


def _size(op: Operator) -> int:
    return math.prod(op.shape)
