"""How far one array is from another."""

import math

import numpy as np

EQUAL_DB = 200.0  # what identical arrays get: past the resolution of fp32


def snr_db(reference: np.ndarray, out: np.ndarray) -> float:
    """Signal to noise of `out`, at most EQUAL_DB; NaN where either is not finite or the shapes differ."""
    if reference.shape != out.shape:
        return math.nan
    ref = reference.astype(np.float64)
    noise, signal = float(np.sum((ref - out) ** 2)), float(np.sum(ref**2))
    if not math.isfinite(noise + signal):
        return math.nan
    if noise == 0:
        return EQUAL_DB
    return min(EQUAL_DB, 10 * math.log10(signal / noise)) if signal > 0 else -EQUAL_DB
