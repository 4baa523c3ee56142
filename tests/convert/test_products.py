"""What int8 makes of the graph before it rounds, and which of onnxruntime's kernels multiply, and are timed."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from torch import nn

from convert import export, products
from convert.calibration import Calls
from convert.integers import quantise
from convert.latency import graph, savings
from convert.parity import snr_db
from convert.schemes import Static
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.spec import component_ports, pipeline_spec
from kdc_edge.torch_ref.networks import load_network
from kdc_edge.torch_ref.runtime import open_runtime


def kernels(path: Path, kept: Path) -> Counter[str]:
    """What onnxruntime runs, once it has optimised the model."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(kept), 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(kept, load_external_data=False).graph.node)


@pytest.fixture(scope="module")
def rounded(tiny_checkpoint: Path, calls: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The U-Net in int8, every layer of it."""
    folder = tmp_path_factory.mktemp("rounded")
    export.export_component(tiny_checkpoint, "unet", folder, Static(spare=False), Calls(calls / "unet"), fused=True)
    return folder / export.MODEL


def test_the_graph_computes_what_it_did(tiny_checkpoint: Path, calls: Path, tmp_path: Path):
    """With a Gemm for every product that has a bias, and nothing split."""
    opened = Checkpoint.open(tiny_checkpoint)
    spec = pipeline_spec(opened)
    network = load_network(opened, "unet")
    model, _ = export.traced(network, component_ports(opened, spec)["unet"], spec, fused=True)
    before = Counter(node.op_type for node in model.graph)
    products.prepare(model)
    export.save(model, tmp_path / export.MODEL)
    after = Counter(node.op_type for node in model.graph)
    assert before["Split"] and not after["Split"] and after["Gemm"] > before["Gemm"]
    assert after["MatMul"] < before["MatMul"]
    found, reference = onnxruntime.InferenceSession(tmp_path / export.MODEL), open_runtime(opened, "unet")
    for feed in Calls(calls / "unet"):
        (out,) = found.run(None, feed)
        np.testing.assert_allclose(out, reference(**feed)["out_sample"], atol=1e-4)


def test_a_matrix_product_returns_fp32_from_the_kernel_that_multiplied(rounded: Path, tmp_path: Path):
    """With its bias in it where it has one; a convolution returns 8 bits."""
    ran = kernels(rounded, tmp_path / "kept.onnx")
    assert ran["QGemm"] and ran["MatMulIntegerToFloat"] and ran["QLinearConv"]
    assert not ran["QLinearMatMul"] and not ran["MatMul"] and not ran["Gemm"]


def test_gelu_is_one_kernel(rounded: Path, tmp_path: Path):
    ran = kernels(rounded, tmp_path / "kept.onnx")
    assert ran["Gelu"] and not ran["Erf"]


def test_a_shortcut_that_reads_two_parts_becomes_two_convolutions(rounded: Path, tiny_checkpoint: Path, calls: Path):
    """Each part then has a scale of its own."""
    names = {w.name for w in onnx.load(rounded).graph.initializer}
    ends = {name.partition("conv_shortcut.weight")[2] for name in names}
    assert ends >= {".0_quantized", ".1_quantized", ".0_scale", ".1_scale"}
    found = onnxruntime.InferenceSession(rounded)
    reference = open_runtime(Checkpoint.open(tiny_checkpoint), "unet")
    for feed in Calls(calls / "unet"):
        (out,) = found.run(None, feed)
        assert snr_db(reference(**feed)["out_sample"], out) > 10  # of random weights


@pytest.mark.parametrize(
    ("layer", "shape", "kernel"),
    [
        (nn.Linear(32, 64), (16, 32), "QGemm"),
        (nn.Linear(32, 64, bias=False), (16, 32), "MatMulIntegerToFloat"),
        (nn.Conv2d(32, 64, 3, padding=1), (1, 32, 8, 8), "QLinearConv"),
    ],
    ids=str,
)
def test_a_layer_that_is_timed_alone_runs_the_same_kernels(
    layer: nn.Module, shape: tuple[int, ...], kernel: str, tmp_path: Path
):
    """Or a budget of time would be spent on other numbers."""
    onnx.save(graph(layer.requires_grad_(False), shape), tmp_path / "fp32.onnx")
    quantise(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", Static(), [{"x": np.ones(shape, np.float32)}], [])
    assert kernels(tmp_path / "int8.onnx", tmp_path / "kept.onnx")[kernel] == 1


def test_layers_alike_are_timed_once(monkeypatch):
    timed = []
    monkeypatch.setattr("convert.latency._alone", lambda layer, shape: timed.append(shape) or len(timed))
    q, k, v = (nn.Linear(32, 32, bias=bias) for bias in (True, True, False))
    assert savings({"q": q, "k": k, "v": v}, dict.fromkeys("qkv", (2, 8, 32))) == {"q": 1, "k": 1, "v": 2}
    assert timed == [(16, 32), (16, 32)]
