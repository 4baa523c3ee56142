"""Weights and pictures from numpy's frozen stream: the same everywhere, whatever torch's generators become."""

import numpy as np
import torch
from numpy.typing import NDArray


def fill(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights that keep activations of one size, tensor by tensor in the order of their names."""
    rng = np.random.RandomState(seed)
    for name, tensor in sorted(network.state_dict().items()):
        if not tensor.dtype.is_floating_point:
            continue
        drawn = rng.standard_normal(tuple(tensor.shape))
        if tensor.ndim > 1:
            values = drawn * np.sqrt(2 / np.prod(tensor.shape[1:]))
        elif name.endswith(("running_var", "bn.weight")):
            values = 1 + 0.1 * np.abs(drawn)
        else:
            values = 0.1 * drawn
        tensor.copy_(torch.from_numpy(values))
    return network.eval().requires_grad_(False)


def picture(side: int, seed: int = 0) -> NDArray[np.uint8]:
    """(side, side, 3) noise."""
    return np.random.RandomState(seed).randint(0, 256, (side, side, 3)).astype(np.uint8)
