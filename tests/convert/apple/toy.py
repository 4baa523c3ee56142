"""A program with every kind of weight, that converts in a second."""

import torch
from torch import Tensor, nn

from convert.apple.package import About, Settings
from kdc_edge.ports import Port, Ports

ABOUT = About("someone", "Apache-2.0", "7")
SETTINGS = Settings("ios17", half=True, about=ABOUT)


class Toy(nn.Module):
    """A lookup, a convolution, a matrix product: numbers (1, 64) float32 → (1, 32, 64)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.look = nn.Embedding(128, 32)
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.lin = nn.Linear(32, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.look(ids.to(torch.int32)).transpose(1, 2).unflatten(2, (8, 8))
        return self.lin(self.conv(x).flatten(2).transpose(1, 2)).transpose(1, 2)


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Toy()

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)


PORTS = Ports((Port("ids", "float32", (1, 64)),), (Port("out", "float32", (1, 32, 64)),))
