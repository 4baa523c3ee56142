"""Weights as small integers: scales for blocks of inputs, and rounding that makes good for its own errors.

GPTQ (arXiv 2210.17323): the columns of a layer are rounded one after the other, most active inputs first, and each column's
error is made good by those that follow, as far as the inputs that the layer meets are correlated (H = Σ x·xᵀ). Scales are
settled before, block by block, by the least squared error under the inputs' energies.
"""

# O output channels, K inputs of one of them (I·kh·kw of a convolution), P kernel positions, G blocks

from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01  # of the mean of H's diagonal
CANDIDATES = 16  # scales tried for a block, down to half of the one that clips nothing
CHUNK = 128  # columns whose errors are handed on together


@dataclass(frozen=True)
class Grid:
    """Signed integers of `bits`, with a scale for every `block` input channels of an output channel; None: for all."""

    bits: int
    block: int | None = None

    @property
    def top(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def fits(self, weight: Tensor) -> "Grid":
        """The same, with one scale for all inputs where blocks do not divide them."""
        divides = self.block is not None and weight.shape[1] % self.block == 0
        return self if divides else Grid(self.bits)


@dataclass(frozen=True, eq=False)
class Rounded:
    """Integers in the shape of the weight (O, I, …), and their scales: (O,), or (O, I / block, …)."""

    values: Tensor  # int8
    scale: Tensor
    grid: Grid

    def restored(self) -> Tensor:
        """The weight that the network will compute with."""
        return self.values * spread(self.scale, self.values.shape)


def spread(scale: Tensor, shape: torch.Size) -> Tensor:
    """A scale for every weight."""
    if scale.ndim == 1:
        return scale.view(-1, *[1] * (len(shape) - 1)).expand(shape)
    return scale.repeat_interleave(shape[1] // scale.shape[1], dim=1)


def nearest(weight: Tensor, grid: Grid, energy: Tensor | None = None) -> Rounded:
    """Each weight by itself; `energy` (K,) is Σ x² of its input."""
    grid = grid.fits(weight)
    scale = find_scale(weight, grid, energy)
    values = (weight / spread(scale, weight.shape)).round().clamp(-grid.top - 1, grid.top)
    return Rounded(values.to(torch.int8), scale, grid)


def find_scale(weight: Tensor, grid: Grid, energy: Tensor | None = None) -> Tensor:
    """Of the candidates the one with the least error, weighted by the inputs' energies."""
    cells = _cells(weight, grid)  # (O, G, P, block)
    importance = torch.ones_like(cells) if energy is None else _cells(energy.view(1, *weight.shape[1:]), grid)
    clipless = cells.abs().amax(-1).clamp_min(1e-12) / grid.top
    best, least = clipless, torch.full_like(clipless, torch.inf)
    for share in torch.linspace(1.0, 0.5, CANDIDATES if grid.bits < 8 else 1):
        scale = clipless * share
        rounded = (cells / scale[..., None]).round().clamp(-grid.top - 1, grid.top) * scale[..., None]
        error = ((rounded - cells).square() * importance).sum(-1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.flatten() if grid.block is None else best.reshape(len(weight), -1, *weight.shape[2:])


def _cells(weight: Tensor, grid: Grid) -> Tensor:
    """(O, I, …) → (O, G, P, block): what shares a scale is last."""
    if grid.block is None:
        return weight.reshape(len(weight), 1, 1, -1)
    return weight.reshape(len(weight), weight.shape[1] // grid.block, grid.block, -1).transpose(2, 3)


def gptq(weight: Tensor, grid: Grid, hessians: list[Tensor]) -> Rounded:
    """`hessians` are of successive columns of the weight as (O, K): one (K, K), or several of fewer columns each."""
    grid = grid.fits(weight)
    energy = torch.cat([h.diagonal() for h in hessians])
    scale = find_scale(weight, grid, energy)
    rows, scales = weight.flatten(1), spread(scale, weight.shape).flatten(1)
    widths = [len(h) for h in hessians]
    parts = zip(rows.split(widths, 1), scales.split(widths, 1), hessians, strict=True)
    values = torch.cat([_gptq(part, s, h, grid) for part, s, h in parts], 1)
    return Rounded(values.view(weight.shape).to(torch.int8), scale, grid)


def _gptq(weight: Tensor, scale: Tensor, hessian: Tensor, grid: Grid) -> Tensor:
    """(O, K) columns that share an H → whole numbers."""
    order = hessian.diagonal().argsort(descending=True)
    left, scale = weight[:, order].clone(), scale[:, order]
    upper = _inverse_root(hessian[order][:, order])
    values = torch.empty_like(left)
    for start in range(0, left.shape[1], CHUNK):
        stop = min(start + CHUNK, left.shape[1])
        errors = torch.empty_like(left[:, start:stop])
        for i in range(start, stop):
            values[:, i] = (left[:, i] / scale[:, i]).round().clamp(-grid.top - 1, grid.top)
            error = (left[:, i] - values[:, i] * scale[:, i]) / upper[i, i]
            left[:, i:stop] -= error[:, None] * upper[i, i:stop]
            errors[:, i - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return values[:, order.argsort()]


def _inverse_root(hessian: Tensor) -> Tensor:
    """Upper U with UᵀU = H⁻¹, of a damped H; inputs that never occur stand for themselves."""
    damped = hessian.clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = diagonal.mean().clamp_min(1e-12)
    diagonal += DAMPING * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
