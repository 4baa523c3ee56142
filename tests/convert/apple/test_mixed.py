"""Bits by tensor: within the budget, more where there is more of it, refused where the fewest bits do not fit."""

from pathlib import Path

import pytest

from convert.apple.mixed import mixed_plan
from convert.calibration import Calls
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.errors import UsageError
from kdc_edge.torch_ref.networks import load_network


def test_bits_follow_the_budget(tiny_checkpoint: Path, calls: Path):
    network, probes = load_network(Checkpoint.open(tiny_checkpoint), "unet"), Calls(calls / "unet").some(1)
    bits = {}
    for budget in (0.14, 0.2):
        plan, table = mixed_plan(network, "ios17", budget, True, probes)
        bits[budget] = {name: found.bits for name, found in table.items()}
        assert set(plan.names) == set(table)
        numbers = {name: parameter.numel() for name, parameter in network.model.named_parameters()}
        others = 2 * sum(count for name, count in numbers.items() if name not in table)
        assert others + sum(numbers[name] * b / 8 for name, b in bits[budget].items()) <= budget * 2**20
    assert sum(bits[0.2].values()) > sum(bits[0.14].values())
    assert all(found.errors["2"] > found.errors["8"] for found in table.values())
    with pytest.raises(UsageError, match="at 2 bits they take"):
        mixed_plan(network, "ios17", 0.05, True, probes)
