"""Which tensors deserve more bits: measured one by one on the network's output, bought in the order of what they give.

As `convert.mixed` does it for ONNX, with palettes: each tensor alone is restored from a palette of 2, 4, 6 or 8 bits (3, too,
where the target has it) or kept in fp16, and the squared error of the output is measured on calls that the model makes while
it draws.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from convert.apple.palettes import Histogram, Job, fit_all
from convert.apple.schemes import SMALLEST, Palette, Plan
from convert.apple.targets import TARGETS, TargetName
from convert.mixed import Choice, allocate, output_error
from convert.weights import Feed, run, weighted
from kdc_edge import machine
from kdc_edge.errors import UsageError


@dataclass(frozen=True)
class Sensitivity:
    """`errors` of the output, squared, by bits of the tensor alone; `bits` it gets."""

    errors: dict[str, float]
    bits: int


def mixed_plan(
    network: nn.Module, target: TargetName, budget_mib: float, uniform: bool, probes: Sequence[Feed]
) -> tuple[Plan, dict[str, Sensitivity]]:
    """A palette for each tensor, within the budget. Raises UsageError where that is less than the fewest bits take."""
    sizes = (2, 3, 4, 6, 8) if TARGETS[target].blocks else (2, 4, 6, 8)
    layers = {name: layer for name, layer in weighted(network).items() if layer.weight.numel() > SMALLEST}
    others = 2 * (sum(p.numel() for p in network.parameters()) - sum(x.weight.numel() for x in layers.values()))
    budget = budget_mib * 2**20 - others
    if (least := sum(_bytes(layer, sizes[0]) for layer in layers.values())) > budget:
        raise UsageError(
            f"--budget-mib {budget_mib:g} leaves {budget / 2**20:.2f} MiB for the tensors; at {sizes[0]} bits they take "
            f"{least / 2**20:.2f}"
        )
    reference = [run(network, probe) for probe in probes]
    choices: dict[str, list[Choice]] = {name: [] for name in layers}
    for name, bits, weight in _restored(layers, sizes, uniform):
        error = output_error(network, layers[name], weight, probes, reference)
        scheme = None if bits == 16 else Palette(bits, uniform)
        choices[name].append(Choice(scheme, _bytes(layers[name], bits), error))
    chosen = allocate(choices, budget)
    table = {name: _sensitivity(ways, chosen[name], (*sizes, 16)) for name, ways in choices.items()}
    return Plan(names=dict(chosen)), table


def _restored(
    layers: Mapping[str, nn.Module], sizes: Sequence[int], uniform: bool
) -> Iterator[tuple[str, int, torch.Tensor]]:
    """Each weight as every one of its palettes gives it back, fewest bits first, and as fp16."""
    halves = {name: layer.weight.numpy().astype(np.float16) for name, layer in layers.items()}
    histograms = {name: Histogram.of(half) for name, half in halves.items()}
    wanted = [(name, bits) for name in layers for bits in sizes]
    tables = fit_all([Job(histograms[name], bits, uniform) for name, bits in wanted], machine.cores())
    for (name, bits), table in zip(wanted, tables, strict=True):
        indices = table.indices(halves[name], histograms[name])
        yield name, bits, torch.from_numpy(table.entries[indices].astype(np.float32))
        if bits == sizes[-1]:
            yield name, 16, torch.from_numpy(halves[name].astype(np.float32))


def _bytes(layer: nn.Module, bits: int) -> int:
    return -(-layer.weight.numel() * bits // 8) + (0 if bits == 16 else 2 << bits)


def _sensitivity(ways: Sequence[Choice], chosen: Palette | None, sizes: Sequence[int]) -> Sensitivity:
    errors = {str(bits): way.error for bits, way in zip(sizes, ways, strict=True)}
    return Sensitivity(errors, 16 if chosen is None else chosen.palette)
