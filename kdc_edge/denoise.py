"""Wrappers that end in `denoise(x, sigma) -> x0`: what the network predicts, and guidance. Samplers ask neither."""

# x = x0 + sigma · noise; the network sees and predicts in unit variance: x / √(1 + sigma²), v = α·eps - √(1 - α²)·x0

import math
from collections.abc import Callable

import numpy as np

from kdc_edge.samplers import Denoise
from kdc_edge.schedule import Schedule

Network = Callable[[np.ndarray, float], np.ndarray]  # unit-variance sample (B, C, H, W), timestep → prediction


def _epsilon(x: np.ndarray, out: np.ndarray, sigma: float) -> np.ndarray:
    return x - out * sigma


def _v_prediction(x: np.ndarray, out: np.ndarray, sigma: float) -> np.ndarray:
    return x * (1 / (sigma**2 + 1)) - out * (sigma / math.hypot(1, sigma))


def _sample(x: np.ndarray, out: np.ndarray, sigma: float) -> np.ndarray:
    return out


PREDICTIONS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "epsilon": _epsilon,
    "v_prediction": _v_prediction,
    "sample": _sample,
}


def from_network(network: Network, prediction_type: str, schedule: Schedule) -> Denoise:
    """The denoiser of a network that predicts one of PREDICTIONS."""
    to_x0 = PREDICTIONS[prediction_type]

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        out = network(x * (1 / math.hypot(1, sigma)), schedule.timestep(sigma))
        return to_x0(x, out, sigma)

    return denoise


def guided(denoise: Denoise, guidance: float) -> Denoise:
    """Classifier-free guidance over a denoiser of twice the batch, unconditional first.

    x0 is affine in every prediction, so guiding x0 is guiding the prediction. 0 is the unconditional picture; 1 is the
    conditional one, for which `denoise` alone is enough.
    """

    def denoise_guided(x: np.ndarray, sigma: float) -> np.ndarray:
        unconditional, conditional = np.split(denoise(np.concatenate([x, x]), sigma), 2)
        return unconditional + (conditional - unconditional) * guidance

    return denoise_guided
