"""Muon: momentum whose update of every matrix is orthogonalised, so that rare directions move as far as common ones.

After Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon/), with the scale of arXiv 2502.16982, by which AdamW's
learning rate and weight decay serve unchanged. Unlike `torch.optim.Muon` it takes convolutions, as (out, in·height·width)
matrices, works in float32, which a CPU without bfloat16 needs, and iterates on the Gram matrix, at a third of the cost.
"""

# R rows, C columns, R ≤ C

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315  # the quintic a·x + b·x³ + c·x⁵, steepest at 0


class Muon(torch.optim.Optimizer):
    """For parameters of two or more dimensions; their biases and scales belong to AdamW."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, group)

    def _update(self, param: Tensor, group: dict[str, Any]) -> None:
        state = self.state[param]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        average = state["momentum"]
        average.mul_(group["momentum"]).add_(param.grad)
        ahead = torch.add(param.grad, average, alpha=group["momentum"])  # Nesterov's
        rows = ahead.flatten(1)
        update = orthogonalise(rows).view(param.shape)
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(update, alpha=-0.2 * math.sqrt(max(rows.shape)) * group["lr"])


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """About U·Vᵀ of `matrix` = U·S·Vᵀ: every singular value comes near 1, by `steps` Newton-Schulz iterations.

    All iterates are polynomials in the Gram matrix times `matrix`, so only R×R products are iterated.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonalise(matrix.T, steps).T
    x = matrix / matrix.norm().clamp_min(1e-7)
    gram = x @ x.T  # (R, R)
    identity = torch.eye(len(x), dtype=x.dtype, device=x.device)
    factor = identity
    for _ in range(steps):
        current = factor @ factor @ gram  # the Gram matrix of `factor @ x`
        factor = torch.addmm(current, current, current, beta=B, alpha=C).add_(identity, alpha=A) @ factor
    return factor @ x
