"""Which weights of a network are stored small, and as what: the plan that the exporter carries out.

Weights of convolutions, linear layers and embeddings are; biases and norms stay fp32. Layers are looked at in PyTorch, where
their inputs can be met.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convert.estimate import HESSIANS_BYTES, LARGEST
from convert.rounding import Grid, Rounded, gptq, nearest
from convert.schemes import Weights, excluded

POSITIONS = 4096  # of one call that H is made of, spread evenly
OPERATORS: dict[type[nn.Module], str] = {nn.Conv2d: "Conv", nn.Linear: "MatMul", nn.Embedding: "Gather"}
Feed = Mapping[str, np.ndarray]
Feeds = Iterable[Feed]


@dataclass(frozen=True, eq=False)
class Half:
    """Stored as float16."""

    weight: Tensor

    def restored(self) -> Tensor:
        return self.weight.half().float()


Stored = Rounded | Half
Plan = dict[str, Stored]


def plan(network: nn.Module, scheme: Weights, feeds: Feeds = (), leave: Sequence[str] = ()) -> Plan:
    """What becomes of every weight, by its name in the checkpoint; those that `leave` names become float16.

    Blocks are for layers that multiply; embeddings have a scale for each row and are rounded to nearest.
    """
    layers = weighted(network)
    small = {} if scheme.bits == 16 else {n: m for n, m in layers.items() if not excluded(n, operator(m), leave)}
    multiplied = {name: layer for name, layer in small.items() if operator(layer) != "Gather"}
    found: Plan = {name: Half(layer.weight) for name, layer in layers.items() if name not in small}
    found |= {name: nearest(layer.weight, Grid(8)) for name, layer in small.items() if name not in multiplied}
    for name, parts in hessians(network, multiplied, feeds):
        found[name] = gptq(layers[name].weight, Grid(scheme.bits, scheme.block), parts)
    return found


def weighted(network: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights can be small, by the weights' names in the checkpoint."""
    return {f"{name}.weight": m for name, m in network.model.named_modules() if type(m) in OPERATORS}


def operator(layer: nn.Module) -> str:
    """What ONNX calls it."""
    return OPERATORS[type(layer)]


def run(network: nn.Module, feed: Mapping[str, np.ndarray]) -> Tensor:
    """The network's first output."""
    with torch.inference_mode():
        out = network(**{name: torch.from_numpy(array) for name, array in feed.items()})
    return out[0] if isinstance(out, tuple) else out


def hessians(network: nn.Module, layers: Mapping[str, nn.Module], feeds: Feeds) -> Iterator[tuple[str, list[Tensor]]]:
    """H of each layer, several for a wide one; as many passes over the feeds as memory asks for."""
    for group in _groups(layers):
        sums = {name: [torch.zeros(width, width) for width in widths(layers[name])] for name in group}
        hooks = [layers[name].register_forward_pre_hook(_adder(sums[name])) for name in group]
        for feed in feeds:
            run(network, feed)
        for hook in hooks:
            hook.remove()
        for name in group:
            yield name, sums.pop(name)


def widths(layer: nn.Module) -> list[int]:
    """Of the parts that a layer's columns are rounded in; whole input channels."""
    channels, positions = layer.weight.shape[1], layer.weight[0, 0].numel()
    parts = -(-channels * positions // LARGEST)
    return [len(part) * positions for part in torch.arange(channels).chunk(parts)]


def _groups(layers: Mapping[str, nn.Module]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for name, layer in layers.items():
        size = 4 * sum(width**2 for width in widths(layer))
        if groups[-1] and filled + size > HESSIANS_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _adder(sums: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        first = 0
        for total in sums:
            positions = layer.weight[0, 0].numel()
            channels = len(total) // positions
            columns = _columns(layer, inputs[0], slice(first, first + channels))
            total += columns @ columns.T
            first += channels

    return add


def _columns(layer: nn.Module, x: Tensor, channels: slice) -> Tensor:
    """What the weight's columns are multiplied with, (K, N); of many positions some."""
    if isinstance(layer, nn.Conv2d):
        return _patches(layer, x[:, channels])
    columns = x[..., channels].flatten(0, -2).T
    return columns[:, :: -(-columns.shape[1] // POSITIONS)]


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Of `F.unfold`'s columns (C·kh·kw, B·L) as many as are looked at, without making the others."""
    down, across = layer.padding
    x = F.pad(x, (across, across, down, down))
    (kh, kw), (dh, dw), (sh, sw) = layer.kernel_size, layer.dilation, layer.stride
    rows, columns = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    count = len(x) * rows * columns
    place = torch.arange(0, count, -(-count // POSITIONS))[:, None, None]
    picture, row, column = place // (rows * columns), place // columns % rows, place % columns
    taken = x[
        picture, :, row * sh + dh * torch.arange(kh)[:, None], column * sw + dw * torch.arange(kw)
    ]  # (N, kh, kw, C)
    return taken.permute(3, 1, 2, 0).flatten(0, 2)
