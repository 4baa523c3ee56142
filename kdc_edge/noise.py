"""The random numbers of a picture: MT19937 and the polar Gaussian of numpy's RandomState, float32.

Its stream is frozen by numpy and small to port: the same seed is the same noise on every device, in every language.
"""

from collections.abc import Callable

import numpy as np

from kdc_edge.errors import UsageError

Noise = Callable[[tuple[int, ...]], np.ndarray]
SEEDS = 2**32


def gaussian(seed: int) -> Noise:
    """A source of standard normal arrays: first the initial latent, then, where a sampler asks, one per step."""
    if not 0 <= seed < SEEDS:
        raise UsageError(f"seed is {seed}, must be between 0 and {SEEDS - 1}")
    state = np.random.RandomState(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return state.standard_normal(shape).astype(np.float32)

    return draw
