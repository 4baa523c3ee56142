"""Which operators pass fp16's largest number on the model's own activations: they, and what reads them, have to stay fp32.

A decomposed GroupNorm squares what is left of its mean, which fp16 ends at 256; attention's products are next.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kdc_edge.ports import Ports
from kdc_edge.runtimes.apple import call
from kdc_edge.torch_ref.programs import Program, type_of

LARGEST = 65504.0
MARGIN = 2.0  # other pictures go further
CAST = "_cast_fp16"


@dataclass(frozen=True)
class Overflow:
    """`most` is the largest absolute value met; `operators` by the names that a conversion takes as islands."""

    most: float
    at: str
    operators: tuple[str, ...]


def overflows(
    package: Path, component: str, ports: Ports, batch: int, feeds: Iterable[Mapping[str, np.ndarray]]
) -> Overflow:
    """Executes a package in fp32 on calls of this project's `ports`."""
    most: dict[str, float] = {}

    def watch(op: Any, out: Tensor) -> None:
        if out.is_floating_point() and type_of(op.outputs[0]) == "fp16":
            name = op.outputs[0].name
            seen = float(out.abs().max()) if out.numel() else 0.0
            most[name] = max(most.get(name, 0.0), seen if seen == seen else float("inf"))

    program = Program(package, watch=watch)
    for feed in feeds:
        call(component, ports, batch, lambda arrays: program(**arrays), feed)
    beyond = {name for name, seen in most.items() if seen * MARGIN > LARGEST}
    ops = [op for op in program.function.operations if op.outputs and type_of(op.outputs[0]) == "fp16"]
    found = [op for op in ops if _touches(op, beyond)]
    at = max(most, key=lambda name: most[name], default="")
    return Overflow(most.get(at, 0.0), at, tuple(op.outputs[0].name.removesuffix(CAST) for op in found))


def _touches(op: Any, beyond: set[str]) -> bool:
    """Whether it gives or takes a number that is too large."""
    taken = (part for var in op.inputs.values() for part in (var if isinstance(var, list | tuple) else (var,)))
    return op.outputs[0].name in beyond or any(part.name in beyond for part in taken)
