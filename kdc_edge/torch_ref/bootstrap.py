"""Bootstrap intervals of means, paired where several figures come from the same prompts."""

# N prompts, K figures of each, R resamples

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
TAILS = (0.025, 0.975)
PERCENTILE = f"bootstrap over pictures, {RESAMPLES:,} resamples"


def resampled(figures: NDArray[np.float64], seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Means (R, K) of figures (N, K) over prompts drawn with replacement, the same ones for every figure."""
    rng, count = np.random.default_rng(seed), len(figures)
    return np.stack([figures[rng.integers(0, count, count)].mean(0) for _ in range(resamples)])


def interval(figures: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Where the mean of figures (N,) lies, 95 %."""
    low, high = np.quantile(resampled(figures[:, None], seed)[:, 0], TAILS)
    return float(low), float(high)
