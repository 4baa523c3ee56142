"""How near a converted component is to PyTorch fp32, in decibels on inputs the model really meets.

SNR = 10·log10(Σ ref² / Σ (ref − out)²). The reference pipeline runs and is recorded; each converted component answers the
recorded calls, and its worst answer counts. A floor per precision decides; NaN is below every floor.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdc_edge.differences import EQUAL_DB, snr_db
from kdc_edge.errors import GateError
from kdc_edge.runtimes import Runtime

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Call:
    """One call of a component."""

    inputs: Arrays
    outputs: Arrays


class Recorder:
    """A runtime that answers as another one does and keeps `calls`."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.ports, self.calls = runtime, runtime.ports, list[Call]()

    def __call__(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        outputs = self.runtime(**inputs)
        self.calls.append(Call({k: np.array(v) for k, v in inputs.items()}, outputs))
        return outputs

    def close(self) -> None:
        self.runtime.close()


@dataclass(frozen=True)
class Parity:
    """`db` per call (the worst of its outputs), in the order recorded; `deviation` the largest absolute difference."""

    component: str
    floor: float
    db: tuple[float, ...]
    deviation: float

    @property
    def worst(self) -> float:
        """Smallest SNR; NaN if any is."""
        return float(np.min(self.db))

    @property
    def finite(self) -> bool:
        return math.isfinite(self.worst)

    @property
    def passed(self) -> bool:
        return self.worst >= self.floor

    def to_json(self) -> dict[str, Any]:
        """NaN is written as null."""
        return {
            "snr_db": _finite(self.worst),
            "floor_db": self.floor,
            "passed": self.passed,
            "calls_db": [_finite(db) for db in self.db],
            "max_abs": _finite(self.deviation),
        }


def check(component: str, calls: Sequence[Call], runtime: Runtime, floor: float) -> Parity:
    """Asks `runtime` what was asked of the reference."""
    db, deviation = [], 0.0
    for call in calls:
        outputs = runtime(**call.inputs)
        db.append(float(np.min([snr_db(ref, outputs[name]) for name, ref in call.outputs.items()])))
        deviation = float(np.max([deviation, *(max_abs(ref, outputs[name]) for name, ref in call.outputs.items())]))
    return Parity(component, floor, tuple(db), deviation)


def gate(results: Iterable[Parity]) -> None:
    """Raises GateError naming every component below its floor."""
    failed = [f"{r.component} {r.worst:.1f} dB, floor {r.floor:.0f}" for r in results if not r.passed]
    if failed:
        raise GateError(f"not the network PyTorch runs: {'; '.join(failed)}; nothing was written")


def shown(db: float | None) -> str:
    """Of `to_json`'s."""
    return "NaN" if db is None else f"{db:.1f}"


def psnr_db(reference: np.ndarray, out: np.ndarray) -> float:
    """Peak signal to noise of two uint8 pictures, at most EQUAL_DB."""
    mse = float(np.mean((reference.astype(np.float64) - out) ** 2))
    return EQUAL_DB if mse == 0 else 10 * math.log10(255**2 / mse)


def max_abs(reference: np.ndarray, out: np.ndarray) -> float:
    """Largest absolute difference; NaN if there is one."""
    return float(np.max(np.abs(reference.astype(np.float64) - out))) if reference.shape == out.shape else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
