"""What int8 spares: the arithmetic of the choice, and layers that suffer."""

import numpy as np
import pytest
import torch
from torch import nn

from convert.calibration import Calls
from convert.exclusions import E4M3, STORED, UNSIGNED, Range, Sensitivity, afford, afforded, choose, slower, spared
from convert.weights import run
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.torch_ref.networks import load_network


def test_e4m3_rounds_relatively_and_weights_alone_leave_inputs_as_they_are():
    met = Range(E4M3)
    met.meet("in", torch.tensor([-448.0, 1.0]))
    found = met.quantised("in", torch.tensor([1.0, 1.04, 1.2, 300.0, 1000.0]))
    assert found.tolist() == [1.0, 1.0, 1.25, 288.0, 448.0]
    layer, feeds = nn.Linear(4, 4).requires_grad_(False), [{"x": np.ones((1, 4), np.float32)}]
    network = nn.Module()
    network.model, network.forward = nn.Sequential(layer), lambda x: network.model(x)
    halved = Sensitivity(network, feeds, feeds, (), STORED, {"0.weight": layer.weight / 2})
    assert halved.costs().tolist() == [16]
    assert halved.errors(["0.weight"]) == pytest.approx(
        float((layer.weight.sum(1) / 2).square().sum() / network(torch.ones(1, 4)).square().sum())
    )


def test_a_range_is_divided_into_255_steps_with_zero_among_them():
    met = Range(UNSIGNED)
    met.meet("in", torch.tensor([-1.0, 0.5]))
    met.meet("in", torch.tensor([4.1]))
    found = met.quantised("in", torch.tensor([-9.0, -1.0, 0.0, 4.1, 9.0]))
    assert found.tolist() == torch.tensor([-1.0, -1.0, 0.0, 4.1, 4.1]).tolist()
    assert met.quantised("in", torch.linspace(-1, 4.1, 1000)).unique().numel() == 256


def test_the_choice_removes_most_error_for_a_multiplication_until_every_probe_is_below():
    errors = np.array([[4.0, 0.1], [4.0, 0.1], [0.1, 3.0], [0.1, 0.1]])
    assert choose(errors, np.array([2, 1, 1, 1]), 9.0) == []
    assert choose(errors, np.array([2, 1, 1, 1]), 5.0) == [1]
    assert choose(errors, np.array([2, 1, 1, 1]), 1.0) == [1, 2, 0]
    assert sorted(choose(errors, np.ones(4), 0.05)) == [0, 1, 2, 3]


def test_time_buys_back_what_removes_most_error_for_a_millisecond():
    errors = np.array([[4.0, 0.0], [4.0, 4.0], [1.0, 1.0], [0.1, 0.1]])
    ms = np.array([2.0, 2.0, 0.1, -0.5])  # int8 makes the last one slower
    assert afford(errors, ms, 0.0) == {3}
    assert afford(errors, ms, 2.0) == {2, 3}
    assert afford(errors, ms, 2.2) == {1, 2, 3}
    assert afford(errors, ms, 5.0) == {0, 1, 2, 3}


def test_a_layer_that_meets_outliers_is_spared():
    torch.manual_seed(0)
    network = nn.Module()
    network.model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).requires_grad_(False)
    network.model[0].weight[:, 0] = 0  # what it reads there is large and of no use
    network.forward = lambda x: network.model(x)
    feeds = [{"x": np.random.RandomState(i).standard_normal((16, 8)).astype(np.float32)} for i in range(8)]
    for feed in feeds:
        feed["x"][:, 0] *= 500
    assert spared(Sensitivity(network, feeds, feeds[:2]), floor=20) == ["0.weight"]
    assert spared(Sensitivity(network, feeds, feeds[:2], leave=["0.weight"]), floor=20) == []


def test_more_is_spared_for_a_higher_floor_and_weights_come_back(tiny_checkpoint, calls):
    network = load_network(Checkpoint.open(tiny_checkpoint), "unet")
    feeds = Calls(calls / "unet").some(4)
    before = run(network, feeds[0])
    found = Sensitivity(network, feeds, feeds[:2])
    counts = [len(spared(found, floor)) for floor in (0.0, 30.0, 60.0)]
    assert counts[0] < counts[1] < counts[2]
    assert torch.equal(run(network, feeds[0]), before)


def test_within_a_budget_of_time(tiny_checkpoint, calls):
    """A network of microseconds: how many layers return is the machine's to say, not that more time returns more."""
    network = load_network(Checkpoint.open(tiny_checkpoint), "unet")
    found = Sensitivity(network, Calls(calls / "unet"), Calls(calls / "unet").some(2))
    assert len(afforded(found, left_ms=1000)) == len(found.layers)
    assert afforded(found, left_ms=0) == slower(found)
