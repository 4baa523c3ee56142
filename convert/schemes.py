"""How a component's numbers are stored and multiplied: one small config per scheme, and a table of precisions.

| precision | text encoder | U-Net | decoder |
|---|---|---|---|
| fp32 | fp32 | fp32 | fp32 |
| fp16 | fp16 weights | fp16 weights | fp16 weights |
| int8-weights | 8-bit weights | 8-bit weights | 8-bit weights |
| int4-weights | 8-bit weights | 4-bit weights | 8-bit weights |
| mixed | 8-bit weights | 4, 8 or 16 bits by layer | 8-bit weights |
| int8 | int8 products, scaled call by call | int8 products, scaled by calibration | 8-bit weights |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

COMPUTE = "float32"  # of schemes that only store their weights small


@dataclass(frozen=True)
class Weights:
    """Small weights, fp32 arithmetic: 16 bits are floats and a Cast, 8 and 4 bits integers and their scales.

    Integers have a scale for every `block` inputs of an output channel, or one for all of them, and are rounded so that
    they make good for one another's errors on calibration inputs (GPTQ, arXiv 2210.17323).
    """

    bits: Literal[16, 8, 4]
    block: int | None = None
    spare: bool = True
    """With 8 bits, leave layers at 16 that suffer, by measurement."""


@dataclass(frozen=True)
class Mixed:
    """Weights of 4, 8 or 16 bits, each layer's by how much the output suffers, within `budget_mib` for the component."""

    budget_mib: float


@dataclass(frozen=True)
class Dynamic:
    """Matrix products in int8, activations scaled on every call; embeddings in int8; convolutions stay fp32."""


@dataclass(frozen=True)
class Static:
    """Convolutions and matrix products in int8 with weights per channel, activations scaled by what calibration met."""

    spare: bool = True
    """Leave layers in fp32 that suffer, by measurement."""
    budget_ms: float | None = None
    """Leave as many as a call has time for, on the machine that converts."""


@dataclass(frozen=True)
class Typed:
    """16-bit arithmetic with fp32 islands, types in the graph; weights, and with `products` activations, of fewer bits.

    Scales are symmetric: one for an activation, from what calibration met, one for each output channel of a weight.
    """

    rest: Literal["float16", "bfloat16"] = "float16"
    weights: Literal["int8", "float8e4m3"] | None = None
    products: bool = False
    spare: bool = True
    """Leave layers at 16 bits that suffer, by measurement."""
    rounding: Literal["gptq", "nearest"] = "gptq"
    """Of int8 weights."""


Scheme = Weights | Mixed | Dynamic | Static | Typed | None
PRECISIONS: dict[str, dict[str, Scheme]] = {
    "fp32": {"text_encoder": None, "unet": None, "vae_decoder": None},
    "fp16": dict.fromkeys(("text_encoder", "unet", "vae_decoder"), Weights(16)),
    "int8-weights": dict.fromkeys(("text_encoder", "unet", "vae_decoder"), Weights(8)),
    "int4-weights": {"text_encoder": Weights(8), "unet": Weights(4, 32), "vae_decoder": Weights(8)},
    "mixed": {"text_encoder": Weights(8), "unet": Mixed(0), "vae_decoder": Weights(8)},
    "int8": {"text_encoder": Dynamic(), "unet": Static(), "vae_decoder": Weights(8)},
}
Precision = Literal["fp32", "fp16", "int8-weights", "int4-weights", "mixed", "int8"]


def floor_db(scheme: Scheme) -> float:
    """The least SNR to PyTorch fp32; of 4 bits nothing is asked but that there is more signal than noise."""
    match scheme:
        case None:
            return 90.0
        case Weights(16):
            return 50.0
        case Weights(8):
            return 33.0
        case Typed("float16", None):
            return 50.0
        case Typed("bfloat16", None):
            return 32.0  # three bits less than fp16, 6 dB each
        case Typed(_, "int8", False):
            return 33.0
        case Dynamic() | Static() | Typed():
            return 18.0
        case _:
            return 0.0


def calibrated(scheme: Scheme) -> bool:
    """Whether the scheme looks at what the component meets."""
    return isinstance(scheme, Static | Mixed | Typed) or (isinstance(scheme, Weights) and scheme.bits < 16)


def prompted(scheme: Scheme) -> bool:
    """Whether the user is to say what it draws while it is looked at; a probe for overflow has prompts of its own."""
    return calibrated(scheme) and not (isinstance(scheme, Typed) and scheme.weights is None)


def below_16(scheme: Scheme) -> bool:
    """Whether it has anything in fewer than 16 bits."""
    match scheme:
        case None | Weights(16) | Typed(_, None):
            return False
        case _:
            return True


def stored_bits(scheme: Scheme) -> float:
    """Bits of a weight in the file, scales included, about: for the estimate."""
    match scheme:
        case None:
            return 32
        case Weights(bits, block):
            return bits if block is None else bits + 32 / block
        case Typed(_, None):
            return 17
        case _:
            return 9


def least_runtime(scheme: Scheme) -> str:
    """The first onnxruntime with kernels for everything that the scheme writes."""
    return "1.20" if isinstance(scheme, Mixed) or (isinstance(scheme, Weights) and scheme.block) else "1.18"


def session(scheme: Scheme) -> dict[str, Any]:
    """onnxruntime's options to open it with: without them a weight would be restored on every call."""
    restored = isinstance(scheme, Mixed) or (isinstance(scheme, Weights) and scheme.bits < 16)
    return {"session.disable_quant_qdq": "1"} if restored else {}


def excluded(name: str, operator: str, patterns: Sequence[str]) -> bool:
    """Whether a layer is left at 16 bits (or, of int8 products, in fp32): a pattern fits its name or is its operator."""
    return any(fnmatch(name, pattern) or pattern == operator for pattern in patterns)


def described(scheme: Scheme, calibration: dict[str, Any] | None) -> dict[str, Any] | None:
    """The manifest's `quantization`."""
    by = {"calibration": calibration if calibrated(scheme) else None}
    match scheme:
        case None:
            return None
        case Weights(16):
            return {"weights": "float16", "compute": COMPUTE, "method": "cast on load", **by}
        case Weights(bits, block):
            scales = "per channel" if block is None else f"in blocks of {block}"
            return {"weights": f"int{bits} {scales}", "compute": COMPUTE, "method": "gptq", **by}
        case Mixed(budget):
            kinds = f"int4, int8 and float16 within {budget:g} MiB"
            return {"weights": kinds, "compute": COMPUTE, "method": "gptq", **by}
        case Typed(rest, None):
            return {"weights": rest, "compute": f"{rest}, fp32 islands", "method": "overflow probe", **by}
        case Typed(rest, weights, products):
            compute = f"{weights if products else rest}, the rest {rest} with fp32 islands"
            return {"weights": f"{weights} per channel", "compute": compute, "method": "symmetric", **by}
        case Dynamic():
            return {"weights": "int8 per channel, 7 bits used", "compute": "int8 products", "method": "dynamic", **by}
        case Static():
            return {
                "weights": "int8 per channel, 7 bits used",
                "compute": "int8",
                "method": "static, least to greatest",
                **by,
            }
