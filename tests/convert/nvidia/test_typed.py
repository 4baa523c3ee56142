"""Typed graphs: 16 bits, islands where numbers outgrow them, symmetric int8; and what NVIDIA's builder says."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from convert import halves, probe
from convert.calibration import Calls
from convert.nvidia.lint import lint_file
from convert.parity import snr_db
from convert.schemes import Typed, floor_db
from convert.typed import export_typed, io
from kdc_edge.checkpoint import Checkpoint
from kdc_edge.runtimes.emulated import rounded
from kdc_edge.runtimes.engines import build
from kdc_edge.spec import component_ports, pipeline_spec
from kdc_edge.torch_ref.runtime import open_runtime

SCHEMES = {"fp16": Typed(), "bf16": Typed("bfloat16"), "int8": Typed(weights="int8", products=True)}
LARGE = """<ir_version: 9, opset_import: ["" : 18]>
g (float[1, 4] x, float[4, 4] w, float[4] scale) => (float[1, 4] y)
<float[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}, float[4] scale = {30000, 1, 1, 1}> {
    a = MatMul (x, w)
    b = Mul (a, scale)
    c = Softmax <axis = -1> (b)
    d = Sin (a)
    y = Add (c, d)
}"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(LARGE)))
    for node in model.graph:
        node.name = node.op_type
    path = tmp_path_factory.mktemp("large") / "model.onnx"
    ir.save(model, path)
    return path


def test_what_outgrows_fp16_is_an_island_and_the_answer_is_right(large: Path):
    model = ir.load(large)
    feed = {"x": np.array([[2.0, 1.0, -3.0, 0.5]], np.float32)}
    peak = probe.peaks(large, [value.name for value in probe.floats(model.graph)], [feed])
    assert (peak["a"], peak["b"]) == (3.0, 60000.0)
    islands = {node.name: why for node, why in probe.islands(model.graph, peak).items()}
    assert set(islands) == {"Mul", "Softmax", "Sin", "MatMul"}
    assert islands["Mul"] == "'b' reaches 6e+04"
    halves.narrow(model, ir.DataType.FLOAT16, list(probe.islands(model.graph, peak)), {"x": ir.DataType.FLOAT16})
    narrow = large.with_name("narrow.onnx")
    ir.save(model, narrow)
    onnx.checker.check_model(str(narrow), full_check=True)
    (wanted,) = onnxruntime.InferenceSession(large).run(None, feed)
    (found,) = onnxruntime.InferenceSession(narrow).run(None, {"x": feed["x"].astype(np.float16)})
    assert found.dtype == np.float32
    assert snr_db(wanted, found) > 50


@pytest.mark.parametrize("name", SCHEMES)
def test_a_typed_decoder_is_near_pytorch_clean_and_builds(
    name: str, tiny_checkpoint: Path, calls: Path, tmp_path: Path
):
    scheme, component = SCHEMES[name], "vae_decoder"
    done = export_typed(tiny_checkpoint, component, tmp_path, scheme, Calls(calls / component), narrow_ports=True)
    path = tmp_path / "model.onnx"
    assert lint_file(path) == []
    opened = Checkpoint.open(tiny_checkpoint)
    ports = io(component_ports(opened, pipeline_spec(opened))[component], scheme)
    session = onnxruntime.InferenceSession(rounded(path))
    reference = open_runtime(opened, component)
    for feed in Calls(calls / component):
        (found,) = session.run(None, {p.name: feed[p.name].astype(p.dtype) for p in ports.inputs})
        assert snr_db(reference(**feed)["sample"], found.astype(np.float32)) >= floor_db(scheme)
    kinds = {w.name: w.data_type for w in onnx.load(path).graph.initializer if w.name.endswith("weight")}
    if name == "int8":
        assert onnx.TensorProto.INT8 in kinds.values()
    else:
        assert set(kinds.values()) == {onnx.TensorProto.FLOAT16 if name == "fp16" else onnx.TensorProto.BFLOAT16}
    assert done.parameters > 1000
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; it exists for Linux on x86-64")
    build(trt, path, ports.inputs, {"batch": [1, 2, 2]}, target=trt.ComputeCapability.SM86)
