"""Bits by tensor: within the budget, more where there is more of it; what int8 spares, and that this is enough."""

from pathlib import Path

import pytest

from convert.apple.mixed import mixed_plan
from convert.apple.schemes import SMALLEST, Linear, Plan
from convert.apple.spared import spared_plan
from convert.calibration import Calls
from convert.exclusions import STORED
from convert.parity import snr_db
from convert.rounding import Grid, nearest
from convert.weights import run, weighted
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


@pytest.mark.parametrize("floor", [0.0, 43.0])
def test_int8_spares_what_the_floor_asks_for(floor: float, tiny_checkpoint: Path, calls: Path):
    """And keeps what `--plan` said."""
    network, probes = load_network(Checkpoint.open(tiny_checkpoint), "unet"), Calls(calls / "unet").some(3)
    plan, names = spared_plan(network, Plan(Linear(8), names={"conv_in*": None}), floor, probes)
    assert plan.of("conv_in.weight", "conv") is None
    assert [plan.of(name, "conv") for name in names] == [None] * len(names)
    assert bool(names) == (floor > 0)
    wanted = [run(network, probe) for probe in probes]
    for name, layer in weighted(network).items():
        if name not in names and layer.weight.numel() > SMALLEST:
            layer.weight.data = nearest(layer.weight.data, Grid(8)).restored()
    worst = min(snr_db(w.numpy(), run(network, p).numpy()) for w, p in zip(wanted, probes, strict=True))
    assert worst > floor + STORED.margin_db
