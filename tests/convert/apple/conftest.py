"""A program with every kind of weight, converted once for each target in a second, and the tiny U-Net's packages."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools", reason="coremltools is not installed; pip install 'kdc-edge[coreml]'")

from convert.apple.package import About, Settings, convert, mil_name, package_component, quietly
from convert.apple.schemes import PRECISIONS
from kdc_edge.ports import Port, Ports
from kdc_edge.runtimes.apple import PACKAGES

sys.path.insert(0, str(Path(__file__).parent))
ABOUT = About("someone", "Apache-2.0", "7")
SETTINGS = Settings("ios17", half=True, about=ABOUT)


class Toy(nn.Module):
    """A lookup, a convolution, a matrix product: numbers (1, 64) float32 → (1, 32, 64)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.look = nn.Embedding(128, 64)
        self.conv = nn.Conv2d(64, 64, 3, padding=1)
        self.lin = nn.Linear(64, 32)

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


@pytest.fixture(scope="module")
def toy() -> Callable[[str], tuple[Any, nn.Module, dict[str, str]]]:
    """`toy(target)`: the program, the network, and the names of its weights; the program may be compressed many times."""
    made: dict[str, Any] = {}
    network = Wrapped().eval()

    def make(target: str) -> tuple[Any, nn.Module, dict[str, str]]:
        if target not in made:
            with quietly(), torch.no_grad():
                traced = torch.jit.trace(network, torch.zeros(1, 64), check_trace=False)
                made[target] = convert(traced, PORTS, replace(SETTINGS, target=target))
        return made[target], network, {mil_name(name): name for name, _ in network.model.named_parameters()}

    return make


@pytest.fixture(scope="session")
def packages(shared: Callable[[str, Callable[[Path], object]], Path], tiny_checkpoint: Path) -> Path:
    """The tiny checkpoint's three packages in fp16, for ios17."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for name in PACKAGES:
            package_component(tiny_checkpoint, name, folder, SETTINGS, PRECISIONS["fp16"][name])

    return shared("tiny-coreml", make)
