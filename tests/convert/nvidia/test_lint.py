"""The linter's table: a graph for every rule, put to NVIDIA's parser where the rule rests on it, and clean ones."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from convert import tensorrt
from convert.nvidia.lint import PARSER, RULES, lint, lint_file
from kdc_edge.errors import BundleError

PLAIN = "y = Conv (x, w)"
DECLARED = {  # what the graphs below are made of, values left out: initializers are zeros, scales ones
    "w": "float[4, 4, 1, 1]", "w8": "int8[4, 4, 1, 1]", "wu8": "uint8[4, 4, 1, 1]", "w16": "int16[4, 4, 1, 1]",
    "b32": "int32[4]", "z": "int8", "zu": "uint8", "zi": "int32", "s": "float", "sh": "float16", "one": "int8",
    "sb": "float[4, 2, 1, 1]",
}  # fmt: skip
ONES = {"s", "sh", "one", "sb"}
Q_DQ = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
NEGATIVE = {
    "opset": PLAIN,
    "domain": "y = com.microsoft.FusedConv (x, w)",
    "integer product": "q, s1, z1 = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s1, z1)",
    "zero point": "q = QuantizeLinear (x, s, one) y = DequantizeLinear (q, s, one)",
    "quantised bias": "b = DequantizeLinear (b32, s, zi) y = Conv (x, w, b)",
    "unsigned": "q = QuantizeLinear (x, s, zu) y = DequantizeLinear (q, s, zu)",
    "element type": "d = DequantizeLinear (wu8, s, zu) y = Conv (x, d)",
    "scale type": "q = QuantizeLinear (x, sh, z) y = DequantizeLinear (q, s, z)",
    "scale": "c = ReduceMax <keepdims = 0> (x) q = QuantizeLinear (x, c, z) y = DequantizeLinear (q, c, z)",
    "half quantised": f"{Q_DQ} y = Conv (d, w)",
    "blocks": "d = DequantizeLinear <axis = 1, block_size = 2> (w8, sb) y = Conv (x, d)",
}
POSITIVE = {
    "plain": PLAIN,
    "int8": f"{Q_DQ} dw = DequantizeLinear (w8, s, z) y = Conv (d, dw)",
    "int8 on float weights": f"{Q_DQ} qw = QuantizeLinear (w, s, z) dw = DequantizeLinear (qw, s, z) y = Conv (d, dw)",
    "weights alone": "dw = DequantizeLinear (w8, s) y = Conv (x, dw)",
}


def graph(body: str, opset: int = 19) -> onnx.ModelProto:
    used = {name: kind for name, kind in DECLARED.items() if f"{name}," in body or f"{name})" in body}
    held = ", ".join(f"{kind} {name}" for name, kind in used.items())
    text = f"""<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]>
    g (float[1, 4, 2, 2] x) => (float[1, 4, 2, 2] y) <{held}> {{ {body} }}"""
    model = onnx.parser.parse_model(text)
    for value in [v for v in model.graph.value_info if v.name in used]:
        tensor = value.type.tensor_type
        dims = [d.dim_value for d in tensor.shape.dim]
        size = 1
        for d in dims:
            size *= d
        fill = [1 if value.name in ONES else 0] * size
        model.graph.initializer.append(onnx.helper.make_tensor(value.name, tensor.elem_type, dims, fill))
        model.graph.value_info.remove(value)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    return model


def broken(rule: str) -> onnx.ModelProto:
    return graph(NEGATIVE[rule], opset=21 if rule in ("opset", "blocks") else 19)


@pytest.fixture
def trt():
    return pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; it exists for Linux on x86-64")


def parsed(trt, model: onnx.ModelProto) -> tuple[bool, list]:
    """Whether NVIDIA's parser takes it, and the types that its layers make."""
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    taken = trt.OnnxParser(network, logger).parse(model.SerializeToString())
    layers = [network.get_layer(i) for i in range(network.num_layers)] if taken else []
    return taken, [layer.get_output(0).dtype for layer in layers]


@pytest.mark.parametrize("rule", NEGATIVE)
def test_rules_rest_on_the_parser_or_say_on_what(trt, rule: str, capfd: pytest.CaptureFixture[str]):
    """One that comes to refuse, or to take, what it did not must be looked at again."""
    taken, kinds = parsed(trt, broken(rule))
    assert taken == (RULES[rule].source != PARSER)
    if rule == "unsigned":
        assert trt.DataType.INT8 in kinds and trt.DataType.UINT8 not in kinds


@pytest.mark.parametrize("what", POSITIVE)
def test_what_is_clean_the_parser_takes(trt, what: str):
    assert parsed(trt, graph(POSITIVE[what]))[0]


def test_every_rule_has_its_graph():
    assert set(NEGATIVE) == set(RULES)


@pytest.mark.parametrize("rule", NEGATIVE)
def test_what_the_parser_refuses_is_found_with_node_reason_and_remedy(rule: str):
    found = lint(broken(rule))
    assert rule in {finding.rule for finding in found}
    for finding in found:
        assert finding.reason
        assert finding.remedy
        assert finding.node or finding.rule == "opset"


@pytest.mark.parametrize("what", POSITIVE)
def test_what_it_takes_is_clean(what: str):
    assert lint(graph(POSITIVE[what])) == []


def test_what_is_no_onnx_is_damaged(tmp_path):
    (tmp_path / "text.onnx").write_text("no graph")
    for name in ("text.onnx", "absent.onnx"):
        with pytest.raises(BundleError, match="cannot be read as ONNX"):
            lint_file(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (lambda: graph(POSITIVE["int8"]).SerializeToString(), 0, "nothing stands in the way"),
        (lambda: graph(NEGATIVE["zero point"]).SerializeToString(), 1, "zero point: QuantizeLinear_0"),
        (lambda: b"no graph", 5, "cannot be read as ONNX"),
        (lambda: b"", 5, "holds no graph"),
    ],
)
def test_the_command_says_it_by_its_exit_code(
    content: Callable[[], bytes], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "model.onnx").write_bytes(content())
    with pytest.raises(SystemExit) as ended:
        tensorrt.main(["lint", str(tmp_path / "model.onnx"), "--json"])
    out, err = capsys.readouterr()
    assert (ended.value.code, said in err) == (code, True)
    assert json.loads(out.splitlines()[-1]).get("exit_code", 0) == code


def test_the_command_without_a_file_is_misused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        tensorrt.main(["lint"])
    assert ended.value.code == 2
