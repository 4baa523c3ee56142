"""Which layers keep fp16 weights where the others have int8: measured on calls that the model makes while it draws."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from convert.apple.schemes import SMALLEST, Plan
from convert.exclusions import STORED, Sensitivity, spared
from convert.weights import Feed, weighted


def spared_plan(
    network: nn.Module, plan: Plan, floor_db: float, probes: Sequence[Feed]
) -> tuple[Plan, tuple[str, ...]]:
    """The plan without these layers, and their names: what is left stays above the floor, and a margin, on every probe."""
    tiny = [name for name, layer in weighted(network).items() if layer.weight.numel() <= SMALLEST]
    names = spared(Sensitivity(network, probes[:1], probes, tiny, STORED), floor_db)
    return replace(plan, names={**plan.names, **dict.fromkeys(names)}), tuple(names)
