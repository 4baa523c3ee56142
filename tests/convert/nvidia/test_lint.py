"""The linter's table: a graph for every rule, and graphs that break none."""

import onnx
import pytest

from convert.nvidia.lint import RULES, lint, lint_file
from kdc_edge.errors import BundleError

PLAIN = "y = Conv (x, w)"
DECLARED = {  # what the graphs below are made of, values left out: initializers are zeros, scales ones
    "w": "float[4, 4, 1, 1]", "w8": "int8[4, 4, 1, 1]", "wu8": "uint8[4, 4, 1, 1]", "w16": "int16[4, 4, 1, 1]",
    "b32": "int32[4]", "z": "int8", "zu": "uint8", "zi": "int32", "s": "float", "sh": "float16", "one": "int8",
}  # fmt: skip
ONES = {"s", "sh", "one"}
Q_DQ = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
NEGATIVE = {
    "opset": PLAIN,
    "domain": "y = com.microsoft.Gelu (x)",
    "integer product": "q, s1, z1 = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s1, z1)",
    "zero point": "q = QuantizeLinear (x, s, one) y = DequantizeLinear (q, s, one)",
    "quantised bias": "b = DequantizeLinear (b32, s, zi) y = Conv (x, w, b)",
    "unsigned": "q = QuantizeLinear (x, s, zu) y = DequantizeLinear (q, s, zu)",
    "element type": "d = DequantizeLinear (wu8, s, zu) y = Conv (x, d)",
    "scale type": "q = QuantizeLinear (x, sh, z) y = DequantizeLinear (q, s, z)",
    "scale": "c = ReduceMax <keepdims = 0> (x) q = QuantizeLinear (x, c, z) y = DequantizeLinear (q, c, z)",
    "half quantised": f"{Q_DQ} y = Conv (d, w)",
    "blocks": "d = DequantizeLinear <axis = 1, block_size = 2> (w8, s) y = Conv (x, d)",
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


def test_every_rule_has_its_graph():
    assert set(NEGATIVE) == set(RULES)


@pytest.mark.parametrize("rule", NEGATIVE)
def test_what_the_parser_refuses_is_found_with_node_reason_and_remedy(rule: str):
    found = lint(graph(NEGATIVE[rule], opset=21 if rule == "opset" else 19))
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
