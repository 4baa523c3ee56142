"""Which layers deserve more bits: measured one by one on the network's output, bought in the order of what they give.

Each layer alone is stored at 4, 8 and 16 bits, and the squared error of the output measured; those of several layers are
taken to add up. From 4 bits everywhere, layers rise in the order of error removed for each byte, while the budget lasts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from convert.rounding import Grid
from convert.schemes import Mixed, Weights, excluded
from convert.weights import Feed, Half, Plan, Stored, operator, plan, run, weighted
from kdc_edge.errors import UsageError


@dataclass(frozen=True)
class Choice:
    """One way to store a layer; what `stored` is, is the plan's business."""

    stored: Any
    bytes: int
    error: float


def mixed_plan(
    network: nn.Module, scheme: Mixed, feeds: Sequence[Feed], probes: Sequence[Feed], leave: Sequence[str] = ()
) -> Plan:
    """Raises UsageError where the budget is less than 4 bits take."""
    layers = weighted(network)
    others = sum(p.numel() for name, p in network.model.named_parameters() if name not in layers)
    budget = scheme.budget_mib * 2**20 - 4 * others
    if (least := sum(_least(name, layer, leave) for name, layer in layers.items())) > budget:
        spared = ", those of --exclude at 16," if leave else ""
        raise UsageError(
            f"--budget-mib {scheme.budget_mib:g} leaves {budget / 2**20:.2f} MiB for the layers; at 4 bits{spared} they "
            f"take {least / 2**20:.2f}"
        )
    kinds = [plan(network, way, feeds, leave) for way in (Weights(4, 32), Weights(8), Weights(16))]
    fixed: Plan = {name: stored for name, stored in kinds[0].items() if isinstance(stored, Half)}
    reference = [run(network, probe) for probe in probes]
    choices = {}
    for name in (name for name in layers if name not in fixed):
        ways = [kind[name] for kind in kinds]
        errors = [output_error(network, layers[name], way.restored(), probes, reference) for way in ways]
        choices[name] = [Choice(way, size(way), error) for way, error in zip(ways, errors, strict=True)]
    return fixed | allocate(choices, budget - sum(size(half) for half in fixed.values()))


def _least(name: str, layer: nn.Module, leave: Sequence[str]) -> float:
    """Bytes at 4 bits, or at 16 where `leave` names it."""
    if excluded(name, operator(layer), leave):
        return 2 * layer.weight.numel()
    block = Grid(4, 32).fits(layer.weight).block
    scales = len(layer.weight) if block is None else layer.weight.numel() / block
    return layer.weight.numel() / (1 if operator(layer) == "Gather" else 2) + 4 * scales


def size(stored: Stored) -> int:
    """Bytes in the file."""
    if isinstance(stored, Half):
        return 2 * stored.weight.numel()
    return stored.values.numel() * stored.grid.bits // 8 + 4 * stored.scale.numel()


def allocate(choices: Mapping[str, Sequence[Choice]], budget: float) -> dict[str, Any]:
    """From the first choice of every layer onwards: always the step that takes away most error for a byte."""
    taken = dict.fromkeys(choices, 0)
    spent = sum(ways[0].bytes for ways in choices.values())
    while steps := _affordable(choices, taken, budget - spent):
        _, name, place = max(steps)
        spent += choices[name][place].bytes - choices[name][taken[name]].bytes
        taken[name] = place
    return {name: choices[name][place].stored for name, place in taken.items()}


def _affordable(
    choices: Mapping[str, Sequence[Choice]], taken: Mapping[str, int], left: float
) -> list[tuple[float, str, int]]:
    """Error removed for a byte, layer and place of every step that the budget has room for."""
    found = []
    for name, ways in choices.items():
        now = ways[taken[name]]
        for place in range(taken[name] + 1, len(ways)):
            more, less = ways[place].bytes - now.bytes, now.error - ways[place].error
            if more <= left and less > 0:
                found.append((less / max(more, 1), name, place))
    return found


def output_error(
    network: nn.Module, layer: nn.Module, weight: Tensor, probes: Sequence[Feed], reference: Sequence[Tensor]
) -> float:
    """Squared error of the output with `weight` in this layer alone."""
    kept = layer.weight.data
    layer.weight.data = weight
    found = sum(float((run(network, p) - r).square().sum()) for p, r in zip(probes, reference, strict=True))
    layer.weight.data = kept
    return found
