"""Tensors that stay on disk: rows are read from memory-mapped safetensors files when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kdc_edge.checkpoint import mapped


class Rows(Protocol):
    """A tensor that is read row by row."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, index: Tensor) -> Tensor:
        """(B,) int64 → (B, …) in the stored type."""
        ...


@dataclass(frozen=True)
class Stored:
    """The rows of one tensor that lies in several files; reading some touches no others."""

    parts: tuple[np.ndarray, ...]

    @classmethod
    def open(cls, paths: Sequence[Path], name: str) -> "Stored":
        return cls(tuple(mapped(path, name) for path in paths))

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index: Tensor) -> Tensor:
        starts = np.cumsum([0, *map(len, self.parts)])
        wanted = index.numpy()
        which = np.searchsorted(starts, wanted, side="right") - 1
        out = np.empty((len(wanted), *self.parts[0].shape[1:]), self.parts[0].dtype)
        for part in np.unique(which):
            here = which == part
            out[here] = self.parts[part][wanted[here] - starts[part]]
        return torch.from_numpy(out)
