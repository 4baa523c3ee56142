"""Every way to store and multiply numbers: size, nearness to PyTorch, what is in the graph; rounding by its definition."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.numpy_helper import to_array
from torch import nn

from convert import calibration, export
from convert.calibration import Calls
from convert.mixed import Choice, allocate, size
from convert.parity import snr_db
from convert.rounding import Grid, gptq, nearest
from convert.schemes import PRECISIONS, Dynamic, Mixed, Scheme, Static, Weights, excluded, floor_db, session
from convert.weights import POSITIONS, Half, hessians, operator, plan, weighted
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.ports import zeros
from kdc_edge.spec import component_ports, evaluations, pipeline_spec
from kdc_edge.torch_ref import macs
from kdc_edge.torch_ref.networks import load_network
from kdc_edge.torch_ref.runtime import open_runtime

SCHEMES: dict[Scheme, float] = {  # most bytes of weights a parameter
    None: 4.1,
    Weights(16): 2.2,
    Weights(8): 1.4,
    Weights(4, 32): 1.2,
    Static(): 1.4,
    Dynamic(): 1.8,
    Mixed(0.04): 1.6,
}
PAIRS = [("text_encoder", scheme) for scheme in SCHEMES if scheme != Static()]
PAIRS += [("vae_decoder", scheme) for scheme in SCHEMES if scheme != Dynamic()]
CONSTANTS = 8_000  # bytes of what is no weight


def test_every_precision_is_made_of_schemes_that_are_tested():
    known = {type(scheme) if isinstance(scheme, Mixed) else scheme for scheme in SCHEMES}
    for precision in PRECISIONS.values():
        assert all((type(s) if isinstance(s, Mixed) else s) in known for s in precision.values())


@pytest.mark.parametrize(("component", "scheme"), PAIRS, ids=repr)
def test_a_scheme_is_small_and_near_pytorch(
    component: str, scheme: Scheme, tiny_checkpoint: Path, calls: Path, tmp_path: Path
):
    seen = Calls(calls / component)
    done = export.export_component(tiny_checkpoint, component, tmp_path, scheme, seen, fused=True)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    ports = component_ports(checkpoint, pipeline_spec(checkpoint))[component]
    zero = {key: torch.from_numpy(x) for key, x in zeros(ports.inputs, {"batch": 1}).items()}
    assert done.counters.macs == pytest.approx(macs.count(load_network(checkpoint, component), zero).macs, rel=1e-3)
    weights = onnx.load(tmp_path / export.MODEL).graph.initializer
    assert sum(len(w.raw_data) for w in weights) <= SCHEMES[scheme] * done.parameters + CONSTANTS
    options = onnxruntime.SessionOptions()
    for key, value in session(scheme).items():
        options.add_session_config_entry(key, value)
    found = onnxruntime.InferenceSession(tmp_path / export.MODEL, options)
    names = [output.name for output in found.get_outputs()]
    reference = open_runtime(checkpoint, component)
    for feed in Calls(calls / component):
        outputs = dict(zip(names, found.run(None, feed), strict=True))
        assert all(snr_db(ref, outputs[name]) >= floor_db(scheme) for name, ref in reference(**feed).items())


def test_calls_are_spread_over_the_whole_trajectory():
    met = [calibration.places(number, 20) for number in range(5)]
    assert set().union(*met) == set(range(20))
    assert {len(places) for places in met} == {4}
    assert calibration.places(3, 2) == {0, 1}


def test_a_sampler_that_asks_once_more_is_met_in_its_last_call(tiny_checkpoint: Path):
    spec = pipeline_spec(Checkpoint.open(tiny_checkpoint), steps=20)
    assert evaluations(spec) == 20 and evaluations(replace(spec, sampler="pndm")) == 21
    assert set().union(*(calibration.places(number, 21) for number in range(6))) == set(range(21))


def test_calibration_has_a_hash_of_what_decides_it(tiny_checkpoint: Path):
    spec = pipeline_spec(Checkpoint.open(tiny_checkpoint))
    first, again = (calibration.digest(spec, ["red apple"]) for _ in range(2))
    assert first == again
    assert (
        len({first, calibration.digest(spec, ["apple"]), calibration.digest(replace(spec, steps=3), ["red apple"])})
        == 3
    )


@pytest.mark.parametrize("grid", [Grid(8), Grid(4, 4), Grid(4)], ids=repr)
@pytest.mark.parametrize("shape", [(6, 8, 3, 3), (6, 8)])
def test_nearest_is_within_half_a_step(grid: Grid, shape: tuple[int, ...]):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = nearest(weight, replace(grid, bits=8))
    step = (
        found.scale.view(6, *[1] * (len(shape) - 1)) if found.scale.ndim == 1 else found.scale.repeat_interleave(4, 1)
    )
    assert ((found.restored() - weight).abs() <= step / 2 * 1.001).all()
    small = nearest(weight, grid)
    assert small.values.min() >= -grid.top - 1
    assert small.values.max() <= grid.top


@pytest.mark.parametrize("build", [lambda: nn.Linear(24, 8), lambda: nn.Conv2d(6, 8, 3, 2, 1)], ids=["linear", "conv"])
@pytest.mark.parametrize("grid", [Grid(8), Grid(4), Grid(4, 2)], ids=repr)
def test_gptq_errs_less_on_the_layers_output_than_nearest(build: Callable[[], nn.Module], grid: Grid):
    """Inputs are correlated, as real ones are; in several parts it errs less, too."""
    torch.manual_seed(0)
    layer = build()
    shape = (64, 6, 8, 8) if isinstance(layer, nn.Conv2d) else (256, 24)
    x = torch.randn(shape).cumsum(1)
    network = nn.Module()
    network.model, network.forward = layer, lambda x: layer(x)
    layer.requires_grad_(False)
    ((name, (hessian,)),) = hessians(network, weighted(network), [{"x": x.numpy()}])
    assert name == ".weight"
    weight = layer.weight.data.clone()
    wanted = layer(x)
    half = len(hessian) // 2
    errors = []
    for found in (
        gptq(weight, grid, [hessian]),
        gptq(weight, grid, [hessian[:half, :half], hessian[half:, half:]]),
        nearest(weight, grid, hessian.diagonal()),
    ):
        layer.weight.data = found.restored()
        errors.append(float((layer(x) - wanted).square().sum()))
    layer.weight.data = weight
    assert errors[0] < 0.9 * errors[2]
    assert errors[1] < errors[2]


def test_a_hessian_is_what_the_layers_columns_are_multiplied_with():
    """A convolution as a matrix product with H's columns: the energy of its output is w·H·wᵀ."""
    layer = nn.Conv2d(3, 1, 3, padding=1, bias=False).requires_grad_(False)
    network = nn.Module()
    network.model, network.forward = layer, lambda x: layer(x)
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    ((_, (hessian,)),) = hessians(network, weighted(network), [{"x": x.numpy()}])
    row = layer.weight.flatten()
    assert float(row @ hessian @ row) == pytest.approx(float(layer(x).square().sum()), rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (1, 1, 0, 1), (3, 2, 1, 1), ((3, 1), (1, 2), (1, 0), 1), (3, 1, 2, 2)])
@pytest.mark.parametrize("size", [(2, 8, 12), (2, 96, 64)], ids=str)
def test_of_many_positions_some_are_looked_at(shape: tuple, size: tuple[int, int, int]):
    layer = nn.Conv2d(3, 1, *shape, bias=False).requires_grad_(False)
    network = nn.Module()
    network.model, network.forward = layer, lambda x: layer(x)
    x = torch.randn(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(0))
    ((_, (hessian,)),) = hessians(network, weighted(network), [{"x": x.numpy()}])
    kernel, stride, padding, dilation = shape
    every = nn.functional.unfold(x, kernel, dilation, padding, stride).transpose(0, 1).flatten(1)
    seen = every[:, :: -(-every.shape[1] // POSITIONS)]
    assert torch.allclose(hessian, seen @ seen.T, rtol=1e-5, atol=1e-6 * float(hessian.max()))


def test_layers_can_be_left_alone_by_name_or_operator(tiny_checkpoint: Path, calls: Path):
    network = load_network(Checkpoint.open(tiny_checkpoint), "unet")
    feeds = Calls(calls / "unet").some(1)
    found = plan(network, Weights(8), feeds, ("conv_in.weight", "MatMul"))
    halves = {name for name, stored in found.items() if isinstance(stored, Half)}
    assert "conv_in.weight" in halves
    assert halves > {name for name in found if "attn" in name}
    assert "conv_out.weight" not in halves
    assert excluded("down_blocks.0.resnets.0.conv1.weight", "Conv", ("down_blocks.*",))


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize("shape", ["tiny_checkpoint", "tiny_sd_checkpoint"])
def test_layers_are_named_without_reading_weights(component: str, shape: str, request: pytest.FixtureRequest):
    checkpoint = Checkpoint.open(request.getfixturevalue(shape))
    layers = weighted(load_network(checkpoint, component))
    assert export.layer_names(checkpoint.path, [component]) == [(n, operator(layer)) for n, layer in layers.items()]


def test_int8_leaves_matrix_products_out_with_their_biases_too(tiny_checkpoint: Path, calls: Path, tmp_path: Path):
    leave = ("MatMul",)
    export.export_component(tiny_checkpoint, "unet", tmp_path, Static(spare=False), Calls(calls / "unet"), leave)
    graph = onnx.load(tmp_path / export.MODEL).graph
    made = {node.output[0]: node.op_type for node in graph.node}
    fed = {node.op_type: made.get(node.input[1]) for node in graph.node if node.op_type in ("Conv", "Gemm")}
    assert fed == {"Conv": "DequantizeLinear", "Gemm": None}


def test_the_budget_buys_what_takes_most_error_away_for_a_byte():
    layer = Half(torch.zeros(2))
    choices = {
        "worth it": [Choice(layer, 10, 9.0), Choice(layer, 20, 1.0), Choice(layer, 40, 0.5)],
        "not worth it": [Choice(layer, 10, 2.0), Choice(layer, 20, 1.9), Choice(layer, 40, 0.0)],
    }

    def bytes_for(budget: int) -> dict[str, int]:
        named = {
            name: [replace(c, stored=Half(torch.zeros(c.bytes // 2))) for c in ways] for name, ways in choices.items()
        }
        return {name: size(stored) for name, stored in allocate(named, budget).items()}

    assert bytes_for(29) == {"worth it": 10, "not worth it": 10}
    assert bytes_for(30) == {"worth it": 20, "not worth it": 10}
    assert bytes_for(60) == {"worth it": 20, "not worth it": 40}
    assert bytes_for(80) == {"worth it": 40, "not worth it": 40}


def test_the_range_of_an_activation_is_that_of_all_calls(tiny_checkpoint: Path, calls: Path, tmp_path: Path):
    seen = Calls(calls / "unet")
    export.export_component(tiny_checkpoint, "unet", tmp_path, Static(spare=False), seen, fused=True)
    graph = onnx.load(tmp_path / export.MODEL).graph
    arrays = {w.name: to_array(w) for w in graph.initializer}
    (rounding,) = (node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "sample")
    scale, zero = (float(arrays[name]) for name in rounding.input[1:])
    samples = np.concatenate([feed["sample"] for feed in seen])
    assert scale * 255 == pytest.approx(samples.max() - samples.min(), rel=1e-4)
    assert -scale * zero == pytest.approx(samples.min(), abs=scale)


def test_stored_weights_spare_what_the_floor_asks_for(
    tiny_checkpoint: Path, calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a floor that not every layer keeps in 8 bits; --no-spare leaves none."""
    monkeypatch.setattr("convert.export.floor_db", lambda scheme: 45.0)
    arguments = (tiny_checkpoint, "unet", tmp_path, Weights(8), Calls(calls / "unet"))
    left = set(export.export_component(*arguments).left)
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = {tensor.name.removesuffix(".T"): tensor.data_type for tensor in graph.initializer}
    assert left and {kinds[name] for name in left} == {onnx.TensorProto.FLOAT16}
    assert onnx.TensorProto.INT8 in {kinds[name] for name in kinds if name.endswith("weight") and name not in left}
    whole = replace(Weights(8), spare=False)
    assert export.export_component(tiny_checkpoint, "unet", tmp_path, whole, Calls(calls / "unet")).left == ()
