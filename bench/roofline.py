"""How long a bundle would take on a device that is not at hand: a roofline with three coefficients by family of devices.

A call at batch b takes  c · b · MACs / rate  +  m · weight bytes / bandwidth  +  f  seconds. The coefficients c, m, f ≥ 0 are
fitted to the family's published rows by least squares of the logarithm of estimate over measurement. How far it is off is
measured by leaving out every chip in turn. A device without any published row gets the bare roofline,
max(b · MACs / rate, weight bytes / bandwidth), which nothing can beat: how far it is off is unknown.
"""

# R rows

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.published import Cost, Device, Family, Published, PublishedRow, published
from bench.side import PICTURE, work
from kdc_edge.errors import choose

ESTIMATED: Literal["estimated"] = "estimated"
UNKNOWN: Literal["unknown"] = "unknown"
TERMS = ("compute", "memory", "calls")
ROUNDS = 60  # of reweighting; the coefficients stand still after a dozen
FAR = 10.0  # times smaller than the smallest published call: said to be beyond what was fitted


@dataclass(frozen=True)
class Left:
    """A row that was left out with its chip, and what the others made of it."""

    row: PublishedRow
    seconds: float

    @property
    def error(self) -> float:
        """Estimate over measurement, minus 1."""
        return self.seconds / self.row.seconds - 1


@dataclass(frozen=True)
class Estimate:
    """Never a measurement; `error` is the family's median of left-out chips, "unknown" where there is none."""

    device: str
    family: str
    method: Literal["fit", "roofline"]
    calls_s: dict[str, float]
    """Seconds of one call in a picture, by component."""
    picture_s: float
    error: float | Literal["unknown"]
    rows: int
    beyond: bool
    """Its calls are much smaller than all published ones, so that what a call costs besides its arithmetic is a guess."""
    state: Literal["estimated"] = ESTIMATED


@dataclass(frozen=True)
class Model:
    """The published rows with what was fitted to them, by family."""

    data: Published
    coefficients: dict[str, NDArray[np.float64]]
    left_out: dict[str, list[Left]]
    """Every row, estimated from the rows of the family's other chips; none where there is no other."""

    @classmethod
    def of(cls, data: Published) -> "Model":
        families = [name for name in data.families if data.rows_of(name)]
        fitted = {name: _fit(data, data.rows_of(name)) for name in families}
        return cls(data, fitted, {name: _leave_out(data, name) for name in families})

    def error(self, family: str | None = None) -> float | Literal["unknown"]:
        """Median of |estimate / measurement - 1| over left-out rows of a family, or of all."""
        errors = [abs(left.error) for name, rows in self.left_out.items() if family in (None, name) for left in rows]
        return float(np.median(errors)) if errors else UNKNOWN

    def estimate(self, device: str, counters: Mapping[str, Any], steps: int, guidance: float) -> Estimate | None:
        """From a record's or a bundle's counters; None where nobody counted. Raises UsageError for an unknown device."""
        about = self.data.devices[choose(device, self.data.devices, "device")]
        asked = work(steps, guidance)
        if any(counters[name]["macs"] is None for name in asked):
            return None
        costs = {name: Cost(counters[name]["macs"], counters[name]["parameters"]) for name in asked}
        known = any(row.device == device for row in self.data.rows)
        terms = _terms(about, self.data.families[about.family], costs, steps, guidance)
        seconds = {
            name: float(found @ self.coefficients[about.family] if known else max(found[:2]))
            for name, found in terms.items()
        }
        smallest = min(cost.macs for model in self.data.models.values() for cost in model.values())
        return Estimate(
            device=device,
            family=about.family,
            method="fit" if known else "roofline",
            calls_s=seconds,
            picture_s=sum(asked[name][0] * each for name, each in seconds.items()),
            error=self.error(about.family) if known else UNKNOWN,
            rows=len(self.left_out[about.family]) if known else 0,
            beyond=max(cost.macs for cost in costs.values()) * FAR < smallest,
        )


@cache
def shipped() -> Model:
    """Of the rows that come with this package."""
    return Model.of(published())


def _leave_out(data: Published, family: str) -> list[Left]:
    rows, found = data.rows_of(family), []
    chips = dict.fromkeys(map(data.chip, rows))
    for chip in chips if len(chips) > 1 else ():
        fitted = _fit(data, [row for row in rows if data.chip(row) != chip])
        found += [Left(row, float(_row_terms(data, row) @ fitted)) for row in rows if data.chip(row) == chip]
    return found


def _fit(data: Published, rows: Sequence[PublishedRow]) -> NDArray[np.float64]:
    """Reweighted until weight² · (p - 1)² is log² p, where p is estimate over measurement."""
    relative = np.stack([_row_terms(data, row) / row.seconds for row in rows])  # (R, 3)
    weights = np.ones(len(rows))
    for _ in range(ROUNDS):
        fitted = _non_negative(relative * weights[:, None], weights)
        p = relative @ fitted
        away = np.maximum(np.abs(p - 1), 1e-9)
        weights = np.where(away > 1e-9, np.abs(np.log(p)) / away, 1.0)
    return fitted


def _non_negative(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares with coefficients ≥ 0: the best of all subsets of the three columns."""
    best, least = np.zeros(3), float(b @ b)
    for columns in (list(chosen) for count in (1, 2, 3) for chosen in combinations(range(3), count)):
        part, *_ = np.linalg.lstsq(a[:, columns], b, rcond=None)
        loss = float(np.sum((a[:, columns] @ part - b) ** 2))
        if (part >= 0).all() and loss < least:
            best, least = np.zeros(3), loss
            best[columns] = part
    return best


def _row_terms(data: Published, row: PublishedRow) -> NDArray[np.float64]:
    device, costs = data.devices[row.device], data.models[row.model]
    family = data.families[device.family]
    if row.what != PICTURE:
        return _call(device, family, costs[row.what], row.batch)
    guidance = 1.0 if row.batch == 1 else 2.0  # any other than 1: both halves
    terms = _terms(device, family, costs, row.steps, guidance)
    return np.sum([work(row.steps, guidance)[name][0] * found for name, found in terms.items()], axis=0)


def _terms(
    device: Device, family: Family, costs: Mapping[str, Cost], steps: int, guidance: float
) -> dict[str, NDArray[np.float64]]:
    return {name: _call(device, family, cost, work(steps, guidance)[name][1]) for name, cost in costs.items()}


def _call(device: Device, family: Family, cost: Cost, batch: int) -> NDArray[np.float64]:
    """Seconds at the device's full rates of one call's arithmetic and of its weights' way from memory; and 1 call."""
    weights = cost.parameters * family.bits / 8
    return np.array([batch * cost.macs / device.macs_per_s, weights / device.bytes_per_s, 1.0])
