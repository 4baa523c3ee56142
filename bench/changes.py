"""Where a series changed its level: E-divisive with means, for the few dozen runs that a history holds.

Matteson & James, "A nonparametric approach for multiple change point analysis of multivariate data" (2014), as it is used on
benchmark histories by Daly et al., "The use of change point detection to identify software performance regressions in a
continuous integration system" (2020, arXiv 2003.00584). The split with the largest energy distance between its two sides is
tested by permutations, with a fixed seed so that a report is the same each time, and both sides are searched again.
"""

# N values of a series, R random orders

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAST = 3  # values on either side
ORDERS = 199
LEVEL = 0.02  # three values on either side have twenty splits, and no p below 0.05 however far apart they are


def change_points(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> list[int]:
    """Indices, ascending, of the first value after each change; fewer than 2 × LEAST values have none."""
    series = np.asarray(values, dtype=np.float64)
    found: list[int] = []
    waiting = [(0, len(series))]
    while waiting:
        start, end = waiting.pop()
        if end - start < 2 * LEAST:
            continue
        distances = np.abs(series[start:end, None] - series[None, start:end])
        best, at = _split(distances[None])
        if best[0] > 0 and _chance(distances, best[0], seed) <= level:
            middle = start + int(at[0])
            found.append(middle)
            waiting += [(start, middle), (middle, end)]
    return sorted(found)


def _split(distances: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Of each of (R, N, N) distance matrices the largest scaled energy distance over splits, and where."""
    count = distances.shape[1]
    before = np.arange(LEAST, count - LEAST + 1)
    after = count - before
    sums = distances.cumsum(1).cumsum(2)
    inside, total = sums[:, before - 1, before - 1], sums[:, -1, -1][:, None]
    across = sums[:, before - 1, -1] - inside  # each pair across once
    outside = total - inside - 2 * across
    energy = 2 * across / (before * after) - inside / (before * (before - 1)) - outside / (after * (after - 1))
    scaled = before * after / count * energy
    at = scaled.argmax(1)
    return scaled[np.arange(len(at)), at], before[at]


def _chance(distances: NDArray[np.float64], best: float, seed: int) -> float:
    """The share of random orders, this one among them, that have as good a split."""
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(len(distances)) for _ in range(ORDERS)])
    shuffled, _ = _split(distances[orders[:, :, None], orders[:, None, :]])
    return (1 + int((shuffled >= best * (1 - 1e-12)).sum())) / (1 + ORDERS)
