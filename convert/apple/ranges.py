"""Which operators pass fp16's largest number on the model's own activations: they, and what reads them, have to stay fp32.

A decomposed GroupNorm squares what is left of its mean, which fp16 ends at 256; attention's products are next.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from kdc_edge.ports import Ports
from kdc_edge.runtimes.apple import call
from kdc_edge.torch_ref.mil.program import Program, Ref

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
    program = Program.open(package)
    most: dict[str, float] = {}

    def predict(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = {}
        for step, outputs in program.walk(arrays, exact=True):
            for name, kind, out in zip(step.outputs, step.types, outputs, strict=True):
                if kind == "fp16":
                    most[name] = max(most.get(name, 0.0), _most(out))
                if name in program.outputs:
                    found[name] = out.numpy().copy()
        return found

    for feed in feeds:
        call(component, ports, batch, predict, feed)
    beyond = {name for name, seen in most.items() if seen * MARGIN > LARGEST}
    touched = [step for step in program.steps if "fp16" in step.types and beyond & {*step.outputs, *_read(step.inputs)}]
    at = max(most, key=lambda name: most[name], default="")
    return Overflow(most.get(at, 0.0), at, tuple(step.outputs[0].removesuffix(CAST) for step in touched))


def _most(out: Tensor) -> float:
    """Infinities are left out: without rounding they are meant, as a mask's are."""
    finite = out[out.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _read(inputs: Mapping[str, Any]) -> Iterator[str]:
    """Names of the values that an operator takes."""
    for value in inputs.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Ref):
                yield part.name
