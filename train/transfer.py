"""What a sequence of tasks keeps and gains, from the matrix of scores after each task.

    R[i, j]: score on task j after learning task i; row 0 is the student of before the first. Higher is better.

Definitions of Lopez-Paz & Ranzato (arXiv 1706.08840) and Chaudhry et al. (1801.10112). The baseline of forward transfer is
row 0, where they have a random start.
"""

# T tasks, S seeds

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]  # (T + 1, T)
T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
)  # Student's t, by degrees of freedom from 1


def average(r: Matrix) -> float:
    """Mean score on all tasks after the last."""
    return float(r[-1].mean())


def forgetting(r: Matrix) -> float:
    """Mean over all tasks but the last of the best score after learning some task before the last, less the final one."""
    return float((r[1:-1, :-1].max(0) - r[-1, :-1]).mean())


def backward_transfer(r: Matrix) -> float:
    """Mean over all tasks but the last of the final score less that right after learning the task."""
    return float((r[-1, :-1] - np.diagonal(r[1:])[:-1]).mean())


def forward_transfer(r: Matrix) -> float:
    """Mean over all tasks but the first of the score right before learning the task, less that of the start."""
    later = range(1, r.shape[1])
    return float(np.mean([r[j, j] - r[0, j] for j in later]))


MEASURES = {
    "average": average,
    "forgetting": forgetting,
    "backward transfer": backward_transfer,
    "forward transfer": forward_transfer,
}


@dataclass(frozen=True)
class Interval:
    """The mean over seeds, and where it lies, 95 %; one seed does not say."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def interval(values: Sequence[float]) -> Interval:
    """Student's t over seeds (S,)."""
    x = np.asarray(values, np.float64)
    if len(x) < 2:
        return Interval(float(x.mean()), None, None, len(x))
    half = quantile(len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z, n = 1.959964, freedom  # Cornish & Fisher's expansion
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / n**power for power, term in enumerate(terms, 1))
